"""When the write-ahead log goes into the database: between two transactions, never within one."""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from typing import TYPE_CHECKING

from interlock.stores.sqlite.file import LOG_SIZE, log_size

if TYPE_CHECKING:
    from pathlib import Path


class Checkpoints:
    """Looks after the size of the log, which starts anew after a checkpoint; SQLite cuts it to `LOG_SIZE`."""

    def __init__(self, db: sqlite3.Connection, path: Path) -> None:
        self._db = db
        self._path = path
        self._due = LOG_SIZE

    def take(self) -> None:
        """Take one if the log has grown beyond its size; a failure is left to the next time."""
        size = log_size(self._path)
        if size <= self._due:
            return
        self._due = size + LOG_SIZE  # should a reader from outside be in the way, not at every commit
        with suppress(sqlite3.Error):
            _, logged, moved = self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            if logged == moved:
                self._due = LOG_SIZE
