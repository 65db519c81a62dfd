"""`interlock top`: keys on a real terminal against a real server, and a terminal that is given back whole."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import signal
import struct
import sys
import termios
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from cli.test_frame import limit, rows
from gateways import answer, call, chat, upstream
from interlock.cli.keyboard import keys
from processes import END_SECONDS, environment, serve
from shells import Reply, Shell, Stream, problem, stub

EVENTS = "GET /events"
CONFIG = """\
store = "memory:"
[limits]
tools = 8
[providers.p]
base_url = "{url}"
limit = 4
cooldown = "0s"
default_pause = "0s"
[providers.q]
base_url = "{url}"
limit = 2
"""
ON, OFF = b"\x1b[?1049h", b"\x1b[?1049l"
"""A screen of its own, and back to the one of before."""

JOBS = """\
import os, signal, subprocess, sys, termios
def front(group):
    os.tcsetpgrp(0, group)
def says(what):
    os.write(1, f"[{what}, canonical {bool(termios.tcgetattr(0)[3] & termios.ICANON)}]".encode())
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
child = subprocess.Popen(sys.argv[1:], process_group=0)
front(child.pid)
while True:
    _, status = os.waitpid(child.pid, os.WUNTRACED)
    front(os.getpgrp())
    if not os.WIFSTOPPED(status):
        break
    says("stopped")
    os.read(0, 100)
    front(child.pid)
    os.kill(child.pid, signal.SIGCONT)
