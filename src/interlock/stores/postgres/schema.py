"""The schema, brought up to date in one transaction that only one process at a time is in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from interlock.errors import StoreError
from interlock.stores.postgres.link import translated
from interlock.stores.schema import Migration, check_history, migrations_of

if TYPE_CHECKING:
    import asyncpg

    from interlock.stores.postgres.link import Link

_LOCK: Final = (
    0x696E7465726C  # an advisory lock's number, "interl": of the transaction, so a pooler is no matter
)
_BEGIN: Final = (
    "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SET LOCAL lock_timeout = '30s';"
    " SET LOCAL client_min_messages = warning"
)
_APPLIED: Final = "SELECT version, name, sha256 FROM interlock.schema_migrations ORDER BY version"
_OURS: Final = (
    "SELECT to_regclass('interlock.schema_migrations') IS NOT NULL,"
    " EXISTS (SELECT FROM pg_class WHERE relnamespace = to_regnamespace('interlock') AND relkind = 'r')"
)


def migrations() -> list[Migration]:
    """All that this code knows, in their order."""
    return migrations_of("postgres")


async def migrate(link: Link, migrations: list[Migration]) -> None:
    """Apply what is missing, all of it or nothing. Raises `StoreError` for what is newer or changed."""
    db = link.db
    await db.execute(_BEGIN)
    try:
        await db.fetchval("SELECT pg_advisory_xact_lock($1)", _LOCK)
        ours, anything = await db.fetchrow(_OURS) or (False, False)
        applied = await applied_to(db) if ours else []
        _check(link.where, applied, migrations, foreign=anything and not ours)
        if not ours:
            await db.execute("CREATE SCHEMA IF NOT EXISTS interlock")
            await db.execute(
                "CREATE TABLE interlock.schema_migrations (version integer PRIMARY KEY, name text NOT NULL,"
                " sha256 text NOT NULL, applied_at timestamptz NOT NULL DEFAULT clock_timestamp())"
            )
        for migration in migrations[len(applied) :]:
            await db.execute(migration.sql)
            insert = "INSERT INTO interlock.schema_migrations (version, name, sha256) VALUES ($1, $2, $3)"
            await db.execute(insert, migration.version, migration.name, migration.sha256)
        await db.execute("COMMIT")
    except BaseException as error:
        link.abort()  # which also rolls back
        raise translated(error, link.where) from None


def _check(
    where: str, applied: list[tuple[int, str, str]], migrations: list[Migration], *, foreign: bool
) -> None:
    if foreign:
        raise StoreError(f"{where}: its schema interlock is another program's; it was left as it is")
    check_history(applied, where, migrations)


async def applied_to(db: asyncpg.Connection) -> list[tuple[int, str, str]]:
    """Versions, names and digests of what was applied, in their order."""
    return [(version, name, digest) for version, name, digest in await db.fetch(_APPLIED)]
