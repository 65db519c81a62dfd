"""The client's side of one gateway call: what has been said to it, and how an error is said from there on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from interlock.http.gateway.dialects import (
    PING,
    Dialect,
    error_body,
    error_event,
    refusal_headers,
    upstream_error_event,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from interlock.http.gateway.headers import RawHeaders

    Send = Callable[[dict[str, Any]], Awaitable[None]]

_EVENT_STREAM: RawHeaders = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class Reply:
    """One answer, in the dialect of its request.

    Once pings went out the status is 200 and what follows is an event stream; a later error becomes the
    dialect's error event.
    """

    def __init__(self, send: Send, dialect: Dialect, *, ping_after: float) -> None:
        self._send = send
        self.dialect = dialect
        self._ping_after = ping_after
        self._timer: asyncio.TimerHandle | None = None
        self._pinger: asyncio.Task[None] | None = None
        self.started = False
        self.pinged = False
        self.status = 0
        """What the client was told; 0 before that."""
        self._ended = False
        self._told: str | None = None

    @property
    def outcome(self) -> str:
        """How the call ended, or would if it ended now.

        ``answered`` or ``upstream_error`` by the status that was passed on; ``upstream_failed`` where there
        was none or it broke off; ``refused`` and ``failed`` by us; ``left`` if its client did not wait.
        """
        if self._told is not None:
            return self._told
        if not self._ended:
            return "left"
        return "answered" if self.status < 400 else "upstream_error"

    async def start(self, status: int, headers: RawHeaders) -> None:
        self.started = True
        self.status = status
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def chunk(self, body: bytes) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def end(self, body: bytes = b"") -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": False})
        self._ended = True

    async def whole(self, status: int, headers: RawHeaders, body: bytes) -> None:
        """A complete answer; after pings, an upstream's error as an event."""
        if self.pinged:
            self._told = "upstream_error"
            encoding = next((v.decode("latin-1") for n, v in headers if n.lower() == b"content-encoding"), "")
            await self.end(upstream_error_event(self.dialect, status, body, encoding))
            return
        await self.start(status, headers)
        await self.end(body)

    async def refuse(
        self,
        status: int,
        code: str,
        message: str,
        *,
        retry_after: float | None = None,
        headers: RawHeaders | None = None,
    ) -> None:
        """An error of ours, in the dialect's own shape."""
        ours = "failed" if code == "internal_error" else "refused"
        self._told = "upstream_failed" if code.startswith("upstream_") else ours
        if self.pinged:
            await self.end(error_event(self.dialect, status, code, message))
            return
        body = error_body(self.dialect, status, code, message)
        own = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await self.start(status, [*own, *refusal_headers(retry_after), *(headers or [])])
        await self.end(body)

    async def break_off(self, status: int, code: str, message: str) -> None:
        """End an event stream that is under way with the dialect's error event."""
        self._told = "upstream_failed"
        await self.end(error_event(self.dialect, status, code, message))

    # -- pings

    def ping_later(self, already_waited: float) -> None:
        """From when *already_waited* seconds have become ``ping_after``, keep the client's line alive."""
        if self._timer is None and self._pinger is None:
            delay = max(0.0, self._ping_after - already_waited)
            self._timer = asyncio.get_running_loop().call_later(delay, self._begin_pings)

    async def stop_pings(self) -> None:
        """Return when no ping is under way and none will be."""
        pinger = self._pinger
        self.cancel_pings()
        if pinger is not None:
            await asyncio.wait([pinger])

    def cancel_pings(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._pinger is not None:
            self._pinger.cancel()
            self._pinger = None

    def _begin_pings(self) -> None:
        self._timer = None
        self._pinger = asyncio.get_running_loop().create_task(self._pings())

    async def _pings(self) -> None:
        if not self.started:
            self.pinged = True
            await self.start(200, _EVENT_STREAM)
        while True:
            await self.chunk(PING)
            await asyncio.sleep(max(self._ping_after, 1.0))
