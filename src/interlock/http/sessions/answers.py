"""What is answered about sessions, their runs and events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NotRequired, TypedDict, cast

from interlock.core.runs import RunStatus, SessionStatus  # noqa: TC001 - the API's description reads them
from interlock.core.sessions import Collision, Retry  # noqa: TC001 - the API's description reads them

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from interlock.core.sessions import Run, Session
    from interlock.core.workers import Worker
    from interlock.session.readings import Blocking


class SessionAnswer(TypedDict):
    """A session; the last three are there while it is worked on."""

    id: str
    agent: str | None
    status: SessionStatus
    maxConcurrentRuns: int
    maxQueuedRuns: int
    collision: Collision
    metadata: dict[str, Any]
    tags: list[str]
    createdAt: int
    updatedAt: int
    lastSequence: int
    inFlightRuns: NotRequired[list[str]]
    queuedRuns: NotRequired[list[str]]
    subscribers: NotRequired[int]


class WorkerAnswer(TypedDict):
    """A process that serves sessions."""

    id: str
    host: str
    pid: int
    agents: list[str]
    state: Literal["working", "draining", "dead"]
    sessions: int
    startedAt: int
    seenAt: int


class WorkersAnswer(TypedDict):
    """Who serves the sessions of the store."""

    workers: list[WorkerAnswer]


class SessionsPage(TypedDict):
    """Sessions, and where to go on."""

    sessions: list[SessionAnswer]
    next: str | None


class DrainedAnswer(TypedDict):
    """Nothing is left to do."""

    drained: bool


class SubmittedAnswer(TypedDict):
    """A run that is durable; a position of 1 is next."""

    runId: str
    sessionId: str
    status: RunStatus
    position: int | None


class ChangedAnswer(TypedDict):
    """What a run has come to."""

    runId: str
    status: RunStatus


class WaitsForAnswer(TypedDict):
    """A limit without room."""

    limit: str
    used: int
    capacity: int | None


class RunAnswer(TypedDict):
    """A run; the last two are there while it waits."""

    runId: str
    sessionId: str
    status: RunStatus
    number: int
    input: Any
    output: Any
    error: dict[str, Any] | None
    attempt: int
    priority: int
    timeoutMs: int | None
    retry: Retry | None
    tokenUsage: dict[str, int]
    metadata: dict[str, Any]
    submittedAt: int
    startedAt: int | None
    endedAt: int | None
    waitedMs: int | None
    position: NotRequired[int | None]
    waitsFor: NotRequired[list[WaitsForAnswer]]


class RunsPage(TypedDict):
    """Runs in the order of their submission, and where to go on."""

    runs: list[RunAnswer]
    next: str | None


class EventAnswer(TypedDict):
    """An event in the log of its session."""

    id: str
    sessionId: str
    runId: str | None
    sequence: int
    type: str
    timestamp: int
    data: dict[str, Any]
    metadata: dict[str, Any]


class EventsPage(TypedDict):
    """A page of the log, and the sequence to go on from."""

    events: list[EventAnswer]
    nextFrom: int


class Line(NamedTuple):
    """The places of one session's runs that wait, 1 being next, and the limits without room for that one."""

    places: Mapping[str, int]
    blocking: Sequence[Blocking]

    def why(self) -> list[WaitsForAnswer]:
        """The limits, as an event has them."""
        return [cast("WaitsForAnswer", one.as_data()) for one in self.blocking]


def worker_said(worker: Worker) -> WorkerAnswer:
    """*worker* as the API shows it."""
    return {
        "id": worker.id,
        "host": worker.host,
        "pid": worker.pid,
        "agents": list(worker.agents),
        "state": ("draining" if worker.draining else "working") if worker.alive else "dead",
        "sessions": worker.sessions,
        "startedAt": round(worker.started_at * 1000),
        "seenAt": round(worker.seen_at * 1000),
    }


def session_said(session: Session) -> SessionAnswer:
    """A session as every route tells it."""
    return {
        "id": session.id,
        "agent": session.agent_id,
        "status": session.status,
        "maxConcurrentRuns": session.max_concurrent_runs,
        "maxQueuedRuns": session.max_queued_runs,
        "collision": session.collision,
        "metadata": dict(session.metadata),
        "tags": list(session.tags),
        "createdAt": round(session.created_at * 1000),
        "updatedAt": round(session.updated_at * 1000),
        "lastSequence": session.last_sequence,
    }


def run_said(run: Run, line: Line | None) -> RunAnswer:
    """A run as every route tells it; *line* is its session's, where it may wait."""
    said: RunAnswer = {
        "runId": run.id,
        "sessionId": run.session_id,
        "status": run.status,
        "number": run.number,
        "input": run.input,
        "output": run.output,
        "error": None if run.error is None else dict(run.error),
        "attempt": run.attempt,
        "priority": run.priority,
        "timeoutMs": ms(run.timeout),
        "retry": run.retry,
        "tokenUsage": {_camel(name): count for name, count in run.token_usage.items()},
        "metadata": dict(run.metadata),
        "submittedAt": round(run.submitted_at * 1000),
        "startedAt": ms(run.started_at),
        "endedAt": ms(run.ended_at),
        "waitedMs": ms(run.waited),
    }
    if line and run.status == "pending":
        said["position"] = line.places.get(run.id)
        said["waitsFor"] = line.why()
    return said


def ms(seconds: float | None) -> int | None:
    """Seconds as whole milliseconds."""
    return None if seconds is None else round(seconds * 1000)


def _camel(name: str) -> str:
    word, *rest = name.split("_")
    return word + "".join(part.capitalize() for part in rest)
