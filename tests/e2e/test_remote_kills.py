"""Permits of a server in processes: it is told to stop, they stand still. `test_fleet_storms` does worse."""

from __future__ import annotations

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE
from contextlib import AsyncExitStack, suppress
from pathlib import Path

from e2e.observe import until
from gateways import call
from interlock.admission.permit import Permit
from interlock.admission.remote import RemoteAdmission
from processes import environment, serve

LIMIT = 4
LEASE = 1.0
JSON = (b"content-type", b"application/json")
BACK_WITHIN = LEASE + 6.0
CONFIG = f"""\
store = "sqlite:///interlock.db"

[limits]
tools = {LIMIT}
"""


async def test_a_server_that_is_told_to_stop_is_soon_gone(tmp_path: Path) -> None:
    """Long polls are ended, connections closed; its permits go on in the next one."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(serve(tmp_path, CONFIG))
        admission = RemoteAdmission(server.url, lease=5.0)
        stack.push_async_callback(admission.aclose)
        permits = [await admission.acquire("tools") for _ in range(LIMIT)]
        waiting = asyncio.create_task(_acquired(admission))
        polling = asyncio.create_task(
            call(server.url, "POST", "/permits", [JSON], b'{"limits": ["tools"], "timeoutMs": 60000}')
        )

        async def both_wait() -> bool:
            await admission.refresh()
            return len(admission.waiting()) == 2

        await until(both_wait, "two who wait")
        server.process.terminate()
        answer = await polling
        assert (answer.status, answer.json["code"]) == (503, "draining")
        assert await server.ended(within=5.0) == 0
        assert server.stderr() == ""
        port = int(server.url.rpartition(":")[2])
        await stack.enter_async_context(serve(tmp_path, CONFIG, port=port))
        await admission.refresh()
        assert {one.id for one in admission.holders("tools")} == {permit.id for permit in permits}
        assert not waiting.done()
        for permit in permits:
            assert permit.release()
        (await waiting).release()


async def _acquired(admission: RemoteAdmission) -> Permit:
    return await admission.acquire("tools", timeout=30.0)


FROZEN = """
import asyncio, sys
from interlock.admission.remote import RemoteAdmission

async def main():
    admission = RemoteAdmission(sys.argv[1], lease=float(sys.argv[2]))
    permit = await admission.acquire("tools")
    print("held", permit.fence, flush=True)
    word = ""
    while word != "lost":
        sys.stdin.readline()  # the loop stands still; whoever asks wants to know now
        word = "lost" if permit.lost else "held"
        print(word, flush=True)
    print("released", permit.release(), flush=True)
    again = await admission.acquire("tools", timeout=20)
    print("again", again.fence, flush=True)
    again.release()
    await admission.aclose()

asyncio.run(main())
"""


async def test_a_frozen_process_notices_on_waking(tmp_path: Path) -> None:
    """Stopped for two leases, while its server gave the unit to another: it sees that its permit is lost with
    the first look, releases nothing of its successor's, and may ask again."""
    config = 'store = "memory:"\n[limits]\ntools = 1\n'
    async with serve(tmp_path, config) as server:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "ignore", "-c", FROZEN, server.url, f"{LEASE}"),
            env=environment(),
            stdin=PIPE,
            stdout=PIPE,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            fence = int((await process.stdout.readline()).split()[1])
            for _ in range(3):  # the thread renews, although the loop waits for us
                await asyncio.sleep(LEASE / 2)
                process.stdin.write(b"\n")
                assert await process.stdout.readline() == b"held\n"
            process.send_signal(signal.SIGSTOP)
            admission = RemoteAdmission(server.url, lease=LEASE)
            successor = await admission.acquire("tools", timeout=BACK_WITHIN)
            await asyncio.sleep(LEASE)
            process.send_signal(signal.SIGCONT)
            process.stdin.write(b"\n")
            async with asyncio.timeout(5):
                assert await process.stdout.readline() == b"lost\n"
                assert await process.stdout.readline() == b"released False\n"
            await admission.refresh()
            assert not successor.released
            assert successor.fence > fence
            successor.release()
            async with asyncio.timeout(10):
                word, _, again = (await process.stdout.readline()).partition(b" ")
            assert (word, int(again) > successor.fence) == (b"again", True)
            await admission.aclose()
        finally:
            with suppress(ProcessLookupError):  # it has ended by itself
                process.kill()
            await process.wait()
