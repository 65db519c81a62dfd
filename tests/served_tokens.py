"""The whole application with tokens, on a real socket; its clock is the test's."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from gateways import Answer, Header, call, hosting
from interlock.admission.local import LocalAdmission
from interlock.config import ServerConfig
from interlock.governor import ConcurrencyGovernor
from interlock.http.access.book import TokenBook
from interlock.http.access.terms import Terms
from interlock.http.app import create_app
from interlock.http.control import Fleet
from interlock.http.gateway.call import GatewayProvider
from interlock.http.gateway.proxy import Gateway
from interlock.http.gateway.upstream import HttpUpstream
from interlock.http.permits.desk import PermitDesk
from interlock.limiter import ConcurrencyLimiter
from interlock.limits import FleetLimits
from interlock.ports import Settings
from interlock.provider.gate import ProviderGate
from interlock.secret import Secret
from interlock.session.sessions import Sessions
from interlock.stores.memory import MemoryStore
from interlock.testing import VirtualClock
from served_sessions import Worker

DEAD = "http://127.0.0.1:9"


def bearer(token: str | Secret) -> Header:
    """The field that shows *token*."""
    return b"authorization", b"Bearer " + (token.reveal() if isinstance(token, Secret) else token).encode()


@dataclass
class Door:
    """A server, and who may come in."""

    url: str
    book: TokenBook
    clock: VirtualClock
    sessions: Sessions
    admission: LocalAdmission
    app: Any
    """What listens there."""
    gate: ProviderGate

    async def token(self, *scopes: str, name: str = "", expires_in: float | None = None, **terms: Any) -> str:
        """A new token of these scopes, by default called after them."""
        called = name or "-".join((*scopes, *map(str, terms.values())))
        _, secret = await self.book.create(called, scopes, expires_in, Terms(**terms))
        return secret.reveal()

    async def ask(
        self, method: str, path: str, token: str | None = None, body: Any = None, *more: Header
    ) -> Answer:
        shown = [] if token is None else [bearer(token)]
        return await call(
            self.url, method, path, [*shown, *more], b"" if body is None else json.dumps(body).encode()
        )


@asynccontextmanager
async def door(
    configured: str | None = None,
    settings: Settings | None = None,
    provider: str = DEAD,
    *,
    real_time: bool = False,
    **bounds: Any,
) -> AsyncIterator[Door]:
    """A server whose tokens are those in *settings* (default: none) and the *configured* one.

    Time is virtual, unless waits are to end in *real_time*.
    """
    clock = VirtualClock(1_000_000.0)
    async with AsyncExitStack() as stack:
        admission = LocalAdmission(clock=None if real_time else clock)
        limits = FleetLimits(admission, MemoryStore())
        await limits.load({})
        gate = await stack.enter_async_context(ProviderGate(admission=admission, default_cooldown=0.0))
        await gate.set_limit("p", 3)
        sessions = Sessions(MemoryStore(), {"worker": Worker()}, clock=clock)
        stack.push_async_callback(sessions.aclose, timeout=0.0)
        client = HttpUpstream()
        stack.push_async_callback(client.aclose)
        gateway = Gateway(gate, client, {"p": GatewayProvider("p", provider)}, also=("streams", "global"))
        book = TokenBook(settings or MemoryStore(), clock, None if configured is None else Secret(configured))
        await book.load()
        desk = PermitDesk(admission, MemoryStore())
        fleet = Fleet(
            limits, ConcurrencyLimiter(admission=admission), ConcurrencyGovernor(admission=admission)
        )
        app = create_app(gate, gateway, ServerConfig(**bounds), desk, fleet, sessions, book=book)
        url = await stack.enter_async_context(hosting(app))
        stack.callback(desk.drain)  # or those who wait would be waited for
        yield Door(url, book, clock, sessions, admission, app, gate)
