"""The fleet's slots of one session: its own while it has work, and one for each run.

The session takes its slot for its first run and keeps it until nothing is in flight and nothing waits. A run
asks for its slot only then: one that waited for both would reserve a run slot that nobody else could use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from interlock.session.readings import Blocking

if TYPE_CHECKING:
    from interlock.admission.permit import Permit
    from interlock.core.sessions import Run
    from interlock.limiter import ConcurrencyLimiter
    from interlock.ports import Clock


class FleetSlots:
    """What a session holds of *limiter*; without one, everything is free."""

    def __init__(self, limiter: ConcurrencyLimiter | None, session_id: str, clock: Clock) -> None:
        self._limiter = limiter
        self._session_id = session_id
        self._clock = clock
        self._own: Permit | None = None
        self._runs: dict[str, Permit] = {}

    async def take(self, run: Run) -> dict[str, float]:
        """Take the slot of *run*, and the session's, waiting as long as it takes; seconds for each limit.

        Raises `Unavailable` once the limiter is closed.
        """
        limiter = self._limiter
        if limiter is None:
            return {}
        waited = {}
        if not self._holds_session():
            asked = self._clock.now()
            foreign = self._session_is_held()
            permit = await limiter.acquire_session_slot(self._session_id, timeout=None)
            if not foreign:
                self._own = permit
            waited["sessions"] = self._clock.now() - asked
        asked = self._clock.now()
        self._runs[run.id] = await limiter.acquire_run_slot(
            self._session_id, run.id, timeout=None, priority=run.priority, since=run.submitted_at
        )
        waited["runs"] = self._clock.now() - asked
        return waited

    def give(self, run_id: str) -> None:
        """Release the slot of this run, if it has one."""
        permit = self._runs.pop(run_id, None)
        if permit is not None:
            permit.release()

    def rest(self) -> None:
        """Release the session's slot: there is no work."""
        if self._own is not None:
            self._own.release()
            self._own = None

    def blocking(self) -> list[Blocking]:
        """The fleet's limits that have no room for another run of the session, as of now."""
        if self._limiter is None:
            return []
        now = self._limiter.status()
        found = []
        if now.available_session_slots == 0 and not self._holds_session() and not self._session_is_held():
            found.append(Blocking("sessions", now.active_sessions, now.max_parallel_sessions))
        if now.available_run_slots == 0:
            found.append(Blocking("runs", now.active_runs, now.max_parallel_runs))
        return found

    def _holds_session(self) -> bool:
        return self._own is not None and not self._own.released

    def _session_is_held(self) -> bool:
        """Whether somebody took the session's slot by hand: then it is not ours to release."""
        if self._limiter is None:
            return False
        key = f"session:{self._session_id}"
        return any(holder.key == key for holder in self._limiter.admission.holders("sessions"))
