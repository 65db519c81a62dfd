"""Who holds what: limits, permits, owners, families and units that cool.

Sets of holders are the truth; the one cached number, ``Limit.used``, changes only where a permit begins
or ends, and `Ledger.check` holds it against them. Waiting is none of this module's business: see
`kernel.py`.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal

from interlock.core.model import (
    NO_COOLDOWN,
    Claims,
    Hold,
    Limit,
    Outcome,
    Permit,
    Share,
    Waiter,
)
from interlock.core.timers import Kind, Timers

_new = object.__new__


class Ledger:
    """The books. Every change of them is one call; whether it may happen is decided elsewhere."""

    def __init__(self) -> None:
        self.limits: dict[str, Limit] = {}
        self.live: set[Permit] = set()
        """Every permit that somebody holds."""
        self.permits: dict[str, Permit] = {}
        """Those of them that have a key."""
        self.owners: dict[str, set[Permit | Waiter]] = {}
        self.timers = Timers()
        self.fence = 0
        self.claims_by_names: dict[tuple[str, ...], Claims] = {}

    def limit(self, name: str) -> Limit:
        """The limit called *name*; KeyError if there is none, or it was removed and only counts on."""
        limit = self.limits[name]
        if limit.removed:
            raise KeyError(name)
        return limit

    def claims(self, names: tuple[str, ...]) -> Claims:
        """What *names* ask for; a name given twice takes two units. KeyError names an unknown limit."""
        claims = self.claims_by_names.get(names)
        if claims is None:
            in_order = tuple(sorted(names))
            if names != in_order:
                claims = self.claims(in_order)
            else:
                units = Counter(names)
                claims = Claims(names, tuple((self.limit(name), units[name]) for name in units))
            self.claims_by_names[names] = claims
        return claims

    def holders(self, limit: Limit) -> list[Permit]:
        """Who holds *limit*, longest first."""
        holding = (one for one in self.live if one.claims.weight(limit) and not one.lent)
        return sorted(holding, key=by_fence)

    # -- beginning

    def take(self, claims: Claims, now_ms: int) -> Permit | None:
        """`acquire` for the plainest request: nothing but *claims*, all with room and nobody waiting."""
        for limit, weight in claims.limits:
            used = limit.used + weight
            if used > limit.open_capacity:
                for taken, units in claims.limits:
                    if taken is limit:
                        return None
                    taken.used -= units
            limit.used = used
        permit = _new(Permit)  # made for every call: the detour over __init__ would show
        permit.claims = claims
        self.fence = permit.fence = self.fence + 1
        permit.granted_ms = now_ms
        self.live.add(permit)
        return permit

    def grant(
        self,
        key: str | None,
        claims: Claims,
        charged: Claims,
        owner: str | None,
        parent: Permit | None,
        now_ms: int,
        lease_ms: int | None,
    ) -> Permit:
        """A new permit over *claims*, of which *charged* is not held by *parent* already; there is room."""
        self.fence = fence = self.fence + 1
        permit = Permit(claims, fence, now_ms)
        self._charge(charged)
        self.live.add(permit)
        if parent is not None:
            permit.bound = parent.bound = True
            permit.parent = parent
            self._join(permit, charged, parent)
        if key is not None or owner is not None:
            self.enrol(permit, key, owner)
        if lease_ms is not None:
            permit.bound = True
            permit.lease = self.timers.arm(now_ms + lease_ms, Kind.LEASE, permit)
        return permit

    def enrol(self, permit: Permit, key: str | None, owner: str | None) -> None:
        """*permit* is known by this key, and belongs to this owner."""
        permit.bound = True
        if key is not None:
            permit.key = key
            self.permits[key] = permit
        if owner is not None:
            permit.owner = owner
            owned = self.owners.get(owner)
            if owned is None:
                self.owners[owner] = {permit}
            else:
                owned.add(permit)

    def retake(self, permit: Permit, claims: Claims, now_ms: int) -> None:
        """Give the units of the lent *permit* back to it, under a new fence; there is room."""
        self.fence += 1
        if permit.serial is None:
            permit.serial = permit.fence
        permit.fence = self.fence
        permit.claims = claims
        permit.granted_ms = now_ms
        permit.lent = False
        self._charge(claims)

    def _charge(self, claims: Claims) -> None:
        for limit, weight in claims.limits:
            limit.used += weight
            limit.granted += weight
            if limit.gated:
                self.spend(limit, weight)

    def spend(self, limit: Limit, weight: int) -> None:
        """Units of a gated *limit* were granted: they are taken off its credits."""
        limit.credits = max(0, limit.credits - weight)

    def _join(self, permit: Permit, charged: Claims, parent: Permit) -> None:
        """Hold together with *parent* what it holds already."""
        for limit, _ in permit.claims.limits:
            if charged.weight(limit):
                continue
            parent.shares = parent.shares or {}
            share = parent.shares.get(limit)
            if share is None:
                share = parent.shares[limit] = Share(parent.claims.weight(limit), parent)
            share.members.add(permit)
            permit.shares = permit.shares or {}
            permit.shares[limit] = share

    def uncovered(self, claims: Claims, parent: Permit) -> Claims:
        """What *claims* ask for beyond what *parent* holds: that is not charged again."""
        if parent.lent:
            return claims
        names = tuple(name for name in claims.names if name not in parent.claims.names)
        return claims if len(names) == len(claims.names) else self.claims(names)

    # -- going on

    def touch(self, permit: Permit, now_ms: int) -> None:
        """Note that the holder of *permit* made progress."""
        permit.touched_ms = now_ms

    def renew(self, permit: Permit, fence: int, lease_ms: int, now_ms: int) -> int | None:
        """Let the lease of *permit* end at now + *lease_ms*; None if the fence is stale (R10)."""
        if permit.ended is not None or permit.fence != fence:
            return None
        self.timers.cancel(permit.lease)
        permit.bound = True
        permit.lease = self.timers.arm(now_ms + lease_ms, Kind.LEASE, permit)
        return now_ms + lease_ms

    # -- ending

    def give_back(self, permit: Permit) -> bool:
        """`release` where nobody has to be told and nothing cools: no time is needed. False: not so."""
        if permit.bound or permit.ended is not None:
            return False
        limits = permit.claims.limits
        for limit, _ in limits:
            if limit.busy:
                return False
        permit.ended = "released"
        self.live.discard(permit)
        for limit, weight in limits:
            limit.used -= weight
        return True

    def give_back_enrolled(self, permit: Permit) -> bool:
        """`give_back` for one that is known by key and owner, and by nothing else. False: not so."""
        if permit.ended is not None or permit.lent or permit.nested:
            return False
        if permit.lease is not None or permit.shares is not None:
            return False
        permit.bound = False
        if not self.give_back(permit):
            permit.bound = True
            return False
        if permit.key is not None:
            del self.permits[permit.key]
        if permit.owner is not None:
            self.disown(permit.owner, permit)
        return True

    def let_go(
        self,
        permit: Permit,
        how: Literal["released", "expired", "revoked"],
        outcome: Outcome,
        now_ms: int,
    ) -> list[Limit]:
        """End *permit*; which limits have units free again. The others' cool, or the family keeps them."""
        permit.ended = how
        self.live.discard(permit)
        if permit.key is not None:
            del self.permits[permit.key]
        if permit.owner is not None:
            self.disown(permit.owner, permit)
        if permit.lease is not None:
            self.timers.cancel(permit.lease)
        return [] if permit.lent else self.put_back(permit, outcome, now_ms)

    def put_back(self, permit: Permit, outcome: Outcome, now_ms: int) -> list[Limit]:
        """Take the units of *permit* out of its hand; which limits have units free again."""
        freed = []
        for limit, weight in permit.claims.limits:
            if permit.shares is not None and (share := permit.shares.get(limit)) is not None:
                share.members.discard(permit)
                if share.members:
                    continue
                weight = share.weight
            cooldown_ms = 0 if limit.cooldown is NO_COOLDOWN else limit.cooldown.after(outcome)
            if cooldown_ms:
                hold = Hold(limit, weight, now_ms + cooldown_ms)
                limit.holds.add(hold)
                self.timers.arm(hold.until_ms, Kind.HOLD, hold)
            else:
                limit.used -= weight
                freed.append(limit)
        return freed

    def disown(self, owner: str, one: Permit | Waiter) -> None:
        """*owner* has nothing to do with *one* any more."""
        owned = self.owners[owner]
        owned.discard(one)
        if not owned:
            del self.owners[owner]

    # -- self-check

    def check(self) -> None:
        """Raise AssertionError, saying what is wrong, if a cached number left what it is derived from."""
        for limit in self.limits.values():
            held: dict[object, int] = {}
            for permit in self.holders(limit):
                share = None if permit.shares is None else permit.shares.get(limit)
                held[share or permit] = permit.claims.weight(limit) if share is None else share.weight
            used = sum(held.values()) + sum(hold.weight for hold in limit.holds)
            assert limit.used == used, f"{limit!r}: {used} units are taken, {limit.used} are counted"
        assert not any(permit.ended for permit in self.live), "an ended permit is still live"

    def __repr__(self) -> str:
        return " | ".join(repr(limit) for limit in self.limits.values()) or "no limits"


def by_fence(permit: Permit) -> int:
    """The order in which permits were granted."""
    return permit.fence
