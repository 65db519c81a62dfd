"""Who waits for one limit and why, and who holds it: the first of them, however many there are."""

from __future__ import annotations

from heapq import nsmallest
from typing import TYPE_CHECKING, Any

from interlock.admission.readings import permit_id, waiter_id
from interlock.admission.wire import is_generated
from interlock.core import explain
from interlock.core.ledger import by_fence
from interlock.http.control import PROVIDER
from interlock.http.dashboard.parts import shown

if TYPE_CHECKING:
    from interlock.core.kernel import Kernel
    from interlock.core.model import Limit, Permit, Waiter


def queue(kernel: Kernel, limit: Limit, most: int) -> dict[str, Any]:
    """The *most* first of those who wait for *limit*, and the *most* longest holders of it."""
    waiters = nsmallest(most, limit.waiters, key=lambda waiter: waiter.rank)
    holding = (one for one in kernel.live if one.claims.weight(limit) and not one.lent)
    return {
        "waiting": len(limit.waiters),
        "waiters": [_waiter(kernel, waiter, place) for place, waiter in enumerate(waiters, 1)],
        "held": limit.used - sum(hold.weight for hold in limit.holds),
        "holders": [_holder(permit, limit) for permit in nsmallest(most, holding, key=by_fence)],
    }


def _waiter(kernel: Kernel, waiter: Waiter, place: int) -> dict[str, Any]:
    return {
        "id": waiter_id(waiter),
        "place": place,
        "who": shown(waiter.owner or _named(waiter.key) or waiter_id(waiter)),
        "since": waiter.since_ms,
        "arrived": waiter.arrived_ms,
        "priority": waiter.priority,
        "deadline": waiter.deadline_ms,
        "why": _why(kernel, waiter),
    }


def _why(kernel: Kernel, waiter: Waiter) -> list[str]:
    """What keeps *waiter* out, a limit a line."""
    found = []
    for limit, weight in waiter.charged.limits:
        why, missing = explain.obstacle(kernel, limit, weight, waiter.rank)
        if why is not None:
            name = shown(limit.name.removeprefix(PROVIDER), 40)
            found.append(_reason(name, limit, why, missing))
    if not found:
        found.append("others with the same needs go first")
    return found


def _reason(name: str, limit: Limit, why: explain.Why, missing: int) -> str:
    match why:
        case "never_fits":
            return f"{name} will never have room: {missing} more than there are"
        case "paused":
            return f"{name} is paused"
        case "gate":
            return f"{name} reports no room yet"
        case "reserved":
            return f"{name} keeps its room for older ones"
        case "behind":
            return f"others go first at {name}"
    return f"{name} is full ({limit.used}/{limit.capacity})"


def _holder(permit: Permit, limit: Limit) -> dict[str, Any]:
    return {
        "id": permit_id(permit),
        "who": shown(permit.owner or _named(permit.key) or permit_id(permit)),
        "granted": permit.granted_ms,
        "touched": permit.touched_ms,
        "units": permit.claims.weight(limit),
        "also": [
            shown(name.removeprefix(PROVIDER), 40) for name in permit.claims.names if name != limit.name
        ],
    }


def _named(key: str | int | None) -> str | None:
    text = None if key is None else str(key)
    return None if is_generated(text) else text
