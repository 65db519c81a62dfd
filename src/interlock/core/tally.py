"""Units of one limit that their holder counts instead of keeping a permit for each.

A pool hands agents out and takes them back at every call, and knows itself who has which. To the ledger a
tally is one permit whose weight changes, so that every rule and every reading holds for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from interlock.core.model import Claims, Limit, Permit

if TYPE_CHECKING:
    from interlock.core.ledger import Ledger


class Tally(Claims):
    """Takes and gives back single units of the limit *name*; *owner* is who shows as their holder.

    It is the claims of its own permit, with ``units`` as their weight.
    """

    __slots__ = ("_ledger", "_one", "limit", "units")

    def __init__(self, ledger: Ledger, name: str, owner: str, now_ms: int) -> None:
        self.units = 0
        self.limit = ledger.limit(name)
        self._ledger = ledger
        self._one = ledger.claims((name,))
        super().__init__((name,), ())
        block = self._permit(self, now_ms)
        block.owner = owner
        block.bound = True

    def take(self) -> bool:
        """Take one if there is room and nobody waits."""
        limit = self.limit
        if limit.used >= limit.open_capacity:
            return False
        limit.used += 1
        self.units += 1
        return True

    def give_back(self) -> bool:
        """Give one back where nobody has to be told; False: not so, release what `part` gives."""
        limit = self.limit
        if limit.busy:
            return False
        limit.used -= 1
        self.units -= 1
        return True

    def part(self, now_ms: int) -> Permit:
        """Turn one of the units into a permit of its own."""
        self.units -= 1
        return self._permit(self._one, now_ms)

    def _permit(self, claims: Claims, now_ms: int) -> Permit:
        ledger = self._ledger
        ledger.fence += 1
        permit = Permit(claims, ledger.fence, now_ms)
        ledger.live.add(permit)
        return permit

    def weight(self, limit: Limit) -> int:
        return self.units if limit is self.limit else 0

    @property
    def limits(self) -> tuple[tuple[Limit, int], ...]:
        return ((self.limit, self.units),) if self.units else ()

    @limits.setter
    def limits(self, limits: object) -> None:
        """They are not given but counted."""
