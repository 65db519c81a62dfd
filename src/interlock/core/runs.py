"""The life of a run and of a session, as tables: from which status which verb leads where.

Whoever changes a status names a verb; the store writes the new status only where the old one allows the verb
(compare-and-set). So whatever comes last finds the run ended, and an end is written once.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

RunStatus: TypeAlias = Literal[
    "pending", "running", "paused", "completed", "failed", "cancelled", "interrupted", "timeout"
]
RunVerb: TypeAlias = Literal[
    "start", "pause", "resume", "requeue", "complete", "fail", "cancel", "interrupt", "time_out"
]
SessionStatus: TypeAlias = Literal["pending", "active", "paused", "completed", "failed", "cancelled"]
SessionVerb: TypeAlias = Literal["activate", "pause", "resume", "complete", "fail", "cancel"]

IN_FLIGHT: Final[frozenset[RunStatus]] = frozenset(("running", "paused"))
"""Statuses of a run that an agent works on."""
_OPEN: Final[frozenset[RunStatus]] = frozenset(("pending", *IN_FLIGHT))

RUN_MOVES: Final[Mapping[RunVerb, tuple[frozenset[RunStatus], RunStatus]]] = MappingProxyType(
    {
        "start": (frozenset(("pending",)), "running"),
        "pause": (frozenset(("running",)), "paused"),
        "resume": (frozenset(("paused",)), "running"),
        "requeue": (IN_FLIGHT, "pending"),  # after a crash, of a run that may run again
        "complete": (IN_FLIGHT, "completed"),
        "fail": (IN_FLIGHT, "failed"),
        "cancel": (_OPEN, "cancelled"),
        "interrupt": (IN_FLIGHT, "interrupted"),
        "time_out": (IN_FLIGHT, "timeout"),
    }
)
"""For every verb: the statuses that allow it, and the one that it leads to."""

SESSION_MOVES: Final[Mapping[SessionVerb, tuple[frozenset[SessionStatus], SessionStatus]]] = MappingProxyType(
    {
        "activate": (frozenset(("pending",)), "active"),
        "pause": (frozenset(("active",)), "paused"),
        "resume": (frozenset(("paused",)), "active"),
        "complete": (frozenset(("active", "paused")), "completed"),
        "fail": (frozenset(("pending", "active", "paused")), "failed"),
        "cancel": (frozenset(("pending", "active", "paused")), "cancelled"),
    }
)

ENDED: Final[frozenset[RunStatus]] = frozenset(("completed", "failed", "cancelled", "interrupted", "timeout"))
"""Statuses of a run that nothing follows."""
SESSION_ENDED: Final[frozenset[SessionStatus]] = frozenset(("completed", "failed", "cancelled"))
"""Statuses of a session that nothing follows."""

EVENT_OF: Final[Mapping[RunVerb, str]] = MappingProxyType(
    {
        "start": "run_started",
        "complete": "run_completed",
        "fail": "run_failed",
        "cancel": "run_cancelled",
        "interrupt": "run_interrupted",
        "time_out": "run_timeout",
    }
)
"""The event that the log gets for a verb; the others leave none."""

_SESSION_EVENTS = ("created", "started", "paused", "resumed", "completed", "failed", "cancelled")
_RUN_EVENTS = ("queued", "started", "completed", "failed", "cancelled", "interrupted", "timeout")
LIFECYCLE: Final[frozenset[str]] = frozenset(
    (*(f"session_{what}" for what in _SESSION_EVENTS), *(f"run_{what}" for what in _RUN_EVENTS))
)
"""Types that only the session server writes: each says that something became so."""
EVENT_TYPES: Final[frozenset[str]] = LIFECYCLE | {
    *("message_sent", "message_received", "message_streamed"),
    *("tool_call_started", "tool_call_completed", "tool_call_failed"),
    *("tool_approval_requested", "tool_approval_granted", "tool_approval_denied"),
    *("error_occurred", "error_recovered", "token_usage_updated", "turn_completed", "policy_violation"),
    *("workspace_snapshot_taken", "workspace_diff_computed"),
}


def diagram() -> str:
    """The life of a run as a Mermaid state diagram, for the documentation."""
    lines = ["stateDiagram-v2", "    [*] --> pending: submit"]
    for verb, (before, after) in RUN_MOVES.items():
        lines += [f"    {status} --> {after}: {verb}" for status in sorted(before)]
    lines += [f"    {status} --> [*]" for status in sorted(ENDED)]
    return "\n".join(lines)
