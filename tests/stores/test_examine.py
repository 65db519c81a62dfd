"""What an examination says of a database: that it is whole, or by its name each thing that is not."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from itertools import count
from pathlib import Path

import pytest

from interlock.core.findings import Finding
from interlock.core.sessions import NewEvent, Run, RunChange, Session
from interlock.ledger import OPERATOR, Ledger
from interlock.stores.expected import Expected
from interlock.stores.sqlite import SQLiteStore
from interlock.stores.sqlite.examine import examine_file
from interlock.testing import VirtualClock

_ids = count()


def event(type_: str, run_id: str | None = None) -> NewEvent:
    return NewEvent(f"e{next(_ids)}", type_, 2.0, run_id)


AGENTS = Expected(("coder",))


def examined(path: Path, expected: Expected = AGENTS) -> list[Finding]:
    return examine_file(path, expected, lambda: False)


async def filled(path: Path) -> Path:
    """A store with two sessions; of the first's runs one has ended and one works."""
    store = await SQLiteStore.open(path)
    for id_ in ("s1", "s2"):
        session = Session(id_, "active", agent_id="coder", created_at=1.0, updated_at=1.0)
        await store.create_session(session, [event("session_created"), event("session_started")])
    for id_ in ("r1", "r2"):
        run = Run(id_, "s1", "pending", input={}, submitted_at=2.0)
        await store.submit_run(run, [event("run_queued", run_id=id_)])
        await store.change_run(id_, RunChange("start", 3.0), [event("run_started", run_id=id_)])
    words = [event("message_streamed", "r1") for _ in range(5)]
    await store.append("s1", words, run_id="r1", attempt=1)
    await store.change_run("r1", RunChange("complete", 4.0), [event("run_completed", run_id="r1")])
    ledger = Ledger(store, VirtualClock())
    await ledger.start({"tools": 8}, {"tools": 8})
    for capacity in (4, 6):
        ledger.note("tools", capacity, OPERATOR)
    await ledger.aclose()
    await store.aclose()
    return path


async def test_a_store_that_is_right_is_whole(tmp_path: Path) -> None:
    """Closed, and while its owner has it open and writes; the file is left as it was."""
    path = await filled(tmp_path / "a b?.db")
    before = path.read_bytes()
    (found,) = examined(path)
    assert (found.severity, found.what) == ("ok", "the database is whole")
    assert found.evidence == f"{path}: 2 sessions, 2 runs, 14 events"
    assert path.read_bytes() == before
    store = await SQLiteStore.open(path)
    try:
        await store.append("s2", [event("message_sent")])
        assert "15 events" in examined(path)[0].evidence
        await store.append("s2", [event("message_sent")])
    finally:
        await store.aclose()


