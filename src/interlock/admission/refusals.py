"""The kernel's refusals and endings as errors that name what blocked and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from interlock.admission.readings import permit_id, read_blocks, waiter_id
from interlock.errors import (
    AcquireTimeout,
    DeadlockDetected,
    InterlockError,
    InvalidOperation,
    LimitExceeded,
    PermitLost,
    QueueFull,
    ValidationError,
)

if TYPE_CHECKING:
    from interlock.admission.permit import Acquisition
    from interlock.core.kernel import Kernel
    from interlock.core.model import Circle, EndReason, Permit, Refused, Waiter


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
        case "lent":
            return InvalidOperation(f"the permit of key {request.key!r} is lent until its holder has it back")
        case "deadlock":
            return deadlock(refused.circle)
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


def deadlock(circle: Circle) -> DeadlockDetected:
    """The error for the youngest of *circle*, which begins with it."""
    names = [_holder_above(waiter) for waiter, _ in circle]
    steps = ", ".join(
        f"{name} waits for {limit.name!r} that {keeper} keeps"
        for name, keeper, (_, limit) in zip(names, [*names[1:], names[0]], circle, strict=True)
    )
    return DeadlockDetected(
        f"this would wait for ever: {steps}", limits=[limit.name for _, limit in circle], circle=names
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
    if reason == "deadlock":
        return deadlock(waiter.circle)
    if (lent := waiter.reclaims) is not None and lent.ended in ("expired", "revoked"):
        return lost(lent)
    if reason == "revoked":
        return InvalidOperation(f"owner {waiter.owner!r} was released while this waited")
    if waiter.parent is not None and waiter.parent.ended is not None:
        return InvalidOperation(f"the parent was released while this waited for {limits}")
    if waiter.reclaims is not None and reason == "dropped" and not _removed(waiter):
        return InvalidOperation(f"the permit was released while its holder waited to have {limits} back")
    return InvalidOperation(f"a limit among {limits} was removed while this waited")


def lending_refused(permit: Permit, why: str) -> InvalidOperation:
    """The error for a permit that cannot be lent."""
    name = permit_id(permit)
    match why:
        case "lent":
            return InvalidOperation(f"{name} is lent already")
        case "family":
            return InvalidOperation(
                f"{name} shares its units with nested permits or waits: release those first, or acquire "
                "them while it is lent"
            )
    return InvalidOperation(f"{name} has been released")


def lost(permit: Permit) -> PermitLost:
    """The error for a permit that was taken from its holder."""
    why = "its lease ran out" if permit.ended == "expired" else "it showed no progress"
    return PermitLost(f"{permit_id(permit)} was taken back: {why}")


def _removed(waiter: Waiter) -> bool:
    return any(limit.removed for limit, _ in waiter.charged.limits)


def _holder_above(waiter: Waiter) -> str:
    """Who waits, as the others know it: by the permit below which it asked."""
    if waiter.under is None:
        return waiter.owner or waiter_id(waiter)
    return waiter.under.owner or permit_id(waiter.under)
