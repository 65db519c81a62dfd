"""Statements about the log. All of this runs in the writer's thread, inside its transaction."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

from msgspec import json

from interlock.core.runs import IN_FLIGHT
from interlock.errors import SessionNotFound, StaleFence
from interlock.stores.sqlite.transaction import marks

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Collection, Sequence

    from interlock.stores.rows import EventRow

_SET = "UPDATE counters SET last_sequence = ?, updated_at = max(updated_at, ?) WHERE session = ?"
_INSERT = (
    "INSERT INTO events (session, sequence, id, type, timestamp, run_id, data, metadata, schema_version)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_LATEST = (
    "SELECT key, last_sequence FROM sessions JOIN counters ON session = key"
    " WHERE id = ? AND hidden_at IS NULL"
)
_ALL_LATEST = (
    "SELECT id, last_sequence, key FROM sessions JOIN counters ON session = key"
    " WHERE id IN (SELECT value FROM json_each(?)) AND hidden_at IS NULL"
)
_ATTEMPTS = "SELECT id, session, status, attempt FROM runs WHERE id IN (SELECT value FROM json_each(?))"
_COLUMNS = "id, type, timestamp, run_id, data, metadata, schema_version, sequence"


class Window(NamedTuple):
    """Which events of a session are asked for."""

    session_id: str
    after: int = 0
    before: int | None = None
    run_id: str | None = None
    types: Collection[str] | None = None
    since: float | None = None
    limit: int | None = None


def log(db: sqlite3.Connection, session_id: str, rows: Sequence[EventRow], at: float = 0.0) -> int:
    """Give *rows* their places in the log, behind all that is there; the number of the last.

    What the log has already keeps the place that it has. Raises `SessionNotFound`.
    """
    key, last = latest(db, session_id)
    select = "SELECT sequence FROM events WHERE session = ? AND id = ?"
    values, place = [], last
    for row in rows:
        known = db.execute(select, (key, row.id)).fetchone()
        if known is None:
            last = place = last + 1
            values.append((key, place, *row[:7]))
            at = max(at, row.timestamp)
        else:
            place = known[0]
    db.execute(_SET, (last, at, key))
    db.executemany(_INSERT, values)
    return place


class Append:
    """*rows* for a log; with *run_id*, only while that run is in flight in that *attempt*."""

    __slots__ = ("attempt", "rows", "run_id", "session_id")

    def __init__(
        self, session_id: str, rows: list[EventRow], run_id: str | None, attempt: int | None
    ) -> None:
        self.session_id = session_id
        self.rows = rows
        self.run_id = run_id
        self.attempt = attempt

    def __call__(self, db: sqlite3.Connection) -> int:
        """The number of the last; raises `SessionNotFound` and `StaleFence`."""
        if self.run_id is not None:
            key, _ = latest(db, self.session_id)
            _check_fences(db, {(key, self.run_id, self.attempt)})
        return log(db, self.session_id, self.rows)

    @staticmethod
    def together(db: sqlite3.Connection, appends: Sequence[Append]) -> list[int]:
        """The numbers of the last of each; raises where any of them must be refused or is logged already."""
        fences: set[tuple[int, str, int | None]] = set()
        ids = json.encode({append.session_id for append in appends}).decode()
        places = {id_: [last, 0.0, key] for id_, last, key in db.execute(_ALL_LATEST, (ids,))}
        values, lasts = [], []
        for append in appends:
            place = places[append.session_id]  # the last number, the latest time, the key
            last, at, key = place
            if append.run_id is not None:
                fences.add((key, append.run_id, append.attempt))
            for row in append.rows:
                last += 1
                if row[2] > at:
                    at = row[2]
                values.append((key, last, *row[:7]))
            place[:2] = last, at
            lasts.append(last)
        _check_fences(db, fences)
        db.executemany(_SET, places.values())
        db.executemany(_INSERT, values)
        return lasts


def _check_fences(db: sqlite3.Connection, fences: set[tuple[int, str, int | None]]) -> None:
    """Raises `StaleFence` unless each run is one of that session and in flight in that attempt."""
    if not fences:
        return
    ids = json.encode([run_id for _, run_id, _ in fences]).decode()
    rows = db.execute(_ATTEMPTS, (ids,)).fetchall()
    runs = {run_id: (session, attempt) for run_id, session, status, attempt in rows if status in IN_FLIGHT}
    for session, run_id, attempt in fences:
        found = runs.get(run_id)
        if found is None or found[0] != session or attempt not in (None, found[1]):
            raise StaleFence(f"run {run_id!r} is not in flight in attempt {attempt}", run=run_id)


def latest(db: sqlite3.Connection, session_id: str) -> tuple[int, int]:
    """The session's key and the number of its last event; raises `SessionNotFound`."""
    found = db.execute(_LATEST, (session_id,)).fetchone()
    if found is None:
        raise SessionNotFound(f"no session {session_id!r}", session=session_id)
    key, last = found
    return key, last


def read(db: sqlite3.Connection, window: Window) -> list[tuple[object, ...]]:
    """The rows in *window*, each as the values of an `EventRow`; raises `SessionNotFound`."""
    key, last = latest(db, window.session_id)
    if window.after >= last:
        return []
    where = ["session = ?", "sequence > ?"]
    values: list[object] = [key, window.after]
    for condition, value in (
        ("sequence < ?", window.before),
        ("run_id = ?", window.run_id),
        ("timestamp >= ?", window.since),
    ):
        if value is not None:
            where.append(condition)
            values.append(value)
    if window.types is not None:
        where.append(f"type IN ({marks(window.types)})")
        values += window.types
    select = f"SELECT {_COLUMNS} FROM events WHERE {' AND '.join(where)} ORDER BY sequence LIMIT ?"  # noqa: S608
    values.append(-1 if window.limit is None else window.limit)
    with closing(db.execute(select, values)) as found:
        return found.fetchall()
