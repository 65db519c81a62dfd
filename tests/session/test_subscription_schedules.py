"""No schedule of a few subscribers and a log that grows gives anybody an event twice, or not at all."""

import ast
import logging
from functools import cache, partial
from pathlib import Path

import pytest

from admission.test_schedules import awaits
from interlock.session import feed, subscription
from schedules import explore
from session.switchover import SCENARIOS


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """The store fails in thousands of schedules here."""
    caplog.set_level(logging.CRITICAL, "interlock.session")


@pytest.mark.parametrize("name", SCENARIOS)
def test_one_reader_at_every_moment(name: str) -> None:
    """Every schedule of one reader, an event, the end, and a cancellation: all of them are explored."""
    report = explore(partial(SCENARIOS[name], tasks=1), limit=20_000)
    assert report.failure is None, report
    assert report.complete, report


@pytest.mark.parametrize("name", SCENARIOS)
def test_no_schedule_breaks_it(name: str) -> None:
    """Readers that share what they read, of whom one is cancelled anywhere."""
    report = explore(SCENARIOS[name], limit=1_500)
    assert report.failure is None, report


@pytest.mark.deep
@pytest.mark.parametrize("tasks", [2, 3])
@pytest.mark.parametrize("name", SCENARIOS)
def test_no_schedule_of_more_breaks_it(name: str, tasks: int) -> None:
    """The same with two cancels, and with three readers."""
    report = explore(partial(SCENARIOS[name], tasks=tasks, cancels=2), limit=100_000)
    assert report.failure is None, report


@cache
def cancelled_at() -> set[tuple[str, int]]:
    """Where the scenarios cancel."""
    found = set()
    for scenario in SCENARIOS.values():
        found |= explore(scenario, limit=600).cancelled_at
    return found


GIVES_BATCHES = "batch"
"""It waits where iterating waits; the streams of a server use it, and are cancelled in their own tests."""


@pytest.mark.parametrize("module", [feed, subscription], ids=["feed", "subscription"])
def test_every_await_has_been_cancelled_at(module: object) -> None:
    """A line that waits and was never cancelled there is a line whose cleanup nobody has seen."""
    path = Path(module.__file__)  # type: ignore[attr-defined]
    source = path.read_text()
    exempt = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.AsyncFunctionDef) and node.name == GIVES_BATCHES
        for line in range(node.lineno, (node.end_lineno or 0) + 1)
    }
    missed = [lines for lines in awaits(source) if lines.start not in exempt]
    reached = {line for file, line in cancelled_at() if Path(file) == path}
    missed = [lines for lines in missed if not reached.intersection(lines)]
    assert missed == [], f"no scenario cancels at {path.name}:{[lines.start for lines in missed]}"
