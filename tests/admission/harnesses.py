"""The implementations of the admission port that there are, each as a `Harness` of the conformance suite."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from uvicorn.server import ServerState

from interlock.admission.local import LocalAdmission
from interlock.admission.remote import RemoteAdmission
from interlock.config import ServerConfig
from interlock.http.access.book import TokenBook
from interlock.http.app import create_app
from interlock.http.connections.places import Places
from interlock.http.connections.server import uvicorn_config
from interlock.http.gateway.proxy import Gateway
from interlock.http.gateway.upstream import HttpUpstream
from interlock.http.permits.desk import PermitDesk
from interlock.limits import FleetLimits
from interlock.ports import Settings
from interlock.provider.gate import ProviderGate
from interlock.secret import Secret
from interlock.stores.memory import MemoryStore
from interlock.testing import VirtualClock, idle


@dataclass
class LocalHarness:
    """In this process, in virtual time."""

    clock: VirtualClock = field(default_factory=lambda: VirtualClock(1000.0))
    second: float = 1.0
    peers: bool = False

    async def admission(self) -> LocalAdmission:
        return LocalAdmission(clock=self.clock)

    async def advance(self, seconds: float) -> None:
        await self.clock.advance(seconds)

    async def settle(self) -> None:
        await idle()


@dataclass
class RemoteHarness:
    """Through the server at *url*; without a *clock* of the server's, time is real."""

    url: str
    clock: VirtualClock | None = None
    token: str | None = None
    lease: float = 86_400.0
    second: float = 1.0
    peers: bool = True
    made: list[RemoteAdmission] = field(default_factory=list)

    async def admission(self) -> Any:
        admission = RemoteAdmission(self.url, token=self.token, lease=self.lease)
        if self.clock is not None:
            admission.clock = self.clock  # type: ignore[assignment]
        self.made.append(admission)
        await admission.refresh()
        return admission

    async def advance(self, seconds: float) -> None:
        if self.clock is not None:
            await self.clock.advance(seconds)
        else:
            await asyncio.sleep(seconds)
        await self.settle()

    async def settle(self) -> None:
        """What was said before a refresh has been heard when it is answered; twice, as one's news are
        another's."""
        for _ in range(2):
            for _ in range(4):
                await asyncio.sleep(0)
            for admission in self.made:
                if not admission._closed:
                    await admission.refresh()
        for _ in range(4):
            await asyncio.sleep(0)

    async def aclose(self) -> None:
        for admission in self.made:
            await admission.aclose()


@dataclass
class Hosted:
    """A server of permits in this loop."""

    url: str
    admission: LocalAdmission
    desk: PermitDesk
    connections: set[Any]

    def cut(self) -> None:
        """Break every connection without a word."""
        for connection in list(self.connections):
            connection.transport.abort()


@asynccontextmanager
async def hosted(
    admission: LocalAdmission | None = None,
    store: Settings | None = None,
    token: str | None = None,
    port: int = 0,
    book: TokenBook | None = None,
    places: Places | None = None,
) -> AsyncIterator[Hosted]:
    """The whole application over *admission*, as ``interlock serve`` sets it up, on a real socket."""
    loop = asyncio.get_running_loop()
    admission = admission or LocalAdmission()
    store = store or MemoryStore()
    limits = FleetLimits(admission, store)
    await limits.load({})
    desk = PermitDesk(admission, store)
    await desk.load()
    upstream = HttpUpstream()
    gate = ProviderGate(admission=admission)
    server_config = ServerConfig(token=None if token is None else Secret(token))
    app = create_app(gate, Gateway(gate, upstream, {}), server_config, desk, book=book)
    config = uvicorn_config(app, places=places)
    config.load()
    state = ServerState()
    listening = socket.create_server(("127.0.0.1", port), backlog=2048)
    server = await loop.create_server(
        lambda: config.http_protocol_class(config=config, server_state=state, app_state={}),  # type: ignore[call-arg]
        sock=listening,
    )
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    hosting = Hosted(url, admission, desk, state.connections)
    try:
        yield hosting
    finally:
        server.close()
        desk.drain()
        hosting.cut()
        if state.tasks:
            await asyncio.wait(state.tasks)
        await gate.aclose()
        await upstream.aclose()
