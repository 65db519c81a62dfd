"""Agents that are processes: what they answer, how they end, and that nothing is left of them."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest

from interlock.agents import ProcessAgent
from interlock.errors import (
    AgentLost,
    AgentStartFailed,
    InvalidOperation,
    RunFailed,
    RunTimedOut,
    ValidationError,
)
from interlock.pool import AgentPool, PoolStats
from interlock.testing import VirtualClock
from interlock.testing.virtual_time import idle

TALKER = [sys.executable, "-S", "-E", str(Path(__file__).with_name("talker.py"))]


@asynccontextmanager
async def talker(*arguments: str, **options: Any) -> AsyncIterator[ProcessAgent]:
    agent = await ProcessAgent.start([*TALKER, *arguments], **options)
    try:
        yield agent
    finally:
        agent.kill()
        await agent.close()
        assert not group_lives(agent.pid)


def group_lives(pid: int) -> bool:
    """Whether a process of the group *pid* runs still; those that only wait to be reaped do not."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, group = stat.read_text().rpartition(")")[2].split()[:3]
            if int(group) == pid and state != "Z":
                return True
    return False


async def until(true: Callable[[], bool]) -> None:
    """Return once *true* says so: there is nothing that could be awaited."""
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110 - the kernel does not tell us
            await asyncio.sleep(0.01)


