"""Retention in small steps: each is a transaction of its own, so that nobody waits for all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from interlock.core.runs import LIFECYCLE, SESSION_ENDED
from interlock.stores.rows import tags_of

if TYPE_CHECKING:
    import asyncpg

    from interlock.core.sessions import Retention

STEP: Final = 1_000
"""Events removed in one transaction at most."""


async def hide(db: asyncpg.Connection, retention: Retention, now: float) -> list[str]:
    """Hide the sessions that ended long ago; their ids as they are kept."""
    if retention.completed_age is None:
        return []
    select = (
        "SELECT key, tags FROM interlock.sessions"
        " WHERE hidden_at IS NULL AND status = ANY($1::text[]) AND updated_at <= $2"
        " ORDER BY key FOR NO KEY UPDATE SKIP LOCKED"
    )
    found = await db.fetch(select, list(SESSION_ENDED), now - retention.completed_age)
    keys = [key for key, tags in found if not _exempt(tags, retention)]
    update = "UPDATE interlock.sessions SET hidden_at = $1 WHERE key = ANY($2::bigint[]) RETURNING id"
    return [row["id"] for row in await db.fetch(update, now, keys)]


async def hidden(db: asyncpg.Connection, retention: Retention, now: float) -> list[str]:
    """The ids, as they are kept, of the sessions that were hidden long ago."""
    if retention.deleted_age is None:
        return []
    select = "SELECT id, tags FROM interlock.sessions WHERE hidden_at <= $1 ORDER BY key"
    found = await db.fetch(select, now - retention.deleted_age)
    return [id_ for id_, tags in found if not _exempt(tags, retention)]


async def delete(db: asyncpg.Connection, session_id: str) -> bool:
    """Remove the session with its runs and events; whether it was there."""
    key = await db.fetchval("SELECT key FROM interlock.sessions WHERE id = $1 FOR UPDATE", session_id)
    if key is None:
        return False
    await db.execute("DELETE FROM interlock.events WHERE session = $1", key)
    await db.execute("DELETE FROM interlock.sessions WHERE key = $1", key)
    return True


async def long(db: asyncpg.Connection, retention: Retention) -> list[int]:
    """The keys of the sessions that may have more events than they should."""
    if retention.max_events_per_session is None:
        return []
    select = (
        "SELECT key, tags FROM interlock.sessions WHERE hidden_at IS NULL AND last_sequence > $1 ORDER BY key"
    )
    found = await db.fetch(select, retention.max_events_per_session)
    return [key for key, tags in found if not _exempt(tags, retention)]


async def thin_out(db: asyncpg.Connection, key: int, retention: Retention) -> int:
    """Remove some of the session's surplus: first what is of little worth, then the oldest; how many."""
    await db.execute("SELECT FROM interlock.sessions WHERE key = $1 FOR NO KEY UPDATE", key)
    count = await db.fetchval("SELECT COUNT(*) FROM interlock.events WHERE session = $1", key)
    surplus = min(count - (retention.max_events_per_session or 0), STEP)
    first = [type_ for type_ in retention.prune_first if type_ not in LIFECYCLE]
    gone = await _remove(db, key, "type = ANY($2::text[])", first, surplus)
    return gone + await _remove(db, key, "type <> ALL($2::text[])", [*first, *LIFECYCLE], surplus - gone)


async def _remove(db: asyncpg.Connection, key: int, which: str, types: list[str], count: int) -> int:
    if count <= 0:
        return 0
    delete = (
        "DELETE FROM interlock.events WHERE session = $1 AND sequence IN ("  # noqa: S608
        f"SELECT sequence FROM interlock.events WHERE session = $1 AND {which} ORDER BY sequence LIMIT $3)"
    )
    return int((await db.execute(delete, key, types, count)).split()[-1])


async def forget_writers(db: asyncpg.Connection) -> None:
    """Remove the marks of those who have not written for a day."""
    await db.execute("DELETE FROM interlock.writers WHERE at < clock_timestamp() - interval '1 day'")


def _exempt(tags: str, retention: Retention) -> bool:
    return not set(retention.exempt_tags).isdisjoint(tags_of(tags))
