"""Retention in small steps: each is a transaction of its own, so that nobody waits for all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from interlock.core.runs import LIFECYCLE, SESSION_ENDED
from interlock.stores.rows import tags_of
from interlock.stores.sqlite.transaction import marks

if TYPE_CHECKING:
    import sqlite3

    from interlock.core.sessions import Retention

STEP = 1_000  # events removed in one transaction at most


def hide(db: sqlite3.Connection, retention: Retention, now: float) -> list[str]:
    """Hide the sessions that ended long ago; their ids."""
    if retention.completed_age is None:
        return []
    select = (
        "SELECT id, tags FROM sessions JOIN counters ON session = key"  # noqa: S608
        f" WHERE hidden_at IS NULL AND status IN ({marks(SESSION_ENDED)}) AND updated_at <= ?"
    )
    found = db.execute(select, (*SESSION_ENDED, now - retention.completed_age)).fetchall()
    ids = [id_ for id_, tags in found if not _exempt(tags, retention)]
    db.executemany("UPDATE sessions SET hidden_at = ? WHERE id = ?", [(now, id_) for id_ in ids])
    return ids


def hidden(db: sqlite3.Connection, retention: Retention, now: float) -> list[str]:
    """The ids of the sessions that were hidden long ago."""
    if retention.deleted_age is None:
        return []
    select = "SELECT id, tags FROM sessions WHERE hidden_at <= ?"
    found = db.execute(select, (now - retention.deleted_age,)).fetchall()
    return [id_ for id_, tags in found if not _exempt(tags, retention)]


def long(db: sqlite3.Connection, retention: Retention) -> list[int]:
    """The keys of the sessions that may have more events than they should."""
    if retention.max_events_per_session is None:
        return []
    select = (
        "SELECT key, tags FROM counters JOIN sessions ON session = key"
        " WHERE hidden_at IS NULL AND last_sequence > ?"
    )
    found = db.execute(select, (retention.max_events_per_session,)).fetchall()
    return [key for key, tags in found if not _exempt(tags, retention)]


def thin_out(db: sqlite3.Connection, key: int, retention: Retention) -> int:
    """Remove some of the session's surplus: first what is of little worth, then the oldest; how many."""
    count = db.execute("SELECT COUNT(*) FROM events WHERE session = ?", (key,)).fetchone()[0]
    surplus = min(count - (retention.max_events_per_session or 0), STEP)
    first = [type_ for type_ in retention.prune_first if type_ not in LIFECYCLE]
    gone = _remove(db, key, "IN", first, surplus)
    return gone + _remove(db, key, "NOT IN", [*first, *LIFECYCLE], surplus - gone)


def _remove(db: sqlite3.Connection, key: int, word: str, types: list[str], count: int) -> int:
    if count <= 0:
        return 0
    oldest = (
        f"SELECT key FROM events WHERE session = ? AND type {word} ({marks(types)})"  # noqa: S608
        " ORDER BY sequence LIMIT ?"
    )
    return db.execute(f"DELETE FROM events WHERE key IN ({oldest})", (key, *types, count)).rowcount  # noqa: S608


def _exempt(tags: str, retention: Retention) -> bool:
    return not set(retention.exempt_tags).isdisjoint(tags_of(tags))
