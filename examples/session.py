"""A session whose runs survive their process: submitted, followed, cancelled, and found by the next one."""

import asyncio
import tempfile
from pathlib import Path

import interlock
from interlock import ConcurrencyLimiter, RunContext, SessionServer, open_store


@interlock.agent(capabilities={"pause"})
async def counter(run: RunContext) -> dict[str, int]:
    total = 0
    for number in range(run.input["to"]):
        await run.checkpoint()  # here it can be paused
        total += number
        await run.emit("message_streamed", {"content": f"{number} "})  # durable when this returns
    return {"total": total}


async def first_process(store_url: str) -> str:
    async with await open_store(store_url) as store:
        limiter = ConcurrencyLimiter(max_parallel_runs=50)  # shared by all sessions; full, it makes runs wait
        server = await SessionServer.start(store, counter, session_id="sums", limiter=limiter)
        first = await server.submit_run({"to": 3}, idempotency_key="monday")
        print("3 numbers:", (await server.await_run(first)).output["total"])

        endless = await server.submit_run({"to": 10**9})
        waiting = await server.submit_run({"to": 5})
        async with server.subscribe(run_id=endless) as events:
            async for event in events:
                if event.type == "message_streamed":
                    break
        await server.cancel_run(endless)
        try:
            await server.await_run(endless)
        except interlock.RunCancelled:
            print("the endless one was cancelled")
        print("5 numbers:", (await server.await_run(waiting)).output["total"])
        last = await server.submit_run({"to": 10**9}, retry="on_crash")
        await server.close(timeout=0)  # as a SIGKILL would, but for the words in the log
        return last


async def second_process(store_url: str, run_id: str) -> None:
    async with await open_store(store_url) as store:
        server = await SessionServer.attach(store, counter, "sums")
        same = await server.submit_run({"to": 3}, idempotency_key="monday")
        print("asked again, not run again:", (await server.await_run(same)).output["total"])
        try:
            await server.await_run(run_id)
        except interlock.RunInterrupted as interrupted:
            print("the last one:", interrupted.code)
        async with server.subscribe() as events:
            numbers = [(await anext(events)).sequence for _ in range(8)]
        print("its log begins with", numbers)
        await server.close(complete=True)


with tempfile.TemporaryDirectory() as folder:
    url = f"sqlite:///{Path(folder) / 'sessions.db'}"
    run_id = asyncio.run(first_process(url))
    asyncio.run(second_process(url, run_id))
