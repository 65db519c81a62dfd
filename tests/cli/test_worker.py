"""``interlock worker``, and control planes beside it: real processes over one PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

import interlock
from e2e.observe import until
from processes import command, environment

SOURCE = str(Path(interlock.__file__).parents[1])
AGENTS = """
import asyncio

async def slow(run):
    await run.emit("message_sent", {"text": "begun"})
    await asyncio.sleep(run.input.get("seconds", 0))
    return run.input

ALL = {"slow": slow, "also": slow}
"""


@pytest.fixture
def home(tmp_path: Path, postgres_url: str) -> Path:
    (tmp_path / "interlock.toml").write_text(f'store = "{postgres_url}"\n', encoding="utf-8")
    (tmp_path / "some_agents.py").write_text(AGENTS, encoding="utf-8")
    return tmp_path


@asynccontextmanager
async def running(
    home: Path, *words: str, ready: str = r"(http://\S+:\d+)"
) -> AsyncIterator[tuple[Process, str]]:
    """A process that has said *ready*, and the group in it; killed at the end."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "interlock.cli", *words),
        cwd=home,
        env=environment({"PYTHONPATH": SOURCE}),
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=PIPE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(30):
            while not (said := re.search(ready, (await process.stdout.readline()).decode())):
                assert not process.stdout.at_eof(), (await process.communicate())[1].decode()
        yield process, said[1]
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


def worker(home: Path, *words: str) -> Any:
    return running(home, "worker", *words, ready=r"worker for (.*), state in postgresql://\*\*\*@")


def client(url: str) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(base_url=url, trust_env=False, timeout=30)


async def made(plane: httpx2.AsyncClient, session: str, agent: str) -> None:
    answer = await plane.post("/sessions", json={"id": session, "agent": agent})
    assert answer.status_code == 201, answer.text


async def submitted(plane: httpx2.AsyncClient, session: str, **given: Any) -> str:
    answer = await plane.post(f"/sessions/{session}/runs", json={"input": given})
    assert answer.status_code == 202, answer.text
    run: str = answer.json()["runId"]
    return run


async def begun(plane: httpx2.AsyncClient, run: str) -> None:
    async def started() -> bool:
        return (await plane.get(f"/runs/{run}")).json()["status"] != "pending"

    await until(started, f"{run} has begun", within=20)


async def ended(plane: httpx2.AsyncClient, run: str) -> tuple[str, Any]:
    body = (await plane.get(f"/runs/{run}/wait?timeoutMs=20000")).json()
    return body["status"], body["output"]


async def test_planes_and_workers(home: Path) -> None:
    """A control plane without agents, one that is a worker as well, and a worker: each is shown by all."""
    async with AsyncExitStack() as stack:
        process, names = await stack.enter_async_context(worker(home, "--agents", "some_agents:ALL"))
        assert names == "also, slow"
        _, first = await stack.enter_async_context(running(home, "serve", "--port", "0"))
        own = '\n[agents.mine]\ntype = "python"\ntarget = "some_agents:slow"\n'
        file = home / "interlock.toml"
        (home / "both.toml").write_text(file.read_text(encoding="utf-8") + own, encoding="utf-8")
        both = running(home, "serve", "--port", "0", "--config", "both.toml")
        _, second = await stack.enter_async_context(both)
        planes = [await stack.enter_async_context(client(url)) for url in (first, second)]
        for name, agent in (("s1", "slow"), ("s2", "mine"), ("s3", "also")):
            await made(planes[0], name, agent)
            run = await submitted(planes[1], name, n=1)
            assert await ended(planes[0], run) == ("completed", {"n": 1})
        answer = await planes[1].post("/sessions", json={"agent": "nobody"})
        assert (answer.status_code, "also, mine, slow" in answer.json()["detail"]) == (400, True)
        shown = (await planes[0].get("/workers")).json()["workers"]
        assert {(one["pid"] == process.pid, *one["agents"], one["state"]) for one in shown} == {
            (True, "also", "slow", "working"),
            (False, "mine", "working"),
        }
        status = await command("status", "--url", first, cwd=home, env={"PYTHONPATH": SOURCE})
        assert f":{process.pid}" in status.stdout
        assert "also, slow" in status.stdout
        as_json = await command("status", "--json", "--url", second, cwd=home, env={"PYTHONPATH": SOURCE})
        assert len(json.loads(as_json.stdout)["workers"]) == 2


