"""Every change to who holds what.

`Kernel` is one pure, synchronous state machine. Time is an argument (milliseconds), expiry is an operation
(`tick`), and what others have to be told is left in `outbox` as effects, never done. An operation either
changes everything it says or refuses and changes nothing. Which waiter goes next is decided in one place,
`granter.py`, that every operation ends with.

The rules R1 to R16 that it keeps are written down in `docs/semantics.md`, each with its test.
"""

from __future__ import annotations

from typing import Literal

from interlock.core.ledger import by_fence
from interlock.core.model import (
    NO_COOLDOWN,
    UNLIMITED,
    Claims,
    Cooldown,
    Ended,
    Hold,
    Limit,
    Outcome,
    Permit,
    Rank,
    Refused,
    Waiter,
)
from interlock.core.queue import Queue, by_rank
from interlock.core.timers import Kind, Timer


class Kernel(Queue):
    """Every operation on who holds what and who waits."""

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
        self._granter.keeps_more = True
        self._roomier(limit)
        self._settle(now_ms)
        return limit

    def remove(self, name: str, now_ms: int) -> None:
        """Forget the limit *name*: who waits for it is dropped, who holds it stays counted until it is given
        back, also if the limit is made again before that."""
        limit = self.limit(name)
        limit.removed = True
        for waiter in sorted(limit.waiters, key=by_rank):
            if waiter.waiting:  # else it went with a lent permit whose wait for its units ended here
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
        since_ms = now_ms if since_ms is None else min(since_ms, now_ms)
        if parent is None:
            for limit, weight in claims.limits:
                if limit.used + weight > limit.open_capacity:
                    break
            else:
                permit = self.grant(key, claims, claims, owner, None, now_ms, lease_ms)
                if priority or since_ms != now_ms:
                    permit.asked = (priority, since_ms, permit.fence - UNLIMITED)
                return permit
            charged = claims
        elif parent.ended is not None:
            return Refused("parent_released")
        else:
            charged = self.uncovered(claims, parent)
        self.arrivals += 1
        rank = (priority, since_ms, self.arrivals)
        blocking = self._blocker(charged, rank)
        if blocking is None:
            self._granter.passing(charged, rank)
            permit = self.grant(key, claims, charged, owner, parent, now_ms, lease_ms)
            permit.asked = rank
            self._settle(now_ms)
            return permit
        if not wait:
            return Refused("would_block", blocking.name)
        for limit, _ in charged.limits:
            if limit.queue_max is not None and len(limit.waiters) >= limit.queue_max:
                return Refused("queue_full", limit.name)
        waiter = Waiter(key, claims, charged, owner, parent, rank, now_ms, lease_ms)
        self._wait(waiter, deadline_ms)
        if self._granter.pending or self._gates or self._granter.keeps_more:
            self._settle(now_ms, waiter)
        return Refused("deadlock", None, waiter.circle) if waiter.circle else waiter

    def adopt(
        self,
        claims: Claims,
        now_ms: int,
        key: str,
        fence: int,
        owner: str | None = None,
        parent: Permit | None = None,
        lease_ms: int | None = None,
    ) -> Permit | Refused:
        """Count a permit that was granted elsewhere, before a restart: there is room or not, it is held.

        It keeps its *fence*, and those to come are greater.
        """
        known = self.permits.get(key) or self.waiters.get(key)
        if known is not None:
            answer = self._known(known, claims, owner)
            return answer if isinstance(answer, Permit) and answer.fence == fence else Refused("conflict")
        nested_in = parent if parent is not None and parent.ended is None else None
        charged = claims if nested_in is None else self.uncovered(claims, nested_in)
        before = self.fence
        permit = self.grant(key, claims, charged, owner, nested_in, now_ms, lease_ms)
        permit.fence = fence
        self.fence = max(before, fence)
        self._granter.keeps_more = True
        self._settle(now_ms)
        return permit

    # -- lending

    def lend(self, permit: Permit, now_ms: int) -> Literal["ended", "lent", "family"] | None:
        """Give back the units of *permit* for a while; it stays live. None, or why it cannot be done."""
        if permit.ended is not None:
            return "ended"
        if permit.lent:
            return "lent"
        if permit.nested or any(
            len(share.members) > 1 or share.weight != permit.claims.weight(limit)
            for limit, share in (permit.shares or {}).items()
        ):
            return "family"
        freed = self.put_back(permit, "success", now_ms)
        permit.shares = None
        permit.lent = permit.bound = True
        for limit in freed:
            self._came_free(limit)
        self._settle(now_ms)
        return None

    def reclaim(
        self, permit: Permit, claims: Claims, now_ms: int, deadline_ms: int | None = None
    ) -> Permit | Waiter | Refused:
        """Take the units of the lent *permit* again, as old as it is; *claims* are its own, looked up afresh.

        Should the wait for them end without a grant, *permit* ends as well: nobody works without units.
        """
        if permit.ended is not None or permit.reclaiming is not None:
            return Refused("conflict")
        if not permit.lent:
            return permit
        rank = permit.rank
        if self._blocker(claims, rank) is None:
            self._granter.passing(claims, rank)
            self._retake(permit, claims, rank, now_ms)
            self._settle(now_ms)
            return permit
        waiter = Waiter(None, claims, claims, permit.owner, None, rank, now_ms, None)
        waiter.reclaims = permit
        permit.reclaiming = waiter
        self._wait(waiter, deadline_ms)
        self._settle(now_ms, waiter)
        return Refused("deadlock", None, waiter.circle) if waiter.circle else waiter

    # -- giving back

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
        for waiter in sorted((one for one in owned if isinstance(one, Waiter)), key=by_rank):
            if waiter.waiting:
                self._end_wait(waiter, "revoked")
        for permit in permits:
            if permit.ended is None:  # else it went with its own wait to have its units back
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

    def _known(self, known: Permit | Waiter, claims: Claims, owner: str | None) -> Permit | Waiter | Refused:
        """A key that is live: the same request gets the same thing, another one is a conflict (R9)."""
        if known.claims.names != claims.names or known.owner != owner:
            return Refused("conflict")
        return Refused("lent") if isinstance(known, Permit) and known.lent else known

    def _forget_reading(self, limit: Limit) -> None:
        self.timers.cancel(limit.reading_timer)
        limit.reading_timer = None
        limit.credits = 0
