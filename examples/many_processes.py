"""One limit for many processes: three workers and their parent share two tools, through an Interlock server.

Start the server first, in another terminal:

    interlock serve
    python examples/many_processes.py

`INTERLOCK_URL` and `INTERLOCK_TOKEN` choose another server.
"""

from __future__ import annotations

import asyncio
import os
import sys

from interlock import RemoteAdmission

URL = os.environ.get("INTERLOCK_URL", "http://127.0.0.1:7411")
TOKEN = os.environ.get("INTERLOCK_TOKEN")


async def work(name: str) -> None:
    """What each worker does: two pieces of work, each with a tool."""
    admission = RemoteAdmission(URL, token=TOKEN, lease=5.0)
    for number in (1, 2):
        async with admission.acquire("example:tools", owner=name, timeout=30.0) as permit:
            print(f"{name} does piece {number} under fence {permit.fence}", flush=True)
            await asyncio.sleep(0.1)  # the work
    await admission.aclose()


async def main() -> None:
    admission = RemoteAdmission(URL, token=TOKEN)
    await admission.set_limit("example:tools", 2)
    workers = [
        await asyncio.create_subprocess_exec(sys.executable, __file__, name)
        for name in ("ada", "ben", "cleo")
    ]
    ended = [asyncio.create_task(worker.wait()) for worker in workers]
    most = 0
    while not all(worker.done() for worker in ended):
        await admission.refresh()
        most = max(most, admission.limits()["example:tools"].used)
        for waiting in admission.waiting():
            print(f"parent sees {admission.explain(waiting.id)}", flush=True)
        await asyncio.wait(ended, timeout=0.05)
    await admission.refresh()
    print(f"at most {most} at once; in use at the end: {admission.limits()['example:tools'].used}")
    await admission.remove_limit("example:tools")
    await admission.aclose()


asyncio.run(main() if len(sys.argv) == 1 else work(sys.argv[1]))
