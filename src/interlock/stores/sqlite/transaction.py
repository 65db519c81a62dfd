"""A transaction, and what SQLite says about it in our words."""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from interlock.errors import StoreError, ValidationError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Committed at the end of the block, rolled back where it raises."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            if db.in_transaction:
                db.execute("ROLLBACK")
        raise


def translated(error: Exception, path: Path) -> Exception:
    """*error* as callers should see it: what SQLite and the system say becomes a StoreError."""
    if isinstance(error, sqlite3.Error):
        name: str = getattr(error, "sqlite_errorname", "")  # SQLITE_CORRUPT or SQLITE_CORRUPT_INDEX
        why = {
            "SQLITE_FULL": "the disk is full; nothing of this was stored",
            "SQLITE_CORRUPT": f"the database is damaged ({error}); it was left as it is",
            "SQLITE_NOTADB": "not a SQLite database; it was left as it is",
        }.get("_".join(name.split("_")[:2]), str(error))
        return StoreError(f"{path}: {why}", sqlite=name)
    if isinstance(error, UnicodeDecodeError):  # text in the file, or what SQLite says about it
        return StoreError(f"{path}: the database is damaged ({error}); it was left as it is")
    if isinstance(error, UnicodeEncodeError):
        return ValidationError(f"this cannot be kept as text: {error}")
    if isinstance(error, OSError):
        return StoreError(f"{path}: {error.strerror}")
    return error


def one(db: sqlite3.Connection, sql: str) -> Any:
    """The first value of the first row, if any, with the statement run to its end."""
    rows = db.execute(sql).fetchall()
    return rows[0][0] if rows else None


def marks(values: Collection[object]) -> str:
    """A question mark for each of *values*, for the list behind ``IN`` or ``VALUES``."""
    return ", ".join("?" * len(values))
