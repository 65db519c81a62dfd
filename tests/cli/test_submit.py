"""`interlock submit`: what it asks for, how it waits, and what it prints when the run has ended."""

from __future__ import annotations

import asyncio
import io
import json
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE
from pathlib import Path
from typing import Any

import pytest

from gateways import until
from processes import environment
from shells import Reply, Shell, Stream, event, frame, mark, problem, run, stream, stub

RUNS = "POST /sessions/s1/runs"
EVENTS = "GET /sessions/s1/events"
WAIT = "GET /runs/r1/wait"
QUEUED = Reply({"runId": "r1", "sessionId": "s1", "status": "pending", "position": 2}, 202)
RUNNING = Reply({"runId": "r1", "sessionId": "s1", "status": "running", "position": None}, 202)
LATER = problem(504, "timeout", "run 'r1' has not ended after 30 s")

# -- what is asked for ---------------------------------------------------------------------------------------

INPUTS = [
    ("Fix the tests", {"prompt": "Fix the tests"}),
    ('{"prompt": "Hi", "n": 1}', {"prompt": "Hi", "n": 1}),
    ("[1]", {"prompt": "[1]"}),
    ("7", {"prompt": "7"}),
    ('{"broken', {"prompt": '{"broken'}),
    ("-5 degrees", {"prompt": "-5 degrees"}),
    ("", {"prompt": ""}),
    ("[" * 100_000, {"prompt": "[" * 100_000}),
]


async def test_the_input_is_an_object_or_a_prompt(shell: Shell) -> None:
    async with stub() as server:
        server.says(RUNS, QUEUED)
        for text, _ in INPUTS:
            assert (
                await shell.says("submit", "s1", text, "--url", server.url)
                == "r1: pending, place 2 in line\n"
            )
        assert [one.body["input"] for one in server.asked] == [asked for _, asked in INPUTS]
        await shell.says("submit", "s1", "--url", server.url)
        assert server.asked[-1].body == {"input": {}, "priority": 0}
        assert "idempotency-key" not in server.asked[-1].headers


