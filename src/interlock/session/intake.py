"""How a run comes into its session: durable first, then in line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from interlock.admission.callback import call_back
from interlock.core.sessions import Run
from interlock.errors import InterlockError, InvalidStatus, KeyReused, QueueFull, ValidationError
from interlock.session.readings import Blocking
from interlock.session.tally import tally_of
from interlock.session.values import check_count, check_key, check_span, event, new_id, plain_object

if TYPE_CHECKING:
    from collections.abc import Mapping

    from interlock.core.sessions import Retry, Session
    from interlock.ports import SharedStore, Store
    from interlock.session.controls import RunControls
    from interlock.session.scheduler import Scheduler


class Intake:
    """Takes the runs of one session. The store numbers them, and decides whether there is room."""

    def __init__(self, store: Store, session: Session, scheduler: Scheduler, controls: RunControls) -> None:
        self._store = store
        self._session = session
        self._scheduler = scheduler
        self._controls = controls
        self._room = room_of(session)
        self.latest = 0
        """The number of the last run of the store's that `adopt` was told of."""

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
            raise refusal(self._session, refused) from None
        if not new:
            check_same(stored, run)
            return stored.id
        for told_of in tally_of(self._store).on_submit:
            call_back(told_of, stored)
        earlier = [*scheduler.attempts, *(one.id for one in scheduler.queue)]
        scheduler.add(stored)
        if collision in ("interrupt", "rollback"):
            await self._controls.make_way(earlier, stored.id, rollback=collision == "rollback")
        return stored.id

    async def adopt(self, store: SharedStore, upto: int) -> None:
        """Take in line what was submitted to the *store* elsewhere, and drop what was ended there.

        *upto* is the number of the session's last run, as far as it is known.
        """
        scheduler, collision = self._scheduler, self._session.collision
        known = {run.id for run in scheduler.queue}
        _, waiting = await store.unfinished(self._session.id)
        for run_id in known.difference(waiting):
            scheduler.remove(run_id)
        for run_id in waiting:
            if run_id in known or run_id in scheduler.attempts:
                continue
            run = await store.get_run(run_id)
            if run.status != "pending":
                continue  # it was started here since we looked, and has ended, or was cancelled
            earlier = [*scheduler.attempts, *(one.id for one in scheduler.queue)]
            scheduler.add(run)
            if collision in ("interrupt", "rollback"):
                await self._controls.make_way(earlier, run.id, rollback=collision == "rollback")
        self.latest = max(self.latest, upto)

    def _own_slots(self) -> Blocking:
        return Blocking("session", len(self._scheduler.attempts), self._session.max_concurrent_runs)


def new_run(
    session_id: str,
    at: float,
    input_: Mapping[str, Any],
    *,
    idempotency_key: str | None = None,
    timeout: float | None = None,
    priority: int = 0,
    retry: Retry | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Run:
    """A run that is submitted *at* this time; `ValidationError` for what makes no sense."""
    if retry not in (None, "on_crash"):
        raise ValidationError(f'retry is {retry!r}; allowed are None and "on_crash"')
    return Run(
        new_id("run"),
        session_id,
        input=plain_object("input", input_),
        metadata=plain_object("metadata", metadata),
        priority=check_count("priority", priority, -(1 << 31)),
        timeout=check_span("timeout", timeout),
        retry=retry,
        idempotency_key=check_key("idempotency_key", idempotency_key),
        submitted_at=at,
    )


def room_of(session: Session) -> int:
    """How many unfinished runs the session may have."""
    room = session.max_concurrent_runs + session.max_queued_runs
    if session.collision == "reject":
        return 1
    if session.collision != "enqueue":
        room += session.max_concurrent_runs  # what it ends makes way for it
    return room


def refusal(session: Session, refused: QueueFull) -> InterlockError:
    """What the caller is told where the store had no room."""
    if session.collision == "reject":
        return InvalidStatus(
            f"session {session.id!r} has an unfinished run and rejects another", code="run_in_progress"
        )
    flying, waiting = session.max_concurrent_runs, session.max_queued_runs
    return QueueFull(
        f"session {session.id!r} is full: {flying} runs may be in flight and {waiting} more may wait",
        **refused.details,
    )


def check_same(stored: Run, asked: Run) -> None:
    """`KeyReused`, if the key that found *stored* was for something else."""
    for name in ("input", "metadata", "priority", "timeout", "retry"):
        if getattr(stored, name) != getattr(asked, name):
            key = asked.idempotency_key
            raise KeyReused(
                f"idempotency_key {key!r} belongs to run {stored.id!r}, whose {name} is another",
                run_id=stored.id,
            )
