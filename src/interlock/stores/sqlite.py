"""A store in one SQLite file, owned by one process, one thread and one connection.

*Callers never touch the connection.* They put a job into a queue and await a future; a caller that
is cancelled drops its future, and the job is done all the same.

*One writer.* Only the thread here uses the connection, and a lock file keeps every other process
away. So the order of the calls is the order of the commits, and the bug that SQLite before 3.51.3
has where one connection writes while another one checkpoints cannot strike.

*Group commit.* Jobs that gathered while the last commit was on its way to the disk share the next
transaction, each in a savepoint of its own, and are acknowledged after its commit. With
``synchronous=FULL``, what is acknowledged outlives the power.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
import stat
import threading
from collections.abc import Callable
from contextlib import closing, contextmanager, suppress
from hashlib import sha256
from importlib import resources
from itertools import takewhile
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeAlias, TypeVar

from interlock.errors import StoreError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

__all__ = ["SQLiteStore"]

T = TypeVar("T")
Work: TypeAlias = Callable[[sqlite3.Connection], T]
Reply: TypeAlias = "asyncio.Future[Any]"

GROUP = 256  # jobs in one transaction at most
BUSY_TIMEOUT = 5.0  # seconds; only a tool that looks into the file can make us wait
OLDEST_SQLITE = (3, 37, 0)  # the first with STRICT tables
CHECKED_SIZE = 64 << 20  # bytes; a larger file is checked only after an unclean end


class SQLiteStore:
    """Settings in a SQLite file. Use :func:`interlock.stores.open_store` to get one.

    Every method raises :class:`StoreError` where the database fails (nothing of that call is then
    stored, and later calls work again when it has recovered), :class:`Unavailable` after closing.
    """

    def __init__(self, writer: _Writer) -> None:
        self._writer = writer

    @classmethod
    async def open(cls, path: Path) -> Self:
        """Open the database at *path*, made if there is none, and bring its schema up to date.

        Raises :class:`StoreError` where it is open elsewhere, newer than this code, not ours,
        damaged, or a symbolic link.
        """
        writer = _Writer(path)
        try:
            await writer.start()
        except BaseException:
            writer.stop()  # cancelled while the thread was opening: it closes what it has opened
            raise
        return cls(writer)

    async def get(self, key: str) -> str | None:
        """The value of *key*, or None."""

        def read(db: sqlite3.Connection) -> str | None:
            row = db.execute("SELECT value FROM settings WHERE key = ?", (key,)).fetchone()
            return None if row is None else str(row[0])

        return await self._transact(read)

    async def set(self, key: str, value: str) -> None:
        """Write *value* under *key*, in place of what was there; durable when this returns."""
        upsert = "INSERT INTO settings VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value"
        await self._transact(lambda db: _execute(db, upsert, key, value))

    async def delete(self, key: str) -> None:
        """Remove *key*, if there; durable when this returns."""
        await self._transact(lambda db: _execute(db, "DELETE FROM settings WHERE key = ?", key))

    async def items(self, prefix: str = "") -> dict[str, str]:
        """Every entry whose key begins with *prefix*, in the order of the keys."""

        def read(db: sqlite3.Connection) -> dict[str, str]:
            # Keys are ordered by their UTF-8 bytes, so those that begin alike stand together.
            select = "SELECT key, value FROM settings WHERE key >= ? ORDER BY key"
            with closing(db.execute(select, (prefix,))) as rows:
                return dict(takewhile(lambda row: row[0].startswith(prefix), rows))

        return await self._transact(read)

    async def aclose(self) -> None:
        """Finish what has been asked for, then close the file and give up its lock.

        Closing again waits for the same end.
        """
        self._writer.stop()
        await self._writer.ended()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def _transact(self, work: Work[T]) -> T:
        """Run *work* in a transaction and return after its commit.

        *work* runs in the writer's thread. It may run twice, after a rollback of the first time, so
        it changes nothing but the database, and it returns values, not cursors.
        """
        return await self._writer.submit(work)


def _execute(db: sqlite3.Connection, sql: str, *values: str) -> None:
    db.execute(sql, values)


# -- the thread ------------------------------------------------------------------------------------


class _Job(NamedTuple):
    work: Work[Any]
    reply: Reply


class _Outcome(NamedTuple):
    reply: Reply
    value: Any = None
    error: Exception | None = None


class _Writer:
    """The thread that owns the connection: jobs in their order, answers to their event loops."""

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()  # the working directory may change
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        # Guards the three below. Without it a job could be queued behind the last one that the
        # thread takes, and its caller would wait for ever.
        self._gate = threading.Lock()
        self._stopping = False
        self._ended = False
        self._watchers: list[Reply] = []

    def start(self) -> Reply:
        """Start the thread; the future ends when the database is open, or with why it is not."""
        ready = asyncio.get_running_loop().create_future()
        threading.Thread(target=self._main, args=(ready,), name="interlock-sqlite", daemon=True).start()
        return ready

    def submit(self, work: Work[T]) -> asyncio.Future[T]:
        reply: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        with self._gate:
            if self._stopping:
                raise Unavailable("the store is closed")
            self._jobs.put(_Job(work, reply))
        return reply

    def stop(self) -> None:
        """Take no more jobs; end after those that were taken."""
        with self._gate:
            if not self._stopping:
                self._stopping = True
                self._jobs.put(None)

    def ended(self) -> Reply:
        """A future that ends when the file is closed and its lock given up."""
        reply = asyncio.get_running_loop().create_future()
        with self._gate:
            if self._ended:
                reply.set_result(None)
            else:
                self._watchers.append(reply)
        return reply

    def _main(self, ready: Reply) -> None:
        failure: Exception = Unavailable("the store is closed")
        try:
            with _locked(self._path), closing(_connect(self._path)) as db:
                _prepare(db, self._path)
                _deliver([_Outcome(ready)])
                self._serve(db)
        except Exception as error:
            failure = _translated(error, self._path)
        self.stop()
        with self._gate:
            self._ended = True
        # Nothing is queued or watched from here on, and jobs are left only where something failed.
        left = [ready]
        while not self._jobs.empty():
            job = self._jobs.get()
            left += [job.reply] if job else []
        _deliver([_Outcome(reply, error=failure) for reply in left])
        _deliver([_Outcome(reply) for reply in self._watchers])

    def _serve(self, db: sqlite3.Connection) -> None:
        while True:
            group = [self._jobs.get()]
            while group[-1] and len(group) < GROUP and not self._jobs.empty():
                group.append(self._jobs.get())
            _deliver(_commit(db, [job for job in group if job], self._path))
            if group[-1] is None:
                return


def _deliver(outcomes: list[_Outcome]) -> None:
    """Wake the callers, with one step of the event loop for all that wait in it."""
    waiting: dict[asyncio.AbstractEventLoop, list[_Outcome]] = {}
    for outcome in outcomes:
        waiting.setdefault(outcome.reply.get_loop(), []).append(outcome)
    for loop, theirs in waiting.items():
        with suppress(RuntimeError):  # the loop was closed: nobody is left to be told
            loop.call_soon_threadsafe(_settle, theirs)


def _settle(outcomes: list[_Outcome]) -> None:
    for reply, value, error in outcomes:
        if reply.done():
            continue  # the caller was cancelled while its job ran
        if error is None:
            reply.set_result(value)
        else:
            reply.set_exception(error)


def _commit(db: sqlite3.Connection, group: list[_Job], path: Path) -> list[_Outcome]:
    """Run *group* in one transaction. What one job did wrong is undone, and told to it alone."""
    try:
        with _transaction(db):
            return [_attempt(db, job, path) for job in group]
    except Exception as error:
        if len(group) > 1:
            # A full disk, say, ends the whole transaction, whichever job it was that hit it: each
            # for itself now, so that what fits is stored and only what does not is refused.
            return [outcome for job in group for outcome in _commit(db, [job], path)]
        return [_Outcome(job.reply, error=_translated(error, path)) for job in group]


def _attempt(db: sqlite3.Connection, job: _Job, path: Path) -> _Outcome:
    db.execute("SAVEPOINT job")
    try:
        outcome = _Outcome(job.reply, job.work(db))
    except Exception as error:
        if not db.in_transaction:
            raise  # SQLite has rolled back everything, so the rest of the group is undone too
        db.execute("ROLLBACK TO job")
        outcome = _Outcome(job.reply, error=_translated(error, path))
    db.execute("RELEASE job")
    return outcome


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            if db.in_transaction:
                db.execute("ROLLBACK")
        raise


def _translated(error: Exception, path: Path) -> Exception:
    """*error* as callers should see it: what SQLite and the system say becomes a StoreError."""
    if isinstance(error, sqlite3.Error):
        name: str = getattr(error, "sqlite_errorname", "")  # SQLITE_CORRUPT or SQLITE_CORRUPT_INDEX
        why = {
            "SQLITE_FULL": "the disk is full; nothing of this was stored",
            "SQLITE_CORRUPT": f"the database is damaged ({error}); it was left as it is",
            "SQLITE_NOTADB": "not a SQLite database; it was left as it is",
        }.get("_".join(name.split("_")[:2]), str(error))
        return StoreError(f"{path}: {why}", sqlite=name)
    if isinstance(error, OSError):
        return StoreError(f"{path}: {error.strerror}")
    return error


# -- the file --------------------------------------------------------------------------------------


@contextmanager
def _locked(path: Path) -> Iterator[None]:
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


def _connect(path: Path) -> sqlite3.Connection:
    """Open the file, made for this user alone if there is none."""
    try:
        state = path.lstat()
    except FileNotFoundError:
        if _log_size(path):
            raise StoreError(f"{path}: missing, though its log ({path.name}-wal) is there") from None
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    else:
        if not stat.S_ISREG(state.st_mode):
            kind = "a symbolic link" if stat.S_ISLNK(state.st_mode) else "not a file"
            raise StoreError(f"{path}: {kind}; name the database file itself")
        if state.st_size == 0 and _log_size(path):
            raise StoreError(f"{path}: empty, though its log ({path.name}-wal) is not")
    return sqlite3.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None)


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    """Refuse what is not ours, damaged or newer, before anything is written; then set it up."""
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        oldest = ".".join(map(str, OLDEST_SQLITE))
        raise StoreError(f"SQLite {oldest} is needed; this Python has {sqlite3.sqlite_version}")
    # An orderly end leaves no log. This must be seen before the first statement recovers from it.
    check = _log_size(path) > 0 or path.stat().st_size <= CHECKED_SIZE
    tables = db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    if tables and ("schema_migrations",) not in tables:
        raise StoreError(f"{path}: a database of another program; it was left as it is")
    if check and (found := _one(db, "PRAGMA quick_check(1)")) != "ok":
        reason = str(found).splitlines()[-1]
        raise StoreError(f"{path}: the database is damaged ({reason}); it was left as it is")
    if _one(db, "PRAGMA journal_mode = WAL") != "wal":
        raise StoreError(f"{path}: no write-ahead log is possible here; use a local disk")
    for pragma in ("synchronous = FULL", "foreign_keys = ON", "mmap_size = 0"):
        _one(db, f"PRAGMA {pragma}")
    _migrate(db, path, _migrations())


def _log_size(path: Path) -> int:
    log = path.with_name(f"{path.name}-wal")
    return log.stat().st_size if log.exists() else 0


def _one(db: sqlite3.Connection, sql: str) -> Any:
    """The first value of the first row, if any, with the statement run to its end."""
    rows = db.execute(sql).fetchall()
    return rows[0][0] if rows else None


# -- the schema ------------------------------------------------------------------------------------


class _Migration(NamedTuple):
    version: int
    name: str
    sql: str

    @property
    def sha256(self) -> str:
        return sha256(self.sql.encode()).hexdigest()


def _migrations() -> list[_Migration]:
    folder = resources.files("interlock.stores") / "migrations" / "sqlite"
    files = [file for file in folder.iterdir() if file.name.endswith(".sql")]
    return [
        _Migration(int(file.name[:4]), file.name.removesuffix(".sql"), file.read_text("utf-8"))
        for file in sorted(files, key=lambda file: file.name)
    ]


def _migrate(db: sqlite3.Connection, path: Path, migrations: list[_Migration]) -> None:
    """Apply what is missing, all of it or nothing."""
    with _transaction(db):
        db.execute(
            "CREATE TABLE IF NOT EXISTS schema_migrations (version INTEGER PRIMARY KEY,"
            " name TEXT NOT NULL, sha256 TEXT NOT NULL, applied_at TEXT NOT NULL) STRICT"
        )
        select = "SELECT version, name, sha256 FROM schema_migrations ORDER BY version"
        applied = db.execute(select).fetchall()
        _check_history(applied, path, migrations)
        for migration in migrations[len(applied) :]:
            for statement in _statements(migration.sql):
                db.execute(statement)
            db.execute(
                "INSERT INTO schema_migrations VALUES (?, ?, ?, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))",
                (migration.version, migration.name, migration.sha256),
            )


def _check_history(applied: list[tuple[int, str, str]], path: Path, migrations: list[_Migration]) -> None:
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


def _statements(sql: str) -> Iterable[str]:
    """The statements of *sql*, each of which ends its line. (executescript would commit.)"""
    statement = ""
    for line in sql.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    if statement.strip():
        yield statement
