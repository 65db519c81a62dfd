"""What is done to a run by others than its agent: cancel, interrupt, pause, resume."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from interlock.core.runs import ENDED
from interlock.core.sessions import RunChange
from interlock.errors import CapabilityNotSupported, InterlockError, InvalidOperation, RunNotFound
from interlock.session.readings import OperationLog
from interlock.session.tally import note_end
from interlock.session.values import run_event

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from interlock.core.sessions import Run
    from interlock.ports import Clock, Store
    from interlock.session.attempt import Agent
    from interlock.session.scheduler import Scheduler


class RunControls:
    """The operations on the runs of one session, and a log of them."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        session_id: str,
        agent: Agent,
        scheduler: Scheduler,
        ended: Callable[[str], None],
    ) -> None:
        self.operations = OperationLog()
        self._store = store
        self._clock = clock
        self._session_id = session_id
        self._can_pause = "pause" in getattr(agent, "capabilities", ())
        self._scheduler = scheduler
        self._ended = ended

    async def cancel(self, run_id: str) -> None:
        """See `SessionServer.cancel_run`."""
        attempt = self._scheduler.attempts.get(run_id)
        if attempt is not None:
            attempt.stop("cancel")
        elif not await self._cancel_queued(run_id):
            return
        self._note(run_id, "cancel", "cancelled")

    async def _cancel_queued(self, run_id: str, **data: Any) -> bool:
        """Whether the run was cancelled: it had not ended before."""
        while True:
            run = await own_run(self._store, self._session_id, run_id)
            if run.status in ENDED:
                return False
            attempt = self._scheduler.attempts.get(run_id)
            if attempt is not None:  # it was started while we asked
                attempt.stop("cancel", **data)
                return True
            at = self._clock.now()
            change = RunChange("cancel", at, run.attempt)
            ended = await self._store.change_run(run_id, change, [run_event("cancel", at, run_id, data)])
            if ended is not None:
                note_end(self._store, ended)
                self._scheduler.remove(run_id)
                self._ended(run_id)
                return True

    def interrupt(self, run_id: str) -> None:
        """See `SessionServer.interrupt_run`."""
        attempt = self._scheduler.attempts.get(run_id)
        if attempt is None:
            raise RunNotFound(f"Run not in flight: {run_id}", run_id=run_id)
        attempt.stop("interrupt", reason="requested")
        self._note(run_id, "interrupt", "interrupted")

    async def pause(self, run_id: str, *, paused: bool) -> None:
        """See `SessionServer.pause_run`."""
        verb = "pause" if paused else "resume"
        if not self._can_pause:
            raise CapabilityNotSupported(
                f"the agent of session {self._session_id!r} cannot {verb}: it has no capability 'pause'"
            )
        attempt = self._scheduler.attempts.get(run_id)
        if attempt is None or attempt.ended or attempt.stopping is not None:
            run = await own_run(self._store, self._session_id, run_id)
            status = run.status if attempt is None else "ending"
            raise InvalidOperation(f"run {run_id!r} is {status}; only one in flight can {verb}")
        if attempt.paused == paused:
            return
        attempt.pause(paused)
        change = RunChange("pause" if paused else "resume", self._clock.now(), attempt.run.attempt)
        await self._store.change_run(run_id, change)
        self._note(run_id, verb, "paused" if paused else "running")

    async def make_way(self, earlier: Iterable[str], run_id: str, *, rollback: bool) -> None:
        """End the runs before *run_id*: what is in flight, or with *rollback* all of them."""
        for other in earlier:
            attempt = self._scheduler.attempts.get(other)
            if attempt is not None:
                if rollback:
                    attempt.stop("cancel", by=run_id, rolled_back=True)
                else:
                    attempt.stop("interrupt", reason="requested", by=run_id)
            elif rollback:
                await self._cancel_queued(other, by=run_id, rolled_back=True)

    def _note(self, run_id: str, operation: str, state: str) -> None:
        known = self.operations.of(run_id)
        if known.state != state:  # the same again is no news
            self.operations.note(run_id, operation, self._clock.now(), state)


async def own_run(store: Store, session_id: str, run_id: str) -> Run:
    """The run, if it is this session's; `RunNotFound` otherwise."""
    run = await store.get_run(run_id)
    if run.session_id != session_id:
        raise RunNotFound(f"run {run_id!r} is another session's", run_id=run_id)
    return run


async def error_of(work: Awaitable[None]) -> InterlockError | None:
    """What *work* raised, if it was an error of ours."""
    try:
        await work
    except InterlockError as error:
        return error
    return None
