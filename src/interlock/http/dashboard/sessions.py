"""The second page: the sessions, and of one of them its runs and its events as they come."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from interlock.core.runs import ENDED, IN_FLIGHT, SESSION_ENDED
from interlock.errors import InterlockError, SessionNotFound
from interlock.http.dashboard.fleet import PAGE, busy_list
from interlock.http.dashboard.parts import Part, place, shown
from interlock.http.problems import encoded
from interlock.http.sessions.words import is_id

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from interlock.core.runs import RunStatus
    from interlock.core.sessions import Event, Run, Session
    from interlock.http.overview import State
    from interlock.session.server import SessionServer
    from interlock.session.sessions import Sessions

MOST_EVENTS: Final = 60
MOST_OPEN: Final = 30
"""Runs that have not ended and are shown: each may have an input of a megabyte, which is read with it."""
MOST_ENDED: Final = 20
"""Runs that have ended and are shown."""
_BEHIND: Final = 200
"""So many of the last events are looked through for them."""
_OPEN: Final[frozenset[RunStatus]] = IN_FLIGHT | {"pending"}
_MOST_DATA: Final = 240
_LOOK_SECONDS: Final = 3.0
"""After so long runs are read again also if no event tells that they have changed."""


class SessionsView:
    """Those that are at work, and a page of all that are stored, behind the one called *after*."""

    name = "sessions"
    every = 3.0

    def __init__(self, sessions: Sessions | None, after: str | None = None) -> None:
        self._sessions = sessions
        self._after = after
        self._found: list[Session] = []
        self._read_at = float("-inf")

    async def parts(self, state: State) -> Sequence[Part]:
        """Two lists."""
        if self._sessions is None:
            return [Part("missing", "missing", {"text": "This server keeps no sessions."})]
        now = self._sessions.clock.now()
        try:
            if now - self._read_at >= self.every * 0.9:  # what is stored may be large, and the fleet busy
                self._found = await self._sessions.store.list_sessions(after=self._after, limit=PAGE + 1)
                self._read_at = now
        except SessionNotFound:
            return [Part("missing", "missing", {"text": f"There is no session {shown(self._after)}."})]
        found = self._found
        rows = tuple(
            Part(place("stored", one.id), "stored_session", _session(one, self._sessions)) for one in found
        )
        values = {
            "next": found[PAGE - 1].id if len(found) > PAGE else None,
            "first": self._after is None,
            "agents": sorted(map(shown, self._sessions.agents)),
        }
        return [busy_list(state["sessions"]), Part("stored", "stored", values, rows[:PAGE])]


class SessionView:
    """One session; *may* says what its reader may do to it."""

    name = "session"
    every = 0.5

    def __init__(self, sessions: Sessions | None, session_id: str, may: Collection[str]) -> None:
        self._sessions = sessions
        self._id = session_id
        self._may = "submit" in may or "admin" in may
        self._sequence = -1
        self._read_at = float("-inf")
        self._open: list[Run] = []
        self._events: list[Event] = []
        self._ended: dict[str, Run] = {}

    async def parts(self, state: State) -> Sequence[Part]:
        """Its head, its runs, its events."""
        if self._sessions is None or not is_id(self._id):
            return [Part("missing", "missing", {"text": f"There is no session {shown(self._id)}."})]
        store = self._sessions.store
        try:
            session = await store.get_session(self._id)
            server = self._sessions.running.get(session.id)
            now = self._sessions.clock.now()
            if session.last_sequence != self._sequence or now - self._read_at >= _LOOK_SECONDS:
                self._open = await store.list_runs(session.id, statuses=_OPEN, limit=MOST_OPEN + 1)
                self._read_at = now
            if session.last_sequence != self._sequence:
                await self._read(session)
        except SessionNotFound:
            return [Part("missing", "missing", {"text": f"There is no session {shown(self._id)}."})]
        ended = sorted(self._ended.values(), key=lambda run: -run.number)[:MOST_ENDED]
        runs = [self._run(run, server) for run in (*self._open[:MOST_OPEN], *ended)]
        values = _session(session, self._sessions) | {
            "may": self._may and session.status not in SESSION_ENDED,
            "tags": [shown(tag) for tag in session.tags],
            "latest": session.last_sequence,
        }
        return [
            Part("session", "session", values),
            Part("runs", "runs", {"more": len(self._open) > MOST_OPEN}, tuple(runs)),
            Part("events", "events", {}, tuple(_event(one) for one in reversed(self._events))),
        ]

    async def _read(self, session: Session) -> None:
        """What is new in the log, and the runs of which it tells that they have ended."""
        assert self._sessions is not None
        store, latest = self._sessions.store, session.last_sequence
        after = max(self._sequence, latest - _BEHIND, 0)
        events = await store.get_events(session.id, after=after, before=latest + 1)
        self._sequence = latest
        self._events = [*self._events, *events][-MOST_EVENTS:]
        over = {one.run_id for one in events if one.run_id is not None and one.type in _ENDINGS}
        for run_id in list(over)[-MOST_ENDED:]:
            try:
                self._ended[run_id] = await store.get_run(run_id)
            except InterlockError:
                continue  # it was removed meanwhile
        for old in sorted(self._ended, key=lambda one: self._ended[one].number)[:-MOST_ENDED]:
            del self._ended[old]

    def _run(self, run: Run, server: SessionServer | None) -> Part:
        values = {
            "id": run.id,
            "number": run.number,
            "status": run.status,
            "attempt": run.attempt,
            "submitted": _ms(run.submitted_at),
            "started": _ms(run.started_at),
            "ended": _ms(run.ended_at),
            "tokens": sum(run.token_usage.values()),
            "text": "" if run.error is None else shown(run.error.get("message", ""), 160),
            "may": self._may and run.status not in ENDED,
            "flying": run.status in IN_FLIGHT,
        }
        if run.status == "pending":
            values["text"] = _waits(run.id, server)
        return Part(place("run", run.id), "run", values)


_ENDINGS: Final = frozenset(f"run_{what}" for what in ENDED)


def _waits(run_id: str, server: SessionServer | None) -> str:
    if server is None or server.closed:
        return "waits until the session is served"
    at, blocking = server.waits_for(run_id) or (None, ())
    line = "" if at is None else "next" if at == 1 else f"{at - 1} ahead"
    limits = ", ".join(f"{one.limit} {one.used}/{one.capacity}" for one in blocking)
    return "; ".join(filter(None, (line, f"full: {limits}" if limits else "")))


def _session(session: Session, sessions: Sessions) -> dict[str, Any]:
    server = sessions.running.get(session.id)
    status = None if server is None or server.closed else server.status()
    return {
        "id": session.id,
        "title": shown(session.id, 200),
        "status": session.status,
        "agent": shown(session.agent_id or "none"),
        "most": session.max_concurrent_runs,
        "running": 0 if status is None else status.in_flight_count,
        "queued": 0 if status is None else status.queued_count,
        "served": status is not None,
        "created": _ms(session.created_at),
    }


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)


def _event(event: Event) -> Part:
    values = {
        "sequence": event.sequence,
        "type": shown(event.type),
        "at": round(event.timestamp * 1000),
        "run": None if event.run_id is None else shown(event.run_id),
        "data": _data(event.data),
    }
    return Part(f"event-{event.sequence}", "event", values)


def _data(data: Mapping[str, Any]) -> str:
    return shown(encoded(dict(data)).decode("utf-8", "replace"), _MOST_DATA) if data else ""
