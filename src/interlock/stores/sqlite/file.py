"""The database file: one owner at a time, made only where there is none, refused where it is not ours."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from interlock.errors import StoreError
from interlock.stores.sqlite.schema import migrate, migrations
from interlock.stores.sqlite.transaction import one

if TYPE_CHECKING:
    from collections.abc import Iterator

BUSY_TIMEOUT = 5.0  # seconds; only a tool that looks into the file can make us wait
OLDEST_SQLITE = (3, 37, 0)  # the first with STRICT tables
CACHE = "cache_size = -32000"  # KiB: ids are random, and their index should not be read again and again
LOG_SIZE = 16 << 20  # bytes that the write-ahead log keeps on the disk; it is checkpointed when it has more
CHECKED_SIZE = 64 << 20  # bytes; a larger file is checked only after an unclean end


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file beside the database; the kernel takes it back however the process ends."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    lock = os.open(f"{path}.lock", flags, 0o600)
    try:
        try:
            # flock and not lockf: it also tells apart two stores of one process.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(lock, 20, 0).decode("ascii", "replace").strip() or "unknown"
            here = " (this one)" if pid == str(os.getpid()) else ""
            message = f"{path}: already open in process {pid}{here}; a database has one owner"
            raise StoreError(message, pid=pid) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(lock)


def connect(path: Path) -> sqlite3.Connection:
    """Open the file, made for this user alone if there is none."""
    try:
        state = path.lstat()
    except FileNotFoundError:
        if log_size(path):
            raise StoreError(f"{path}: missing, though its log ({path.name}-wal) is there") from None
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    else:
        if not stat.S_ISREG(state.st_mode):
            kind = "a symbolic link" if stat.S_ISLNK(state.st_mode) else "not a file"
            raise StoreError(f"{path}: {kind}; name the database file itself")
        if state.st_size == 0 and log_size(path):
            raise StoreError(f"{path}: empty, though its log ({path.name}-wal) is not")
    return sqlite3.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None)


def prepare(db: sqlite3.Connection, path: Path) -> None:
    """Refuse what is not ours, damaged or newer, before anything is written; then set it up."""
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        oldest = ".".join(map(str, OLDEST_SQLITE))
        raise StoreError(f"SQLite {oldest} is needed; this Python has {sqlite3.sqlite_version}")
    # An orderly end leaves no log. This must be seen before the first statement recovers from it.
    check = log_size(path) > 0 or path.stat().st_size <= CHECKED_SIZE
    tables = db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    if tables and ("schema_migrations",) not in tables:
        raise StoreError(f"{path}: a database of another program; it was left as it is")
    if check and (found := one(db, "PRAGMA quick_check(1)")) != "ok":
        reason = str(found).splitlines()[-1]
        raise StoreError(f"{path}: the database is damaged ({reason}); it was left as it is")
    if one(db, "PRAGMA journal_mode = WAL") != "wal":
        raise StoreError(f"{path}: no write-ahead log is possible here; use a local disk")
    for pragma in ("synchronous = FULL", "foreign_keys = ON", "mmap_size = 0", "temp_store = MEMORY", CACHE):
        one(db, f"PRAGMA {pragma}")
    one(db, "PRAGMA wal_autocheckpoint = 0")  # the writer takes checkpoints, between transactions
    one(db, f"PRAGMA journal_size_limit = {LOG_SIZE}")
    migrate(db, path, migrations())


def log_size(path: Path) -> int:
    """Bytes of the write-ahead log of the database at *path*."""
    try:
        return Path(f"{path}-wal").stat().st_size
    except FileNotFoundError:
        return 0
