"""Every session of one store: started, found again, and all of them closed at the end."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from interlock.core.runs import IN_FLIGHT, SESSION_ENDED
from interlock.errors import InterlockError, InvalidOperation, SessionNotFound, Unavailable, ValidationError
from interlock.session.recovery import PENDING, recover
from interlock.session.server import SessionServer
from interlock.session.values import new_id, plain_object

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from interlock.core.sessions import Collision, Session
    from interlock.governor import ConcurrencyGovernor
    from interlock.limiter import ConcurrencyLimiter
    from interlock.ports import Clock, Store
    from interlock.provider.gate import ProviderGate
    from interlock.session.attempt import Agent

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
    ) -> None:
        self.store = store
        self.agents = agents
        self.clock = clock
        self._parts: dict[str, Any] = {"limiter": limiter, "governor": governor, "gate": gate, "clock": clock}
        self._running: dict[str, SessionServer] = {}
        self._opening: dict[str, asyncio.Task[SessionServer]] = {}
        self._closed = False

    @property
    def running(self) -> Mapping[str, SessionServer]:
        """Those that are served now, by id."""
        return MappingProxyType(self._running)

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
    ) -> SessionServer:
        """Create a session that *agent* works for, as `SessionServer.start`; the same again is the same.

        Raises `InvalidOperation` where the id belongs to a session that was created otherwise.
        """
        if agent not in self.agents:
            known = ", ".join(sorted(self.agents)) or "none: add [agents.…] to the configuration"
            raise ValidationError(f"agent {agent!r} is not configured; known are {known}")
        asked = {
            "agent_id": agent,
            "metadata": plain_object("metadata", metadata),
            "max_concurrent_runs": max_concurrent_runs,
            "max_queued_runs": max_queued_runs,
            "collision": collision,
            "tags": tuple(tags),
        }
        server = self._serving(session_id)
        if server is None:
            if session_id is not None:
                with suppress(SessionNotFound):
                    _check_same(await self.store.get_session(session_id), asked)
            server = await self._opened(session_id, agent, asked)
        _check_same(server.session, asked)
        return server

    async def _opened(self, session_id: str | None, agent: str, asked: dict[str, Any]) -> SessionServer:
        session_id = session_id or new_id("ses")
        starting = SessionServer.start(
            self.store, self.agents[agent], session_id=session_id, **self._parts, **asked
        )
        return await self._once(session_id, starting)

    async def get(self, session_id: str) -> SessionServer:
        """The session, served from now on if it was not; one that closes, as long as it has runs in flight.

        Raises `SessionNotFound`, `InvalidStatus` where it has ended, `InvalidOperation` where its agent is
        not configured any more.
        """
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

    async def of_run(self, run_id: str) -> SessionServer:
        """The session of this run, served. Raises `RunNotFound`, and as `get`."""
        return await self.get((await self.store.get_run(run_id)).session_id)

    async def recover(self) -> int:
        """Serve every session that has unfinished runs; how many there are.

        Runs of sessions whose agent is not configured any more are settled and wait.
        """
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
        if complete or self._serving(session_id) is not None:
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


def _check_same(session: Session, asked: dict[str, Any]) -> None:
    """`InvalidOperation`, if the session was created otherwise than it is *asked* for now."""
    for name, value in asked.items():
        stored = getattr(session, name)
        if stored != value:
            raise InvalidOperation(
                f"session {session.id!r} exists with {name} {stored!r}; {value!r} was asked for"
            )
