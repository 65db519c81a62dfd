"""``interlock token``: through a running server, without one, and what is printed where."""

from __future__ import annotations

import asyncio
import io
import json
import os
import time
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import pytest

from gateways import Answer, call, chat
from interlock.cli import main
from processes import Finished, Running, command, environment, serve
from served_tokens import bearer

CONFIG = """\
store = "sqlite:///interlock.db"
{more}
[providers.p]
base_url = "http://127.0.0.1:9"
"""


def write(tmp_path: Path, more: str = "") -> str:
    """A configuration there; on a port where nobody is, or *more*."""
    text = CONFIG.format(more=more or "[server]\nport = 9")
    (tmp_path / "interlock.toml").write_text(text)
    return text


async def token(tmp_path: Path, *words: str, shown: str = "", url: str = "") -> Finished:
    """What ``interlock token`` does in *tmp_path*: in a thread of this process, which is quicker to start."""
    env = {"INTERLOCK_TOKEN": shown, "INTERLOCK_URL": url}
    return await asyncio.to_thread(
        _token, tmp_path, words, {name: text for name, text in env.items() if text}
    )


def _token(tmp_path: Path, words: tuple[str, ...], env: dict[str, str]) -> Finished:
    out, errors = io.StringIO(), io.StringIO()
    with (
        chdir(tmp_path),
        patch.dict(os.environ, environment(env), clear=True),
        redirect_stdout(out),
        redirect_stderr(errors),
        pytest.raises(SystemExit) as left,
    ):
        main(["token", *words])
    assert isinstance(left.value.code, int)
    return Finished(left.value.code, out.getvalue(), errors.getvalue())


async def made(tmp_path: Path, *words: str, shown: str = "", url: str = "") -> str:
    """The token that ``interlock token create`` prints, and nothing else."""
    finished = await token(tmp_path, "create", *words, shown=shown, url=url)
    assert finished.code == 0, finished
    (line,) = finished.stdout.splitlines()
    assert line.startswith("il_")
    return line


async def asked(server: Running, path: str, shown: str, method: str = "GET") -> Answer:
    body = chat() if method == "POST" else b""
    return await call(server.url, method, path, [bearer(shown)] if shown else [], body)


async def test_the_whole_way(tmp_path: Path) -> None:
    """Made where no server runs yet; then made and revoked at it, at once; kept over a kill; seen nowhere."""
    text = write(tmp_path)
    first = await command("token", "create", "root", "--scope", "admin", cwd=tmp_path)
    assert (first.code, first.stderr) == (0, "")
    root = first.stdout.removesuffix("\n")
    heard = []
    async with serve(tmp_path, text) as server:
        assert (await asked(server, "/limits", "")).status == 401
        assert (await asked(server, "/healthz", "")).status == 200
        ci = await made(
            tmp_path,
            "ci",
            "--scope",
            "gateway",
            "--scope",
            "read",
            "--expires",
            "90d",
            shown=root,
            url=server.url,
        )
        began = time.monotonic()
        assert (await asked(server, "/limits", ci)).status == 200
        assert (await asked(server, "/gateway/p/v1/chat/completions", ci, "POST")).status == 502
        assert time.monotonic() - began < 1
        assert (await asked(server, "/sessions", ci, "POST")).status == 403
        assert (await asked(server, "/tokens", ci)).status == 403

        listed = await token(tmp_path, "list", shown=root, url=server.url)
        rows = [line.split() for line in listed.stdout.splitlines()]
        assert ["root", "admin"] in [row[:2] for row in rows]
        assert ["ci", "gateway,", "read"] in [row[:3] for row in rows]
        as_json = await token(tmp_path, "list", "--json", shown=root, url=server.url)
        (first, _) = json.loads(as_json.stdout)["tokens"]
        assert (first["name"], first["scopes"]) == ("ci", ["gateway", "read"])
        assert first["expiresAt"] - first["createdAt"] == 90 * 86_400_000

        old = await made(tmp_path, "old", "--scope", "read", shown=root, url=server.url)
        gone = await token(tmp_path, "revoke", "old", shown=root, url=server.url)
        assert (gone.code, gone.stdout, gone.stderr) == (0, "old: revoked\n", "")
        assert (await asked(server, "/limits", old)).status == 401
        low = await token(tmp_path, "list", shown=ci, url=server.url)
        assert (low.code, low.stdout) == (1, "")
        assert "has not the scope 'admin'" in low.stderr
        heard += [listed.stdout, as_json.stdout, low.stderr, gone.stdout, *server.lines, server.stderr()]
        server.process.kill()
        await server.ended()
    heard += [file.read_bytes().decode("latin-1") for file in tmp_path.glob("interlock.db*")]
    async with serve(tmp_path, text) as server:
        assert (await asked(server, "/limits", ci)).status == 200
        assert (await asked(server, "/limits", old)).status == 401
        heard += [*server.lines, server.stderr()]
    secrets = (root, ci, old)
    assert [one for one in heard for secret in secrets if secret in one] == []


