"""What `schedules.py` explores of `AgentPool`: checkouts in every form, cancelled wherever they can be.

A pool of one agent without overflow unless a scenario says otherwise. Starting an agent takes until the
environment ends it. Only the standard library and the package are needed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from admission.scenarios import LoopClock
from interlock.admission.local import LocalAdmission
from interlock.errors import AcquireTimeout, AgentStartFailed, PoolClosed, PoolExhausted
from interlock.pool import AgentPool
from schedules import Loop, World


class Agent:
    """What is handed around."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.closed = False
        self.alive = True

    def __repr__(self) -> str:
        return f"agent {self.number}"


class Users(World):
    """Tasks over one pool, and the rules that hold for all of them."""

    def __init__(self, loop: Loop, tasks: int, cancels: int) -> None:
        super().__init__(loop, cancels)
        self.size = tasks
        self.agents: list[Agent] = []
        self.errors: tuple[type[BaseException], ...] = (AgentStartFailed,)
        """How a task may end, besides well or cancelled."""
        self.fails = 0
        """How many starts are to fail."""
        self.fires = 3
        self.shared: Any = None
        self.make()

    def make(self, size: int = 1, max_overflow: int = 0, **options: Any) -> None:
        """The pool; its first agents are there."""
        self.agents.clear()
        if self.shared is None:
            self.shared = LocalAdmission(clock=LoopClock(self.loop))
        options = {"close": self.close, "admission": self.shared, "clock": LoopClock(self.loop)} | options
        self.pool: AgentPool[Any] = AgentPool(
            self.start, size, max_overflow, name=f"p{id(options)}", **options
        )

    async def open(self) -> None:
        await self.pool.start()

    # what the pool calls

    async def start(self) -> Agent:
        if len(self.agents) >= self.pool.policy.size:  # the first come at once
            await self.step(f"start-{len(self.agents)}")
        if self.fails:
            self.fails -= 1
            raise OSError("no memory")
        self.agents.append(Agent(len(self.agents)))
        return self.agents[-1]

    async def step(self, name: str) -> None:
        """Something that takes until the environment ends it."""
        while name in self._gates:
            name += "'"
        gate = self._gates[name] = self.loop.create_future()
        try:
            await gate
        finally:
            del self._gates[name]

    async def prepare(self, agent: Agent) -> None:
        await self.step(f"prepare-{agent.number}")

    async def close(self, agent: Agent) -> None:
        agent.closed = True

    # what tasks do

    async def enter(self, name: str, **asked: Any) -> None:
        async with self.pool.checkout(**({"timeout": None} | asked)) as agent:
            await self.section(name, agent)

    async def take(self, name: str, **asked: Any) -> None:
        agent = await self.pool.checkout(**({"timeout": None} | asked))
        try:
            await self.section(name, agent)
        finally:
            await self.pool.checkin(agent)

    async def transact(self, name: str) -> None:
        await self.pool.transaction(partial(self.section, name), timeout=None)

    async def dash(self) -> None:
        """In and out again without a pause."""
        async with self.pool.checkout(timeout=None):
            pass

    def all_do(self, way: Callable[..., Coroutine[Any, Any, None]], **asked: Any) -> None:
        self.todo += [partial(way, str(n), **asked) for n in range(self.size)]

    # what may happen

    def possible(self) -> list[str]:
        """Time passes a few times of itself, else only when nothing else can happen: starts that are never
        ended would be repeated for ever."""
        labels = super().possible()
        return [label for label in labels if label != "fire"] if labels[1:] and not self.fires else labels

    def do(self, label: str) -> None:
        self.fires -= label == "fire" and self.fires > 0
        super().do(label)

    # what must hold

    def check(self) -> None:
        pool, shelf, desk = self.pool, self.pool._stock.shelf, self.pool._desk
        shelf.check()
        if isinstance(self.shared, LocalAdmission):
            self.shared.kernel.check()
        given = [id(agent) for agent in self.inside.values()]
        assert len(given) == len(set(given)), "an agent was given to two"
        for name, agent in self.inside.items():
            member = shelf.find(agent)
            out = member is None or member.permit is not None or desk.closed
            assert out, f"{name} works with an agent that is not out"
        living = [agent for agent in self.agents if agent.alive and not agent.closed]
        assert len(living) <= pool.policy.most, f"{len(living)} agents of {pool.policy.most}"
        assert desk.wanting == sum(caller.permit is not None for caller in desk.line)
        if desk.wanting and not desk.closed:
            ready = shelf.idle if not pool._stock.checks else ()
            front = desk._front()
            assert front is None or not ready, "an agent is idle, and still somebody waits for one"
            coming = shelf.starting + shelf.preparing
            assert front is None or coming >= min(desk.wanting, shelf.room + coming), "no agent is on its way"

    def final(self) -> None:
        super().final()
        pool, shelf, desk = self.pool, self.pool._stock.shelf, self.pool._desk
        assert not desk.line, "somebody is in line and has gone"
        assert not shelf.out(), "an agent was not checked in"
        if not desk.closed and pool._opened:
            self._check_fresh()
        stopping = self.loop.create_task(pool.stop(0))
        while not stopping.done():
            if self.loop.runnable:
                self.loop.step()
            else:
                self.loop.fire()
        assert all(agent.closed for agent in self.agents), "an agent was not closed"
        kernel = getattr(self.shared, "inner", self.shared).kernel
        used = {name: limit.used for name, limit in kernel.limits.items() if limit.used}
        assert not used, f"permits leaked: {used}"
        assert not [permit for permit in kernel.live if permit.claims.limits], "permits leaked"

    def _check_fresh(self) -> None:
        """Whoever comes now gets all there is."""
        pool = self.pool
        while pool.stats().available < pool.policy.size:
            if self.loop.runnable:
                self.loop.step()
            elif self._gates:
                next(iter(self._gates.values())).set_result(None)
            else:
                assert self.loop.due, f"{pool!r}: nothing will bring it back to its size"
                self.loop.fire()

    def ended(self, number: int, error: BaseException | None) -> None:
        if not isinstance(error, self.errors):
            super().ended(number, error)


