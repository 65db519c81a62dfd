"""Group commit: the changes of one moment as one transaction of a few statements, however many they are.

First the sessions' rows are locked, in one order that all keep; then what was named is read, the changes are
decided in memory, and what they write is written at once. A sequence number is given under the session's lock
and in the transaction that uses it: so there is no gap, and the order of the numbers is that of the commits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from interlock.errors import InterlockError
from interlock.stores.postgres.changes import Kept, KeptSession, Needs
from interlock.stores.rows import RunRow, SessionRow

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import asyncpg

    from interlock.stores.postgres.changes import Change

_CREATE = """
INSERT INTO interlock.sessions (id, status, agent_id, max_concurrent_runs, max_queued_runs, collision,
  metadata, tags, created_at, updated_at)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::text[], $7::text[],
  $8::text[], $9::float8[], $10::float8[])
ON CONFLICT (id) DO NOTHING RETURNING id
"""
_LOCK = """
SELECT key, id, status, agent_id, max_concurrent_runs, max_queued_runs, collision,
  CASE WHEN $3 THEN metadata ELSE '{{}}' END, CASE WHEN $3 THEN tags ELSE '[]' END, created_at, updated_at,
  last_sequence, runs, fence, hidden_at IS NOT NULL
FROM interlock.sessions
WHERE key IN (
  SELECT key FROM interlock.sessions WHERE id = ANY($1::text[])
  UNION SELECT session FROM interlock.runs WHERE id = ANY($2::text[]))
ORDER BY key FOR NO KEY UPDATE {}
"""
_HOMES = """
SELECT sessions.id, NULL FROM interlock.sessions WHERE id = ANY($1::text[])
UNION ALL SELECT sessions.id, runs.id
FROM interlock.runs JOIN interlock.sessions ON sessions.key = runs.session
WHERE runs.id = ANY($2::text[])
"""
RUN_VALUES = (
    "runs.id, sessions.id, runs.status, input, number, runs.metadata, priority, timeout, retry,"
    " idempotency_key, attempt, output, error, token_usage, submitted_at, started_at, ended_at, waited"
)
_RUNS = f"""
SELECT {RUN_VALUES} FROM interlock.runs JOIN interlock.sessions ON sessions.key = runs.session
WHERE runs.id = ANY($1::text[])
UNION ALL SELECT {RUN_VALUES} FROM unnest($2::bigint[], $3::text[]) AS asked(home, asked_key)
JOIN interlock.runs ON session = home AND idempotency_key = asked_key
JOIN interlock.sessions ON sessions.key = runs.session
"""  # noqa: S608
_ATTEMPTS = """
SELECT runs.id, sessions.id, runs.status, attempt
FROM interlock.runs JOIN interlock.sessions ON sessions.key = runs.session WHERE runs.id = ANY($1::text[])
"""
_COUNTS = """
SELECT session, COUNT(*) FROM interlock.runs
WHERE session = ANY($1::bigint[]) AND status IN ('pending', 'running', 'paused') GROUP BY session
"""
_PLACES = """
SELECT session, id, sequence FROM unnest($1::bigint[], $2::text[]) AS asked(home, asked_id)
JOIN interlock.events ON session = home AND id = asked_id
"""
_INSERT_RUNS = """
INSERT INTO interlock.runs (session, id, status, input, number, metadata, priority, timeout, retry,
  idempotency_key, attempt, output, error, token_usage, submitted_at, started_at, ended_at, waited)
SELECT * FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::text[], $7::bigint[],
  $8::float8[], $9::text[], $10::text[], $11::bigint[], $12::text[], $13::text[], $14::text[], $15::float8[],
  $16::float8[], $17::float8[], $18::float8[])
"""
_UPDATE_RUNS = """
UPDATE interlock.runs SET status = new.status, attempt = new.attempt, output = new.output, error = new.error,
  token_usage = new.token_usage, started_at = new.started_at, ended_at = new.ended_at, waited = new.waited
FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::float8[],
  $8::float8[], $9::float8[])
  AS new(id, status, attempt, output, error, token_usage, started_at, ended_at, waited)
WHERE runs.id = new.id
"""
_SET = """
INSERT INTO interlock.settings SELECT * FROM unnest($1::text[], $2::text[])
ON CONFLICT (key) DO UPDATE SET value = excluded.value
"""
_UNSET = "DELETE FROM interlock.settings WHERE key = ANY($1::text[])"
# Last, in one statement: the log, the sessions' rows, and which transaction of which writer this is.
_FINISH = """
WITH mark AS (
  INSERT INTO interlock.writers VALUES ($1, $2, clock_timestamp())
  ON CONFLICT (id) DO UPDATE SET last = excluded.last, at = excluded.at),
logged AS (
  INSERT INTO interlock.events (session, sequence, id, type, "timestamp", run_id, data, metadata,
    schema_version)
  SELECT * FROM unnest($3::bigint[], $4::bigint[], $5::text[], $6::text[], $7::float8[], $8::text[],
    $9::text[], $10::text[], $11::int[]))
UPDATE interlock.sessions SET status = new.status, updated_at = new.updated_at,
  last_sequence = new.last_sequence, runs = new.runs
FROM unnest($12::bigint[], $13::text[], $14::float8[], $15::bigint[], $16::bigint[])
  AS new(key, status, updated_at, last_sequence, runs)
