"""A server of sessions is killed under load again and again, told to stop, and left without disk.

Its clients write down what they were told; a program that shares no code with it compares that with what is
stored in the end (`session_checker`). A run prints its seed; ``SEED=…`` repeats its moments.
"""

from __future__ import annotations

import asyncio
import os
import re
import resource
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import aiohttp
import pytest

from e2e.histories import Book
from e2e.observe import until
from e2e.session_content import ends_of_logs
from e2e.session_load import Load
from processes import environment

SEED = int(os.environ.get("SEED", time.time_ns() % 1_000_000))
HERE = Path(__file__).parent
CHECKER = HERE / "session_checker.py"
STOP_SECONDS = 15.0
CONFIG = """\
store = "sqlite:///interlock.db"

[limits]
runs = 6

[agents.worker]
type = "python"
target = "session_agents:worker"
"""


@pytest.fixture
def dice() -> Random:
    print(f"SEED={SEED}")
    return Random(SEED)


class Serving:
    """``interlock serve`` on one file and one port, as often as it is started."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.histories = directory / "histories"
        self.histories.mkdir()
        (directory / "interlock.toml").write_text(CONFIG, encoding="utf-8")
        self.database = directory / "interlock.db"
        self.book = Book(self.histories, "server")
        self.port = 0
        self.process: Process | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stderr(self) -> str:
        return (self.directory / "serve.stderr").read_text(encoding="utf-8", errors="replace")

    async def spawn(self) -> Process:
        """Start it; it may take a while until it listens."""
        with (self.directory / "serve.stderr").open("ab") as errors:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "interlock.cli", "serve", "--port", f"{self.port}"),
                cwd=self.directory,
                env=environment({"PYTHONPATH": f"{HERE}"}),
                stdin=DEVNULL,
                stdout=PIPE,
                stderr=errors,
            )
        return self.process

    async def start(self) -> None:
        """Start it; it listens when this returns."""
        process = await self.spawn()
        assert process.stdout is not None
        async with asyncio.timeout(30):
            while not (said := re.search(rb"http://[^\s/]+:([0-9]+)", await process.stdout.readline())):
                assert not process.stdout.at_eof(), f"it ended: {self.stderr()}"
        self.port = int(said[1])
        self.book.write("started")

    async def kill(self) -> None:
        """Kill it; where its logs ended is written down."""
        assert self.process is not None
        self.process.kill()
        await self.process.communicate()
        # Before its first migration there is nothing yet.
        self.book.write("killed", sequences=ends_of_logs(self.database) if self.port else {})

    def fill_disk(self) -> None:
        """From now on, no file of its can grow, nor be written behind its first page."""
        assert self.process is not None
        self.book.write("full")
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))

    def clear_disk(self) -> None:
        """There is room again."""
        assert self.process is not None
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, unlimited)

    async def stop(self) -> int:
        """Tell it to stop; its exit code."""
        assert self.process is not None
        self.process.terminate()
        async with asyncio.timeout(STOP_SECONDS):
            await self.process.communicate()
        self.book.write("stopped", sequences=ends_of_logs(self.database))
        assert self.process.returncode is not None
        return self.process.returncode


@asynccontextmanager
async def serving(directory: Path) -> AsyncIterator[Serving]:
    server = Serving(directory)
    try:
        await server.start()
        yield server
    except BaseException as error:
        error.add_note(f"standard error of the server:\n{server.stderr()[-4000:]}")
        raise
    finally:
        server.book.close()
        if server.process is not None and server.process.returncode is None:
            server.process.kill()
            await server.process.communicate()


async def judged(server: Serving, *more: str) -> str:
    """What the checker says of it all; raises AssertionError with every violation."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-E", "-s", "-S", CHECKER, server.histories, "--database", server.database, *more),
        stdout=PIPE,
        stderr=PIPE,
    )
    stdout, stderr = await process.communicate()
    assert process.returncode == 0, stdout.decode()[:6000] + stderr.decode()
    return stdout.decode()


