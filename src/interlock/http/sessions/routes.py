"""Sessions and runs for every language: made, submitted, waited for, and ended over plain HTTP.

What is read comes from the store, so that sessions which no agent works on can be read as well. What changes
something goes through the session's server, which is started where it is needed.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

from starlette.routing import Route

from interlock.core.runs import ENDED, SESSION_ENDED
from interlock.errors import (
    Draining,
    InterlockError,
    InvalidOperation,
    InvalidStatus,
    RunCancelled,
    RunFailed,
    RunInterrupted,
    RunNotFound,
    SessionNotFound,
    Unavailable,
    ValidationError,
)
from interlock.http.problems import answering, json, read_body
from interlock.http.sessions import words
from interlock.http.sessions.pages import page
from interlock.http.waiting import poll, while_there
from interlock.session.feed import subscribers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request
    from starlette.responses import Response

    from interlock.core.sessions import Run, Session
    from interlock.http.permits.desk import PermitDesk
    from interlock.session.server import SessionServer
    from interlock.session.sessions import Sessions
    from interlock.session.shared import ServedSession

log = logging.getLogger(__name__)


def session_routes(sessions: Sessions | None, desk: PermitDesk, ready: Callable[[], bool]) -> list[Route]:
    """The routes over *sessions*, without which they answer 503.

    Who waits is sent away when *desk* drains; *ready* says whether new work is taken.
    """
    routes = _Routes(sessions, desk, ready)
    paths: list[tuple[str, Literal["GET", "POST"], Callable[[Request], Any]]] = [
        ("/sessions", "POST", routes.create),
        ("/sessions", "GET", routes.sessions),
        ("/sessions/{id}", "GET", routes.session),
        ("/sessions/{id}/events", "GET", routes.events),
        ("/sessions/{id}/drain", "POST", routes.drain),
        ("/sessions/{id}/close", "POST", routes.close),
        ("/sessions/{id}/runs", "POST", routes.submit),
        ("/sessions/{id}/runs", "GET", routes.runs),
        ("/runs/{id}", "GET", routes.run),
        ("/runs/{id}/wait", "GET", routes.wait),
        ("/runs/{id}/cancel", "POST", routes.cancel),
        ("/runs/{id}/interrupt", "POST", routes.interrupt),
        ("/runs/{id}/pause", "POST", routes.pause),
        ("/runs/{id}/resume", "POST", routes.resume),
        ("/workers", "GET", routes.workers),
    ]
    return [Route(path, answering(handler), methods=[method]) for path, method, handler in paths]


class _Routes:
    def __init__(self, sessions: Sessions | None, desk: PermitDesk, ready: Callable[[], bool]) -> None:
        self._kept = sessions
        self._desk = desk
        self._ready = ready
        self._closing: set[asyncio.Task[Session]] = set()

    @property
    def _sessions(self) -> Sessions:
        if self._kept is None:
            raise Unavailable("this server keeps no sessions")
        return self._kept

    def _taking(self) -> Sessions:
        """The sessions, as long as they get new work."""
        sessions = self._sessions
        if not self._ready() or self._desk.draining:
            raise Draining("the server is draining; come back in a moment")
        return sessions

    # -- sessions

    async def create(self, request: Request) -> Response:
        """Made once: the same body again finds the session that is there."""
        sessions = self._taking()
        asked = await read_body(request, words.NewSession, words.MOST_BYTES)
        asked.check()
        if asked.agent not in (names := await sessions.agent_names()):
            known = ", ".join(sorted(names)) or "none"
            raise ValidationError(f"agent is {asked.agent[:80]!r}; configured are: {known}")
        there = None
        if asked.id is not None:
            with suppress(SessionNotFound):
                there = await sessions.store.get_session(asked.id)
                _same(there, asked)
        server = await sessions.start(
            asked.id,
            agent=asked.agent,
            metadata=asked.metadata,
            max_concurrent_runs=asked.max_concurrent_runs,
            max_queued_runs=asked.max_queued_runs,
            collision=asked.collision,
            tags=asked.tags,
        )
        session = await sessions.store.get_session(server.session_id)
        return json(await self._session_said(session), 201 if there is None else 200)

    async def sessions(self, request: Request) -> Response:
        asked = words.page_asked(request, words.SESSION_STATUSES)
        store = self._sessions.store

        async def read(after: str | None, limit: int) -> list[Session]:
            return await store.list_sessions(statuses=asked.statuses, after=after, limit=limit)

        async def said(found: list[Session]) -> list[dict[str, Any]]:
            return [words.session_said(session) for session in found]

        return json(await page("sessions", read, said, after=asked.after, limit=asked.limit))

    async def session(self, request: Request) -> Response:
        return json(await self._session_said(await self._session(request)))

    async def events(self, request: Request) -> Response:
        """Asked only where there are no sessions: elsewhere `interlock.http.events` comes first."""
        raise Unavailable("this server keeps no sessions")

    async def drain(self, request: Request) -> Response:
        """Wait until nothing is left to do; a client that leaves lets new runs in again."""
        session_id = _session_id(request)
        asked = await read_body(request, words.Drain, otherwise=words.Drain())
        server = await self._server(session_id)
        await poll(request, self._desk, server.drain(timeout=asked.timeout_ms / 1000))
        return json({"drained": True})

    async def close(self, request: Request) -> Response:
        """End what runs here; it is done even if the client does not wait for it."""
        session = await self._session(request)
        asked = await read_body(request, words.Close, otherwise=words.Close())
        if session.status != "completed":
            work = self._sessions.close(session.id, complete=asked.complete, timeout=asked.timeout_ms / 1000)
            task = asyncio.get_running_loop().create_task(work)
            self._closing.add(task)
            task.add_done_callback(self._closed)
            session = await while_there(request, self._desk, task)
        return json(await self._session_said(session))

    def _closed(self, task: asyncio.Task[Session]) -> None:
        self._closing.discard(task)
        if not task.cancelled() and isinstance(task.exception(), InterlockError):
            log.info("a session was not closed: %s", task.exception())

    async def _session(self, request: Request) -> Session:
        return await self._sessions.store.get_session(_session_id(request))

    def _served(self, session_id: str) -> SessionServer | None:
        server = self._sessions.running.get(session_id)
        return None if server is None or server.closed else server

    async def _server(self, session_id: str) -> ServedSession:
        """The session's server, started if need be.

        Raises `SessionNotFound`, `InvalidStatus` for a session that has ended, and `InvalidOperation` for one
        whose agent is not configured any more.
        """
        sessions = self._sessions
        if sessions.shared:  # whoever holds it, what is submitted elsewhere comes before ours
            return await sessions.get(session_id)
        if (server := self._served(session_id)) is not None:
            return server
        session = await sessions.store.get_session(session_id)
        if session.status not in SESSION_ENDED and session.agent_id not in sessions.agents:
            raise InvalidOperation(
                f"session {session_id!r} can only be read: its agent {session.agent_id!r} is not configured"
            )
        return await sessions.get(session_id)

    async def _session_said(self, session: Session) -> dict[str, Any]:
        sessions, server = self._sessions, self._served(session.id)
        said = words.session_said(session)
        if sessions.shared and session.status not in SESSION_ENDED:
            flying, waiting = await sessions.unfinished(session.id)
        elif server is not None:
            status = server.status()
            flying, waiting = list(status.in_flight_runs), list(status.queued_runs)
        else:
            return said
        here = subscribers(sessions.store, session.id)
        return said | {"inFlightRuns": flying, "queuedRuns": waiting, "subscribers": here}

    async def workers(self, request: Request) -> Response:
        """Who serves the sessions; none where this server alone does."""
        return json({"workers": [words.worker_said(one) for one in await self._sessions.workers()]})

    # -- runs

    async def submit(self, request: Request) -> Response:
        """Durable once it is answered; the same key again is the same run."""
        sessions = self._taking()
        session_id, key = _session_id(request), words.idempotency_key(request)
        asked = await read_body(request, words.NewRun, words.MOST_BYTES)
        asked.check()
        server, began = await self._server(session_id), sessions.clock.now()
        run_id = await server.submit_run(
            asked.input,
            idempotency_key=key,
            timeout=None if asked.timeout_ms is None else asked.timeout_ms / 1000,
            priority=asked.priority,
            retry=asked.retry,
            metadata=asked.metadata,
        )
        run = await sessions.store.get_run(run_id)
        line = await self._place(run)
        body = {
            "runId": run.id,
            "sessionId": run.session_id,
            "status": run.status,
            "position": None if line is None else line.places.get(run.id),
        }
        # What was submitted before we were asked was submitted by somebody who used the same key.
        replay = {"idempotent-replay": "true"} if run.submitted_at < began else None
        return json(body, 202, replay)

    async def runs(self, request: Request) -> Response:
        asked = words.page_asked(request, words.RUN_STATUSES)
        session = await self._session(request)
        store = self._sessions.store

        async def read(after: str | None, limit: int) -> list[Run]:
            return await store.list_runs(session.id, statuses=asked.statuses, after=after, limit=limit)

        async def said(found: list[Run]) -> list[dict[str, Any]]:
            waits = any(run.status == "pending" for run in found)
            line = await self._line(session.id) if waits else None
            return [words.run_said(run, line) for run in found]

        return json(await page("runs", read, said, after=asked.after, limit=asked.limit))

    async def run(self, request: Request) -> Response:
        return await self._run_said(await self._run(request))

    async def wait(self, request: Request) -> Response:
        """The run once it has ended, however it ended."""
        timeout = words.wait_asked(request)
        run = await self._run(request)
        if run.status not in ENDED:
            server = await self._server(run.session_id)
            with suppress(RunFailed, RunCancelled, RunInterrupted):
                await poll(request, self._desk, server.await_run(run.id, timeout=timeout))
            run = await self._run(request)
        return await self._run_said(run)

    async def cancel(self, request: Request) -> Response:
        """One that has ended stays as it is: the client gets what it wanted, or is told that it came late."""
        run = await self._run(request)
        if run.status not in ENDED:
            await (await self._server(run.session_id)).cancel_run(run.id)
            run = await self._run(request)
        return json({"runId": run.id, "status": run.status}, 202)

    async def interrupt(self, request: Request) -> Response:
        return await self._change(request, lambda server: server.interrupt_run)

    async def pause(self, request: Request) -> Response:
        return await self._change(request, lambda server: server.pause_run)

    async def resume(self, request: Request) -> Response:
        return await self._change(request, lambda server: server.resume_run)

    async def _change(
        self, request: Request, verb: Callable[[ServedSession], Callable[[str], Awaitable[None]]]
    ) -> Response:
        """Do *verb* to a run in flight; 409 for any other."""
        run = await self._run(request)
        if run.status not in ENDED:
            server = await self._server(run.session_id)
            with suppress(RunNotFound):  # it is there, but not in flight
                await verb(server)(run.id)
                run = await self._run(request)
                return json({"runId": run.id, "status": run.status}, 202)
            run = await self._run(request)
        raise InvalidStatus(f"run {run.id!r} is {run.status}, not in flight", status=run.status)

    async def _run(self, request: Request) -> Run:
        return await self._sessions.store.get_run(_run_id(request))

    async def _run_said(self, run: Run) -> Response:
        return json(words.run_said(run, await self._place(run)))

    async def _place(self, run: Run) -> words.Line | None:
        """The line in which *run* waits, as far as it matters to it."""
        if run.status != "pending":
            return None
        server = None if self._sessions.shared else self._served(run.session_id)
        if server is None:
            return await self._line(run.session_id)
        place, blocking = server.waits_for(run.id) or (None, ())
        return words.Line({} if place is None else {run.id: place}, blocking)

    async def _line(self, session_id: str) -> words.Line:
        """The line of all runs of the session that have not started."""
        server = None if self._sessions.shared else self._served(session_id)
        if server is None:  # nobody works on it, or another process does
            _, waiting = await self._sessions.unfinished(session_id)
        else:
            waiting = list(server.status().queued_runs)
        first = server.waits_for(waiting[0]) if server and waiting else None
        places = {run_id: place for place, run_id in enumerate(waiting, 1)}
        return words.Line(places, () if first is None else first[1])


def _session_id(request: Request) -> str:
    """The session's id in the path; `SessionNotFound` where it can be none."""
    session_id: str = request.path_params["id"]
    if not words.is_id(session_id):
        raise SessionNotFound(f"no session {session_id[:80]!r}")
    return session_id


def _run_id(request: Request) -> str:
    """The run's id in the path; `RunNotFound` where it can be none."""
    run_id: str = request.path_params["id"]
    if not words.is_id(run_id):
        raise RunNotFound(f"no run {run_id[:80]!r}")
    return run_id


def _same(session: Session, asked: words.NewSession) -> None:
    """`InvalidOperation` unless *session* is what *asked* would have made."""
    differs = [
        name
        for name, there, wanted in (
            ("agent", session.agent_id, asked.agent),
            ("maxConcurrentRuns", session.max_concurrent_runs, asked.max_concurrent_runs),
            ("maxQueuedRuns", session.max_queued_runs, asked.max_queued_runs),
            ("collision", session.collision, asked.collision),
            ("metadata", session.metadata, asked.metadata),
            ("tags", session.tags, asked.tags),
        )
        if there != wanted
    ]
    if differs:
        raise InvalidOperation(
            f"session {session.id!r} is there already, with another {', '.join(differs)}", differs=differs
        )
