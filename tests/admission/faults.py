"""A wire that fails on cue: a TCP proxy that can hold back, swallow and cut what passes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit


class Proxy:
    """Forwards to *target*; the flags are looked at for every piece that arrives."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.url = ""
        self.swallow_answers = False
        self.swallow_requests = False
        self.refuse = False
        self.connections = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self.swallowed = asyncio.Event()
        """Set once something was swallowed."""

    def cut(self) -> None:
        """Break all connections."""
        for writer in self._writers:
            writer.transport.abort()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self.refuse:
            writer.transport.abort()
            return
        url = urlsplit(self.target)
        try:
            there, back = await asyncio.open_connection(url.hostname, url.port)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, back}
        pumps = [
            asyncio.ensure_future(self._pump(reader, back, requests=True)),
            asyncio.ensure_future(self._pump(there, writer, requests=False)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            self._writers -= {writer, back}
            for one in (writer, back):
                one.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, requests: bool
    ) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                if self.swallow_requests if requests else self.swallow_answers:
                    self.swallowed.set()
                    continue
                writer.write(data)


@asynccontextmanager
async def proxy(target: str) -> AsyncIterator[Proxy]:
    """A `Proxy` in front of *target*, on a free port."""
    between = Proxy(target)
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        with suppress(asyncio.CancelledError):  # only at the end of the test
            await between.connected(reader, writer)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    between.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield between
    finally:
        server.close()
        between.cut()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