async def killed_at_random(tmp_path: Path, dice: Random, kills: int) -> str:
    async with serving(tmp_path) as server:
        async with Load(server.url, server.histories, dice) as load:
            for _ in range(kills):
                await asyncio.sleep(dice.uniform(0, 0.35))
                await server.kill()
                if dice.random() < 0.15:  # it dies again, before it has come up
                    await server.spawn()
                    await asyncio.sleep(dice.uniform(0.2, 0.8))
                    await server.kill()
                await server.start()
            await load.finish()
            said = await judged(server, "--url", server.url, "--finished")
        assert await server.stop() == 0
        assert await judged(server, "--finished")
        assert server.stderr() == ""
        assert {status for status, _ in load.refusals} <= {429, 503}
        return said


async def test_killed_servers_lose_nothing(tmp_path: Path, dice: Random) -> None:
    """Twenty kills at any moment, also while it starts: no submit and no event that anybody was told of is
    lost, doubled or changed, and every run ends once."""
    print(await killed_at_random(tmp_path, dice, kills=20))


@pytest.mark.deep
async def test_killed_servers_lose_nothing_for_long(tmp_path: Path, dice: Random) -> None:
    """The same, two hundred times."""
    print(await killed_at_random(tmp_path, dice, kills=200))


async def test_a_server_that_is_told_to_stop_keeps_what_it_took(tmp_path: Path, dice: Random) -> None:
    """SIGTERM under load: it ends by itself in time, and the next one goes on with what waited."""
    async with serving(tmp_path) as server:
        async with Load(server.url, server.histories, dice) as load:
            for _ in range(2):
                await until_more(lambda: load.accepted, 30, "acknowledged submits")
                assert await server.stop() == 0
                await judged(server)
                await server.start()
            await load.finish()
        print(await judged(server, "--url", server.url, "--finished"))
        assert {status for status, _ in load.refusals} <= {429, 503}


async def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    """A run that does not end holds the first signal up, not the second; what waited behind it goes on."""
    async with serving(tmp_path) as server, aiohttp.ClientSession(server.url) as client:
        body = {"id": "s", "agent": "worker"}
        async with client.post("/sessions", json=body) as answer:
            assert answer.status == 201
        runs = []
        for does in ("hang", "steps"):
            given = {"input": {"key": does, "does": does, "steps": 0, "pause": 0}}
            async with client.post("/sessions/s/runs", json=given) as answer:
                assert answer.status == 202
                runs.append((await answer.json())["runId"])

        async def running() -> bool:
            async with client.get(f"/runs/{runs[0]}") as answer:
                return (await answer.json())["status"] == "running"

        await until(running, "the first run in flight")
        assert server.process is not None
        server.process.terminate()

        async def draining() -> bool:
            async with client.post("/sessions/s/runs", json=given) as answer:
                assert answer.status in (202, 503)
                return answer.status == 503 and "Retry-After" in answer.headers

        await until(draining, "a refusal")
        assert server.process.returncode is None
        assert await server.stop() == 1
        await server.start()
        ends = []
        for run in runs:
            async with client.get(f"{server.url}/runs/{run}/wait") as answer:
                ends.append((await answer.json())["status"])
        assert ends == ["interrupted", "completed"]


async def test_a_full_disk_takes_nothing_and_loses_nothing(tmp_path: Path, dice: Random) -> None:
    """While nothing can be written: 507 for every submit, and no acknowledgement. With room, it goes on."""
    async with serving(tmp_path) as server:
        async with Load(server.url, server.histories, dice) as load:
            for killed in (False, True):
                await until_more(lambda: load.accepted, 20, "acknowledged submits")
                server.fill_disk()
                await until_more(load.without_disk, 10, "submits refused for want of disk")
                before = load.accepted
                await until_more(load.without_disk, 20, "submits refused for want of disk")
                assert load.accepted == before
                async with load.http.get(f"{server.url}/healthz") as answer:
                    assert answer.status == 200
                if killed:  # in the middle of it; the next one has room again
                    await server.kill()
                    await server.start()
                else:
                    server.clear_disk()
            await until_more(lambda: load.accepted, 20, "acknowledged submits")
            await load.finish()
            print(await judged(server, "--url", server.url, "--finished"))
        assert {status for status, _ in load.refusals} <= {429, 503, 507}


async def until_more(count: Callable[[], int], more: int, what: str) -> None:
    """Return once *count* has grown by *more*."""
    wanted = count() + more

    async def enough() -> bool:
        return count() >= wanted

    await until(enough, f"{more} more {what}", within=30.0)
