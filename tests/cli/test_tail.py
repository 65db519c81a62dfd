"""`interlock tail`: every event once and in order, however often the connection is lost; and who waits."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateways import until
from processes import environment
from shells import Reply, Shell, Stream, event, frame, mark, problem, run, stream, stub

EVENTS = "GET /sessions/s1/events"
RUN = "GET /runs/r1"

STORY = [
    event(1, "session_created", None),
    event(2, "run_queued", position=2, waits_for=[{"limit": "session", "used": 1, "capacity": 1}]),
    event(3, "run_started", attempt=1, waited=0.25, limits={}),
    event(4, "message_sent", role="user", content="two\nlines"),
    event(5, "tool_call_started", tool_name="grep", tool_input={"a": 1}),
    event(6, "run_failed", error_code="boom", error_message="it broke"),
    event(7, "run_completed", stop_reason="completed", duration=1.5),
]


def rows(printed: str) -> list[str]:
    """The lines without their times, and with single spaces."""
    return [" ".join([*words[:1], *words[2:]]) for line in printed.splitlines() if (words := line.split())]


def kinds(printed: str) -> list[str]:
    """The types of the events that are shown."""
    return [row.split()[1] for row in rows(printed)]


# -- what is shown -------------------------------------------------------------------------------------------


async def test_what_there_is_is_shown(shell: Shell) -> None:
    """A line for each event; without --follow it ends with the backlog, though the stream goes on."""
    async with stub() as server:
        server.says(EVENTS, stream(*STORY, then="open"))
        printed = await shell.says("tail", "s1", "--url", server.url)
        assert rows(printed) == [
            "1 session_created -",
            "2 run_queued r1 place 2 in line, for session 1/1",
            "3 run_started r1 attempt 1, waited 0.2 s",
            r"4 message_sent r1 user: two\nlines",
            '5 tool_call_started r1 {"tool_name": "grep", "tool_input": {"a": 1}}',
            "6 run_failed r1 boom: it broke",
            "7 run_completed r1 after 1.5 s",
        ]
        (asked,) = server.asked
        assert asked.headers["accept"] == "text/event-stream"
        assert "last-event-id" not in asked.headers
        assert asked.query == [("from", "0")]


async def test_as_json_each_event_is_a_line(shell: Shell) -> None:
    """As the server sent it."""
    async with stub() as server:
        server.says(EVENTS, stream(*STORY))
        printed = await shell.says("tail", "s1", "--json", "--follow", "--url", server.url)
        assert [json.loads(line) for line in printed.splitlines()] == STORY


async def test_the_choice_is_the_server_s(shell: Shell) -> None:
    """Where to begin, which run and which types; of a run also its end is asked for, but not shown."""
    async with stub() as server:
        server.says(RUN, Reply(run(status="running")))
        server.says(EVENTS, stream(event(5, "message_sent"), event(6, "run_completed"), then="open"))
        words = (
            "tail",
            "s1",
            "--from",
            "5",
            "--run",
            "r1",
            "--type",
            "message_sent",
            "--type",
            "turn_completed",
        )
        printed = await shell.says(*words, "-f", "--url", server.url)
        assert kinds(printed) == ["message_sent"]
        (asked,) = server.asked_for(EVENTS)
        assert asked.query[:2] == [("from", "5"), ("run", "r1")]
        ends = {"run_completed", "run_failed", "run_cancelled", "run_interrupted", "run_timeout"}
        assert {kind for _, kind in asked.query[2:]} == {"message_sent", "turn_completed"} | ends


async def test_following_a_run_ends_with_it(shell: Shell) -> None:
    """At its last event, though its session goes on; at once where it has ended before."""
    async with stub() as server:
        server.says(RUN, Reply(run(status="running")), Reply(run(status="failed")))
        server.says(EVENTS, stream(*STORY[1:3], STORY[5], then="open"), stream(*STORY[1:3], then="open"))
        words = ("tail", "s1", "--run", "r1", "-f", "--url", server.url)
        assert kinds(await shell.says(*words)) == [
            "run_queued",
            "run_started",
            "run_failed",
        ]
        assert kinds(await shell.says(*words)) == ["run_queued", "run_started"]


async def test_deltas_are_running_text(shell: Shell) -> None:
    """As they come; another run, or another event, begins a line of its own."""
    deltas = [
        event(1, "message_streamed", content="Hello, "),
        event(2, "message_streamed", content="wörld\nand more"),
        event(3, "message_streamed", "r2", content="me too"),
        event(4, "message_streamed", content=" of r1"),
        event(5, "run_completed", duration=1),
        event(6, "message_streamed", tokens=3),
    ]
    async with stub() as server:
        later = (*map(frame, deltas[2:]), mark("end", 7))
        server.says(EVENTS, Stream((*map(frame, deltas[:2]),), later=later))
        ended = shell.start("tail", "s1", "-f", "--url", server.url)
        await shell.heard("Hello, wörld\nand more")
        assert shell.stdout.endswith("and more")
        server.go.set()
        finished = await shell.finish(ended)
        assert (finished.code, finished.stderr) == (0, "")
        assert rows(finished.stdout) == [
            "1 message_streamed r1 Hello, wörld",
            "and",
            "3 message_streamed r2 me too",
            "4 message_streamed r1 of r1",
            "5 run_completed r1 after 1.0 s",
            '6 message_streamed r1 {"tokens": 3}',
        ]


async def test_text_does_not_steer_the_terminal(shell: Shell) -> None:
    """What an agent says is shown, not done; halves of characters are no error."""
    bad = "\x1b]0;mine\x07\r\ud800\u202e"
    told = [
        event(1, "message_streamed", content=bad),
        event(2, "run_failed", error_code=bad, error_message=bad),
    ]
    async with stub() as server:
        server.says(EVENTS, stream(*told))
        printed = await shell.says("tail", "s1", "--url", server.url)
        assert not set(printed) & set("\x1b\x07\r\ud800\u202e")
        assert printed.count(r"\x1b]0;mine\x07\r\ud800\u202e") == 3


# -- connections that are lost -------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [0, 8, 120])
async def test_a_connection_lost_within_an_event_loses_nothing(cut: int, shell: Shell) -> None:
    """Read on after the last whole event, and nothing is shown twice, even if the server repeats it."""
    told = [event(number, "turn_completed", number=number) for number in range(1, 8)]
    frames = [frame(one) for one in told]
    async with stub() as server:
        server.says(
            EVENTS,
            Stream((*frames[:2], frames[2][:cut]), "cut"),
            Stream((frames[2], frames[3][: cut + 1]), "cut"),
            problem(503, "draining", "the server stops"),
            Stream((), "end"),
            Stream((*frames[1:6], mark("end-of-backfill", 7), frames[6], mark("end", 8))),
        )
        finished = await shell.run("tail", "s1", "--follow", "--json", "--url", server.url)
        assert [json.loads(line)["sequence"] for line in finished.stdout.splitlines()] == [
            1,
            2,
            3,
            4,
            5,
            6,
            7,
        ]
        assert [one.headers.get("last-event-id") for one in server.asked] == [None, "2", "3", "3", "3"]
        said = finished.stderr.splitlines()
        assert finished.code == 0
        assert said[0].startswith(f"interlock: lost the connection to {server.url} (")
        assert said[1::2] == ["interlock: connected again"] * (len(said) // 2)
        assert len(said) == 6  # the refusal is no loss of its own


async def test_a_server_that_never_was_is_not_waited_for(shell: Shell) -> None:
    line = await shell.refuses(1, "tail", "s1", "-f", "--url", "http://127.0.0.1:9")
    assert line.startswith("interlock: no answer from http://127.0.0.1:9")
    assert line.endswith("is `interlock serve` running?")


async def test_a_session_that_is_gone_ends_it(shell: Shell) -> None:
    """What the server refuses for good is not asked again."""
    async with stub() as server:
        gone = problem(404, "session_not_found", "no session 's1'")
        server.says(EVENTS, stream(*STORY[:2], then="cut"), gone)
        finished = await shell.run("tail", "s1", "-f", "--url", server.url)
        assert (finished.code, len(rows(finished.stdout))) == (1, 2)
        assert finished.stderr.splitlines()[-1] == "interlock: no session 's1'"


@pytest.mark.parametrize(
    "answer",
    [Reply({}), Stream((b"data: {\n\n",)), Stream((b"data: [1]\n\n",)), Stream((b"data: {}\n\n",))],
)
async def test_another_server_is_one_line(answer: Reply | Stream, shell: Shell) -> None:
    async with stub() as server:
        server.says(EVENTS, answer)
        assert "is it an Interlock server?" in await shell.refuses(1, "tail", "s1", "-f", "--url", server.url)


# -- usage ---------------------------------------------------------------------------------------------------


WRONG = [
    (2, ("tail",), "SESSION"),
    (2, ("tail", "s1", "--from", "-1"), "numbers from 0"),
    (2, ("tail", "s1", "--from", "x"), "from"),
    (2, ("tail", "s1", "--type", "run_stated"), "known are: error_occurred"),
    (1, ("tail", "s2"), "no GET /sessions/s2/events"),
    (1, ("tail", "s1", "--run", "r9"), "no run 'r9'"),
    (2, ("tail", "s2", "--run", "r1"), "of session 's1', not of 's2'"),
]


async def test_what_is_wrong_is_one_line(shell: Shell) -> None:
    async with stub() as server:
        server.says(RUN, Reply(run()))
        server.says("GET /runs/r9", problem(404, "run_not_found", "no run 'r9'"))
        for code, words, said in WRONG:
            assert said in await shell.refuses(code, *words, "--url", server.url), words


# -- on a terminal -------------------------------------------------------------------------------------------


class Terminal:
    """A command with a terminal for its errors."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.seen = ""

    async def shows(self, text: str) -> None:
        await until(lambda: text in self.seen)


