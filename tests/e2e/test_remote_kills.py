"""Permits of a server in many processes, which are killed, frozen and left without their server.

A counter that knows nothing of Interlock sees who is inside: every piece of work holds a connection to it,
and the system closes those of the dead. A run prints its seed; ``E2E_SEED=…`` repeats its moments.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from asyncio.subprocess import PIPE
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from random import Random

import pytest

from e2e.observe import until
from gateways import call
from interlock.admission.permit import Permit
from interlock.admission.remote import RemoteAdmission
from processes import environment, serve

SEED = int(os.environ.get("E2E_SEED", time.time_ns() % 1_000_000))
LIMIT = 4
LEASE = 1.0
JSON = (b"content-type", b"application/json")
BACK_WITHIN = LEASE + 6.0
CONFIG = f"""\
store = "sqlite:///interlock.db"

[limits]
tools = {LIMIT}
"""


@pytest.fixture
def dice() -> Random:
    print(f"E2E_SEED={SEED}")
    return Random(SEED)


class Inside:
    """Counts who is inside: from when it has said so until it says that it leaves, or is cut off."""

    def __init__(self) -> None:
        self.now = 0
        self.peak = 0
        self.served = 0
        self.port = 0

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        self.now += 1
        self.peak = max(self.peak, self.now)
        writer.write(b"in\n")
        try:
            await reader.readline()  # until it leaves, or dies
        except ConnectionError:
            pass
        finally:
            self.now -= 1
            self.served += 1
            writer.write(b"out\n")
            writer.close()


@asynccontextmanager
async def counter() -> AsyncIterator[Inside]:
    inside = Inside()
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        with suppress(asyncio.CancelledError):
            await inside.connected(reader, writer)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    inside.port = server.sockets[0].getsockname()[1]
    try:
        yield inside
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


WORKERS = """
import asyncio, logging, os, random, signal, sys, time
from interlock.admission.remote import RemoteAdmission

URL, PORT, LEASE, LONGEST = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
logging.basicConfig(level=logging.ERROR)

async def work(admission):
    while True:
        async with admission.acquire("tools", timeout=60) as permit:
            reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
            writer.write(b"in\\n")
            await reader.readline()
            os.write(1, b"in %d\\n" % os.getpid())
            ends = time.monotonic() + random.uniform(0.01, LONGEST)
            while time.monotonic() < ends and not permit.lost:
                await asyncio.sleep(0.01)
            if permit.lost:
                os.write(1, b"lost %d\\n" % os.getpid())
            writer.write(b"out\\n")
            await reader.readline()  # it has been counted out before anybody else can be let in
            writer.close()

async def main():
    admission = RemoteAdmission(URL, lease=LEASE)
    await asyncio.gather(*(work(admission) for _ in range(3)))

signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while sys.stdin.readline():
    if os.fork() == 0:
        asyncio.run(main())
