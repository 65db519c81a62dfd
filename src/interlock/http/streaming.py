"""Streams of server-sent events: who has one open, and how each is sent at the pace of who reads it."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from interlock.clock import SystemClock
from interlock.errors import Draining, InterlockError, LimitExceeded
from interlock.http.access.caller import ANYBODY

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, MutableMapping

    from interlock.http.access.caller import Caller
    from interlock.ports import Clock

    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    Put = Callable[[bytes], Awaitable[None]]

PING_SECONDS = 15.0
"""After so long without an event a comment shows that the stream lives."""
STALL_SECONDS = 30.0
"""A client that takes nothing for so long is cut off; it comes back by itself."""
LONGEST_SECONDS = 3600.0
"""A stream ends after so long; its client comes back by itself, perhaps to another server."""
MOST_STREAMS = 256
MOST_PER_TOKEN = 32
PING = b": ping\n\n"
_HEADERS = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # asks nginx to pass every event at once
]


class StreamRoom:
    """How many streams there may be, of all kinds; a token that is no admin's has a share of them."""

    def __init__(self, most: int = MOST_STREAMS, most_per_token: int = MOST_PER_TOKEN) -> None:
        self._most = most
        self._most_per_token = most_per_token
        self._count = 0
        self._by_token: Counter[str] = Counter()

    def check(self, caller: Caller) -> None:
        """Raises `LimitExceeded` where as many are open as may be."""
        if self._count >= self._most:
            raise LimitExceeded(f"{self._most} streams of events are open already", limit=self._most)
        for name in () if caller.may("admin") else caller.names:
            if self._by_token[name] >= self._most_per_token:
                raise LimitExceeded(
                    f"{self._most_per_token} streams of events of this token are open already",
                    limit=self._most_per_token,
                )

    def take(self, caller: Caller) -> None:
        """*caller* has another one open."""
        self._count += 1
        self._by_token.update(caller.names)

    def leave(self, caller: Caller) -> None:
        """One of *caller*'s has ended."""
        self._count -= 1
        self._by_token -= Counter(caller.names)  # drops those that have none left


class Streams:
    """Every stream of one kind that this server has open."""

    def __init__(
        self, *, clock: Clock | None = None, most: int = MOST_STREAMS, room: StreamRoom | None = None
    ) -> None:
        self.clock = SystemClock() if clock is None else clock
        self._room = StreamRoom(most) if room is None else room
        self._open: set[EventStream] = set()
        self._closed = False

    def __len__(self) -> int:
        return len(self._open)

    def close(self) -> None:
        """End every stream, and take no other: the server stops. Clients come back to where they were."""
        self._closed = True
        for stream in list(self._open):
            stream.end()

    def check_room(self, caller: Caller = ANYBODY) -> None:
        """Raises `Draining` once closed, `LimitExceeded` where as many are open as may be."""
        if self._closed:
            raise Draining("the server stops; come back in a moment")
        self._room.check(caller)

    def add(self, stream: EventStream) -> None:
        """*stream* is open now."""
        self._open.add(stream)
        self._room.take(stream.caller)

    def discard(self, stream: EventStream) -> None:
        """*stream* has ended."""
        if stream in self._open:
            self._open.discard(stream)
            self._room.leave(stream.caller)


class EventStream(Response):
    """One client that reads server-sent events, at its own pace. What they are, `send_all` says."""

    def __init__(self, streams: Streams, caller: Caller = ANYBODY) -> None:
        super().__init__()
        self.caller = caller
        self._streams = streams
        self._clock = streams.clock
        self._task: asyncio.Task[Any] | None = None
        self._sending = False
        self._cut = False
        streams.add(self)

    async def send_all(self, put: Put) -> None:
        """Hand frames to *put*, which returns when there is room for more, until `close` or the end."""
        raise NotImplementedError

    def close(self) -> None:
        """Nothing more is wanted: `send_all` returns soon, also if it waits for something to happen."""
        raise NotImplementedError

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        self._task = asyncio.current_task()
        old = self._clock.call_at(self._clock.now() + LONGEST_SECONDS, self.close)
        watching = asyncio.get_running_loop().create_task(self._watch(receive))

        async def put(body: bytes) -> None:
            await self._put(send, _body(body))

        try:
            await self._put(send, {"type": "http.response.start", "status": 200, "headers": _HEADERS})
            with suppress(InterlockError):  # who comes back hears the reason: removed, or the store is closed
                await self.send_all(put)
            await self._put(send, _body(b"", more=False))
        except asyncio.CancelledError:
            if self._cut and self._task is not None and not self._task.uncancel():
                raise ConnectionResetError("the client takes nothing any more") from None
            raise
        finally:
            old.cancel()
            watching.cancel()
            self.close()
            self._streams.discard(self)

    def end(self) -> None:
        """End it: at once if its client waits for events, by a cut if it does not take what there is."""
        self.close()
        if self._sending:
            self._cut_off()

    async def _put(self, send: Send, message: Message) -> None:
        """Send *message*, and wait until the client has taken about all that was sent before."""
        timer = self._clock.call_at(self._clock.now() + STALL_SECONDS, self._cut_off)
        self._sending = True
        try:
            await send(message)
        finally:
            self._sending = False
            timer.cancel()

    def _cut_off(self) -> None:
        if self._task is not None and not self._cut:
            self._cut = True
            self._task.cancel()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.close()


def wants_stream(accept: Iterable[str]) -> bool:
    """Whether these ``Accept`` headers name server-sent events."""
    for media in ",".join(accept).split(","):
        kind, *parameters = (part.strip().lower() for part in media.split(";"))
        refused = any(one.replace(" ", "") in ("q=0", "q=0.0", "q=0.00", "q=0.000") for one in parameters)
        if kind == "text/event-stream" and not refused:
            return True
    return False


def _body(body: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}
