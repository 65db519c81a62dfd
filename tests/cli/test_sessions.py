"""`interlock sessions`, `runs`, `cancel`, `interrupt` and `drain`: what they ask, print and refuse."""

from __future__ import annotations

import json
import re
import shlex
import time
from pathlib import Path
from typing import Any

import pytest

from interlock.cli import app
from shells import Reply, Shell, problem, run, stub

DOCS = Path(__file__).parents[2] / "docs/cli.md"
HOUR_MS = 3_600_000


def session(session_id: str = "s1", **more: Any) -> dict[str, Any]:
    """A session as the server tells it, made two hours ago and changed one hour ago."""
    now = int(time.time() * 1000)
    return {
        "id": session_id,
        "agent": "coder",
        "status": "active",
        "maxConcurrentRuns": 2,
        "maxQueuedRuns": 100,
        "collision": "enqueue",
        "metadata": {},
        "tags": [],
        "createdAt": now - 4 * HOUR_MS,
        "updatedAt": now - 3 * HOUR_MS,
        "lastSequence": 42,
        **more,
    }


def rows(printed: str) -> list[str]:
    """The lines with single spaces, without the heading."""
    return [" ".join(line.split()) for line in printed.splitlines()[1:]]


# -- sessions ------------------------------------------------------------------------------------------------


async def test_every_session_is_listed(shell: Shell) -> None:
    """From all pages, as the server orders them."""
    async with stub() as server:
        first, second = session(), session("s2", agent=None, status="completed", lastSequence=7)
        pages = Reply({"sessions": [first], "next": "s1"}), Reply({"sessions": [second], "next": None})
        server.says("GET /sessions", *pages, *pages)
        printed = await shell.says("sessions", "--url", server.url)
        assert rows(printed) == ["s1 coder active 42 2 3 h", "s2 - completed 7 2 3 h"]
        assert [dict(one.query).get("after") for one in server.asked] == [None, "s1"]
        server.says("GET /sessions", *pages)
        words = ("sessions", "--status", "active", "--status", "completed", "--json", "--url", server.url)
        server.asked.clear()
        assert json.loads(await shell.says(*words)) == {"sessions": [first, second]}
        assert server.asked[0].query[1:] == [("status", "active"), ("status", "completed")]


async def test_no_session_is_said(shell: Shell) -> None:
    async with stub() as server:
        server.says("GET /sessions", Reply({"sessions": [], "next": None}))
        assert await shell.says("sessions", "--url", server.url) == "no sessions\n"


async def test_one_session_is_told(shell: Shell) -> None:
    """Where it runs with its queue, elsewhere without."""
    async with stub() as server:
        runs = {"inFlightRuns": ["r1"], "queuedRuns": ["r2", "r3"], "subscribers": 4}
        server.says("GET /sessions/s1", Reply(session(tags=["a", "b"], **runs)), Reply(session()))
        assert (await shell.says("sessions", "s1", "--url", server.url)).splitlines() == [
            "s1: active, agent coder",
            "  runs: 1 of 2 in flight, 2 of 100 queued; subscribers: 4",
            "  a run that comes meanwhile: enqueue; tags: a, b",
            "  events: 42; changed 3 h ago, created 4 h ago",
        ]
        elsewhere = (await shell.says("sessions", "s1", "--url", server.url)).splitlines()
        assert [line.split(":")[0].strip() for line in elsewhere] == [
            "s1",
            "a run that comes meanwhile",
            "events",
        ]
        answered = json.loads(await shell.says("sessions", "s1", "--json", "--url", server.url))
        assert answered["id"] == "s1"


