"""What is kept of a session: itself, its runs, and its log of events.

Times are seconds since the epoch. Sequence numbers count from 1 in each session, without a gap, in the order
in which the events were committed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

    from interlock.core.runs import RunStatus, RunVerb, SessionStatus

Json: TypeAlias = Any
"""What JSON can say: None, bool, int, float, str, and lists and dicts of them."""
Collision: TypeAlias = Literal["enqueue", "reject", "interrupt", "rollback"]
"""What a new run does to the session's unfinished ones: waits behind them, is refused, or ends them."""
Retry: TypeAlias = Literal["on_crash"]

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Session:
    """A conversation with one agent: its runs start in the order in which they were submitted."""

    id: str
    status: SessionStatus
    agent_id: str | None = None
    max_concurrent_runs: int = 1
    max_queued_runs: int = 100
    collision: Collision = "enqueue"
    metadata: Mapping[str, Json] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    created_at: float = 0.0
    updated_at: float = 0.0
    last_sequence: int = 0


@dataclass(frozen=True, slots=True)
class Run:
    """One piece of work of a session. ``number`` is its place among all that the session ever had."""

    id: str
    session_id: str
    status: RunStatus = "pending"
    input: Json = None
    number: int = 0
    metadata: Mapping[str, Json] = field(default_factory=dict)
    priority: int = 0
    timeout: float | None = None
    retry: Retry | None = None
    idempotency_key: str | None = None
    attempt: int = 0
    """How often it was started. Only the present attempt may write anything: it is the run's fence."""
    output: Json = None
    error: Mapping[str, Json] | None = None
    """``code`` and ``message`` of what it failed with."""
    token_usage: Mapping[str, int] = field(default_factory=dict)
    submitted_at: float = 0.0
    started_at: float | None = None
    ended_at: float | None = None
    waited: float | None = None
    """Seconds from its submission to its (latest) start."""


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event before it has its place in the log."""

    id: str
    type: str
    timestamp: float
    run_id: str | None = None
    data: Mapping[str, Json] = field(default_factory=dict)
    metadata: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Event:
    """An event in the log of its session."""

    id: str
    session_id: str
    run_id: str | None
    sequence: int
    type: str
    timestamp: float
    data: Mapping[str, Json] = field(default_factory=dict)
    metadata: Mapping[str, Json] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, slots=True)
class RunChange:
    """What *verb* does to a run beside moving its status.

    It happens only where the run's status allows the verb and, unless *attempt* is None, its attempt is that
    one. ``start`` counts the attempt up by one.
    """

    verb: RunVerb
    at: float
    attempt: int | None = None
    output: Json = None
    error: Mapping[str, Json] | None = None
    token_usage: Mapping[str, int] = field(default_factory=dict)
    """Added to what the run has used before."""
    waited: float | None = None


@dataclass(frozen=True, slots=True)
class Retention:
    """What is kept, and for how long. Ages are in seconds; None is for ever."""

    completed_age: float | None = 90 * 86_400.0
    """Sessions that ended and were not touched for so long are hidden."""
    deleted_age: float | None = 30 * 86_400.0
    """Hidden ones are removed with their runs and events after so long."""
    max_events_per_session: int | None = None
    exempt_tags: tuple[str, ...] = ("pinned",)
    prune_first: tuple[str, ...] = ("message_streamed", "token_usage_updated")
    """Types that go before all others; those that say what became of a run never go."""


@dataclass(frozen=True, slots=True)
class Pruned:
    """What a round of retention did."""

    hidden_sessions: int = 0
    removed_sessions: int = 0
    removed_events: int = 0
