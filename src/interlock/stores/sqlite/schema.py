"""The schema of a database file, brought up to date in one transaction."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

from interlock.stores.schema import Migration, check_history, migrations_of
from interlock.stores.sqlite.transaction import transaction

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def migrations() -> list[Migration]:
    """All that this code knows, in their order."""
    return migrations_of("sqlite")


def migrate(db: sqlite3.Connection, path: Path, migrations: list[Migration]) -> None:
    """Apply what is missing, all of it or nothing."""
    with transaction(db):
        db.execute(
            "CREATE TABLE IF NOT EXISTS schema_migrations (version INTEGER PRIMARY KEY,"
            " name TEXT NOT NULL, sha256 TEXT NOT NULL, applied_at TEXT NOT NULL) STRICT"
        )
        select = "SELECT version, name, sha256 FROM schema_migrations ORDER BY version"
        applied = db.execute(select).fetchall()
        check_history(applied, path, migrations)
        for migration in migrations[len(applied) :]:
            for statement in statements(migration.sql):
                db.execute(statement)
            db.execute(
                "INSERT INTO schema_migrations VALUES (?, ?, ?, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))",
                (migration.version, migration.name, migration.sha256),
            )


def statements(sql: str) -> Iterable[str]:
    """The statements of *sql*, each of which ends its line. (executescript would commit.)"""
    statement = ""
    for line in sql.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    if statement.strip():
        yield statement
