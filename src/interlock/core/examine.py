"""A look at a kernel from outside: what must be true of it at any moment, held against its records."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from interlock.core.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from interlock.core.kernel import Kernel
    from interlock.core.model import Waiter

LATE_MS = 2_000
"""How long after its time something may still be there: the event loop may be busy."""
_SHOWN = 5
_RESTART = "interlock drain the sessions, then restart the server; please report this"


def examine(kernel: Kernel, now_ms: int) -> list[Finding]:
    """What is wrong with *kernel* at *now_ms*, or one finding that nothing is."""
    waiters = {waiter for limit in kernel.limits.values() for waiter in limit.waiters}
    wrong = [*_miscounted(kernel), *_overdue(kernel, waiters, now_ms), *_left_waiting(kernel, waiters)]
    if wrong:
        return wrong
    counted = f"{len(kernel.limits)} limits, {len(kernel.live)} permits, {len(waiters)} waiters"
    return [
        Finding("ok", "limits", "what is held is what is counted, and nobody waits without need", counted)
    ]


def _miscounted(kernel: Kernel) -> Iterator[Finding]:
    """Every unit that is counted is in somebody's hand or cools; families hold theirs together."""
    held = dict.fromkeys(kernel.limits.values(), 0)
    shared = set()
    for permit in kernel.live:
        for limit, weight in () if permit.lent else permit.claims.limits:
            share = None if permit.shares is None else permit.shares.get(limit)
            if share is None:
                held[limit] = held.get(limit, 0) + weight
            elif share not in shared:
                shared.add(share)
                held[limit] = held.get(limit, 0) + share.weight
    for limit, units in held.items():
        cooling = sum(hold.weight for hold in limit.holds)
        if limit.used != units + cooling:
            yield Finding(
                "error",
                "limits",
                f"{limit.name} counts {limit.used} units that are taken, but {units + cooling} are",
                f"{units} held, {cooling} cooling",
                _RESTART,
            )
    if ended := [permit for permit in kernel.live if permit.ended]:
        evidence = ", ".join(permit.key or f"fence {permit.fence}" for permit in ended[:_SHOWN])
        yield Finding("error", "limits", f"{len(ended)} permits have ended and are held", evidence, _RESTART)


def _overdue(kernel: Kernel, waiters: set[Waiter], now_ms: int) -> Iterator[Finding]:
    """No lease and no deadline lies in the past."""
    late = now_ms - LATE_MS
    leases = [one for one in kernel.live if one.expires_ms is not None and one.expires_ms < late]
    if leases:
        evidence = ", ".join(one.key or f"fence {one.fence}" for one in islice(leases, _SHOWN))
        yield Finding(
            "error", "limits", f"{len(leases)} leases have run out and are held", evidence, _RESTART
        )
    stuck = [one for one in waiters if one.deadline_ms is not None and one.deadline_ms < late]
    if stuck:
        what = f"{len(stuck)} waiters are past their deadline"
        yield Finding("error", "limits", what, _who(stuck), "interlock explain")


def _left_waiting(kernel: Kernel, waiters: set[Waiter]) -> Iterator[Finding]:
    """Nobody who is first in its lane waits while there is room for it on all that it asks for."""
    free = [
        waiter
        for waiter in waiters
        if (lane := waiter.charged.lanes.get(waiter.priority)) is not None
        and lane.head is waiter
        and all(
            not limit.closed and kernel.room(limit, waiter.rank) >= weight
            for limit, weight in waiter.charged.limits
        )
    ]
    if free:
        what = f"{len(free)} waiters could go, and were not let in"
        yield Finding("error", "limits", what, _who(free), "interlock explain")


def _who(waiters: list[Waiter]) -> str:
    names = (
        f"{one.key or one.owner or 'somebody'} for {'+'.join(one.charged.names)}" for one in waiters[:_SHOWN]
    )
    return ", ".join(names)
