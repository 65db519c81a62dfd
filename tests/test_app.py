"""`Interlock.open`: every part from one file, in one process or through a server."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest

from admission.harnesses import hosted
from interlock import Interlock, InvalidOperation, RemoteAdmission, Unavailable, ValidationError
from interlock.app import check_supported
from interlock.cli.reload import ConfigFile
from interlock.config import load_config
from interlock.provider.remote import RemoteGate
from processes import serve

ECHO = """
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    print(json.dumps({"id": asked["id"], "output": asked["input"]}), flush=True)
"""

WHOLE = """
store = "memory:"

[limits]
sessions = 2
tools = 3
global = 4

[providers.p]
base_url = "http://127.0.0.1:9/v1"
limit = 2
cooldown = "0ms"

[pools.coders]
agent = "coder"
size = 1
max_overflow = 1
strategy = "fifo"

[pools.thinkers]
agent = "thinker"
size = 1
max_overflow = 0

[agents.coder]
type = "command"
command = {command}

[agents.thinker]
type = "python"
target = "test_app:think"
"""


class Thinker:
    """An agent with a memory."""

    def __init__(self) -> None:
        self.thoughts: list[str] = []


def think(thought: str) -> str:
    return thought.upper()


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    script = tmp_path / "echo.py"
    script.write_text(ECHO)
    file = tmp_path / "interlock.toml"
    file.write_text(WHOLE.replace("{command}", f'["{sys.executable}", "{script}"]'))
    return file


async def test_every_part_is_there_and_over_one_admission(whole: Path) -> None:
    """Limits, providers, pools of processes and of Python: opened from one file, closed as one."""
    async with Interlock.open(whole) as il:
        assert il.limiter.limits.max_parallel_sessions == 2
        assert il.limiter.limits.max_parallel_runs is None
        assert (il.governor.stats().tools_max, il.governor.stats().global_max) == (3, 4)
        assert il.gate.limits() == {"p": 2}
        async with il.gate.acquire("p", also=("global",)), il.governor.acquire_tool() as tool:
            assert il.admission.limits()["global"].used == 2
            assert tool.limits == ("tools", "global")
        coders, thinkers = il.pools["coders"], il.pools["thinkers"]
        async with coders.checkout(timeout=30) as coder:
            assert await coder.run({"prompt": "x"}) == {"prompt": "x"}
            assert il.admission.limits()["pool:coders"].capacity == 2
        async with thinkers.checkout(timeout=30) as thinker:
            assert await thinker.run("aha") == "AHA"
    assert not coder.alive


async def test_a_class_is_an_agent_for_each_place(whole: Path) -> None:
    """A function is shared as it has no state; a class is made anew for each agent."""
    whole.write_text(whole.read_text().replace("test_app:think", "test_app:Thinker"))
    async with Interlock.open(whole) as il, il.pools["thinkers"].checkout(timeout=30) as thinker:
        assert type(thinker).__name__ == "Thinker"


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("test_app:nothing", "target 'test_app:nothing' cannot be imported: .*nothing"),
        ("no_such_module:agent", "target 'no_such_module:agent' cannot be imported: No module named"),
        ("test_app:WHOLE", "target 'test_app:WHOLE' is str; allowed are classes and functions"),
    ],
)
async def test_a_wrong_target_is_told_before_anything_starts(whole: Path, target: str, message: str) -> None:
    """The error names the target and what is wrong with it."""
    whole.write_text(whole.read_text().replace("test_app:think", target))
    with pytest.raises(ValidationError, match=message):
        async with Interlock.open(whole):
            pass


async def test_chat_agents_cannot_be_pooled_yet(whole: Path) -> None:
    """The error says which types can."""
    text = whole.read_text().replace('type = "python"\ntarget = "test_app:think"', 'type = "chat"')
    whole.write_text(text + 'provider = "p"\nmodel = "m"\n')
    with pytest.raises(ValidationError, match=r"agents\.thinker: type is 'chat'"):
        async with Interlock.open(whole):
            pass


async def test_through_a_server_all_processes_share(tmp_path: Path) -> None:
    """With `coordination` the same parts stand over the server's limits; what is set there stays there."""
    async with hosted() as server:
        file = tmp_path / "interlock.toml"
        file.write_text(f'coordination = "{server.url}"\n\n[limits]\ntools = 2\n')
        async with Interlock.open(file) as one, Interlock.open(file) as two:
            assert isinstance(one.admission, RemoteAdmission)
            assert isinstance(one.gate, RemoteGate)
            assert one.limits is None
            async with one.governor.acquire_tool(), two.governor.acquire_tool():
                assert server.admission.limits()["tools"].used == 2
            await one.gate.set_limit("p", 1)
            async with one.gate.acquire("p"):
                await two.admission.refresh()
                assert two.gate.reading("p").used == 1
            async with one.limiter.acquire_session_slot("s"):
                await two.admission.refresh()
                assert two.limiter.status().active_sessions == 1
            with pytest.raises(InvalidOperation, match="the limits are the server's"):
                await one.apply(one.config)


