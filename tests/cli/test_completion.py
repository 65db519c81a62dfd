"""`interlock completion`: in a real shell, commands and options are completed, without a process of ours."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from interlock.cli import app
from shells import Shell

ASK = r"""
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 ))
PATH=  # whatever it would have to run is not found
_interlock
printf '%s\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
async def script(shell: Shell, tmp_path: Path) -> Path:
    file = tmp_path / "interlock.bash"
    file.write_text(await shell.says("completion", "bash"))
    return file


def completed(script: Path, *words: str) -> set[str]:
    """What bash offers for the last of *words*."""
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-u", "-c", ASK, "bash", str(script), *words],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return set(done.stdout.split())


async def test_bash_completes_commands_subcommands_options_and_values(script: Path) -> None:
    assert completed(script, "interlock", "") == {name for name in app if not name.startswith("-")}
    assert completed(script, "interlock", "si") == {"simulate"}
    assert completed(script, "interlock", "limits", "") >= {"set", "rm", "history"}
    assert completed(script, "interlock", "limits", "set", "--") >= {"--url", "--json", "--help"}
    assert completed(script, "interlock", "simulate", "x.toml", "--s") == {"--seed"}
    assert completed(script, "interlock", "serve", "--log-format", "") == {"text", "json"}
    assert completed(script, "interlock", "submit", "s1", "--retry", "") == {"on-crash"}
    assert completed(script, "interlock", "completion", "") == {"bash", "zsh", "fish"}


async def test_bash_knows_that_it_is_ours(script: Path) -> None:
    """Sourced, it is what completes `interlock`."""
    asked = subprocess.run(
        ["bash", "--noprofile", "--norc", "-c", 'source "$1"; complete -p interlock', "bash", str(script)],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert "_interlock interlock" in asked.stdout


@pytest.mark.parametrize("name", ["zsh", "fish"])
async def test_other_shells_can_read_theirs(name: str, shell: Shell, tmp_path: Path) -> None:
    """Its syntax, where the shell is installed; and that it is about every command."""
    said = await shell.says("completion", name)
    assert all(command in said for command in app if not command.startswith("-"))
    file = tmp_path / "script"
    file.write_text(said)
    if (program := shutil.which(name)) is not None:
        subprocess.run([program, "-n", str(file)], check=True, timeout=30)
