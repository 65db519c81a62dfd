"""`interlock serve` and the commands beside it, as processes: starting, stopping, being killed."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from gateways import EVENTS, LAST, OK, Upstream, answer, call, caller, chat, event, until, upstream
from processes import Finished, Running, command, serve

MEMORY = 'store = "memory:"\n'
CHAT = "/gateway/p/v1/chat/completions"


def config(provider: Upstream, *lines: str, store: str = "memory:") -> str:
    """One provider, called ``p``, and *lines* of its table."""
    table = "\n".join(lines)
    return f'store = "{store}"\n[providers.p]\nbase_url = "{provider.url}"\ncooldown = "0s"\n{table}\n'


async def gate(server: Running) -> dict[str, Any]:
    """The only gate of *server*."""
    (status,) = (await call(server.url, "GET", "/concurrency/status")).json["providers"]
    return dict(status)


async def is_ready(server: Running) -> bool:
    return (await call(server.url, "GET", "/readyz")).status == 200


async def somebody_waits(server: Running) -> None:
    """Return once a call waits at the gate."""
    async with asyncio.timeout(5):
        while not (await gate(server))["queued"]:  # noqa: ASYNC110 - it is another process that knows
            await asyncio.sleep(0.005)


async def drains(server: Running) -> None:
    """Return once the signal has arrived."""
    async with asyncio.timeout(5):
        while await is_ready(server):  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def one_line(finished: Finished, code: int) -> str:
    """What a command that failed says, which is one line on standard error."""
    assert (finished.code, finished.stdout) == (code, ""), finished
    assert finished.stderr.startswith("interlock: "), finished
    (line,) = finished.stderr.splitlines()
    return line


# -- starting ------------------------------------------------------------------------------------------------


async def test_it_says_where_it_listens_and_for_whom(tmp_path: Path) -> None:
    """And is ready: what it prints can be pasted into a shell."""
    async with upstream() as provider, serve(tmp_path, config(provider, "limit = 3")) as server:
        await until(lambda: len(server.lines) == 7)
        assert server.lines[0].endswith(f"on {server.url}, state in memory:")
        assert server.lines[2] == f"  export P_BASE_URL={server.url}/gateway/p"
        assert server.lines[4] == f"  p: {provider.url}, at most 3 in flight, the caller's key"
        assert server.lines[6] == f"  dashboard: {server.url}/"
        assert (await call(server.url, "GET", "/healthz")).json == {"status": "ok"}
        assert await is_ready(server)
        assert server.stderr() == ""


WRONG = [
    ("[server]\nport = 70000\n", "server.port", "0 to 65535"),
    ('[server]\nhots = "x"\n', "server.hots", "did you mean host?"),
    ('[providers.p]\nbase_url = "ftp://x"\n', "providers.p.base_url", "http://host"),
    ("[providers.p]\n", "providers.p.base_url", "is needed"),
    ('[providers.p]\nbase_url = "http://x"\nlimit = 0\n', "providers.p.limit", "1 to 1000000"),
    ('[providers.p]\nbase_url = "http://x"\ncooldown = 350\n', "providers.p.cooldown", "350ms"),
    (
        '[providers.p]\nbase_url = "http://x"\napi_key = "env:NOPE"\n',
        "providers.p.api_key",
        "NOPE is not set",
    ),
    ('[providers.p]\nbase_url = "http://x"\nrecovery = "auto"\n', "providers.p.recovery", '"probe"'),
    ("[gateway]\nmax_body = 0\n", "gateway.max_body", "32MiB"),
    ('store = "mysql://x"\n', "store", "sqlite:///"),
    ('store = "mysql://u:canary@h/d"\n', "store", "sqlite:///"),
    ('coordination = "redis://:canary@h"\n', "coordination", "local"),
    ("limits = 3\n", "limits", "a table"),
    ("[server\n", "interlock.toml:1", "not valid TOML"),
]


@pytest.mark.parametrize(("text", "key", "allowed"), WRONG)
@pytest.mark.parametrize("words", ["serve --port 0", "config check"])
async def test_a_wrong_configuration_is_one_line(
    words: str, text: str, key: str, allowed: str, tmp_path: Path
) -> None:
    """It names the file, the key and what is allowed, and no secret; exit 2, and nothing was started."""
    (tmp_path / "interlock.toml").write_text(text, encoding="utf-8")
    line = one_line(await command(*words.split(), cwd=tmp_path), 2)
    assert key in line
    assert allowed in line
    assert "canary" not in line
    assert sorted(tmp_path.iterdir()) == [tmp_path / "interlock.toml"]


async def test_a_wrong_variable_is_named(tmp_path: Path) -> None:
    env = {"INTERLOCK_SERVER__PORT": "many"}
    line = one_line(await command("serve", cwd=tmp_path, env=env), 2)
    assert line.startswith('interlock: INTERLOCK_SERVER__PORT: server.port: "many" is not a whole number')


async def test_a_missing_file_is_named(tmp_path: Path) -> None:
    line = one_line(await command("serve", "--config", "nope.toml", cwd=tmp_path), 2)
    assert line == "interlock: nope.toml: cannot be read: No such file or directory"


async def test_a_taken_port_is_one_line(tmp_path: Path) -> None:
    """Exit 1: the configuration is right, the world is not."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for words in (("serve", "--port", port), ("mock-provider", "--port", port)):
            line = one_line(await command(*words, cwd=tmp_path, env={"INTERLOCK_STORE": "memory:"}), 1)
            assert f"cannot listen on 127.0.0.1:{port}" in line


