"""Streams and tools under one ceiling: nobody waits on a unit that somebody else could use.

Every stream is taken and more of them wait; tools go on all the same. A stream calls a tool of its own,
which costs no second unit of the ceiling. Two that would wait for each other for ever are told so. Needs no
network.

    python examples/govern_tools.py
"""

from __future__ import annotations

import asyncio

from interlock import ConcurrencyGovernor, DeadlockDetected, Permit


async def stream(governor: ConcurrencyGovernor) -> None:
    async with governor.acquire_stream():
        pass


async def crossed(governor: ConcurrencyGovernor) -> None:
    """A stream wants a tool while a tool wants a stream, and there is one of each."""
    a_stream = await governor.acquire_stream(owner="ada")
    a_tool = await governor.acquire_tool(owner="ben")
    elder = asyncio.create_task(nested_tool(governor, a_stream))
    await asyncio.sleep(0)
    try:
        await governor.acquire_stream(parent=a_tool)
    except DeadlockDetected as error:
        print(f"refused: {error}")
    a_tool.release()  # the younger gives up what it holds, and the elder goes on
    await elder
    a_stream.release()


async def nested_tool(governor: ConcurrencyGovernor, parent: Permit) -> None:
    async with governor.acquire_tool(parent=parent):
        print("the elder goes on")


async def main() -> None:
    governor = ConcurrencyGovernor(max_streams=2, max_tools=4, max_global=6, max_tools_per_agent=1)

    async with governor.acquire_stream() as first, governor.acquire_stream():
        waiting = [asyncio.create_task(stream(governor)) for _ in range(8)]
        await asyncio.sleep(0)
        print(f"2 streams run, {len(waiting)} wait: {governor.stats().global_available} of 6 are free")

        async with governor.acquire_tool(agent="ada", timeout=0):
            print(f"a tool goes at once; another of ada's: {governor.try_acquire_tool(agent='ada')}")
        async with governor.acquire_tool(parent=first, timeout=0):
            print(f"a stream's own tool: {governor.stats().global_available} of 6 are free")
    await asyncio.gather(*waiting)

    await crossed(ConcurrencyGovernor(max_streams=1, max_tools=1, max_global=2))


asyncio.run(main())
