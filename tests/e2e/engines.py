"""What keeps the limits of a fleet, as something that can be killed, frozen and emptied: one `Engine` each.

async with server_engine(tmp_path) as engine:
    ...  # engine.url, await engine.kill(), await engine.start()
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Protocol

from processes import Running, serve


class Engine(Protocol):
    """One engine on one address, as often as it is started."""

    @property
    def url(self) -> str:
        """Where clients find it now; a failover changes that."""

    async def start(self) -> None:
        """Start it again after `kill`; it serves when this returns."""

    async def kill(self) -> None:
        """SIGKILL; it is dead when this returns."""

    def freeze(self) -> None:
        """SIGSTOP: connections stay, nobody answers."""

    def thaw(self) -> None:
        """SIGCONT."""

    def complaints(self) -> str:
        """What it has written to standard error, of which there should be nothing."""


MakeEngine = Callable[[Path], AbstractAsyncContextManager[Engine]]


class ServerEngine:
    """``interlock serve`` with an SQLite file: what it promised outlives it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = 0
        self._running: Running | None = None
        self._stack = AsyncExitStack()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def process_id(self) -> int:
        assert self._running is not None
        return self._running.process.pid

    async def start(self) -> None:
        config = 'store = "sqlite:///interlock.db"\n'
        self._running = await self._stack.enter_async_context(serve(self.directory, config, port=self.port))
        self.port = int(self._running.url.rpartition(":")[2])

    async def kill(self) -> None:
        assert self._running is not None
        self._running.process.kill()
        await self._running.process.wait()
        await self._stack.aclose()

    def freeze(self) -> None:
        os.kill(self.process_id, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.process_id, signal.SIGCONT)

    def complaints(self) -> str:
        return "" if self._running is None else self._running.stderr()

    async def aclose(self) -> None:
        await self._stack.aclose()


@asynccontextmanager
async def server_engine(directory: Path) -> AsyncIterator[ServerEngine]:
    """An Interlock server in *directory*, started."""
    engine = ServerEngine(directory)
    try:
        await engine.start()
        yield engine
    finally:
        await engine.aclose()


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as there:
        return int(there.getsockname()[1])
