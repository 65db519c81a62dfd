"""Every command explains itself, prints JSON where it prints, and its example can be typed."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator

import pytest
from cyclopts import App

from interlock.cli import app
from interlock.cli.overview import SAYS
from shells import Shell

WITHOUT_JSON = {("completion",): "its output is a script"}


def commands(group: App = app, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], App]]:
    """Every command that does something, subcommands included, with the words that name it."""
    for name in group:
        if name.startswith("-"):
            continue
        command = group[name]
        if command.default_command is not None:
            yield (*path, name), command
        yield from commands(command, (*path, name))


ALL = [pytest.param(words, command, id=" ".join(words)) for words, command in commands()]


def options(command: App) -> dict[str, str]:
    """The options of *command*, each with its help."""
    found = command.assemble_argument_collection()
    return {name: one.parameter.help or "" for one in found for name in one.names}


def examples(command: App) -> list[list[str]]:
    """The command lines after "Example:" in its docstring."""
    lines = (command.default_command.__doc__ or "").splitlines()
    said = [line.partition("Example: ")[2] for line in lines if "Example: " in line]
    return [shlex.split(line) for line in said]


def test_commands_are_found_with_their_subcommands() -> None:
    found = {words for words, _ in commands()}
    assert {("serve",), ("limits",), ("limits", "set"), ("token", "create"), ("config", "check")} <= found
    assert len(found) > 25


@pytest.mark.parametrize(("words", "command"), ALL)
def test_its_example_can_be_typed(words: tuple[str, ...], command: App) -> None:
    """It names this command, and the real command line takes it."""
    said = examples(command)
    assert said, "its docstring has no line that begins with Example:"
    for line in said:
        assert line[: len(words) + 1] == ["interlock", *words]
        called, bound, _ = app.parse_args(line[1:], exit_on_error=False, print_error=False)
        assert called.__doc__ == command.default_command.__doc__
        bound.apply_defaults()


@pytest.mark.parametrize(("words", "command"), ALL)
async def test_its_help_has_all_of_it(words: tuple[str, ...], command: App, shell: Shell) -> None:
    """What it does, its example and every option with what that means."""
    shown = await shell.says(*words, "--help")
    assert "Usage: interlock " + " ".join(words) in shown
    assert "Example:" in shown
    for name in options(command):
        if name.startswith("--"):
            assert name in shown


@pytest.mark.parametrize(("words", "command"), ALL)
def test_what_prints_prints_json(words: tuple[str, ...], command: App) -> None:
    """All but those whose output is no data, each with its reason."""
    assert ("--json" in options(command)) != (words in WITHOUT_JSON)


async def test_errors_are_one_line_that_says_what_is_allowed(shell: Shell) -> None:
    """Of the command line itself; those of each command are with its tests."""
    for words, said, where in (
        (["simulat"], 'Did you mean "simulate"?', "interlock --help"),
        (["simulate", "x.toml", "--seed", "many"], "Invalid value for --seed", "interlock simulate --help"),
        (["simulate"], "FILE requires an argument", "interlock simulate --help"),
        (["limits", "set", "tools"], "CAPACITY requires an argument", "interlock limits set --help"),
        (["status", "--nothing"], "Unknown option: --nothing", "interlock status --help"),
        (["completion", "tcsh"], 'Choose from: "bash", "zsh", "fish"', "interlock completion --help"),
    ):
        line = await shell.refuses(2, *words)
        assert said in line
        assert line.endswith(f"; see {where}")


async def test_the_overview_says_of_each_command_what_it_does(shell: Shell) -> None:
    """The beginning of the command's own help, of every command and of no other."""
    for words in ((), ("--help",), ("-h",)):
        shown = " ".join((await shell.says(*words)).replace("│", " ").split())
        for name in app:
            if name.startswith("-"):
                continue
            command = app[name]
            called = command.default_command
            first = ((called.__doc__ if called else None) or command.help).strip().splitlines()[0]
            assert re.match(re.escape(SAYS[name]) + r"\b", first)
            assert f"{name} {SAYS[name]}." in shown
    assert SAYS.keys() == {name for name in app if not name.startswith("-")}


def test_help_loads_no_command() -> None:
    """Neither their modules nor what those need: it is what people wait for most often."""
    code = (
        "import sys\nfrom interlock.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n"
        "    print({'uvicorn', 'starlette', 'httpx2', 'sqlite3', 'interlock.app'} & set(sys.modules))\n"
        "    print([name for name in sys.modules if name.startswith('interlock.cli.')])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.splitlines()[-2:] == ["set()", "['interlock.cli.overview']"]
