"""What is asked of the store, decided in memory on rows that are locked: each change whole, or refused.

A change names what it needs to see, then decides. All that may be refused is refused before anything is
changed, so that of a group of changes each succeeds or fails for itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from interlock.core.runs import ENDED, IN_FLIGHT, SESSION_ENDED, SESSION_MOVES
from interlock.errors import (
    InvalidOperation,
    InvalidStatus,
    QueueFull,
    RunNotFound,
    SessionNotFound,
    StaleFence,
    StoreError,
)
from interlock.stores.postgres.text import given
from interlock.stores.rows import changed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from interlock.core.runs import RunStatus, SessionVerb
    from interlock.stores.rows import ChangeRow, EventRow, RunRow, SessionRow


class Needs:
    """What has to be locked and read before a group of changes can be decided."""

    def __init__(self) -> None:
        self.created: dict[str, SessionRow] = {}
        """Sessions that are written where their ids are not known."""
        self.sessions: set[str] = set()
        self.whole: bool = False
        """Whether a session is asked for with what may be large."""
        self.runs: set[str] = set()
        self.attempts: set[str] = set()
        """Runs of which only the fence is asked for."""
        self.keys: set[tuple[str, str]] = set()
        """Sessions' ids with idempotency keys of runs."""
        self.counted: set[str] = set()
        """Sessions whose unfinished runs are counted."""
        self.events: set[tuple[str, str]] = set()
        """Sessions' ids with ids of events."""
        self.events_of_runs: set[tuple[str, str]] = set()
        """Runs' ids with ids of events."""


class KeptSession:
    """A session under its lock."""

    __slots__ = ("fence", "hidden", "key", "places", "row", "runs", "touched", "unfinished", "visible")

    def __init__(
        self, key: int, row: SessionRow, runs: int, fence: int, *, hidden: bool, visible: bool
    ) -> None:
        self.key = key
        self.row = row
        self.runs = runs
        self.fence = fence
        """How often it was taken by a worker."""
        self.hidden = hidden
        self.visible = visible
        """Whether it was there before the group, or the change that makes it has been decided."""
        self.touched = False
        self.unfinished = 0
        self.places: dict[str, int] = {}
        """Sequence numbers of events, as far as they are known."""

    def is_ours(self, fences: Mapping[str, int]) -> bool:
        """Whether no worker ever took it, or the last who did is this process, which has these *fences*."""
        return self.fence == fences.get(self.row.id, 0)


