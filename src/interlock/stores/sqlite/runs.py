"""Statements about runs. All of this runs in the writer's thread, inside its transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from interlock.core.runs import ENDED, SESSION_ENDED
from interlock.errors import InvalidOperation, InvalidStatus, QueueFull, RunNotFound
from interlock.stores.rows import ChangeRow, EventRow, RunRow, changed
from interlock.stores.sqlite import sessions
from interlock.stores.sqlite.events import latest, log
from interlock.stores.sqlite.transaction import marks

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Collection, Sequence

    from interlock.core.runs import RunStatus

_VALUES = (
    "runs.id, sessions.id, runs.status, input, number, runs.metadata, priority, timeout, retry,"
    " idempotency_key, attempt, output, error, token_usage, submitted_at, started_at, ended_at, waited"
)
_SELECT = f"SELECT {_VALUES} FROM runs JOIN sessions ON sessions.key = runs.session AND hidden_at IS NULL"  # noqa: S608
_INSERT = (
    "INSERT INTO runs (id, session, status, input, number, metadata, priority, timeout, retry,"  # noqa: S608
    " idempotency_key, attempt, output, error, token_usage, submitted_at, started_at, ended_at, waited)"
    f" VALUES ({marks(RunRow._fields)})"
)
_UNFINISHED = "status IN ('pending', 'running', 'paused')"  # word for word as the index has it


def submit(
    db: sqlite3.Connection, row: RunRow, events: Sequence[EventRow], room: int | None
) -> tuple[RunRow, bool]:
    """Write *row* behind all others of its session, unless it is known by its key or id."""
    session = sessions.get(db, row.session_id)
    key, _ = latest(db, row.session_id)
    known = _known(db, row, key)
    if known is not None:
        return known, False
    if session.status in SESSION_ENDED:
        raise InvalidStatus(f"session {row.session_id!r} is {session.status}", status=session.status)
    if room is not None:
        count = f"SELECT COUNT(*) FROM runs WHERE session = ? AND {_UNFINISHED}"  # noqa: S608
        unfinished = db.execute(count, (key,)).fetchone()[0]
        if unfinished >= room:
            raise QueueFull(f"session {row.session_id!r} has {unfinished} runs of {room}", room=room)
    number = "UPDATE counters SET runs = runs + 1 WHERE session = ? RETURNING runs"
    row = row._replace(number=db.execute(number, (key,)).fetchall()[0][0])
    db.execute(_INSERT, (row.id, key, *row[2:]))
    log(db, row.session_id, events, row.submitted_at)
    return row, True


def _known(db: sqlite3.Connection, row: RunRow, key: int) -> RunRow | None:
    """The run that was written before with the key or the id of *row*."""
    found = None
    if row.idempotency_key is not None:
        by_key = f"{_SELECT} WHERE runs.session = ? AND idempotency_key = ?"
        found = db.execute(by_key, (key, row.idempotency_key)).fetchone()
    if found is None:
        found = db.execute(f"{_SELECT} WHERE runs.id = ?", (row.id,)).fetchone()
    if found is None:
        return None
    if found[1] != row.session_id:
        raise InvalidOperation(f"run {row.id!r} is one of another session", run=row.id)
    return RunRow._make(found)


def change(db: sqlite3.Connection, run_id: str, done: ChangeRow, events: Sequence[EventRow]) -> RunRow | None:
    """Change the run by compare-and-set; raises `RunNotFound`."""
    row = changed(get(db, run_id), done)
    if row is None:
        return None
    db.execute(
        "UPDATE runs SET status = ?, attempt = ?, output = ?, error = ?, token_usage = ?, started_at = ?,"
        " ended_at = ?, waited = ? WHERE id = ?",
        (
            *(row.status, row.attempt, row.output, row.error, row.token_usage),
            *(row.started_at, row.ended_at, row.waited, run_id),
        ),
    )
    log(db, row.session_id, events, done.change.at)
    return row


def get(db: sqlite3.Connection, run_id: str) -> RunRow:
    """The row; raises `RunNotFound`."""
    found = db.execute(f"{_SELECT} WHERE runs.id = ?", (run_id,)).fetchone()
    if found is None:
        raise RunNotFound(f"no run {run_id!r}", run=run_id)
    return RunRow._make(found)


def find(
    db: sqlite3.Connection,
    session_id: str | None,
    statuses: Collection[RunStatus] | None,
    after: str | None,
    limit: int | None,
) -> list[RunRow]:
    """Rows by submission, behind the run *after*; raises `RunNotFound` where that is none."""
    where, values = list[str](), list[object]()
    place = order = "runs.key"
    if session_id is not None:
        place = order = "runs.number"  # the same order, and there is an index for it
        where.append("runs.session = (SELECT key FROM sessions WHERE id = ?)")
        values.append(session_id)
    if statuses is not None:
        where.append(f"runs.status IN ({marks(statuses)})")
        values += statuses
        if ENDED.isdisjoint(statuses):
            where.append(f"runs.{_UNFINISHED}")
            order = f"+{place}"  # the few are sorted, rather than all looked at in their order
    if after is not None:
        get(db, after)
        where.append(f"{place} > (SELECT {place} FROM runs WHERE id = ?)")  # noqa: S608
        values.append(after)
    select = f"{_SELECT} WHERE {' AND '.join(where)}" if where else _SELECT
    found = db.execute(f"{select} ORDER BY {order} LIMIT ?", [*values, -1 if limit is None else limit])
    return [RunRow._make(row) for row in found.fetchall()]
