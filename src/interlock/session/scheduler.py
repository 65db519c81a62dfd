"""Which run of a session starts when: in the order of submission, as the slots allow.

Only the first of those who wait asks the fleet for a slot. So the order of the starts is that of the
submissions, whatever their priorities; a priority counts among the sessions.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Any

from interlock.errors import InterlockError
from interlock.session.attempt import Attempt
from interlock.session.context import RunContext
from interlock.session.patience import Backoff, settle
from interlock.session.readings import Blocking

if TYPE_CHECKING:
    from collections.abc import Callable

    from interlock.core.sessions import Run
    from interlock.governor import ConcurrencyGovernor
    from interlock.ports import Clock, Store
    from interlock.provider.gate import ProviderGate
    from interlock.session.attempt import Agent
    from interlock.session.slots import FleetSlots

log = logging.getLogger(__name__)


class Scheduler:
    """The runs of one session that have not ended. *ended* is called with each that has."""

    def __init__(
        self,
        agent: Agent,
        store: Store,
        clock: Clock,
        slots: FleetSlots,
        *,
        max_concurrent: int,
        grace: float,
        governor: ConcurrencyGovernor | None,
        gate: ProviderGate | None,
        ended: Callable[[str], None],
    ) -> None:
        self.queue: deque[Run] = deque()
        self.attempts: dict[str, Attempt] = {}
        """In flight, those included whose start is being written."""
        self.max_concurrent = max_concurrent
        self._agent = agent
        self._store = store
        self._clock = clock
        self._slots = slots
        self._grace = grace
        self._governor = governor
        self._gate = gate
        self._ended = ended
        self._starter: asyncio.Task[None] | None = None
        self._asking = False
        """Whether the starter waits for the fleet's slots, and for nothing else."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = False
        self._idle: set[asyncio.Future[None]] = set()

    # -- what is asked of it

    @property
    def idle(self) -> bool:
        """Whether no run is left to end."""
        return not self.queue and not self.attempts

    def add(self, run: Run) -> None:
        """*run* waits now, behind the others."""
        self.queue.append(run)
        self.kick()

    def remove(self, run_id: str) -> None:
        """The run waits no more; if it was first, whoever asks for it is called off."""
        for place, run in enumerate(self.queue):
            if run.id == run_id:
                del self.queue[place]
                if place == 0 and self._asking and self._starter is not None:
                    self._starter.cancel()
                break
        self._settle()

    def stop(self) -> None:
        """Start nothing more; what waits is left in the store."""
        self._stopped = True
        if self._asking and self._starter is not None:
            self._starter.cancel()

    def forsake(self) -> None:
        """Stop at once, and leave all as it is: the session is another's now."""
        self.stop()
        self.queue.clear()
        for attempt in list(self.attempts.values()):
            attempt.forsake()

    def kick(self) -> None:
        """Start what can start."""
        if self._starter is None and self._startable():
            self._starter = asyncio.get_running_loop().create_task(self._start())
            self._starter.add_done_callback(self._started)

    async def quiet(self) -> None:
        """Return when no attempt is under way and none is about to be."""
        while self._tasks or self._starter is not None:
            tasks: set[asyncio.Task[Any]] = set(self._tasks)
            if self._starter is not None:
                tasks.add(self._starter)
            await asyncio.wait(tasks)

    async def emptied(self) -> None:
        """Return when no run is left to end."""
        while not self.idle:
            waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._idle.add(waiting)
            try:
                await waiting
            finally:
                self._idle.discard(waiting)

    def blocking(self) -> list[Blocking]:
        """What the first of those who wait waits for; nothing, if it is about to start."""
        if len(self.attempts) >= self.max_concurrent:
            return [Blocking("session", len(self.attempts), self.max_concurrent)]
        return self._slots.blocking()

    # -- starting

    def _startable(self) -> bool:
        return bool(self.queue) and not self._stopped and len(self.attempts) < self.max_concurrent

    async def _start(self) -> None:
        while self._startable():
            run = self.queue[0]
            since = self._clock.now()
            self._asking = True
            try:
                waited = await self._take_slots(run)
            finally:
                self._asking = False
            if not self._startable() or self.queue[0] is not run:
                self._slots.give(run.id)
                continue
            self.queue.popleft()
            attempt = Attempt(run, self._agent, self._store, self._clock, self._grace)
            self.attempts[run.id] = attempt
            # All of its time in line before it was first and had a place belongs to the session.
            in_session = max(0.0, since - run.submitted_at)
            total = max(0.0, self._clock.now() - run.submitted_at)
            if await attempt.begin(total, {"session": in_session, **waited}):
                task = asyncio.get_running_loop().create_task(self._perform(attempt))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            else:
                self._finish(attempt)

    async def _take_slots(self, run: Run) -> dict[str, float]:
        backoff = Backoff(self._clock)
        while True:
            try:
                return await self._slots.take(run)
            except InterlockError as error:
                # Its limiter is closed or out of reach, or somebody released the session while we asked.
                log.warning("run %s waits: its slots could not be taken: %s", run.id, error)
            await backoff.pause()

    def _started(self, starter: asyncio.Task[None]) -> None:
        self._starter = None
        self.kick()
        self._settle()
        if not starter.cancelled():
            starter.result()

    async def _perform(self, attempt: Attempt) -> None:
        try:
            run = attempt.run
            context = RunContext(run, attempt, self._store, self._clock, self._governor, self._gate)
            await attempt.perform(context)
        finally:
            self._finish(attempt)

    def _finish(self, attempt: Attempt) -> None:
        run_id = attempt.run.id
        self._slots.give(run_id)
        del self.attempts[run_id]
        self._ended(run_id)
        self.kick()
        self._settle()

    def _settle(self) -> None:
        """If there is nothing left, give the session's slot back and tell who waits for that."""
        if self.idle or (self._stopped and not self.attempts):
            self._slots.rest()
        if self.idle:
            for waiting in self._idle:
                settle(waiting)