class Kept:
    """What is in the database, as far as a group needs it, and what it has decided to write."""

    def __init__(self) -> None:
        self.created = False
        """Whether a session was written."""
        self.sessions: dict[str, KeptSession] = {}
        self.busy: set[str] = set()
        """Sessions and runs that somebody else keeps locked."""
        self.runs: dict[str, RunRow] = {}
        self.attempts: dict[str, tuple[str, RunStatus, int]] = {}
        """Session, status and attempt of runs."""
        self.keys: dict[tuple[str, str], str] = {}
        self.new_runs: dict[str, tuple[int, RunRow]] = {}
        self.changed_runs: dict[str, RunRow] = {}
        self.new_events: list[tuple[int, EventRow]] = []
        self.settings: dict[str, str | None] = {}

    def session(self, session_id: str) -> KeptSession:
        """The session; raises `SessionNotFound`."""
        found = self.sessions.get(session_id)
        if found is None and session_id in self.busy:
            raise _busy("session", session_id)
        if found is None or found.hidden or not found.visible:
            raise SessionNotFound(f"no session {given(session_id)!r}", session=given(session_id))
        return found

    def run(self, run_id: str) -> RunRow:
        """The run; raises `RunNotFound`."""
        found = self.runs.get(run_id)
        if run_id in self.busy:
            raise _busy("run", run_id)
        if found is None or (home := self.sessions.get(found.session_id)) is None or home.hidden:
            raise RunNotFound(f"no run {given(run_id)!r}", run=given(run_id))
        return found

    def put(self, session: KeptSession, row: RunRow, *, new: bool = False) -> None:
        """*row* is what the run is now."""
        before = None if new else self.runs[row.id]
        was, is_ = before is not None and before.status not in ENDED, row.status not in ENDED
        session.unfinished += is_ - was
        self.runs[row.id] = row
        self.attempts[row.id] = row.session_id, row.status, row.attempt
        if new or row.id in self.new_runs:
            self.new_runs[row.id] = session.key, row
        else:
            self.changed_runs[row.id] = row

    def log(self, session: KeptSession, rows: Sequence[EventRow], at: float = 0.0) -> int:
        """Give *rows* their places in the log; the number of the last, or of the session's last."""
        place = last = session.row.last_sequence
        for row in rows:
            known = session.places.get(row.id)
            if known is None:
                last = place = session.places[row.id] = last + 1
                at = max(at, row.timestamp)
                self.new_events.append((session.key, row._replace(sequence=place)))
            else:
                place = known
        if last != session.row.last_sequence or at > session.row.updated_at:
            session.row = session.row._replace(last_sequence=last, updated_at=max(at, session.row.updated_at))
            session.touched = True
        return place

    def check_attempt(self, session_id: str, run_id: str, attempt: int | None) -> None:
        """Raises `StaleFence` unless the run is one of that session and in flight in that attempt."""
        home, status, present = self.attempts.get(run_id, ("", "pending", 0))
        if home != session_id or status not in IN_FLIGHT or attempt not in (None, present):
            shown = given(run_id)
            raise StaleFence(f"run {shown!r} is not in flight in attempt {attempt}", run=shown)


def _busy(what: str, id_: str) -> StoreError:
    return StoreError(f"{what} {given(id_)!r} is locked by somebody else; nothing of this was stored")


class Change(Protocol):
    """One call that writes."""

    session_id: str | None
    """Whose watchers are told, as far as it is known before."""
    is_work: bool
    """Whether the session's holder should look."""

    def name(self, needs: Needs) -> None:
        """Add what has to be read."""
        ...

    def decide(self, kept: Kept) -> Any:
        """Do it to *kept*; what the caller is given. Raises the caller's error, with nothing changed."""
        ...


class CreateSession:
    """Write a session with its first events, where its id is not known; the row that is there."""

    is_work = False

    def __init__(self, row: SessionRow, events: Sequence[EventRow]) -> None:
        self.session_id: str | None = row.id
        self._row = row
        self._events = events

    def name(self, needs: Needs) -> None:
        needs.created.setdefault(self._row.id, self._row)
        needs.sessions.add(self._row.id)
        needs.whole = True

    def decide(self, kept: Kept) -> SessionRow:
        session = kept.sessions.get(self._row.id)
        if session is None:
            raise _busy("session", self._row.id)
        if not session.visible:
            session.visible = True
            kept.log(session, self._events)
        return session.row


class ChangeSession:
    """Move a session's status by compare-and-set; where it has to be *idle*, with no unfinished run."""

    is_work = False

    def __init__(
        self,
        session_id: str,
        verb: SessionVerb,
        at: float,
        events: Sequence[EventRow],
        *,
        idle: bool = False,
    ) -> None:
        self._idle = idle
        self.session_id: str | None = session_id
        self._id = session_id
        self._verb = verb
        self._at = at
        self._events = events

    def name(self, needs: Needs) -> None:
        needs.sessions.add(self._id)
        needs.whole = True
        if self._idle:
            needs.counted.add(self._id)
        needs.events.update((self._id, event.id) for event in self._events)

    def decide(self, kept: Kept) -> SessionRow | None:
        session = kept.session(self._id)
        before, after = SESSION_MOVES[self._verb]
        if session.row.status not in before or (self._idle and session.unfinished):
            return None
        session.row = session.row._replace(status=after)
        session.touched = True
        kept.log(session, self._events, self._at)
        return session.row


