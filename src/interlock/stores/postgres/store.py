"""The `Store` in a PostgreSQL database: what is JSON is written and read here, in the caller's step."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Self, TypeVar

from interlock.core.runs import IN_FLIGHT
from interlock.core.sessions import Pruned
from interlock.stores.postgres import leases, reading
from interlock.stores.postgres import retention as keeping
from interlock.stores.postgres.changes import (
    Append,
    ChangeRun,
    ChangeSession,
    CreateSession,
    Setting,
    SubmitRun,
)
from interlock.stores.postgres.examine import examine_over
from interlock.stores.postgres.hints import Hints
from interlock.stores.postgres.link import Line, LinkLostError
from interlock.stores.postgres.readers import Readers
from interlock.stores.postgres.schema import migrate, migrations
from interlock.stores.postgres.text import (
    given,
    given_event,
    given_run,
    given_session,
    kept,
    kept_event,
    kept_run,
    kept_session,
)
from interlock.stores.postgres.writer import Writer
from interlock.stores.rows import (
    change_row,
    event_of,
    event_rows,
    run_of,
    run_row,
    session_of,
    session_row,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

    import asyncpg

    from interlock.core.findings import Finding
    from interlock.core.runs import RunStatus, SessionStatus, SessionVerb
    from interlock.core.sessions import Event, NewEvent, Retention, Run, RunChange, Session
    from interlock.core.workers import Answer, Held, Wish, Worker
    from interlock.stores.expected import Expected
    from interlock.stores.rows import EventRow

T = TypeVar("T")
log = logging.getLogger(__name__)


class PostgresStore:
    """Sessions, runs, events and settings in PostgreSQL: use :func:`interlock.stores.open_store`.

    Any number of processes may use one database. Every method raises :class:`StoreError` where the database
    fails or is out of reach for some seconds (nothing of that call is then stored, unless the message says
    that this is unknown; later calls work again when it has recovered), :class:`Unavailable` after closing.
    It belongs to the event loop in which it was opened.
    """

    def __init__(self, line: Line, hints: Hints, writer: Writer, readers: Readers) -> None:
        self._line = line
        self._hints = hints
        self._writer = writer
        self._readers = readers
        self._renewals: Writer | None = None
        """Renews a worker's lease over a connection of its own, so that no long transaction delays it."""
        self._fences: Mapping[str, int] = {}
        """Of the sessions that this process holds, by their ids as they are kept."""

    @classmethod
    async def open(cls, url: str) -> Self:
        """Connect to the database at *url*, and bring its schema up to date.

        Raises :class:`ValidationError` for what is no URL, and :class:`StoreError` where the database cannot
        be reached, is older than PostgreSQL 13 or a replica, does not wait for the disk, or has a schema that
        is newer than this code or changed.
        """
        line = Line(url)
        try:
            link = await line.open()
            try:
                await migrate(link, migrations())
                line.pooled = link.pooled
            except BaseException:
                link.abort()
                raise
        except LinkLostError as error:
            raise line.unreachable(error) from None
        hints = Hints()
        if line.pooled:
            log.info("%s: behind a pooler; changes of other processes show within a second", line.where)
        else:
            hints.serve(line)
        return cls(line, hints, Writer(line, hints, link), Readers(line))

    # -- settings ----------------------------------------------------------------------------------

    async def get(self, key: str) -> str | None:
        """The value of *key*, or None."""
        found = await self._read(partial(reading.setting, key=kept(key)))
        return given(found)

    async def set(self, key: str, value: str) -> None:
        """Write *value* under *key*, in place of what was there; durable when this returns."""
        await self._writer.submit(Setting(kept(key), kept(value)))

    async def delete(self, key: str) -> None:
        """Remove *key*, if there; durable when this returns."""
        await self._writer.submit(Setting(kept(key), None))

    async def items(self, prefix: str = "") -> dict[str, str]:
        """Every entry whose key begins with *prefix*, in the order of the keys."""
        found = await self._read(partial(reading.settings, prefix=kept(prefix)))
        return {given(key): given(value) for key, value in found.items()}

    # -- writes ------------------------------------------------------------------------------------

    async def create_session(self, session: Session, events: Sequence[NewEvent] = ()) -> Session:
        """Write *session*; where its id is known (also of a hidden one), what is there is given back."""
        change = CreateSession(kept_session(session_row(session)), _kept_events(events))
        return session_of(given_session(await self._writer.submit(change)))

    async def change_session(
        self, session_id: str, verb: SessionVerb, at: float, events: Sequence[NewEvent] = ()
    ) -> Session | None:
        """Move the session's status by compare-and-set."""
        change = ChangeSession(kept(session_id), verb, at, _kept_events(events))
        row = await self._writer.submit(change)
        return None if row is None else session_of(given_session(row))

    async def delete_session(self, session_id: str) -> None:
        """Remove the session, its runs and events, also a hidden one, all at once: a long log takes time."""
        await self._delete(kept(session_id))

    async def submit_run(
        self, run: Run, events: Sequence[NewEvent] = (), *, room: int | None = None
    ) -> tuple[Run, bool]:
        """Write *run* behind all others of its session, unless it is known by its key or id."""
        change = SubmitRun(kept_run(run_row(run)), _kept_events(events), room)
        row, new = await self._writer.submit(change)
        return run_of(given_run(row)), new

    async def change_run(self, run_id: str, change: RunChange, events: Sequence[NewEvent] = ()) -> Run | None:
        """Change the run by compare-and-set."""
        row = await self._writer.submit(
            ChangeRun(kept(run_id), change_row(change), _kept_events(events), self._fences)
        )
        return None if row is None else run_of(given_run(row))

    async def append(
        self,
        session_id: str,
        events: Sequence[NewEvent],
        *,
        run_id: str | None = None,
        attempt: int | None = None,
    ) -> int:
        """Log *events*; the number of the last, or of the session's last where there are none."""
        change = Append(kept(session_id), _kept_events(events), kept(run_id), attempt, self._fences)
        last: int = await self._writer.submit(change)
        return last

    # -- reads -------------------------------------------------------------------------------------

    async def get_session(self, session_id: str) -> Session:
        """The session; raises `SessionNotFound`."""
        return session_of(
            given_session(await self._read(partial(reading.session, session_id=kept(session_id))))
        )

    async def list_sessions(
        self,
        *,
        statuses: Collection[SessionStatus] | None = None,
        after: str | None = None,
        limit: int | None = None,
    ) -> list[Session]:
        """Sessions by creation, then id; raises `SessionNotFound` where *after* is none."""
        found = await self._read(partial(reading.sessions, statuses=statuses, after=kept(after), limit=limit))
        return [session_of(given_session(row)) for row in found]

    async def get_run(self, run_id: str) -> Run:
        """The run; raises `RunNotFound`."""
        return run_of(given_run(await self._read(partial(reading.run, run_id=kept(run_id)))))

    async def list_runs(
        self,
        session_id: str | None = None,
        *,
        statuses: Collection[RunStatus] | None = None,
        after: str | None = None,
        limit: int | None = None,
    ) -> list[Run]:
        """Runs by submission; none of a session that is not known; raises `RunNotFound` for *after*."""
        found = await self._read(
            partial(
                reading.runs,
                session_id=kept(session_id),
                statuses=statuses,
                after=kept(after),
                limit=limit,
            )
        )
        return [run_of(given_run(row)) for row in found]

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
        named = None if types is None else [kept(type_) for type_ in types]
        window = reading.Window(kept(session_id), after, before, kept(run_id), named, since, limit)
        found = await self._read(partial(reading.events, window=window))
        return [event_of(session_id, given_event(row)) for row in found]

    async def get_latest_sequence(self, session_id: str) -> int:
        """The number of the last event; raises `SessionNotFound`."""
        return (await self._read(partial(reading.latest, session_id=kept(session_id))))[1]

    def watch(self, session_id: str, callback: Callable[[], None]) -> Callable[[], None]:
        """Have *callback* called after something of the session was committed; what ends that.

        Of what other processes commit it is told some 20 ms later, behind a pooler not at all.
        """
        return self._hints.watch(kept(session_id), callback)

    # -- sharing -----------------------------------------------------------------------------------

    async def hold(self, worker: Worker, lease: float, *, most: int) -> Mapping[str, Held] | None:
        """Renew the lease of *worker*, and claim at most *most* sessions more; all that it holds."""
        if self._renewals is None:
            self._renewals = Writer(self._line, self._hints)
        found = await self._renewals.transact(partial(leases.hold, worker=worker, lease=lease, most=most))
        self._fences = {id_: held.fence for id_, held in (found or {}).items()}
        return None if found is None else {given(id_): held for id_, held in found.items()}

    async def let_go(self, worker_id: str, session_ids: Collection[str] | None = None) -> None:
        """Hold these sessions no more; without them, none, and be a worker no more."""
        await self._transact(partial(leases.let_go, worker_id=worker_id, session_ids=session_ids))
        gone = set(self._fences if session_ids is None else map(kept, session_ids))
        self._fences = {id_: fence for id_, fence in self._fences.items() if id_ not in gone}
        self._hints.tell((), work=gone)  # others may have them now

    async def workers(self) -> list[Worker]:
        """Who works; those who died are there for some minutes."""
        return await self._read(leases.workers)

    async def unfinished(self, session_id: str) -> tuple[list[str], list[str]]:
        """The ids of the session's runs that are in flight, and of those that wait, by submission."""
        found = await self._read(partial(reading.unfinished, session_id=kept(session_id)))
        flying = [given(id_) for id_, status in found if status in IN_FLIGHT]
        return flying, [given(id_) for id_, status in found if status not in IN_FLIGHT]

    async def complete(self, session_id: str, at: float, events: Sequence[NewEvent] = ()) -> Session | None:
        """End the session; None where it has unfinished runs, or has ended."""
        change = ChangeSession(kept(session_id), "complete", at, _kept_events(events), idle=True)
        row = await self._writer.submit(change)
        return None if row is None else session_of(given_session(row))

    async def wish(self, wish: Wish) -> int:
        """Have the worker that holds the session do this; raises `SessionNotFound`."""
        key = await self._transact(partial(leases.wish, wished=wish))
        self._hints.tell((), work=(kept(wish.session_id),))
        return key

    async def wishes(self, session_id: str) -> list[Wish]:
        """What was wished and nobody has answered, in that order."""
        return await self._read(partial(leases.wishes, session_id=session_id))

    async def answer(self, key: int, answer: Answer, session_id: str) -> None:
        """Say what became of a wish of this session."""
        await self._transact(partial(leases.answer, key=key, answered=answer))
        self._hints.tell((kept(session_id),))

    async def answered(self, key: int) -> Answer | None:
        """What became of a wish; None as long as nobody has said."""
        return await self._read(partial(leases.answered, key=key))

    def watch_work(self, callback: Callable[[str | None], None]) -> Callable[[], None]:
        """Have *callback* called with the session whose holder has something to do; what ends that."""
        return self._hints.watch_work(
            lambda session_id: callback(None if session_id is None else given(session_id))
        )

    # -- retention and end -------------------------------------------------------------------------

    async def prune(self, retention: Retention, now: float) -> Pruned:
        """Hide, remove and thin out what *retention* does not keep, in many small transactions."""
        removed = events = 0
        hidden = await self._transact(partial(keeping.hide, retention=retention, now=now), long=True)
        self._hints.tell(hidden)
        for id_ in await self._read(partial(keeping.hidden, retention=retention, now=now)):
            removed += await self._delete(id_)
        for key in await self._read(partial(keeping.long, retention=retention)):
            thin_out = partial(keeping.thin_out, key=key, retention=retention)
            while gone := await self._transact(thin_out, long=True):
                events += gone
        await self._transact(keeping.forget_writers)
        await self._transact(leases.forget)
        return Pruned(len(hidden), removed, events)

    async def examine(self, expected: Expected) -> list[Finding]:
        """What is wrong with what is kept, or one finding that nothing is."""
        return await examine_over(self._line, expected)

    async def aclose(self) -> None:
        """Finish what has been asked for, then close all connections.

        Closing again waits for the same end.
        """
        await self._writer.aclose()
        if self._renewals is not None:
            await self._renewals.aclose()
        await self._readers.aclose()
        await self._hints.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    # -- inside ------------------------------------------------------------------------------------

    async def _delete(self, session_id: str) -> bool:
        there = await self._transact(partial(keeping.delete, session_id=session_id), long=True)
        self._hints.tell((session_id,))
        return there

    async def _transact(self, work: Callable[[asyncpg.Connection], Awaitable[T]], *, long: bool = False) -> T:
        return await self._writer.transact(work, long=long)

    async def _read(self, work: Callable[[asyncpg.Connection], Awaitable[T]]) -> T:
        return await self._readers.read(work)


def _kept_events(events: Sequence[NewEvent]) -> list[EventRow]:
    return [kept_event(row) for row in event_rows(events)]
