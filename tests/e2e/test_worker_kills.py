"""Workers and control planes that share a PostgreSQL, killed under load: order, slots and logs stay right.

Clients talk to any control plane; a program that shares no code with Interlock compares what they were told
with what is stored in the end (`session_checker`). A run prints its seed; ``SEED=…`` repeats its moments.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random

import asyncpg
import pytest

import interlock
from e2e.observe import until
from e2e.session_load import Book, Load
from processes import environment

SEED = int(os.environ.get("SEED", time.time_ns() % 1_000_000))
HERE = Path(__file__).parent
SOURCE = str(Path(interlock.__file__).parents[1])
LEASE = "2s"


@pytest.fixture
def dice() -> Random:
    print(f"SEED={SEED}")
    return Random(SEED)


class Crew:
    """Processes over one database, as many as are started."""

    def __init__(self, directory: Path, database: str) -> None:
        self.directory = directory
        self.database = database
        self.histories = directory / "histories"
        self.histories.mkdir()
        (directory / "interlock.toml").write_text(f'store = "{database}"\n', encoding="utf-8")
        self.book = Book(self.histories, "crew")
        self.processes: list[Process] = []

    async def start(self, *words: str, ready: bytes) -> tuple[Process, str]:
        """A process that has said *ready*; the rest of that line."""
        with (self.directory / "stderr").open("ab") as errors:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "interlock.cli", *words),
                cwd=self.directory,
                env=environment({"PYTHONPATH": os.pathsep.join((f"{HERE}", SOURCE))}),
                stdin=DEVNULL,
                stdout=PIPE,
                stderr=errors,
            )
        self.processes.append(process)
        assert process.stdout is not None
        async with asyncio.timeout(30):
            while not (said := re.search(ready, await process.stdout.readline())):
                assert not process.stdout.at_eof(), f"it ended: {self.stderr()}"
        return process, said[1].decode()

    async def control(self) -> str:
        """A control plane without agents; its URL."""
        return (await self.start("serve", "--port", "0", ready=rb"(http://[^\s/]+:[0-9]+)"))[1]

    async def worker(self) -> Process:
        """A worker that waits for work."""
        words = ("worker", "--agents", "session_agents:worker", "--lease", LEASE)
        return (await self.start(*words, ready=rb"worker for (\w+)"))[0]

    async def busy(self, workers: list[Process]) -> list[Process]:
        """Those that hold a session, once there are any."""
        found: list[Process] = []

        async def some() -> bool:
            held = "SELECT pid FROM interlock.workers JOIN interlock.sessions ON held_by = workers.id"
            pids = {row["pid"] for row in await self.rows(held)}
            found[:] = [worker for worker in workers if worker.pid in pids]
            return bool(found)

        await until(some, "a worker that holds a session", within=30)
        return found

    async def kill(self, worker: Process) -> int:
        """Kill it; where the logs of its sessions ended is written down. How many those were."""
        worker.kill()
        await worker.wait()
        return await self.gone(worker)

    async def gone(self, worker: Process) -> int:
        """Write down where the logs of the sessions ended that this one held, which does nothing now."""
        await asyncio.sleep(0.3)  # what it had sent to the database is done; its lease runs much longer
        found = await self.rows(
            "SELECT sessions.id, last_sequence FROM interlock.sessions JOIN interlock.workers"
            " ON workers.id = held_by WHERE pid = $1",
            worker.pid,
        )
        self.book.write("killed", sequences=dict(found))
        return len(found)

    async def rows(self, sql: str, *values: object) -> list[asyncpg.Record]:
        """What the database says."""
        db = await asyncpg.connect(self.database)
        try:
            return list(await db.fetch(sql, *values))
        finally:
            await db.close()

    def stderr(self) -> str:
        """What all of them have written there."""
        return (self.directory / "stderr").read_text(encoding="utf-8", errors="replace")

    async def judged(self, url: str) -> str:
        """What the checker says of it all; raises AssertionError with every violation."""
        checker = HERE / "session_checker.py"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-E", "-s", "-S", checker, self.histories, "--url", url, "--finished"),
            stdout=PIPE,
            stderr=PIPE,
        )
        stdout, stderr = await process.communicate()
        assert process.returncode == 0, stdout.decode()[:6000] + stderr.decode()
        return stdout.decode()


@asynccontextmanager
async def crew(directory: Path, database: str) -> AsyncIterator[Crew]:
    found = Crew(directory, database)
    try:
        yield found
    except BaseException as error:
        error.add_note(f"standard error of all:\n{found.stderr()[-4000:]}")
        raise
    finally:
        found.book.close()
        for process in found.processes:
            with suppress(ProcessLookupError):
                process.kill()
            await process.communicate()


async def killed_at_random(directory: Path, database: str, dice: Random, kills: int) -> str:
    async with crew(directory, database) as processes:
        workers = [await processes.worker() for _ in range(2)]
        urls = [await processes.control() for _ in range(2)]
        async with Load(urls[0], processes.histories, dice, sessions=6, also=(urls[1],)) as load:
            taken = 0
            for _ in range(kills):
                await asyncio.sleep(dice.uniform(0.3, 1.5))
                victim = dice.choice(await processes.busy(workers))
                workers.remove(victim)
                taken += await processes.kill(victim)
                workers.append(await processes.worker())
                if dice.random() < 0.5:  # the next dies before, or after, the sessions of this one are taken
                    await asyncio.sleep(dice.uniform(0, 3))
            await load.finish(60)
            said = await processes.judged(dice.choice(urls))
        assert taken, "none of those that were killed held a session"
        for worker in workers:
            worker.terminate()
        assert [await worker.wait() for worker in workers] == [0, 0]
        assert {status for status, _ in load.refusals} <= {429, 503}
        return said


async def test_killed_workers_leave_nothing_undone(tmp_path: Path, postgres_url: str, dice: Random) -> None:
    """Each time one of two is killed, its runs end interrupted or run again, and others take its sessions."""
    print(await killed_at_random(tmp_path, postgres_url, dice, kills=2))


@pytest.mark.deep
async def test_a_frozen_worker_wakes_to_find_its_sessions_taken(
    tmp_path: Path, postgres_url: str, dice: Random
) -> None:
    """Stopped for longer than its lease, it writes nothing late, and goes on as a worker without sessions."""
    async with crew(tmp_path, postgres_url) as processes:
        frozen = await processes.worker()
        url = await processes.control()
        async with Load(url, processes.histories, dice) as load:
            await asyncio.sleep(1)
            frozen.send_signal(signal.SIGSTOP)
            assert await processes.gone(frozen)
            other = await processes.worker()

            async def taken() -> bool:
                pids = await processes.rows(
                    "SELECT pid FROM interlock.sessions JOIN interlock.workers ON workers.id = held_by"
                    " WHERE key IN (SELECT session FROM interlock.runs WHERE ended_at IS NULL)"
                )
                holders = [row["pid"] for row in pids]
                return other.pid in holders and frozen.pid not in holders

            await until(taken, "another has its sessions", within=60)
            frozen.send_signal(signal.SIGCONT)
            await asyncio.sleep(1)
            await load.finish(60)
            print(await processes.judged(url))
        for worker in (frozen, other):
            worker.terminate()
            assert await worker.wait() == 0
        assert "lost its lease" in processes.stderr()


@pytest.mark.deep
@pytest.mark.timeout(900)
async def test_killed_workers_leave_nothing_undone_for_long(
    tmp_path: Path, postgres_url: str, dice: Random
) -> None:
    """The same, fifty times."""
    print(await killed_at_random(tmp_path, postgres_url, dice, kills=50))
