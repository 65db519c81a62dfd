"""A worker: holds sessions of a store that others share, and serves each as if it were alone.

One lease covers all that a worker holds. While it runs, nobody else starts a run of those sessions; so
order, slots and collisions are decided as ever, by one `SessionServer`. What others submit, cancel or wish
comes in as rows: a hint says that there is something, and so does the round that renews the lease.

A worker that could not renew in time stops by itself, before the lease is over, and writes nothing more.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from interlock.core.runs import ENDED
from interlock.core.workers import Answer, Worker
from interlock.errors import InterlockError, InvalidStatus, RunNotFound, StoreError, Unavailable
from interlock.session.patience import settle, sleep
from interlock.session.server import SessionServer
from interlock.session.values import new_id

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from interlock.core.workers import Held, Wish
    from interlock.ports import Clock, SharedStore, TimerHandle
    from interlock.session.attempt import Agent

log = logging.getLogger(__name__)

LEASE: Final = 30.0
"""Seconds after which the sessions of a worker that is not heard of are others'."""
ROUND: Final = 1.0
"""Seconds between two looks at what there is to do, should no hint come."""
LINGER: Final = 5.0
"""Seconds for which a session without a run is kept: the next one may be near."""
_AT_ONCE: Final = 5
"""Sessions that are taken in one round at most, so that others find some, too."""
_BREATH: Final = 0.05
_SAFE: Final = 0.9
"""Of the lease: for so long a worker counts on it."""


