"""Runs that start runs, at a limit of two: each lends its place while its children work.

Without `lend` the first two would wait for children that wait for them.
"""

import asyncio
import random

from interlock import LocalAdmission


async def main() -> None:
    admission = LocalAdmission()
    await admission.set_limit("runs", 2)
    working, most, done = set(), 0, 0

    async def work(name: str) -> None:
        nonlocal most
        working.add(name)
        most = max(most, len(working))
        await asyncio.sleep(random.uniform(0.001, 0.01))
        working.discard(name)

    async def run(name: str, depth: int) -> None:
        nonlocal done
        async with admission.acquire("runs", owner=name) as permit:
            await work(name)
            async with permit.lend():
                children = (run(f"{name}.{child}", depth - 1) for child in range(2 if depth else 0))
                await asyncio.gather(*children)
            await work(name)
        done += 1

    await asyncio.gather(*(run(f"root-{number}", depth=2) for number in range(3)))
    print(f"{done} runs, never more than {most} of {admission.limits()['runs'].capacity} at work")


asyncio.run(main())
