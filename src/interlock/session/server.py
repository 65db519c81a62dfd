"""One session, served: runs wait in their order, start when there is room, and end once.

What changes the session goes through its store first; what is kept here is only who waits, who is in flight,
and who wants to know. A write whose outcome this must hear runs in a task of the server's own, so that a
caller who is cancelled leaves nothing half done.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakKeyDictionary, WeakSet

from interlock.clock import SystemClock
from interlock.core.runs import SESSION_ENDED
from interlock.errors import (
    AcquireTimeout,
    Draining,
    InterlockError,
    InvalidOperation,
    InvalidStatus,
    Unavailable,
    ValidationError,
)
from interlock.session.closing import Closing, finish_all
from interlock.session.controls import RunControls, error_of
from interlock.session.endings import Endings
from interlock.session.feed import subscribers
from interlock.session.intake import Intake, new_run
from interlock.session.patience import Writes, within
from interlock.session.readings import Blocking, Operations, RunResult, SessionStatus, result_of
from interlock.session.recovery import recover
from interlock.session.scheduler import Scheduler
from interlock.session.slots import FleetSlots
from interlock.session.subscription import Subscription, subscribe
from interlock.session.values import event, new_session

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from interlock.core.sessions import Collision, Retry, Session
    from interlock.governor import ConcurrencyGovernor
    from interlock.limiter import ConcurrencyLimiter
    from interlock.ports import Clock, Store
    from interlock.provider.gate import ProviderGate
    from interlock.session.attempt import Agent

_served: WeakKeyDictionary[Store, set[str]] = WeakKeyDictionary()
"""The sessions that are served in this process, by store: two servers would start the same runs."""


class SessionServer:
    """Serves one session of *store* with *agent*. Made by `start` and `attach`; ended by `close`."""

    def __init__(
        self,
        store: Store,
        agent: Agent,
        session: Session,
        *,
        limiter: ConcurrencyLimiter | None,
        clock: Clock,
        governor: ConcurrencyGovernor | None,
        gate: ProviderGate | None,
        cancel_grace: float,
    ) -> None:
        self.session_id = session.id
        self.store = store
        self.agent = agent
        self.session = session
        """As it was when this began to serve it."""
        self._clock = clock
        self._scheduler = Scheduler(
            agent,
            store,
            clock,
            FleetSlots(limiter, session.id, clock),
            max_concurrent=session.max_concurrent_runs,
            grace=cancel_grace,
            governor=governor,
            gate=gate,
            ended=self._ended,
        )
        self._controls = RunControls(store, clock, session.id, agent, self._scheduler, self._ended)
        self.intake = Intake(store, session, self._scheduler, self._controls)
        self._endings = Endings(store, session.id, clock)
        self._subscriptions: WeakSet[Subscription] = WeakSet()
        self._drains: set[object] = set()
        self._writes = Writes()
        self._closing = Closing(clock)

    @property
    def closed(self) -> bool:
        """Whether it serves no more, or is about to stop."""
        return self._closing.begun

    # -- beginning

    @classmethod
    async def start(
        cls,
        store: Store,
        agent: Agent,
        *,
        session_id: str | None = None,
        agent_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        max_concurrent_runs: int = 1,
        max_queued_runs: int = 100,
        limiter: ConcurrencyLimiter | None = None,
        clock: Clock | None = None,
        governor: ConcurrencyGovernor | None = None,
        gate: ProviderGate | None = None,
        collision: Collision = "enqueue",
        tags: Collection[str] = (),
        cancel_grace: float = 10.0,
    ) -> Self:
        """Create a session and serve it; one whose id is known goes on, with the bounds that are given now.

        Args:
            agent: ``async def agent(run)``, or an object with ``async def run(self, run)``.
            session_id: by default a new one.
            agent_id: the agent's name, kept with the session.
            max_concurrent_runs: how many of its runs may be in flight at once.
            max_queued_runs: how many more may wait.
            limiter: where the session and each of its runs take a slot of the fleet's; they wait for it.
            governor, gate: what the agent finds as ``run.governor`` and ``run.gate``.
            collision: what a new run does to the unfinished ones: ``enqueue`` waits behind them, ``reject``
                is refused, ``interrupt`` ends what is in flight, ``rollback`` cancels all of them.
            cancel_grace: seconds that an agent has to end when it is told to; then it is left to itself.

        Raises `ValidationError`, `InvalidStatus` for a session that has ended, `InvalidOperation` for one
        that is served already, and `StoreError`.
        """
        clock = clock or SystemClock()
        at = clock.now()
        wanted = new_session(
            session_id, agent_id, max_concurrent_runs, max_queued_runs, collision, metadata, tags, at
        )
        told = None if agent_id is None else {"agent": agent_id}
        first = [event("session_created", at, told), event("session_started", at)]
        stored = await store.create_session(wanted, first)
        return await cls._serve(
            store,
            agent,
            replace(stored, max_concurrent_runs=max_concurrent_runs, max_queued_runs=max_queued_runs),
            limiter=limiter,
            clock=clock,
            governor=governor,
            gate=gate,
            cancel_grace=cancel_grace,
        )

    @classmethod
    async def attach(
        cls,
        store: Store,
        agent: Agent,
        session_id: str,
        *,
        limiter: ConcurrencyLimiter | None = None,
        clock: Clock | None = None,
        governor: ConcurrencyGovernor | None = None,
        gate: ProviderGate | None = None,
        cancel_grace: float = 10.0,
    ) -> Self:
        """Serve a session that exists, as `start` does. Raises `SessionNotFound` where there is none."""
        return await cls._serve(
            store,
            agent,
            await store.get_session(session_id),
            limiter=limiter,
            clock=clock or SystemClock(),
            governor=governor,
            gate=gate,
            cancel_grace=cancel_grace,
        )

    @classmethod
    async def _serve(
        cls, store: Store, agent: Agent, session: Session, *, clock: Clock, **parts: Any
    ) -> Self:
        if not callable(getattr(agent, "run", agent)):
            raise ValidationError(
                f"agent is {type(agent).__name__}; allowed are async functions and objects with an async run"
            )
        if session.status in SESSION_ENDED:
            raise InvalidStatus(
                f"session {session.id!r} is {session.status}; start another", status=session.status
            )
        served = _served.setdefault(store, set())
        if session.id in served:
            raise InvalidOperation(f"session {session.id!r} is served already in this process")
        served.add(session.id)
        try:
            server = cls(store, agent, session, clock=clock, **parts)
            for run in await recover(store, session.id, clock):
                server._scheduler.add(run)
        except BaseException:
            served.discard(session.id)
            raise
        return server

    # -- runs

    async def submit_run(
        self,
        input: Mapping[str, Any],  # noqa: A002 - the word for it
        *,
        idempotency_key: str | None = None,
        timeout: float | None = None,
        priority: int = 0,
        retry: Retry | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> str:
        """Submit a run: its id, once it is durable.

        Args:
            input: what the agent finds as ``run.input``; a JSON object.
            idempotency_key: the same key again is the same run; with another body, `KeyReused`.
            timeout: seconds that the run may take once it has started; None for as long as it likes.
            priority: among the sessions that wait for the fleet's slots, the smallest goes first. The order
                within the session is always that of submission.
            retry: ``"on_crash"`` if it may run again where its server died in the middle of it.

        Raises `ValidationError`, `KeyReused`, `QueueFull`, `Draining`, `InvalidStatus` (``run_in_progress``,
        where the session rejects collisions), `StoreError`, and `Unavailable` once the server is closed.
        """
        self._check_open()
        if self._drains:
            raise Draining(f"session {self.session_id!r} is draining; submit again when that is over")
        run = new_run(
            self.session_id,
            self._clock.now(),
            input,
            idempotency_key=idempotency_key,
            timeout=timeout,
            priority=priority,
            retry=retry,
            metadata=metadata,
        )
        return await self._writes.finish(self.intake.submit(run))

    async def await_run(self, run_id: str, timeout: float | None = 60.0) -> RunResult:
        """The result of a run of this session, waiting *timeout* seconds for its end (None: for ever).

        Any number of callers may, at any time, also after a restart. Raises `RunFailed`, `RunTimedOut`,
        `RunCancelled` or `RunInterrupted` as the run ended, `AcquireTimeout` if it has not (it goes on),
        `RunNotFound`, and `Unavailable` if the server closed while it waited.
        """
        return result_of(await self._endings.wait(run_id, timeout, served=lambda: not self.closed))

    async def execute_run(
        self,
        input: Mapping[str, Any],  # noqa: A002 - the word for it
        timeout: float | None = 60.0,
        **options: Any,
    ) -> RunResult:
        """`submit_run` with *options*, and `await_run`."""
        return await self.await_run(await self.submit_run(input, **options), timeout)

    # -- what is done to runs

    async def cancel_run(self, run_id: str) -> None:
        """End a run: a queued one now, one in flight as soon as its agent stops, after the grace in any case.

        Of one that has ended, nothing changes. Raises `RunNotFound`, `StoreError`.
        """
        await self._writes.finish(self._controls.cancel(run_id))

    async def interrupt_run(self, run_id: str) -> None:
        """End a run that is in flight, as `cancel_run`. `RunNotFound` for any other."""
        self._controls.interrupt(run_id)

    async def pause_run(self, run_id: str) -> None:
        """Have the run wait at its next checkpoint; meanwhile its slots stay taken and its timeout goes on.

        Raises `CapabilityNotSupported` if the agent cannot, `InvalidOperation` for a run that has not started
        or has ended, `RunNotFound`.
        """
        await self._writes.finish(self._controls.pause(run_id, paused=True))

    async def resume_run(self, run_id: str) -> None:
        """Have a paused run go on; of one that is not paused, nothing changes. Raises as `pause_run`."""
        await self._writes.finish(self._controls.pause(run_id, paused=False))

    async def cancel_all(self, run_ids: Iterable[str] | None = None) -> dict[str, InterlockError | None]:
        """`cancel_run` for each of *run_ids*, by default for all that have not ended: the errors, or None."""
        scheduler = self._scheduler
        unfinished = [*scheduler.attempts, *(run.id for run in scheduler.queue)]
        chosen = unfinished if run_ids is None else list(run_ids)
        return {run_id: await error_of(self.cancel_run(run_id)) for run_id in chosen}

    async def interrupt_all(self) -> dict[str, InterlockError | None]:
        """`interrupt_run` for all that are in flight: the errors, or None."""
        return {
            run_id: await error_of(self.interrupt_run(run_id)) for run_id in list(self._scheduler.attempts)
        }

    def operations(self, run_id: str) -> Operations:
        """What was asked of a run in this server's life: the last hundred times."""
        return self._controls.operations.of(run_id)

    # -- the session

    def subscribe(
        self, from_sequence: int = 0, run_id: str | None = None, types: Collection[str] | None = None
    ) -> Subscription:
        """Every event from *from_sequence* on, each once and in order: ``async with … as events``.

        *run_id* and *types* leave out others. It ends with the session, or when this server closes.
        """
        self._check_open()
        events = subscribe(
            self.store,
            self.session_id,
            from_sequence=from_sequence,
            run_id=run_id,
            types=types,
            clock=self._clock,
        )
        self._subscriptions.add(events)
        return events

    def status(self) -> SessionStatus:
        """Who is in flight and who waits, as of now."""
        scheduler, session = self._scheduler, self.session
        return SessionStatus(
            session.id,
            tuple(scheduler.attempts),
            len(scheduler.attempts),
            tuple(run.id for run in scheduler.queue),
            len(scheduler.queue),
            session.max_concurrent_runs,
            session.max_queued_runs,
            subscribers(self.store, session.id),
        )

    def waits_for(self, run_id: str) -> tuple[int, list[Blocking]] | None:
        """The place in line of a run that waits (1 is next), and what has no room; None for any other."""
        for place, run in enumerate(self._scheduler.queue):
            if run.id == run_id:
                return place + 1, self._scheduler.blocking()
        return None

    async def drain(self, timeout: float | None = 60.0) -> bool:
        """Take nothing new until all runs have ended, then open again: True.

        Raises `AcquireTimeout` after *timeout* seconds (None: never); it is open again then, too.
        """
        if self._scheduler.idle and self._writes.idle:
            return True
        drain = object()
        self._drains.add(drain)
        try:
            async with within(self._clock, timeout):
                await self._writes.finished()  # a run that is being submitted is in no line yet
                await self._scheduler.emptied()
        except TimeoutError:
            raise self._drain_error() from None
        finally:
            self._drains.discard(drain)
        return True

    def _drain_error(self) -> AcquireTimeout:
        status = self.status()
        return AcquireTimeout(
            f"session {self.session_id!r} is not drained: {status.in_flight_count} runs are in flight and "
            f"{status.queued_count} wait",
            in_flight=list(status.in_flight_runs),
            queued=status.queued_count,
        )

    async def close(self, complete: bool = False, timeout: float | None = 10.0) -> None:
        """Stop serving. Runs that wait stay in the store for the next server of the session.

        Those in flight have *timeout* seconds to end by themselves, then they are interrupted. With
        *complete* the session ends for good; `InvalidOperation` if it has unfinished runs. Again is no error.
        """
        if complete and not self._scheduler.idle:
            raise self._unfinished()
        self._scheduler.stop()
        await self._closing.close(lambda: self._close(complete), self._interrupt_rest, timeout)

    async def _close(self, complete: bool) -> None:
        completed = False
        try:
            await self._writes.finished()
            await self._scheduler.quiet()
            if complete:
                if not self._scheduler.idle:  # submitted before we closed, stored after we looked
                    raise self._unfinished()
                at = self._clock.now()
                last = event("session_completed", at)
                await self.store.change_session(self.session_id, "complete", at, [last])
                completed = True
        finally:
            if not completed:  # else the log itself tells them that it is over
                await finish_all(self.store, self.session_id, self._subscriptions)
            self._endings.tell_all()
            _served.get(self.store, set()).discard(self.session_id)

    def _interrupt_rest(self) -> None:
        for attempt in self._scheduler.attempts.values():
            attempt.stop("interrupt", reason="close")

    def _unfinished(self) -> InvalidOperation:
        return InvalidOperation(f"session {self.session_id!r} has unfinished runs; drain it, or cancel them")

    async def wait_closed(self) -> None:
        """Return when a `close` that has begun is over; at once if there is none."""
        await self._closing.over()

    # -- one session among several processes

    @property
    def idle(self) -> bool:
        """Whether it has no run that has not ended."""
        return self._scheduler.idle and self._writes.idle

    async def forsake(self) -> None:
        """Stop at once and write nothing more: another process serves the session now."""
        self._scheduler.forsake()
        await self.close(timeout=None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exit_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        now = self.status()
        return (
            f"<SessionServer {self.session_id!r}: {now.in_flight_count} in flight, {now.queued_count} wait>"
        )

    # -- inside

    def _ended(self, run_id: str) -> None:
        self._endings.tell(run_id)

    def _check_open(self) -> None:
        if self.closed:
            raise Unavailable(f"session {self.session_id!r} is not served any more")
