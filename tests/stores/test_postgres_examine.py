"""What an examination says of a database in PostgreSQL: that it is whole, or by its name what is not."""

from __future__ import annotations

import asyncpg
import pytest

from interlock.core.sessions import NewEvent, Run, RunChange, Session
from interlock.ledger import OPERATOR, Ledger
from interlock.stores import open_store
from interlock.stores.expected import Expected
from interlock.stores.postgres import PostgresStore
from interlock.stores.postgres.examine import examine_over
from interlock.stores.postgres.link import Line
from interlock.testing import VirtualClock

AGENTS = Expected(("coder",))


def event(id_: str, type_: str, run_id: str | None = None) -> NewEvent:
    return NewEvent(id_, type_, 2.0, run_id)


async def filled(url: str) -> PostgresStore:
    """Two sessions; of the first's runs one has ended and one works."""
    store = await open_store(url)
    assert isinstance(store, PostgresStore)
    for id_ in ("s1", "s2"):
        await store.create_session(Session(id_, "active", agent_id="coder"), [event("c", "session_created")])
    for id_ in ("r1", "r2"):
        await store.submit_run(Run(id_, "s1"), [event(f"q{id_}", "run_queued", id_)])
        await store.change_run(id_, RunChange("start", 3.0), [event(f"s{id_}", "run_started", id_)])
    await store.append("s1", [event(f"{n}", "message_streamed", "r1") for n in range(5)])
    await store.change_run("r1", RunChange("complete", 4.0), [event("e", "run_completed", "r1")])
    ledger = Ledger(store, VirtualClock())
    await ledger.start({"tools": 8}, {"tools": 8})
    ledger.note("tools", 4, OPERATOR)
    await ledger.aclose()
    return store


WRONG = [
    ("DELETE FROM {}.events WHERE sequence = 6", "events are missing", "s1 lacks 1 of 11, the first is 6"),
    ("DELETE FROM {}.events WHERE sequence > 9", "events are missing", "the first is 10"),
    (
        "UPDATE {}.sessions SET last_sequence = 3",
        "sessions have numbers beyond their counters",
        "s1 has event",
    ),
    ("UPDATE {}.sessions SET runs = 1 WHERE id = 's1'", "sessions have numbers beyond", "run number 2"),
    ("DELETE FROM {}.events WHERE type = 'run_completed'", "ended runs have no event", "r1 is completed"),
    ("UPDATE {}.runs SET status = 'failed' WHERE id = 'r1'", "ended runs and their logs disagree", "r1 is"),
    (
        "UPDATE {}.runs SET status = 'running' WHERE id = 'r1'",
        "logs say that runs have ended",
        "r1 is running",
    ),
    (
        "UPDATE {}.sessions SET status = 'completed'",
        "sessions have ended with runs that have not",
        "r2 of s1",
    ),
    ("UPDATE {}.sessions SET agent_id = 'x'", "runs wait for an agent that is not configured", "agent is x"),
    ("UPDATE {}.events SET session = 99 WHERE session = 2", "events belong to no session", "1, the first of"),
    ("UPDATE {}.schema_migrations SET sha256 = ''", "its schema is not this Interlock's", "changed copy"),
    ("UPDATE {}.settings SET value = '?'", "the ledger of limits has a break", "cannot be read"),
]


@pytest.mark.parametrize(("damage", "what", "evidence"), WRONG)
async def test_what_is_wrong_is_named(damage: str, what: str, evidence: str, postgres_url: str) -> None:
    """Each kind of damage, and where it is; what is whole is said to be so, while others use it."""
    async with await filled(postgres_url) as store:
        [whole] = await store.examine(AGENTS)
        assert (whole.severity, whole.what) == ("ok", "the database is whole")
        assert whole.evidence.endswith(": 2 sessions, 2 runs, 12 events")
        db = await asyncpg.connect(postgres_url)
        await db.execute(damage.format("interlock"))
        await db.close()
        found = {one.what: one for one in await store.examine(AGENTS)}
    [told] = [one for one in found.values() if one.what.startswith(what)]
    assert told.severity in ("error", "warn")
    assert evidence in told.evidence
    assert told.remedy


async def test_an_empty_database_is_no_error(postgres_url: str) -> None:
    """It is looked at before the first server has used it, and left empty."""
    for _ in range(2):
        [told] = await examine_over(Line(postgres_url), AGENTS)
        assert (told.severity, told.what) == ("ok", "the database is empty; the next server sets it up")
    [told] = await examine_over(Line("postgresql://u:canary@127.0.0.1:1/d"), AGENTS)
    assert (told.severity, told.what) == ("error", "the database cannot be read")
    assert "canary" not in told.evidence


async def test_what_retention_removed_is_not_missing(postgres_url: str) -> None:
    """Where a session may have fewer events, gaps are what is expected."""
    async with await filled(postgres_url) as store:
        db = await asyncpg.connect(postgres_url)
        await db.execute("DELETE FROM interlock.events WHERE type = 'message_streamed'")
        await db.close()
        assert [one.severity for one in await store.examine(Expected(("coder",), 6))] == ["ok"]
        told, whole = await store.examine(Expected(("coder",), 8))
        assert told.what == "more events are missing than retention removes"
        assert whole.severity == "ok"
