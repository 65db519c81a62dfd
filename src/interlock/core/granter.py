"""The one granter: who goes next, and who has to be let by first.

The rule, as `tests/core/reference.py` walks it in a few plain lines: look at the front waiter of every
lane, oldest first. If all its limits have room, grant them at once and look again. Otherwise it
*reserves* its weight on the limits it lacks now and, once it has been passed `PATIENCE` times, on every
limit that it claims; what is reserved is no room for anyone younger. A waiter that a pause, a shut gate or
a capacity smaller than its weight keeps out stands *aside*: it could not use a reservation, so it makes none,
and being passed meanwhile does not count against anyone's patience.

This module gets the same answer without the walk:

* **Bar.** If a front waiter lacks a limit, so does every younger one, because it reserves there at least
  what was left. So of the lanes that wait for one limit only the oldest need be asked when room appears.
* **Watch.** A blocked lane is filed under one limit that it lacks, and asked again only when room appears
  there; then it is granted or filed elsewhere. Each filing is paid for by the room that caused it.
* **Reservers.** With one unit each, a patient waiter's reservation never matters to anyone whom the bar
  would not stop anyway. Only the impatient, and those of weight over one, are kept per limit.
* **Patience.** A waiter is counted as passed at most `PATIENCE` times, so counting costs a constant a waiter.

Ranks are unique.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Any

from interlock.core.model import NO_COOLDOWN, PATIENCE, Claims, Lane, Limit, Rank, Waiter

if TYPE_CHECKING:
    from collections.abc import Callable

_LOWEST = -1


class Granter:
    """Keeps the lanes in order and calls *grant* for each waiter whose turn it is."""

    def __init__(self, grant: Callable[[Waiter, int], None]) -> None:
        self._grant = grant
        self._roomier: set[Limit] = set()
        self._unplaced: list[tuple[Rank, Lane]] = []
        self._passings = 0
        self.reserved: set[Limit] = set()
        """Limits with `Limit.reservers`."""
        self.keeps_more = False
        """Set when somebody keeps others from more than before, so that a circle may have closed; whoever
        looks for circles clears it."""

    @property
    def pending(self) -> bool:
        """Whether `settle` has anything to look at."""
        return bool(self._roomier or self._unplaced)

    # -- what may be

    def blocker(self, claims: Claims, rank: Rank, first: Limit | None = None) -> Limit | None:
        """A limit that lacks room for *claims* at *rank*, *first* if it does; None if it may go."""
        lacking: Limit | None = None
        for limit, weight in claims.limits:
            if (lacking is None or limit is first) and self.room(limit, rank) < weight:
                lacking = limit
        return lacking

    def walk_in_blocker(self, claims: Claims, rank: Rank) -> Limit | None:
        """`blocker` for a newcomer: nobody at the gate and no fresh reading means that it is open."""
        for limit, weight in claims.limits:
            unguarded = limit.gated and not limit.waiters and limit.reading_timer is None
            if unguarded and limit.paused_until_ms is None:
                if limit.free < weight:
                    return limit
            elif limit.closed or limit.capacity < weight or self.room(limit, rank) < weight:
                return limit
        return None

    def room(self, limit: Limit, rank: Rank) -> int:
        """Units that somebody of *rank* may take: free, less what older ones have reserved."""
        room = limit.capacity - limit.used
        if limit.gated and limit.credits < room:
            room = limit.credits
        for reserved_at, weight, lane in limit.reservers:
            if reserved_at >= rank or room <= 0:
                break
            assert lane.head is not None
            if weight > room or lane.head.passed >= PATIENCE:
                room -= weight
        return room

    # -- what changed

    def enter(self, waiter: Waiter) -> None:
        """A newcomer that may not go now takes its place in line."""
        claims, priority = waiter.charged, waiter.rank[0]
        lane = claims.lanes.get(priority)
        if lane is None:
            lane = claims.lanes[priority] = Lane(claims, priority)
        for limit, _ in claims.limits:
            limit.waiters.add(waiter)
            limit.open_capacity = _LOWEST
            limit.busy = True
        heappush(lane.heap, (waiter.rank, waiter))
        if lane.head is not None and lane.head.rank < waiter.rank:
            return
        if lane.head is not None:
            self._take_out(lane)
        lane.head = waiter
        heappush(self._unplaced, (waiter.rank, lane))

    def leave(self, waiter: Waiter) -> None:
        """Somebody who waited does not any more (withdrawn, or granted: see `_settle_one`)."""
        claims = waiter.charged
        lane = claims.lanes[waiter.priority]
        for limit, _ in claims.limits:
            limit.waiters.discard(waiter)
            if not limit.waiters:
                self.reopen(limit)
        if lane.head is waiter:
            self._take_out(lane)
            self._next_head(lane)
            return
        lane.dead += 1
        if lane.dead > 64 and lane.dead * 2 > len(lane.heap):
            lane.heap = [entry for entry in lane.heap if entry[1].waiting]
            heapify(lane.heap)
            lane.dead = 0

    def roomier(self, limit: Limit) -> None:
        """Units of *limit* came free, or somebody's reservation there went."""
        if limit.watchers.filed:
            self._roomier.add(limit)

    def reopen(self, limit: Limit) -> None:
        """The pause, the gate, the capacity or the waiters of *limit* changed: sort out who stands where."""
        plain = not (limit.waiters or limit.gated or limit.removed)
        closed = limit.paused_until_ms is not None or (limit.gated and limit.credits <= 0)
        limit.open_capacity = limit.capacity if plain and not closed else _LOWEST
        limit.busy = bool(limit.waiters or limit.removed or limit.cooldown is not NO_COOLDOWN)
        if closed and not limit.closed:
            limit.closed = True
            for lane in _in_line(limit):
                self._take_out(lane)
                self._stand_aside(lane, limit)
        elif limit.closed and not closed:
            limit.closed = False
            self.reconsider(limit)

    def reconsider(self, limit: Limit) -> None:
        """File everyone who claims *limit* anew: whom it kept aside may compete, or the other way round."""
        for lane in (*limit.aside, *_in_line(limit)):
            assert lane.head is not None
            self._take_out(lane)
            heappush(self._unplaced, (lane.head.rank, lane))

    # -- the granter

    def settle(self, now_ms: int) -> None:
        """Grant all that fits, oldest first, until nothing more does."""
        while self._unplaced or self._roomier:
            lane, at = self._oldest()
            if lane is not None:
                self._settle_one(lane, at, now_ms)

    def _oldest(self) -> tuple[Lane | None, Limit | None]:
        """The oldest front waiter that might go now, taken out of where it was filed."""
        while self._unplaced and not _is_unplaced(*self._unplaced[0]):
            heappop(self._unplaced)
        best: tuple[Rank, Lane] | None = self._unplaced[0] if self._unplaced else None
        at: Limit | None = None
        for limit in tuple(self._roomier):
            oldest = limit.watchers.oldest()
            if oldest is None:
                self._roomier.discard(limit)
            elif best is None or oldest[0] < best[0]:
                best, at = oldest, limit
        if best is None:
            return None, None
        if at is None:
            heappop(self._unplaced)
        else:
            at.watchers.discard(best[1])
            best[1].watching = None
        return best[1], at

    def _settle_one(self, lane: Lane, at: Limit | None, now_ms: int) -> None:
        head = lane.head
        assert head is not None
        shut = _shut(lane.claims)
        limit = None if shut is not None else self.blocker(lane.claims, head.rank, at)
        if shut is not None:
            self._take_out(lane)
            self._stand_aside(lane, shut)
        elif limit is None:
            self.passing(lane.claims, head.rank)
            self._take_out(lane, granted=True)
            heappop(lane.heap)
            for claimed, _ in lane.claims.limits:
                claimed.waiters.discard(head)
            self._grant(head, now_ms)
            for claimed, _ in lane.claims.limits:
                if not claimed.waiters:
                    self.reopen(claimed)
            self._next_head(lane)
        else:
            self._stand_in_line(lane)
            lane.watching = limit
            limit.watchers.add(head.rank, lane)
            if limit is at:
                self._roomier.discard(limit)

    def passing(self, claims: Claims, rank: Rank) -> None:
        """Somebody of *rank* goes: older front waiters that share a limit with it are passed."""
        impatient: list[Lane] = []
        self._passings = stamp = self._passings + 1
        for limit, _ in claims.limits:
            if not limit.line.filed:
                continue
            for lane in limit.line.older_than(rank):
                head = lane.head
                assert head is not None
                if head.passed_by != stamp:
                    head.passed_by = stamp
                    head.passed += 1
                    if head.passed == PATIENCE:
                        impatient.append(lane)
        for lane in impatient:
            head = lane.head
            assert head is not None
            for limit, weight in lane.claims.limits:
                limit.line.discard(lane)
                if weight == 1:
                    self._reserve(limit, weight, lane)

    # -- filing

    def _next_head(self, lane: Lane) -> None:
        heap = lane.heap
        while heap and (heap[0][1].gone or heap[0][1].permit is not None):
            heappop(heap)
            lane.dead -= 1
        if heap:
            lane.head = heap[0][1]
            heappush(self._unplaced, (lane.head.rank, lane))
        else:
            lane.head = None
            del lane.claims.lanes[lane.priority]

    def _stand_in_line(self, lane: Lane) -> None:
        if lane.in_line:
            return
        lane.in_line = True
        head = lane.head
        assert head is not None
        patient = head.passed < PATIENCE
        for limit, weight in lane.claims.limits:
            if patient:
                limit.line.add(head.rank, lane)
            if weight > 1 or not patient:
                self._reserve(limit, weight, lane)

    def _reserve(self, limit: Limit, weight: int, lane: Lane) -> None:
        assert lane.head is not None
        insort(limit.reservers, (lane.head.rank, weight, lane))
        self.reserved.add(limit)
        self.keeps_more = True

    def _stand_aside(self, lane: Lane, limit: Limit) -> None:
        lane.aside_at = limit
        limit.aside.add(lane)

    def _take_out(self, lane: Lane, *, granted: bool = False) -> None:
        """Unfile the front waiter of *lane*; what it had reserved is room again, unless it took it."""
        head = lane.head
        assert head is not None
        if lane.aside_at is not None:
            lane.aside_at.aside.discard(lane)
            lane.aside_at = None
        if lane.watching is not None:
            lane.watching.watchers.discard(lane)
            lane.watching = None
        if not lane.in_line:
            return
        lane.in_line = False
        patient = head.passed < PATIENCE
        for limit, weight in lane.claims.limits:
            if patient:
                limit.line.discard(lane)
            if weight > 1 or not patient:
                _remove(limit.reservers, head.rank)
                if not limit.reservers:
                    self.reserved.discard(limit)
                if not granted:
                    self.roomier(limit)


def _in_line(limit: Limit) -> set[Lane]:
    return set(limit.line.filed) | {lane for _, _, lane in limit.reservers}


def _shut(claims: Claims) -> Limit | None:
    """A limit of *claims* that is closed, or could never fit it: who waits for that stands aside."""
    for limit, weight in claims.limits:
        if limit.closed or limit.capacity < weight:
            return limit
    return None


def _remove(reservers: list[Any], rank: Rank) -> None:
    index = bisect_left(reservers, (rank,))
    assert reservers[index][0] == rank
    del reservers[index]


def _is_unplaced(rank: Rank, lane: Lane) -> bool:
    """Whether the entry still speaks of a front waiter that is filed nowhere: one may be noted twice."""
    head = lane.head
    return head is not None and head.rank == rank and lane.watching is None and lane.aside_at is None
