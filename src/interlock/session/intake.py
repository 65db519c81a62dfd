"""How a run comes into its session: durable first, then in line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from interlock.admission.callback import call_back
from interlock.errors import InterlockError, InvalidStatus, KeyReused, QueueFull
from interlock.session.readings import Blocking
from interlock.session.tally import tally_of
from interlock.session.values import event

if TYPE_CHECKING:
    from interlock.core.sessions import Run, Session
    from interlock.ports import Store
    from interlock.session.controls import RunControls
    from interlock.session.scheduler import Scheduler


class Intake:
    """Takes the runs of one session. The store numbers them, and decides whether there is room."""

    def __init__(self, store: Store, session: Session, scheduler: Scheduler, controls: RunControls) -> None:
        self._store = store
        self._session = session
        self._scheduler = scheduler
        self._controls = controls
        self._room = session.max_concurrent_runs + session.max_queued_runs
        if session.collision == "reject":
            self._room = 1
        elif session.collision != "enqueue":
            self._room += session.max_concurrent_runs  # what it ends makes way for it

    async def submit(self, run: Run) -> str:
        """Take *run*: its id, or that of the run which had its key first.

        Raises `KeyReused`, `QueueFull`, `InvalidStatus`, and what the store raises.
        """
        scheduler, collision = self._scheduler, self._session.collision
        ahead = len(scheduler.queue)
        blocking = scheduler.blocking() or ([self._own_slots()] if ahead else [])
        told = {"position": ahead + 1, "waits_for": [one.as_data() for one in blocking]}
        queued = event("run_queued", run.submitted_at, told, run.id)
        try:
            stored, new = await self._store.submit_run(run, [queued], room=self._room)
        except QueueFull as refused:
            raise self._refused(refused) from None
        if not new:
            _check_same(stored, run)
            return stored.id
        for told_of in tally_of(self._store).on_submit:
            call_back(told_of, stored)
        earlier = [*scheduler.attempts, *(one.id for one in scheduler.queue)]
        scheduler.add(stored)
        if collision in ("interrupt", "rollback"):
            await self._controls.make_way(earlier, stored.id, rollback=collision == "rollback")
        return stored.id

    def _own_slots(self) -> Blocking:
        return Blocking("session", len(self._scheduler.attempts), self._session.max_concurrent_runs)

    def _refused(self, refused: QueueFull) -> InterlockError:
        session = self._session
        if session.collision == "reject":
            return InvalidStatus(
                f"session {session.id!r} has an unfinished run and rejects another", code="run_in_progress"
            )
        flying, waiting = session.max_concurrent_runs, session.max_queued_runs
        return QueueFull(
            f"session {session.id!r} is full: {flying} runs may be in flight and {waiting} more may wait",
            **refused.details,
        )


def _check_same(stored: Run, asked: Run) -> None:
    """`KeyReused`, if the key that found *stored* was for something else."""
    for name in ("input", "metadata", "priority", "timeout", "retry"):
        if getattr(stored, name) != getattr(asked, name):
            key = asked.idempotency_key
            raise KeyReused(
                f"idempotency_key {key!r} belongs to run {stored.id!r}, whose {name} is another",
                run_id=stored.id,
            )
