"""Several limits at once: agents whose calls need a stream or a tool, and always a unit of the ceiling.

Each request gets all that it claims or waits and holds nothing; `explain` says what for. Needs no network.

    python examples/many_limits.py
"""

from __future__ import annotations

import asyncio

from interlock import AcquireTimeout, LocalAdmission


async def work(admission: LocalAdmission, done: asyncio.Event, agent: str, *limits: str) -> None:
    async with admission.acquire(*limits, key=agent, owner=agent):
        print(f"{agent} has {' and '.join(limits)}")
        await done.wait()  # the agent's work


async def main() -> None:
    admission, done = LocalAdmission(), asyncio.Event()
    await admission.set_limit("streams", 1)
    await admission.set_limit("tools", 2)
    await admission.set_limit("global", 2)

    async with asyncio.TaskGroup() as agents:
        agents.create_task(work(admission, done, "ada", "streams", "global"))
        agents.create_task(work(admission, done, "ben", "streams", "global"))
        agents.create_task(work(admission, done, "cleo", "tools", "global"))
        agents.create_task(work(admission, done, "dan", "tools", "global"))
        await asyncio.sleep(0)  # each has asked now

        # Ben came before Cleo and lacks a stream. He kept nothing of the ceiling from her, so she could go.
        for waiting in admission.waiting():
            print(admission.explain(waiting.id))

        try:
            await admission.acquire("streams", timeout=0.01)
        except AcquireTimeout as error:
            print(error)
        done.set()

    used = {name: reading.used for name, reading in admission.limits().items()}
    print(f"in use at the end: {used}")
    await admission.aclose()


asyncio.run(main())
