"""The first five minutes: what ``make demo`` shows is true on this machine, too."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import DEVNULL, PIPE
from pathlib import Path

from processes import environment

ROOT = Path(__file__).parents[2]


async def test_the_demo_runs_to_its_end_and_keeps_its_promise(tmp_path: Path) -> None:
    """The same fleet twice: straight at the provider it is refused; through Interlock never, nothing fails,
    and no more than the limit is in flight. Nothing but the JSON is printed, and nothing is left behind."""
    demo = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "interlock.cli", "demo", "--json"),
        cwd=tmp_path,
        env=environment(),
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=PIPE,
    )
    try:
        async with asyncio.timeout(90):
            printed, shown = await demo.communicate()
    finally:
        if demo.returncode is None:
            demo.kill()
            await demo.wait()
    assert demo.returncode == 0, shown.decode()
    result = json.loads(printed)
    straight, gated = result["straight"], result["gated"]
    print(f"straight: {straight}\ngated: {gated}")
    assert (gated["refused"], gated["failedTurns"]) == (0, 0)
    assert gated["peak"] <= 4
    assert gated["turns"] == 36
    assert straight["refused"] > 0
    assert list(tmp_path.iterdir()) == []


def test_make_demo_is_that_command() -> None:
    """And it makes the environment that it needs first."""
    lines = (ROOT / "Makefile").read_text().splitlines()
    rule = next(number for number, line in enumerate(lines) if line.startswith("demo:"))
    assert lines[rule].split("##")[0].split() == ["demo:", "$(READY)"]
    assert lines[rule + 1] == "\t.venv/bin/interlock demo"
    assert not lines[rule + 2].startswith("\t")
