"""Who has waited longest for a limit, found without looking at all who wait each time."""

from __future__ import annotations

from collections import deque
from operator import itemgetter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from interlock.core.model import Limit, Waiter


class Longest:
    """Knows of every limit that it was asked about who came first of those who wait.

    Whoever comes later than those that are filed has waited less; so they are looked at again only when all
    filed ones have gone, and each is looked at about once.
    """

    def __init__(self) -> None:
        self._filed: dict[Limit, deque[tuple[int, Waiter]]] = {}

    def since_ms(self, limit: Limit) -> int | None:
        """When the one came who has waited longest for *limit*; None if nobody waits."""
        waiters = limit.waiters
        if not waiters:
            self._filed.pop(limit, None)
            return None
        filed = self._filed.get(limit)
        if filed is None:
            for gone in [one for one in self._filed if one.removed]:
                del self._filed[gone]
            filed = self._filed[limit] = deque()
        while filed:
            if filed[0][1] in waiters:
                return filed[0][1].arrived_ms
            filed.popleft()
        filed.extend(sorted(((one.rank[2], one) for one in waiters), key=itemgetter(0)))
        return filed[0][1].arrived_ms
