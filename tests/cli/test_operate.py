"""The operator's commands against a real server: each says in a line what it did, or what to do."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateways import call, caller, chat, upstream
from interlock import (
    ConcurrencyGovernor,
    ConcurrencyLimiter,
    InvalidOperation,
    LimitExceeded,
    RemoteAdmission,
)
from processes import Finished, Running, command, serve

CONFIG = """\
store = "sqlite:///interlock.db"
[limits]
tools = 8
[providers.p]
base_url = "{url}"
limit = 1
cooldown = "0s"
"""


@asynccontextmanager
async def served(tmp_path: Path, url: str = "http://127.0.0.1:9", more: str = "") -> AsyncIterator[Running]:
    async with serve(tmp_path, CONFIG.format(url=url) + more) as server:
        yield server


class Shell:
    """Commands in a directory, with the server of this test as theirs."""

    def __init__(self, directory: Path, server: Running) -> None:
        self._directory = directory
        self._env = {"INTERLOCK_URL": server.url}

    async def run(self, *words: str) -> Finished:
        return await command(*words, cwd=self._directory, env=self._env)

    async def says(self, *words: str) -> str:
        """What a command prints that succeeds."""
        finished = await self.run(*words)
        assert (finished.code, finished.stderr) == (0, ""), finished
        return finished.stdout

    async def refuses(self, code: int, *words: str) -> str:
        """The one line of a command that fails."""
        finished = await self.run(*words)
        assert (finished.code, finished.stdout) == (code, ""), finished
        (line,) = finished.stderr.splitlines()
        assert line.startswith("interlock: ")
        return line


async def limits(server: Running) -> dict[str, int | None]:
    listed = (await call(server.url, "GET", "/limits")).json["limits"]
    return {one["name"]: one["capacity"] for one in listed}


async def test_limits_are_shown_and_set(tmp_path: Path) -> None:
    """Of the fleet and of a provider, by the names that a person knows; durable over a kill."""
    async with served(tmp_path) as server:
        shell = Shell(tmp_path, server)
        rows = [line.split() for line in (await shell.says("limits")).splitlines()]
        assert ["tools", "0/8", "0"] in rows
        assert ["provider:p", "0/1", "0"] in rows
        assert await shell.says("limits", "set", "tools", "12") == "tools: 0 of 12 in use\n"
        assert await shell.says("limits", "set", "global", "16") == "global: 0 of 16 in use\n"
        assert await shell.says("limits", "set", "global", "unlimited") == "global: 0 of ∞ in use\n"
        assert await shell.says("limits", "set", "p", "3") == "p: 0 of 3 in use\n"
        answered = json.loads(await shell.says("limits", "set", "runs", "5", "--json"))
        assert (answered["name"], answered["capacity"]) == ("runs", 5)
        listed = json.loads(await shell.says("limits", "--json"))
        expected = {
            "global": None,
            "provider:p": 3,
            "runs": 5,
            "sessions": None,
            "streams": None,
            "tools": 12,
        }
        assert {one["name"]: one["capacity"] for one in listed["limits"]} == expected
        server.process.kill()
        await server.ended()
    async with served(tmp_path) as server:
        assert await limits(server) == expected


async def test_a_provider_s_limit_is_taken_away(tmp_path: Path) -> None:
    async with served(tmp_path) as server:
        shell = Shell(tmp_path, server)
        assert await shell.says("limits", "rm", "p") == "p: unlimited\n"
        assert (await limits(server))["provider:p"] is None
        line = await shell.refuses(1, "limits", "rm", "p")
        assert "No concurrency limit configured for this provider" in line


async def test_a_cooldown_is_shown_and_set(tmp_path: Path) -> None:
    async with served(tmp_path) as server:
        shell = Shell(tmp_path, server)
        assert await shell.says("cooldown", "set", "p", "350ms") == "p: slots cool for 350 ms\n"
        assert (await shell.says("cooldown")).splitlines()[1].split() == ["p", "350", "ms"]
        as_json = await shell.says("cooldown", "--json")
        assert json.loads(as_json) == {"cooldowns": [{"providerId": "p", "cooldownMs": 350}]}
        answered = await shell.says("cooldown", "set", "p", "2s", "--json")
        assert json.loads(answered) == {"providerId": "p", "cooldownMs": 2000}


async def test_a_provider_is_paused_and_resumed(tmp_path: Path) -> None:
    """Nobody is let in meanwhile; calls of before go on."""
    async with upstream() as provider, served(tmp_path, provider.url) as server:
        shell = Shell(tmp_path, server)
        assert await shell.says("pause", "p", "1h") == "p: paused for 3600 s\n"
        refused = await call(server.url, headers=[(b"x-interlock-timeout-ms", b"0")], body=chat())
        assert refused.status == 429
        assert json.loads(await shell.says("pause", "p", "1s", "--json"))["paused"] is True
        assert await shell.says("resume", "p") == "p: open\n"
        assert json.loads(await shell.says("resume", "p", "--json")) == {"providerId": "p", "paused": False}
        provider.will_answer(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        assert (await call(server.url, body=chat())).status == 200


async def test_a_wait_is_explained(tmp_path: Path) -> None:
    """Who waits and for how long; what for, who has it and since when, and what is not known."""
    conversation = (b"x-interlock-conversation", b"ada")
    async with upstream() as provider, served(tmp_path, provider.url) as server:
        shell = Shell(tmp_path, server)
        assert await shell.says("explain") == "nobody waits\n"
        assert json.loads(await shell.says("explain", "--json")) == {"waiting": [], "next": None}
        async with caller(server.url) as running, caller(server.url) as waiting:
            running.ask(headers=[conversation], body=chat())
            exchange = await provider.next()
            waiting.ask(headers=[(b"x-interlock-conversation", b"ben")], body=chat())
            async with caller(server.url) as asking:
                waiter = ""
                while not waiter:
                    asking.ask("GET", "/waiting")
                    waiter = "".join(one["id"] for one in (await asking.answer()).json["waiting"])
            listed = (await shell.says("explain")).splitlines()
            assert listed[1].split()[:2] == [waiter, "ben"]
            assert "provider:p" in listed[1]
            told = (await shell.says("explain", waiter)).splitlines()
            assert told[0].startswith(f"{waiter} (ben) waits for ")
            assert ", 0 ahead, gives up in " in told[0]
            assert told[1] == "└── 'provider:p' is full (1/1 in use, held by ada)"
            assert told[2].startswith("    ├── ada since ")
            assert told[3] == "    └── → goes when 1 slot comes back, or by: interlock limits set p 2"
            as_json = json.loads(await shell.says("explain", waiter, "--json"))
            assert (as_json["id"], as_json["blocks"][0]["limit"]) == (waiter, "provider:p")
            exchange.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            (await provider.next()).write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            await waiting.answer()
        assert "nobody waits under" in await shell.refuses(1, "explain", waiter)


WRONG = [
    (2, ("limits", "set", "tools", "0"), "a whole number from 1"),
    (2, ("limits", "set", "tools", "-1"), ""),
    (2, ("limits", "set", "tools", "1.5"), "a whole number from 1"),
    (2, ("limits", "set", "tools", "9" * 30), "a whole number from 1"),
    (2, ("limits", "set", "tols", "3"), "known are: global, p, runs, sessions, streams, tools"),
    (2, ("limits", "set", "tools"), "CAPACITY"),
    (2, ("limits", "put", "tools", "3"), "put"),
    (1, ("limits", "rm", "q"), "No concurrency limit"),
    (2, ("cooldown", "set", "p", "350"), "a duration with its unit"),
    (2, ("cooldown", "set", "p", "2d"), "at most"),
    (2, ("pause", "p", "5"), "a duration with its unit"),
    (2, ("pause", "p"), "DURATION"),
    (1, ("pause", "q", "5s"), "unknown provider 'q'; known are: p"),
    (1, ("resume", "q"), "unknown provider 'q'; known are: p"),
    (1, ("explain", "nobody"), "nobody waits under 'nobody'"),
]


async def test_what_is_wrong_is_one_line(tmp_path: Path) -> None:
    """Usage is exit 2, the rest 1; nothing has changed."""
    async with served(tmp_path) as server:
        shell = Shell(tmp_path, server)
        before = await limits(server)
        for code, words, said in WRONG:
            assert said in await shell.refuses(code, *words), words
        assert await limits(server) == before


@pytest.mark.parametrize(
    "words",
    [
        "limits",
        "limits set tools 3",
        "limits rm p",
        "cooldown",
        "cooldown set p 1s",
        "pause p 1s",
        "resume p",
        "explain",
    ],
)
async def test_nobody_there_is_one_line(words: str, tmp_path: Path) -> None:
    finished = await command(*words.split(), "--url", "http://127.0.0.1:9", cwd=tmp_path)
    assert (finished.code, finished.stdout) == (1, "")
    (line,) = finished.stderr.splitlines()
    assert line.startswith("interlock: no answer from http://127.0.0.1:9")
    assert line.endswith("is `interlock serve` running?")


async def test_the_token_is_shown_to_the_server(tmp_path: Path) -> None:
    """And asked for where it is wrong."""
    async with served(tmp_path, more='[server]\ntoken = "s3cret"\n') as server:
        words = ("limits", "set", "tools", "3", "--url", server.url)
        right = await command(*words, cwd=tmp_path, env={"INTERLOCK_TOKEN": "s3cret"})
        assert (right.code, right.stdout) == (0, "tools: 0 of 3 in use\n")
        wrong = await command(*words, cwd=tmp_path)
        assert (wrong.code, wrong.stdout) == (1, "")
        assert "set INTERLOCK_TOKEN" in wrong.stderr


@pytest.mark.parametrize(
    "words",
    ["limits", "limits set", "limits rm", "cooldown", "cooldown set", "pause", "resume", "explain", "top"],
)
async def test_help_has_an_example(words: str, tmp_path: Path) -> None:
    shown = (await command(*words.split(), "--help", cwd=tmp_path)).stdout
    assert f"Example: interlock {words}" in shown


# -- the library through the same server -----------------------------------------------------------


async def test_the_limiter_and_the_governor_work_through_a_server(tmp_path: Path) -> None:
    """For every process the same slots; what the server says counts where nobody says otherwise."""
    async with served(tmp_path) as server:
        first, second = RemoteAdmission(server.url), RemoteAdmission(server.url)
        try:
            limiter = ConcurrencyLimiter(2, 1, admission=first)
            other = ConcurrencyLimiter(admission=second)
            async with limiter.acquire_session_slot("s1"), limiter.acquire_run_slot("s1", "r1"):
                with pytest.raises(
                    LimitExceeded, match=r"Maximum parallel runs limit \(1\) exceeded"
                ) as full:
                    await other.acquire_run_slot("s1", "r2")
                assert full.value.code == "max_runs_exceeded"
                await second.refresh()
                with pytest.raises(InvalidOperation, match="belongs to session 's1', not to 's2'"):
                    await other.acquire_run_slot("s2", "r1")
            async with other.holder("worker-1", lease=5.0) as holder:
                await holder.acquire_run_slot("s2", "r2", timeout=5.0)
                await first.refresh()
                assert limiter.status().active_runs == 1
            await first.refresh()
            assert limiter.status().active_runs == 0
            governor = ConcurrencyGovernor(max_tools_per_agent=1, admission=first)
            async with governor.acquire_stream() as stream, governor.acquire_tool(agent="ada", parent=stream):
                await first.refresh()
                stats = governor.stats()
                assert (stats.tools_available, stats.tools_max, stats.streams_max) == (7, 8, None)
        finally:
            await first.aclose()
            await second.aclose()
