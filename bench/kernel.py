"""Admission in one process, beside what the standard library and anyio offer. All figures in nanoseconds.

Each table says what one unit of it is. ``asyncio: 3 nested`` are three semaphores, one inside the other:
what a program without Interlock writes for a limit per provider, per kind of work and for everything.
"""

from __future__ import annotations

import asyncio
import gc
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from random import Random
from typing import Any

import anyio

from bench.measure import Table, Timed, compared, pin, take_turns
from interlock.admission.local import LocalAdmission
from interlock.admission.permit import Permit
from interlock.core.kernel import Kernel
from interlock.core.model import Waiter

Loop = Callable[[int], Coroutine[Any, Any, object]]
"""Does something as often as it is told."""
Gate = tuple[Callable[[], Awaitable[Any]], Callable[[Any], object]]
"""How to acquire, and how to release what that gave."""

SEMAPHORE, NESTED = "asyncio.Semaphore", "asyncio: 3 nested"
NAMES = ("streams", "provider:a", "global")


def run(*, quick: bool = False) -> list[Table]:
    """Every table; *quick* with fewer rounds and smaller crowds."""
    pin()
    rounds = 3 if quick else 9
    few = 1 if quick else 3
    tables = _uncontended(rounds)
    tables.append(_contended(1_000, 50, rounds))
    tables.append(_contended(10_000 if quick else 100_000, 50, few))
    tables.append(_contended(20_000, 2_000, few))
    tables += [_cancelled(2_000 if quick else 20_000, order, few) for order in ORDERS]
    tables += [_lanes(shared, rounds) for shared in (True, False)]
    tables.append(_memory(2_000 if quick else 20_000))
    return tables


# -- nobody waits ----------------------------------------------------------------------------------


def _uncontended(rounds: int) -> list[Table]:
    note = "One unit: acquire and release while there is room and nobody waits."
    tables = []
    for limits in (1, 3):
        for form, cases in (
            ("acquire, release", _separate_cases(limits)),
            ("async with", _with_cases(limits)),
        ):
            taken = take_turns({name: partial(_loop, body) for name, body in cases.items()}, rounds=rounds)
            title = f"Uncontended, {limits} limit{'s' if limits > 1 else ''}, {form}"
            tables.append(compared(title, "pair", taken, baseline=next(iter(cases)), note=note))
    return tables