class Elsewhere:
    """An admission of which only the protocol is known, and whose answers take a turn of the loop."""

    def __init__(self, clock: Any) -> None:
        self.inner = LocalAdmission(clock=clock)

    async def set_limit(self, name: str, capacity: int | None, **options: Any) -> None:
        await asyncio.sleep(0)
        self.inner.configure(name, capacity)

    def acquire(self, *names: str, **asked: Any) -> Any:
        acquisition = self.inner.acquire(*names, **asked)
        acquisition.first(partial(asyncio.sleep, 0))
        return acquisition


SCENARIOS: dict[str, Callable[..., World]] = {}


def scenario(cancels: int = 2) -> Callable[[Callable[[Users], None]], Callable[[Users], None]]:
    """Enter it under its name; *cancels* unless the caller of the scenario wants another number of them."""

    def enter(prepare: Callable[[Users], None]) -> Callable[[Users], None]:
        def make(loop: Loop, tasks: int = 3, cancels: int | None = None) -> World:
            users = Users(loop, tasks, usual if cancels is None else cancels)
            prepare(users)
            return users

        SCENARIOS[prepare.__name__] = make
        return prepare

    usual = cancels
    return enter


@scenario()
def pool_entered(users: Users) -> None:
    """``async with checkout()``; the first starts the pool."""
    users.all_do(users.enter)


@scenario()
def pool_taken(users: Users) -> None:
    """``await checkout()``, checked in by hand."""
    users.all_do(users.take)


@scenario()
def pool_transactions(users: Users) -> None:
    """A transaction that is cancelled leaves an agent that has to be replaced."""
    users.all_do(users.transact)


@scenario()
def pool_overflow(users: Users) -> None:
    """Starting one more, giving it to who is there when it comes, ending it."""
    users.make(1, 1)
    users.all_do(users.enter)


@scenario(cancels=1)
def pool_start_fails(users: Users) -> None:
    """The error reaches somebody, and the others go on."""
    users.make(1, 2)
    users.fails = 2
    users.all_do(users.enter)


@scenario(cancels=1)
def pool_discards(users: Users) -> None:
    """An agent is discarded while others wait: room instead of an agent, then a newcomer."""

    async def discard(name: str) -> None:
        agent = await users.pool.checkout(timeout=None)
        try:
            await users.section(name, agent)
        finally:
            await users.pool.discard(agent)

    users.make(2)
    users.todo = [
        partial(discard, "0"),
        *(partial(users.enter, str(n)) for n in range(1, users.size)),
        users.dash,
    ]


@scenario(cancels=1)
def pool_dies(users: Users) -> None:
    """The agent dies at any moment, and says so when it is asked."""

    def die() -> None:
        if users.agents:
            users.agents[0].alive = False

    users.all_do(users.enter)
    users.once["die"] = die


@scenario(cancels=1)
def pool_reset(users: Users) -> None:
    """Agents come back in two steps."""
    users.make(1, 1, reset=users.prepare)
    users.all_do(users.enter)


@scenario(cancels=1)
def pool_check(users: Users) -> None:
    """Agents are handed out in two steps."""
    users.make(1, 1, check=users.prepare)
    users.all_do(users.enter)


@scenario(cancels=1)
def pool_timeout(users: Users) -> None:
    """The deadline, the grant, the start and the cancel, in every order."""
    users.make(1, 1)
    users.errors = (AgentStartFailed, AcquireTimeout)
    users.all_do(users.enter, timeout=1)
    users.todo[0] = partial(users.enter, "0")


@scenario(cancels=1)
def pool_without_waiting(users: Users) -> None:
    """Some do not wait for an agent that is out."""
    users.errors = (AgentStartFailed, PoolExhausted)
    users.all_do(users.enter, block=False)
    users.todo[0] = partial(users.enter, "0")


@scenario(cancels=1)
def pool_stopped(users: Users) -> None:
    """The pool stops at any moment, and whoever asked for that may be cancelled."""

    async def stop() -> None:
        await users.pool.stop(5)

    users.make(1, 1)
    users.errors = (AgentStartFailed, PoolClosed)
    users.all_do(users.enter)
    users.todo[1] = stop


@scenario(cancels=1)
def pool_ready(users: Users) -> None:
    """Waiting for the pool to have its size, while one start fails."""

    async def ready() -> None:
        await users.pool.ready()

    users.make(2)
    users.fails = 1
    users.all_do(users.enter)
    users.todo[0] = ready


@scenario(cancels=1)
def pool_in_a_block(users: Users) -> None:
    """``async with pool``: whoever leaves it stops the pool, and may be cancelled at that."""

    async def block() -> None:
        async with users.pool:
            await users.section("block", Agent(-1))

    users.make(2)
    users.errors = (AgentStartFailed, PoolClosed)
    users.all_do(users.enter)
    users.todo[0] = block


@scenario(cancels=1)
def pool_elsewhere(users: Users) -> None:
    """Over an admission of which only the protocol is known."""
    users.shared = Elsewhere(LoopClock(users.loop))
    users.make(1, 1)
    users.all_do(users.enter)
    users.todo.append(users.dash)