class SubmitRun:
    """Write a run behind all others of its session, unless it is known by its key or id."""

    is_work = False

    def __init__(self, row: RunRow, events: Sequence[EventRow], room: int | None) -> None:
        self.session_id: str | None = row.session_id
        self._row = row
        self._events = events
        self._room = room

    def name(self, needs: Needs) -> None:
        row = self._row
        needs.sessions.add(row.session_id)
        needs.runs.add(row.id)
        if row.idempotency_key is not None:
            needs.keys.add((row.session_id, row.idempotency_key))
        if self._room is not None:
            needs.counted.add(row.session_id)
        needs.events.update((row.session_id, event.id) for event in self._events)

    def decide(self, kept: Kept) -> tuple[RunRow, bool]:
        row = self._row
        session = kept.session(row.session_id)
        key = None if row.idempotency_key is None else (row.session_id, row.idempotency_key)
        known = kept.runs.get((key and kept.keys.get(key)) or row.id)
        if known is not None and known.session_id != row.session_id:
            shown = given(row.id)
            raise InvalidOperation(f"run {shown!r} is one of another session", run=shown)
        if known is not None:
            return known, False
        shown, status = given(row.session_id), session.row.status
        if status in SESSION_ENDED:
            raise InvalidStatus(f"session {shown!r} is {status}", status=status)
        if self._room is not None and session.unfinished >= self._room:
            raise QueueFull(
                f"session {shown!r} has {session.unfinished} runs of {self._room}", room=self._room
            )
        self.is_work = True
        session.runs += 1
        session.touched = True
        row = row._replace(number=session.runs)
        kept.put(session, row, new=True)
        if key is not None:
            kept.keys[key] = row.id
        kept.log(session, self._events, row.submitted_at)
        return row, True


class ChangeRun:
    """Change a run by compare-and-set."""

    session_id: str | None = None
    is_work = False

    def __init__(
        self, run_id: str, done: ChangeRow, events: Sequence[EventRow], fences: Mapping[str, int]
    ) -> None:
        self._id = run_id
        self._done = done
        self._events = events
        self._fences = fences

    def name(self, needs: Needs) -> None:
        needs.runs.add(self._id)
        needs.events_of_runs.update((self._id, event.id) for event in self._events)

    def decide(self, kept: Kept) -> RunRow | None:
        before = kept.run(self._id)
        row = changed(before, self._done)
        if row is None:
            return None
        session = kept.session(row.session_id)
        waited = self._done.change.verb == "cancel" and before.status == "pending"
        if not waited and not session.is_ours(self._fences):
            return None  # another holds the session now, and does all but cancel what waits
        self.session_id = row.session_id
        self.is_work = waited
        kept.put(session, row)
        kept.log(session, self._events, self._done.change.at)
        return row


class Append:
    """Log events; with *run_id*, only while that run is in flight in that *attempt*."""

    is_work = False

    def __init__(
        self,
        session_id: str,
        events: Sequence[EventRow],
        run_id: str | None,
        attempt: int | None,
        fences: Mapping[str, int],
    ) -> None:
        self.session_id: str | None = session_id
        self._id = session_id
        self._fences = fences
        self._events = events
        self._run_id = run_id
        self._attempt = attempt

    def name(self, needs: Needs) -> None:
        needs.sessions.add(self._id)
        if self._run_id is not None:
            needs.attempts.add(self._run_id)
        needs.events.update((self._id, event.id) for event in self._events)

    def decide(self, kept: Kept) -> int:
        session = kept.session(self._id)
        if self._run_id is not None:
            kept.check_attempt(self._id, self._run_id, self._attempt)
            if not session.is_ours(self._fences):
                shown = given(self._run_id)
                raise StaleFence(f"another process has taken over the session of run {shown!r}", run=shown)
        return kept.log(session, self._events)


class Setting:
    """Write *value* under *key*, or nothing."""

    session_id: str | None = None
    is_work = False

    def __init__(self, key: str, value: str | None) -> None:
        self._key = key
        self._value = value

    def name(self, needs: Needs) -> None:
        pass

    def decide(self, kept: Kept) -> None:
        kept.settings[self._key] = self._value
