"""Programs as agents: what they are given, what becomes of what they say, and what is left: nothing."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from agents.runs import Recorder
from agents.test_process import children, gone, group_lives, until
from interlock.agents import CommandAgent
from interlock.errors import AgentStartFailed, RunCancelled, RunFailed, ValidationError

SPEAKER = [sys.executable, "-S", "-E", str(Path(__file__).with_name("speaker.py"))]


def speaker(*arguments: str, **options: Any) -> CommandAgent:
    return CommandAgent([*SPEAKER, *arguments], **options)


async def started(run: Recorder) -> tuple[int, list[int]]:
    """The processes of a run that is to "do: children", once all of them are there."""
    await until(lambda: "turn_completed" in run.types)
    said = run.of("turn_completed")[0]
    await until(lambda: run.streamed.count("child\n") == len(said["children"]))
    return said["pid"], said["children"]


async def ended(*tasks: asyncio.Task[Any]) -> None:
    async with asyncio.timeout(20):
        await asyncio.wait(tasks)


# -- what it is given


@pytest.mark.parametrize("way", ["stdin", "argument", "environment"])
async def test_it_gets_the_input_and_who_it_is(way: Any, tmp_path: Path) -> None:
    given = {"do": "input", "text": "ümläut \u2028 'quoted' $HOME", "list": [1, 2.5, None]}
    run = Recorder(given)
    output = await speaker(input=way, cwd=tmp_path, env={**os.environ, "WHO": "ada"}).run(run)
    assert output == {"input": given, "names": ["s1", "r1", "1", "ada"], "at": str(tmp_path.resolve())}


async def test_input_that_is_never_read_is_no_error() -> None:
    """It ends early, with most of its input still in the pipe or not even there."""
    for size in (10, 8_000_000):
        assert await speaker("unread").run(Recorder("x" * size)) == "I did not read it"


async def test_input_that_cannot_be_an_argument() -> None:
    with pytest.raises(AgentStartFailed, match="could not be started"):
        await speaker(input="argument").run(Recorder("x" * 8_000_000))


async def test_what_cannot_be_run() -> None:
    with pytest.raises(AgentStartFailed, match="could not be started"):
        await CommandAgent(["/no/such/program"]).run(Recorder())


@pytest.mark.parametrize(
    ("wrong", "names"),
    [
        ({"command": []}, "command"),
        ({"command": "echo hello"}, "command"),
        ({"input": "socket"}, "stdin, argument, environment"),
        ({"output": "xml"}, "json, text"),
        ({"grace": -1}, "grace"),
        ({"grace": float("nan")}, "grace"),
        ({"max_line": 0}, "max_line"),
        ({"max_output": True}, "max_output"),
        ({"capabilities": {"fly"}}, "'pause'"),
    ],
)
def test_what_is_no_command_agent(wrong: dict[str, Any], names: str) -> None:
    with pytest.raises(ValidationError, match=names):
        CommandAgent(**{"command": ["true"], **wrong})


# -- what it says


def said(*lines: str | dict[str, Any]) -> dict[str, Any]:
    texts = [line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines]
    return {"do": "lines", "lines": texts}


async def test_lines_of_json_become_what_they_say() -> None:
    run = Recorder(
        said(
            {"type": "tool_call_started", "data": {"tool_name": "grep", "n": 1}},
            {"type": "turn_completed"},
            {"usage": {"input_tokens": 10, "output_tokens": 3}},
            {"output": "first"},
            {"output": {"last": [1]}, "usage": {"input_tokens": 5}},
        )
    )
    assert await speaker().run(run) == {"last": [1]}
    assert run.events == [
        ("tool_call_started", {"tool_name": "grep", "n": 1}),
        ("turn_completed", {}),
        ("token_usage_updated", {"input_tokens": 10, "output_tokens": 3}),
        ("token_usage_updated", {"input_tokens": 5, "output_tokens": 0}),
    ]
    assert run.used == {"input_tokens": 15, "output_tokens": 3}


@pytest.mark.parametrize(
    "line",
    [
        "hello\n",
        "\n",
        "no end of line",
        "[1, 2]\n",
        "{}\n",
        "null\n",
        '{"type": "run_completed", "data": {}}\n',
        '{"type": "no such type"}\n',
        '{"type": 7}\n',
        '{"type": ["turn_completed"]}\n',
        '{"type": "turn_completed", "data": [1]}\n',
        '{"type": "turn_completed", "more": 1}\n',
        '{"output": 1, "more": 2}\n',
        '{"output": "\\ud800"}\n',
        '{"output": NaN}\n',
        '{"output": 1e999}\n',
        "[" * 5000 + "\n",
    ],
)
async def test_every_other_line_is_streamed_as_it_is(line: str) -> None:
    run = Recorder(said(line))
    assert await speaker().run(run) is None
    assert run.events == [("message_streamed", {"content": line})]


async def test_usage_that_makes_no_sense_counts_nothing() -> None:
    run = Recorder(said({"usage": {"input_tokens": -5, "output_tokens": "7"}}, {"usage": [1]}, {"output": 1}))
    assert await speaker().run(run) == 1
    assert run.used == {"input_tokens": 0, "output_tokens": 0}


async def test_what_is_no_utf_8() -> None:
    run = Recorder(said("caf\xe9 \xff\n", "na\xc3\xafve\n"))
    assert await speaker().run(run) is None
    assert run.streamed == "caf\ufffd \ufffd\nnaïve\n"


async def test_text_is_streamed_line_by_line() -> None:
    run = Recorder(said("one\n", "\n", "{}\n", "na\xc3\xafve \xff\n", "the end"))
    whole = "one\n\n{}\nnaïve \ufffd\nthe end"
    assert await speaker(output="text").run(run) == whole
    assert [data["content"] for data in run.of("message_streamed")] == whole.splitlines(keepends=True)


async def test_a_line_of_json_that_is_too_long_fails_the_run() -> None:
    run = Recorder(said("short\n", "x" * 100_000 + "\n", "after\n"))
    with pytest.raises(RunFailed, match="wrote a line of more than 5000 bytes") as failed:
        await speaker(max_line=5000).run(run)
    assert failed.value.code == "command_failed"
    assert run.streamed == "short\n"


async def test_a_line_of_text_that_is_too_long_comes_in_pieces() -> None:
    """No character is torn apart between two of them."""
    line = "\xc3\xbc" * 50_000  # as bytes: 100,000, of two each
    run = Recorder(said(line + "\n", "after\n"))
    output = await speaker(output="text", max_line=5001, max_output=1000).run(run)
    assert run.streamed == "ü" * 50_000 + "\nafter\n"
    assert max(len(data["content"]) for data in run.of("message_streamed")) <= 2 * 5001
    assert output == run.streamed[-1000:]


# -- how it ends


async def test_an_exit_status_fails_the_run() -> None:
    """The error tells the end of what it said on standard error, and not all of it."""
    with pytest.raises(RunFailed, match=r"failed \(exit status 3\); .*\n.*x I am leaving$") as failed:
        await speaker().run(Recorder({"do": "fail", "status": 3}))
    assert failed.value.details["returncode"] == 3
    assert 1500 < len(str(failed.value)) < 2000


async def test_a_signal_fails_the_run() -> None:
    with pytest.raises(RunFailed, match=r"failed \(killed by signal 9\)"):
        await speaker().run(Recorder({"do": "die"}))


async def test_children_that_it_leaves_behind_are_killed() -> None:
    run = Recorder({"do": "children", "children": ["deaf", "deaf"], "leaves": True})
    assert await speaker().run(run) == "left them"
    for child in run.of("turn_completed")[0]["children"]:
        await until(lambda pid=child: gone(pid))  # type: ignore[misc]


async def test_a_slow_store_slows_it_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says waits in the process, not in our memory; nothing of it is lost, also after its end."""
    monkeypatch.setattr("interlock.agents.group._LAST_WORDS", 0.1)
    run = Recorder({"do": "flood", "lines": 2000})  # three times what the pipe holds
    run.slowness = 0.0005
    output = await speaker(output="text", max_line=4096).run(run)
    assert output.splitlines()[-1].startswith("line 2000 ")
    assert len(run.events) == 2000


