"""Statements about sessions. All of this runs in the writer's thread, inside its transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from interlock.core.runs import SESSION_MOVES
from interlock.errors import SessionNotFound
from interlock.stores.rows import EventRow, SessionRow
from interlock.stores.sqlite.events import latest, log
from interlock.stores.sqlite.transaction import marks

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Collection, Sequence

    from interlock.core.runs import SessionStatus, SessionVerb

_SELECT = (
    "SELECT id, status, agent_id, max_concurrent_runs, max_queued_runs, collision, metadata, tags,"
    " created_at, updated_at, last_sequence FROM sessions JOIN counters ON session = key"
)


def create(db: sqlite3.Connection, row: SessionRow, events: Sequence[EventRow]) -> SessionRow:
    """Write *row* with its first events, unless its id is known: the row that is there then."""
    made = db.execute(
        "INSERT INTO sessions (id, status, agent_id, max_concurrent_runs, max_queued_runs, collision,"
        " metadata, tags, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT DO NOTHING RETURNING key",
        row[:9],
    ).fetchall()
    if made:
        db.execute("INSERT INTO counters VALUES (?, 0, 0, ?)", (made[0][0], row.updated_at))
        log(db, row.id, events)
    return SessionRow._make(db.execute(f"{_SELECT} WHERE id = ?", (row.id,)).fetchone())


def change(
    db: sqlite3.Connection, session_id: str, verb: SessionVerb, at: float, events: Sequence[EventRow]
) -> SessionRow | None:
    """Move the status by compare-and-set; raises `SessionNotFound`."""
    before, after = SESSION_MOVES[verb]
    if get(db, session_id).status not in before:
        return None
    db.execute("UPDATE sessions SET status = ? WHERE id = ?", (after, session_id))
    log(db, session_id, events, at)
    return get(db, session_id)


def get(db: sqlite3.Connection, session_id: str) -> SessionRow:
    """The row; raises `SessionNotFound`."""
    found = db.execute(f"{_SELECT} WHERE id = ? AND hidden_at IS NULL", (session_id,)).fetchone()
    if found is None:
        raise SessionNotFound(f"no session {session_id!r}", session=session_id)
    return SessionRow._make(found)


def find(
    db: sqlite3.Connection, statuses: Collection[SessionStatus] | None, after: str | None, limit: int | None
) -> list[SessionRow]:
    """Rows by creation, then id, behind the session *after*; raises `SessionNotFound` where that is none."""
    where, values = "hidden_at IS NULL", list[object]()
    if statuses is not None:
        where += f" AND status IN ({marks(statuses)})"
        values += statuses
    if after is not None:
        key, _ = latest(db, after)
        where += " AND (created_at, id) > (SELECT created_at, id FROM sessions WHERE key = ?)"
        values.append(key)
    select = f"{_SELECT} WHERE {where} ORDER BY created_at, id LIMIT ?"
    found = db.execute(select, [*values, -1 if limit is None else limit])
    return [SessionRow._make(row) for row in found.fetchall()]


def delete(db: sqlite3.Connection, session_id: str) -> None:
    """Remove the session, if there; its runs go with it."""
    db.execute("DELETE FROM events WHERE session = (SELECT key FROM sessions WHERE id = ?)", (session_id,))
    db.execute("DELETE FROM sessions WHERE id = ?", (session_id,))
