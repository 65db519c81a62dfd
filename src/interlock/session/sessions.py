"""Every session of one store: started, found again, and all of them closed at the end.

Where other processes use the store, too, sessions are served by workers: by one of this process, if it has
agents, or by any other.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from contextlib import suppress
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from interlock.core.runs import IN_FLIGHT, SESSION_ENDED
from interlock.errors import (
    InterlockError,
    InvalidOperation,
    InvalidStatus,
    SessionNotFound,
    Unavailable,
    ValidationError,
)
from interlock.ports import SharedStore
from interlock.session.recovery import PENDING, recover
from interlock.session.server import SessionServer
from interlock.session.shared import SharedSession
from interlock.session.values import event, new_id, new_session, plain_object
from interlock.session.worker import LEASE, SessionWorker

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from interlock.core.sessions import Collision, Session
    from interlock.core.workers import Worker
    from interlock.governor import ConcurrencyGovernor
    from interlock.limiter import ConcurrencyLimiter
    from interlock.ports import Clock, Store
    from interlock.provider.gate import ProviderGate
    from interlock.session.attempt import Agent
    from interlock.session.shared import ServedSession

log = logging.getLogger(__name__)


class Sessions:
    """The sessions of *store*, served with *agents* by the names that they were started with."""

    def __init__(
        self,
        store: Store,
        agents: Mapping[str, Agent],
        *,
        clock: Clock,
        limiter: ConcurrencyLimiter | None = None,
        governor: ConcurrencyGovernor | None = None,
        gate: ProviderGate | None = None,
        lease: float = LEASE,
    ) -> None:
        self.store = store
        self.agents = agents
        self.clock = clock
        self._parts: dict[str, Any] = {"limiter": limiter, "governor": governor, "gate": gate, "clock": clock}
        self._running: dict[str, SessionServer] = {}
        self._opening: dict[str, asyncio.Task[SessionServer]] = {}
        self._closed = False
        self._drains: Counter[str] = Counter()
        self._shared = store if isinstance(store, SharedStore) else None
        self.worker: SessionWorker | None = None
        """What serves sessions of a shared store here, if this process has agents."""
        if self._shared is not None and agents:
            self.worker = SessionWorker(self._shared, agents, lease=lease, **self._parts)

    @property
    def shared(self) -> bool:
        """Whether other processes use the store as well."""
        return self._shared is not None

    @property
    def running(self) -> Mapping[str, SessionServer]:
        """Those that are served here now, by id."""
        return MappingProxyType(self._running) if self.worker is None else self.worker.running

    async def workers(self) -> list[Worker]:
        """Who serves the sessions, where other processes use the store as well."""
        return [] if self._shared is None else await self._shared.workers()

    async def unfinished(self, session_id: str) -> tuple[list[str], list[str]]:
        """The ids of the runs in flight and of those that wait, in their order, as the store has them."""
        if self._shared is not None:
            return await self._shared.unfinished(session_id)
        runs = await self.store.list_runs(session_id, statuses=(*PENDING, *IN_FLIGHT))
        flying = [run.id for run in runs if run.status in IN_FLIGHT]
        return flying, [run.id for run in runs if run.status not in IN_FLIGHT]

    async def agent_names(self) -> set[str]:
        """The agents that a session may be started with: those of this process and of every worker."""
        offered = (one.agents for one in await self.workers() if one.alive)
        return {*self.agents, *(name for names in offered for name in names)}

    async def start(
        self,
        session_id: str | None = None,
        *,
        agent: str,
        metadata: Mapping[str, Any] | None = None,
        max_concurrent_runs: int = 1,
        max_queued_runs: int = 100,
        collision: Collision = "enqueue",
        tags: Collection[str] = (),
    ) -> ServedSession:
        """Create a session that *agent* works for, as `SessionServer.start`; the same again is the same.

        Raises `InvalidOperation` where the id belongs to a session that was created otherwise.
        """
        if agent not in self.agents and agent not in (names := await self.agent_names()):
            known = ", ".join(sorted(names)) or "none: add [agents.…] to the configuration"
            raise ValidationError(f"agent {agent!r} is not configured; known are {known}")
        asked = {
            "agent_id": agent,
            "metadata": plain_object("metadata", metadata),
            "max_concurrent_runs": max_concurrent_runs,
            "max_queued_runs": max_queued_runs,
            "collision": collision,
            "tags": tuple(tags),
        }
        if self._shared is not None:
            return await self._started(self._shared, session_id, asked)
        server = self._serving(session_id)
        if server is None:
            if session_id is not None:
                with suppress(SessionNotFound):
                    _check_same(await self.store.get_session(session_id), asked)
            server = await self._opened(session_id, agent, asked)
        _check_same(server.session, asked)
        return server

    async def _started(
        self, store: SharedStore, session_id: str | None, asked: dict[str, Any]
    ) -> SharedSession:
        at = self.clock.now()
        first = [event("session_created", at, {"agent": asked["agent_id"]}), event("session_started", at)]
        stored = await store.create_session(new_session(session_id, **asked, at=at), first)
        _check_same(stored, asked)
        _check_open(stored)
        return SharedSession(store, stored, self.clock, self._drains)

    async def _opened(self, session_id: str | None, agent: str, asked: dict[str, Any]) -> SessionServer:
        session_id = session_id or new_id("ses")
        starting = SessionServer.start(
            self.store, self.agents[agent], session_id=session_id, **self._parts, **asked
        )
        return await self._once(session_id, starting)

    async def get(self, session_id: str) -> ServedSession:
        """The session, served from now on if it was not; one that closes, as long as it has runs in flight.

        Raises `SessionNotFound`, `InvalidStatus` where it has ended, `InvalidOperation` where its agent is
        not configured any more.
        """
        if self._shared is not None:
            session = await self._shared.get_session(session_id)
            _check_open(session)
            return SharedSession(self._shared, session, self.clock, self._drains)
        server = self._serving(session_id)
        if server is not None:
            return server
        closing = self._running.get(session_id)
        if closing is not None:
            if closing.status().in_flight_count:
                return closing  # what it still does can be cancelled and resumed; it takes nothing new
            await closing.wait_closed()
        session = await self.store.get_session(session_id)
        agent = self.agents.get(session.agent_id or "")
        if agent is None and session.status not in SESSION_ENDED:
            raise InvalidOperation(
                f"the agent {session.agent_id!r} of session {session_id!r} is not configured any more"
            )
        return await self._once(
            session_id, SessionServer.attach(self.store, agent, session_id, **self._parts)
        )

    async def of_run(self, run_id: str) -> ServedSession:
        """The session of this run, served. Raises `RunNotFound`, and as `get`."""
        return await self.get((await self.store.get_run(run_id)).session_id)

    async def recover(self) -> int:
        """Serve every session that has unfinished runs; how many there are.

        Runs of sessions whose agent is not configured any more are settled and wait. Of a shared store all of
        this is what workers do: the one of this process begins, and 0 is returned.
        """
        if self._shared is not None:
            if self.worker is not None:
                self.worker.start()
            return 0
        unfinished = await self.store.list_runs(statuses=(*PENDING, *IN_FLIGHT))
        found = 0
        for session_id in dict.fromkeys(run.session_id for run in unfinished):
            try:
                await self.get(session_id)
                found += 1
            except InterlockError as error:
                log.warning("session %s is not served: %s", session_id, error)
                await recover(self.store, session_id, self.clock)
        return found

    async def close(
        self, session_id: str, *, complete: bool = False, timeout: float | None = 10.0
    ) -> Session:
        """Close the session's server, as `SessionServer.close`; the session as it is then."""
        if self._shared is not None:
            await (await self.get(session_id)).close(complete)
        elif complete or self._serving(session_id) is not None:
            server = await self.get(session_id)
            try:
                await server.close(complete, timeout)
            except InvalidOperation:
                if server.closed:  # a run came in while it closed: that shall not have to wait for a visitor
                    await self.get(session_id)
                raise
            if self._running.get(session_id) is server:
                del self._running[session_id]
        return await self.store.get_session(session_id)

    async def aclose(self, timeout: float | None = 10.0) -> None:
        """Close all servers; what waits stays in the store."""
        self._closed = True
        if self.worker is not None:
            await self.worker.aclose(timeout)
        opening = list(self._opening.values())
        if opening:
            await asyncio.wait(opening)
        servers = list(self._running.values())
        closing = [asyncio.ensure_future(server.close(timeout=timeout)) for server in servers]
        if closing:
            await asyncio.wait(closing)
        self._running.clear()
        for closed in closing:
            closed.result()

    # -- inside

    def _serving(self, session_id: str | None) -> SessionServer | None:
        server = None if session_id is None else self._running.get(session_id)
        return None if server is None or server.closed else server

    async def _once(self, session_id: str, opening: Any) -> SessionServer:
        """What *opening* gives, or who is opened under this id already."""
        if self._closed:
            opening.close()
            raise Unavailable("the sessions are closed")
        server, task = self._serving(session_id), self._opening.get(session_id)
        if server is not None or task is not None:
            opening.close()
        if server is not None:  # opened while we asked the store
            return server
        if task is None:
            task = asyncio.get_running_loop().create_task(opening)
            self._opening[session_id] = task
            task.add_done_callback(lambda task: self._was_opened(session_id, task))
        await asyncio.wait((task,))
        return task.result()

    def _was_opened(self, session_id: str, task: asyncio.Task[SessionServer]) -> None:
        del self._opening[session_id]
        if not task.cancelled() and task.exception() is None:
            self._served(task.result())

    def _served(self, server: SessionServer) -> SessionServer:
        self._running[server.session_id] = server
        return server


def _check_open(session: Session) -> None:
    if session.status in SESSION_ENDED:
        raise InvalidStatus(
            f"session {session.id!r} is {session.status}; start another", status=session.status
        )


def _check_same(session: Session, asked: dict[str, Any]) -> None:
    """`InvalidOperation`, if the session was created otherwise than it is *asked* for now."""
    for name, value in asked.items():
        stored = getattr(session, name)
        if stored != value:
            raise InvalidOperation(
                f"session {session.id!r} exists with {name} {stored!r}; {value!r} was asked for"
            )
