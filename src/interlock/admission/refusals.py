"""The kernel's refusals and endings as errors that name what blocked and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from interlock.admission.readings import read_blocks
from interlock.errors import (
    AcquireTimeout,
    InterlockError,
    InvalidOperation,
    LimitExceeded,
    QueueFull,
    ValidationError,
)

if TYPE_CHECKING:
    from interlock.admission.permit import Acquisition
    from interlock.core.kernel import Kernel
    from interlock.core.model import EndReason, Refused, Waiter


def unknown_limit(kernel: Kernel, name: str) -> ValidationError:
    """The error for a limit that nobody made."""
    known = ", ".join(sorted(one.name for one in kernel.limits.values() if not one.removed)) or "none"
    return ValidationError(f"unknown limit {name!r}; known are: {known}", limit=name)


def refusal(kernel: Kernel, refused: Refused, request: Acquisition, now_ms: int) -> InterlockError:
    """The error for a request that was answered at once, and with no."""
    limits = ", ".join(request.names)
    match refused.reason:
        case "conflict":
            return InvalidOperation(f"key {request.key!r} is in use with other limits or another owner")
        case "parent_released":
            return InvalidOperation(f"the parent {request.parent!r} has been released")
        case "queue_full":
            limit = kernel.limits[refused.limit or ""]
            return QueueFull(
                f"{limit.queue_max} wait for {limit.name!r} already, as many as may", limit=limit.name
            )
    rank = (request.priority, now_ms, kernel.arrivals + 1)
    why = read_blocks(kernel, kernel.claims(request.names), rank)
    return LimitExceeded(
        f"no room over {limits}: " + "; ".join(str(block) for block in why), limit=refused.limit
    )


def ending(kernel: Kernel, reason: EndReason, waiter: Waiter, now_ms: int) -> InterlockError:
    """The error for somebody whose wait came to an end without a grant."""
    limits = ", ".join(waiter.claims.names)
    if reason == "timed_out":
        why = read_blocks(kernel, waiter.charged, waiter.rank)
        waited = (now_ms - waiter.arrived_ms) / 1000
        return AcquireTimeout(
            f"waited {waited:g} s for {limits}: " + "; ".join(str(block) for block in why),
            limits=waiter.claims.names,
            blocked_by=[block.limit for block in why],
        )
    if reason == "revoked":
        return InvalidOperation(f"owner {waiter.owner!r} was released while this waited")
    if waiter.parent is not None and waiter.parent.ended is not None:
        return InvalidOperation(f"the parent was released while this waited for {limits}")
    return InvalidOperation(f"a limit among {limits} was removed while this waited")
