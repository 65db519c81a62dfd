"""What a connection may say, and how long it may take for that: bounds that uvicorn's protocol has not.

Every message is handed to the parser in two parts, its head and its body, so that where each ends is known
before the parser sees it. Times are absolute: a byte now and then does not put them off. A head that is
there at once, as nearly all are, starts no timer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import httptools
import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from interlock.http.connections.chunks import BadChunk, Chunks

if TYPE_CHECKING:
    import asyncio

    from interlock.http.connections.places import Places

MOST_HEADERS: Final = 100
LONGEST_HEADERS: Final = 16 << 10
LONGEST_TARGET: Final = 8 << 10
_WEBSOCKET: Final = re.compile(rb"\nupgrade:[ \t]*websocket[ \t]*\r")
_UPGRADE: Final = re.compile(rb"\r\nupgrade:[^\r\n]*", re.IGNORECASE)
_LONGEST_HEAD: Final = LONGEST_HEADERS + LONGEST_TARGET + 64
_MOST_TURNED_AWAY: Final = 256
"""So many hear why before they are cut off; more are cut off at once."""


@dataclass(frozen=True, slots=True)
class Patience:
    """For how long a connection may take its time, in seconds; a body one more for every *rate* bytes."""

    idle: float = 75.0
    head: float = 10.0
    body: float = 30.0
    rate: int = 64 << 10
    linger: float = 1.0
    """How long what still comes is thrown away, so that the refusal before it arrives."""


class _Refused(NamedTuple):
    status: int
    code: str
    detail: str


class Connection(HttpToolsProtocol):
    """One client's connection, within bounds. What breaks them is answered once, and closed."""

    def __init__(self, *, places: Places, patience: Patience, **given: Any) -> None:
        super().__init__(**given)
        self._places = places
        self._patience = patience
        self.timeout_keep_alive = patience.idle  # type: ignore[assignment]  # fractions are as good
        self._place: str | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._over = False
        """Nothing more is read."""
        self._head = b""
        """What has come of a head that is not whole yet."""
        self._head_size = 0
        self._refused: _Refused | None = None
        self._left = 0
        """Of a body with a length."""
        self._chunks: Chunks | None = None
        self._in_body = False
        self._answering: RequestResponseCycle | None = None
        """The request that the application is at; behind it there may be others."""
        self._began = 0.0
        self._received = 0

    # -- coming and going

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._place = self._places.take(self.client[0] if self.client else "")
        if self._place is not None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self._patience.idle, self.timeout_keep_alive_handler
            )
        elif len(self.connections) > len(self._places) + _MOST_TURNED_AWAY:
            transport.abort()
        else:
            self._refuse(
                _Refused(503, "too_many_connections", "this server has no room for more connections")
            )

    def connection_lost(self, exc: Exception | None) -> None:
        self._over = True
        self._stop_timer()
        self._unset_keepalive_if_required()
        self._leave()
        if self._answering is not None:  # uvicorn tells the last one that came, which may be another
            _break_off(self._answering)
        super().connection_lost(exc)

    def _leave(self) -> None:
        if self._place is not None:
            self._places.leave(self._place)
            self._place = None

    def handle_websocket_upgrade(self) -> None:
        super().handle_websocket_upgrade()
        successor = self.transport.get_protocol()
        assert isinstance(successor, LongConnection)
        successor.on_lost = self._leave
        self._over = True

    # -- reading

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        while data and not self._over:
            data = self._read_body(data) if self._in_body else self._read_head(data)
        if self._over or self._timer is not None:
            return
        if self._head:
            self._timer = self.loop.call_later(self._patience.head, self._late, "headers")
        elif self._in_body:
            self._began, self._received = self.loop.time(), 0
            self._timer = self.loop.call_later(self._patience.body, self._look_at_body)

    def _read_head(self, data: bytes) -> bytes:
        """Take the head that *data* goes on with; what follows it."""
        fresh = len(data)
        if self._head:
            data = self._head + data
        if data[0] in b"\r\n":  # an empty line before a request is nobody's
            data = data.lstrip(b"\r\n") or b"\n"
        end = data.find(b"\r\n\r\n", max(0, len(data) - fresh - 3)) + 4
        if end < 4 and len(data) <= _LONGEST_HEAD:
            self._head = data
            start = max(0, len(data) - fresh)
            bare = data.count(b"\n", start) != data.count(b"\r\n", max(0, start - 1))
            if data != b"\n" and (bare or not data[:1].isalpha()):
                self._refuse(_Refused(400, "bad_request", "this is no HTTP/1.1"))  # nor will it become that
            return b""
        if end < 4 or end > _LONGEST_HEAD:
            self._refuse(_too_long(data))
            return b""
        self._head = b""
        self._stop_timer()
        self._head_size = end
        self._feed(_without_upgrade(data[:end] if end < len(data) else data))
        return data[end:]

    def _read_body(self, data: bytes) -> bytes:
        """Take what of *data* belongs to the body; what follows it."""
        if self._chunks is None:
            taken = min(self._left, len(data))
            self._left -= taken
        else:
            try:
                taken = self._chunks.take(data)
            except BadChunk as error:
                self._refuse(_Refused(400, "bad_request", str(error)))
                return b""
            if self._chunks.ended:
                self._chunks = None
        self._received += taken
        self._feed(data[:taken] if taken < len(data) else data)
        if not self._left and self._chunks is None and not self._over:
            self._in_body = False
            self._stop_timer()
        return data[taken:]

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            if self._should_upgrade():
                self.handle_websocket_upgrade()
        except httptools.HttpParserError as error:
            self._refuse(self._refused or _Refused(400, "bad_request", f"this is no proper HTTP: {error}"))

    def on_headers_complete(self) -> None:
        for name, value in self.headers:
            if name == b"content-length":
                self._left = int(value)
            elif name == b"transfer-encoding":
                self._chunks = Chunks()
        self._refused = self._wrong()
        if self._refused is not None:
            raise ValueError(self._refused.detail)  # which the parser passes on
        self._in_body = self._left > 0 or self._chunks is not None
        super().on_headers_complete()
        if self._chunks is not None:
            self.headers = list(self.headers)  # trailers do not come among the fields that are looked at

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def _wrong(self) -> _Refused | None:
        """What the parser lets pass in a head, and we do not."""
        if len(self.url) > LONGEST_TARGET:
            return _too_long(b"")
        if len(self.headers) > MOST_HEADERS or self._head_size - len(self.url) > LONGEST_HEADERS:
            return _Refused(
                431,
                "headers_too_large",
                f"send at most {MOST_HEADERS} header fields of {LONGEST_HEADERS} bytes in all",
            )
        version = self.parser.get_http_version()
        if version not in ("1.1", "1.0"):
            return _Refused(505, "http_version", "send HTTP/1.1")
        if self.parser.get_method() == b"CONNECT":
            return _Refused(501, "not_implemented", "this server is no proxy for tunnels")
        if self._chunks is not None:
            if version == "1.0":
                return _Refused(400, "bad_request", "HTTP/1.0 has no Transfer-Encoding")
            codings = [value.strip().lower() for name, value in self.headers if name == b"transfer-encoding"]
            if codings != [b"chunked"]:
                return _Refused(501, "not_implemented", "the one Transfer-Encoding is chunked")
        with_body = self._left or self._chunks is not None
        if self.parser.should_upgrade() and (with_body or not self._should_upgrade()):
            return _Refused(400, "bad_request", "a WebSocket begins with one Upgrade and without a body")
        return None

    # -- taking too long

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_at_body(self) -> None:
        patience, now = self._patience, self.loop.time()
        if self.flow.read_paused:  # it is us who do not read
            self._began, self._received = now, 0
        left = self._began + patience.body + self._received / patience.rate - now
        if left <= 0:
            self._late("body")
        else:
            self._timer = self.loop.call_later(left, self._look_at_body)

    def _late(self, what: str) -> None:
        self._timer = None
        before = None if self._in_body else self._answering
        if before is not None and not before.response_complete:  # which is not to suffer for it
            self._timer = self.loop.call_later(self._patience.head, self._late, what)
            return
        self._refuse(_Refused(408, "request_timeout", f"the request's {what} took too long to arrive"))

    # -- refusing

    def _refuse(self, refused: _Refused) -> None:
        """Say so, where nothing else is being said, and close; what was asked for by this message is off."""
        self._over = True
        self._stop_timer()
        cycle = self._answering
        if cycle is not None and not cycle.response_complete:
            _break_off(cycle)
            if cycle is not self.cycle or not self._in_body or cycle.response_started:
                self.transport.abort()
                return
        elif self._in_body:  # of a request that has its answer
            self.transport.close()
            return
        problem = {"type": "about:blank", **refused._asdict()}
        body = msgspec.json.encode(problem)
        fields = [b"content-type: application/problem+json", b"content-length: %d" % len(body)]
        fields += [b"retry-after: 1"] if refused.status == HTTPStatus.SERVICE_UNAVAILABLE else []
        fields += [b"connection: close", b"", body]
        self.transport.write(STATUS_LINE[refused.status] + b"\r\n".join(fields))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        # Closed at once, with something unread, the answer would be torn down with the connection.
        self._timer = self.loop.call_later(self._patience.linger, self.transport.close)


class LongConnection(WebSocketsSansIOProtocol):
    """A WebSocket, which keeps the place that its request was given."""

    on_lost: Any = None

    def connection_lost(self, exc: Exception | None) -> None:
        if self.on_lost is not None:
            self.on_lost()
        super().connection_lost(exc)


def _without_upgrade(head: bytes) -> bytes:
    """*head* without the wish for another protocol that we do not speak, which a server may ignore.

    The parser would take the body for words of that protocol.
    """
    lower = head.lower()
    if b"\nupgrade:" not in lower or _WEBSOCKET.search(lower):
        return head
    return _UPGRADE.sub(b"", head)


def _break_off(cycle: RequestResponseCycle) -> None:
    """Have the application hear that its client has left; nothing that it says is sent any more."""
    cycle.disconnected = True
    cycle.message_event.set()


def _too_long(head: bytes) -> _Refused:
    """Why a head is refused that has no end within what one may have."""
    target, _, _ = head.partition(b"\r\n")
    if head and len(target) <= LONGEST_TARGET:
        return _Refused(431, "headers_too_large", f"the header fields are over {LONGEST_HEADERS} bytes")
    return _Refused(414, "target_too_long", f"the request's target is over {LONGEST_TARGET} bytes")
