"""The log of a session over HTTP: as a page, or as a stream of server-sent events that goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.responses import Response
from starlette.routing import Route

from interlock.clock import SystemClock
from interlock.errors import Draining, InterlockError, LimitExceeded, ValidationError
from interlock.http.problems import answering, json
from interlock.session.feed import PAGE, Asked, read_page
from interlock.session.subscription import event_types, subscribe
from interlock.session.values import check_id

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping

    from starlette.requests import Request

    from interlock.core.sessions import Event
    from interlock.ports import Clock, Store
    from interlock.session.subscription import Subscription

    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]

PING_SECONDS = 15.0
"""After so long without an event a comment shows that the stream lives."""
STALL_SECONDS = 30.0
"""A client that takes nothing for so long is cut off; it comes back with ``Last-Event-ID``."""
MOST_STREAMS = 256
_MOST_EVENTS = 1000
_PIECE = 64 << 10
"""Bytes that are sent at once, give or take an event."""
_QUERY = ("from", "run", "type", "limit")
_HEADERS = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # asks nginx to pass every event at once
]


class EventStreams:
    """Every stream of events that this server has open, and what they are read from."""

    def __init__(self, store: Store, *, clock: Clock | None = None, most: int = MOST_STREAMS) -> None:
        self.store = store
        self.clock = SystemClock() if clock is None else clock
        self._most = most
        self._open: set[_Stream] = set()
        self._closed = False

    def __len__(self) -> int:
        return len(self._open)

    def close(self) -> None:
        """End every stream, and take no other: the server stops. Clients come back to where they were."""
        self._closed = True
        for stream in list(self._open):
            stream.end()

    def check_room(self) -> None:
        """Raises `Draining` once closed, `LimitExceeded` where as many are open as may be."""
        if self._closed:
            raise Draining("the server stops; come back in a moment")
        if len(self._open) >= self._most:
            raise LimitExceeded(f"{self._most} streams of events are open already", limit=self._most)

    def add(self, stream: _Stream) -> None:
        """*stream* is open now."""
        self._open.add(stream)

    def discard(self, stream: _Stream) -> None:
        """*stream* has ended."""
        self._open.discard(stream)


def event_routes(streams: EventStreams) -> list[Route]:
    """The route of ``/sessions/{id}/events``."""
    return [Route("/sessions/{id}/events", answering(_Routes(streams).events), methods=["GET"])]


class _Routes:
    def __init__(self, streams: EventStreams) -> None:
        self._streams = streams

    async def events(self, request: Request) -> Response:
        query = request.query_params
        for name in query:
            if name not in _QUERY:
                raise ValidationError(f"unknown query parameter {name[:80]!r}; known are {', '.join(_QUERY)}")
        after = max(0, whole("from", query.get("from", "0")) - 1)
        limit = whole("limit", query.get("limit", str(PAGE)), 1, _MOST_EVENTS)
        run_id = check_id("run", query["run"]) if "run" in query else None
        types = event_types(query.getlist("type") or None)
        if not (wants_stream(request.headers.getlist("accept")) and request.method == "GET"):
            asked = Asked(after, run_id, types)
            page = await read_page(self._streams.store, request.path_params["id"], asked, limit)
            return json({"events": [shown(event) for event in page.events], "nextFrom": page.upto + 1})
        if last := request.headers.get("last-event-id"):
            after = whole("Last-Event-ID", last)
        return await self._stream(request.path_params["id"], after, run_id, types)

    async def _stream(
        self, session_id: str, after: int, run_id: str | None, types: frozenset[str] | None
    ) -> Response:
        streams = self._streams
        streams.check_room()
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
            streams.check_room()
        except InterlockError:
            subscription.close()
            raise
        return _Stream(streams, subscription)


class _Stream(Response):
    """One client that reads a subscription as server-sent events, at its own pace."""

    def __init__(self, streams: EventStreams, subscription: Subscription) -> None:
        super().__init__()
        self._streams = streams
        self._clock = streams.clock
        self._subscription = subscription
        self._task: asyncio.Task[Any] | None = None
        self._sending = False
        self._cut = False
        streams.add(self)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        self._task = asyncio.current_task()
        watching = asyncio.get_running_loop().create_task(self._watch(receive))
        try:
            await self._put(send, {"type": "http.response.start", "status": 200, "headers": _HEADERS})
            with suppress(InterlockError):  # who comes back hears the reason: removed, or the store is closed
                await self._send_all(send)
            await self._put(send, _body(b"", more=False))
        except asyncio.CancelledError:
            if self._cut and self._task is not None and not self._task.uncancel():
                raise ConnectionResetError("the client takes nothing any more") from None
            raise
        finally:
            watching.cancel()
            self._subscription.close()
            self._streams.discard(self)

    def end(self) -> None:
        """End it: at once if its client waits for events, by a cut if it does not take what there is."""
        self._subscription.close()
        if self._sending:
            self._cut_off()

    async def _send_all(self, send: Send) -> None:
        subscription, clock = self._subscription, self._clock
        caught_up = False
        while not subscription.closed:
            if not caught_up and subscription.next_from > subscription.backlog_end:
                caught_up = True
                await self._put(send, _body(_mark("end-of-backfill", subscription)))
                continue
            if subscription.ended:
                await self._put(send, _body(_mark("end", subscription)))
                return
            position = subscription.next_from
            events = await subscription.batch(until=clock.now() + PING_SECONDS)
            for piece in _pieces(events):
                await self._put(send, _body(piece))
            if not events and subscription.next_from == position and not subscription.over:
                await self._put(send, _body(b": ping\n\n"))

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
        self._subscription.close()


# -- words


def shown(event: Event) -> dict[str, Any]:
    """*event* as the contract has it: camelCase, times in milliseconds since the epoch."""
    return {
        "id": event.id,
        "sessionId": event.session_id,
        "runId": event.run_id,
        "sequence": event.sequence,
        "type": event.type,
        "timestamp": round(event.timestamp * 1000),
        "data": event.data,
        "metadata": event.metadata,
    }


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else str(value)


_encode = msgspec.json.Encoder(enc_hook=_plain).encode


def frame(event: Event) -> bytes:
    """*event* as a server-sent event. JSON has no bare line end, so its ``data`` is one line."""
    name = event.type if event.type.isidentifier() else "message"
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (event.sequence, name.encode(), _encode(shown(event)))


def _body(body: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


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


def whole(name: str, text: str, least: int = 0, most: int = 2**53) -> int:
    """The number that *text* writes; `ValidationError` unless it is one from *least* to *most*."""
    if text.isascii() and text.isdecimal() and len(text) <= 16 and least <= int(text) <= most:
        return int(text)
    raise ValidationError(f"{name} is {text[:80]!r}; allowed are whole numbers from {least} to {most}")


def wants_stream(accept: Iterable[str]) -> bool:
    """Whether these ``Accept`` headers name server-sent events."""
    for media in ",".join(accept).split(","):
        kind, *parameters = (part.strip().lower() for part in media.split(";"))
        refused = any(one.replace(" ", "") in ("q=0", "q=0.0", "q=0.00", "q=0.000") for one in parameters)
        if kind == "text/event-stream" and not refused:
            return True
    return False