async def test_the_input_comes_from_standard_input(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stub() as server:
        server.says(RUNS, RUNNING)
        monkeypatch.setattr(sys, "stdin", io.StringIO('{"a":\n1}'))
        assert await shell.says("submit", "s1", "-", "--url", server.url) == "r1: running\n"
        assert server.asked[0].body["input"] == {"a": 1}


async def test_standard_input_that_is_no_text_is_refused(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9"), encoding="utf-8"))
    assert "no text in UTF-8" in await shell.refuses(2, "submit", "s1", "-", "--url", "http://127.0.0.1:9")


async def test_everything_that_is_said_is_asked_for(shell: Shell) -> None:
    async with stub() as server:
        server.says(RUNS, QUEUED)
        first = ("submit", "s1", "hi", "--timeout", "1500ms", "--priority", "-3", "--retry", "on-crash")
        answered = json.loads(await shell.says(*first, "--key", "job-17", "--json", "--url", server.url))
        assert answered == QUEUED.body
        (asked,) = server.asked
        assert asked.body == {
            "input": {"prompt": "hi"},
            "timeoutMs": 1500,
            "priority": -3,
            "retry": "on_crash",
        }
        assert asked.headers["idempotency-key"] == "job-17"


async def test_a_session_is_made_for_the_agent(shell: Shell) -> None:
    """If there is none; one that is there is used as it is, unless it has another agent."""
    async with stub() as server:
        there = Reply({"id": "s1", "agent": "coder"})
        server.says("GET /sessions/s1", problem(404, "session_not_found", "no session 's1'"), there)
        server.says("POST /sessions", Reply({"id": "s1", "agent": "coder"}, 201))
        server.says(RUNS, QUEUED)
        for _ in range(2):
            await shell.says("submit", "s1", "hi", "--agent", "coder", "--url", server.url)
        line = await shell.refuses(1, "submit", "s1", "hi", "--agent", "writer", "--url", server.url)
        assert "session 's1' has the agent 'coder'" in line
        assert [one.body for one in server.asked_for("POST /sessions")] == [{"id": "s1", "agent": "coder"}]
        assert len(server.asked_for(RUNS)) == 2


REFUSED = [
    (2, problem(400, "validation_error", "the body is refused: Object\nlacks input"), "Object lacks input"),
    (1, problem(422, "idempotency_key_reused", "the key 'a' was used with another body"), "another body"),
    (1, problem(429, "queue_full", "100 runs wait already", ("retry-after", "1")), "; try again in 1 s"),
    (1, problem(503, "draining", "session 's1' is draining", ("retry-after", "1")), "is draining"),
    (1, problem(409, "invalid_status", "session 's1' has ended"), "has ended"),
    (1, Reply({}, 500), "answered 500"),
    (1, Reply([]), "is `interlock serve` running?"),
]


async def test_a_refusal_is_one_line(shell: Shell) -> None:
    async with stub() as server:
        server.says(RUNS, *(answer for _, answer, _ in REFUSED))
        for code, _, said in REFUSED:
            assert said in await shell.refuses(code, "submit", "s1", "hi", "--wait", "--url", server.url)


WRONG = [
    (("submit",), "SESSION"),
    (("submit", "s1", "hi", "--wait", "--follow"), "not both"),
    (("submit", "s1", "hi", "--timeout", "5"), "a duration with its unit"),
    (("submit", "s1", "hi", "--retry", "always"), "on-crash"),
    (("submit", "s1", "hi", "--priority", "high"), "priority"),
    (("submit", "s1", "hi", "--key", "two words"), "printable ASCII"),
    (("submit", "s1", "hi", "--key", "k" * 256), "printable ASCII"),
    (("submit", "s1", "--folow"), "unknown option --folow"),
    (("submit", "s1", "caf\udce9"), "no text in UTF-8"),
    (("submit", "s1", '{"a": "\\ud800"}'), "no text in UTF-8"),
    (("submit", "s1", '{"a": NaN}'), "NaN"),
]


async def test_wrong_usage_submits_nothing(shell: Shell) -> None:
    async with stub() as server:
        server.says(RUNS, QUEUED)
        for words, said in WRONG:
            assert said in await shell.refuses(2, *words, "--url", server.url), words
        assert server.asked == []


# -- waiting -------------------------------------------------------------------------------------------------

OUTPUTS = [
    ("All\ngreen", "All\ngreen\n"),
    ({"ä": [1]}, '{"ä": [1]}\n'),
    (None, ""),
    ("\x1b[2J", "\\x1b[2J\n"),
]


@pytest.mark.parametrize(("output", "printed"), OUTPUTS)
async def test_waiting_prints_the_output_alone(output: Any, printed: str, shell: Shell) -> None:
    """The run's id goes to standard error; it is asked until the run has ended."""
    async with stub() as server:
        server.says(RUNS, QUEUED)
        server.says(WAIT, LATER, LATER, Reply(run(output=output)))
        finished = await shell.run("submit", "s1", "hi", "--wait", "--url", server.url)
        assert (finished.code, finished.stdout) == (0, printed)
        assert finished.stderr == "interlock: r1: pending, place 2 in line\n"
        assert len(server.asked_for(WAIT)) == 3


@pytest.mark.parametrize("as_json", [False, True])
async def test_a_run_that_does_not_complete_is_exit_1(as_json: bool, shell: Shell) -> None:
    async with stub() as server:
        failed = run(status="failed", error={"code": "boom", "message": "it\nbroke"})
        server.says(RUNS, RUNNING)
        server.says(WAIT, Reply(failed), Reply(run(status="cancelled")))
        words = ("submit", "s1", "hi", "--wait", "--url", server.url, *(["--json"] if as_json else []))
        finished = await shell.run(*words)
        assert finished.code == 1
        assert finished.stderr.splitlines()[1:] == [r"interlock: r1 ended failed: boom: it\nbroke"]
        assert finished.stdout == (json.dumps(failed) + "\n" if as_json else "")
        finished = await shell.run(*words)
        assert (finished.code, finished.stderr.splitlines()[1:]) == (1, ["interlock: r1 ended cancelled"])


async def test_waiting_outlives_a_restart_of_the_server(shell: Shell) -> None:
    """The run is durable: whoever waits for it asks again."""
    async with stub() as server:
        server.says(RUNS, RUNNING)
        server.says(
            WAIT, problem(503, "draining", "the server stops"), Stream((), "cut"), Reply(run(output="ok"))
        )
        finished = await shell.run("submit", "s1", "hi", "--wait", "--url", server.url)
        assert (finished.code, finished.stdout) == (0, "ok\n")
        said = finished.stderr.splitlines()[1:]
        assert said == [
            f"interlock: lost the connection to {server.url} (the server stops); trying again",
            "interlock: connected again",
        ]


async def test_a_run_that_is_gone_is_not_waited_for(shell: Shell) -> None:
    async with stub() as server:
        server.says(RUNS, RUNNING)
        server.says(WAIT, LATER, problem(404, "run_not_found", "no run 'r1'"))
        finished = await shell.run("submit", "s1", "hi", "--wait", "--url", server.url)
        assert (finished.code, finished.stdout) == (1, "")
        assert finished.stderr.splitlines()[-1] == "interlock: no run 'r1'"


# -- following -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "code"), [("completed", 0), ("timeout", 1)])
async def test_following_shows_the_events_until_the_end(status: str, code: int, shell: Shell) -> None:
    """Of this run only, over a lost connection too; the exit code says how it ended."""
    told = [
        event(3, "run_queued"),
        event(4, "run_started"),
        event(5, "message_streamed", content="a"),
        event(6, "message_streamed", content="b"),
        event(7, f"run_{status}"),
    ]
    async with stub() as server:
        server.says(RUNS, QUEUED)
        whole = Stream((*map(frame, told[2:]), mark("end-of-backfill", 8)), "open")
        server.says(EVENTS, Stream((*map(frame, told[:2]), frame(told[2])[:9]), "cut"), whole)
        server.says(WAIT, Reply(run(status=status)))
        finished = await shell.run("submit", "s1", "hi", "--follow", "--url", server.url)
        assert finished.code == code
        shown = [
            " ".join((*words[:1], *words[2:]))
            for line in finished.stdout.splitlines()
            if (words := line.split())
        ]
        kinds = ["3 run_queued r1", "4 run_started r1", "5 message_streamed r1 ab", f"7 run_{status} r1"]
        assert shown == kinds
        assert [one.headers.get("last-event-id") for one in server.asked_for(EVENTS)] == [None, "4"]
        assert server.asked_for(EVENTS)[0].query == [("from", "0"), ("run", "r1")]
        assert ("interlock: r1 ended timeout" in finished.stderr) == (code == 1)


async def test_following_as_json_prints_events_only(shell: Shell) -> None:
    async with stub() as server:
        told = [event(3, "run_started"), event(4, "run_completed")]
        server.says(RUNS, RUNNING)
        server.says(EVENTS, stream(*told))
        server.says(WAIT, Reply(run(output="x")))
        finished = await shell.run("submit", "s1", "hi", "-f", "--json", "--url", server.url)
        assert [json.loads(line) for line in finished.stdout.splitlines()] == told


# -- Ctrl-C --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["--wait", "--follow"])
async def test_ctrl_c_leaves_the_run_going(how: str, tmp_path: Path) -> None:
    """It says so, with the command that ends it; the server is asked for nothing."""
    async with stub() as server:
        server.says(RUNS, RUNNING)
        server.says(EVENTS, stream(event(3, "run_started"), then="open"))
        server.says(WAIT, Stream((), "open"))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "interlock.cli", "submit", "s1", "hi", how, "--url", server.url),
            cwd=tmp_path,
            env=environment(),
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
        )
        try:
            await until(lambda: len(server.asked) == 2)
            process.send_signal(signal.SIGINT)
            async with asyncio.timeout(5):
                _, said = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.communicate()
        assert process.returncode == 130
        last = f"interlock: r1 goes on; to end it: interlock cancel r1 --url {server.url}"
        assert said.decode().splitlines() == ["interlock: r1: running", last]
        assert len(server.asked) == 2
