"""How SQLite finds what is asked for: by an index, so that one session's size is no matter for another's."""

import sqlite3
from pathlib import Path

import pytest

from interlock.core.sessions import NewEvent, Run, RunChange, Session
from interlock.stores.sqlite import SQLiteStore

SMALL = {"SCAN json_each VIRTUAL TABLE INDEX 1:", "SCAN CONSTANT ROW"}
"""Looks at what the statement itself brings along."""
UNFINISHED = {"SCAN runs USING INDEX runs_unfinished"}
ALL_SESSIONS = {"SCAN sessions USING INDEX sessions_by_creation"}
ALL_RUNS = {"SCAN runs"}

CALLS = {
    "create": (lambda store: store.create_session(Session("t", "active")), set()),
    "change": (lambda store: store.change_session("s", "pause", 1.0), set()),
    "submit": (lambda store: store.submit_run(Run("r2", "s", idempotency_key="k"), room=9), set()),
    "start": (lambda store: store.change_run("r", RunChange("start", 1.0)), set()),
    "append": (lambda store: store.append("s", [NewEvent("e", "message_sent", 1.0)]), set()),
    "events": (lambda store: store.get_events("s", after=1, before=9, types=("a",), since=1.0), set()),
    "run": (lambda store: store.get_run("r"), set()),
    "runs of a session": (lambda store: store.list_runs("s", after="r", limit=3), set()),
    "waiting runs": (lambda store: store.list_runs("s", statuses=("pending",)), set()),
    "delete": (lambda store: store.delete_session("s"), set()),
    "unfinished runs": (lambda store: store.list_runs(statuses=("pending", "running")), UNFINISHED),
    "all runs": (lambda store: store.list_runs(), ALL_RUNS),
    "a page of runs": (lambda store: store.list_runs(after="r"), set()),
    "all sessions": (lambda store: store.list_sessions(), ALL_SESSIONS),
    "a page of sessions": (lambda store: store.list_sessions(after="s", limit=3), set()),
}


@pytest.mark.parametrize("name", CALLS)
async def test_nothing_is_searched_for_without_an_index(name: str, tmp_path: Path) -> None:
    """No statement looks through a table, but for those that want all of it."""
    call, allowed = CALLS[name]
    said: list[str] = []
    async with await SQLiteStore.open(tmp_path / "interlock.db") as store:
        await store.create_session(Session("s", "active"))
        await store.submit_run(Run("r", "s"))
        await store._transact(lambda db: db.set_trace_callback(said.append))
        await call(store)
        await store._transact(lambda db: db.set_trace_callback(None))

        def plan(db: sqlite3.Connection) -> set[str]:
            asked = [sql for sql in said if sql.split()[0] in ("SELECT", "INSERT", "UPDATE", "DELETE")]
            assert asked
            return {row[3] for sql in asked for row in db.execute(f"EXPLAIN QUERY PLAN {sql}")}

        steps = await store._transact(plan)
    assert {step for step in steps if step.startswith("SCAN")} - SMALL == allowed
