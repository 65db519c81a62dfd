"""What the tests of sessions have in common: agents that do as they are told, and readings of the log."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from interlock.session.server import SessionServer
from interlock.stores.memory import MemoryStore
from interlock.testing import VirtualClock, idle

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from interlock.core.sessions import Event
    from interlock.ports import Store
    from interlock.session.context import RunContext


class Puppet:
    """An agent whose runs go on until the test says how they end."""

    capabilities = frozenset({"pause"})

    def __init__(self) -> None:
        self.started: list[str] = []
        self.contexts: dict[str, RunContext] = {}
        self.ends: dict[str, asyncio.Future[Any]] = {}
        self.stubborn = False
        """Whether it goes on when it is cancelled."""

    async def run(self, run: RunContext) -> Any:
        self.started.append(run.run_id)
        self.contexts[run.run_id] = run
        end = self.ends[run.run_id] = asyncio.get_running_loop().create_future()
        while True:
            try:
                await asyncio.wait([end])
                return end.result()
            except asyncio.CancelledError:
                if not self.stubborn:
                    raise

    async def end(self, run_id: str, output: Any = None) -> None:
        """Have the run return *output*, or raise it."""
        if isinstance(output, BaseException):
            self.ends[run_id].set_exception(output)
        else:
            self.ends[run_id].set_result(output)
        await idle()


async def echo(run: RunContext) -> Any:
    """Returns what it was given."""
    return run.input


async def turns_until(condition: Callable[[], object]) -> None:
    """Let others run until *condition* holds; the test's own timeout is the deadline."""
    while not condition():  # noqa: ASYNC110 - what it waits for has no event of its own
        await asyncio.sleep(0)


class Scene:
    """A served session on virtual time."""

    def __init__(self, clock: VirtualClock, store: Store, puppet: Puppet, server: SessionServer) -> None:
        self.clock = clock
        self.store = store
        self.puppet = puppet
        self.server = server

    async def submit(self, number: int = 1, **options: Any) -> list[str]:
        """Submit so many runs, and let start what can."""
        ids = [await self.server.submit_run({"n": n}, **options) for n in range(number)]
        await idle()
        return ids

    async def log(self, run_id: str | None = None) -> list[Event]:
        return await self.store.get_events(self.server.session_id, run_id=run_id)

    async def types(self, run_id: str | None = None) -> list[str]:
        return [event.type for event in await self.log(run_id)]

    async def status(self, run_id: str) -> str:
        return (await self.store.get_run(run_id)).status


@asynccontextmanager
async def scene(store: Store | None = None, **options: Any) -> AsyncIterator[Scene]:
    """A new session "s" of a `Puppet`."""
    clock, puppet = VirtualClock(1000.0), Puppet()
    store = store or MemoryStore()
    server = await SessionServer.start(store, puppet, session_id="s", clock=clock, **options)
    await idle()
    yield Scene(clock, store, puppet, server)
    puppet.stubborn = False
    for end in puppet.ends.values():
        if not end.done():
            end.cancel()
    closing = asyncio.create_task(server.close(timeout=0))
    await clock.advance(20)
    await closing
    await store.aclose()
