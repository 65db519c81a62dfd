"""A random walk over a pool: users come, leave, vanish and are cancelled, agents die, fail and age."""

from __future__ import annotations

import asyncio
import logging
from random import Random
from typing import Any

import pytest

from interlock.errors import AcquireTimeout, AgentStartFailed, PoolExhausted
from interlock.pool import AgentPool
from interlock.testing import VirtualClock
from interlock.testing.virtual_time import idle
from pool.pools import Agent, User, Watched, check

EXPECTED = (AcquireTimeout, AgentStartFailed, PoolExhausted, asyncio.CancelledError)


class Walk:
    """One pool with options drawn by *seed*, and everything that happens to it."""

    def __init__(self, seed: int) -> None:
        self.random = random = Random(seed)
        self.clock = VirtualClock()
        self.agents: list[Any] = []
        self.users: list[User] = []
        self.kind = random.choice([Agent, Watched])
        self.slow = self.bad = 0.0
        options: dict[str, Any] = {"strategy": random.choice(["lifo", "fifo"])}
        for name in ("reset", "check"):
            if random.random() < 0.5:
                options[name] = self.prepare
        for name, seconds in (("max_idle", 20), ("max_lifetime", 50), ("leak_after", 15)):
            if random.random() < 0.5:
                options[name] = seconds
        size, max_overflow = random.randint(1, 4), random.randint(0, 3)
        self.pool: AgentPool[Any] = AgentPool(
            self.start, size, max_overflow, clock=self.clock, close=self.close, name=f"walk-{seed}", **options
        )

    async def start(self) -> Any:
        await self.take_time()
        agent = self.kind(len(self.agents))
        self.agents.append(agent)
        return agent

    async def prepare(self, agent: Any) -> None:
        await self.take_time()

    async def close(self, agent: Any) -> None:
        try:
            if self.random.random() < self.slow:
                await self.clock.sleep(self.random.choice([0.1, 3, 30]))
        finally:  # it is given up on after ten seconds
            agent.closed = True

    async def take_time(self) -> None:
        if self.random.random() < self.slow:
            await self.clock.sleep(self.random.choice([0.1, 3, 300]))
        if self.random.random() < self.bad:
            raise OSError("no luck")

    async def step(self) -> None:
        random = self.random
        user = random.choice(self.users) if self.users else None
        match random.randrange(9):
            case 0 | 1 | 2 if len(self.users) < 14:
                asked = random.choice([{}, {"timeout": 4}, {"block": False}, {"timeout": 0}])
                self.users.append(User(self.pool, **asked))
            case 3 | 4 if user is not None:
                user.let_go.set()
            case 5 if user is not None:
                user.task.cancel()
            case 6 if user is not None and user.agent is not None:
                await self.pool.discard(user.agent)
            case 7 if living := [agent for agent in self.agents if agent.alive and not agent.closed]:
                agent = random.choice(living)
                agent.alive = False
                if isinstance(agent, Watched):
                    agent.die()
            case 8:
                self.slow, self.bad = random.choice([0, 0.3]), random.choice([0, 0, 0.3])
                await self.clock.advance(random.choice([0.1, 1, 10]))
        if random.random() < 0.5:
            await idle()
        self.check()

    def check(self) -> None:
        check(self.pool)
        pool, shelf, desk = self.pool, self.pool._stock.shelf, self.pool._desk
        self.users = [user for user in self.users if not user.task.done() or self._ended(user)]
        living = [agent for agent in self.agents if agent.alive and not agent.closed]
        assert len(living) <= pool.policy.most
        using = [id(user.agent) for user in self.users if user.agent is not None and not user.task.done()]
        assert len(using) == len(set(using)), "an agent was given to two"
        stats = pool.stats()
        assert stats.in_use + stats.available + stats.preparing + stats.closing == len(shelf.members)
        assert len(shelf.members) + stats.starting <= pool.policy.most
        if desk._front() is not None:
            assert pool._stock.checks or not shelf.idle, "an agent is idle, and somebody waits for one"
            assert stats.starting + stats.preparing + stats.closing, "nothing is under way for who waits"

    def _ended(self, user: User) -> bool:
        if not user.task.cancelled() and (error := user.task.exception()) is not None:
            assert isinstance(error, EXPECTED), repr(error)
        return False

    async def end(self) -> None:
        """Everybody leaves, nothing fails any more: the pool comes back to its size, and stops."""
        self.slow = self.bad = 0.0
        for user in self.users:
            user.let_go.set()
        await self.clock.advance(400)
        for user in self.users:
            user.let_go.set()
        await self.clock.advance(400)
        self.check()
        stats = self.pool.stats()
        assert (stats.in_use, stats.waiting, stats.starting, stats.preparing, stats.closing) == (
            0,
            0,
            0,
            0,
            0,
        )
        assert stats.available >= self.pool.policy.size, self.pool
        stopping = asyncio.create_task(self.pool.stop())
        await self.clock.advance(400)
        assert await stopping
        assert all(agent.closed for agent in self.agents)
        admission: Any = self.pool.admission
        assert not any(limit.used for limit in admission.kernel.limits.values())


async def walk(seed: int, steps: int) -> None:
    one = Walk(seed)
    await one.pool.start()
    try:
        for _ in range(steps):
            await one.step()
        await one.end()
    except BaseException as broken:
        broken.add_note(f"seed {seed}: {one.pool!r}")
        raise


@pytest.mark.parametrize("seed", range(60))
async def test_walk(seed: int, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever happens in whatever order, every agent and every permit is accounted for."""
    caplog.set_level(logging.CRITICAL, "interlock.pool")
    await walk(seed, 250)


@pytest.mark.deep
@pytest.mark.parametrize("seed", range(1_000, 2_000))
async def test_long_walk(seed: int, caplog: pytest.LogCaptureFixture) -> None:
    """The same for longer."""
    caplog.set_level(logging.CRITICAL, "interlock.pool")
    await walk(seed, 2_000)
