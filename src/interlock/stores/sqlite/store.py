"""The `Store` in a SQLite file: what is JSON is written and read here, in the caller's thread."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Self, TypeVar

from interlock.core.sessions import Pruned
from interlock.stores.rows import (
    EventRow,
    change_row,
    event_of,
    event_rows,
    run_of,
    run_row,
    session_of,
    session_row,
)
from interlock.stores.sqlite import events as log
from interlock.stores.sqlite import retention as keeping
from interlock.stores.sqlite import runs, sessions
from interlock.stores.sqlite.writer import Writer

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Collection, Sequence
    from pathlib import Path

    from interlock.core.runs import RunStatus, SessionStatus, SessionVerb
    from interlock.core.sessions import Event, NewEvent, Retention, Run, RunChange, Session
    from interlock.stores.sqlite.group import Work

T = TypeVar("T")


class SQLiteStore:
    """Sessions, runs, events and settings in a SQLite file: use :func:`interlock.stores.open_store`.

    Every method raises :class:`StoreError` where the database fails (nothing of that call is then
    stored, and later calls work again when it has recovered), :class:`Unavailable` after closing.
    """

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._hints = writer.hints

    @classmethod
    async def open(cls, path: Path) -> Self:
        """Open the database at *path*, made if there is none, and bring its schema up to date.

        Raises :class:`StoreError` where it is open elsewhere, newer than this code, not ours,
        damaged, or a symbolic link.
        """
        writer = Writer(path)
        try:
            await writer.start()
        except BaseException:
            writer.stop()  # cancelled while the thread was opening: it closes what it has opened
            raise
        return cls(writer)

    # -- settings ----------------------------------------------------------------------------------

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

    # -- writes ------------------------------------------------------------------------------------

    async def create_session(self, session: Session, events: Sequence[NewEvent] = ()) -> Session:
        """Write *session*; where its id is known (also of a hidden one), what is there is given back."""
        row, rows = session_row(session), event_rows(events)
        return session_of(await self._change(session.id, lambda db: sessions.create(db, row, rows)))

    async def change_session(
        self, session_id: str, verb: SessionVerb, at: float, events: Sequence[NewEvent] = ()
    ) -> Session | None:
        """Move the session's status by compare-and-set."""
        rows = event_rows(events)
        row = await self._change(session_id, lambda db: sessions.change(db, session_id, verb, at, rows))
        return None if row is None else session_of(row)

    async def delete_session(self, session_id: str) -> None:
        """Remove the session, its runs and events, also a hidden one, all at once: a long log takes time."""
        await self._change(session_id, lambda db: sessions.delete(db, session_id))

    async def submit_run(
        self, run: Run, events: Sequence[NewEvent] = (), *, room: int | None = None
    ) -> tuple[Run, bool]:
        """Write *run* behind all others of its session, unless it is known by its key or id."""
        row, rows = run_row(run), event_rows(events)
        stored, new = await self._change(run.session_id, lambda db: runs.submit(db, row, rows, room))
        return run_of(stored), new

    async def change_run(self, run_id: str, change: RunChange, events: Sequence[NewEvent] = ()) -> Run | None:
        """Change the run by compare-and-set."""
        done, rows = change_row(change), event_rows(events)

        def work(db: sqlite3.Connection) -> Any:
            row = runs.change(db, run_id, done, rows)
            if row is not None:
                self._hints.note(row.session_id)
            return row

        row = await self._transact(work)
        return None if row is None else run_of(row)

    async def append(
        self,
        session_id: str,
        events: Sequence[NewEvent],
        *,
        run_id: str | None = None,
        attempt: int | None = None,
    ) -> int:
        """Log *events*; the number of the last, or of the session's last where there are none."""
        last: int = await self._writer.submit(
            log.Append(session_id, event_rows(events), run_id, attempt), session_id
        )
        return last

    # -- reads -------------------------------------------------------------------------------------

    async def get_session(self, session_id: str) -> Session:
        """The session; raises `SessionNotFound`."""
        return session_of(await self._transact(lambda db: sessions.get(db, session_id)))

    async def list_sessions(
        self,
        *,
        statuses: Collection[SessionStatus] | None = None,
        after: str | None = None,
        limit: int | None = None,
    ) -> list[Session]:
        """Sessions by creation, then id; raises `SessionNotFound` where *after* is none."""
        found = await self._transact(lambda db: sessions.find(db, statuses, after, limit))
        return [session_of(row) for row in found]

    async def get_run(self, run_id: str) -> Run:
        """The run; raises `RunNotFound`."""
        return run_of(await self._transact(lambda db: runs.get(db, run_id)))

    async def list_runs(
        self,
        session_id: str | None = None,
        *,
        statuses: Collection[RunStatus] | None = None,
        after: str | None = None,
        limit: int | None = None,
    ) -> list[Run]:
        """Runs by submission; none of a session that is not known; raises `RunNotFound` for *after*."""
        found = await self._transact(lambda db: runs.find(db, session_id, statuses, after, limit))
        return [run_of(row) for row in found]

    async def get_events(
        self,
        session_id: str,
        *,
        after: int = 0,
        before: int | None = None,
        run_id: str | None = None,
        types: Collection[str] | None = None,
        since: float | None = None,
        limit: int | None = None,
    ) -> list[Event]:
        """Events of one session, by their numbers; raises `SessionNotFound`."""
        window = log.Window(session_id, after, before, run_id, types, since, limit)
        found = await self._transact(lambda db: log.read(db, window))
        return [event_of(session_id, EventRow._make(row)) for row in found]

    async def get_latest_sequence(self, session_id: str) -> int:
        """The number of the last event; raises `SessionNotFound`."""
        return (await self._transact(lambda db: log.latest(db, session_id)))[1]

    def watch(self, session_id: str, callback: Callable[[], None]) -> Callable[[], None]:
        """Have *callback* called after something of the session was committed; what ends that."""
        return self._hints.watch(session_id, callback)

    # -- retention and end -------------------------------------------------------------------------

    async def prune(self, retention: Retention, now: float) -> Pruned:
        """Hide, remove and thin out what *retention* does not keep, in many small transactions."""
        removed = events = 0
        hidden = await self._transact(lambda db: keeping.hide(db, retention, now))
        for id_ in hidden:
            await self._change(id_, lambda _: None)
        for id_ in await self._transact(lambda db: keeping.hidden(db, retention, now)):
            await self.delete_session(id_)
            removed += 1
        for key in await self._transact(lambda db: keeping.long(db, retention)):
            while gone := await self._transact(partial(keeping.thin_out, key=key, retention=retention)):
                events += gone
        return Pruned(len(hidden), removed, events)

    @property
    def path(self) -> Path:
        """The database file."""
        return self._writer.path

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

    async def _change(self, session_id: str, work: Work[T]) -> T:
        """As `_transact`, and whoever watches the session is told."""
        return await self._writer.submit(work, session_id)

    async def _transact(self, work: Work[T]) -> T:
        """Run *work* in a transaction and return after its commit.

        *work* runs in the writer's thread. It may run twice, after a rollback of the first time, so
        it changes nothing but the database, and it returns values, not cursors.
        """
        return await self._writer.submit(work)


def _execute(db: sqlite3.Connection, sql: str, *values: str) -> None:
    db.execute(sql, values)
