"""A wire to a server that is cut after so many bytes, or goes silent: what clients may find at any moment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field


@dataclass
class Wire:
    """Passes on what both sides say, on all its connections, until it is told otherwise."""

    host: str
    port: int
    here: int = 0
    """The port at which it is taken up."""
    left: dict[str, int] = field(default_factory=dict)
    """Bytes that still pass "there" or "back", before all connections are cut."""
    cuts: int = 0
    _silent: asyncio.Event | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    def cut_after(self, way: str, count: int) -> None:
        """Cut all when *count* bytes more have gone that way; the last of them arrive."""
        self.left = {way: count}

    def silence(self) -> None:
        """From now on nothing arrives, and nobody is told."""
        self._silent = asyncio.Event()

    def speak(self) -> None:
        """What was held back arrives, and all that follows."""
        if self._silent is not None:
            self._silent.set()
        self._silent = None

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with suppress(OSError, asyncio.CancelledError):
                there, back = await asyncio.open_connection(self.host, self.port)
                self._writers |= {writer, back}
                ways = [
                    asyncio.create_task(self._pass(reader, back, "there")),
                    asyncio.create_task(self._pass(there, writer, "back")),
                ]
                try:
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for way in ways:
                        way.cancel()
                    await asyncio.gather(*ways, return_exceptions=True)
                    self._drop(writer, back)
        finally:
            self._tasks.discard(task)

    async def _pass(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, way: str) -> None:
        while data := await source.read(1 << 16):
            if self._silent is not None:
                await self._silent.wait()
            left = self.left.get(way)
            if left is not None and len(data) >= left:
                self.left = {}
                self.cuts += 1
                target.write(data[:left])
                with suppress(OSError):
                    await target.drain()
                self._drop(*self._writers)
                return
            if left is not None:
                self.left[way] = left - len(data)
            target.write(data)
            await target.drain()

    def _drop(self, *writers: asyncio.StreamWriter) -> None:
        for writer in writers:
            self._writers.discard(writer)
            writer.close()

    async def close(self) -> None:
        self.speak()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def wire(host: str, port: int) -> AsyncIterator[Wire]:
    """A wire to that server, taken up on a free port."""
    made = Wire(host, port)
    listening = await asyncio.start_server(made.take, "127.0.0.1", 0)
    made.here = listening.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        listening.close()
        await made.close()
