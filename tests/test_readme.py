"""What the README and the other pages say is true: commands run, code works, links lead somewhere."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from inspect import CO_COROUTINE
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import httpx2
import msgspec
import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

import processes
from interlock import config
from interlock.config import load_config
from interlock.testing.simulator import read_scenario
from processes import Running, mock_provider

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
KEYS = {"OPENAI_API_KEY": "sk-openai", "ANTHROPIC_API_KEY": "sk-anthropic"}

_BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SHELL = {"console", "sh", "bash", "shell"}
_KNOWN = _SHELL | {"python", "toml", "text", "mermaid", "yaml", "json"}


def blocks(page: Path, *languages: str) -> list[str]:
    """The fenced blocks of *page* in any of *languages*."""
    text = page.read_text(encoding="utf-8")
    return [body for language, body in _BLOCK.findall(text) if language.strip() in languages]


def commands() -> list[list[str]]:
    """Every command line of the README, in words; comments and prompts are no part of it."""
    lines = [line.removeprefix("$ ") for block in blocks(README, *_SHELL) for line in block.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def page_id(value: object) -> str:
    return value.relative_to(ROOT).as_posix() if isinstance(value, Path) else str(value)


# -- the README's first screen -------------------------------------------------------------------------------


def test_the_first_screen_is_complete() -> None:
    """Two sentences, two targets, six lines of Python, two variables and a picture, before any heading."""
    first = README.read_text(encoding="utf-8").split("\n## ")[0]
    introduction = first.split("\n\n")[1].replace("\n", " ")
    assert len(re.findall(r"[.!?](?= |$)", introduction)) == 2
    (code,) = [body for language, body in _BLOCK.findall(first) if language == "python"]
    assert len(list(filter(None, code.splitlines()))) == 6
    shell = [body for language, body in _BLOCK.findall(first) if language in _SHELL]
    assert [line.split("#")[0].strip() for line in shell[0].splitlines()] == ["make demo", "make test"]
    assert [line.partition("=")[0] for line in shell[1].splitlines()] == [
        "export OPENAI_BASE_URL",
        "export ANTHROPIC_BASE_URL",
    ]
    assert re.search(r"!\[[^]]+\]\(docs/demo\.svg\)", first)
    assert len(first.splitlines()) < 40


def test_figures_have_their_place() -> None:
    text = README.read_text(encoding="utf-8")
    assert 0 < text.find("<!-- figures:begin -->") < text.find("<!-- figures:end -->")


# -- commands ------------------------------------------------------------------------------------------------


def test_every_command_has_its_check() -> None:
    """A command of another kind needs a test of its own here first."""
    checked: list[tuple[str, ...]] = [("make",), ("export",)]
    checked += [("interlock", name) for name in ("serve", "status", "top", "config", "mock-provider")]
    checked += [("interlock", "limits"), ("interlock", "explain")]
    unchecked = [words for words in commands() if not any(tuple(words[: len(c)]) == c for c in checked)]
    assert unchecked == []


def make_targets() -> set[str]:
    """The targets that any page tells its reader to make."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = re.findall(r"(?:^|`)make ((?:[a-z-]+ ?)+)", text, re.MULTILINE)
    return {target for targets in named for target in targets.split()}


@pytest.mark.parametrize("target", sorted(make_targets()))
def test_make_targets_exist(target: str) -> None:
    """Not made (this test is a part of one of them), but each ``interlock`` command that it runs is there."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    planned = subprocess.run(
        ["make", "--dry-run", target],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert planned.returncode == 0, planned.stderr
    for name in re.findall(r"/interlock ([a-z-]+)", planned.stdout):
        shown = subprocess.run(
            [sys.executable, "-m", "interlock.cli", name, "--help"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert shown.returncode == 0, shown.stderr


def mentioned() -> dict[str, set[str]]:
    """The commands of ours that any page mentions in passing, each with the options that it mentions."""
    found: dict[str, set[str]] = {}
    for page in PAGES:
        text = _BLOCK.sub("", page.read_text(encoding="utf-8"))
        for words, options in re.findall(r"`interlock((?: [a-z-]+)*)((?: --[a-z-]+(?: [^` ]+)?)*)`", text):
            found.setdefault(words.strip(), set()).update(re.findall(r"--[a-z-]+", options))
    return found


@pytest.mark.parametrize(("words", "options"), mentioned().items())
async def test_commands_that_are_mentioned_exist(words: str, options: set[str], tmp_path: Path) -> None:
    shown = await output(["interlock", *words.split(), "--help"], tmp_path)
    assert {option for option in options if option not in shown} == set()


@asynccontextmanager
async def running(words: list[str], directory: Path) -> AsyncIterator[Running]:
    """A command of the README that runs until it is stopped, on any free port; SIGTERM must end it well."""
    env = {**KEYS, "INTERLOCK_SERVER__PORT": "0"}
    async with processes._running(*words[1:], cwd=directory, env=env) as process:
        yield process
        process.process.terminate()
        assert await process.ended() == 0, process.stderr()


async def output(words: list[str], directory: Path, **env: str) -> str:
    """What a command of the README prints; it must succeed."""
    finished = await processes.command(*words[1:], cwd=directory, env={**KEYS, **env})
    assert (finished.code, finished.stderr) == (0, "")
    return finished.stdout


async def reading(url: str) -> Any:
    """The JSON document at *url*."""
    async with httpx2.AsyncClient(trust_env=False) as client:
        return (await client.get(url)).raise_for_status().json()


def told(*beginning: str) -> list[str]:
    """The one command of the README with this beginning."""
    (words,) = [words for words in commands() if tuple(words[: len(beginning)]) == beginning]
    return words


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's directory, with the README's configuration in it and nothing else said."""
    for name in list(os.environ):
        if name.startswith(("INTERLOCK_", "OPENAI_", "ANTHROPIC_")):
            monkeypatch.delenv(name)
    for name, key in KEYS.items():
        monkeypatch.setenv(name, key)
    (example,) = blocks(README, "toml")
    (tmp_path / "interlock.toml").write_text(example)
    return tmp_path


async def test_serve_and_its_operators_run_with_the_example(home: Path) -> None:
    """The example is served as it stands, and `status` shows what it says."""
    async with running(told("interlock", "serve"), home) as server:
        assert await reading(f"{server.url}/healthz") == {"status": "ok"}
        providers = (await reading(f"{server.url}/concurrency/status"))["providers"]
        assert {one["providerId"]: (one["limit"], one["cooldownMs"]) for one in providers} == {
            "local": (4, 350),
            "openai": (8, 350),
        }
        shown = await output(told("interlock", "status"), home, INTERLOCK_URL=server.url)
        drawn = await output(told("interlock", "top"), home, INTERLOCK_URL=server.url)
        changed = await output(told("interlock", "limits"), home, INTERLOCK_URL=server.url)
        waiting = await output(told("interlock", "explain"), home, INTERLOCK_URL=server.url)
    assert re.search(r"openai +0/8", shown)
    assert re.search(r"openai +·{8} +0/8", drawn)
    assert re.search(r"tools.*12", changed)
    assert "nobody waits" in waiting.lower()
    assert (home / "interlock.db").exists()


async def test_config_check_runs_with_the_example(home: Path) -> None:
    printed = await output(told("interlock", "config", "check"), home)
    assert "interlock.toml: ok; providers: local, openai" in printed


async def test_mock_provider_runs(home: Path) -> None:
    async with running([*told("interlock", "mock-provider"), "--port", "0"], home) as provider:
        stats = await reading(f"{provider.url}/stats")
    assert (stats["limit"], stats["requests"]) == (4, 0)


async def test_the_two_variables_gate_the_real_sdks(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each SDK is told nothing but its variable, and its call arrives at the provider through the gateway."""
    exported = dict(words[1].split("=", 1) for words in commands() if words[0] == "export")
    assert exported.keys() == {"OPENAI_BASE_URL", "ANTHROPIC_BASE_URL"}
    async with mock_provider() as provider:
        (home / "interlock.toml").write_text(
            f'[providers.openai]\nbase_url = "{provider}/v1"\nlimit = 2\n'
            f'[providers.anthropic]\nbase_url = "{provider}"\nlimit = 2\n'
        )
        async with running(told("interlock", "serve"), home) as server:
            for name, url in exported.items():
                assert url.startswith("http://127.0.0.1:7411/")  # where it listens unless told otherwise
                monkeypatch.setenv(name, url.replace("http://127.0.0.1:7411", server.url))
            chat: list[Any] = [{"role": "user", "content": "Hello"}]
            async with AsyncOpenAI(max_retries=0) as openai:
                completion = await openai.chat.completions.with_raw_response.create(model="m", messages=chat)
            async with AsyncAnthropic(max_retries=0) as anthropic:
                message = await anthropic.messages.with_raw_response.create(
                    model="m", max_tokens=9, messages=chat
                )
            stats = await reading(f"{provider}/stats")
    for answer in (completion, message):
        assert answer.status_code == 200
        assert answer.headers["ratelimit-policy"] == '"concurrency";q=2;qu="concurrent-requests"'
    assert (stats["requests"], stats["refused"]) == (2, 0)


# -- code ----------------------------------------------------------------------------------------------------


async def run_code(code: str, source: Path) -> dict[str, Any]:
    """Run *code* as ``python -m asyncio`` would; the names that it leaves behind."""
    compiled = compile(code, str(source), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    names: dict[str, Any] = {"__name__": "__main__"}
    result = eval(compiled, names)
    if compiled.co_flags & CO_COROUTINE:
        await result
    return names


async def test_six_lines_gate_an_sdk(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The call arrives, and its slot cools at the gate that the lines made."""
    (code,) = blocks(README, "python")
    async with mock_provider() as provider:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{provider}/v1")
        names = await run_code(code, README)
        status = names["gate"].status("openai")
        assert (status.limit, status.in_flight, status.cooling) == (4, 1, 1)
        assert (await reading(f"{provider}/stats"))["served"] == 1
        await names["client"].close()
        await names["gate"].aclose()


def code_of_the_docs() -> list[Any]:
    pages = [page for page in PAGES if page != README]
    return [
        pytest.param(page, code, id=f"{page.stem}-{number}")
        for page in pages
        for number, code in enumerate(blocks(page, "python"))
    ]


@pytest.mark.parametrize(("page", "code"), code_of_the_docs())
async def test_code_of_the_docs_runs(page: Path, code: str) -> None:
    """Examples in the docs need no network, and assert what they show."""
    await run_code(code, page)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_configurations_are_valid(page: Path, tmp_path: Path) -> None:
    """Every TOML block of any page loads as it stands, one with a workload as a scenario."""
    keys = {**KEYS, "GLM_API_KEY": "key", "INTERLOCK_TOKEN": "token"}
    for text in blocks(page, "toml"):
        if "[[workload]]" in text:
            read_scenario(tomllib.loads(text))
            continue
        file = tmp_path / "interlock.toml"
        file.write_text(text)
        load_config(file, keys)


# -- the reference of the configuration ----------------------------------------------------------------------

REFERENCE = ROOT / "docs/configuration.md"
TABLES: dict[str, type[msgspec.Struct]] = {
    "## Top level": config.Config,
    "## `[server]`": config.ServerConfig,
    "## `[limits]`": config.LimitsConfig,
    "## `[providers.NAME]`": config.ProviderConfig,
    "### `[[providers.NAME.wordings]]`": config.WordingConfig,
    "## `[gateway]`": config.GatewayConfig,
    "## `[pools.NAME]`": config.PoolConfig,
    "## `[agents.NAME]`": config.AgentConfig,
    "## `[retention]`": config.RetentionConfig,
}


def rows(heading: str) -> dict[str, str]:
    """The keys in the table below *heading*, each with what stands in the column of defaults."""
    text = REFERENCE.read_text(encoding="utf-8")
    section = re.split(r"^#", text.split(f"\n{heading}\n")[1], flags=re.MULTILINE)[0]
    return dict(re.findall(r"^\| `(\w+)` \| `?([^|`]+?)`? \|", section, re.MULTILINE))


def is_table(field: msgspec.structs.FieldInfo) -> bool:
    """Whether a key is a table of its own, with a heading of its own."""
    return get_origin(field.type) is dict or (
        isinstance(field.type, type) and issubclass(field.type, msgspec.Struct)
    )


def test_every_struct_has_its_table() -> None:
    structs = {
        value
        for value in vars(config).values()
        if isinstance(value, type) and issubclass(value, msgspec.Struct) and value is not msgspec.Struct
    }
    assert structs == set(TABLES.values())


@pytest.mark.parametrize("heading", TABLES)
def test_every_key_is_documented(heading: str) -> None:
    """In the order of the struct; what has no default says so."""
    fields = [field for field in msgspec.structs.fields(TABLES[heading]) if not is_table(field)]
    if TABLES[heading] is config.ProviderConfig:
        assert fields.pop(0).encode_name == "id"  # the name of the table, no key in it
    documented = rows(heading)
    assert list(documented) == [field.encode_name for field in fields]
    needed = {field.encode_name for field in fields if field.required}
    assert {key for key, default in documented.items() if default == "needed"} == needed


def test_documented_defaults_are_the_defaults(tmp_path: Path) -> None:
    """A file that spells out every default of the page means the same as one that leaves them out."""
    needed = {
        "## `[providers.NAME]`": 'base_url = "http://localhost"',
        "## `[pools.NAME]`": 'agent = "NAME"',
        "## `[agents.NAME]`": 'type = "python"\ntarget = "module:name"',
    }
    spelt, bare = [], []
    for heading in TABLES:
        if heading.startswith("###"):
            continue  # optional parts of an entry that is not there by default
        table = "" if heading == "## Top level" else heading.strip("# `")
        defaults = [
            f"{key} = {value}" for key, value in rows(heading).items() if value not in ("needed", "absent")
        ]
        spelt += [table, needed.get(heading, ""), *defaults]
        bare += [table, needed.get(heading, "")]
    loaded = []
    for name, lines in (("spelt.toml", spelt), ("bare.toml", bare)):
        text = "\n".join(lines)
        tomllib.loads(text)
        (tmp_path / name).write_text(text)
        loaded.append(load_config(tmp_path / name, {}))
    assert loaded[0] == loaded[1]


def test_absent_keys_are_none_by_default() -> None:
    """What the page calls absent has no value of its own that it fails to mention."""
    for heading, kind in TABLES.items():
        absent = {key for key, default in rows(heading).items() if default == "absent"}
        for field in msgspec.structs.fields(kind):
            if field.encode_name in absent:
                assert not field.default, f"{heading} {field.encode_name}"
                assert get_origin(field.type) is Annotated or type(None) in get_args(field.type)


# -- links ---------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The headings of *page*, as they are linked to."""
    headings = re.findall(r"^#+ (.+)$", _BLOCK.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    text = _BLOCK.sub("", page.read_text(encoding="utf-8"))
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_files_that_are_named_exist(page: Path) -> None:
    """Whatever is written as code and begins like a path of the repository is one."""
    text = _BLOCK.sub("", page.read_text(encoding="utf-8"))
    named = re.findall(r"`((?:src|tests|docs|examples|bench|requirements)/[\w./*-]*)(?:::\w+)?`", text)
    assert [path for path in named if not any(ROOT.glob(path.rstrip("/")))] == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_block_says_its_language(page: Path) -> None:
    """So that no example escapes the tests above."""
    languages = [language.strip() for language, _ in _BLOCK.findall(page.read_text(encoding="utf-8"))]
    assert [language for language in languages if language not in _KNOWN] == []
    if page != README:
        assert not set(languages) & _SHELL, "commands stand in the README, where they are run"
