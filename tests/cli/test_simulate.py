"""`interlock simulate`: the page shows what it prints, and errors are one line."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from interlock.testing.simulator import Measured, read_scenario, simulate
from shells import Shell

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/simulate.md").read_text()
EXAMPLE = "examples/simulate/provider_limit.toml"


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


async def test_the_worked_example_is_what_is_printed(shell: Shell) -> None:
    printed = await shell.says("simulate", EXAMPLE)
    (shown,) = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
    assert [line.rstrip() for line in printed.splitlines()] == shown.splitlines()
    assert f"`interlock simulate {EXAMPLE}`" in PAGE


async def test_json_has_every_number_that_the_page_names(shell: Shell) -> None:
    """And those of each provider; a seed of the command line counts."""
    told = json.loads(await shell.says("simulate", EXAMPLE, "--json"))["variants"]
    assert [one["variant"] for one in told][1:] == [
        "no cooldown",
        "limit 6, cooldown 500 ms",
        "first come first",
    ]
    named = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\|[^|]+\|([^|]+)\|", measured(), re.MULTILINE))))
    assert named <= told[0].keys()
    assert told[0].keys() - named == {"variant", "turns", "providers"}
    assert told[0]["providers"]["openai"]["limit"] == 4
    other = json.loads(await shell.says("simulate", EXAMPLE, "--seed", "8", "--json"))["variants"]
    assert other[0]["seconds"] != told[0]["seconds"]


def measured() -> str:
    return PAGE.partition("## What is measured")[2].partition("\n## ")[0]


async def test_the_scenario_of_the_page_can_be_run() -> None:
    """Each key that it explains is one; its variant changes what it says."""
    (shown,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    tree: dict[str, Any] = tomllib.loads(shown)
    tree["workload"][0]["sessions"] = 5
    found: list[Measured] = await simulate(read_scenario(tree))
    assert [one.providers["openai"].limit for one in found] == [4, 6]


async def test_a_log_is_replayed(shell: Shell) -> None:
    """More room, less waiting; nobody waits where there is no limit."""
    told = json.loads(await shell.says("simulate", "examples/simulate/replay.toml", "--json"))["variants"]
    assert {one["completed"] for one in told} == {18}
    assert told[0]["waitMax"] > told[1]["waitMax"] > told[2]["waitMax"] == 0
    printed = await shell.says("simulate", "examples/simulate/replay.toml")
    assert "∞" in printed
    line = (ROOT / "examples/simulate/arrivals.jsonl").read_text().splitlines()[1]
    assert f"```json\n{line}\n```" in PAGE


async def test_several_providers_are_told_apart(shell: Shell, tmp_path: Path) -> None:
    """Also one that only a variant has."""
    (tmp_path / "x.toml").write_text(
        "[providers.a]\nlimit = 2\nupstream.limit = 1\nupstream.hard_cap = 1\n"
        '[[workload]]\nprovider = "a"\nsessions = 2\n'
        "[[what_if]]\nproviders.b.limit = 3\n"
    )
    printed = [line.split() for line in (await shell.says("simulate", str(tmp_path / "x.toml"))).splitlines()]
    assert ["a:", "429s", "1", "1"] in printed
    assert ["b:", "completed", "0", "0"] in printed
    assert ["b:", "limit", "at", "the", "end", "∞", "3"] in printed


async def test_what_is_wrong_is_one_line(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text('[providers.p]\nlimit = "two"\n')
    said = await shell.refuses(2, "simulate", str(tmp_path / "x.toml"))
    assert 'providers.p.limit: "two" is not a whole number' in said
    said = await shell.refuses(2, "simulate", str(tmp_path / "y.toml"))
    assert said.endswith("y.toml: cannot be read: No such file or directory")