async def test_without_a_server(tmp_path: Path) -> None:
    """The store is opened itself; who has no admin is told so beside the token, not in it."""
    write(tmp_path)
    empty = await token(tmp_path, "list")
    assert (empty.code, empty.stdout, empty.stderr) == (0, "there are no tokens\n", "")
    first = await token(tmp_path, "create", "ci", "--scope", "gateway", "--json")
    answer = json.loads(first.stdout)
    assert (answer["scopes"], answer["adminLeft"]) == (["gateway"], False)
    assert answer["token"].startswith("il_")
    assert first.stderr.startswith("interlock: note: no token may change limits")
    await made(tmp_path, "root", "--scope", "admin", "--expires", "12h")
    taken = await token(tmp_path, "create", "ci", "--scope", "read")
    assert (taken.code, taken.stdout) == (1, "")
    assert "there is a token 'ci' already" in taken.stderr
    listed = await token(tmp_path, "list")
    assert [row.split()[0] for row in listed.stdout.splitlines()] == ["token", "ci", "root"]
    gone = await token(tmp_path, "revoke", "ci")
    assert (gone.code, gone.stdout) == (0, "ci: revoked\n")
    again = await token(tmp_path, "revoke", "ci")
    assert (again.code, again.stdout) == (1, "")
    assert "there is no token 'ci'; known are: root" in again.stderr


async def test_on_terms(tmp_path: Path) -> None:
    """They are kept and listed; without any, nothing is said of them."""
    write(tmp_path)
    words = (
        "--tenant",
        "acme",
        "--min-priority",
        "-5",
        "--requests-per-day",
        "10",
        "--permit-seconds-per-day",
        "60",
    )
    await made(tmp_path, "hers", "--scope", "submit", *words)
    await made(tmp_path, "plain", "--scope", "read")
    hers, plain = json.loads((await token(tmp_path, "list", "--json")).stdout)["tokens"]
    terms = {"tenant": "acme", "minPriority": -5, "requestsPerDay": 10, "permitSecondsPerDay": 60}
    assert {name: hers[name] for name in hers if name not in plain} == terms
    listed = await token(tmp_path, "list")
    assert ["hers", "submit", "acme"] in [line.split()[:3] for line in listed.stdout.splitlines()]


WRONG = [
    (2, ("create", "a"), "--scope"),
    (2, ("create", "a", "--scope", "admin", "--tenant", "x"), "tenant: an admin"),
    (2, ("create", "a", "--scope", "read", "--tenant", "x@y"), "tenant: 'x@y' is not"),
    (2, ("create", "a", "--scope", "read", "--min-priority", "5000"), "-1000 to 1000"),
    (2, ("create", "a", "--scope", "read", "--requests-per-day", "0"), "requests-per-day: 0"),
    (2, ("create", "a", "--scope", "root"), "one or more of gateway, submit, read, admin"),
    (2, ("create", "a b", "--scope", "read"), "name: 'a b'"),
    (2, ("create", "a", "--scope", "read", "--expires", "90"), "a duration with its unit"),
    (2, ("create", "a", "--scope", "read", "--expires", "0s"), "a duration above 0"),
    (2, ("create", "a", "--scope", "read", "--expires", "9999d"), "at most"),
    (2, ("create",), "NAME"),
    (2, ("revoke",), "NAME"),
    (1, ("revoke", "nobody"), "there is no token 'nobody'; known are: none"),
    (2, ("remove", "a"), "remove"),
]


