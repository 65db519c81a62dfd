"""A look into the database that changes nothing: is what it says true of itself?"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from interlock.core.findings import Finding
from interlock.errors import StoreError
from interlock.ledger import PREFIX
from interlock.stores.judgement import ENDS, TABLES, Judgement
from interlock.stores.postgres.link import LinkLostError, translated
from interlock.stores.postgres.schema import applied_to, migrations
from interlock.stores.postgres.text import given
from interlock.stores.schema import check_history

if TYPE_CHECKING:
    import asyncpg

    from interlock.stores.expected import Expected
    from interlock.stores.postgres.link import Line, Link

EXAMINED_WITHIN: Final = 55.0
"""Seconds for all of it."""

_NUMBERS: Final = """
SELECT sessions.id, last_sequence, sessions.runs, COALESCE(n, 0), first, latest,
  (SELECT MAX(number) FROM interlock.runs WHERE runs.session = sessions.key), sessions.key
FROM interlock.sessions LEFT JOIN (
  SELECT session, COUNT(*) AS n, MIN(sequence) AS first, MAX(sequence) AS latest
  FROM interlock.events GROUP BY session) AS counted ON counted.session = sessions.key
"""
_FIRST_MISSING: Final = """
SELECT COALESCE(MIN(before) + 1,
  (SELECT COALESCE(MAX(sequence), 0) + 1 FROM interlock.events WHERE session = $1))
FROM (SELECT sequence, LAG(sequence, 1, 0::bigint) OVER (ORDER BY sequence) AS before
  FROM interlock.events WHERE session = $1) AS steps WHERE sequence <> before + 1
"""
_ENDS: Final = """
WITH ends AS (SELECT session, run_id, COUNT(*) AS n, MIN(type) AS type FROM interlock.events
  WHERE type = ANY($1::text[]) GROUP BY session, run_id)
SELECT runs.id, status, COALESCE(n, 0), ends.type, ended_at IS NULL FROM interlock.runs
LEFT JOIN ends ON ends.session = runs.session AND run_id = runs.id
"""
_UNFINISHED: Final = """
SELECT runs.id, sessions.id, sessions.status, agent_id FROM interlock.runs
JOIN interlock.sessions ON sessions.key = runs.session
WHERE runs.status IN ('pending', 'running', 'paused')
"""
_OFFERED: Final = """
SELECT DISTINCT unnest(agents) AS agent FROM interlock.workers WHERE lease_until > clock_timestamp()
"""
_ORPHANS: Final = """
SELECT COUNT(*), MIN(session) FROM interlock.events
WHERE NOT EXISTS (SELECT FROM interlock.sessions WHERE key = session)
"""


async def examine_over(line: Line, expected: Expected) -> list[Finding]:
    """What is wrong with the database of *line*, or one finding that nothing is.

    It is read as of one moment over a connection of its own; whoever uses it goes on.
    """
    link: Link | None = None
    try:
        async with asyncio.timeout(EXAMINED_WITHIN):
            link = await line.open()
            await link.db.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            return await _look(link.db, line.where, expected)
    except Exception as error:
        found = translated(error, line.where)
        if isinstance(error, TimeoutError):
            what, remedy = "the database was not read to its end in time", "interlock doctor, at a quiet time"
            return [Finding("warn", "store", what, line.where, remedy)]
        if not isinstance(found, (LinkLostError, StoreError)):
            raise
        why = line.unreachable(found).message
        return [Finding("error", "store", "the database cannot be read", why, "psql, with the store's URL")]
    finally:
        if link is not None:
            link.abort()


async def _look(db: asyncpg.Connection, where: str, expected: Expected) -> list[Finding]:
    if await db.fetchval("SELECT to_regclass('interlock.schema_migrations') IS NULL"):
        return [Finding("ok", "store", "the database is empty; the next server sets it up", where)]
    try:
        applied = await applied_to(db)
        check_history(applied, where, migrations())
    except StoreError as error:
        what = "its schema is not this Interlock's"
        return [Finding("error", "store", what, error.message, "interlock --version")]
    if missing := [one.name for one in migrations()[len(applied) :]]:
        remedy = "keep a dump of the database, then: interlock serve"
        return [Finding("warn", "store", "its schema is older", f"to come: {', '.join(missing)}", remedy)]
    offered = await db.fetch(_OFFERED)
    judge = Judgement(
        where, expected._replace(agents={*expected.agents, *(given(row["agent"]) for row in offered)})
    )
    wrong, gaps = judge.numbers(_shown(await db.fetch(_NUMBERS)))
    wrong += judge.gaps(
        [gap._replace(first=await db.fetchval(_FIRST_MISSING, gap.key)) for gap in gaps[:10]] + gaps[10:]
    )
    count, first = await db.fetchrow(_ORPHANS) or (0, None)
    if count:
        wrong.append(judge.error("events belong to no session", [f"{count}, the first of key {first}"]))
    wrong += judge.ends(_shown(await db.fetch(_ENDS, ENDS)))
    wrong += judge.unfinished(_shown(await db.fetch(_UNFINISHED)))
    select = "SELECT key, value FROM interlock.settings WHERE starts_with(key, $1)"
    wrong += judge.changes({given(key): given(value) for key, value in await db.fetch(select, PREFIX)})
    if not any(one.severity == "error" for one in wrong):
        counts = [f"{await db.fetchval(f'SELECT COUNT(*) FROM interlock.{one}')} {one}" for one in TABLES]  # noqa: S608
        wrong.append(judge.whole(counts))
    return wrong


def _shown(rows: list[asyncpg.Record]) -> list[tuple[object, ...]]:
    """*rows*, with their texts as they were."""
    return [tuple(given(value) if isinstance(value, str) else value for value in row) for row in rows]
