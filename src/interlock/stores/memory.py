"""A store that forgets everything with its process: for tests and for trying things out.

Nothing here waits, so every call is one step of the event loop: what may fail comes first, then what changes.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right, insort
from itertools import islice
from typing import TYPE_CHECKING, Self

from interlock.core.runs import ENDED, IN_FLIGHT, LIFECYCLE, SESSION_ENDED, SESSION_MOVES
from interlock.core.sessions import Pruned
from interlock.errors import (
    InvalidOperation,
    InvalidStatus,
    QueueFull,
    RunNotFound,
    SessionNotFound,
    StaleFence,
    Unavailable,
)
from interlock.stores.rows import (
    EventRow,
    RunRow,
    SessionRow,
    change_row,
    changed,
    event_of,
    event_rows,
    run_of,
    run_row,
    session_of,
    session_row,
    tags_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from interlock.core.runs import RunStatus, SessionStatus, SessionVerb
    from interlock.core.sessions import Event, NewEvent, Retention, Run, RunChange, Session


class _Kept:
    """A session with all that is its own."""

    __slots__ = (
        "events",
        "hidden_at",
        "keys",
        "last_sequence",
        "order",
        "places",
        "row",
        "runs",
        "unfinished",
    )

    def __init__(self, row: SessionRow) -> None:
        self.row = row
        self.last_sequence = 0
        self.events: list[EventRow] = []  # by sequence; after pruning there are gaps
        self.places: dict[str, int] = {}  # the sequence of every event, by its id
        self.runs: dict[str, RunRow] = {}  # in the order of their numbers
        self.order: list[str] = []  # the ids of the runs, that with number n at n - 1
        self.unfinished: dict[int, str] = {}  # by number
        self.keys: dict[str, str] = {}  # the ids of the runs by their idempotency keys
        self.hidden_at: float | None = None

    def touch(self, at: float) -> None:
        if at > self.row.updated_at:
            self.row = self.row._replace(updated_at=at)

    def log(self, rows: Sequence[EventRow]) -> int:
        """Give *rows* their places; the sequence number of the last."""
        last = self.last_sequence
        for row in rows:
            known = self.places.get(row.id)
            if known is None:
                self.last_sequence = last = self.places[row.id] = self.last_sequence + 1
                self.events.append(row._replace(sequence=last))
                self.touch(row.timestamp)
            else:
                last = known
        return last

    def given(self) -> Session:
        return session_of(self.row._replace(last_sequence=self.last_sequence))


class _Watch:
    """Who wants to be told about a session, in which loop."""

    __slots__ = ("_due", "_loop", "callback")

    def __init__(self, callback: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._due = False
        self.callback: Callable[[], None] | None = callback

    def hint(self) -> None:
        if not self._due:
            self._due = True
            self._loop.call_soon(self._tell)

    def _tell(self) -> None:
        self._due = False
        if self.callback is not None:
            self.callback()


class MemoryStore:
    """The whole `Store` in dicts."""

    def __init__(self) -> None:
        self._settings: dict[str, str] = {}
        self._sessions: dict[str, _Kept] = {}
        self._order: list[tuple[float, str]] = []  # when the sessions were created, and their ids
        self._hidden: dict[str, _Kept] = {}
        self._homes: dict[str, _Kept] = {}  # of the runs, as they were submitted
        self._watches: dict[str, list[_Watch]] = {}
        self._closed = False

    # -- settings ----------------------------------------------------------------------------------

    async def get(self, key: str) -> str | None:
        """The value of *key*, or None."""
        self._check_open()
        return self._settings.get(key)

    async def set(self, key: str, value: str) -> None:
        """Write *value* under *key*, in place of what was there."""
        self._check_open()
        self._settings[key] = value

    async def delete(self, key: str) -> None:
        """Remove *key*, if there."""
        self._check_open()
        self._settings.pop(key, None)

    async def items(self, prefix: str = "") -> dict[str, str]:
        """Every entry whose key begins with *prefix*, in the order of the keys."""
        self._check_open()
        found = sorted(key for key in self._settings if key.startswith(prefix))
        return {key: self._settings[key] for key in found}

    # -- writes ------------------------------------------------------------------------------------

    async def create_session(self, session: Session, events: Sequence[NewEvent] = ()) -> Session:
        """Write *session*; where its id is known (also of a hidden one), what is there is given back."""
        self._check_open()
        kept = self._sessions.get(session.id) or self._hidden.get(session.id)
        if kept is None:
            kept, rows = _Kept(session_row(session)), event_rows(events)
            self._sessions[session.id] = kept
            insort(self._order, (kept.row.created_at, session.id))
            kept.log(rows)
            self._hint(session.id)
        return kept.given()

    async def change_session(
        self, session_id: str, verb: SessionVerb, at: float, events: Sequence[NewEvent] = ()
    ) -> Session | None:
        """Move the session's status by compare-and-set."""
        kept = self._session(session_id)
        before, after = SESSION_MOVES[verb]
        if kept.row.status not in before:
            return None
        rows = event_rows(events)
        kept.row = kept.row._replace(status=after)
        kept.touch(at)
        kept.log(rows)
        self._hint(session_id)
        return kept.given()

    async def delete_session(self, session_id: str) -> None:
        """Remove the session, its runs and events, also a hidden one."""
        self._check_open()
        kept = self._sessions.get(session_id) or self._hidden.pop(session_id, None)
        if kept is not None:
            self._forget(kept)
            self._hint(session_id)

    async def submit_run(
        self, run: Run, events: Sequence[NewEvent] = (), *, room: int | None = None
    ) -> tuple[Run, bool]:
        """Write *run* behind all others of its session, unless it is known by its key or id."""
        kept = self._session(run.session_id)
        known = kept.keys.get(run.idempotency_key) if run.idempotency_key is not None else None
        if (known or run.id) in kept.runs:
            return run_of(kept.runs[known or run.id]), False
        if run.id in self._homes:
            raise InvalidOperation(f"run {run.id!r} is one of another session", run=run.id)
        if kept.row.status in SESSION_ENDED:
            raise InvalidStatus(f"session {run.session_id!r} is {kept.row.status}", status=kept.row.status)
        if room is not None and len(kept.unfinished) >= room:
            raise QueueFull(
                f"session {run.session_id!r} has {len(kept.unfinished)} runs of {room}", room=room
            )
        row, rows = run_row(run)._replace(number=len(kept.order) + 1), event_rows(events)
        kept.order.append(run.id)
        self._homes[run.id] = kept
        self._put(kept, row)
        if run.idempotency_key is not None:
            kept.keys[run.idempotency_key] = run.id
        kept.touch(run.submitted_at)
        kept.log(rows)
        self._hint(run.session_id)
        return run_of(row), True

    async def change_run(self, run_id: str, change: RunChange, events: Sequence[NewEvent] = ()) -> Run | None:
        """Change the run by compare-and-set."""
        kept = self._home(run_id)
        row = changed(kept.runs[run_id], change_row(change))
        if row is None:
            return None
        rows = event_rows(events)
        self._put(kept, row)
        kept.touch(change.at)
        kept.log(rows)
        self._hint(row.session_id)
        return run_of(row)

    async def append(
        self,
        session_id: str,
        events: Sequence[NewEvent],
        *,
        run_id: str | None = None,
        attempt: int | None = None,
    ) -> int:
        """Log *events*; the number of the last, or of the session's last where there are none."""
        kept = self._session(session_id)
        if run_id is not None:
            run = kept.runs.get(run_id)
            if run is None or run.status not in IN_FLIGHT or attempt not in (None, run.attempt):
                raise StaleFence(f"run {run_id!r} is not in flight in attempt {attempt}", run=run_id)
        last = kept.log(event_rows(events))
        self._hint(session_id)
        return last

    # -- reads -------------------------------------------------------------------------------------

    async def get_session(self, session_id: str) -> Session:
        """The session; raises `SessionNotFound`."""
        return self._session(session_id).given()

    async def list_sessions(
        self,
        *,
        statuses: Collection[SessionStatus] | None = None,
        after: str | None = None,
        limit: int | None = None,
    ) -> list[Session]:
        """Sessions by creation, then id; raises `SessionNotFound` where *after* is none."""
        self._check_open()
        start = 0
        if after is not None:
            start = bisect_right(self._order, (self._session(after).row.created_at, after))
        all_ = (self._sessions[self._order[n][1]] for n in range(start, len(self._order)))
        found = (kept for kept in all_ if statuses is None or kept.row.status in statuses)
        return [kept.given() for kept in islice(found, limit)]

    async def get_run(self, run_id: str) -> Run:
        """The run; raises `RunNotFound`."""
        return run_of(self._home(run_id).runs[run_id])

    async def list_runs(
        self,
        session_id: str | None = None,
        *,
        statuses: Collection[RunStatus] | None = None,
        after: str | None = None,
        limit: int | None = None,
    ) -> list[Run]:
        """Runs by submission; none of a session that is not known; raises `RunNotFound` for *after*."""
        self._check_open()
        rows: Iterable[RunRow]
        if session_id is None:
            homes = iter(self._homes)
            if after is not None:
                self._home(after)
                next(id_ for id_ in homes if id_ == after)
            rows = (self._homes[id_].runs[id_] for id_ in homes)
        else:
            kept = self._sessions.get(session_id)
            number = 0 if after is None else self._home(after).runs[after].number
            rows = [] if kept is None else self._runs_after(kept, number, statuses)
        found = (row for row in rows if statuses is None or row.status in statuses)
        return [run_of(row) for row in islice(found, limit)]

    @staticmethod
    def _runs_after(kept: _Kept, number: int, statuses: Collection[RunStatus] | None) -> Iterable[RunRow]:
        if statuses is not None and ENDED.isdisjoint(statuses):
            return (kept.runs[kept.unfinished[n]] for n in sorted(kept.unfinished) if n > number)
        return (kept.runs[kept.order[n]] for n in range(number, len(kept.order)))

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
        events = self._session(session_id).events
        start = bisect_right(events, after, key=_sequence)
        end = len(events) if before is None else bisect_left(events, before, key=_sequence)
        found = (
            row
            for row in (events[n] for n in range(start, end))
            if (run_id is None or row.run_id == run_id)
            and (types is None or row.type in types)
            and (since is None or row.timestamp >= since)
        )
        return [event_of(session_id, row) for row in islice(found, limit)]

    async def get_latest_sequence(self, session_id: str) -> int:
        """The number of the last event; raises `SessionNotFound`."""
        return self._session(session_id).last_sequence

    def watch(self, session_id: str, callback: Callable[[], None]) -> Callable[[], None]:
        """Have *callback* called after something of the session was written; what ends that."""
        watch = _Watch(callback)
        self._watches.setdefault(session_id, []).append(watch)

        def unwatch() -> None:
            if watch.callback is None:
                return
            watch.callback = None
            others = self._watches[session_id]
            others.remove(watch)
            if not others:
                del self._watches[session_id]

        return unwatch

    # -- retention and end -------------------------------------------------------------------------

    async def prune(self, retention: Retention, now: float) -> Pruned:
        """Hide, remove and thin out what *retention* does not keep."""
        self._check_open()
        exempt = set(retention.exempt_tags)
        hidden = removed = events = 0
        for kept in list(self._sessions.values()):
            if not exempt.isdisjoint(tags_of(kept.row.tags)):
                continue
            if kept.row.status in SESSION_ENDED and _old(kept.row.updated_at, retention.completed_age, now):
                self._forget(kept)
                self._hidden[kept.row.id] = kept
                kept.hidden_at = now
                hidden += 1
                self._hint(kept.row.id)
            elif retention.max_events_per_session is not None:
                events += _thin_out(kept, retention, len(kept.events) - retention.max_events_per_session)
        for id_, kept in list(self._hidden.items()):
            spared = not exempt.isdisjoint(tags_of(kept.row.tags))
            if not spared and kept.hidden_at is not None and _old(kept.hidden_at, retention.deleted_age, now):
                del self._hidden[id_]
                removed += 1
        return Pruned(hidden, removed, events)

    async def aclose(self) -> None:
        """End the store; later calls raise :class:`Unavailable`. Closing again does nothing."""
        self._closed = True
        for session_id in self._watches:
            self._hint(session_id)
        for kept in (self._settings, self._sessions, self._order, self._hidden, self._homes):
            kept.clear()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    # -- inside ------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("the store is closed")

    def _session(self, session_id: str) -> _Kept:
        self._check_open()
        try:
            return self._sessions[session_id]
        except KeyError:
            raise SessionNotFound(f"no session {session_id!r}", session=session_id) from None

    def _home(self, run_id: str) -> _Kept:
        self._check_open()
        try:
            return self._homes[run_id]
        except KeyError:
            raise RunNotFound(f"no run {run_id!r}", run=run_id) from None

    def _put(self, kept: _Kept, row: RunRow) -> None:
        kept.runs[row.id] = row
        if row.status in ENDED:
            kept.unfinished.pop(row.number, None)
        else:
            kept.unfinished[row.number] = row.id

    def _forget(self, kept: _Kept) -> None:
        """Let nobody find the session and its runs."""
        if self._sessions.pop(kept.row.id, None) is None:
            return  # it was hidden, and is forgotten so already
        del self._order[bisect_left(self._order, (kept.row.created_at, kept.row.id))]
        for run_id in kept.runs:
            del self._homes[run_id]

    def _hint(self, session_id: str) -> None:
        for watch in self._watches.get(session_id, ()):
            watch.hint()


def _sequence(row: EventRow) -> int:
    return row.sequence


def _old(at: float, age: float | None, now: float) -> bool:
    return age is not None and at <= now - age


def _thin_out(kept: _Kept, retention: Retention, surplus: int) -> int:
    """Remove *surplus* events at most: first those of little worth, then the oldest; how many went."""
    if surplus <= 0:
        return 0
    first = [row for row in kept.events if row.type in retention.prune_first and row.type not in LIFECYCLE]
    rest = [row for row in kept.events if row.type not in retention.prune_first and row.type not in LIFECYCLE]
    gone = {row.id for row in (first + rest)[:surplus]}
    kept.events = [row for row in kept.events if row.id not in gone]
    for id_ in gone:
        del kept.places[id_]
    return len(gone)
