"""Bars: on a terminal and gone at the end, and nothing of them anywhere else."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

from processes import environment

ROOT = Path(__file__).parents[2]
MANY = """
[providers.p]
[[workload]]
provider = "p"
sessions = 3000
"""


def on_a_terminal(*words: str, cwd: Path) -> tuple[str, str, int]:
    """Standard output, a pipe, and standard error, a terminal, of a command; and its exit code."""
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "interlock.cli", *words],
            cwd=cwd,
            env=environment({"TERM": "xterm-256color"}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=theirs,
        )
    finally:
        os.close(theirs)
    shown = b""
    with process:
        try:
            while piece := os.read(ours, 65536):
                shown += piece
        except OSError:
            pass  # the last of the other side has closed it
        finally:
            os.close(ours)
        assert process.stdout is not None
        printed = process.stdout.read()
        code = process.wait(timeout=30)
    return printed.decode(), shown.decode(), code


def test_a_simulation_shows_how_far_it_is(tmp_path: Path) -> None:
    """On standard error; standard output is the table alone, and at the end the line is cleared."""
    (tmp_path / "x.toml").write_text(MANY)
    printed, shown, code = on_a_terminal("simulate", "x.toml", cwd=tmp_path)
    assert code == 0
    assert "completed" in printed
    assert "simulating" not in printed
    assert "\x1b" not in printed
    assert "simulating" in shown
    assert "\u2501" in shown
    assert shown.rstrip().endswith("\x1b[2K")


def test_doctor_and_prune_show_that_they_work(tmp_path: Path) -> None:
    (tmp_path / "interlock.toml").write_text('store = "sqlite:///x.db"\n[server]\nport = 1\n')
    _, shown, _ = on_a_terminal("doctor", cwd=tmp_path)
    assert [what in shown for what in ("asking the server", "reading the store", "for the providers")] == [
        True,
        True,
        True,
    ]
    made = "import asyncio; from interlock import open_store\nasync def main():\n"
    made += "    await (await open_store('sqlite:///x.db')).aclose()\nasyncio.run(main())"
    subprocess.run([sys.executable, "-c", made], cwd=tmp_path, check=True, timeout=30)
    printed, shown, code = on_a_terminal("prune", "--json", cwd=tmp_path)
    assert (code, "pruning" in shown, printed[:1]) == (0, True, "{")


def test_a_pipe_hears_nothing_of_it(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(MANY)
    done = subprocess.run(
        [sys.executable, "-m", "interlock.cli", "simulate", "x.toml"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
