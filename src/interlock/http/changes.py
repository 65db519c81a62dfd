"""``GET /events``: the whole fleet as one stream of events, for a dashboard and ``interlock top``.

First a ``snapshot`` with every row, then ``changes`` with those that are not as they were. Nothing is queued
for anybody: a change is worked out, when its reader has room for it, from the state that was sent last and
the state there is.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypedDict

from starlette.responses import Response

from interlock.errors import Draining, LimitExceeded
from interlock.http.access.caller import caller_of
from interlock.http.endpoints import endpoint
from interlock.http.overview import changes
from interlock.http.problems import encoded, json
from interlock.http.streaming import (
    MOST_STREAMS,
    PING,
    PING_SECONDS,
    EventStream,
    StreamRoom,
    Streams,
    wants_stream,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

    from interlock.http.access.caller import Caller
    from interlock.http.overview import State
    from interlock.http.streaming import Put
    from interlock.ports import Clock, TimerHandle

TICK_SECONDS = 0.25
"""Changes are looked for so often, and sent at most so often; not at all while nobody listens."""


class FleetStreams(Streams):
    """Every stream of the fleet's state that is open, and the state that all of them are told of."""

    def __init__(
        self,
        read: Callable[[], State],
        *,
        clock: Clock | None = None,
        most: int = MOST_STREAMS,
        room: StreamRoom | None = None,
    ) -> None:
        super().__init__(clock=clock, most=most, room=room)
        self.read = read
        self.state: State = {}
        self.version = 0
        """Grows with every change of `state`."""
        self._waiting: dict[asyncio.Future[None], int] = {}
        self._timer: TimerHandle | None = None
        self._rows: dict[tuple[int, str | None], bytes] = {}
        """What of `state` is new to those who were told of an earlier version."""

    def look(self) -> None:
        """Bring `state` up to date."""
        state = self.read()
        if state != self.state or not self.version:
            self.state = state
            self.version += 1
            self._rows.clear()

    def add(self, stream: EventStream) -> None:
        super().add(stream)
        if self._timer is None:
            self._timer = self.clock.call_at(self.clock.now() + TICK_SECONDS, self._tick)

    def discard(self, stream: EventStream) -> None:
        super().discard(stream)
        if not self and self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self.state = {}

    async def newer(self, version: int, until: float) -> None:
        """Return at the tick by which the state has another version, at the latest at *until*."""
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        timer = self.clock.call_at(until, lambda: _wake(woken))
        self._waiting[woken] = version
        try:
            await woken
        finally:
            del self._waiting[woken]
            timer.cancel()

    def wake(self) -> None:
        """Let everybody who waits look for himself."""
        for woken in self._waiting:
            _wake(woken)

    def changes(self, since: int, before: State, caller: Caller) -> bytes:
        """The event for one who was told of *before*, version *since*; empty if all is as it was."""
        rows = self._rows.get((since, caller.tenant))
        if rows is None:
            rows = encoded(changes(seen_by(caller, before), seen_by(caller, self.state)))
            self._rows[since, caller.tenant] = rows
        return b"" if rows == b"{}" else self._frame(b"changes", rows)

    def snapshot(self, caller: Caller) -> bytes:
        """The first event of a stream."""
        return self._frame(b"snapshot", encoded(seen_by(caller, self.state)))

    def _frame(self, name: bytes, rows: bytes) -> bytes:
        at = round(self.clock.now() * 1000)
        return b'id: %d\nevent: %b\ndata: {"at":%d,%b\n\n' % (self.version, name, at, rows[1:])

    def _tick(self) -> None:
        self._timer = self.clock.call_at(self.clock.now() + TICK_SECONDS, self._tick)
        self.look()
        for woken, version in self._waiting.items():
            if version != self.version:
                _wake(woken)


def _wake(woken: asyncio.Future[None]) -> None:
    if not woken.done():
        woken.set_result(None)


class _Stream(EventStream):
    """One client that is told of every change, or of several at once if it is slow."""

    def __init__(self, streams: FleetStreams, caller: Caller) -> None:
        self._fleet = streams
        self._closed = False
        super().__init__(streams, caller)

    def close(self) -> None:
        self._closed = True
        self._fleet.wake()

    async def send_all(self, put: Put) -> None:
        fleet, clock = self._fleet, self._clock
        fleet.look()
        version, told = fleet.version, fleet.state
        await put(fleet.snapshot(self.caller))
        until = clock.now() + PING_SECONDS
        while not self._closed:
            if fleet.version == version:
                await fleet.newer(version, until)
                if fleet.version == version and clock.now() >= until:
                    await put(PING)
                    until = clock.now() + PING_SECONDS
                continue
            event = fleet.changes(version, told, self.caller)
            version, told = fleet.version, fleet.state
            if event:
                await put(event)
                until = clock.now() + PING_SECONDS


def seen_by(caller: Caller, state: State) -> State:
    """*state* with those of its sessions only that are the caller's; limits are everybody's."""
    if caller.tenant is None:
        return state
    mine = {name: row for name, row in state.get("sessions", {}).items() if caller.owns(name)}
    return {**state, "sessions": mine}


class FleetAnswer(TypedDict):
    """The whole fleet at one moment: rows by name, in sections."""

    at: int
    limits: dict[str, dict[str, Any]]
    providers: dict[str, dict[str, Any]]
    pools: dict[str, dict[str, Any]]
    sessions: dict[str, dict[str, Any]]


class FleetRoutes:
    """The route of ``/events`` over *streams*."""

    def __init__(self, streams: FleetStreams) -> None:
        self._streams = streams

    @endpoint(
        "GET /events",
        "read",
        "The fleet as it changes",
        tag="state",
        answers={200: (FleetAnswer, "text/event-stream")},
        problems=(Draining, LimitExceeded),
    )
    async def fleet_events(self, request: Request) -> Response:
        """First a `snapshot`, then `changes`; with `Accept: application/json`, the first alone."""
        streams, caller = self._streams, caller_of(request.scope)
        if not _takes_stream(request.headers.getlist("accept")):
            return json({"at": round(streams.clock.now() * 1000), **seen_by(caller, streams.read())})
        if request.method == "HEAD":
            return Response(media_type="text/event-stream")
        streams.check_room(caller)
        return _Stream(streams, caller)


def _takes_stream(accept: list[str]) -> bool:
    """A stream is what this address has; one who wants JSON only gets the state once."""
    return not accept or "*/*" in ",".join(accept) or wants_stream(accept)
