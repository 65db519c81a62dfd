"""Whether a running kernel keeps its own rules, looked at cheaply enough to be asked all the time.

`Kernel.check` walks through every waiter and, for every limit, through every permit. Here each limit is
looked at once and each permit once; of those who wait, at most one for each limit: if the oldest of those
filed there has no room, the younger ones have none either (see `core.granter`).
"""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from interlock.core.kernel import Kernel
    from interlock.core.model import Limit, Share

MOST_PERMITS: Final = 20_000
"""With more permits than that the books are not added up: it would hold up the loop for too long."""
_MOST_ASIDE: Final = 16


def stuck_at(kernel: Kernel) -> list[str]:
    """The limits at which somebody waits who could go: there is room, and nobody was asked."""
    return [limit.name for limit in kernel.limits.values() if _stuck(kernel, limit)]


def _stuck(kernel: Kernel, limit: Limit) -> bool:
    oldest = limit.watchers.oldest()
    if oldest is not None:
        rank, lane = oldest
        if kernel.room(limit, rank) >= lane.claims.weight(limit):
            return True
    if limit.closed:
        return False
    # Not shut: whoever stands aside here may only lack a capacity that is large enough.
    return any(lane.claims.weight(limit) <= limit.capacity for lane in islice(limit.aside, _MOST_ASIDE))


def broken_rules(kernel: Kernel) -> Iterator[str]:
    """What is wrong with the books, a sentence for each; nothing, if nothing is."""
    for limit in kernel.limits.values():
        if limit.waiters and limit.open_capacity >= 0:
            yield f"{limit!r}: newcomers pass those who wait"
    if len(kernel.live) > MOST_PERMITS:
        return
    taken: Counter[Limit] = Counter()
    counted: set[Share] = set()
    for permit in kernel.live:
        if permit.ended is not None:
            yield "an ended permit is still live"
        if permit.lent:
            continue
        for limit, weight in permit.claims.limits:
            share = None if permit.shares is None else permit.shares.get(limit)
            if share is None:
                taken[limit] += weight
            elif share not in counted:
                counted.add(share)
                taken[limit] += share.weight
    for limit in kernel.limits.values():
        used = taken[limit] + sum(hold.weight for hold in limit.holds)
        if limit.used != used:
            yield f"{limit!r}: {used} units are taken, {limit.used} are counted"
