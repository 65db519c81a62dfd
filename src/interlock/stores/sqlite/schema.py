"""The schema: numbered migrations, applied once and in their order."""

from __future__ import annotations

import sqlite3
from hashlib import sha256
from importlib import resources
from typing import TYPE_CHECKING, NamedTuple

from interlock.errors import StoreError
from interlock.stores.sqlite.transaction import transaction

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


class Migration(NamedTuple):
    """The statements that lead from the version before to this one."""

    version: int
    name: str
    sql: str

    @property
    def sha256(self) -> str:
        return sha256(self.sql.encode()).hexdigest()


def migrations() -> list[Migration]:
    """All that this code knows, in their order."""
    folder = resources.files("interlock.stores") / "migrations" / "sqlite"
    files = [file for file in folder.iterdir() if file.name.endswith(".sql")]
    return [
        Migration(int(file.name[:4]), file.name.removesuffix(".sql"), file.read_text("utf-8"))
        for file in sorted(files, key=lambda file: file.name)
    ]


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


def check_history(applied: list[tuple[int, str, str]], path: Path, migrations: list[Migration]) -> None:
    """What was applied must be what this code would have applied, from the first on."""
    if applied and applied[-1][0] > migrations[-1].version:
        found, known = applied[-1][0], migrations[-1].version
        raise StoreError(
            f"{path}: its schema {found} is newer than {known}, the last that this Interlock knows;"
            " use the newer Interlock",
            found=found,
            known=known,
        )
    for (version, name, digest), migration in zip(applied, migrations, strict=False):
        if (version, digest) != (migration.version, migration.sha256):
            raise StoreError(
                f"{path}: migration {name} is not the {migration.name} of this Interlock;"
                " the database was made by a changed copy"
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
