"""The tables of runs and sessions: what leads where, what is final, and what the documentation draws."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path
from typing import get_args

import pytest

from interlock.core.runs import (
    ENDED,
    EVENT_OF,
    EVENT_TYPES,
    IN_FLIGHT,
    LIFECYCLE,
    RUN_MOVES,
    SESSION_ENDED,
    SESSION_MOVES,
    RunStatus,
    RunVerb,
    SessionStatus,
    SessionVerb,
    diagram,
)

DOCUMENT = Path(__file__).parents[2] / "docs/sessions.md"

# Written out once more, verb by verb, so that a slip in the table is seen here: "from > to".
RUNS = {
    "start": "pending > running",
    "pause": "running > paused",
    "resume": "paused > running",
    "requeue": "running paused > pending",
    "complete": "running paused > completed",
    "fail": "running paused > failed",
    "cancel": "pending running paused > cancelled",
    "interrupt": "running paused > interrupted",
    "time_out": "running paused > timeout",
}
SESSIONS = {
    "activate": "pending > active",
    "pause": "active > paused",
    "resume": "paused > active",
    "complete": "active paused > completed",
    "fail": "pending active paused > failed",
    "cancel": "pending active paused > cancelled",
}


def leads_to(table: dict[str, str], verb: str, status: str) -> str | None:
    before, _, after = table[verb].partition(" > ")
    return after if status in before.split() else None


def moved(table: object, verb: str, status: str) -> str | None:
    before, after = table[verb]  # type: ignore[index]
    return after if status in before else None


@pytest.mark.parametrize(("verb", "status"), list(product(get_args(RunVerb), get_args(RunStatus))))
def test_every_verb_in_every_status_of_a_run(verb: str, status: str) -> None:
    assert moved(RUN_MOVES, verb, status) == leads_to(RUNS, verb, status)


@pytest.mark.parametrize(("verb", "status"), list(product(get_args(SessionVerb), get_args(SessionStatus))))
def test_every_verb_in_every_status_of_a_session(verb: str, status: str) -> None:
    assert moved(SESSION_MOVES, verb, status) == leads_to(SESSIONS, verb, status)


def test_the_tables_have_every_verb_and_no_other() -> None:
    assert set(RUN_MOVES) == set(get_args(RunVerb)) == set(RUNS)
    assert set(SESSION_MOVES) == set(get_args(SessionVerb)) == set(SESSIONS)


def test_nothing_follows_an_end() -> None:
    """An end is written once: no verb finds a status that it could leave from."""
    assert {"completed", "failed", "cancelled", "interrupted", "timeout"} == ENDED
    assert {"completed", "failed", "cancelled"} == SESSION_ENDED
    assert not ENDED & set().union(*(before for before, _ in RUN_MOVES.values()))
    assert not SESSION_ENDED & set().union(*(before for before, _ in SESSION_MOVES.values()))


def test_every_status_can_be_reached_and_left_for_an_end() -> None:
    for statuses, table, ends in (
        (RunStatus, RUN_MOVES, ENDED),
        (SessionStatus, SESSION_MOVES, SESSION_ENDED),
    ):
        edges = {(start, after) for before, after in table.values() for start in before}  # type: ignore[attr-defined]
        reached = {"pending"}
        for _ in get_args(statuses):
            reached |= {after for start, after in edges if start in reached}
        assert reached == set(get_args(statuses))
        open_ones = set(get_args(statuses)) - ends
        assert all(any((status, end) in edges for end in ends) for status in open_ones)


def test_a_run_is_pending_in_flight_or_ended() -> None:
    assert {"pending"} | IN_FLIGHT | ENDED == set(get_args(RunStatus))
    assert not IN_FLIGHT & ENDED


def test_every_end_has_an_event_of_its_own() -> None:
    """And every such event can be written by nobody but the server."""
    ending = {verb for verb, (_, after) in RUN_MOVES.items() if after in ENDED}
    assert set(EVENT_OF) == ending | {"start"}
    assert len(set(EVENT_OF.values())) == len(EVENT_OF)
    assert set(EVENT_OF.values()) <= LIFECYCLE < EVENT_TYPES


def test_the_types_of_events_are_the_contracts() -> None:
    agents = EVENT_TYPES - LIFECYCLE
    assert {"run_queued", "run_interrupted", "session_created"} <= LIFECYCLE
    assert {"message_streamed", "tool_call_failed", "token_usage_updated", "policy_violation"} <= agents
    assert (len(LIFECYCLE), len(agents)) == (14, 16)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)+", one) for one in EVENT_TYPES)


def test_the_diagram_has_every_move() -> None:
    lines = diagram().splitlines()
    assert lines[:2] == ["stateDiagram-v2", "    [*] --> pending: submit"]
    arrows = {(start, after, verb) for verb, (before, after) in RUN_MOVES.items() for start in before}
    ends = {f"    {status} --> [*]" for status in ENDED}
    assert set(lines[2:]) == {f"    {start} --> {after}: {verb}" for start, after, verb in arrows} | ends
    assert len(lines) == len(set(lines))


def test_the_documentation_draws_the_table() -> None:
    """To mend it: ``python -c "from interlock.core.runs import diagram; print(diagram())"``."""
    (drawn,) = re.findall(
        r"```mermaid\n(stateDiagram.*?)\n```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL
    )
    assert drawn == diagram()