def gone(pid: int) -> bool:
    """Whether the process *pid*, no child of ours, has ended; it may wait to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


# -- answers


async def test_it_answers() -> None:
    async with talker() as agent:
        for value in ("hello", {"a": [1, 2.5, None, True]}, "ümläut \u2028 \ud800", "line\nbreak", ""):
            assert await agent.run({"do": "echo", "value": value}) == value
        assert await agent.run({"do": "pid"}) == agent.pid
        assert agent.alive
        assert repr(agent).endswith("alive>")


async def test_an_error_that_it_answers_with_is_its_answer() -> None:
    """The agent is as good as before."""
    async with talker() as agent:
        with pytest.raises(RunFailed, match="answered with an error: no such file") as failed:
            await agent.run({"do": "fail", "error": "no such file"})
        assert failed.value.details == {"error": "no such file"}
        assert agent.alive
        assert await agent.run({"do": "echo", "value": 1}) == 1


async def test_what_cannot_be_sent_is_not() -> None:
    """Neither does it reach the agent, nor does it harm it."""
    async with talker(line_max=1000) as agent:
        for payload in (object(), {"x": float("nan")}, {1: {2: b"x"}}):
            with pytest.raises(ValidationError, match="nothing that JSON can say"):
                await agent.run(payload)
        with pytest.raises(ValidationError, match="allowed are 1000"):
            await agent.run({"do": "echo", "value": "x" * 1000})
        assert await agent.run({"do": "echo", "value": 1}) == 1


async def test_environment_and_directory(tmp_path: Path) -> None:
    async with talker(env={**os.environ, "WHO": "ada"}, cwd=tmp_path) as agent:
        assert await agent.run({"do": "environment"}) == ["ada", str(tmp_path.resolve())]


async def test_one_request_at_a_time() -> None:
    async with talker() as agent:
        first = asyncio.create_task(agent.run({"do": "hang"}))
        await idle()
        with pytest.raises(InvalidOperation, match="one request at a time"):
            await agent.run({"do": "echo", "value": 1})
        first.cancel()
        await asyncio.wait([first])


async def test_it_may_chatter_on_standard_error() -> None:
    """Nobody has to read it, and only the end of it is kept."""
    async with talker() as agent:
        assert await agent.run({"do": "chatter", "bytes": 1_000_000}) == "done"
        assert agent._group._tail_bytes < 3 * 4096


# -- what goes wrong


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"do": "garbage", "text": "Traceback (most recent"}, "something else than an answer: 'Traceback"),
        ({"do": "garbage", "text": "[1, 2]"}, "something else than an answer"),
        ({"do": "garbage", "text": ""}, "something else than an answer: ''"),
        ({"do": "garbage", "text": '{"id": 1}'}, "something else than an answer"),
        ({"do": "garbage", "text": "[" * 100_000}, "something else than an answer"),
        ({"do": "wrong id"}, "answered to request 8 instead of 1"),
        ({"do": "long", "bytes": 200_000}, "wrote a line of more than 150000 bytes"),
        ({"do": "exit", "status": 3}, r"ended without an answer \(exit status 3\); .*\nI am leaving"),
    ],
)
async def test_one_that_cannot_be_understood_is_killed(request_: dict[str, Any], message: str) -> None:
    """The error names the command and what it said."""
    async with talker(line_max=150_000) as agent:
        with pytest.raises(AgentLost, match=message) as lost:
            await agent.run(request_)
        assert "talker.py` (process " in str(lost.value)
        assert lost.value.retryable
        assert not agent.alive
        with pytest.raises(AgentLost, match="has ended"):
            await agent.run({"do": "echo", "value": 1})


async def test_a_killed_one_says_by_what() -> None:
    async with talker() as agent:
        running = asyncio.create_task(agent.run({"do": "hang"}))
        await idle()
        os.kill(agent.pid, signal.SIGKILL)
        with pytest.raises(AgentLost, match=r"ended without an answer \(killed by signal 9"):
            await running


async def test_one_that_takes_too_long_is_killed() -> None:
    """Its answer would be taken for that to the next request."""
    clock = VirtualClock()
    async with talker(clock=clock) as agent:
        assert await agent.run({"do": "echo", "value": 1}, timeout=60) == 1
        running = asyncio.create_task(agent.run({"do": "hang"}, timeout=60))
        await clock.advance(59)
        assert agent.alive
        await clock.advance(1)
        with pytest.raises(RunTimedOut, match="gave no answer within 60 s"):
            await running
        assert not agent.alive
        await agent.wait_closed()


async def test_one_whose_run_is_cancelled_is_killed() -> None:
    async with talker() as agent:
        running = asyncio.create_task(agent.run({"do": "hang"}))
        await idle()
        running.cancel()
        await asyncio.wait([running])
        assert running.cancelled()
        assert not agent.alive
        await agent.wait_closed()


@pytest.mark.parametrize("command", [["/no/such/program"], [str(Path(__file__))], ["a\0b"]])
async def test_what_cannot_be_run(command: list[str]) -> None:
    with pytest.raises(AgentStartFailed, match="could not be started"):
        await ProcessAgent.start(command)


@pytest.mark.parametrize("command", [[], "echo hello"])
async def test_what_is_no_command(command: Any) -> None:
    with pytest.raises(ValidationError, match="a program and its arguments"):
        await ProcessAgent.start(command)


# -- ending


async def test_closing_lets_it_end() -> None:
    agent = await ProcessAgent.start(TALKER)
    await agent.close()
    assert agent._group.returncode == 0
    assert not agent.alive
    await agent.close()
    await agent.wait_closed()


async def test_one_that_does_not_end_is_killed() -> None:
    clock = VirtualClock()
    agent = await ProcessAgent.start([*TALKER, "deaf"], clock=clock)
    closing = asyncio.create_task(agent.close(grace=5))
    await clock.advance(4.9)
    assert not closing.done()
    await clock.advance(0.1)
    await closing
    assert agent._group.returncode == -signal.SIGKILL


async def test_a_cancelled_close_kills() -> None:
    agent = await ProcessAgent.start([*TALKER, "deaf"], clock=VirtualClock())
    closing = asyncio.create_task(agent.close(grace=5))
    await idle()
    closing.cancel()
    await asyncio.wait([closing])
    await agent.wait_closed()
    await agent.close()


@pytest.mark.parametrize("how", ["close", "kill", "its own end"])
async def test_its_children_go_with_it(how: str) -> None:
    """Also where it ends by itself, or is killed by somebody else, and leaves them."""
    agent = await ProcessAgent.start(TALKER)
    child = await agent.run({"do": "child"})
    if how == "close":
        await agent.close()
    elif how == "kill":
        agent.kill()
    else:
        os.kill(agent.pid, signal.SIGKILL)
    await until(lambda: gone(child))
    await agent.close()
    assert not group_lives(agent.pid)


async def test_a_child_that_left_does_not_keep_us() -> None:
    """One in a session of its own is not ours to kill; it holds the pipes open, and nobody waits for that."""
    agent = await ProcessAgent.start(TALKER)
    child = await agent.run({"do": "child", "leaves": True})
    try:
        os.kill(agent.pid, signal.SIGKILL)
        async with asyncio.timeout(1):
            await agent.wait_closed()
        await agent.close()
    finally:
        os.kill(child, signal.SIGKILL)


async def test_a_start_that_is_cancelled_leaves_no_process() -> None:
    """Wherever in starting it is cancelled."""
    before = children()
    for steps in range(12):
        starting = asyncio.create_task(ProcessAgent.start(TALKER))
        for _ in range(steps):
            await asyncio.sleep(0)
        starting.cancel()
        await asyncio.wait([starting])
        if not starting.cancelled():
            await starting.result().close()
        await until(lambda: not children() - before)


def children() -> set[int]:
    """The processes that this one has started, until the event loop knows that they have ended."""
    found: set[int] = set(getattr(asyncio.get_child_watcher(), "_threads", ()))
    for directory in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # gone meanwhile
            parent = (directory / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == os.getpid():
                found.add(int(directory.name))
    return found


# -- a pool of them


async def test_a_pool_whose_processes_are_killed_at_random(record_property: Any) -> None:
    """Every transaction ends well or with a clear error, nothing is lost, and no process is left behind."""
    seed = int(os.environ.get("SEED", Random().randrange(10**6)))
    record_property("seed", seed)
    print("seed", seed)
    random = Random(seed)
    before = children()
    started: list[ProcessAgent] = []

    async def factory() -> ProcessAgent:
        started.append(await ProcessAgent.start(TALKER))
        return started[-1]

    answers: dict[int, int] = {}
    errors: list[BaseException] = []

    async def work(pool: AgentPool[ProcessAgent], number: int) -> None:
        while number not in answers:
            try:
                answer = await pool.transaction(
                    lambda agent: agent.run({"do": "echo", "value": number}), timeout=60
                )
            except (AgentLost, AgentStartFailed) as error:
                errors.append(error)
            else:
                answers[number] = answer

    async def kill(working: asyncio.Event) -> None:
        for _ in range(25):
            await asyncio.sleep(random.random() * 0.02)
            alive = [agent for agent in started if agent.alive]
            with suppress(ProcessLookupError, IndexError):  # it may be dead already without our knowing
                os.kill(random.choice(alive).pid, signal.SIGKILL)
        working.set()

    async with AgentPool(factory, 3, 1, retry_delay=0.01) as pool:
        killed = asyncio.Event()
        number = 0
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(kill(killed))

            async def client() -> None:
                nonlocal number
                while not killed.is_set():
                    number += 1
                    await work(pool, number)

            for _ in range(6):
                tasks.create_task(client())
        assert answers == {one: one for one in range(1, number + 1)}
        assert all("talker.py" in str(error) or error.__cause__ for error in errors)
        # An overflow agent that was started when nobody needed it any more waits for its first user, beside
        # the others or in a vacant place, which is its own when it comes back.
        whole = [PoolStats(3, 3, 0, 0, 1, 0), PoolStats(3, 4, 0, 1, 1, 0), PoolStats(3, 3, 0, 1, 1, 0)]
        await until(lambda: pool.stats() in whole and not pool.stats().starting)
        assert len([agent for agent in started if agent.alive]) == pool.stats().available
    assert len(started) > 10
    await until(lambda: children() <= before)
    assert not any(group_lives(agent.pid) for agent in started)
