"""What is read, each as one statement or two over whichever connection is at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from interlock.core.runs import ENDED
from interlock.errors import RunNotFound, SessionNotFound
from interlock.stores.postgres.group import RUN_VALUES
from interlock.stores.postgres.text import given
from interlock.stores.rows import EventRow, RunRow, SessionRow

if TYPE_CHECKING:
    from collections.abc import Collection

    import asyncpg

_SESSION = (
    "SELECT id, status, agent_id, max_concurrent_runs, max_queued_runs, collision, metadata, tags,"
    " created_at, updated_at, last_sequence FROM interlock.sessions WHERE hidden_at IS NULL"
)
_RUN = (
    f"SELECT {RUN_VALUES} FROM interlock.runs"  # noqa: S608
    " JOIN interlock.sessions ON sessions.key = runs.session AND hidden_at IS NULL"
)
_EVENTS = (
    'SELECT id, type, "timestamp", run_id, data, metadata, schema_version, sequence FROM interlock.events'
)
_LATEST = "SELECT key, last_sequence FROM interlock.sessions WHERE id = $1 AND hidden_at IS NULL"


class Window(NamedTuple):
    """Which events of a session are asked for."""

    session_id: str
    after: int = 0
    before: int | None = None
    run_id: str | None = None
    types: Collection[str] | None = None
    since: float | None = None
    limit: int | None = None


class _Values:
    """The values of a statement that is put together."""

    def __init__(self) -> None:
        self.all: list[object] = []

    def mark(self, value: object) -> str:
        """Where *value* stands in the statement."""
        self.all.append(value)
        return f"${len(self.all)}"


async def setting(db: asyncpg.Connection, key: str) -> str | None:
    """The value of *key*, or None."""
    found: str | None = await db.fetchval("SELECT value FROM interlock.settings WHERE key = $1", key)
    return found


async def settings(db: asyncpg.Connection, prefix: str) -> dict[str, str]:
    """Every entry whose key begins with *prefix*, in the order of the keys."""
    select = "SELECT key, value FROM interlock.settings WHERE starts_with(key, $1) AND key >= $1 ORDER BY key"
    return {row["key"]: row["value"] for row in await db.fetch(select, prefix)}


async def session(db: asyncpg.Connection, session_id: str) -> SessionRow:
    """The row; raises `SessionNotFound`."""
    found = await db.fetchrow(f"{_SESSION} AND id = $1", session_id)
    if found is None:
        raise _no_session(session_id)
    return SessionRow._make(found)


async def sessions(
    db: asyncpg.Connection, statuses: Collection[str] | None, after: str | None, limit: int | None
) -> list[SessionRow]:
    """Rows by creation, then id, behind the session *after*; raises `SessionNotFound` where that is none."""
    values, select = _Values(), _SESSION
    if statuses is not None:
        select += f" AND status = ANY({values.mark(list(statuses))}::text[])"
    if after is not None:
        created = (await session(db, after)).created_at
        select += f" AND (created_at, id) > ({values.mark(created)}, {values.mark(after)})"
    select += f" ORDER BY created_at, id LIMIT {values.mark(limit)}"
    return [SessionRow._make(row) for row in await db.fetch(select, *values.all)]


async def run(db: asyncpg.Connection, run_id: str) -> RunRow:
    """The row; raises `RunNotFound`."""
    found = await db.fetchrow(f"{_RUN} WHERE runs.id = $1", run_id)
    if found is None:
        raise RunNotFound(f"no run {given(run_id)!r}", run=given(run_id))
    return RunRow._make(found)


async def runs(
    db: asyncpg.Connection,
    session_id: str | None,
    statuses: Collection[str] | None,
    after: str | None,
    limit: int | None,
) -> list[RunRow]:
    """Rows by submission, behind the run *after*; raises `RunNotFound` where that is none."""
    values, where = _Values(), list[str]()
    place = "runs.key"
    if session_id is not None:
        place = "runs.number"  # the same order, and there is an index for it
        where.append(f"sessions.id = {values.mark(session_id)}")
    if statuses is not None:
        where.append(f"runs.status = ANY({values.mark(list(statuses))}::text[])")
        if ENDED.isdisjoint(statuses):
            where.append("runs.status IN ('pending', 'running', 'paused')")  # as the index has it
    if after is not None:
        await run(db, after)
        at = f"SELECT {place} FROM interlock.runs WHERE id = {values.mark(after)}"  # noqa: S608
        where.append(f"{place} > ({at})")
    select = f"{_RUN} WHERE {' AND '.join(where)}" if where else _RUN
    found = await db.fetch(f"{select} ORDER BY {place} LIMIT {values.mark(limit)}", *values.all)
    return [RunRow._make(row) for row in found]


async def unfinished(db: asyncpg.Connection, session_id: str) -> list[tuple[str, str]]:
    """Ids and statuses of the session's runs that have not ended, by submission."""
    select = (
        "SELECT runs.id, runs.status FROM interlock.runs JOIN interlock.sessions ON sessions.key = session"
        " WHERE sessions.id = $1 AND runs.status IN ('pending', 'running', 'paused') ORDER BY number"
    )
    return [(id_, status) for id_, status in await db.fetch(select, session_id)]


async def latest(db: asyncpg.Connection, session_id: str) -> tuple[int, int]:
    """The session's key and the number of its last event; raises `SessionNotFound`."""
    found = await db.fetchrow(_LATEST, session_id)
    if found is None:
        raise _no_session(session_id)
    return found["key"], found["last_sequence"]


async def events(db: asyncpg.Connection, window: Window) -> list[EventRow]:
    """The rows in *window*; raises `SessionNotFound`."""
    key, last = await latest(db, window.session_id)
    if window.after >= last:
        return []
    values = _Values()
    where = [f"session = {values.mark(key)}", f"sequence > {values.mark(window.after)}"]
    if window.before is not None:
        where.append(f"sequence < {values.mark(window.before)}")
    if window.run_id is not None:
        where.append(f"run_id = {values.mark(window.run_id)}")
    if window.types is not None:
        where.append(f"type = ANY({values.mark(list(window.types))}::text[])")
    if window.since is not None:
        where.append(f'"timestamp" >= {values.mark(window.since)}')
    select = f"{_EVENTS} WHERE {' AND '.join(where)} ORDER BY sequence LIMIT {values.mark(window.limit)}"
    return [EventRow._make(row) for row in await db.fetch(select, *values.all)]


def _no_session(session_id: str) -> SessionNotFound:
    shown = given(session_id)
    return SessionNotFound(f"no session {shown!r}", session=shown)
