"""Every block of code in the documentation is run, or read by what it is meant for.

python
    run as a program of its own, as ``python -m asyncio`` would, in an empty directory; one that names the
    address of a server gets a server, and one that names a Redis gets a Valkey
toml
    loaded as a configuration
json, yaml
    parsed
sh, console, and the lines of a text that begin with a command
    ``interlock`` is parsed by the command line, and run against a server if it prints and ends; ``curl`` is
    sent to a server; others are in `OTHERS`, each with the reason why it is not run
mermaid
    drawn from the code by a test of its own
text
    pictures, and what is printed: no command and no code escapes in one

A block that cannot be run has ``<!-- not run: the reason -->`` in the line above it. The code of README.md is
run by test_readme.py, with a provider.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import httpx2
import pytest
import yaml

from admission.redis.servers import valkey
from interlock.cli import app
from interlock.config import load_config
from interlock.testing.simulator import read_scenario
from pages import PAGES, README, SERVER, SHELL, Block, blocks_of, run_code
from processes import serve
from shells import Shell

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
REDIS = "redis://user:password@redis.internal:6379/0"
"""In the documentation: what runs it puts the address of a real one in its place."""
KNOWN = SHELL | {"python", "toml", "text", "mermaid", "yaml", "json"}

OTHERS = {
    "cd": "goes somewhere",
    "docker": "needs a daemon",
    "export": "sets a variable for what is typed next",
    "install": "writes to the system",
    "openssl": "makes a token",
    "make": "its targets are dry run in test_readme.py",
    "pip": "needs a package index",
    "python3": "makes an environment",
    "sqlite3": "needs that program; tests/test_deploy.py makes the same backup",
    "systemctl": "needs systemd; tests/test_deploy.py reads the unit",
    "useradd": "writes to the system",
}
"""Programs that the pages name and that are not run here, each with the reason."""


def of(*languages: str) -> list[object]:
    """The blocks in any of *languages* that are to be run, as parameters of a test."""
    found = [block for block in BLOCKS if block.language in languages and not block.not_run]
    return [pytest.param(block, id=str(block)) for block in found]


def commands(program: str) -> list[object]:
    """Every command line with *program*, and what runs inside of a container, as parameters of a test."""
    found = []
    for block in BLOCKS:
        for number, words in enumerate(block.commands()):
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            if words[:2] == ["docker", "exec"]:
                words = words[3:]
            if words and words[0].rpartition("/")[2] == program:
                found.append(pytest.param(words, id=f"{block}-{number}"))
    return found


@pytest.mark.parametrize("block", [pytest.param(block, id=str(block)) for block in BLOCKS])
def test_no_block_escapes(block: Block) -> None:
    """Each says its language, every program in one has its check, and what is called a text is one."""
    assert block.language in KNOWN
    assert not block.not_run or len(block.not_run) > 10, "say why it cannot be run"
    for words in block.commands():
        program = next(word for word in words if not re.match(r"[A-Z_]+=", word))
        assert program.rpartition("/")[2] in {"interlock", "curl", *OTHERS}
    if block.language == "text":
        assert not re.search(r"^(?:import|from|await|async|def|class) \w", block.body, re.MULTILINE)


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """The address of a server with an agent called coder and a provider called openai."""
    config = 'store = "memory:"\n[agents.coder]\ntype = "command"\ncommand = ["cat"]\noutput = "text"\n'
    config += "[providers.openai]\nlimit = 4\n"
    async with serve(tmp_path_factory.mktemp("server"), config) as running:
        yield running.url


def programs(*, served: bool) -> list[object]:
    """The programs that need a server, or those that need none; the README's has a test of its own."""
    pages = [block for block in BLOCKS if block.language == "python" and block.page != README]
    plain = [block for block in pages if REDIS not in block.body and not block.not_run]
    wanted = [block for block in plain if (SERVER in block.body) is served]
    return [pytest.param(block, id=str(block)) for block in wanted]


