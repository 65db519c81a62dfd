"""What a session server tells: results, readings, and what was done to a run."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from interlock.errors import InterlockError, RunCancelled, RunFailed, RunInterrupted, RunTimedOut

if TYPE_CHECKING:
    from collections.abc import Mapping

    from interlock.core.runs import RunStatus
    from interlock.core.sessions import Run


@dataclass(frozen=True, slots=True)
class RunResult:
    """A run that completed. Times are seconds since the epoch; ``waited`` is seconds until it started."""

    run_id: str
    session_id: str
    status: RunStatus
    output: Any
    token_usage: Mapping[str, int]
    started_at: float
    ended_at: float
    waited: float


@dataclass(frozen=True, slots=True)
class SessionStatus:
    """A session's runs as of one moment, the waiting ones in the order in which they will start."""

    session_id: str
    in_flight_runs: tuple[str, ...]
    in_flight_count: int
    queued_runs: tuple[str, ...]
    queued_count: int
    max_concurrent_runs: int
    max_queued_runs: int
    subscribers: int


@dataclass(frozen=True, slots=True)
class Blocking:
    """A limit that a waiting run needs and that has no room. ``session`` is the session's own slots."""

    limit: str
    used: int
    capacity: int | None

    def as_data(self) -> dict[str, Any]:
        """For an event."""
        return {"limit": self.limit, "used": self.used, "capacity": self.capacity}


@dataclass(frozen=True, slots=True)
class Operation:
    """Something that was asked of a run: cancel, interrupt, pause or resume. ``result`` is "ok" or a code."""

    operation: str
    timestamp: float
    result: str


@dataclass(frozen=True, slots=True)
class Operations:
    """What was asked of a run so far, oldest first, and the state that it led to."""

    state: str = "unknown"
    last: Operation | None = None
    history: tuple[Operation, ...] = ()


KEPT_OPERATIONS: Final = 100
KEPT_RUNS: Final = 1000


@dataclass(slots=True)
class OperationLog:
    """The operations on the latest runs: the last hundred of each of a thousand."""

    runs: dict[str, tuple[str, deque[Operation]]] = field(default_factory=dict)

    def note(self, run_id: str, operation: str, at: float, state: str | None, result: str = "ok") -> None:
        """It was asked; *state* is what it led to, None if nothing changed."""
        before, history = self.runs.pop(run_id, ("unknown", deque(maxlen=KEPT_OPERATIONS)))
        history.append(Operation(operation, at, result))
        self.runs[run_id] = (state or before, history)
        if len(self.runs) > KEPT_RUNS:
            del self.runs[next(iter(self.runs))]

    def of(self, run_id: str) -> Operations:
        """All that is known of *run_id*."""
        if run_id not in self.runs:
            return Operations()
        state, history = self.runs[run_id]
        return Operations(state, history[-1], tuple(history))


_NO_RESULT: Final[dict[str, tuple[type[InterlockError], str]]] = {
    "failed": (RunFailed, "failed"),
    "timeout": (RunTimedOut, "outlived its timeout"),
    "cancelled": (RunCancelled, "was cancelled"),
    "interrupted": (RunInterrupted, "was interrupted"),
}


def result_of(run: Run) -> RunResult:
    """The result of a run that has ended; raises what it ended with, if it did not complete."""
    if run.status in _NO_RESULT:
        kind, how = _NO_RESULT[run.status]
        error = run.error or {}
        message = str(error.get("message") or f"run {run.id!r} {how}")
        raise kind(
            message,
            code=str(error["code"]) if "code" in error else None,
            run_id=run.id,
            session_id=run.session_id,
            status=run.status,
        )
    assert run.status == "completed"
    assert run.started_at is not None
    assert run.ended_at is not None
    return RunResult(
        run.id,
        run.session_id,
        run.status,
        run.output,
        run.token_usage,
        run.started_at,
        run.ended_at,
        run.waited or 0.0,
    )