"""
"""A process that has everything loaded and becomes two with every line it is given. The new one works for
ever, in three tasks; it says its number when it is inside, and when it was inside without a permit."""


class Workers:
    """The processes that `WORKERS` makes."""

    def __init__(self, add: Callable[[], None]) -> None:
        self.add = add
        self.entered: Counter[int] = Counter()
        self.lost: Counter[int] = Counter()
        self.dead: set[int] = set()

    @property
    def alive(self) -> list[int]:
        return sorted(self.entered.keys() - self.dead)

    def kill(self, process_id: int) -> None:
        os.kill(process_id, signal.SIGKILL)
        self.dead.add(process_id)

    async def there(self, count: int) -> None:
        """Return once *count* processes that live have been inside."""

        async def enough() -> bool:
            return len(self.alive) >= count

        await until(enough, f"{count} processes at work", within=20.0)

    async def going_on(self, more: int, within: float = 20.0) -> float:
        """Return once *more* pieces of work have begun; how long that took."""
        wanted = self.entered.total() + more

        async def enough() -> bool:
            return self.entered.total() >= wanted

        return await until(enough, f"{more} more pieces of work", within=within)


@asynccontextmanager
async def workers(url: str, inside: Inside, longest: float = 0.04) -> AsyncIterator[Workers]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", WORKERS, url, f"{inside.port}", f"{LEASE}", f"{longest}"),
        env=environment(),
        stdin=PIPE,
        stdout=PIPE,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    write, stdout = process.stdin.write, process.stdout
    team = Workers(lambda: write(b"one more\n"))

    async def listen() -> None:
        async for line in stdout:
            word, _, process_id = line.partition(b" ")
            (team.entered if word == b"in" else team.lost)[int(process_id)] += 1

    listening = asyncio.create_task(listen())
    try:
        yield team
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        await listening


async def used(url: str) -> int:
    """Units of ``tools`` that the server counts."""
    admission = RemoteAdmission(url)
    try:
        await admission.refresh()
        return admission.limits()["tools"].used
    finally:
        await admission.aclose()


async def killed_at_random(tmp_path: Path, dice: Random, rounds: int) -> None:
    async with (
        counter() as inside,
        serve(tmp_path, CONFIG) as server,
        workers(server.url, inside) as team,
    ):
        for _ in range(8):
            team.add()
        await team.there(8)
        for _ in range(rounds):
            for process_id in dice.sample(team.alive, dice.randrange(1, 4)):
                await asyncio.sleep(dice.uniform(0, 0.1))
                team.kill(process_id)
                team.add()
            await team.there(8)
            await team.going_on(20)
        took = await team.going_on(50)
        for process_id in team.alive:
            team.kill(process_id)

        async def free() -> bool:
            return await used(server.url) == 0

        back = await until(free, "all capacity back", within=BACK_WITHIN, every=0.1)
        print(
            f"{inside.served} pieces of work, {team.lost.total()} lost, {len(team.dead)} processes killed, "
            f"never more than {inside.peak} inside; 50 took {took:.2f} s; all was free "
            f"{back:.2f} s after the last had died"
        )
        assert inside.peak == LIMIT
        assert team.lost.total() == 0
        assert server.stderr() == ""


async def test_killed_processes_leave_nothing_behind(tmp_path: Path, dice: Random) -> None:
    """Eight of them, three tasks each, over a limit of four, killed at any moment: never more than four
    inside, the others go on, and what the dead held is free within a lease and six seconds."""
    await killed_at_random(tmp_path, dice, rounds=3)


@pytest.mark.deep
async def test_killed_processes_leave_nothing_behind_for_long(tmp_path: Path, dice: Random) -> None:
    """The same, forty times over."""
    await killed_at_random(tmp_path, dice, rounds=120)


async def restarted_at_random(tmp_path: Path, dice: Random, rounds: int) -> None:
    async with AsyncExitStack() as stack:
        inside = await stack.enter_async_context(counter())
        server = await stack.enter_async_context(serve(tmp_path, CONFIG))
        port = int(server.url.rpartition(":")[2])
        # Some work lasts longer than the server is away, some longer than the lease.
        team = await stack.enter_async_context(workers(server.url, inside, longest=1.5))
        for _ in range(4):
            team.add()
        await team.there(3)
        took = []
        for _ in range(rounds):
            await asyncio.sleep(dice.uniform(0, 0.5))
            server.process.kill()
            await server.process.wait()
            if dice.random() < 0.5:
                team.kill(dice.choice(team.alive))  # its units are known to nobody now
                team.add()
            await asyncio.sleep(dice.uniform(0, 0.3))
            server = await stack.enter_async_context(serve(tmp_path, CONFIG, port=port))
            took.append(await team.going_on(6))
            assert inside.peak <= LIMIT
        print(
            f"{inside.served} pieces of work, {rounds} restarts, never more than {inside.peak} inside, "
            f"going on after {max(took):.2f} s at the most, {team.lost.total()} lost"
        )
        assert inside.peak == LIMIT


async def test_a_killed_server_is_told_what_is_held(tmp_path: Path, dice: Random) -> None:
    """It dies while permits are held, and comes back: never more than the limit inside, also where a holder
    died with it, and everybody goes on."""
    await restarted_at_random(tmp_path, dice, rounds=3)


@pytest.mark.deep
async def test_a_killed_server_is_told_what_is_held_for_long(tmp_path: Path, dice: Random) -> None:
    """The same, thirty times."""
    await restarted_at_random(tmp_path, dice, rounds=30)


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