@pytest.mark.parametrize("block", programs(served=False))
async def test_code_runs(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of its own, which asserts what it shows."""
    monkeypatch.chdir(tmp_path)
    await run_code(block.body, block.page)


@pytest.mark.parametrize("block", [pytest.param(one, id=str(one)) for one in BLOCKS if REDIS in one.body])
async def test_code_runs_with_a_valkey(block: Block) -> None:
    """One that names a Redis gets a server of its own; what it has to wait for at a first start is short."""
    with valkey() as connection:
        at = connection.connection_pool.connection_kwargs
        body = block.body.replace(REDIS, f"redis://{at['host']}:{at['port']}/0")
        await run_code(body.replace("lease=30.0", "lease=0.3"), block.page)


@pytest.mark.parametrize("block", programs(served=True))
async def test_code_runs_with_a_server(block: Block, server: str) -> None:
    """So does one that calls a server at its usual address."""
    await run_code(block.body.replace(SERVER, server), block.page)


@pytest.mark.parametrize("block", of("toml"))
def test_configurations_load(block: Block, tmp_path: Path) -> None:
    """As they stand, with the variables that they name; one with a workload is a scenario."""
    if "[[workload]]" in block.body:
        read_scenario(tomllib.loads(block.body))
        return
    file = tmp_path / "interlock.toml"
    file.write_text(block.body, encoding="utf-8")
    load_config(file, dict.fromkeys(re.findall(r'"env:(\w+)"', block.body), "secret"))


@pytest.mark.parametrize("block", of("json", "yaml"))
def test_documents_parse(block: Block) -> None:
    """JSON is one document, or a line for each."""
    if block.language == "yaml":
        assert yaml.safe_load(block.body)
    else:
        whole = block.body.startswith(("{\n", "[\n"))
        assert all(json.loads(text) for text in ([block.body] if whole else block.body.splitlines()))


@pytest.mark.parametrize("words", commands("interlock"))
def test_commands_can_be_given(words: list[str]) -> None:
    """With these words and options."""
    app.parse_args(words[1:], exit_on_error=False, print_error=False)


ENDING = {"status", "top", "explain", "limits", "cooldown", "pause", "resume", "sessions", "runs"}
"""Commands that look at a server or change it, print, and end; others have their own tests in tests/cli."""


async def test_what_an_operator_types_works(
    server: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each command of a page, against a server; an id that only the page knows is told from a fault."""
    monkeypatch.setenv("INTERLOCK_URL", server)
    monkeypatch.delenv("INTERLOCK_TOKEN", raising=False)
    shell = Shell(capsys)
    typed = [words[1:] for block in BLOCKS for words in block.commands() if words[0] == "interlock"]
    chosen = [words for words in typed if words[0] in ENDING]
    assert {words[0] for words in chosen} == ENDING
    for words in chosen:
        await shell.says("limits", "set", "openai", "4")  # as it was before the last command
        finished = await shell.run(*words)
        invented = [word for word in words if re.fullmatch(r"(waiter|run)[-_]\w+|s\d", word)]
        assert finished.code == (1 if invented else 0), (words, finished)
        assert all(name in finished.stderr for name in invented), (words, finished)


@pytest.mark.parametrize("words", commands("curl"))
async def test_calls_are_understood(words: list[str], server: str) -> None:
    """The path is there, with this method, and takes this body; of ids we know nothing."""
    method, body, headers, target = "GET", None, {}, ""
    rest = iter(words[1:])
    for word in rest:
        if word == "--json":
            method, body = "POST", next(rest)
        elif word in ("-X", "--request"):
            method = next(rest)
        elif word in ("-H", "--header"):
            name, _, value = next(rest).partition(": ")
            headers[name] = value
        elif not word.startswith("-"):
            target = word
    assert target.startswith(f"{SERVER}/"), "a call to a server of ours"
    url = quote(target.replace(SERVER, server), safe=":/?&=")
    if body is not None:
        headers["content-type"] = "application/json"
    async with httpx2.AsyncClient(trust_env=False, timeout=20) as client:
        answer = await client.request(method, url, content=body, headers=headers)
    code = answer.json().get("code") if answer.status_code >= 400 else None
    assert answer.status_code < 500 or code in ("timeout", "unavailable"), answer.text
    assert code not in ("not_found", "method_not_allowed", "unsupported_media_type", "validation_error"), (
        answer.text
    )


def test_a_text_is_no_way_around() -> None:
    """Of a text, too, the commands are found, and those of a prompt among what is printed."""
    text = Block(
        README, 0, "text", "interlock limits set tools 12   for all\n\ncurl \\\n  -X POST x\nsaid: 1\n", ""
    )
    assert text.commands() == [["interlock", "limits", "set", "tools", "12"], ["curl", "-X", "POST", "x"]]
    console = Block(README, 0, "console", "$ interlock status --json > a && cat a | jq .\nprovider 0/4\n", "")
    assert console.commands() == [["interlock", "status", "--json"], ["cat", "a"], ["jq", "."]]