class SessionWorker:
    """Serves sessions of *store* that need one of *agents*; begun by `start`, ended by `aclose`."""

    def __init__(
        self,
        store: SharedStore,
        agents: Mapping[str, Agent],
        *,
        clock: Clock,
        lease: float = LEASE,
        **parts: Any,
    ) -> None:
        self.store = store
        self._agents = agents
        self._clock = clock
        self._lease = lease
        self._parts = parts
        self._began = clock.now()
        self._id = new_id("worker")
        self._servers: dict[str, SessionServer] = {}
        self._held: dict[str, Held] = {}
        self._rested: dict[str, float] = {}
        """Since when a session has had no run."""
        self._busy: dict[str, bool] = {}
        """Sessions that are being looked at, and whether to look once more."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._main: asyncio.Task[None] | None = None
        self._waiting: asyncio.Future[None] | None = None
        self._woken = False
        self._deadline: TimerHandle | None = None
        self._draining = False
        self._unwatch: Callable[[], None] | None = None

    @property
    def running(self) -> Mapping[str, SessionServer]:
        """The sessions that are served here, by id."""
        return MappingProxyType(self._servers)

    def start(self) -> None:
        """Begin; again does nothing."""
        if self._main is not None:
            return
        self._unwatch = self.store.watch_work(self._hinted)
        self._main = asyncio.get_running_loop().create_task(self._run())

    async def aclose(self, timeout: float | None = 10.0) -> None:
        """Take nothing more, give what is in flight *timeout* seconds, and let all sessions go."""
        self._draining = True
        if self._unwatch is not None:
            self._unwatch()
        self._wake()
        closing = [
            asyncio.ensure_future(self._let_go(session_id, timeout)) for session_id in list(self._servers)
        ]
        if closing:
            await asyncio.wait(closing)
        if self._main is not None:
            self._main.cancel()  # it renewed the lease until here
            await asyncio.wait((self._main,))
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._deadline is not None:
            self._deadline.cancel()
        try:
            await self.store.let_go(self._id)
        except (StoreError, Unavailable) as error:
            log.warning("worker %s could not take leave, its lease will run out: %s", self._id, error)

    # -- rounds

    async def _run(self) -> None:
        while True:
            try:
                await self._round()
            except Unavailable:
                return
            except InterlockError as error:
                log.warning("worker %s could not renew its lease: %s", self._id, error)
            except Exception:
                log.exception("worker %s: a round failed, and nobody knows why", self._id)
            await self._pause()

    async def _round(self) -> None:
        asked = self._clock.now()
        me = Worker(
            self._id,
            socket.gethostname(),
            os.getpid(),
            tuple(sorted(self._agents)),
            self._began,
            self._draining,
        )
        held = await self.store.hold(me, self._lease, most=0 if self._draining else _AT_ONCE)
        if me.id != self._id:  # it took so long that we gave the lease up
            await self.store.let_go(me.id)
            return
        if held is None:
            self._lost()
            return
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self._clock.call_at(asked + _SAFE * self._lease, self._lost)
        before, self._held = self._held, dict(held)
        for session_id, server in list(self._servers.items()):
            now = held.get(session_id)
            if now is None or now.fence != before[session_id].fence:
                self._forsake(session_id, server)
        for session_id in held:
            self._look(session_id)
        if len(held) - len(before) >= _AT_ONCE:
            self._wake()

    def _lost(self) -> None:
        """The lease has run out, or may have: stop all, and begin anew under another name."""
        if self._held:
            log.warning("worker %s lost its lease; %d sessions are others' now", self._id, len(self._held))
        self._id = new_id("worker")
        self._held = {}
        for session_id, server in list(self._servers.items()):
            self._forsake(session_id, server)
        self._wake()

    def _forsake(self, session_id: str, server: SessionServer) -> None:
        del self._servers[session_id]
        self._rested.pop(session_id, None)
        self._spawn(server.forsake())

    async def _pause(self) -> None:
        """Wait for a hint, at most for a round; and always so long that hints cannot drive us."""
        await sleep(self._clock, min(_BREATH, self._lease / 10))
        if not self._woken:
            waiting = self._waiting = asyncio.get_running_loop().create_future()
            every = min(ROUND, self._lease / 3)
            timer = self._clock.call_at(self._clock.now() + every, lambda: settle(waiting))
            try:
                await waiting
            finally:
                timer.cancel()
        self._woken = False

    def _wake(self) -> None:
        self._woken = True  # also where nobody waits just now
        if self._waiting is not None:
            settle(self._waiting)

    def _hinted(self, session_id: str | None) -> None:
        if session_id in self._servers:
            self._look(session_id, hinted=True)
        else:
            self._wake()

    # -- one session

    def _look(self, session_id: str, *, hinted: bool = False) -> None:
        """See to the session, unless nothing is to be done; once more if somebody does already."""
        if session_id in self._busy:
            self._busy[session_id] = True
        elif hinted or self._needs(session_id):
            self._busy[session_id] = False
            self._spawn(self._see_to(session_id))

    def _needs(self, session_id: str) -> bool:
        server, held = self._servers.get(session_id), self._held.get(session_id)
        if server is None:
            return held is not None and not self._draining
        if held is not None and (held.wished or held.runs > server.intake.latest):
            return True
        if not server.idle:
            self._rested.pop(session_id, None)
            return False
        return self._clock.now() - self._rested.setdefault(session_id, self._clock.now()) >= LINGER

    async def _see_to(self, session_id: str) -> None:
        try:
            while True:
                self._busy[session_id] = False
                await self._serve(session_id)
                if not self._busy[session_id]:
                    return
        except Unavailable:
            pass
        except InterlockError as error:
            log.warning("session %s is not served as it should be: %s", session_id, error)
        finally:
            del self._busy[session_id]

    async def _serve(self, session_id: str) -> None:
        server = self._servers.get(session_id)
        if server is None:
            server = await self._open(session_id)
            if server is None:
                return
        held = self._held.get(session_id)
        await server.intake.adopt(self.store, 0 if held is None else held.runs)
        for wish in await self.store.wishes(session_id):
            await self.store.answer(wish.key, await self._do(server, wish), session_id)
        if server.idle and self._clock.now() - self._rested.get(session_id, self._clock.now()) >= LINGER:
            await self._let_go(session_id, 0.0)

    async def _open(self, session_id: str) -> SessionServer | None:
        if self._draining or session_id not in self._held:
            return None
        me, agent_id = self._id, (await self.store.get_session(session_id)).agent_id
        agent = self._agents.get(agent_id or "")
        if agent is None:
            await self.store.let_go(me, (session_id,))
            return None
        server = await SessionServer.attach(self.store, agent, session_id, clock=self._clock, **self._parts)
        if me != self._id or session_id not in self._held or self._draining:
            await server.forsake()  # lost while we asked
            return None
        self._servers[session_id] = server
        return server

    async def _do(self, server: SessionServer, wish: Wish) -> Answer:
        """Do what is wished; what becomes of it."""
        verbs: dict[str, Any] = {
            "cancel": server.cancel_run,
            "interrupt": server.interrupt_run,
            "pause": server.pause_run,
            "resume": server.resume_run,
        }
        try:
            await verbs[wish.verb](wish.run_id)
        except RunNotFound as error:
            found = await self.store.get_run(wish.run_id)
            ended = InvalidStatus(f"run {wish.run_id!r} is {found.status}, not in flight")
            told = ended if found.status in ENDED or wish.verb != "cancel" else error
            return Answer(told.code, told.message)
        except StoreError:
            raise
        except InterlockError as error:
            return Answer(error.code, error.message)
        return Answer()

    async def _let_go(self, session_id: str, timeout: float | None) -> None:
        """Serve the session no more, and let others have it."""
        server = self._servers.get(session_id)
        if server is None:
            return
        await server.close(timeout=timeout)
        if self._servers.get(session_id) is not server:
            return
        del self._servers[session_id]
        self._held.pop(session_id, None)
        self._rested.pop(session_id, None)
        try:
            await self.store.let_go(self._id, (session_id,))
        except StoreError as error:
            log.warning("session %s could not be let go: %s", session_id, error)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a session of worker %s: %r", self._id, error)
