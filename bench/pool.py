"""Checking an agent out and in again, beside handing an object around by other means. In nanoseconds.

``asyncio.Queue`` is what a program without Interlock writes: get one, put it back. It knows neither overflow
nor time limits nor whom it gets back. SQLAlchemy's QueuePool is the pool whose vocabulary ours uses; it is
for threads, and its connections here do nothing, neither when they are made nor when they come back.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any

from sqlalchemy.pool import QueuePool

from bench.measure import Table, Timed, compared, pin, take_turns
from interlock.admission.local import LocalAdmission
from interlock.pool import AgentPool

Pairs = Callable[[int], Coroutine[Any, Any, None]]
"""Checks out and in as often as it is told."""
Case = Callable[[int], AbstractAsyncContextManager[Pairs]]
"""Makes something of that size to do so with."""

QUEUE = "asyncio.Queue"
SIZES = (1, 10, 100)


class Agent:
    """Something to be handed around; SQLAlchemy wants to roll it back and close it."""

    def rollback(self) -> None: ...

    def close(self) -> None: ...


def run(*, quick: bool = False) -> list[Table]:
    """Every table; *quick* with fewer rounds."""
    pin()
    rounds = 5 if quick else 15
    tables = [_uncontended(size, rounds) for size in SIZES]
    tables.append(_options(rounds))
    tables.append(_contended(1_000, 10, 3 if quick else 9))
    return tables


# -- nobody waits ----------------------------------------------------------------------------------


def _uncontended(size: int, rounds: int) -> Table:
    cases: dict[str, Case] = {
        QUEUE: _queue,
        "SQLAlchemy QueuePool": _sqlalchemy,
        "Interlock": _interlock,
        "Interlock, async with": _interlock_with,
        "Interlock, transaction": _transaction,
    }
    taken = take_turns({name: partial(_timed, case, size) for name, case in cases.items()}, rounds=rounds)
    note = "One unit: check out and in again while nobody waits; of the queue, get and put."
    return compared(f"Pool of {size}, uncontended", "pair", taken, baseline=QUEUE, note=note)


def _timed(case: Case, size: int, count: int = 20_000) -> float:
    async def timed() -> float:
        async with case(size) as pairs:
            await pairs(count // 10)
            with Timed() as time_:
                await pairs(count)
            return time_.ns / count

    return asyncio.run(timed())


@asynccontextmanager
async def _queue(size: int) -> AsyncIterator[Pairs]:
    queue: asyncio.Queue[Agent] = asyncio.Queue()
    for _ in range(size):
        queue.put_nowait(Agent())

    async def pairs(count: int) -> None:
        for _ in range(count):
            agent = await queue.get()
            await queue.put(agent)

    yield pairs


@asynccontextmanager
async def _sqlalchemy(size: int) -> AsyncIterator[Pairs]:
    make: Callable[[], Any] = Agent
    pool = QueuePool(make, pool_size=size, max_overflow=5, reset_on_return=None)
    for held in [pool.connect() for _ in range(size)]:
        held.close()

    async def pairs(count: int) -> None:
        for _ in range(count):
            held = pool.connect()
            held.close()

    yield pairs
    pool.dispose()


@asynccontextmanager
async def _interlock(size: int, **options: Any) -> AsyncIterator[Pairs]:
    async with AgentPool(**({"factory": Agent, "size": size} | options)) as pool:

        async def pairs(count: int) -> None:
            for _ in range(count):
                agent = await pool.checkout()
                await pool.checkin(agent)

        yield pairs


@asynccontextmanager
async def _interlock_with(size: int) -> AsyncIterator[Pairs]:
    async with AgentPool(Agent, size) as pool:

        async def pairs(count: int) -> None:
            for _ in range(count):
                async with pool.checkout():
                    pass

        yield pairs


@asynccontextmanager
async def _transaction(size: int) -> AsyncIterator[Pairs]:
    async with AgentPool(Agent, size) as pool:

        async def pairs(count: int) -> None:
            for _ in range(count):
                await pool.transaction(id)

        yield pairs


# -- what the options cost -------------------------------------------------------------------------


def _options(rounds: int) -> Table:
    options: dict[str, dict[str, Any]] = {
        "none": {},
        "alive": {"factory": Living},
        "max_idle": {"max_idle": 60.0},
        "max_lifetime": {"max_lifetime": 3600.0},
        "leak_after": {"leak_after": 600.0},
        "reset": {"reset": _nothing},
        "check": {"check": _nothing},
    }
    cases = {
        name: partial(_timed, partial(_interlock, **given), 10, 3_000) for name, given in options.items()
    }
    taken = take_turns(cases, rounds=rounds)
    note = "One unit: as above, with this option. A reset or check is a task of its own, with a deadline."
    return compared("Pool of 10, what an option costs", "pair", taken, baseline="none", note=note)


class Living(Agent):
    """One that says that it lives."""

    alive = True


def _nothing(agent: Agent) -> None: ...


# -- many wait -------------------------------------------------------------------------------------


def _contended(tasks: int, size: int, rounds: int) -> Table:
    async def crowd(user: Callable[[], Coroutine[Any, Any, None]]) -> float:
        with Timed() as timed:
            await asyncio.gather(*[asyncio.create_task(user()) for _ in range(tasks)])
        return timed.ns / tasks

    async def queue() -> float:
        agents: asyncio.Queue[Agent] = asyncio.Queue()
        for _ in range(size):
            agents.put_nowait(Agent())

        async def user() -> None:
            agent = await agents.get()
            await asyncio.sleep(0)
            await agents.put(agent)

        return await crowd(user)

    async def interlock() -> float:
        async with AgentPool(Agent, size, 0) as pool:

            async def user() -> None:
                agent = await pool.checkout()
                await asyncio.sleep(0)
                await pool.checkin(agent)

            return await crowd(user)

    async def admission() -> float:
        permits = LocalAdmission()
        permits.configure("agents", size)

        async def user() -> None:
            permit = await permits.acquire("agents")
            await asyncio.sleep(0)
            permit.release()

        return await crowd(user)

    cases = {QUEUE: queue, "Interlock": interlock, "(its permits alone)": admission}
    taken = take_turns(
        {name: lambda case=case: asyncio.run(case()) for name, case in cases.items()}, rounds=rounds
    )
    note = "One unit: make a task that checks out, lets the loop turn once and checks in."
    return compared(f"{tasks:,} tasks over a pool of {size}", "task", taken, baseline=QUEUE, note=note)