WHERE sessions.key = new.key
"""


class Outcome:
    """What a change came to: what its caller is given, or told."""

    __slots__ = ("error", "value")

    def __init__(self, value: Any = None, error: InterlockError | None = None) -> None:
        self.value = value
        self.error = error


async def read_and_decide(
    db: asyncpg.Connection, changes: Sequence[Change], *, all_events: bool, past_locks: bool
) -> tuple[Kept, list[Outcome]]:
    """Lock and read what *changes* need, and decide them in their order.

    With *all_events* it is looked which of the events are logged already; else they are taken to be new.
    With *past_locks* nobody is waited for: who needs what is locked elsewhere is refused.
    """
    needs = Needs()
    for change in changes:
        change.name(needs)
    kept = Kept()
    new = await _create(db, needs)
    kept.created = bool(new)
    await _lock(db, needs, kept, new, past_locks)
    await _read(db, needs, kept)
    if all_events:
        await _read_places(db, needs, kept)
    outcomes = []
    for change in changes:
        try:
            outcomes.append(Outcome(change.decide(kept)))
        except InterlockError as error:
            outcomes.append(Outcome(error=error))
    return kept, outcomes


async def _create(db: asyncpg.Connection, needs: Needs) -> set[str]:
    """The ids of the sessions that were written now."""
    if not needs.created:
        return set()
    rows = sorted(needs.created.values())  # in one order, so that two who create the same never block
    return {found["id"] for found in await db.fetch(_CREATE, *_columns((row[:10] for row in rows), 10))}


async def _lock(db: asyncpg.Connection, needs: Needs, kept: Kept, new: set[str], past_locks: bool) -> None:
    sessions, runs = list(needs.sessions), list(needs.runs)
    if not sessions and not runs:
        return
    lock = _LOCK.format("SKIP LOCKED" if past_locks else "")
    for key, *values, runs_count, fence, hidden in await db.fetch(lock, sessions, runs, needs.whole):
        row = SessionRow._make(values)
        kept.sessions[row.id] = KeptSession(
            key, row, runs_count, fence, hidden=hidden, visible=row.id not in new
        )
    if past_locks:
        for session_id, run_id in await db.fetch(_HOMES, sessions, runs):
            if session_id not in kept.sessions:
                kept.busy |= {session_id, *([] if run_id is None else [run_id])}


async def _read(db: asyncpg.Connection, needs: Needs, kept: Kept) -> None:
    keys = [
        (kept.sessions[session_id].key, key) for session_id, key in needs.keys if session_id in kept.sessions
    ]
    if needs.runs or keys:
        for found in await db.fetch(_RUNS, list(needs.runs), *_columns(keys, 2)):
            row = RunRow._make(found)
            kept.runs[row.id] = row
            kept.attempts[row.id] = row.session_id, row.status, row.attempt
            if row.idempotency_key is not None:
                kept.keys[row.session_id, row.idempotency_key] = row.id
    if attempts := needs.attempts.difference(kept.attempts):
        for run_id, session_id, status, attempt in await db.fetch(_ATTEMPTS, list(attempts)):
            kept.attempts[run_id] = session_id, status, attempt
    counted = {kept.sessions[id_].key: kept.sessions[id_] for id_ in needs.counted if id_ in kept.sessions}
    if counted:
        for key, count in await db.fetch(_COUNTS, list(counted)):
            counted[key].unfinished = count


async def _read_places(db: asyncpg.Connection, needs: Needs, kept: Kept) -> None:
    homes = {session.key: session for session in kept.sessions.values()}
    named = set(needs.events)
    named.update((kept.runs[run].session_id, id_) for run, id_ in needs.events_of_runs if run in kept.runs)
    asked = [(kept.sessions[home].key, id_) for home, id_ in named if home in kept.sessions]
    for key, id_, sequence in await db.fetch(_PLACES, *_columns(asked, 2)):
        homes[key].places[id_] = sequence


def writes(kept: Kept) -> bool:
    """Whether anything was decided that has to be written."""
    touched = any(session.touched for session in kept.sessions.values())
    return bool(kept.created or touched or kept.new_runs or kept.changed_runs or kept.settings)


async def write(db: asyncpg.Connection, kept: Kept, writer: str, serial: int) -> None:
    """Write all that was decided, as transaction number *serial* of *writer*."""
    if kept.new_runs:
        rows = ((key, row.id, *row[2:]) for key, row in kept.new_runs.values())
        await db.execute(_INSERT_RUNS, *_columns(rows, 18))
    if kept.changed_runs:
        changed = (
            (
                *(row.id, row.status, row.attempt, row.output, row.error, row.token_usage),
                *(row.started_at, row.ended_at, row.waited),
            )
            for row in kept.changed_runs.values()
        )
        await db.execute(_UPDATE_RUNS, *_columns(changed, 9))
    settings = sorted(kept.settings.items())
    if set_ := [(key, value) for key, value in settings if value is not None]:
        await db.execute(_SET, *_columns(set_, 2))
    if unset := [key for key, value in settings if value is None]:
        await db.execute(_UNSET, unset)
    events = ((key, row.sequence, *row[:7]) for key, row in kept.new_events)
    touched = (
        (one.key, one.row.status, one.row.updated_at, one.row.last_sequence, one.runs)
        for one in kept.sessions.values()
        if one.touched
    )
    await db.execute(_FINISH, writer, serial, *_columns(events, 9), *_columns(touched, 5))


def _columns(rows: Iterable[Sequence[Any]], width: int) -> list[list[Any]]:
    """*rows* as *width* columns, also where there are none."""
    found = [list(column) for column in zip(*rows, strict=True)]
    return found or [[] for _ in range(width)]