@pytest.mark.parametrize("quiet", [False, True])
async def test_who_left_the_group_does_not_keep_us(monkeypatch: pytest.MonkeyPatch, quiet: bool) -> None:
    """One in a session of its own is not ours to kill; it holds pipes open, and nobody waits for that."""
    monkeypatch.setattr("interlock.agents.group._LAST_WORDS", 0.1)
    run = Recorder({"do": "children", "children": ["plain"], "leaves": True, "apart": True, "quiet": quiet})
    async with asyncio.timeout(10):
        assert await speaker().run(run) == "left them"
    (child,) = run.of("turn_completed")[0]["children"]
    assert not gone(child)
    os.kill(child, signal.SIGKILL)


async def test_one_that_floods_is_held_back(tmp_path: Path) -> None:
    count = tmp_path / "count"
    run = Recorder({"do": "flood", "count": str(count)})
    agent = speaker(max_line=4096, grace=0.1)
    run.slowness = 3600.0
    working = asyncio.create_task(agent.run(run))
    await until(count.exists)
    looks: list[str] = []

    def stands_still() -> bool:
        looks.append(count.read_text())
        return len(looks) > 30 and len(set(looks[-30:])) == 1

    await until(stands_still)
    assert 0 < int(count.read_text()) * 90 < 300_000  # a pipe and two lines of at most 4 KiB
    assert len(run.events) == 1
    working.cancel()
    await ended(working)


