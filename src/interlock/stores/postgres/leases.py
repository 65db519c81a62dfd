"""Who holds which session: statements about workers, their leases, and what is wished of them.

A lease is the worker's, not the session's: one row is renewed, however many sessions it holds. A session is
free where its holder's lease has run out; whoever takes it over counts its fence up, and from then on the
last holder can write nothing more of its runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from interlock.core.workers import Answer, Held, Wish, Worker
from interlock.errors import SessionNotFound
from interlock.stores.postgres.text import given, kept

if TYPE_CHECKING:
    from collections.abc import Collection

    import asyncpg

_RENEW: Final = """
INSERT INTO interlock.workers VALUES ($1, $2, $3, $4, $5, $6, clock_timestamp(),
  clock_timestamp() + $7 * interval '1 second')
ON CONFLICT (id) DO UPDATE SET agents = excluded.agents, draining = excluded.draining,
  seen_at = excluded.seen_at, lease_until = excluded.lease_until
WHERE workers.lease_until > clock_timestamp() RETURNING id
"""
# The sessions that have work and no holder who lives. Two who look at once lock different ones; and who locks
# one that was taken since he looked finds another fence, whatever of its new holder he has seen.
_CLAIM: Final = """
WITH seen AS MATERIALIZED (
  SELECT key, fence FROM interlock.sessions
  WHERE key IN (SELECT session FROM interlock.runs WHERE status IN ('pending', 'running', 'paused'))
    AND agent_id = ANY($2::text[]) AND hidden_at IS NULL
    AND NOT EXISTS (
      SELECT FROM interlock.workers WHERE id = held_by AND (id = $1 OR lease_until > clock_timestamp()))
  ORDER BY key LIMIT 10 * $3),
free AS (
  SELECT sessions.key FROM interlock.sessions
  JOIN seen ON seen.key = sessions.key AND seen.fence = sessions.fence
  ORDER BY sessions.key LIMIT $3 FOR NO KEY UPDATE OF sessions SKIP LOCKED)
UPDATE interlock.sessions SET held_by = $1, fence = fence + 1 FROM free WHERE sessions.key = free.key
"""
# A client that froze between the parts of a statement: its server waits for the rest, with all that it has
# locked, and no timeout before PostgreSQL 17 ends that. Nobody who is well stays so for a moment.
_UNBLOCK: Final = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE application_name = 'interlock' AND usename = current_user AND datname = current_database()
  AND state = 'active' AND wait_event = 'ClientRead'
  AND state_change < clock_timestamp() - interval '10 seconds'
"""
_HELD: Final = """
SELECT id, fence, runs,
  EXISTS (SELECT FROM interlock.wishes WHERE session = sessions.key AND answered_at IS NULL)
FROM interlock.sessions WHERE held_by = $1
"""
_LET_GO: Final = """
UPDATE interlock.sessions SET held_by = NULL
WHERE held_by = $1 AND ($2::text[] IS NULL OR id = ANY($2::text[]))
"""
_WORKERS: Final = """
SELECT id, host, pid, agents, started_at, draining, extract(epoch FROM seen_at)::float8,
  lease_until > clock_timestamp(), (SELECT COUNT(*) FROM interlock.sessions WHERE held_by = workers.id)
FROM interlock.workers ORDER BY started_at, id
"""
_FORGET: Final = "DELETE FROM interlock.workers WHERE lease_until < clock_timestamp() - interval '10 minutes'"
_WISH: Final = """
INSERT INTO interlock.wishes (session, run_id, verb, wished_at)
SELECT key, $2, $3, clock_timestamp() FROM interlock.sessions WHERE id = $1 AND hidden_at IS NULL
RETURNING key
"""
_WISHES: Final = """
SELECT sessions.id, run_id, verb, wishes.key FROM interlock.wishes
JOIN interlock.sessions ON sessions.key = session
WHERE sessions.id = $1 AND answered_at IS NULL ORDER BY wishes.key
"""
_ANSWER: Final = """
UPDATE interlock.wishes SET answered_at = clock_timestamp(), error_code = $2, error_message = $3
WHERE key = $1 AND answered_at IS NULL
"""
_FORGET_WISHES: Final = "DELETE FROM interlock.wishes WHERE wished_at < clock_timestamp() - interval '1 day'"


async def hold(db: asyncpg.Connection, worker: Worker, lease: float, most: int) -> dict[str, Held] | None:
    """Renew the lease, claim *most* sessions more; all that are held, by their ids as they are kept.

    None where the lease had run out.
    """
    row = (worker.id, worker.host, worker.pid, list(worker.agents), worker.started_at, worker.draining)
    if await db.fetchval(_RENEW, *row, lease) is None:
        return None
    await db.execute(_UNBLOCK)
    if most > 0:
        await db.execute(_CLAIM, worker.id, [kept(name) for name in worker.agents], most)
    return {id_: Held(*about) for id_, *about in await db.fetch(_HELD, worker.id)}


async def let_go(db: asyncpg.Connection, worker_id: str, session_ids: Collection[str] | None) -> None:
    """Hold these sessions no more; None: no session, and be no worker any more."""
    ids = None if session_ids is None else [kept(id_) for id_ in session_ids]
    await db.execute(_LET_GO, worker_id, ids)
    if session_ids is None:
        await db.execute("DELETE FROM interlock.workers WHERE id = $1", worker_id)


async def workers(db: asyncpg.Connection) -> list[Worker]:
    """All that live, and those that died a short while ago."""
    return [
        Worker(id_, host, pid, tuple(agents), started, draining, seen, alive, sessions)
        for id_, host, pid, agents, started, draining, seen, alive, sessions in await db.fetch(_WORKERS)
    ]


async def wish(db: asyncpg.Connection, wished: Wish) -> int:
    """Write it down; its key. Raises `SessionNotFound`."""
    key = await db.fetchval(_WISH, kept(wished.session_id), kept(wished.run_id), wished.verb)
    if key is None:
        raise SessionNotFound(f"no session {wished.session_id!r}", session=wished.session_id)
    return int(key)


async def wishes(db: asyncpg.Connection, session_id: str) -> list[Wish]:
    """Those of the session that nobody has answered, in their order."""
    found = await db.fetch(_WISHES, kept(session_id))
    return [Wish(given(id_), given(run_id), verb, key) for id_, run_id, verb, key in found]


async def answer(db: asyncpg.Connection, key: int, answered: Answer) -> None:
    """Say what became of a wish."""
    await db.execute(_ANSWER, key, answered.code, answered.message)


async def answered(db: asyncpg.Connection, key: int) -> Answer | None:
    """What became of a wish; None as long as nobody has said."""
    select = (
        "SELECT error_code, error_message FROM interlock.wishes WHERE key = $1 AND answered_at IS NOT NULL"
    )
    found = await db.fetchrow(select, key)
    return None if found is None else Answer(found[0], found[1] or "")


async def forget(db: asyncpg.Connection) -> None:
    """Remove the workers that died, and wishes that nobody waits for any more."""
    await db.execute(_FORGET)
    await db.execute(_FORGET_WISHES)
