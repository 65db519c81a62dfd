"""A configuration file that changes under a running server."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

from gateways import call, until
from interlock.cli.reload import differences
from interlock.config import load_config
from processes import Running, serve

CONFIG = """\
store = "sqlite:///interlock.db"
[limits]
tools = {tools}
[server]
port = {port}
{more}
[providers.p]
base_url = "http://127.0.0.1:9"
api_key = "{key}"
cooldown = "{cooldown}"
limit = {limit}
"""


def config(
    tools: int = 8,
    port: int = 7411,
    more: str = "",
    key: str = "canary",
    cooldown: str = "350ms",
    limit: int = 4,
) -> str:
    return CONFIG.format(tools=tools, port=port, more=more, key=key, cooldown=cooldown, limit=limit)


def write(tmp_path: Path, text: str) -> None:
    """Put *text* into the place of the file in one step, as editors do."""
    (tmp_path / "new.toml").write_text(text, encoding="utf-8")
    (tmp_path / "new.toml").replace(tmp_path / "interlock.toml")


async def printed(server: Running, line: str) -> None:
    """Return once *line* is on the server's standard output."""
    await until(lambda: line in server.lines)


async def complained(server: Running, text: str) -> None:
    await until(lambda: text in server.stderr())


async def capacity(server: Running, name: str) -> Any:
    limits = (await call(server.url, "GET", "/limits")).json["limits"]
    return next(one["capacity"] for one in limits if one["name"] == name)


async def test_what_changes_in_the_file_is_taken_over(tmp_path: Path) -> None:
    """Within a second or so, and said in a line of its own."""
    async with serve(tmp_path, config()) as server:
        write(tmp_path, config(tools=12, limit=6, cooldown="2s"))
        await printed(server, "limits.tools 8 -> 12")
        await printed(server, "providers.p.limit 4 -> 6")
        await printed(server, "providers.p.cooldown 350ms -> 2s")
        assert (await capacity(server, "tools"), await capacity(server, "provider:p")) == (12, 6)
        cooldown = await call(server.url, "GET", "/concurrency/cooldown/p")
        assert cooldown.json == {"providerId": "p", "cooldownMs": 2000}
        assert server.stderr() == ""


async def test_a_signal_reads_it_at_once(tmp_path: Path) -> None:
    """Also where nothing is new, which is said as well."""
    async with serve(tmp_path, config()) as server:
        server.process.send_signal(signal.SIGHUP)
        await printed(server, "interlock.toml: nothing new")
        write(tmp_path, config(tools=9))
        server.process.send_signal(signal.SIGHUP)
        await printed(server, "limits.tools 8 -> 9")


async def test_what_needs_a_restart_is_said_to(tmp_path: Path) -> None:
    """Secrets are not shown; what the command line says goes on."""
    async with serve(tmp_path, config()) as server:
        more = 'host = "127.0.0.2"\ntoken = "canary-2"\n[gateway]\nping_after = "3s"\n'
        more += '[providers.q]\nbase_url = "http://q"'
        write(tmp_path, config(port=9999, more=more, key="canary-1", tools=9))
        await printed(server, "limits.tools 8 -> 9")
        for line in (
            "server.host 127.0.0.1 -> 127.0.0.2 (after a restart)",
            "server.token unset -> *** (after a restart)",
            "gateway.ping_after 15s -> 3s (after a restart)",
            "providers.q unset -> set (after a restart)",
            "providers.p.api_key *** -> *** (after a restart)",
        ):
            await printed(server, line)
        said = "\n".join(server.lines)
        assert "canary" not in said
        assert "server.port" not in said  # --port 0 was given, and still counts


async def test_a_bad_file_changes_nothing(tmp_path: Path) -> None:
    """It is said in a line; so is one that has gone. The next good one counts."""
    async with serve(tmp_path, config()) as server:
        for bad, said in (
            (config(tools=0), "interlock.toml: limits.tools: 0 is not"),
            ("[limits\n", "interlock.toml:1: not valid TOML"),
        ):
            write(tmp_path, bad)
            await complained(server, said)
        (tmp_path / "interlock.toml").unlink()
        await complained(server, "interlock.toml is gone")
        assert [line for line in server.stderr().splitlines() if "nothing was changed: " not in line] == []
        assert await capacity(server, "tools") == 8
        write(tmp_path, config(tools=10))
        await printed(server, "limits.tools 8 -> 10")


async def test_what_an_operator_set_stays_until_the_file_says_something_new(tmp_path: Path) -> None:
    """Another line of the file changes nothing about it; also over a kill."""
    async with serve(tmp_path, config()) as server:
        for name in ("tools", "provider:p"):
            put = await call(server.url, "PUT", f"/limits/{name}", [], b'{"capacity": 3}')
            assert put.status == 200
        write(tmp_path, config(cooldown="1s"))
        await printed(server, "providers.p.cooldown 350ms -> 1s")
        assert (await capacity(server, "tools"), await capacity(server, "provider:p")) == (3, 3)
        server.process.kill()
        await server.ended()
    async with serve(tmp_path, config(cooldown="1s")) as server:
        assert (await capacity(server, "tools"), await capacity(server, "provider:p")) == (3, 3)
        write(tmp_path, config(tools=9, limit=5, cooldown="1s"))
        await printed(server, "providers.p.limit 4 -> 5")
        assert (await capacity(server, "tools"), await capacity(server, "provider:p")) == (9, 5)
        server.process.kill()
        await server.ended()
    async with serve(tmp_path, config(tools=9, limit=5, cooldown="1s")) as server:
        assert (await capacity(server, "tools"), await capacity(server, "provider:p")) == (9, 5)


async def test_a_file_that_was_not_there_may_come(tmp_path: Path) -> None:
    async with serve(tmp_path, "") as server:
        os.truncate(tmp_path / "interlock.toml", 0)
        write(tmp_path, "[limits]\nruns = 5\n")
        await printed(server, "limits.runs unlimited -> 5")


def test_differences_are_found_key_by_key(tmp_path: Path) -> None:
    """A table that comes or goes is one."""
    file = tmp_path / "a.toml"
    found = []
    for text in (
        config(),
        config(tools=9, more='[pools.a]\nagent = "x"\n[agents.x]\ntype = "command"\ncommand = ["a"]'),
    ):
        file.write_text(text)
        found.append(load_config(file, {}))
    assert next(differences(*found)) == ("limits.tools", 8, 9)
    assert [key for key, _, _ in differences(*found)] == ["limits.tools", "pools.a", "agents.x"]
    assert list(differences(found[0], found[0])) == []


async def test_with_json_every_line_is_one(tmp_path: Path) -> None:
    """Where it listens first, then each change; what is secret is not told."""
    async with serve(tmp_path, config(), more=("--json",)) as server:
        told = json.loads(server.lines[0])
        assert told["url"] == server.url
        assert told["providers"] == [
            {
                "id": "p",
                "baseUrl": "http://127.0.0.1:9",
                "limit": 4,
                "gateway": f"{server.url}/gateway/p",
            }
        ]
        write(tmp_path, config(tools=9, key="another"))
        await until(lambda: len(server.lines) == 3)
        assert [json.loads(line) for line in server.lines[1:]] == [
            {"changed": "limits.tools", "from": "8", "to": "9", "inForce": True},
            {"changed": "providers.p.api_key", "from": "***", "to": "***", "inForce": False},
        ]