# -- cancelling


@pytest.mark.parametrize("deaf", [False, True])
async def test_cancelling_ends_the_whole_group(deaf: bool) -> None:
    """At once if they listen; those that do not after the grace."""
    run = Recorder({"do": "children", "children": ["deaf" if deaf else "plain"] * 2, "deaf": deaf})
    working = asyncio.create_task(speaker(grace=0.3 if deaf else 60.0).run(run))
    pid, offspring = await started(run)
    began = run.clock.now()
    working.cancel()
    await ended(working)
    assert working.cancelled()
    took = run.clock.now() - began
    assert (0.3 <= took < 2.0) if deaf else (took < 2.0)
    await until(lambda: not group_lives(pid) and all(gone(child) for child in offspring))


async def test_children_have_the_grace_too(tmp_path: Path) -> None:
    """A shell ends at once, and what it has started may still have to tidy up."""
    tidied = tmp_path / "tidied"
    run = Recorder({"do": "children", "children": ["tidy"], "tidied": str(tidied)})
    working = asyncio.create_task(speaker(grace=60.0).run(run))
    pid, _ = await started(run)
    working.cancel()
    await ended(working)
    assert tidied.read_text() == "tidied up"
    await until(lambda: not group_lives(pid))


async def test_cancelled_once_more_it_kills_at_once() -> None:
    run = Recorder({"do": "children", "children": ["deaf"], "deaf": True})
    working = asyncio.create_task(speaker(grace=60.0).run(run))
    pid, _ = await started(run)
    working.cancel()
    await asyncio.sleep(0.05)
    assert not working.done()
    working.cancel()
    await ended(working)
    await until(lambda: not group_lives(pid))


async def test_one_that_floods_can_be_cancelled() -> None:
    run = Recorder({"do": "flood"})
    working = asyncio.create_task(speaker(grace=60.0, output="text").run(run))
    await until(lambda: len(run.events) > 100)
    working.cancel()
    await ended(working)
    assert working.cancelled()


async def test_wherever_it_is_cancelled_nothing_is_left() -> None:
    before = children()
    for steps in (*range(12), 20, 40, 80, 160):
        run = Recorder({"do": "children", "children": ["plain"]})
        working = asyncio.create_task(speaker(grace=0.2).run(run))
        for _ in range(steps):
            await asyncio.sleep(0.0005)
        working.cancel()
        await ended(working)
        await until(lambda: not children() - before)
        if run.types:
            pid = run.of("turn_completed")[0]["pid"]
            await until(lambda pid=pid: not group_lives(pid))  # type: ignore[misc]


@pytest.mark.parametrize("output", ["json", "text"])
async def test_a_run_that_should_end_hears_of_it_with_the_next_line(output: Any) -> None:
    before = children()
    run = Recorder({"do": "tick"})
    working = asyncio.create_task(speaker(output=output).run(run))
    await until(lambda: len(run.events) > 3)
    run.cancelled = True
    await ended(working)
    assert isinstance(working.exception(), RunCancelled)
    await until(lambda: not children() - before)


# -- pausing


async def test_pausing_stops_the_processes() -> None:
    run = Recorder({"do": "tick"})
    agent = speaker(grace=60.0)
    assert agent.capabilities == {"pause"}
    before = children()
    working = asyncio.create_task(agent.run(run))
    await until(lambda: len(run.events) > 3)
    (pid,) = children() - before
    run.pause()
    await until(lambda: state(pid) == "T")
    seen = len(run.events)
    await asyncio.sleep(0.1)
    assert len(run.events) <= seen + 1
    run.resume()
    await until(lambda: len(run.events) > seen + 3)
    assert state(pid) != "T"
    run.pause()
    await until(lambda: state(pid) == "T")
    working.cancel()  # one that is stopped hears SIGTERM all the same
    await ended(working)
    await until(lambda: not group_lives(pid))


async def test_one_that_cannot_pause_is_not_stopped() -> None:
    run = Recorder({"do": "tick"})
    before = children()
    working = asyncio.create_task(speaker(capabilities=()).run(run))
    await until(lambda: len(run.events) > 3)
    (pid,) = children() - before
    run.pause()
    await asyncio.sleep(0.15)
    assert state(pid) != "T"
    working.cancel()
    await ended(working)


def state(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return "gone"
