"""What the tests of the pool share: agents by number, a factory on cue, users in tasks of their own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from interlock.pool import AgentPool
from interlock.testing import VirtualClock
from interlock.testing.virtual_time import idle


class Agent:
    """Equal to everything and unhashable, so that only identity can tell it from another."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, number: int) -> None:
        self.number = number
        self.alive = True
        self.closed = False
        self.memory: list[str] = []

    def __eq__(self, other: object) -> bool:
        return True

    def __repr__(self) -> str:
        return f"agent {self.number}"


class Watched(Agent):
    """One whose death can be awaited."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.ended = asyncio.Event()

    async def wait_closed(self) -> None:
        await self.ended.wait()

    def die(self) -> None:
        self.alive = False
        self.ended.set()


class Factory:
    """Starts agents; ``fail`` is raised as often as it says, ``slow`` agents wait for `let`."""

    def __init__(self, kind: type[Agent] = Agent) -> None:
        self.kind = kind
        self.made: list[Any] = []
        self.starts = 0
        self.fail: list[BaseException] = []
        self.slow = False
        self.gates: list[asyncio.Future[None]] = []
        self.most_alive = 0

    async def __call__(self) -> Any:
        self.starts += 1
        if self.slow:
            gate = asyncio.get_running_loop().create_future()
            self.gates.append(gate)
            await gate
        if self.fail:
            raise self.fail.pop(0)
        agent = self.kind(len(self.made))
        self.made.append(agent)
        self.most_alive = max(self.most_alive, len(self.living))
        return agent

    async def let(self, number: int = 0, error: BaseException | None = None) -> None:
        """End one of the starts that wait."""
        gate = self.gates.pop(number)
        if error is None:
            gate.set_result(None)
        else:
            gate.set_exception(error)
        await idle()

    @property
    def living(self) -> list[Any]:
        return [agent for agent in self.made if agent.alive and not agent.closed]

    async def close(self, agent: Any) -> None:
        agent.closed = True


class User:
    """Somebody who checks an agent out, in a task of its own, and keeps it until told."""

    def __init__(self, pool: AgentPool[Any], **asked: Any) -> None:
        self.pool = pool
        self.let_go = asyncio.Event()
        self.agent: Any = None
        self.task = asyncio.create_task(self._use(asked))

    async def _use(self, asked: dict[str, Any]) -> None:
        async with self.pool.checkout(**({"timeout": None} | asked)) as agent:
            self.agent = agent
            await self.let_go.wait()

    @property
    def waits(self) -> bool:
        return not self.task.done() and self.agent is None

    @property
    def error(self) -> BaseException | None:
        assert self.task.done(), "it is at it still"
        return self.task.exception()

    async def leave(self) -> None:
        self.let_go.set()
        await idle()


async def user(pool: AgentPool[Any], **asked: Any) -> User:
    """Somebody who asks for an agent, and how far that goes at once."""
    somebody = User(pool, **asked)
    await idle()
    return somebody


@asynccontextmanager
async def pool_of(
    factory: Callable[..., Any], size: int = 1, max_overflow: int = 0, **options: Any
) -> AsyncIterator[tuple[AgentPool[Any], VirtualClock]]:
    """A pool on virtual time whose first agents had their time to start; what it leaves is looked at."""
    clock = VirtualClock()
    if isinstance(factory, Factory):
        options = {"close": factory.close} | options
    pool: AgentPool[Any] = AgentPool(factory, size, max_overflow, clock=clock, **options)
    await pool.start()
    await idle()
    yield pool, clock
    stopping = asyncio.create_task(pool.stop())
    await clock.advance(60)
    assert stopping.done(), "the pool does not stop"
    check(pool)
    stats = pool.stats()
    assert (stats.available, stats.in_use, stats.waiting, stats.starting, stats.closing) == (0, 0, 0, 0, 0)
    if isinstance(factory, Factory):
        assert [agent for agent in factory.made if not agent.closed] == [], "an agent was not closed"


def check(pool: AgentPool[Any]) -> None:
    """What must be true of a pool at any moment."""
    shelf, desk = pool._stock.shelf, pool._desk
    shelf.check()
    assert desk.wanting == sum(caller.permit is not None for caller in desk.line)
    admission: Any = pool.admission
    if desk.tally is not None:
        admission.kernel.check()
        units = len(shelf.out()) + sum(caller.permit is not None for caller in desk.line)
        used = desk.tally.limit.used
        assert used >= units, f"{units} permits are held, {used} are in use"