HARM = {
    "DELETE FROM events WHERE session = 1 AND sequence IN (6, 7)": (
        "error",
        "events are missing",
        "s1 lacks 2 of 12, the first is 6",
    ),
    "DELETE FROM events WHERE session = 2": (
        "error",
        "events are missing",
        "s2 lacks 2 of 2, the first is 1",
    ),
    "UPDATE counters SET last_sequence = 13 WHERE session = 1": (
        "error",
        "events are missing",
        "s1 lacks 1 of 13, the first is 13",
    ),
    "UPDATE counters SET last_sequence = 5 WHERE session = 1": (
        "error",
        "sessions have numbers beyond their counters",
        "s1 has event 12, its counter says 1 to 5",
    ),
    "DELETE FROM counters WHERE session = 2": (
        "error",
        "sessions have numbers beyond their counters",
        "s2 has no counter",
    ),
    "UPDATE counters SET runs = 1 WHERE session = 1": (
        "error",
        "sessions have numbers beyond their counters",
        "s1 has run number 2, its counter says 1",
    ),
    "UPDATE events SET type = 'message_sent' WHERE type = 'run_completed'": (
        "error",
        "ended runs have no event that says so",
        "r1 is completed",
    ),
    "UPDATE events SET type = 'run_failed' WHERE sequence = 6 AND session = 1; "
    "UPDATE events SET run_id = 'r1' WHERE sequence = 6 AND session = 1": (
        "error",
        "ended runs have more than one event that says so",
        "r1 is completed and has 2",
    ),
    "UPDATE runs SET status = 'failed' WHERE id = 'r1'": (
        "error",
        "ended runs and their logs disagree",
        "r1 is failed, its log says run_completed",
    ),
    "UPDATE runs SET ended_at = NULL WHERE id = 'r1'": (
        "error",
        "ended runs and their logs disagree",
        "r1 is completed, but not since when",
    ),
    "UPDATE runs SET status = 'running' WHERE id = 'r1'": (
        "error",
        "logs say that runs have ended which have not",
        "r1 is running, its log says run_completed",
    ),
    "UPDATE sessions SET status = 'completed' WHERE id = 's1'": (
        "error",
        "sessions have ended with runs that have not",
        "r2 of s1, which is completed",
    ),
    "UPDATE sessions SET agent_id = 'gone' WHERE id = 's1'": (
        "warn",
        "runs wait for an agent that is not configured",
        "r2 of s1, whose agent is gone",
    ),
    "PRAGMA foreign_keys = OFF; DELETE FROM sessions WHERE id = 's2'": (
        "error",
        "rows belong to nothing",
        "has no sessions",
    ),
    "UPDATE schema_migrations SET version = 99 WHERE version > 1": (
        "error",
        "its schema is not this Interlock's",
        "its schema 99 is newer",
    ),
    "UPDATE schema_migrations SET sha256 = 'other' WHERE version = 1": (
        "error",
        "its schema is not this Interlock's",
        "made by a changed copy",
    ),
    "DELETE FROM schema_migrations WHERE version > 1": ("warn", "its schema is older", "to come: 0002"),
    "DROP TABLE schema_migrations": ("error", "this is no database of Interlock", "no such table"),
    "DELETE FROM settings WHERE key = 'ledger:tools:000000000002'": (
        "warn",
        "the ledger of limits has a break",
        "tools: change 2 is missing",
    ),
    "UPDATE settings SET value = '?' WHERE key LIKE 'ledger:%'": (
        "warn",
        "the ledger of limits has a break",
        "ledger:tools:000000000001 cannot be read",
    ),
}


@pytest.mark.parametrize("harm", HARM)
async def test_what_is_broken_is_named(tmp_path: Path, harm: str) -> None:
    """With its evidence and a remedy; nothing else is blamed."""
    path = await filled(tmp_path / "i.db")
    with closing(sqlite3.connect(path)) as db:
        db.executescript(harm)
    severity, what, evidence = HARM[harm]
    found = [one for one in examined(path) if one.severity != "ok"]
    assert [(one.severity, one.about, one.what) for one in found] == [(severity, "store", what)]
    assert evidence in found[0].evidence
    assert found[0].remedy


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4096])


def scribble(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096 * 3 : 4096 * 4] = b"\xa5" * 4096
    path.write_bytes(content)


def replace(path: Path) -> None:
    path.write_bytes(b"no database at all, but long enough to be looked at " * 99)


@pytest.mark.parametrize("harm", [cut, scribble, replace])
async def test_a_damaged_file_is_named(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    path = await filled(tmp_path / "i.db")
    harm(path)
    (found,) = examined(path)
    assert found.severity == "error"
    assert found.what in ("the database is damaged", "the database cannot be read")
    assert "bring back the last backup" in found.remedy


async def test_an_empty_file_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "i.db"
    path.touch()
    assert [(one.severity, one.what) for one in examined(path)] == [
        ("ok", "the database is empty; the next server sets it up")
    ]


async def test_what_retention_removes_is_not_missed(tmp_path: Path) -> None:
    """Where as many are left as it keeps; fewer is a warning, as it may have kept fewer once."""
    path = await filled(tmp_path / "i.db")
    with closing(sqlite3.connect(path)) as db:
        db.executescript("DELETE FROM events WHERE type = 'message_streamed'")
    assert [one.severity for one in examined(path, Expected(("coder",), 7))] == ["ok"]
    found = examined(path, Expected(("coder",), 8))
    assert [one.severity for one in found] == ["warn", "ok"]
    assert found[0].what == "more events are missing than retention removes"


async def test_it_ends_when_its_time_is_over(tmp_path: Path) -> None:
    """A database may be large."""
    path = await filled(tmp_path / "i.db")
    with closing(sqlite3.connect(path)) as db:
        db.executescript(
            "CREATE TABLE large (n, t); WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c"
            " WHERE n < 50000) INSERT INTO large SELECT n, n FROM c"
        )
    (found,) = examine_file(path, AGENTS, lambda: True)
    assert (found.severity, found.what) == ("warn", "the database was not read to its end in time")
