"""The log of a session over HTTP: as a page, or as a stream of server-sent events that goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from interlock.core.runs import EVENT_TYPES
from interlock.errors import (
    Draining,
    InterlockError,
    LimitExceeded,
    SessionNotFound,
    StoreError,
    Unavailable,
)
from interlock.http.access.caller import ANYBODY, caller_of
from interlock.http.endpoints import endpoint
from interlock.http.ids import SEGMENT
from interlock.http.problems import json
from interlock.http.queries import Query, read_query, whole
from interlock.http.sessions.answers import EventAnswer, EventsPage
from interlock.http.streaming import (
    MOST_STREAMS,
    PING,
    PING_SECONDS,
    EventStream,
    StreamRoom,
    Streams,
    wants_stream,
)
from interlock.session.feed import PAGE, Asked, read_page
from interlock.session.subscription import event_types, subscribe
from interlock.session.values import check_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from starlette.requests import Request
    from starlette.responses import Response

    from interlock.core.sessions import Event
    from interlock.http.access.caller import Caller
    from interlock.http.streaming import Put
    from interlock.ports import Clock, Store
    from interlock.session.subscription import Subscription

_MOST_EVENTS = 1000
_PIECE = 64 << 10
"""Bytes that are sent at once, give or take an event."""


class EventStreams(Streams):
    """Every stream of a session's events that this server has open, and what they are read from."""

    def __init__(
        self,
        store: Store,
        *,
        clock: Clock | None = None,
        most: int = MOST_STREAMS,
        room: StreamRoom | None = None,
    ) -> None:
        super().__init__(clock=clock, most=most, room=room)
        self.store = store


class EventsAsked(Query, rename={"after": "from"}):
    """Which events, and from which sequence on."""

    after: Annotated[int, Meta(ge=0, le=2**53)] = 0
    run: Annotated[str, Meta(max_length=200, pattern=f"^{SEGMENT}$")] | None = None
    type: tuple[Annotated[str, Meta(extra_json_schema={"enum": sorted(EVENT_TYPES)})], ...] = ()
    limit: Annotated[int, Meta(ge=1, le=_MOST_EVENTS)] = PAGE


class SessionEventsPath(msgspec.Struct):
    """A session."""

    id: Annotated[str, Meta(min_length=1, max_length=200)]


class EventsHeader(msgspec.Struct, rename={"last_event_id": "Last-Event-ID"}):
    """Of a stream that goes on where another one broke off."""

    last_event_id: Annotated[str, Meta(pattern="^[0-9]{0,15}$")] | UnsetType = UNSET


class EventRoutes:
    """The route of ``/sessions/{id}/events``; without *streams* it answers 503."""

    def __init__(self, streams: EventStreams | None) -> None:
        self._kept = streams

    @property
    def _streams(self) -> EventStreams:
        if self._kept is None:
            raise Unavailable("this server keeps no sessions")
        return self._kept

    @endpoint(
        "GET /sessions/{id}/events",
        "read",
        "The log of a session, as a page or as it grows",
        tag="sessions",
        within=SessionEventsPath,
        query=EventsAsked,
        headers=EventsHeader,
        answers={200: (EventsPage, "text/event-stream")},
        problems=(Draining, LimitExceeded, SessionNotFound, StoreError, Unavailable),
    )
    async def events(self, request: Request) -> Response:
        """With `Accept: text/event-stream` it is the log as it grows: each `id` is an event's sequence."""
        asked = read_query(request, EventsAsked)
        session_id: str = request.path_params["id"]
        caller = caller_of(request.scope)
        if not caller.owns(session_id):
            raise SessionNotFound(f"no session {session_id!r}", session=session_id)
        after, limit = max(0, asked.after - 1), asked.limit
        run_id = None if asked.run is None else check_id("run", asked.run)
        types = event_types(asked.type or None)
        last = request.headers.get("last-event-id")
        resumed = whole("Last-Event-ID", last) if last else None
        if not (wants_stream(request.headers.getlist("accept")) and request.method == "GET"):
            page_of = Asked(after, run_id, types)
            page = await read_page(self._streams.store, session_id, page_of, limit)
            return json({"events": [shown(event) for event in page.events], "nextFrom": page.upto + 1})
        return await self._stream(caller, session_id, after if resumed is None else resumed, run_id, types)

    async def _stream(
        self, caller: Caller, session_id: str, after: int, run_id: str | None, types: frozenset[str] | None
    ) -> Response:
        streams = self._streams
        streams.check_room(caller)
        subscription = subscribe(
            streams.store,
            session_id,
            from_sequence=after + 1,
            run_id=run_id,
            types=types,
            clock=streams.clock,
        )
        await subscription.__aenter__()  # the response leaves it; a refusal is still a problem document
        try:
            streams.check_room(caller)
        except InterlockError:
            subscription.close()
            raise
        return _Stream(streams, subscription, caller)


class _Stream(EventStream):
    """One client that reads a subscription."""

    def __init__(self, streams: EventStreams, subscription: Subscription, caller: Caller = ANYBODY) -> None:
        super().__init__(streams, caller)
        self._subscription = subscription

    def close(self) -> None:
        self._subscription.close()

    async def send_all(self, put: Put) -> None:
        subscription, clock = self._subscription, self._clock
        caught_up = False
        while not subscription.closed:
            if not caught_up and subscription.next_from > subscription.backlog_end:
                caught_up = True
                await put(_mark("end-of-backfill", subscription))
                continue
            if subscription.ended:
                await put(_mark("end", subscription))
                return
            position = subscription.next_from
            events = await subscription.batch(until=clock.now() + PING_SECONDS)
            for piece in _pieces(events):
                await put(piece)
            if not events and subscription.next_from == position and not subscription.over:
                await put(PING)


# -- words


def shown(event: Event) -> EventAnswer:
    """*event* as the contract has it: camelCase, times in milliseconds since the epoch."""
    return {
        "id": event.id,
        "sessionId": event.session_id,
        "runId": event.run_id,
        "sequence": event.sequence,
        "type": event.type,
        "timestamp": round(event.timestamp * 1000),
        "data": dict(event.data),
        "metadata": dict(event.metadata),
    }


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else str(value)


_encode = msgspec.json.Encoder(enc_hook=_plain).encode


def frame(event: Event) -> bytes:
    """*event* as a server-sent event. JSON has no bare line end, so its ``data`` is one line."""
    name = event.type if event.type.isidentifier() else "message"
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (event.sequence, name.encode(), _encode(shown(event)))


def _mark(name: str, subscription: Subscription) -> bytes:
    return b'event: %b\ndata: {"nextFrom":%d}\n\n' % (name.encode(), subscription.next_from)


def _pieces(events: Iterable[Event]) -> Iterator[bytes]:
    """Their frames, joined to what is worth a send."""
    piece = bytearray()
    for event in events:
        piece += frame(event)
        if len(piece) >= _PIECE:
            yield bytes(piece)
            piece.clear()
    if piece:
        yield bytes(piece)