@asynccontextmanager
async def on_a_terminal(tmp_path: Path, *words: str) -> AsyncIterator[Terminal]:
    ours, theirs = pty.openpty()
    loop = asyncio.get_running_loop()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "interlock.cli", *words),
        cwd=tmp_path,
        env=environment(),
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=theirs,
    )
    os.close(theirs)
    terminal = Terminal(process)

    def readable() -> None:
        try:
            terminal.seen += os.read(ours, 4096).decode()
        except OSError:  # the other side has been closed
            loop.remove_reader(ours)

    loop.add_reader(ours, readable)
    try:
        yield terminal
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
        loop.remove_reader(ours)
        os.close(ours)


def pending(position: int, *limits: tuple[str, int, int]) -> Reply:
    why = [{"limit": name, "used": used, "capacity": capacity} for name, used, capacity in limits]
    return Reply(run(status="pending", position=position, waitsFor=why))


async def test_a_terminal_shows_who_waits_and_why(tmp_path: Path) -> None:
    """In one line that is drawn over itself, and gone before anything else is shown; Ctrl-C ends it."""
    async with stub() as server:
        queued = [
            STORY[1],
            event(3, "run_queued", "r2"),
            event(4, "run_queued", "r3"),
            event(5, "run_started", "r3"),
        ]
        server.says(EVENTS, stream(*queued, then="open"))
        server.says(
            RUN, pending(2, ("session", 1, 1), ("runs", 5, 5)), pending(1), Reply(run(status="running"))
        )
        async with on_a_terminal(tmp_path, "tail", "s1", "-f", "--url", server.url) as terminal:
            await terminal.shows("\r\x1b[Kr1 waits, place 2 in line, for session 1/1, runs 5/5; 1 more")
            await terminal.shows("\r\x1b[Kr1 waits, place 1 in line; 1 more")
            await until(lambda: terminal.seen.endswith("\r\x1b[K"))
            terminal.process.send_signal(signal.SIGINT)
            assert await terminal.process.wait() == 130
            assert "Traceback" not in terminal.seen


async def test_whoever_stops_reading_ends_it(tmp_path: Path) -> None:
    """As `head` does; without a word."""
    read, write = os.pipe()
    os.close(read)
    async with stub() as server:
        server.says(EVENTS, stream(*STORY, then="open"))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "interlock.cli", "tail", "s1", "-f", "--url", server.url),
            cwd=tmp_path,
            env=environment(),
            stdin=DEVNULL,
            stdout=write,
            stderr=PIPE,
        )
        os.close(write)
        _, said = await process.communicate()
        assert (process.returncode, said) == (1, b"")
