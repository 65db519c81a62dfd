"""A transaction pooler for tests: every transaction may be of another connection, as behind PgBouncer.

It chooses the connection by chance each time, resets nothing, and notes what such a pooler would not bear:
named statements and LISTEN.
"""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

_VERSION = 196608
_CANCEL = 80877102

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class Pooler:
    """Takes clients, and lends them one of few connections for a transaction each."""

    server: str
    url: str = ""
    unbearable: list[bytes] = field(default_factory=list)
    lent: set[int] = field(default_factory=set)
    """Connections that were lent, by number."""
    _free: list[tuple[int, Streams]] = field(default_factory=list)
    _waiting: list[asyncio.Future[None]] = field(default_factory=list)
    _greeting: bytes = b""
    _clients: set[asyncio.Task[None]] = field(default_factory=set)

    async def fill(self, count: int) -> None:
        at = urlsplit(self.server)
        for number in range(count):
            reader, writer = await asyncio.open_connection(at.hostname, at.port)
            words = f"user\0{at.username}\0database\0{at.path[1:]}\0client_encoding\0utf-8\0\0".encode()
            writer.write(struct.pack("!ii", len(words) + 8, _VERSION) + words)
            greeting = b""
            while True:
                kind, body = await _message(reader)
                if kind in b"RS":  # that it is welcome, and how the server is set up
                    greeting += _packed(kind, body)
                if kind == b"Z":
                    break
            self._greeting = greeting
            self._free.append((number, (reader, writer)))

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        try:
            # Cancelled by `close` only; the streams' own callback asks it how it ended.
            with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
                await self._serve(reader, writer)
        finally:
            self._clients.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            length, code = struct.unpack("!ii", await reader.readexactly(8))
            await reader.readexactly(length - 8)
            if code == _CANCEL:
                return
            if code == _VERSION:
                break
            writer.write(b"N")  # no TLS
        key = struct.pack("!ii", random.randrange(1 << 30), 1)
        writer.write(self._greeting + _packed(b"K", key) + _packed(b"Z", b"I"))
        while True:
            kind, body = await _message(reader)
            if kind == b"X":
                return
            number, server = await self._lend()
            try:
                status = await self._transaction((kind, body), (reader, writer), server)
            except BaseException:
                server[1].close()
                self._give(number, None)
                await self.fill(1)
                raise
            assert status == b"I"
            self._give(number, server)

    async def _transaction(self, first: tuple[bytes, bytes], client: Streams, server: Streams) -> bytes:
        """Pass on what both say, until the server is out of the transaction."""
        asking = asyncio.create_task(self._ask(first, client[0], server[1]))
        try:
            while True:
                answering = asyncio.ensure_future(_message(server[0]))
                await asyncio.wait((answering, asking), return_when=asyncio.FIRST_COMPLETED)
                if not answering.done():
                    answering.cancel()
                    asking.result()
                kind, body = await answering
                client[1].write(_packed(kind, body))
                await client[1].drain()
                if kind == b"Z" and body == b"I":
                    return body
        finally:
            asking.cancel()  # it waits for a message that the client will send in its next transaction
            await asyncio.wait((asking,))
            if not asking.cancelled():
                asking.exception()

    async def _ask(
        self, first: tuple[bytes, bytes], client: asyncio.StreamReader, server: asyncio.StreamWriter
    ) -> None:
        kind, body = first
        while kind != b"X":
            self._look(kind, body)
            server.write(_packed(kind, body))
            kind, body = await _message(client)
        raise ConnectionResetError("left in a transaction")

    def _look(self, kind: bytes, body: bytes) -> None:
        if (kind == b"P" and not body.startswith(b"\0")) or b"LISTEN" in body.upper():
            self.unbearable.append(body)

    async def _lend(self) -> tuple[int, Streams]:
        while not self._free:
            waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(waiting)
            await waiting
        number, server = self._free.pop(random.randrange(len(self._free)))
        self.lent.add(number)
        return number, server

    def _give(self, number: int, server: Streams | None) -> None:
        if server is not None:
            self._free.append((number, server))
        while self._waiting:
            waiting = self._waiting.pop()
            if not waiting.done():
                waiting.set_result(None)

    async def close(self) -> None:
        for task in list(self._clients):
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        for _, (_, writer) in self._free:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


@asynccontextmanager
async def pooler(server: str, count: int = 3) -> AsyncIterator[Pooler]:
    """A pooler with *count* connections before the server at this URL, on a free port."""
    pool = Pooler(server)
    await pool.fill(count)
    listening = await asyncio.start_server(pool.take, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    at = urlsplit(server)
    pool.url = f"postgresql://{at.username}@127.0.0.1:{port}{at.path}"
    try:
        yield pool
    finally:
        listening.close()
        await pool.close()


async def _message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    kind, length = struct.unpack("!ci", await reader.readexactly(5))
    return kind, await reader.readexactly(length - 4)


def _packed(kind: bytes, body: bytes) -> bytes:
    return struct.pack("!ci", kind, len(body) + 4) + body
