"""The commands of sessions against a real server with real agents, killed and started again meanwhile."""

from __future__ import annotations

import json
import re
from pathlib import Path

import processes
from gateways import until
from processes import Running, serve
from shells import Shell

AGENTS = """\
import asyncio
from pathlib import Path


async def echo(run):
    for word in run.input["prompt"].split():
        await run.emit("message_streamed", {"content": word + " "})
    run.usage(input_tokens=3, output_tokens=2)
    return {"said": run.input["prompt"]}


async def held(run):
    await run.emit("turn_completed", {"attempt": run.attempt})
    while not Path("go").exists():
        await asyncio.sleep(0.01)
    return "went"


async def broken(run):
    raise RuntimeError("it broke")
"""

CONFIG = """\
store = "sqlite:///interlock.db"
[agents.echo]
type = "python"
target = "agents_of_test:echo"
[agents.held]
type = "python"
target = "agents_of_test:held"
[agents.broken]
type = "python"
target = "agents_of_test:broken"
"""


def prepared(tmp_path: Path) -> Path:
    (tmp_path / "agents_of_test.py").write_text(AGENTS, encoding="utf-8")
    return tmp_path


def kinds(printed: str) -> list[str]:
    """The types of the events that are shown."""
    return [line.split()[2] for line in printed.splitlines()]


async def ended(server: Running) -> None:
    server.process.kill()
    await server.ended()


async def test_a_run_is_submitted_shown_and_looked_at(tmp_path: Path, shell: Shell) -> None:
    async with serve(prepared(tmp_path), CONFIG) as server:
        there = ("--url", server.url)
        done = await shell.run("submit", "s1", "Hello there", "--agent", "echo", "--wait", *there)
        assert (done.code, done.stdout) == (0, '{"said": "Hello there"}\n')
        run_id = done.stderr.split()[1].rstrip(":")

        followed = await shell.run("submit", "s1", "Two words", "--follow", *there)
        assert followed.code == 0
        assert re.search(r"message_streamed +\S+ +Two words \n", followed.stdout)
        assert kinds(followed.stdout) == ["run_queued", "run_started", "message_streamed", "run_completed"]

        whole = await shell.says("tail", "s1", *there)
        told = [json.loads(line) for line in (await shell.says("tail", "s1", "--json", *there)).splitlines()]
        assert [one["sequence"] for one in told] == [*range(1, len(told) + 1)]
        assert kinds(whole) == [
            one["type"]
            for one, before in zip(told, [{}, *told[:-1]], strict=True)
            if one["type"] != "message_streamed" or before["type"] != "message_streamed"
        ]
        chosen = await shell.says("tail", "s1", "-f", "--run", run_id, "--type", "run_started", *there)
        assert kinds(chosen) == ["run_started"]

        details = await shell.says("runs", "--run", run_id, *there)
        assert 'output {"said": "Hello there"}' in details
        assert "tokens: inputTokens 3, outputTokens 2" in details
        assert (await shell.says("runs", "s1", "--status", "completed", *there)).count("completed") == 2
        assert await shell.says("runs", *there) == "no runs\n"
        assert "s1: active, agent echo" in await shell.says("sessions", "s1", *there)
        assert "echo" in await shell.says("sessions", "--status", "active", *there)
        assert await shell.says("drain", "s1", *there) == "s1: drained\n"


async def test_what_fails_and_what_is_ended_says_so(tmp_path: Path, shell: Shell) -> None:
    """A run of its own, a run that works, and one that waits behind it; a key that is used again."""
    async with serve(prepared(tmp_path), CONFIG) as server:
        there = ("--url", server.url)
        failed = await shell.run("submit", "s1", "x", "--agent", "broken", "--wait", *there)
        assert (failed.code, failed.stdout) == (1, "")
        assert re.search(r"ended failed: \w+: .*it broke", failed.stderr)
        assert "configured are: broken, echo, held" in await shell.refuses(
            2, "submit", "s9", "x", "--agent", "nobody", *there
        )
        first = json.loads(await shell.says("submit", "s2", "--agent", "held", "--json", *there))["runId"]
        waits = await shell.says("submit", "s2", "x", "--key", "k", *there)
        assert re.fullmatch(r"\S+: pending, place 1 in line\n", waits)
        second = waits.split(":")[0]
        assert (await shell.says("submit", "s2", "x", "--key", "k", *there)).startswith(second)
        assert "'k'" in await shell.refuses(1, "submit", "s2", "y", "--key", "k", *there)
        listed = await shell.says("runs", *there)
        assert re.search(rf"^{first} +s2 +running ", listed, re.MULTILINE)
        assert re.search(rf"^{second} +s2 +pending .* place 1", listed, re.MULTILINE)
        assert (await shell.says("cancel", second, *there)) == f"{second}: cancelled\n"
        assert (await shell.says("interrupt", first, *there)).startswith(f"{first}: ")
        told = await shell.says("tail", "s2", "-f", "--run", first, *there)
        assert kinds(told)[-1] == "run_interrupted"
        assert "run_nobody" in await shell.refuses(1, "cancel", "run_nobody", *there)


async def test_tail_outlives_a_kill_of_the_server(tmp_path: Path, shell: Shell) -> None:
    """Every event is shown once, in order, also those of the run that the crash had begin anew."""
    async with serve(prepared(tmp_path), CONFIG) as server:
        port = server.url.rpartition(":")[2]
        submitted = await shell.says(
            "submit", "s1", "--agent", "held", "--retry", "on-crash", "--json", "--url", server.url
        )
        run_id = json.loads(submitted)["runId"]
        tailing = shell.start("tail", "s1", "-f", "--run", run_id, "--json", "--url", server.url)
        await shell.heard('"turn_completed"')
        await ended(server)
        await shell.heard("lost the connection")
    async with processes._running("serve", "--port", port, cwd=tmp_path, env=None) as server:
        await until(lambda: not tailing.done())
        await shell.heard('"attempt": 2')
        (tmp_path / "go").touch()
        finished = await shell.finish(tailing)
        assert finished.code == 0
        assert "interlock: connected again" in finished.stderr
        shown = [json.loads(line) for line in finished.stdout.splitlines()]
        printed = await shell.says("tail", "s1", "--run", run_id, "--json", "--url", server.url)
        assert shown == [json.loads(line) for line in printed.splitlines()]
        assert shown[-1]["type"] == "run_completed"


async def test_agents_beside_the_configuration_are_found(tmp_path: Path, shell: Shell) -> None:
    """However the command was started: as a script it does not have the working directory on its path."""
    async with serve(prepared(tmp_path), CONFIG, {"PYTHONSAFEPATH": "1"}) as server:
        done = await shell.run("submit", "s1", "Hi", "--agent", "echo", "--wait", "--url", server.url)
        assert (done.code, done.stdout) == (0, '{"said": "Hi"}\n')
