"""`interlock doctor`: each thing that is wrong is named, with its evidence and what to do; else exit 0."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from socket import socket
from typing import Any

import pytest

from gateways import until
from interlock.cli import surroundings
from interlock.cli.surroundings import environment, has_wal_reset_bug, reachable
from interlock.config.structs import ProviderConfig
from interlock.stores import open_store
from processes import serve
from shells import Shell
from upstreams import serving_tls

CONFIG = """\
store = "sqlite:///interlock.db"
[server]
port = {port}
[providers.p]
base_url = "{url}"
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("INTERLOCK_STORE", "OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with socket() as free:  # whatever else may listen on the port that is ours by default
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("INTERLOCK_SERVER__PORT", str(free.getsockname()[1]))
    return tmp_path


class Counting(asyncio.Protocol):
    """A provider that keeps what it is sent."""

    def __init__(self) -> None:
        self.connections = 0
        self.heard = b""

    def connection_made(self, transport: Any) -> None:
        self.connections += 1

    def data_received(self, data: bytes) -> None:
        self.heard += data


async def listening(protocol: Counting) -> tuple[asyncio.Server, int]:
    server = await asyncio.get_running_loop().create_server(lambda: protocol, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1]


async def found(shell: Shell, *words: str) -> tuple[int, dict[str, tuple[str, str, str]]]:
    """The exit code, and what was found: severity, evidence and remedy by what it is."""
    finished = await shell.run("doctor", *words, "--json")
    assert finished.stderr == ""
    document = json.loads(finished.stdout)
    assert document["ok"] == (finished.code == 0)
    assert all(one["remedy"] for one in document["findings"] if one["severity"] != "ok")
    return finished.code, {
        one["what"]: (one["severity"], one["evidence"], one["remedy"]) for one in document["findings"]
    }


# -- this machine


@pytest.mark.parametrize(
    ("version", "has"),
    [
        ((3, 6, 23), False),
        ((3, 7, 0), True),
        ((3, 40, 1), True),
        ((3, 44, 5), True),
        ((3, 44, 6), False),
        ((3, 45, 0), True),
        ((3, 50, 6), True),
        ((3, 50, 7), False),
        ((3, 51, 2), True),
        ((3, 51, 3), False),
        ((3, 53, 0), False),
    ],
)
def test_the_versions_with_the_bug_are_known(version: tuple[int, int, int], has: bool) -> None:
    """3.7.0 to 3.51.2, but for the older lines that were given the fix."""
    assert has_wal_reset_bug(version) is has


def test_this_machine_is_looked_at() -> None:
    """What is too old is an error, what may become one a warning."""
    right = environment((3, 53, 0), 20_000)
    assert [one.severity for one in right] == ["ok", "ok", "ok"]
    assert [one.severity for one in environment((3, 36, 0), 20_000)] == ["ok", "error", "ok"]
    _, bug, few = environment((3, 51, 2), 256)
    assert (bug.severity, few.severity) == ("warn", "warn")
    assert "SQLite 3.51.2 has the WAL-reset bug" in bug.evidence
    assert few.remedy.startswith("ulimit -n ")


async def test_nothing_is_wrong_in_an_empty_directory(home: Path, shell: Shell) -> None:
    """Nothing is made there either; who offers providers that nobody chose is warned only."""
    code, all_ = await found(shell)
    assert code == 0
    assert all_["none runs"][0] == "ok"
    assert all_["there is none yet; the first server makes it"][1] == "interlock.db"
    assert list(home.iterdir()) == []


# -- the configuration


@pytest.mark.parametrize(
    ("text", "what", "evidence"),
    [
        ("[limits\n", "it cannot be read", "not valid TOML"),
        ("[limits]\ntool = 3\n", "it cannot be read", "limits.tool: not a known key; did you mean tools?"),
        ('[server]\ntoken = "env:NOT_SET"\n', "it cannot be read", "NOT_SET is not set"),
        ('coordination = "redis://db"\n', "no server can start", "comes with a later version"),
    ],
)
async def test_a_wrong_configuration_is_named(
    home: Path, shell: Shell, text: str, what: str, evidence: str
) -> None:
    """With the key, and the command that checks it again."""
    (home / "wrong.toml").write_text(text, encoding="utf-8")
    code, all_ = await found(shell, "--config", "wrong.toml")
    severity, said, remedy = all_[what]
    assert (code, severity) == (1, "error")
    assert evidence in said
    assert remedy.endswith("interlock config check wrong.toml")


# -- the store and the server


async def test_a_running_server_examines_itself_and_its_store(
    home: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it runs it is asked; after a kill its store is read as it was left, and left like that."""
    provider, port = await listening(counting := Counting())
    config = CONFIG.format(port=7411, url=f"http://127.0.0.1:{port}")
    async with serve(home, config) as server:
        pid = server.process.pid
        code, all_ = await found(shell, "--url", server.url)
        assert code == 0
        assert all_["a server runs"][1].endswith(f"process {pid}")
        assert all_["the ledger leads to the limits in force"][0] == "ok"
        assert all_["what is held is what is counted, and nobody waits without need"][0] == "ok"
        assert "interlock.db: 0 sessions" in all_["the database is whole"][1]
        assert all_["p can be reached"][0] == "ok"
        # Without its address, only the lock tells of it.
        all_ = (await found(shell, "--config", "interlock.toml"))[1]
        assert (
            f"already open in process {pid}"
            in (all_["another process has it open than the server that was asked"][1])
        )
        with closing(sqlite3.connect(home / "interlock.db")) as db:
            insert = "INSERT INTO settings VALUES ('ledger:tools:000000000007', '?')"
            db.execute(insert)
            db.commit()
        code, all_ = await found(shell, "--url", server.url)
        assert (code, all_["the ledger of limits has a break"][0]) == (0, "warn")
        server.process.kill()
        await server.ended()
    left = sorted(path.name for path in home.iterdir())
    code, all_ = await found(shell)
    assert code == 0
    assert all_["the database is whole"][0] == "ok"
    assert sorted(path.name for path in home.iterdir()) == left
    code, all_ = await found(shell, "--url", server.url)
    assert (code, all_["the server cannot be reached"][0]) == (1, "error")
    await until(lambda: counting.connections == 5)
    assert counting.heard == b""
    provider.close()


async def broken(home: Path) -> None:
    store = await open_store("sqlite:///interlock.db")
    await store.aclose()
    with closing(sqlite3.connect("interlock.db")) as db:
        db.executescript(
            "INSERT INTO sessions VALUES (1, 's1', 'active', 'a', 1, 1, 'enqueue', '{}', '[]', 1.0, NULL);"
            "INSERT INTO counters VALUES (1, 3, 0, 1.0)"
        )


async def no_database(home: Path) -> None:
    (home / "interlock.db").write_bytes(b"something else altogether " * 99)


async def no_folder(home: Path) -> None:
    text = (home / "interlock.toml").read_text(encoding="utf-8")
    (home / "interlock.toml").write_text(text.replace("///", "///nowhere/"), encoding="utf-8")


@pytest.mark.parametrize(
    ("harm", "what", "evidence"),
    [
        (broken, "events are missing", "s1 lacks 3 of 3, the first is 1"),
        (no_database, "the database cannot be read", "file is not a database"),
        (no_folder, "there is no place for it", "nowhere does not exist"),
    ],
)
async def test_a_wrong_store_is_named(
    home: Path, shell: Shell, harm: Callable[[Path], Any], what: str, evidence: str
) -> None:
    (home / "interlock.toml").write_text('store = "sqlite:///interlock.db"\n', encoding="utf-8")
    await harm(home)
    code, all_ = await found(shell)
    assert (code, all_[what][0]) == (1, "error")
    assert evidence in all_[what][1]


async def test_others_may_not_read_the_store(home: Path, shell: Shell) -> None:
    await (await open_store("sqlite:///interlock.db")).aclose()
    assert "others on this machine may read or write it" not in (await found(shell))[1]
    (home / "interlock.db").chmod(0o644)
    assert (await found(shell))[1]["others on this machine may read or write it"] == (
        "warn",
        "interlock.db has mode 644",
        "chmod 600 interlock.db",
    )


async def test_the_token_is_asked_for(home: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the server has one; what it answers without is no secret."""
    provider, port = await listening(Counting())
    more = CONFIG.format(port=7411, url=f"http://127.0.0.1:{port}").replace(
        "[pro", 'token = "s3cret"\n[pro', 1
    )
    async with serve(home, more) as server:
        code, all_ = await found(shell, "--url", server.url)
        assert (code, all_["it cannot be asked"][0]) == (1, "error")
        assert "INTERLOCK_TOKEN" in all_["it cannot be asked"][2]
        monkeypatch.setenv("INTERLOCK_TOKEN", "s3cret")
        code, all_ = await found(shell, "--url", server.url)
        assert (code, all_["a server runs"][0]) == (0, "ok")
    provider.close()


async def test_what_listens_may_be_something_else(home: Path, shell: Shell) -> None:
    provider, port = await listening(Counting())
    provider.close()
    other = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", port)
    code, all_ = await found(shell, "--url", f"http://127.0.0.1:{port}")
    assert (code, all_["what listens is no server of Interlock that works"][0]) == (1, "error")
    other.close()


# -- providers


async def test_providers_are_reached_or_it_is_said_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A closed port, a certificate of nobody's, one that does not speak TLS; all at once, nothing is sent."""
    monkeypatch.setattr(surroundings, "CONNECTS_WITHIN", 0.5)
    context, _ = serving_tls(tmp_path)
    own = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    silent, silent_port = await listening(Counting())
    gone, gone_port = await listening(Counting())
    gone.close()
    await gone.wait_closed()
    own_port = own.sockets[0].getsockname()[1]
    providers = [
        ProviderConfig(id=name, base_url=url)
        for name, url in {
            "right": f"http://127.0.0.1:{silent_port}/v1",
            "gone": f"http://127.0.0.1:{gone_port}/v1",
            "own": f"https://localhost:{own_port}/v1",
            "silent": f"https://127.0.0.1:{silent_port}/v1",
        }.items()
    ]
    all_ = await reachable(providers, needed=True)
    assert [one.severity for one in all_] == ["ok", "error", "error", "error"]
    assert "refused" in all_[1].evidence
    assert "its certificate is refused" in all_[2].evidence
    assert "no connection within 0.5 s" in all_[3].evidence
    assert all_[1].remedy == (
        f"curl -sv http://127.0.0.1:{gone_port}/v1, then correct base_url of [providers.gone]"
    )
    assert [one.severity for one in await reachable(providers[1:2], needed=False)] == ["warn"]
    own.close()
    silent.close()


async def test_people_see_lines_with_what_to_do(home: Path, shell: Shell) -> None:
    (home / "interlock.toml").write_text("[limits]\ntools = 0\n", encoding="utf-8")
    finished = await shell.run("doctor")
    lines = finished.stdout.splitlines()
    at = lines.index("error configuration: it cannot be read")
    assert lines[at + 1].startswith("      interlock.toml: limits.tools: 0 is not")
    assert lines[at + 2] == "      → correct that, then: interlock config check"
    assert lines[-1].startswith("1 errors, ")
    assert finished.code == 1
    assert "Example: interlock doctor" in await shell.says("doctor", "--help")
