"""Every change to who holds what.

`Kernel` is one pure, synchronous state machine. Time is an argument (milliseconds), expiry is an operation
(`tick`), and what others have to be told is left in `outbox` as effects, never done. An operation either
changes everything it says or refuses and changes nothing. Which waiter goes next is decided in one place,
`granter.py`, that every operation ends with.

The rules R1 to R16 that it keeps are written down in `docs/semantics.md`, each with its test.
"""

from __future__ import annotations

from typing import Literal

from interlock.core.granter import Granter
from interlock.core.ledger import Ledger, by_fence
from interlock.core.model import (
    NO_COOLDOWN,
    UNLIMITED,
    Claims,
    Cooldown,
    Effect,
    Ended,
    GateWaiting,
    Granted,
    Hold,
    Limit,
    Outcome,
    Permit,
    Rank,
    Refused,
    Waiter,
)
from interlock.core.timers import Kind, Timer


class Kernel(Ledger):
    """The ledger of who holds what, with everyone who waits and the operations on both."""

    def __init__(self) -> None:
        super().__init__()
        self.waiters: dict[str, Waiter] = {}
        self.outbox: list[Effect] = []
        self.arrivals = 0
        self._granter = Granter(self._grant_waiting)
        self._gates: dict[Limit, bool] = {}

    # -- limits

    def configure(
        self,
        name: str,
        now_ms: int,
        *,
        capacity: int | None,
        cooldown: Cooldown = NO_COOLDOWN,
        queue_max: int | None = None,
        gated: bool = False,
    ) -> Limit:
        """Make the limit *name*, or change it. Lowering evicts nobody (R3); raising lets in what fits."""
        limit = self.limits.get(name)
        if limit is None:
            limit = self.limits[name] = Limit(name)
        before, limit.capacity = limit.capacity, UNLIMITED if capacity is None else capacity
        limit.credits = max(0, limit.credits - max(0, before - limit.capacity))
        limit.cooldown = NO_COOLDOWN if cooldown == NO_COOLDOWN else cooldown
        limit.queue_max = queue_max
        limit.removed = False
        if limit.gated and not gated:
            self._forget_reading(limit)
        limit.gated = gated
        self._granter.reopen(limit)
        self._granter.reconsider(limit)
        self._roomier(limit)
        self._settle(now_ms)
        return limit

    def remove(self, name: str, now_ms: int) -> None:
        """Forget the limit *name*: who waits for it is dropped, who holds it stays counted until it is given
        back, also if the limit is made again before that."""
        limit = self.limit(name)
        limit.removed = True
        for waiter in sorted(limit.waiters, key=_by_rank):
            self._end_wait(waiter, "dropped")
        self._forget_reading(limit)
        limit.gated = False
        self.timers.cancel(limit.pause_timer)
        limit.pause_timer = limit.paused_until_ms = None
        self._granter.reopen(limit)
        for names in [names for names in self.claims_by_names if name in names]:
            del self.claims_by_names[names]
        self._settle(now_ms)
        self._forget_if_idle(limit)

    def pause(self, name: str, until_ms: int, now_ms: int) -> None:
        """Admit nobody over *name* before *until_ms*. A pause only ever grows."""
        limit = self.limit(name)
        if until_ms <= max(now_ms, limit.paused_until_ms or 0):
            return
        self.timers.cancel(limit.pause_timer)
        limit.paused_until_ms = until_ms
        limit.pause_timer = self.timers.arm(until_ms, Kind.PAUSE, limit)
        self._granter.reopen(limit)
        self._settle(now_ms)

    def resume(self, name: str, now_ms: int) -> None:
        """End the pause of *name* now."""
        limit = self.limit(name)
        self.timers.cancel(limit.pause_timer)
        limit.pause_timer = limit.paused_until_ms = None
        self._granter.reopen(limit)
        self._recycled(limit)
        self._settle(now_ms)

    def admit(self, name: str, count: int, now_ms: int, fresh_until_ms: int | None = None) -> None:
        """Let *count* units past the gate of *name*: the answer to `GateWaiting` (R14).

        Until *fresh_until_ms* newcomers, too, need what is left of *count*; then it lapses.
        """
        limit = self.limit(name)
        if not limit.gated:
            return
        self._forget_reading(limit)
        limit.credits = max(0, count)
        if fresh_until_ms is not None:
            limit.reading_timer = self.timers.arm(fresh_until_ms, Kind.READING, limit)
        self._granter.reopen(limit)
        self._granter.roomier(limit)
        self._settle(now_ms)

    def room(self, limit: Limit, rank: Rank) -> int:
        """Units of *limit* that somebody of *rank* could take now: free, less what older ones reserved."""
        return self._granter.room(limit, rank)

    # -- permits

    def acquire(
        self,
        claims: Claims,
        now_ms: int,
        key: str | None = None,
        owner: str | None = None,
        parent: Permit | None = None,
        priority: int = 0,
        since_ms: int | None = None,
        deadline_ms: int | None = None,
        lease_ms: int | None = None,
        wait: bool = True,
    ) -> Permit | Waiter | Refused:
        """One permit over all of *claims* at once, or a place in line, or a refusal that changes nothing."""
        if key is not None:
            known = self.permits.get(key) or self.waiters.get(key)
            if known is not None:
                return self._known(known, claims, owner)
        if parent is None:
            for limit, weight in claims.limits:
                if limit.used + weight > limit.open_capacity:
                    break
            else:
                return self.grant(key, claims, claims, owner, None, now_ms, lease_ms)
            charged = claims
        elif parent.ended is not None:
            return Refused("parent_released")
        else:
            charged = self.uncovered(claims, parent)
        since_ms = now_ms if since_ms is None else min(since_ms, now_ms)
        self.arrivals += 1
        rank = (priority, since_ms, self.arrivals)
        lane = charged.lanes.get(priority)
        if lane is not None and lane.head is not None and lane.head.rank < rank:
            # Others with the same claims go first: what keeps them out keeps this one out.
            blocking: Limit | None = lane.watching or lane.aside_at or charged.limits[0][0]
        else:
            blocking = self._granter.walk_in_blocker(charged, rank)
        if blocking is None:
            self._granter.passing(charged, rank)
            permit = self.grant(key, claims, charged, owner, parent, now_ms, lease_ms)
            self._settle(now_ms)
            return permit
        if not wait:
            return Refused("would_block", blocking.name)
        for limit, _ in charged.limits:
            if limit.queue_max is not None and len(limit.waiters) >= limit.queue_max:
                return Refused("queue_full", limit.name)
        waiter = Waiter(key, claims, charged, owner, parent, rank, now_ms, lease_ms)
        self._wait(waiter, deadline_ms)
        if self._granter.pending or self._gates:
            self._settle(now_ms)
        return waiter

    def release(self, permit: Permit, now_ms: int, outcome: Outcome = "success") -> bool:
        """Give back what *permit* holds; False if it had ended already (R9)."""
        if permit.ended is not None:
            return False
        self._end(permit, "released", outcome, now_ms)
        if self._granter.pending or self._gates:
            self._settle(now_ms)
        return True

    def revoke(self, permit: Permit, now_ms: int) -> bool:
        """Take *permit* back from a holder that shows no sign of life; it cools as after a failure."""
        if permit.ended is not None:
            return False
        self._end(permit, "revoked", "failed", now_ms)
        self.outbox.append(Ended("revoked", permit))
        self._settle(now_ms)
        return True

    def release_owner(self, owner: str, now_ms: int, outcome: Outcome = "success") -> list[Permit]:
        """End all that *owner* holds or waits for (R11); the permits that it held."""
        owned = self.owners.get(owner, ())
        permits = sorted((one for one in owned if isinstance(one, Permit)), key=by_fence)
        for waiter in sorted((one for one in owned if isinstance(one, Waiter)), key=_by_rank):
            self._end_wait(waiter, "revoked")
        for permit in permits:
            self._end(permit, "released", outcome, now_ms)
        self._settle(now_ms)
        return permits

    def withdraw(self, waiter: Waiter, now_ms: int) -> bool:
        """Stop waiting, without a trace (R16); False if *waiter* does not wait any more."""
        if not waiter.waiting:
            return False
        self._stop_waiting(waiter)
        self._settle(now_ms)
        return True

    # -- time

    def next_deadline(self) -> int | None:
        """Before this moment nothing happens by itself (R15)."""
        return self.timers.next_ms()

    def tick(self, now_ms: int) -> None:
        """Let everything happen that is due, in its order."""
        while (timer := self.timers.pop_due(now_ms)) is not None:
            self._fall_due(timer)
            self._settle(timer.due_ms)

    def _fall_due(self, timer: Timer) -> None:
        match timer.subject:
            case Hold() as hold:
                hold.limit.holds.discard(hold)
                hold.limit.used -= hold.weight
                self._came_free(hold.limit)
            case Permit() as permit:
                self._end(permit, "expired", "failed", timer.due_ms)
                self.outbox.append(Ended("expired", permit))
            case Waiter() as waiter:
                self._end_wait(waiter, "timed_out")
            case Limit() as limit:
                if timer.kind is Kind.PAUSE:
                    limit.pause_timer = limit.paused_until_ms = None
                else:
                    limit.reading_timer = None
                    limit.credits = 0
                self._granter.reopen(limit)
                if timer.kind is Kind.PAUSE:
                    self._recycled(limit)
                elif limit.gated:
                    self._gates.setdefault(limit, False)

    # -- inside

    def _grant_waiting(self, waiter: Waiter, now_ms: int) -> None:
        self._unlist(waiter)
        waiter.permit = self.grant(
            waiter.key,
            waiter.claims,
            waiter.charged,
            waiter.owner,
            waiter.parent,
            now_ms,
            waiter.lease_ms,
        )
        self.outbox.append(Granted(waiter, waiter.permit))

    def spend(self, limit: Limit, weight: int) -> None:
        """`Ledger.spend`; the last credit shuts the gate."""
        super().spend(limit, weight)
        self._granter.reopen(limit)

    def _end(
        self, permit: Permit, how: Literal["released", "expired", "revoked"], outcome: Outcome, now_ms: int
    ) -> None:
        for limit in self.let_go(permit, how, outcome, now_ms):
            self._came_free(limit)
        if permit.nested:
            for waiter in sorted(permit.nested, key=_by_rank):
                self._end_wait(waiter, "dropped")

    def _came_free(self, limit: Limit) -> None:
        if limit.waiters:
            self._roomier(limit)
        elif limit.removed:
            self._forget_if_idle(limit)

    def _wait(self, waiter: Waiter, deadline_ms: int | None) -> None:
        if waiter.key is not None:
            self.waiters[waiter.key] = waiter
        if waiter.owner is not None:
            self.owners.setdefault(waiter.owner, set()).add(waiter)
        if waiter.parent is not None:
            waiter.parent.bound = True
            waiter.parent.nested = waiter.parent.nested or set()
            waiter.parent.nested.add(waiter)
        if deadline_ms is not None:
            waiter.timer = self.timers.arm(deadline_ms, Kind.DEADLINE, waiter)
        self._granter.enter(waiter)
        for limit, _ in waiter.charged.limits:
            if limit.gated:
                self._gates.setdefault(limit, False)

    def _unlist(self, waiter: Waiter) -> None:
        if waiter.key is not None:
            del self.waiters[waiter.key]
        if waiter.owner is not None:
            self.disown(waiter.owner, waiter)
        if waiter.parent is not None and waiter.parent.nested is not None:
            waiter.parent.nested.discard(waiter)
        if waiter.timer is not None:
            self.timers.cancel(waiter.timer)

    def _stop_waiting(self, waiter: Waiter) -> None:
        waiter.gone = True
        self._unlist(waiter)
        self._granter.leave(waiter)

    def _end_wait(self, waiter: Waiter, reason: Literal["revoked", "timed_out", "dropped"]) -> None:
        self._stop_waiting(waiter)
        self.outbox.append(Ended(reason, waiter))

    def _known(self, known: Permit | Waiter, claims: Claims, owner: str | None) -> Permit | Waiter | Refused:
        """A key that is live: the same request gets the same thing, another one is a conflict (R9)."""
        if known.claims.names == claims.names and known.owner == owner:
            return known
        return Refused("conflict")

    def _roomier(self, limit: Limit) -> None:
        self._granter.roomier(limit)
        if limit.gated:
            self._gates[limit] = True

    def _recycled(self, limit: Limit) -> None:
        if limit.gated:
            self._gates[limit] = True

    def _settle(self, now_ms: int) -> None:
        self._granter.settle(now_ms)
        for limit, recycled in self._gates.items():
            held_back = limit.gated and limit.closed and limit.paused_until_ms is None
            if held_back and limit.waiters and limit.free > 0:
                self.outbox.append(GateWaiting(limit.name, recycled))
        self._gates.clear()

    def _forget_reading(self, limit: Limit) -> None:
        self.timers.cancel(limit.reading_timer)
        limit.reading_timer = None
        limit.credits = 0

    def _forget_if_idle(self, limit: Limit) -> None:
        if limit.removed and not limit.used:
            self.limits.pop(limit.name, None)

    # -- self-check

    def check(self) -> None:
        """`Ledger.check`, and what must be true of those who wait."""
        super().check()
        for limit in self.limits.values():
            assert all(waiter.waiting for waiter in limit.waiters), f"{limit!r}: a waiter is gone"
        assert not (self.permits.keys() & self.waiters.keys()), "a key is held and waiting at once"


def _by_rank(waiter: Waiter) -> Rank:
    return waiter.rank
