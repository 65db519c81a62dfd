"""What a session's new owner finds of the last one's work, and what becomes of it.

Runs that waited wait on, in their order. Runs that were in flight lost their agent: they end ``interrupted``,
since nobody knows how far they came, unless they were submitted to be run again (``retry="on_crash"``); those
keep their place, ahead of all that were submitted later. So a run is started at least once if it is lucky,
and ended exactly once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from interlock.core.runs import IN_FLIGHT
from interlock.core.sessions import RunChange
from interlock.session.tally import note_end
from interlock.session.values import run_event

if TYPE_CHECKING:
    from interlock.core.runs import RunStatus
    from interlock.core.sessions import Run
    from interlock.ports import Clock, Store

PENDING: Final[tuple[RunStatus, ...]] = ("pending",)


async def recover(store: Store, session_id: str, clock: Clock) -> list[Run]:
    """Settle what was in flight when the session's last owner died; the runs that wait, in their order."""
    for run in await store.list_runs(session_id, statuses=IN_FLIGHT):
        at = clock.now()
        if run.retry == "on_crash":
            await store.change_run(run.id, RunChange("requeue", at, run.attempt))
        else:
            event = run_event("interrupt", at, run.id, {"reason": "crash"})
            change = RunChange("interrupt", at, run.attempt)
            note_end(store, await store.change_run(run.id, change, [event]))
    return await store.list_runs(session_id, statuses=PENDING)
