"""No schedule of a few tasks breaks `AgentPool`: nothing leaks, wherever somebody is cancelled."""

import ast
import logging
from functools import cache, partial
from pathlib import Path

import pytest

import interlock.pool
from admission.test_schedules import awaits
from pool.scenarios import SCENARIOS
from schedules import explore

PACKAGE = Path(interlock.pool.__file__).parent
NEVER_WAITS = ("asyncio.timeout(",)
"""What is entered and left without a pause."""
OF_THE_POOL_ITSELF = {"errand.py": ["run"], "pool.py": ["_stop"]}
"""Coroutines that run in tasks of the pool's own, which no user can cancel."""


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Thousands of starts fail here."""
    caplog.set_level(logging.CRITICAL, "interlock.pool")


@pytest.mark.parametrize("name", SCENARIOS)
def test_no_schedule_breaks_it(name: str) -> None:
    """Whatever comes first, nothing leaks, no agent is given to two, and nobody is forgotten."""
    report = explore(SCENARIOS[name], limit=1_500)
    assert report.failure is None, report


@pytest.mark.deep
@pytest.mark.parametrize("tasks", [3, 4])
@pytest.mark.parametrize("name", SCENARIOS)
def test_no_schedule_of_more_breaks_it(name: str, tasks: int) -> None:
    """The same with two cancels everywhere, and with four tasks."""
    report = explore(partial(SCENARIOS[name], tasks=tasks, cancels=2), limit=100_000)
    assert report.failure is None, report


@cache
def cancelled_at() -> set[tuple[str, int]]:
    """Where the scenarios cancel."""
    found = set()
    for scenario in SCENARIOS.values():
        found |= explore(scenario, limit=600).cancelled_at
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.stem)
def test_every_await_has_been_cancelled_at(path: Path) -> None:
    """A line that waits and was never cancelled there is a line whose cleanup nobody has seen."""
    source = path.read_text()
    exempt = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.AsyncFunctionDef) and node.name in OF_THE_POOL_ITSELF.get(path.name, ())
        for line in range(node.lineno, (node.end_lineno or 0) + 1)
    }
    text = source.splitlines()
    exempt |= {n for n, line in enumerate(text, 1) if any(what in line for what in NEVER_WAITS)}
    missed = [lines for lines in awaits(source) if lines.start not in exempt]
    if missed:
        reached = {line for file, line in cancelled_at() if Path(file) == path}
        missed = [lines for lines in missed if not reached.intersection(lines)]
    assert missed == [], f"no scenario cancels at {path.name}:{[lines.start for lines in missed]}"
