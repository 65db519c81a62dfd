"""A client's WebSocket without tasks of its own: websockets' protocol on an asyncio transport.

A message is handled in the very callback that its last byte arrives in, and a write is a plain call.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

try:
    import msgspec
    from websockets.client import ClientProtocol
    from websockets.frames import Frame, Opcode
    from websockets.http11 import Response
    from websockets.protocol import State
    from websockets.uri import parse_uri
except ImportError as missing:  # pragma: no cover - the tests have everything installed
    raise ImportError(
        f"RemoteAdmission needs {missing.name}: install interlock[http]", name=missing.name
    ) from None

if TYPE_CHECKING:
    from collections.abc import Callable
    from urllib.parse import SplitResult

encode: Callable[[Any], bytes] = msgspec.json.Encoder().encode
decode: Callable[[bytes], Any] = msgspec.json.Decoder(tuple[int, list[list[Any]]]).decode


class Socket(asyncio.Protocol):
    """One connection, for one use. *received* gets each message, and may raise ValueError."""

    def __init__(self, url: SplitResult, token: str | None, received: Callable[[bytes], None]) -> None:
        self._url = url
        self._token = token
        self._received = received
        self._transport: asyncio.Transport | None = None
        self._protocol: ClientProtocol
        self._pieces: list[bytes] = []
        loop = asyncio.get_running_loop()
        self._open: asyncio.Future[None] = loop.create_future()
        self.greeted: asyncio.Future[None] = loop.create_future()
        """To be set by whoever understands the greeting."""
        self.lost: asyncio.Future[str] = loop.create_future()
        """Done when the connection has ended, with the reason."""

    async def connect(self, path: str, within: float) -> None:
        """Open it at *path* below the URL, *within* seconds. `OSError` if that cannot be done."""
        url = self._url
        secure = url.scheme == "https"
        address = f"{'wss' if secure else 'ws'}://{url.netloc}{url.path}{path}"
        self._protocol = ClientProtocol(parse_uri(address), max_size=None)
        port = url.port or (443 if secure else 80)
        async with asyncio.timeout(within):
            await asyncio.get_running_loop().create_connection(
                lambda: self, url.hostname or "", port, ssl=True if secure else None
            )
            request = self._protocol.connect()
            if self._token is not None:
                request.headers["Authorization"] = f"Bearer {self._token}"
            self._protocol.send_request(request)
            self._write()
            await self._open

    def send(self, message: bytes) -> None:
        """Write one message; without effect on a connection that has ended."""
        if self._protocol.state is State.OPEN:
            self._protocol.send_binary(message)
            self._write()

    def abort(self) -> None:
        """End it now."""
        if self._transport is not None and not self._transport.is_closing():
            if not self.lost.done() and self._open.done() and self._protocol.state is State.OPEN:
                self._protocol.send_close(1000)
                self._write()
            self._transport.close()
        self._end("closed")

    # -- what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            if isinstance(event, Response):
                self._answered(event)
            elif isinstance(event, Frame):
                self._framed(event)
        self._write()
        if self._protocol.parser_exc is not None:
            self._fail(f"{self._protocol.parser_exc}")

    def eof_received(self) -> None:
        self._end("the server closed the connection")

    def connection_lost(self, error: Exception | None) -> None:
        self._end(f"{error}" if error else "the server closed the connection")

    # -- inside

    def _answered(self, response: Response) -> None:
        if self._protocol.handshake_exc is None:
            if not self._open.done():
                self._open.set_result(None)
            return
        hint = "; is the token right?" if response.status_code in (401, 403) else ""
        self._fail(f"the server answered {response.status_code}{hint}")

    def _framed(self, frame: Frame) -> None:
        if frame.opcode is Opcode.CLOSE:
            closed = self._protocol.close_rcvd
            self._fail(
                f"the server closed the connection: {'' if closed is None else closed.reason or closed.code}"
            )
        elif frame.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            self._pieces.append(bytes(frame.data))
            if frame.fin:
                message = b"".join(self._pieces)
                self._pieces.clear()
                try:
                    self._received(message)
                except (ValueError, LookupError, TypeError) as error:
                    self._fail(f"the server said what cannot be understood: {error}")

    def _write(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            data = b"".join(self._protocol.data_to_send())
            if data:
                self._transport.write(data)

    def _fail(self, why: str) -> None:
        self._end(why)
        if self._transport is not None:
            self._transport.close()

    def _end(self, why: str) -> None:
        if not self._open.done():
            self._open.set_exception(OSError(why))
        if not self.greeted.done():
            self.greeted.set_exception(OSError(why))
        if not self.lost.done():
            self.lost.set_result(why)
        for future in (self._open, self.greeted):
            if not future.cancelled():
                future.exception()  # whether or not somebody waits for it still