@pytest.mark.parametrize("words", ["serv", "serve --prot 1", "serve --port many", "config", "status --url"])
async def test_wrong_usage_is_exit_2(words: str, tmp_path: Path) -> None:
    """On standard error; `config` alone shows what there is."""
    finished = await command(*words.split(), cwd=tmp_path)
    if words == "config":
        assert (finished.code, finished.stderr) == (0, "")
    else:
        assert (finished.code, finished.stdout) == (2, "")
        assert "Traceback" not in finished.stderr


async def test_wrong_usage_is_one_line(tmp_path: Path) -> None:
    """As every other error."""
    assert "serv" in one_line(await command("serv", cwd=tmp_path), 2)


# -- stopping ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_first_signal_drains(number: signal.Signals, tmp_path: Path) -> None:
    """A stream that runs is finished, who waits is served, who comes is told to come back; then exit 0."""
    async with upstream() as provider, serve(tmp_path, config(provider, "limit = 1")) as server:
        async with caller(server.url) as streaming, caller(server.url) as waiting:
            streaming.ask("POST", CHAT, [], chat(stream=True))
            exchange = await provider.next()
            exchange.write(EVENTS + event({"n": 1}))
            await streaming.head()
            await streaming.chunk()
            waiting.ask("POST", CHAT, [], chat())
            await somebody_waits(server)
            server.process.send_signal(number)
            await drains(server)
            late = await call(server.url, "POST", CHAT, [], chat())
            assert (late.status, late.json["error"]["code"]) == (503, "draining")
            assert (late.header(b"retry-after-ms") or b"").isdigit()
            exchange.write(event({"n": 2}) + LAST)
            assert await streaming.body() == b'data: {"n": 2}\n\n'
            (await provider.next()).write(OK)
            assert (await waiting.answer()).body == b"{}"
        assert await server.ended() == 0
        assert server.stderr() == "interlock: finishing 2 calls; again to stop at once\n"


async def test_an_idle_server_stops_at_once(tmp_path: Path) -> None:
    """Connections without a call keep nobody."""
    async with upstream() as provider, serve(tmp_path, config(provider)) as server:
        provider.will_answer(OK)
        async with caller(server.url) as idle:
            idle.ask()
            await idle.answer()
            server.process.terminate()
            assert await server.ended(within=3) == 0
        assert server.stderr() == ""


async def stopped_twice(tmp_path: Path) -> Running:
    """A server that was told to stop at once while one call ran and another waited."""
    async with upstream() as provider, serve(tmp_path, config(provider, "limit = 1")) as server:
        async with caller(server.url) as streaming, caller(server.url) as waiting:
            streaming.ask("POST", CHAT, [], chat(stream=True))
            exchange = await provider.next()
            exchange.write(EVENTS + event({"n": 1}))
            await streaming.head()
            waiting.ask("POST", CHAT, [], chat())
            await somebody_waits(server)
            server.process.terminate()
            await drains(server)
            server.process.terminate()
            await server.ended(within=3)
            await until(exchange.left.is_set)
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await streaming.body()
        return server


async def test_the_second_signal_stops_at_once(tmp_path: Path) -> None:
    """Nobody is left in doubt: the stream is cut, not ended."""
    await stopped_twice(tmp_path)


async def test_stopping_at_once_is_no_success(tmp_path: Path) -> None:
    """Calls were lost: exit 1."""
    assert (await stopped_twice(tmp_path)).process.returncode == 1


async def test_stopping_at_once_shows_no_stack(tmp_path: Path) -> None:
    """It was asked for."""
    assert "Traceback" not in (await stopped_twice(tmp_path)).stderr()


# -- killed --------------------------------------------------------------------------------------------------


def stored(tmp_path: Path) -> str:
    """What the store has about the provider."""
    database = sqlite3.connect(f"file:{tmp_path / 'interlock.db'}?mode=ro", uri=True)
    try:
        rows = database.execute("SELECT value FROM settings WHERE key = 'provider:p'").fetchall()
    finally:
        database.close()
    return "".join(value for (value,) in rows)


async def reduced(tmp_path: Path, provider: Upstream) -> None:
    """A server whose limit of 3 has been cut to 2, killed once that is in the store."""
    async with serve(tmp_path, config(provider, "limit = 3", store="sqlite:///interlock.db")) as server:
        body = json.dumps({"error": {"code": "concurrency_limit_exceeded"}}).encode()
        provider.will_answer(answer(429, body, (b"retry-after", b"30")))
        assert (await call(server.url, headers=[(b"x-interlock-timeout-ms", b"0")])).status == 429
        await until(lambda: '"effective":2' in stored(tmp_path))
        server.process.kill()
        await server.ended()


