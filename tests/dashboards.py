"""The dashboard over a whole server in this process, and a real browser that looks at it.

async with dashboard() as board, page(board.url, browser) as seen:
    ...  # board.gate, board.sessions: do something, and see it on the page
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, async_playwright

from gateways import hosting
from interlock.admission.local import LocalAdmission
from interlock.clock import SystemClock
from interlock.config import ServerConfig
from interlock.governor import ConcurrencyGovernor
from interlock.history import History
from interlock.http.access.book import TokenBook
from interlock.http.app import create_app
from interlock.http.control import Fleet
from interlock.http.gateway.proxy import Gateway
from interlock.http.gateway.upstream import HttpUpstream
from interlock.http.permits.desk import PermitDesk
from interlock.ledger import Ledger
from interlock.limiter import ConcurrencyLimiter
from interlock.limits import FleetLimits
from interlock.pool import AgentPool
from interlock.ports import Clock, UsageSource
from interlock.provider.gate import ProviderGate
from interlock.session.sessions import Sessions
from interlock.stores.memory import MemoryStore
from interlock.telemetry.sampling import Sampler
from served_sessions import Worker

FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
)


@dataclass
class Board:
    """A server with everything that the dashboard shows."""

    url: str
    admission: LocalAdmission
    gate: ProviderGate
    sessions: Sessions
    worker: Worker
    book: TokenBook
    store: MemoryStore
    history: History


@asynccontextmanager
async def dashboard(
    limits: dict[str, int | None] | None = None,
    *,
    pools: Sequence[str] = (),
    store: MemoryStore | None = None,
    clock: Clock | None = None,
    usage: UsageSource | None = None,
) -> AsyncIterator[Board]:
    """A whole application over *limits* of the fleet, with a pool of two agents of each of these names."""
    async with AsyncExitStack() as stack:
        store, clock = store or MemoryStore(), clock or SystemClock()
        admission = LocalAdmission(clock=clock)
        ledger = Ledger(store, clock)
        stack.push_async_callback(ledger.aclose)
        fleet_limits = FleetLimits(admission, store, ledger)
        await fleet_limits.load(limits or {})
        gate = ProviderGate(
            admission=admission, settings=store, ledger=ledger, default_cooldown=0.0, fetch_usage=usage
        )
        await stack.enter_async_context(gate)
        await gate.load()
        await ledger.start({name: one.capacity for name, one in admission.limits().items()}, limits or {})
        made = {}
        for name in pools:
            pool = AgentPool(object, 2, 1, name=name, admission=admission)
            made[name] = await stack.enter_async_context(pool)
        worker = Worker()
        sessions = Sessions(store, {"worker": worker}, clock=clock)
        stack.push_async_callback(sessions.aclose, timeout=0.0)
        client = HttpUpstream()
        stack.push_async_callback(client.aclose)
        gateway = Gateway(gate, client, {})
        book = TokenBook(store, clock)
        await book.load()
        desk = PermitDesk(admission, store)
        governor, limiter = ConcurrencyGovernor(admission=admission), ConcurrencyLimiter(admission=admission)
        history = History(store, clock)
        await history.load()
        fleet = Fleet(fleet_limits, limiter, governor, made)
        app = create_app(*(gate, gateway, ServerConfig(), desk, fleet, sessions), book=book, history=history)
        sampler = Sampler(history, admission, gate)
        sampler.start()
        stack.push_async_callback(sampler.aclose)
        url = await stack.enter_async_context(hosting(app))
        stack.callback(desk.drain)
        yield Board(url, admission, gate, sessions, worker, book, store, history)


@dataclass
class Crowd:
    """Callers that hold or wait until they are let go: ``async with Crowd(gate) as crowd``."""

    gate: ProviderGate
    tasks: list[asyncio.Task[Any]] = field(default_factory=list)
    ends: list[asyncio.Event] = field(default_factory=list)

    def ask(self, provider: str, *names: str) -> None:
        """One call of *provider* for each of these conversations; they hold until `leave`."""
        for name in names:
            end = asyncio.Event()
            self.ends.append(end)
            self.tasks.append(asyncio.ensure_future(self._call(provider, name, end)))

    async def _call(self, provider: str, name: str, end: asyncio.Event) -> None:
        async with self.gate.acquire(provider, name, timeout=None):
            await end.wait()

    async def __aenter__(self) -> Crowd:
        return self

    async def __aexit__(self, *exit_: Any) -> None:
        await self.leave()

    async def leave(self) -> None:
        """All of them go."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """A real browser; without one the test is skipped, and fails where CI should have brought it."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        if os.environ.get("CI"):
            pytest.fail("no Chromium: install the package chromium")
        pytest.skip("no Chromium on this machine")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        try:
            yield browser
        finally:
            await browser.close()


class Complaints(list[str]):
    """What a page has complained about: errors of scripts, violations of its policy, failed loads."""

    expected: tuple[str, ...] = ()
    """Texts of those that the test brings about itself."""

    def hear(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.append(f"{message.type}: {message.text} ({message.location.get('url', '')})")

    def unexpected(self) -> list[str]:
        return [one for one in self if not any(text in one for text in self.expected)]


@asynccontextmanager
async def looking(
    browser: Browser, url: str, *, expected: Sequence[str] = (), **options: Any
) -> AsyncIterator[Page]:
    """The dashboard at *url* in a window of its own; fails if its console has anything but *expected*."""
    context: BrowserContext = await browser.new_context(
        **{"viewport": {"width": 1440, "height": 900}, **options}
    )
    context.set_default_timeout(8_000)
    page = await context.new_page()
    complaints = Complaints()
    complaints.expected = tuple(expected)
    page.on("console", complaints.hear)
    page.on("pageerror", lambda error: complaints.append(f"uncaught: {error}"))
    try:
        await page.goto(url)
        yield page
        assert complaints.unexpected() == []
    except BaseException as error:
        error.add_note(f"console: {list(complaints)}")
        raise
    finally:
        await context.close()
