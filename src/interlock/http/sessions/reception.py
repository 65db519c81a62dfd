"""What all routes of sessions and runs have in common: who works on a session, and what a run waits for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from interlock.core.runs import SESSION_ENDED
from interlock.errors import Draining, InvalidOperation, RunNotFound, SessionNotFound, Unavailable
from interlock.http.access.caller import caller_of
from interlock.http.sessions import words
from interlock.http.sessions.answers import Line

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

    from interlock.core.sessions import Run
    from interlock.http.permits.desk import PermitDesk
    from interlock.session.server import SessionServer
    from interlock.session.sessions import Sessions
    from interlock.session.shared import ServedSession


class Reception:
    """Leads to the servers of *kept*, without which everything is `Unavailable`.

    Who waits is sent away when *desk* drains; *ready* says whether new work is taken.
    """

    def __init__(self, kept: Sessions | None, desk: PermitDesk, ready: Callable[[], bool]) -> None:
        self._kept = kept
        self.desk = desk
        self._ready = ready

    @property
    def sessions(self) -> Sessions:
        """The sessions, also while none gets new work."""
        if self._kept is None:
            raise Unavailable("this server keeps no sessions")
        return self._kept

    def taking(self) -> Sessions:
        """The sessions, as long as they get new work."""
        sessions = self.sessions
        if not self._ready() or self.desk.draining:
            raise Draining("the server is draining; come back in a moment")
        return sessions

    def served(self, session_id: str) -> SessionServer | None:
        """The session's server, if it has one."""
        server = self.sessions.running.get(session_id)
        return None if server is None or server.closed else server

    async def server(self, session_id: str) -> ServedSession:
        """The session's server, started if need be.

        Raises `SessionNotFound`, `InvalidStatus` for a session that has ended, and `InvalidOperation` for one
        whose agent is not configured any more.
        """
        sessions = self.sessions
        if sessions.shared:  # whoever holds it, what is submitted elsewhere comes before ours
            return await sessions.get(session_id)
        if (server := self.served(session_id)) is not None:
            return server
        session = await sessions.store.get_session(session_id)
        if session.status not in SESSION_ENDED and session.agent_id not in sessions.agents:
            raise InvalidOperation(
                f"session {session_id!r} can only be read: its agent {session.agent_id!r} is not configured"
            )
        return await sessions.get(session_id)

    async def place(self, run: Run) -> Line | None:
        """The line in which *run* waits, as far as it matters to it."""
        if run.status != "pending":
            return None
        server = None if self.sessions.shared else self.served(run.session_id)
        if server is None:
            return await self.line(run.session_id)
        place, blocking = server.waits_for(run.id) or (None, ())
        return Line({} if place is None else {run.id: place}, blocking)

    async def line(self, session_id: str) -> Line:
        """The line of all runs of the session that have not started."""
        server = None if self.sessions.shared else self.served(session_id)
        if server is None:  # nobody works on it, or another process does
            _, waiting = await self.sessions.unfinished(session_id)
        else:
            waiting = list(server.status().queued_runs)
        first = server.waits_for(waiting[0]) if server and waiting else None
        places = {run_id: place for place, run_id in enumerate(waiting, 1)}
        return Line(places, () if first is None else first[1])


def session_id_of(request: Request) -> str:
    """The session's id in the path; `SessionNotFound` where it can be none of the caller's."""
    session_id: str = request.path_params["id"]
    if not words.is_id(session_id):
        raise SessionNotFound(f"no session {session_id[:80]!r}")
    if not caller_of(request.scope).owns(session_id):
        raise SessionNotFound(f"no session {session_id!r}", session=session_id)
    return session_id


def run_id_of(request: Request) -> str:
    """The run's id in the path; `RunNotFound` where it can be none."""
    run_id: str = request.path_params["id"]
    if not words.is_id(run_id):
        raise RunNotFound(f"no run {run_id[:80]!r}")
    return run_id