async def test_a_pipe_gets_a_line_for_each(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is long in it; a terminal shows ids whole, and folds the rest."""
    long = run("run_" + "f" * 32, "failed", sessionId="ses_" + "e" * 32, error={"code": "e" * 30})
    async with stub() as server:
        server.says("GET /sessions", Reply({"sessions": [session()], "next": None}))
        server.says("GET /sessions/s1/runs", Reply({"runs": [long], "next": None}))
        folded = await shell.says("runs", "--url", server.url)
        assert len(folded.splitlines()) > 2
        assert long["runId"] in folded
        monkeypatch.delenv("COLUMNS")
        assert len((await shell.says("runs", "--url", server.url)).splitlines()) == 2


async def test_names_are_no_markup(shell: Shell) -> None:
    """What others have named is shown as it is, and does not steer the terminal."""
    async with stub() as server:
        found = session("[red]s[/]", agent="\x1b[2J")
        server.says("GET /sessions", Reply({"sessions": [found], "next": None}))
        assert rows(await shell.says("sessions", "--url", server.url))[0].startswith(r"[red]s[/] \x1b[2J ")


# -- runs ----------------------------------------------------------------------------------------------------

WAITS = {"position": 1, "waitsFor": [{"limit": "session", "used": 1, "capacity": 1}]}
NOT_YET = {"startedAt": None, "endedAt": None, "waitedMs": None, "attempt": 0}


async def test_the_runs_of_a_session_are_listed(shell: Shell) -> None:
    """With what they failed with, or wait for."""
    async with stub() as server:
        failed = run(status="failed", error={"code": "boom", "message": "it broke"})
        found = [failed, run("r2"), run("r3", "pending", **NOT_YET, **WAITS)]
        server.says("GET /sessions/s1/runs", Reply({"runs": found, "next": None}))
        printed = rows(await shell.says("runs", "s1", "--url", server.url))
        assert [re.sub(r"\d+ h", "T", row) for row in printed] == [
            "r1 failed T 0.3 s 2.1 s boom",
            "r2 completed T 0.3 s 2.1 s",
            "r3 pending T - - place 1 in line, for session 1/1",
        ]
        words = ("runs", "s1", "--status", "failed", "--json", "--url", server.url)
        assert json.loads(await shell.says(*words)) == {"runs": found}
        assert server.asked[-1].query == [("limit", "1000"), ("status", "failed")]


async def test_without_a_session_the_unfinished_runs_of_all_are_listed(shell: Shell) -> None:
    """Of the sessions that have not ended; with --status, what it says, of every session."""
    async with stub() as server:
        server.says("GET /sessions", Reply({"sessions": [session(), session("s2")], "next": None}))
        server.says("GET /sessions/s1/runs", Reply({"runs": [], "next": None}))
        server.says("GET /sessions/s2/runs", Reply({"runs": [run(sessionId="s2")], "next": None}))
        assert rows(await shell.says("runs", "--url", server.url))[0].startswith("r1 s2 ")
        wanted = [{value for name, value in one.query if name == "status"} for one in server.asked]
        assert wanted == [{"pending", "active", "paused"}, *[{"pending", "running", "paused"}] * 2]
        server.asked.clear()
        await shell.says("runs", "--status", "failed", "--url", server.url)
        wanted = [{value for name, value in one.query if name == "status"} for one in server.asked]
        assert wanted == [set(), {"failed"}, {"failed"}]


async def test_one_run_is_told_with_its_error(shell: Shell) -> None:
    async with stub() as server:
        error = {"code": "boom", "message": "it broke\x1b[2J"}
        failed = run(status="failed", error=error, tokenUsage={"inputTokens": 3}, output=["ä"])
        waits = run(status="pending", **NOT_YET, **WAITS)
        server.says("GET /runs/r1", Reply(failed), Reply(waits), Reply(failed))
        told = (await shell.says("runs", "--run", "r1", "--url", server.url)).splitlines()
        assert told[0] == "r1: failed, run 1 of session s1"
        assert re.fullmatch(r"  submitted \d+ h ago, waited 0\.3 s, took 2\.1 s, attempt 1", told[1])
        assert told[2:] == [
            r"  error boom: it broke\x1b[2J",
            "  tokens: inputTokens 3",
            '  input {"prompt": "hi"}',
            '  output ["ä"]',
        ]
        told = (await shell.says("runs", "--run", "r1", "--url", server.url)).splitlines()
        assert told[:2] == [
            "r1: pending, run 1 of session s1",
            "  place 1 in line, for session 1/1",
        ]
        assert json.loads(await shell.says("runs", "--run", "r1", "--json", "--url", server.url)) == failed


# -- what an operator does -----------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["cancel", "interrupt"])
async def test_runs_are_ended(verb: str, shell: Shell) -> None:
    """Each once; one that is refused does not keep the others."""
    async with stub() as server:
        for run_id in ("r1", "r3"):
            server.says(f"POST /runs/{run_id}/{verb}", Reply({"runId": run_id, "status": "running"}, 202))
        server.says(f"POST /runs/r2/{verb}", problem(404, "run_not_found", "no run 'r2'"))
        printed = await shell.says(verb, "r1", "r3", "r1", "--url", server.url)
        assert printed == "r1: running\nr3: running\n"
        finished = await shell.run(verb, "r1", "r2", "r3", "--json", "--url", server.url)
        assert [one["runId"] for one in json.loads(finished.stdout)["runs"]] == ["r1", "r3"]
        assert (finished.code, finished.stderr) == (1, "interlock: no run 'r2'\n")
        line = await shell.refuses(1, verb, "r2", "r9", "--url", server.url)
        assert line == f"interlock: no run 'r2' | no POST /runs/r9/{verb}"


async def test_a_session_is_drained(shell: Shell) -> None:
    async with stub() as server:
        late = problem(504, "timeout", "session 's1' still has 2 runs after 1 s")
        server.says("POST /sessions/s1/drain", Reply({"drained": True}), Reply({"drained": True}), late)
        assert await shell.says("drain", "s1", "--url", server.url) == "s1: drained\n"
        words = ("drain", "s1", "--timeout", "1500ms", "--url", server.url)
        assert json.loads(await shell.says(*words, "--json")) == {"drained": True}
        assert "still has 2 runs" in await shell.refuses(1, *words)
        assert [one.body for one in server.asked] == [{"timeoutMs": 60_000}, *[{"timeoutMs": 1500}] * 2]


# -- usage ---------------------------------------------------------------------------------------------------

WRONG = [
    (2, ("sessions", "s1", "--status", "active"), "not both"),
    (2, ("sessions", "--status", "runing"), "runing"),
    (1, ("sessions", "s/1"), "no GET /sessions/s"),
    (1, ("sessions", "caf\udce9"), "no GET /sessions/caf"),
    (2, ("runs", "s1", "--run", "r1"), "--run stands alone"),
    (2, ("runs", "--status", "active"), "active"),
    (2, ("cancel",), "which run? interlock cancel RUN"),
    (2, ("interrupt",), "which run? interlock interrupt RUN"),
    (2, ("drain", "s1", "--timeout", "5"), "a duration with its unit"),
    (2, ("drain", "s1", "--timeout", "301s"), "at most 5m"),
    (2, ("drain",), "SESSION"),
]


async def test_what_is_wrong_is_one_line(shell: Shell) -> None:
    async with stub() as server:
        for code, words, said in WRONG:
            assert said in await shell.refuses(code, *words, "--url", server.url), words


@pytest.mark.parametrize(
    "words",
    ["sessions", "sessions s1", "runs", "runs s1", "runs --run r1", "cancel r1", "interrupt r1", "drain s1"],
)
async def test_nobody_there_is_one_line(words: str, shell: Shell) -> None:
    line = await shell.refuses(1, *words.split(), "--url", "http://127.0.0.1:9")
    assert line.startswith("interlock: no answer from http://127.0.0.1:9")
    assert line.endswith("is `interlock serve` running?")


async def test_a_full_server_says_when_to_come_back(shell: Shell) -> None:
    async with stub() as server:
        server.says("GET /runs/r1", problem(503, "draining", "the server stops", ("retry-after", "3")))
        line = await shell.refuses(1, "runs", "--run", "r1", "--url", server.url)
        assert line == "interlock: the server stops; try again in 3 s"


async def test_the_token_is_shown_and_asked_for(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    async with stub() as server:
        server.says("GET /runs/r1", problem(401, "unauthorized", "who are you?"))
        monkeypatch.setenv("INTERLOCK_TOKEN", "s3cret")
        line = await shell.refuses(1, "runs", "--run", "r1", "--url", server.url)
        assert "set INTERLOCK_TOKEN" in line
        assert server.asked[0].headers["authorization"] == "Bearer s3cret"


# -- the page ------------------------------------------------------------------------------------------------

NAMES = ("sessions", "runs", "submit", "tail", "cancel", "interrupt", "drain", "prune")


def documented() -> list[str]:
    """Every command line of the page, without what is said about it."""
    blocks = re.findall(r"^```text\n(.*?)^```", DOCS.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [re.split(r" {2,}", line)[0] for line in lines if line.startswith("interlock ")]


def test_every_command_is_on_the_page() -> None:
    assert {line.split()[1] for line in documented()} >= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
async def test_help_has_an_example(name: str, shell: Shell) -> None:
    """One that can be given as it stands."""
    shown = await shell.says(name, "--help")
    (example,) = re.findall(r"Example: (interlock .*)", shown)
    app.parse_args(shlex.split(example)[1:], exit_on_error=False, print_error=False)