async def test_what_a_limit_has_learnt_survives_a_kill(tmp_path: Path) -> None:
    """The limit in force, what it was cut from and why, and how that is said; not the pause."""
    async with upstream() as provider:
        await reduced(tmp_path, provider)
        again = config(provider, "limit = 3", store="sqlite:///interlock.db")
        async with serve(tmp_path, again) as server:
            status = await gate(server)
            told = {name: status[name] for name in ("limit", "configuredLimit", "autoReducedFrom", "reason")}
            assert told == {"limit": 2, "configuredLimit": 3, "autoReducedFrom": 3, "reason": "concurrency"}
            assert status["autoReduced"] is True
            assert status["notice"].startswith("Concurrency limit auto-reduced to 2 after a 429")
            shown = await command("status", "--url", server.url, cwd=tmp_path)
            assert "p" in shown.stdout
            assert "auto-reduced to 2" in " ".join(shown.stdout.split())
            provider.will_answer(OK)
            got = await call(server.url)
            assert got.header(b"ratelimit-policy") == b'"concurrency";q=2;qu="concurrent-requests"'


async def test_an_edited_file_counts_after_a_cut(tmp_path: Path) -> None:
    """Nobody set the limit at run time: the operator's word is the file's, and ends the reduction."""
    async with upstream() as provider:
        await reduced(tmp_path, provider)
        again = config(provider, "limit = 7", store="sqlite:///interlock.db")
        async with serve(tmp_path, again) as server:
            assert (await gate(server))["configuredLimit"] == 7


# -- the commands beside it ----------------------------------------------------------------------------------


async def test_status_shows_every_gate(tmp_path: Path) -> None:
    """As a table for people, as the server's own answer for programs; asked where the configuration says."""
    async with upstream() as provider:
        other = f'[providers.q]\nbase_url = "{provider.url}"\n[limits]\nstreams = 9\n'
        async with (
            serve(tmp_path, config(provider, "limit = 2") + other) as server,
            caller(server.url) as busy,
        ):
            busy.ask()
            working = await provider.next()
            env = {"INTERLOCK_URL": server.url}
            table = (await command("status", cwd=tmp_path, env=env)).stdout
            rows = {row.split()[0]: row.split()[1:] for row in table.splitlines() if row}
            assert rows["p"] == ["1/2", "0", "0", "-", "open"]
            assert rows["q"] == ["0/∞", "0", "0", "-", "open"]
            assert rows["streams"] == ["1/9", "0"]
            as_json = await command("status", "--json", cwd=tmp_path, env=env)
            document = json.loads(as_json.stdout)
            assert (
                document["providers"]
                == (await call(server.url, "GET", "/concurrency/status")).json["providers"]
            )
            assert [one["inFlight"] for one in document["providers"]] == [1]
            port = {"INTERLOCK_SERVER__PORT": server.url.rpartition(":")[2]}
            assert (await command("status", cwd=tmp_path, env=port)).stdout == table
            working.write(OK)
            await busy.answer()


async def test_status_shows_the_token(tmp_path: Path) -> None:
    """To the server, and to nobody else."""
    async with serve(tmp_path, MEMORY + '[server]\ntoken = "s3cret"\n') as server:
        words = ("status", "--url", server.url)
        right = await command(*words, cwd=tmp_path, env={"INTERLOCK_TOKEN": "s3cret"})
        assert (right.code, right.stderr) == (0, "")
        wrong = await command(*words, cwd=tmp_path, env={"INTERLOCK_TOKEN": "wrong"})
        assert wrong.code == 1
        assert "401" in wrong.stderr
        assert "s3cret" not in right.stdout + wrong.stderr


async def test_a_refused_status_is_one_line(tmp_path: Path) -> None:
    """Saying what to do about it."""
    async with serve(tmp_path, MEMORY + '[server]\ntoken = "s3cret"\n') as server:
        line = one_line(await command("status", "--url", server.url, cwd=tmp_path), 1)
        assert "INTERLOCK_TOKEN" in line
        assert "no answer" not in line


async def test_status_of_nobody_is_one_line(tmp_path: Path) -> None:
    line = one_line(await command("status", "--url", "http://127.0.0.1:9", cwd=tmp_path), 1)
    assert "http://127.0.0.1:9" in line
    assert "interlock serve" in line


async def test_a_right_configuration_is_said_to_be_right(tmp_path: Path) -> None:
    """With its secrets masked where all of it is shown."""
    file = tmp_path / "my.toml"
    file.write_text(
        'store = "memory:"\n[providers.p]\nbase_url = "http://x"\napi_key = "sk-canary"\nlimit = 3\n'
        '[server]\ntoken = "env:CANARY"\n',
        encoding="utf-8",
    )
    env = {"CANARY": "canary-too"}
    said = await command("config", "check", "my.toml", cwd=tmp_path, env=env)
    assert (said.code, said.stderr) == (0, "")
    assert said.stdout == "my.toml: ok; providers: p; store: memory:\n"
    shown = await command("config", "check", "my.toml", "--json", cwd=tmp_path, env=env)
    assert json.loads(shown.stdout)["providers"]["p"]["api_key"] == "***"
    assert "canary" not in shown.stdout