def _loop(body: Loop, count: int = 20_000) -> float:
    async def timed() -> float:
        await body(count // 10)
        with Timed() as time_:
            await body(count)
        return time_.ns / count

    return asyncio.run(timed())


def _separate_cases(limits: int) -> dict[str, Loop]:
    async def semaphore(count: int) -> None:
        a = asyncio.Semaphore(50)
        for _ in range(count):
            await a.acquire()
            a.release()

    async def semaphores(count: int) -> None:
        a, b, c = asyncio.Semaphore(50), asyncio.Semaphore(50), asyncio.Semaphore(50)
        for _ in range(count):
            await a.acquire()
            await b.acquire()
            await c.acquire()
            c.release()
            b.release()
            a.release()

    async def limiter(count: int) -> None:
        a = anyio.CapacityLimiter(50)
        for _ in range(count):
            await a.acquire()
            a.release()

    async def interlock(count: int) -> None:
        acquire = _admission(50).acquire
        names = NAMES[:limits]
        for _ in range(count):
            (await acquire(*names)).release()

    if limits == 1:
        return {
            SEMAPHORE: semaphore,
            "anyio.CapacityLimiter": limiter,
            "Interlock": interlock,
        }
    return {NESTED: semaphores, "Interlock": interlock}


def _with_cases(limits: int) -> dict[str, Loop]:
    async def semaphore(count: int) -> None:
        a = asyncio.Semaphore(50)
        for _ in range(count):
            async with a:
                pass

    async def semaphores(count: int) -> None:
        a, b, c = asyncio.Semaphore(50), asyncio.Semaphore(50), asyncio.Semaphore(50)
        for _ in range(count):
            async with a, b, c:
                pass

    async def limiter(count: int) -> None:
        a = anyio.CapacityLimiter(50)
        for _ in range(count):
            async with a:
                pass

    async def limiters(count: int) -> None:
        a, b, c = anyio.CapacityLimiter(50), anyio.CapacityLimiter(50), anyio.CapacityLimiter(50)
        for _ in range(count):
            async with a, b, c:
                pass

    async def interlock(count: int) -> None:
        acquire = _admission(50).acquire
        names = NAMES[:limits]
        for _ in range(count):
            async with acquire(*names):
                pass

    if limits == 1:
        return {
            SEMAPHORE: semaphore,
            "anyio.CapacityLimiter": limiter,
            "Interlock": interlock,
        }
    return {NESTED: semaphores, "anyio: 3 nested": limiters, "Interlock": interlock}


def _admission(capacity: int) -> LocalAdmission:
    admission = LocalAdmission()
    for name in NAMES:
        admission.configure(name, capacity)
    return admission


# -- many wait -------------------------------------------------------------------------------------


def _open(slots: int) -> Gate:
    async def acquire() -> None:
        return None

    return acquire, lambda _: None


def _semaphore(slots: int) -> Gate:
    semaphore = asyncio.Semaphore(slots)
    return semaphore.acquire, lambda _: semaphore.release()


def _semaphores(slots: int) -> Gate:
    a, b, c = asyncio.Semaphore(slots), asyncio.Semaphore(slots), asyncio.Semaphore(slots)

    async def acquire() -> None:
        await a.acquire()
        await b.acquire()
        await c.acquire()

    def release(_: object) -> None:
        c.release()
        b.release()
        a.release()

    return acquire, release


def _limiter(slots: int) -> Gate:
    limiter = anyio.CapacityLimiter(slots)
    return limiter.acquire, lambda _: limiter.release()


def _interlock(slots: int, *, limits: int) -> Gate:
    return partial(_admission(slots).acquire, *NAMES[:limits]), Permit.release


GATES: dict[str, Callable[[int], Gate]] = {
    SEMAPHORE: _semaphore,
    NESTED: _semaphores,
    "anyio.CapacityLimiter": _limiter,
    "Interlock, 1 limit": partial(_interlock, limits=1),
    "Interlock, 3 limits": partial(_interlock, limits=3),
}


def _contended(tasks: int, slots: int, rounds: int) -> Table:
    async def crowd(make: Callable[[int], Gate]) -> float:
        acquire, release = make(slots)

        async def one() -> None:
            permit = await acquire()
            await asyncio.sleep(0)
            release(permit)

        create = asyncio.get_running_loop().create_task
        with Timed() as timed:
            await asyncio.gather(*[create(one()) for _ in range(tasks)])
        return timed.ns / tasks

    gates = {"(no limit at all)": _open, **GATES}
    taken = take_turns(
        {name: lambda make=make: asyncio.run(crowd(make)) for name, make in gates.items()}, rounds=rounds
    )
    return compared(
        f"Contended, {tasks:,} tasks over {slots:,} slots",
        "task",
        taken,
        baseline=SEMAPHORE,
        note="One unit: make a task that acquires, lets the loop turn once and releases.",
    )


ORDERS = ("oldest first", "newest first", "random")


def _cancelled(waiters: int, order: str, rounds: int) -> Table:
    async def leave(make: Callable[[int], Gate]) -> float:
        acquire, release = make(1)
        held = await acquire()

        async def one() -> None:
            await acquire()

        tasks = [asyncio.create_task(one()) for _ in range(waiters)]
        for _ in range(3):
            await asyncio.sleep(0)
        leaving = list(tasks)
        if order == "newest first":
            leaving.reverse()
        elif order == "random":
            Random(1).shuffle(leaving)
        with Timed() as timed:
            for task in leaving:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        release(held)
        return timed.ns / waiters

    gates = {name: GATES[name] for name in (SEMAPHORE, "anyio.CapacityLimiter", "Interlock, 3 limits")}
    taken = take_turns(
        {name: lambda make=make: asyncio.run(leave(make)) for name, make in gates.items()}, rounds=rounds
    )
    return compared(
        f"Cancelling {waiters:,} who wait, {order}",
        "waiter",
        taken,
        baseline=SEMAPHORE,
        note="One unit: cancel a task that waits, and let it end.",
    )


# -- the kernel alone ------------------------------------------------------------------------------


def _lanes(shared: bool, rounds: int) -> Table:
    taken = take_turns(
        {f"{lanes:,} lanes": partial(_released, lanes, shared) for lanes in (10, 1_000, 10_000)},
        rounds=rounds,
    )
    return compared(
        f"Release while many lanes wait, {'all for one limit' if shared else 'each for its own limit'}",
        "release",
        taken,
        baseline="10 lanes",
        note="One unit, of the kernel alone: a release and the grant that follows from it. A lane are those "
        "who wait for the same limits; one waits in each.",
    )


def _released(lanes: int, shared: bool, count: int = 2_000) -> float:
    kernel = Kernel()
    kernel.configure("global", 0, capacity=1 if shared else None)
    claims = []
    for number in range(lanes):
        kernel.configure(f"provider:{number}", 0, capacity=None if shared else 1)
        claims.append(kernel.claims(("global", f"provider:{number}")))
    holding = [kernel.acquire(one, 0) for one in (claims[:1] if shared else claims)]
    for one in claims:
        kernel.acquire(one, 0)
    clock = time.perf_counter_ns
    spent = 0
    gc.collect()
    gc.disable()
    for now_ms in range(count):
        held = holding.pop(0) if shared else holding[now_ms % lanes]
        began = clock()
        kernel.release(held, now_ms)
        spent += clock() - began
        granted = kernel.outbox.pop()
        kernel.outbox.clear()
        if shared:
            holding.append(granted.permit)
        else:
            holding[now_ms % lanes] = granted.permit
        assert isinstance(kernel.acquire(granted.waiter.claims, now_ms), Waiter)
    gc.enable()
    return spent / count


# -- memory ----------------------------------------------------------------------------------------


def _memory(waiters: int) -> Table:
    async def parked(make: Callable[[int], Gate]) -> float:
        acquire, release = make(1)
        held = await acquire()

        async def one() -> None:
            await acquire()

        async def park(count: int) -> list[asyncio.Task[None]]:
            tasks = [asyncio.create_task(one()) for _ in range(count)]
            for _ in range(3):
                await asyncio.sleep(0)
            return tasks

        tasks = await park(100)
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        tasks += await park(waiters)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        release(held)
        return (after - before) / waiters

    tracemalloc.start()
    taken = {name: asyncio.run(parked(make)) for name, make in GATES.items() if name != NESTED}
    tracemalloc.stop()
    rows = [(name, f"{size:,.0f}", f"{size / taken[SEMAPHORE]:.2f}") for name, size in taken.items()]
    note = f"Traced bytes of one who waits, its task included, of {waiters:,}."
    return Table("Memory of those who wait", ("", "bytes", "ratio"), rows, note, taken)