@pytest.mark.parametrize(("code", "words", "said"), WRONG)
async def test_what_is_wrong_is_one_line(
    code: int, words: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    write(tmp_path)
    finished = await token(tmp_path, *words)
    assert (finished.code, finished.stdout) == (code, "")
    (line,) = finished.stderr.splitlines()
    assert line.startswith("interlock: ")
    assert said in line


async def test_a_token_is_made_where_a_server_reads_it(tmp_path: Path) -> None:
    """Not in a new store of any directory, not beside a server that was named, not in memory."""
    nowhere = await token(tmp_path, "create", "a", "--scope", "read")
    assert nowhere.code == 1
    assert "there is no interlock.db" in nowhere.stderr
    write(tmp_path)
    named = await token(tmp_path, "create", "a", "--scope", "read", "--url", "http://127.0.0.1:9")
    assert named.code == 1
    assert "no answer from http://127.0.0.1:9" in named.stderr
    assert list(tmp_path.glob("*.db")) == []
    (tmp_path / "memory.toml").write_text('store = "memory:"\n[server]\nport = 9\n')
    memory = await token(tmp_path, "create", "a", "--scope", "read", "--config", "memory.toml")
    assert memory.code == 1
    assert "is `interlock serve` running?" in memory.stderr
    async with serve(tmp_path, CONFIG.format(more="[server]\nport = 9")):
        elsewhere = await token(tmp_path, "create", "a", "--scope", "read")
        assert elsewhere.code == 1
        assert "--url" in elsewhere.stderr


async def test_the_server_of_the_configuration_is_found(tmp_path: Path) -> None:
    """By the address in the file that was named, from anywhere."""
    async with serve(tmp_path, CONFIG.format(more="")) as server:
        port = server.url.rpartition(":")[2]
        away = tmp_path / "away"
        away.mkdir()
        config = tmp_path / "named.toml"
        config.write_text(CONFIG.format(more=f"[server]\nport = {port}"))
        shown = await made(away, "a", "--scope", "read", "--config", str(config))
        assert (await asked(server, "/limits", shown)).status == 200
        assert (await asked(server, "/limits", "")).status == 401


async def test_a_stream_that_is_read_ends_when_its_token_is_revoked(tmp_path: Path) -> None:
    """Of a running server, within a second."""
    agent = '[agents.a]\ntype = "command"\ncommand = ["cat"]\n'
    async with serve(tmp_path, CONFIG.format(more=agent)) as server:
        await call(server.url, "POST", "/sessions", body=b'{"id": "s1", "agent": "a"}')
        root = await made(tmp_path, "root", "--scope", "admin", url=server.url)
        reader = await made(tmp_path, "reader", "--scope", "read", url=server.url, shown=root)
        tail = asyncio.create_task(
            command(
                *("tail", "s1", "--follow"),
                cwd=tmp_path,
                env={"INTERLOCK_URL": server.url, "INTERLOCK_TOKEN": reader},
            )
        )
        done, _ = await asyncio.wait((tail,), timeout=1.5)
        assert not done, tail
        await token(tmp_path, "revoke", "reader", url=server.url, shown=root)
        async with asyncio.timeout(5):  # it connects once more, and is told
            finished = await tail
        assert finished.code == 1
        assert "401" in finished.stderr


@pytest.mark.parametrize("words", ["create", "list", "revoke"])
async def test_help_has_an_example(words: str, tmp_path: Path) -> None:
    shown = (await token(tmp_path, words, "--help")).stdout
    assert f"Example: interlock token {words}" in shown
