"""Circles in which everyone waits, and would for ever.

A nested claim holds up the permit under which it was made, that permit's own parent, and so on: whoever holds
them goes on only after it. So a unit comes back unless somebody below its holder waits in vain, and a
waiter waits in vain if too few units of one of its limits can come back. The largest set of waiters for
which all of this holds is what no release will ever end. (Coffman and others, System Deadlocks, 1971:
detection in place of prevention, for units of several kinds.)

What an elder has reserved is as good as held while that elder waits in vain. A pause, a shut gate or a
deadline plays no part: those who wait in vain would do so without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from interlock.core.model import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from interlock.core.ledger import Ledger
    from interlock.core.model import Circle, Limit, Permit, Waiter


def find_circle(ledger: Ledger, nested: Iterable[Waiter]) -> Circle:
    """A circle among the waiters *nested* and the elders that reserve; empty if there is none.

    It is found from the oldest who waits in vain, by going on each time to the youngest of those who keep
    what is lacking: whoever came last has the least to lose.
    """
    impasse = Impasse(ledger, nested)
    if not impasse.waiters:
        return ()
    way: dict[Waiter, Limit] = {}
    waiter = min(impasse.waiters, key=_by_rank)
    while waiter not in way:
        limit = next(limit for limit, weight in waiter.charged.limits if impasse.lacks(waiter, limit, weight))
        way[waiter] = limit
        waiter = max(impasse.keepers(waiter, limit), key=_by_rank)
    steps = tuple(way.items())
    return steps[list(way).index(waiter) :]


def ancestry(permit: Permit | None) -> Iterator[Permit]:
    """*permit*, its parent, and so on, as far as they are still held."""
    while permit is not None and permit.ended is None:
        yield permit
        permit = permit.parent


class Impasse:
    """Those who wait in vain, and the units that they keep from coming back."""

    def __init__(self, ledger: Ledger, nested: Iterable[Waiter]) -> None:
        self._families = _families(ledger)
        self.waiters = set(nested)
        for limit in ledger.limits.values():
            self.waiters.update(lane.head for _, _, lane in limit.reservers if lane.head is not None)
        settled = False
        while not settled:
            self._look()
            vain = {waiter for waiter in self.waiters if self._in_vain(waiter)}
            settled = vain == self.waiters
            self.waiters = vain

    def lacks(self, waiter: Waiter, limit: Limit, weight: int) -> bool:
        """Whether *waiter* will never have *weight* units of *limit*, though there are as many."""
        if limit.capacity < weight:
            return False  # it waits for an operator
        coming = limit.capacity - self._kept.get(limit, 0)
        reserved = sum(units for elder, units in self._reservations(limit) if elder.rank < waiter.rank)
        return coming - reserved < weight

    def keepers(self, waiter: Waiter, limit: Limit) -> Iterator[Waiter]:
        """Who has to go on before what *waiter* lacks of *limit* can come back."""
        for members, _ in self._families.get(limit, ()):
            for permit in members:
                yield from self._below.get(permit, ())
        for elder, _ in self._reservations(limit):
            if elder.rank < waiter.rank:
                yield elder

    def _look(self) -> None:
        """Work out, for those of `waiters`, what they hold up."""
        self._below: dict[Permit, list[Waiter]] = {}
        for waiter in self.waiters:
            for permit in ancestry(waiter.under):
                self._below.setdefault(permit, []).append(waiter)
        self._kept = {
            limit: sum(weight for members, weight in families if any(one in self._below for one in members))
            for limit, families in self._families.items()
        }

    def _in_vain(self, waiter: Waiter) -> bool:
        return any(self.lacks(waiter, limit, weight) for limit, weight in waiter.charged.limits)

    def _reservations(self, limit: Limit) -> Iterator[tuple[Waiter, int]]:
        for _, weight, lane in limit.reservers:
            head = lane.head
            if head is None or head not in self.waiters:
                continue
            # Before its patience is over, an elder reserves only where it lacks.
            coming = limit.capacity - self._kept.get(limit, 0)
            if head.passed >= PATIENCE or coming < weight <= limit.capacity:
                yield head, weight


def _families(ledger: Ledger) -> dict[Limit, list[tuple[set[Permit], int]]]:
    """Who holds each limit, those together that hold a share together, and how many units."""
    found: dict[Limit, dict[object, tuple[set[Permit], int]]] = {}
    for permit in ledger.live:
        if permit.lent:
            continue
        for limit, weight in permit.claims.limits:
            share = None if permit.shares is None else permit.shares.get(limit)
            family = ({permit}, weight) if share is None else (share.members, share.weight)
            found.setdefault(limit, {})[share or permit] = family
    return {limit: list(families.values()) for limit, families in found.items()}


def _by_rank(waiter: Waiter) -> tuple[int, int, int]:
    return waiter.rank
