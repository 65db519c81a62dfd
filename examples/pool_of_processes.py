"""A pool of processes: eight pieces of work for two workers, one of which is killed at it.

A worker reads a request a line and answers with a line. Whoever had the killed one is told and tries again;
the pool has started another by then. Needs no network.

    python examples/pool_of_processes.py
"""

from __future__ import annotations

import asyncio
import sys

from interlock import AgentPool, ProcessAgent
from interlock.errors import AgentLost

WORKER = """
import json, os, signal, sys
for line in sys.stdin:
    request = json.loads(line)
    if request["input"].get("first_try") and request["input"]["n"] == 3:
        os.kill(os.getpid(), signal.SIGKILL)  # an accident
    print(json.dumps({"id": request["id"], "output": request["input"]["n"] ** 2}), flush=True)
"""


async def start_worker() -> ProcessAgent:
    return await ProcessAgent.start([sys.executable, "-c", WORKER])


async def square(pool: AgentPool[ProcessAgent], n: int) -> int:
    request = {"n": n, "first_try": True}
    while True:
        try:
            return await pool.transaction(lambda agent: agent.run(request), timeout=60)
        except AgentLost as lost:
            print(f"lost while squaring {n}, {lost.details['returncode']}")
            request["first_try"] = False


async def main() -> None:
    async with AgentPool(start_worker, size=2, max_overflow=0, name="squares") as pool:
        async with asyncio.TaskGroup() as tasks:
            squares = [tasks.create_task(square(pool, n)) for n in range(8)]
        print([task.result() for task in squares])
        await pool.ready()
        print(pool)


asyncio.run(main())
