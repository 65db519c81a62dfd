"""A fleet's sessions and runs: at most so many at once, each held by its id, none kept by the dead.

Workers take runs of two sessions over one limiter. One of them dies in the middle, and its slots come back
when its lease has run out. Needs no network.

    python examples/limit_runs.py
"""

from __future__ import annotations

import asyncio

from interlock import ConcurrencyLimiter, LimitExceeded


async def worker(limiter: ConcurrencyLimiter, name: str, session: str, runs: int) -> None:
    # The holder's slots are leased: its heartbeat renews them for as long as it lives.
    async with limiter.holder(name, lease=30.0) as holder, holder.acquire_session_slot(session):
        for number in range(runs):
            async with holder.acquire_run_slot(session, f"{name}-{number}", timeout=None):
                await asyncio.sleep(0.01)  # the run's work
        print(f"{name} did {runs} runs of {session}")


async def main() -> None:
    limiter = ConcurrencyLimiter(max_parallel_sessions=10, max_parallel_runs=2)

    # A worker that dies takes a slot with it, and beats no more.
    dead = limiter.holder("dead", lease=0.05)
    await dead.acquire_run_slot("s0", "unfinished")

    # Without a timeout, full is said at once, in the words that callers know.
    await limiter.acquire_run_slot("s0", "another")
    try:
        await limiter.acquire_run_slot("s0", "one too many")
    except LimitExceeded as error:
        print(f"{error.code}: {error}")

    # Whoever waits is let in as slots come back: one with its session, one with the dead holder's lease.
    async with asyncio.TaskGroup() as workers:
        for name, session in (("ada", "s1"), ("ben", "s2")):
            workers.create_task(worker(limiter, name, session, 3))
        await limiter.release_run_slot("another")

    print(f"lost by the dead: {[permit.key for permit in dead.heartbeat()]}")
    print(limiter)


asyncio.run(main())