async def test_a_worker_that_is_told_to_stop_finishes_what_runs(home: Path) -> None:
    """What waits is another's at once; a second signal does not wait."""
    async with AsyncExitStack() as stack:
        first, _ = await stack.enter_async_context(worker(home, "--agents", "some_agents:slow"))
        _, url = await stack.enter_async_context(running(home, "serve", "--port", "0"))
        plane = await stack.enter_async_context(client(url))
        for name in ("s", "t"):
            await made(plane, name, "slow")
        runs = [await submitted(plane, "s", seconds=1.5), await submitted(plane, "s", seconds=0)]
        await begun(plane, runs[0])
        shown = (await plane.get("/sessions/s")).json()
        assert (shown["inFlightRuns"], shown["queuedRuns"]) == ([runs[0]], [runs[1]])
        waits = (await plane.get(f"/runs/{runs[1]}")).json()
        assert (waits["status"], waits["position"]) == ("pending", 1)
        second, _ = await stack.enter_async_context(worker(home, "--agents", "some_agents:slow"))
        first.terminate()
        assert await ended(plane, runs[0]) == ("completed", {"seconds": 1.5})
        assert await ended(plane, runs[1]) == ("completed", {"seconds": 0})
        assert await first.wait() == 0
        held_up = await submitted(plane, "t", seconds=3600)
        await begun(plane, held_up)
        second.terminate()
        assert second.stderr is not None
        assert b"finishing 1 runs" in await second.stderr.readline()
        second.terminate()
        async with asyncio.timeout(10):
            assert await second.wait() == 1
        assert (await ended(plane, held_up))[0] == "interrupted"
        assert (await plane.get("/workers")).json()["workers"] == []


async def test_commands_that_open_the_store_may_beside_others(home: Path) -> None:
    """A token that is made without asking the server counts there within a second; prune and doctor work."""
    env = {"PYTHONPATH": SOURCE}
    async with running(home, "serve", "--port", "0") as (_, url), client(url) as plane:
        assert (await plane.get("/workers")).status_code == 200
        made_ = await command("token", "create", "root", "--scope", "admin", cwd=home, env=env)
        assert (made_.code, made_.stdout[:3]) == (0, "il_"), made_.stderr

        async def closed() -> bool:
            return (await plane.get("/workers")).status_code == 401

        await until(closed, "the token counts")
        pruned = await command("prune", "--json", cwd=home, env=env)
        assert json.loads(pruned.stdout)["removedSessions"] == 0, pruned.stderr
    found = await command("doctor", "--json", cwd=home, env=env)
    [store] = [one for one in json.loads(found.stdout)["findings"] if one["about"] == "store"]
    assert store["what"] == "the database is whole"


@pytest.mark.parametrize(
    ("words", "config", "code", "said"),
    [
        ("--agents some_agents:slow", "", 2, "store is sqlite:///interlock.db, which one process has for"),
        ("", "postgres", 2, "there is no agent: name one with --agents module:name"),
        ("--agents some_agents:none", "postgres", 2, "cannot be imported"),
        ("--agents some_agents:slow --lease 0s", "postgres", 2, "allowed are durations from 1s on"),
        (
            "--agents some_agents:slow",
            'store = "postgresql://u:canary@127.0.0.1:1/d"',
            1,
            "cannot be reached",
        ),
    ],
)
async def test_what_no_worker_can_do_is_one_line(
    words: str, config: str, code: int, said: str, home: Path
) -> None:
    """It says what is wrong and what to do, and no password."""
    if config != "postgres":
        (home / "interlock.toml").write_text(config, encoding="utf-8")
    done = await command("worker", *words.split(), cwd=home, env={"PYTHONPATH": SOURCE})
    assert (done.code, done.stdout) == (code, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert "canary" not in done.stderr