says(f"ended {os.waitstatus_to_exitcode(status)}")
"""
"""A shell that has one job: it is stopped by Ctrl-Z, and goes on after a line."""


def event(name: str, document: dict[str, Any], at: int = 1_000_000) -> bytes:
    return f"id: 1\nevent: {name}\ndata: {json.dumps({'at': at, **document})}\n\n".encode()


SNAPSHOT = event("snapshot", rows(limit("provider:p", 4, 1), limit("tools", 8)))


class Terminal:
    """A terminal with one program in it, and all that it has written there."""

    def __init__(self, process: Process, master: int, slave: int) -> None:
        self.process = process
        self.seen = b""
        self._master = master
        self._slave = slave
        self._read_to = 0

    def press(self, data: bytes) -> None:
        os.write(self._master, data)

    def received(self) -> None:
        with suppress(OSError):
            self.seen += os.read(self._master, 65536)

    async def shows(self, text: str) -> None:
        """Return once *text* is written anew; what was before it is looked at no more."""
        async with asyncio.timeout(END_SECONDS):
            while (at := self.seen.find(text.encode(), self._read_to)) < 0:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        self._read_to = at + len(text.encode())

    async def next_frame(self) -> str:
        """A whole frame that is drawn from now on, because of a key that means nothing."""
        self.press(b"x")
        await self.shows(" in flight")
        begin = self._read_to
        await self.shows("q quit")
        return self.seen[begin : self._read_to].decode()

    async def ended(self) -> int:
        async with asyncio.timeout(END_SECONDS):
            code = await self.process.wait()
        await asyncio.sleep(0.02)
        return code

    def modes(self) -> list[Any]:
        return termios.tcgetattr(self._slave)


@asynccontextmanager
async def terminal(
    command: Sequence[str], cwd: Path, size: tuple[int, int] = (24, 80)
) -> AsyncIterator[Terminal]:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    before = termios.tcgetattr(slave)
    env = environment({"TERM": "xterm-256color"})
    del env["COLUMNS"]
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        cwd=cwd,
        env=env,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    one = Terminal(process, master, slave)
    asyncio.get_running_loop().add_reader(master, one.received)
    try:
        yield one
        assert one.modes() == before
    except BaseException as error:
        error.add_note(f"the terminal has {one.seen[-3000:]!r}")
        raise
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        asyncio.get_running_loop().remove_reader(master)
        os.close(master)
        os.close(slave)


def top(url: str, *more: str) -> list[str]:
    return [sys.executable, "-m", "interlock.cli", "top", "--url", url, *more]


async def limits(url: str) -> dict[str, Any]:
    return {one["name"]: one for one in (await call(url, "GET", "/limits")).json["limits"]}


# -- keys ----------------------------------------------------------------------------------------------------


async def test_keys_act_on_the_selected_gate(tmp_path: Path) -> None:
    """Select, pause, resume, restore, sort, quit; each is seen on the screen and at the server."""
    async with upstream() as provider, serve(tmp_path, CONFIG.format(url=provider.url)) as server:
        provider.will_answer(*[answer(429, b"{}")] * 20)
        await call(server.url, headers=[(b"x-interlock-timeout-ms", b"50")], body=chat())
        assert (await limits(server.url))["provider:p"]["capacity"] < 4
        async with terminal(top(server.url, "--pause", "1h"), tmp_path) as screen:
            await screen.shows("by name")
            await screen.shows("reduced from 4 to")
            screen.press(b"r")
            await screen.shows("p: limit 4 again")
            assert (await limits(server.url))["provider:p"]["capacity"] == 4
            await screen.shows("0/4")
            assert "reduced" not in await screen.next_frame()
            screen.press(b"r")
            await screen.shows("p: its limit is not reduced")
            screen.press(b"\x1b[B")
            screen.press(b"p")
            await screen.shows("q: paused for 3600 s")
            await screen.shows("paused for 3")
            paused = {
                name: one["pausedUntil"] is not None for name, one in (await limits(server.url)).items()
            }
            assert {name for name, is_paused in paused.items() if is_paused} == {"provider:q"}
            screen.press(b"p")
            await screen.shows("q: open")
            assert (await limits(server.url))["provider:q"]["pausedUntil"] is None
            screen.press(b"\x1bOB\x1b")
            screen.press(b"[Bjp")  # at the end already
            await screen.shows("tools is no provider")
            screen.press(b"kkkkp")
            await screen.shows("p: paused for 3600 s")
            screen.press(b"s")
            await screen.shows("by queue")
            screen.press(b"xs?")
            await screen.shows("by use")
            screen.press(b"q")
            assert await screen.ended() == 0


async def test_what_a_key_did_not_do_is_said(tmp_path: Path) -> None:
    """A server that refuses, and one that has nothing to select."""
    async with stub() as server:
        server.says(EVENTS, Stream((SNAPSHOT,), "open"))
        server.says("POST /providers/p/pause", problem(503, "draining", "the server stops"))
        async with terminal(top(server.url), tmp_path) as screen:
            await screen.shows("q quit")
            screen.press(b"p")
            await screen.shows("the server stops")
            screen.press(b"q")
            assert await screen.ended() == 0


async def test_changes_are_seen(tmp_path: Path) -> None:
    async with stub() as server:
        more = event("changes", {"limits": {"tools": limit("tools", 8, 5), "provider:p": None}})
        server.says(EVENTS, Stream((SNAPSHOT,), "open", (more,)))
        async with terminal(top(server.url), tmp_path, (12, 120)) as screen:
            await screen.shows("0/8")
            server.go.set()
            await screen.shows("5/8")
            assert "providers" not in await screen.next_frame()
            screen.press(b"q")
            assert await screen.ended() == 0


# -- the terminal --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "code"),
    [("q", 0), ("ctrl-c", 130), ("term", 128 + signal.SIGTERM), ("error", 1)],
)
async def test_the_terminal_is_given_back(tmp_path: Path, how: str, code: int) -> None:
    """As it was, whatever ends it; the cursor is there again. An error is one line below."""
    async with stub() as server:
        first = (
            Stream((SNAPSHOT,), "cut", (b": ping\n\n",)) if how == "error" else Stream((SNAPSHOT,), "open")
        )
        server.says(EVENTS, first, Reply({"detail": "not for you"}, 403))
        async with terminal(top(server.url), tmp_path) as screen:
            before = screen.modes()
            await screen.shows("q quit")
            assert screen.modes() != before or how == "error"
            match how:
                case "q":
                    screen.press(b"q")
                case "ctrl-c":
                    screen.press(b"\x03")
                case "error":
                    server.go.set()
                case _:
                    screen.process.send_signal(getattr(signal, f"SIG{how.upper()}"))
            assert await screen.ended() == code
            shown, _, after = screen.seen.rpartition(OFF)
            assert ON in shown
            assert b"\x1b[?25h" in after or shown.rfind(b"\x1b[?25h") > shown.rfind(b"\x1b[?25l")
            assert (b"INTERLOCK_TOKEN" in after) == (how == "error")
            assert b"Traceback" not in screen.seen


async def test_ctrl_z_gives_the_terminal_to_the_shell(tmp_path: Path) -> None:
    """And after ``fg`` it goes on where it was."""
    async with stub() as server:
        server.says(EVENTS, Stream((SNAPSHOT,), "open"))
        async with terminal([sys.executable, "-c", JOBS, *top(server.url)], tmp_path) as screen:
            await screen.shows("q quit")
            screen.press(b"\x1a")
            await screen.shows("[stopped, canonical True]")
            assert screen.seen.count(ON) == screen.seen.count(OFF) == 1
            screen.press(b"fg\n")
            await screen.shows("q quit")
            assert (screen.seen.count(ON), screen.seen.count(OFF)) == (2, 1)
            screen.press(b"s")
            await screen.shows("by queue")
            screen.press(b"q")
            await screen.shows("[ended 0, canonical True]")
            assert await screen.ended() == 0


async def test_a_lost_connection_is_said_and_made_again(tmp_path: Path) -> None:
    """What is shown meanwhile is the last that is known."""
    async with stub() as server:
        away = problem(503, "draining", "the server stops")
        back = event("snapshot", rows(limit("provider:p", 9, 1)))
        server.says(EVENTS, Stream((SNAPSHOT,), "cut", (b": ping\n\n",)), away, away, Stream((back,), "open"))
        async with terminal(top(server.url), tmp_path) as screen:
            await screen.shows("1/4")
            server.go.set()
            await screen.shows("lost the connection to")
            await screen.shows("1/4")
            await screen.shows("1/9")
            drawn = await screen.next_frame()
            assert "lost" not in drawn
            assert "connected" not in drawn
            screen.press(b"q")
            assert await screen.ended() == 0
        assert len(server.asked_for(EVENTS)) == 4


# -- without a terminal --------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["--once"], []])
async def test_without_a_terminal_one_frame_is_printed(shell: Shell, words: list[str]) -> None:
    """Without keys, and without what steers a terminal."""
    async with stub() as server:
        server.says(EVENTS, Stream((SNAPSHOT,), "open"))
        printed = await shell.says("top", *words, "--sort", "use", "--url", server.url)
        lines = [line.split() for line in printed.splitlines()]
        assert lines == [
            [server.url, "1", "in", "flight", "0", "waiting", "by", "use"],
            ["providers"],
            ["p", "█···", "1/4"],
            ["limits"],
            ["tools", "········", "0/8"],
        ]
        assert "\x1b" not in printed


async def test_as_json_each_state_is_a_line(shell: Shell) -> None:
    """Whole; after a lost connection it goes on, and says so beside it."""
    async with stub() as server:
        change = event(
            "changes", {"limits": {"tools": limit("tools", 8, 5), "provider:p": None}}, at=1_000_500
        )
        stop = Reply({"detail": "enough"}, 409)
        server.says(EVENTS, Stream((SNAPSHOT, change), "end"), Stream((SNAPSHOT,), "end"), stop)
        finished = await shell.run("top", "--json", "--url", server.url)
        first, second, third = map(json.loads, finished.stdout.splitlines())
        assert first == third == {"at": 1_000_000, **rows(limit("provider:p", 4, 1), limit("tools", 8))}
        assert second == {"at": 1_000_500, **rows(limit("tools", 8, 5))}
        said = finished.stderr.splitlines()
        assert (
            said[0] == f"interlock: lost the connection to {server.url} (it ended the stream); trying again"
        )
        assert said[1] == "interlock: connected again"
        assert (finished.code, said[-1]) == (1, "interlock: enough")


async def test_as_json_once_is_a_line(shell: Shell) -> None:
    async with stub() as server:
        server.says(EVENTS, Stream((SNAPSHOT,), "open"))
        (line,) = (await shell.says("top", "--json", "--once", "--url", server.url)).splitlines()
        assert json.loads(line)["limits"]["tools"]["capacity"] == 8


async def test_what_cannot_be_shown_is_one_line(shell: Shell) -> None:
    assert "is `interlock serve` running?" in await shell.refuses(1, "top", "--url", "http://127.0.0.1:9")
    assert "allowed are name, queue, use" in await shell.refuses(2, "top", "--sort", "size")
    assert "soon" in await shell.refuses(2, "top", "--pause", "soon")
    for said in (b"data: nonsense\n\n", event("snapshot", {"limits": []}), b"event: changes\ndata: {}\n\n"):
        async with stub() as server:
            server.says(EVENTS, Stream((said,), "open"))
            assert "no event of ours" in await shell.refuses(1, "top", "--once", "--url", server.url)


@pytest.mark.parametrize(
    ("data", "found", "left"),
    [
        (b"qsp", ["q", "s", "p"], b""),
        (b"\x1b[A\x1bOBj", ["up", "down", "down"], b""),
        (b"p\x1b", ["p"], b"\x1b"),
        (b"\x1b[1;5", [], b"\x1b[1;5"),
        (b"\x1b[1;5Cr", ["r"], b""),
        (b"\x1b[200~r", ["r"], b""),
        (b"\x1bq", ["q"], b""),
        (b"\x1bO", [], b"\x1bO"),
        ("ü\x00 7".encode(), [], b""),
        (b"", [], b""),
    ],
)
def test_keys_out_of_bytes(data: bytes, found: list[str], left: bytes) -> None:
    """However they are cut; what nobody knows is no key."""
    assert keys(data) == (found, left)
    got, rest = [], b""
    for number in range(len(data)):
        more, rest = keys(rest + data[number : number + 1])
        got += more
    assert (got, rest) == (found, left)
