"""`interlock serve` as a process: scraped while calls run, and logging in lines of JSON."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from expositions import parse
from gateways import OK, call, chat, upstream
from processes import command, serve

CANARY = "plain-canary-words"


async def test_a_server_is_scraped_while_calls_run(tmp_path: Path) -> None:
    """Four in flight, eight waiting; then all are answered, and what waited has waited."""
    async with upstream() as provider:
        config = (
            f'store = "memory:"\n[providers.p]\nbase_url = "{provider.url}"\nlimit = 4\ncooldown = "0s"\n'
        )
        async with serve(tmp_path, config) as server:
            calls = [asyncio.create_task(call(server.url, body=chat(f"{n}"))) for n in range(12)]
            first = [await provider.next() for _ in range(4)]
            async with asyncio.timeout(5):
                while True:
                    said = parse((await call(server.url, "GET", "/metrics")).body.decode())
                    if said.value("interlock_limit_waiting", limit="provider:p") == 8:
                        break
            assert said.value("interlock_limit_in_use", limit="provider:p") == 4
            assert said.value("interlock_limit_capacity", limit="provider:p") == 4
            assert said.value("interlock_gateway_requests_total", provider="p", outcome="answered") == 0
            provider.will_answer(*[OK] * 8)
            for exchange in first:
                exchange.write(OK)
            assert [(await one).status for one in calls] == [200] * 12
            said = parse((await call(server.url, "GET", "/metrics")).body.decode())
            assert said.value("interlock_gateway_requests_total", provider="p", outcome="answered") == 12
            assert said.value("interlock_wait_seconds_count", limit="provider:p") == 8
            assert said.value("interlock_limit_in_use", limit="provider:p") == 0
            assert said.value("interlock_stuck_waiters") == 0
            assert said.value("interlock_invariant_violations_total") == 0
            assert said.value("interlock_invariant_checks_total") >= 2


async def test_its_log_is_lines_of_json_without_secrets(tmp_path: Path) -> None:
    """An upstream that says its key back, in what makes the server log: a torn answer, then a failing one."""
    config = f"""
store = "memory:"
[server]
token = "{CANARY}-token"
log_format = "json"
[providers.p]
base_url = "http://127.0.0.1:9"
api_key = "{CANARY}-key"
[agents.mine]
type = "python"
target = "agent:agent"
"""
    (tmp_path / "agent.py").write_text(
        "import logging\n"
        "async def agent(run):\n"
        f"    logging.getLogger('mine').warning('sent %s\\nand Bearer %s', '{CANARY}-key', 'abcdefgh1234')\n"
        f"    try:\n        raise OSError('{CANARY}-token')\n"
        "    except OSError:\n        logging.getLogger('mine').exception('it failed')\n"
    )
    ours = [(b"authorization", f"Bearer {CANARY}-token".encode()), (b"content-type", b"application/json")]
    async with serve(tmp_path, config, {"PYTHONPATH": _path(tmp_path)}) as server:
        made = await call(server.url, "POST", "/sessions", ours, b'{"id": "s", "agent": "mine"}')
        assert made.status == 201, made
        run = await call(server.url, "POST", "/sessions/s/runs", ours, b'{"input": {}}')
        await call(server.url, "GET", f"/runs/{run.json['runId']}/wait", ours)
        lines = [json.loads(line) for line in server.stderr().splitlines()]
    said = [line for line in lines if line["logger"] == "mine"]
    assert [line["level"] for line in said] == ["warning", "error"]
    assert said[0]["message"] == "sent ***\nand Bearer ***"
    assert said[1]["exception"].endswith("OSError: ***")
    assert CANARY not in server.stderr()


def _path(tmp_path: Path) -> str:
    import os

    return os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))


async def test_the_format_of_the_log_is_an_option_too(tmp_path: Path) -> None:
    refused = await command("serve", "--log-format", "xml", cwd=tmp_path)
    assert refused.code == 2
    assert "text" in refused.stderr
    assert "json" in refused.stderr
    (tmp_path / "interlock.toml").write_text('[server]\nlog_format = "xml"\n')
    refused = await command("serve", cwd=tmp_path)
    assert refused.code == 2
    assert "server.log_format" in refused.stderr