async def echo(run: Any) -> Any:
    """An agent of a session that says what it was asked, from which limits."""
    async with run.governor.acquire_tool():
        return run.input


async def test_a_store_that_is_shared_is_served_by_every_process_with_agents(
    tmp_path: Path, postgres_url: str
) -> None:
    """Limits come from a server, sessions from PostgreSQL; a process without agents uses those of others."""
    with_agents = tmp_path / "with.toml"
    async with serve(tmp_path, 'store = "memory:"\n[limits]\nruns = 2\ntools = 1\n') as server:
        text = f'store = "{postgres_url}"\ncoordination = "{server.url}"\n'
        agents = '[agents.echo]\ntype = "python"\ntarget = "test_app:echo"\n'
        with_agents.write_text(text + agents, encoding="utf-8")
        without = tmp_path / "without.toml"
        without.write_text(text, encoding="utf-8")
        async with Interlock.open(with_agents) as worker, Interlock.open(without) as plane:
            assert isinstance(worker.admission, RemoteAdmission)
            session = await worker.sessions.start("s", agent="echo", max_concurrent_runs=3)
            again = await plane.sessions.get("s")
            results = await asyncio.gather(
                *((session, again)[n % 2].execute_run({"n": n}, timeout=30) for n in range(8))
            )
            assert [result.output for result in results] == [{"n": n} for n in range(8)]
            assert plane.sessions.worker is None
            assert list(worker.sessions.running) == ["s"]
            async with again.subscribe() as events:
                assert (await anext(events)).type == "session_created"
        async with Interlock.open(without) as plane:
            assert await plane.sessions.workers() == []
            limits = {limit.name: limit.used for limit in plane.admission.limits().values()}
            assert (limits["sessions"], limits["runs"], limits["tools"]) == (0, 0, 0)


async def test_a_server_that_is_not_there_shows_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at the first call an hour later."""
    monkeypatch.setattr("interlock.admission.leased.exchange.CALL_SECONDS", 0.2)
    monkeypatch.setattr("interlock.admission.leased.admission.CALL_SECONDS", 0.2)
    file = tmp_path / "interlock.toml"
    file.write_text('coordination = "http://127.0.0.1:9"\n')
    with pytest.raises(Unavailable, match=r"no answer from http://127\.0\.0\.1:9"):
        async with Interlock.open(file):
            pass


def test_what_comes_later_is_named(tmp_path: Path) -> None:
    """A configuration for engines that are not there yet is refused with what there is."""
    file = tmp_path / "interlock.toml"
    for text, message in (('coordination = "redis://h:1"', 'allowed are "local" and "http://host:7411"'),):
        file.write_text(text)
        with pytest.raises(ValidationError, match=message):
            check_supported(ConfigFile(file, lambda config: config).read())
    assert load_config(file).coordination.startswith("redis")


async def test_a_server_shows_its_pools(whole: Path, tmp_path: Path) -> None:
    """`GET /pools`: each with its numbers."""
    text = whole.read_text().replace("test_app:think", "builtins:len")
    async with serve(tmp_path, text) as server, httpx2.AsyncClient(trust_env=False) as client:
        pools: list[dict[str, Any]] = (await client.get(f"{server.url}/pools")).json()["pools"]
    assert [(pool["name"], pool["size"], pool["maxOverflow"]) for pool in pools] == [
        ("coders", 1, 1),
        ("thinkers", 1, 0),
    ]
