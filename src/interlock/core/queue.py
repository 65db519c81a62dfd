"""Who waits, and how a wait ends: by a grant, by itself, or because it would never end.

`Queue` keeps the ledger and the line of waiters together: whatever changes one goes through here, so that
the granter hears of all room and nobody waits without being in line.
"""

from __future__ import annotations

from typing import Literal

from interlock.core.deadlock import ancestry, find_circle
from interlock.core.granter import Granter
from interlock.core.ledger import Ledger
from interlock.core.model import (
    Claims,
    Effect,
    Ended,
    GateWaiting,
    Granted,
    Limit,
    Outcome,
    Permit,
    Rank,
    Waiter,
)
from interlock.core.timers import Kind


class Queue(Ledger):
    """The books with everyone who waits. `Kernel` adds the operations."""

    def __init__(self) -> None:
        super().__init__()
        self.waiters: dict[str, Waiter] = {}
        """Those who wait and have a key."""
        self.waiting = 0
        """How many wait, with a key or without."""
        self.nested: dict[Limit, set[Waiter]] = {}
        """Who waits for a limit below a permit: only they can close a circle."""
        self.outbox: list[Effect] = []
        self.arrivals = 0
        self._granter = Granter(self._grant_waiting)
        self._gates: dict[Limit, bool] = {}

    # -- waiting

    def _blocker(self, charged: Claims, rank: Rank) -> Limit | None:
        """What keeps somebody out who asks for *charged* at *rank* now; None if nothing does."""
        lane = charged.lanes.get(rank[0])
        if lane is not None and lane.head is not None and lane.head.rank < rank:
            # Others with the same claims go first: what keeps them out keeps this one out.
            return lane.watching or lane.aside_at or charged.limits[0][0]
        return self._granter.walk_in_blocker(charged, rank)

    def _grant_waiting(self, waiter: Waiter, now_ms: int) -> None:
        self._unlist(waiter)
        permit = waiter.reclaims
        if permit is not None:
            self._retake(permit, waiter.charged, waiter.rank, now_ms)
        else:
            permit = self.grant(
                waiter.key,
                waiter.claims,
                waiter.charged,
                waiter.owner,
                waiter.parent,
                now_ms,
                waiter.lease_ms,
            )
            permit.asked = waiter.rank
        waiter.permit = permit
        self.outbox.append(Granted(waiter, permit))

    def _retake(self, permit: Permit, claims: Claims, rank: Rank, now_ms: int) -> None:
        self.retake(permit, claims, now_ms)
        permit.asked = rank
        permit.reclaiming = None
        self._granter.keeps_more = True  # what was asked for below it meanwhile may wait for these very units

    def spend(self, limit: Limit, weight: int) -> None:
        """`Ledger.spend`; the last credit shuts the gate."""
        super().spend(limit, weight)
        self._granter.reopen(limit)

    def _end(
        self, permit: Permit, how: Literal["released", "expired", "revoked"], outcome: Outcome, now_ms: int
    ) -> None:
        for limit in self.let_go(permit, how, outcome, now_ms):
            self._came_free(limit)
        if permit.reclaiming is not None:
            self._end_wait(permit.reclaiming, "dropped")
        if permit.nested:
            for waiter in sorted(permit.nested, key=by_rank):
                self._end_wait(waiter, "dropped")

    def _came_free(self, limit: Limit) -> None:
        if limit.waiters:
            self._roomier(limit)
        elif limit.removed:
            self._forget_if_idle(limit)

    def _wait(self, waiter: Waiter, deadline_ms: int | None) -> None:
        self.waiting += 1
        if waiter.key is not None:
            self.waiters[waiter.key] = waiter
        if waiter.owner is not None:
            self.owners.setdefault(waiter.owner, set()).add(waiter)
        if waiter.parent is not None:
            waiter.parent.bound = True
            waiter.parent.nested = waiter.parent.nested or set()
            waiter.parent.nested.add(waiter)
        if waiter.under is not None:
            self._wait_below(waiter)
        if deadline_ms is not None:
            waiter.timer = self.timers.arm(deadline_ms, Kind.DEADLINE, waiter)
        self._granter.enter(waiter)
        for limit, _ in waiter.charged.limits:
            if limit.gated:
                self._gates.setdefault(limit, False)

    def _wait_below(self, waiter: Waiter) -> None:
        """Note that somebody holds up a permit; where it could close a circle, have that looked at."""
        for limit, _ in waiter.charged.limits:
            self.nested.setdefault(limit, set()).add(waiter)
        held = {limit for one in ancestry(waiter.under) if not one.lent for limit, _ in one.claims.limits}
        if not self.nested.keys().isdisjoint(held | self._granter.reserved):
            self._granter.keeps_more = True

    def _unlist(self, waiter: Waiter) -> None:
        self.waiting -= 1
        if waiter.key is not None:
            del self.waiters[waiter.key]
        if waiter.owner is not None:
            self.disown(waiter.owner, waiter)
        if waiter.parent is not None and waiter.parent.nested is not None:
            waiter.parent.nested.discard(waiter)
        if waiter.under is not None:
            for limit, _ in waiter.charged.limits:
                below = self.nested[limit]
                below.discard(waiter)
                if not below:
                    del self.nested[limit]
        if waiter.timer is not None:
            self.timers.cancel(waiter.timer)

    def _stop_waiting(self, waiter: Waiter) -> None:
        waiter.gone = True
        self._unlist(waiter)
        self._granter.leave(waiter)
        if (lent := waiter.reclaims) is not None:
            lent.reclaiming = None
            if lent.ended is None:  # it holds no units: when it ends is all the same
                self._end(lent, "released", "unused", waiter.arrived_ms)

    def _end_wait(
        self, waiter: Waiter, reason: Literal["revoked", "timed_out", "dropped", "deadlock"]
    ) -> None:
        self.outbox.append(Ended(reason, waiter))
        self._stop_waiting(waiter)

    def _roomier(self, limit: Limit) -> None:
        self._granter.roomier(limit)
        if limit.gated:
            self._gates[limit] = True

    def _recycled(self, limit: Limit) -> None:
        if limit.gated:
            self._gates[limit] = True

    def _settle(self, now_ms: int, arriving: Waiter | None = None) -> None:
        self._granter.settle(now_ms)
        while self._granter.keeps_more:
            self._granter.keeps_more = False
            if self.nested and self._break_circle(arriving):
                self._granter.keeps_more = True
                self._granter.settle(now_ms)
        for limit, recycled in self._gates.items():
            held_back = limit.gated and limit.closed and limit.paused_until_ms is None
            if held_back and limit.waiters and limit.free > 0:
                self.outbox.append(GateWaiting(limit.name, recycled))
        self._gates.clear()

    def _break_circle(self, arriving: Waiter | None) -> bool:
        """End the youngest of a circle of those who hold each other up; False if there is none."""
        circle = find_circle(self, {waiter for waiters in self.nested.values() for waiter in waiters})
        holding_up = (waiter for waiter, _ in circle if any(ancestry(waiter.under)))
        victim = max(holding_up, key=by_rank, default=None)
        if victim is None:
            return False
        at = next(number for number, (waiter, _) in enumerate(circle) if waiter is victim)
        victim.circle = circle[at:] + circle[:at]
        if victim is arriving:
            self._stop_waiting(victim)  # the answer to its request says so
        else:
            self._end_wait(victim, "deadlock")
        return True

    def _forget_if_idle(self, limit: Limit) -> None:
        if limit.removed and not limit.used:
            self.limits.pop(limit.name, None)

    # -- self-check

    def check(self) -> None:
        """`Ledger.check`, and what must be true of those who wait."""
        super().check()
        for limit in self.limits.values():
            assert all(waiter.waiting for waiter in limit.waiters), f"{limit!r}: a waiter is gone"
        everybody = {waiter for limit in self.limits.values() for waiter in limit.waiters}
        assert self.waiting == len(everybody), f"{self.waiting} are said to wait, not {len(everybody)}"
        assert not (self.permits.keys() & self.waiters.keys()), "a key is held and waiting at once"


def by_rank(waiter: Waiter) -> Rank:
    """The order in which waiters go."""
    return waiter.rank
