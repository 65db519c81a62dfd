"""Sessions and runs for every language: made, submitted, waited for, and ended over plain HTTP.

What is read comes from the store, so that sessions which no agent works on can be read as well. What changes
something goes through the session's server, which is started where it is needed.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from interlock.core.runs import SESSION_ENDED
from interlock.errors import (
    AcquireTimeout,
    Draining,
    InterlockError,
    InvalidOperation,
    InvalidStatus,
    KeyReused,
    QueueFull,
    SessionNotFound,
    StoreError,
    Unavailable,
    ValidationError,
)
from interlock.http.access.caller import caller_of
from interlock.http.bodies import read_body
from interlock.http.endpoints import endpoint
from interlock.http.problems import json, problem
from interlock.http.queries import read_query
from interlock.http.ratelimit import RATE_LIMIT, RawHeaders, Room, rate_limit_fields
from interlock.http.sessions import words
from interlock.http.sessions.answers import (
    DrainedAnswer,
    RunAnswer,
    RunsPage,
    SessionAnswer,
    SessionsPage,
    SubmittedAnswer,
    WorkersAnswer,
    run_said,
    session_said,
    worker_said,
)
from interlock.http.sessions.pages import page
from interlock.http.sessions.reception import Reception, session_id_of
from interlock.http.waiting import poll, while_there
from interlock.session.feed import subscribers
from interlock.session.values import new_id

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from interlock.core.sessions import Run, Session
    from interlock.session.shared import ServedSession

log = logging.getLogger(__name__)


class SessionPath(msgspec.Struct):
    """A session."""

    id: words.Segment


_of_session = partial(endpoint, tag="sessions", within=SessionPath)
_OF_SESSION = {
    "GET /sessions/{id}": {"id": "id"},
    "POST /sessions/{id}/runs": {"id": "id"},
    "GET /sessions/{id}/runs": {"id": "id"},
    "GET /sessions/{id}/events": {"id": "id"},
    "POST /sessions/{id}/close": {"id": "id"},
}
_OF_RUN = {
    "GET /runs/{id}": {"id": "runId"},
    "GET /runs/{id}/wait": {"id": "runId"},
    "POST /runs/{id}/cancel": {"id": "runId"},
    "GET /sessions/{id}/events": {"id": "sessionId"},
}


class SessionRoutes:
    """The routes of sessions, and of the runs that are submitted to one."""

    def __init__(self, reception: Reception) -> None:
        self._reception = reception
        self._closing: set[asyncio.Task[Session]] = set()

    @endpoint(
        "POST /sessions",
        "submit",
        "Make a session",
        tag="sessions",
        body=words.NewSession,
        answers={200: SessionAnswer, 201: SessionAnswer},
        problems=(Draining, InvalidOperation, InvalidStatus, StoreError, Unavailable),
        links=_OF_SESSION,
    )
    async def create_session(self, request: Request) -> Response:
        """Made once: the same body again finds the session that is there."""
        sessions = self._reception.taking()
        asked = await read_body(request, words.NewSession, words.MOST_BYTES)
        caller = caller_of(request.scope)
        caller.check_name("id", asked.id)
        session_id = asked.id
        if session_id is None and caller.tenant is not None:
            session_id = new_id("ses") + caller.suffix
        if asked.agent not in (names := await sessions.agent_names()):
            known = ", ".join(sorted(names)) or "none"
            raise ValidationError(f"agent is {asked.agent[:80]!r}; configured are: {known}")
        there = None
        if asked.id is not None:
            with suppress(SessionNotFound):
                there = await sessions.store.get_session(asked.id)
                _same(there, asked)
        server = await sessions.start(
            session_id,
            agent=asked.agent,
            metadata=asked.metadata,
            max_concurrent_runs=asked.max_concurrent_runs,
            max_queued_runs=asked.max_queued_runs,
            collision=asked.collision,
            tags=asked.tags,
        )
        session = await sessions.store.get_session(server.session_id)
        return json(await self._session_said(session), 201 if there is None else 200)

    @endpoint(
        "GET /sessions",
        "read",
        "Sessions",
        tag="sessions",
        query=words.SessionsAsked,
        answers={200: SessionsPage},
        problems=(StoreError, Unavailable),
    )
    async def sessions(self, request: Request) -> Response:
        asked = read_query(request, words.SessionsAsked)
        store = self._reception.sessions.store
        caller = caller_of(request.scope)

        async def read(after: str | None, limit: int) -> list[Session]:
            if after is not None and not caller.owns(after):
                raise SessionNotFound(f"no session {after!r}")
            statuses = frozenset(asked.status) or None
            found: list[Session] = []
            while len(found) < limit:
                page = await store.list_sessions(statuses=statuses, after=after, limit=limit)
                found += [session for session in page if caller.owns(session.id)]
                if len(page) < limit:
                    break
                after = page[-1].id
            return found[:limit]

        async def said(found: list[Session]) -> list[SessionAnswer]:
            return [session_said(session) for session in found]

        return json(await page("sessions", read, said, after=asked.after, limit=asked.limit))

    @_of_session(
        "GET /sessions/{id}",
        "read",
        "A session",
        answers={200: SessionAnswer},
        problems=(SessionNotFound, StoreError, Unavailable),
    )
    async def session(self, request: Request) -> Response:
        return json(await self._session_said(await self._session(request)))

    @_of_session(
        "POST /sessions/{id}/drain",
        "submit",
        "Wait until a session has nothing to do",
        body=words.Drain,
        body_needed=False,
        answers={200: DrainedAnswer},
        problems=(
            AcquireTimeout,
            Draining,
            InvalidOperation,
            InvalidStatus,
            SessionNotFound,
            StoreError,
            Unavailable,
        ),
    )
    async def drain_session(self, request: Request) -> Response:
        """Wait until nothing is left to do; a client that leaves lets new runs in again."""
        session_id = session_id_of(request)
        asked = await read_body(request, words.Drain, otherwise=words.Drain())
        server = await self._reception.server(session_id)
        await poll(request, self._reception.desk, server.drain(timeout=asked.timeout_ms / 1000))
        return json({"drained": True})

    @_of_session(
        "POST /sessions/{id}/close",
        "submit",
        "End a session",
        body=words.Close,
        body_needed=False,
        answers={200: SessionAnswer},
        problems=(Draining, InvalidOperation, InvalidStatus, SessionNotFound, StoreError, Unavailable),
    )
    async def close_session(self, request: Request) -> Response:
        """End what runs here; it is done even if the client does not wait for it."""
        session = await self._session(request)
        asked = await read_body(request, words.Close, otherwise=words.Close())
        if session.status != "completed":
            work = self._reception.sessions.close(
                session.id, complete=asked.complete, timeout=asked.timeout_ms / 1000
            )
            task = asyncio.get_running_loop().create_task(work)
            self._closing.add(task)
            task.add_done_callback(self._closed)
            session = await while_there(request, self._reception.desk, task)
        return json(await self._session_said(session))

    def _closed(self, task: asyncio.Task[Session]) -> None:
        self._closing.discard(task)
        if not task.cancelled() and isinstance(task.exception(), InterlockError):
            log.info("a session was not closed: %s", task.exception())

    async def _session(self, request: Request) -> Session:
        return await self._reception.sessions.store.get_session(session_id_of(request))

    async def _session_said(self, session: Session) -> SessionAnswer:
        sessions, server = self._reception.sessions, self._reception.served(session.id)
        said = session_said(session)
        if sessions.shared and session.status not in SESSION_ENDED:
            flying, waiting = await sessions.unfinished(session.id)
        elif server is not None:
            status = server.status()
            flying, waiting = list(status.in_flight_runs), list(status.queued_runs)
        else:
            return said
        said["inFlightRuns"], said["queuedRuns"] = flying, waiting
        said["subscribers"] = subscribers(sessions.store, session.id)
        return said

    @endpoint(
        "GET /workers",
        "read",
        "Who serves the sessions",
        tag="sessions",
        answers={200: WorkersAnswer},
        problems=(StoreError, Unavailable),
    )
    async def workers(self, request: Request) -> Response:
        """None where this server alone does."""
        workers = await self._reception.sessions.workers()
        return json({"workers": [worker_said(one) for one in workers]})

    # -- runs

    @_of_session(
        "POST /sessions/{id}/runs",
        "submit",
        "Submit a run",
        headers=words.Submit,
        body=words.NewRun,
        answers={202: SubmittedAnswer},
        problems=(
            Draining,
            InvalidOperation,
            InvalidStatus,
            KeyReused,
            QueueFull,
            SessionNotFound,
            StoreError,
            Unavailable,
        ),
        answer_headers=RATE_LIMIT
        | {"Idempotent-Replay": "`true` if the key was used before: it is that run."},
        links=_OF_RUN,
    )
    async def submit_run(self, request: Request) -> Response:
        """Durable once it is answered; the same key again is the same run."""
        sessions = self._reception.taking()
        session_id, key = session_id_of(request), words.idempotency_key(request)
        asked = await read_body(request, words.NewRun, words.MOST_BYTES)
        caller = caller_of(request.scope)
        caller.check_priority(asked.priority)
        if self._reception.desk.budgets is not None:
            self._reception.desk.budgets.ask(caller)
        server, began = await self._reception.server(session_id), sessions.clock.now()
        try:
            run_id = await server.submit_run(
                asked.input,
                idempotency_key=key,
                timeout=None if asked.timeout_ms is None else asked.timeout_ms / 1000,
                priority=asked.priority,
                retry=asked.retry,
                metadata=asked.metadata,
            )
        except QueueFull as error:
            return problem(error, request.scope, _queue(server))
        run = await sessions.store.get_run(run_id)
        line = await self._reception.place(run)
        body: SubmittedAnswer = {
            "runId": run.id,
            "sessionId": run.session_id,
            "status": run.status,
            "position": None if line is None else line.places.get(run.id),
        }
        # What was submitted before we were asked was submitted by somebody who used the same key.
        replay = {"idempotent-replay": "true"} if run.submitted_at < began else None
        response = json(body, 202, replay)
        response.raw_headers += _queue(server)
        return response

    @_of_session(
        "GET /sessions/{id}/runs",
        "read",
        "The runs of a session",
        query=words.RunsAsked,
        answers={200: RunsPage},
        problems=(SessionNotFound, StoreError, Unavailable),
    )
    async def runs(self, request: Request) -> Response:
        asked = read_query(request, words.RunsAsked)
        session = await self._session(request)
        store = self._reception.sessions.store

        async def read(after: str | None, limit: int) -> list[Run]:
            return await store.list_runs(
                session.id, statuses=frozenset(asked.status) or None, after=after, limit=limit
            )

        async def said(found: list[Run]) -> list[RunAnswer]:
            waits = any(run.status == "pending" for run in found)
            line = await self._reception.line(session.id) if waits else None
            return [run_said(run, line) for run in found]

        return json(await page("runs", read, said, after=asked.after, limit=asked.limit))


def _queue(server: ServedSession) -> RawHeaders:
    """What is left of the session's queue."""
    status = server.status()
    room = status.max_queued_runs - status.queued_count
    return rate_limit_fields([Room("queued-runs", status.max_queued_runs, room)])


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
