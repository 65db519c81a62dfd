"""The history of limits, from a real server: by the command and over HTTP, also after a kill."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gateways import answer, call, upstream
from interlock import ProviderGate, RemoteAdmission
from processes import serve
from shells import Shell

CONFIG = """\
store = "sqlite:///interlock.db"
[limits]
tools = 8
[providers."my.llm"]
base_url = "{url}"
limit = 3
cooldown = "0s"
"""


async def test_who_changed_what_and_why(
    tmp_path: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file, the command, a program; durable over a kill, and continued by the file's next word."""
    config = CONFIG.format(url="http://127.0.0.1:9")
    async with serve(tmp_path, config) as server:
        monkeypatch.setenv("INTERLOCK_URL", server.url)
        await shell.says("limits", "set", "tools", "12")
        await call(server.url, "PUT", "/concurrency/limits/my.llm", body=b'{"limit": 2}')
        server.process.kill()
        await server.ended()
    async with serve(tmp_path, config.replace("tools = 8", "tools = 9")) as server:
        monkeypatch.setenv("INTERLOCK_URL", server.url)
        said = (await call(server.url, "GET", "/limits/tools/history")).json
        assert [(one["by"], one["old"], one["new"]) for one in said["changes"]] == [
            ("file", 12, 9),
            ("operator", 8, 12),
            ("file", None, 8),
        ]
        assert said["changes"][1]["evidence"].startswith("PUT /limits by interlock-cli/")
        assert (said["name"], said["capacity"], said["next"]) == ("tools", 9, None)
        page = (await call(server.url, "GET", "/limits/tools/history?limit=1&before=3")).json
        other = await call(server.url, "GET", "/limits/tools/history?limit=1&after=3")
        assert other.json == page
        assert ([one["number"] for one in page["changes"]], page["next"]) == ([2], 2)
        by_id = (await call(server.url, "GET", "/limits/my.llm/history")).json
        by_name = (await call(server.url, "GET", "/limits/provider%3Amy.llm/history")).json
        assert by_id == by_name
        assert [one["new"] for one in by_id["changes"]] == [2, 3]
        printed = await shell.says("limits", "history", "tools", "--limit", "2")
        assert "8 → 12" in printed
        assert "PUT /limits by interlock-cli/" in printed
        assert "older: interlock limits history tools --before 2" in printed
        assert json.loads(await shell.says("limits", "history", "my.llm", "--json")) == by_id
        assert "unchanged" not in await shell.says("limits", "history", "global")
        assert "known are: global, my.llm, runs" in await shell.refuses(1, "limits", "history", "nope")
        for query in ("limit=0", "before=x", "limit=-1"):
            assert (await call(server.url, "GET", f"/limits/tools/history?{query}")).status == 400


async def test_a_process_that_shares_the_limits_is_noted(tmp_path: Path) -> None:
    """What it makes of a limit or of a provider's, and the 429 that it tells of."""
    async with serve(tmp_path, CONFIG.format(url="http://127.0.0.1:9")) as server:
        remote = RemoteAdmission(server.url)
        try:
            await remote.set_limit("gpu", 2)
            await remote.remove_limit("gpu")
            gate = ProviderGate(admission=remote)
            await gate.set_limit("my.llm", 5)
            gate.report_rate_limit("my.llm", 0.01)
            await remote.refresh()
            for name, changes in {
                "gpu": [("client", 2, None), ("client", None, 2)],
                "my.llm": [("429", 5, 4), ("client", 3, 5), ("file", None, 3)],
            }.items():
                found = (await call(server.url, "GET", f"/limits/{name}/history")).json["changes"]
                assert [(one["by"], one["old"], one["new"]) for one in found] == changes
            assert found[0]["evidence"] == "concurrency, told by a client"
        finally:
            await remote.aclose()


async def test_a_429_is_noted_with_its_words(tmp_path: Path) -> None:
    """The status and what the provider said, without the key that it repeats."""
    said = {"error": {"code": "1302", "message": "Too many at once for key sk-live-1234567890"}}
    async with upstream() as provider, serve(tmp_path, CONFIG.format(url=provider.url)) as server:
        refused = answer(429, json.dumps(said).encode(), (b"retry-after-ms", b"10"))
        provider.will_answer(refused, answer(200))
        assert (
            await call(server.url, "POST", "/gateway/my.llm/v1/chat/completions", body=b"{}")
        ).status == 200
        (change, _) = (await call(server.url, "GET", "/limits/my.llm/history")).json["changes"]
        assert (change["by"], change["old"], change["new"]) == ("429", 3, 2)
        assert change["evidence"] == "429 1302: Too many at once for key ***"
