"""The rules of admission, walked plainly: lists, no heaps, everything worked out anew after each change.

Slow and short, so that it can be read as the specification. It shares no code with the package but the
constant of patience; the differential walk holds `interlock.core.kernel` against it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from interlock.core.model import PATIENCE, UNLIMITED


@dataclass(eq=False)
class Lim:
    name: str
    capacity: float = float("inf")
    cooldown: tuple[int, int, int] = (0, 0, 0)
    queue_max: int | None = None
    gated: bool = False
    credits: int = 0
    fresh: tuple[int, int] | None = None  # (until, armed)
    pause: tuple[int, int] | None = None
    removed: bool = False


@dataclass(eq=False)
class Charge:
    limit: Lim
    weight: int
    members: list[Any] = field(default_factory=list)


@dataclass(eq=False)
class Hold:
    limit: Lim
    weight: int
    until: int
    armed: int


@dataclass(eq=False)
class Perm:
    key: str | None
    names: tuple[str, ...]
    owner: str | None
    parent: Perm | None
    fence: int
    rank: tuple[int, int, int]
    lease: tuple[int, int] | None = None
    live: bool = True
    lent: bool = False


@dataclass(eq=False)
class Wait:
    key: str | None
    names: tuple[str, ...]
    charged: tuple[tuple[Lim, int], ...]
    owner: str | None
    parent: Perm | None
    rank: tuple[int, int, int]
    lease_ms: int | None
    deadline: tuple[int, int] | None = None
    passed: int = 0
    reclaims: Perm | None = None

    @property
    def below(self) -> Perm | None:
        return self.parent if self.reclaims is None else self.reclaims.parent

    @property
    def held_up(self) -> list[Perm]:
        """The permits whose holders go on only after this one."""
        above, permit = [], self.below
        while permit is not None and permit.live:
            above.append(permit)
            permit = permit.parent
        return above

    @property
    def lane(self) -> Any:
        return self.charged, self.rank[0]


class Reference:
    def __init__(self) -> None:
        self.limits: dict[str, Lim] = {}
        self.permits: list[Perm] = []
        self.by_fence: dict[int, Perm] = {}
        self.charges: list[Charge] = []
        self.holds: list[Hold] = []
        self.waiters: list[Wait] = []
        self.effects: list[tuple[Any, ...]] = []
        self.asking: dict[Lim, bool] = {}
        self.fence = self.arrivals = self.arms = 0

    # readings

    def used(self, limit: Lim) -> int:
        return sum(c.weight for c in self.charges if c.limit is limit) + sum(
            h.weight for h in self.holds if h.limit is limit
        )

    def waiting_at(self, limit: Lim) -> list[Wait]:
        return [w for w in self.waiters if any(claimed is limit for claimed, _ in w.charged)]

    def closed(self, limit: Lim) -> bool:
        return limit.pause is not None or (limit.gated and limit.credits <= 0)

    def aside(self, w: Wait) -> bool:
        return any(self.closed(limit) or limit.capacity < n for limit, n in w.charged)

    def room(self, limit: Lim) -> float:
        room = limit.capacity - self.used(limit)
        return min(room, limit.credits) if limit.gated else room

    def heads(self) -> list[Wait]:
        front: dict[Any, Wait] = {}
        for w in sorted(self.waiters, key=lambda w: w.rank):
            front.setdefault(w.lane, w)
        return sorted(front.values(), key=lambda w: w.rank)

    def reserved_before(self, rank: tuple[int, int, int]) -> Counter[Lim]:
        reserved: Counter[Lim] = Counter()
        for w in self.heads():
            if w.rank >= rank:
                break
            if self.aside(w):
                continue
            lacks = {limit for limit, n in w.charged if self.room(limit) - reserved[limit] < n}
            for limit, n in w.charged:
                if limit in lacks or w.passed >= PATIENCE:
                    reserved[limit] += n
        return reserved

    def fits(self, charged: Any, rank: tuple[int, int, int], *, newcomer: bool = False) -> bool:
        reserved = self.reserved_before(rank)
        for limit, n in charged:
            gate_open = newcomer and not self.waiting_at(limit) and limit.fresh is None
            if limit.gated and gate_open and limit.pause is None:
                if limit.capacity - self.used(limit) < n:
                    return False
            elif self.closed(limit) or self.room(limit) - reserved[limit] < n:
                return False
        return True

    # the granter

    def walk(self) -> None:
        while (w := next((w for w in self.heads() if self.fits(w.charged, w.rank)), None)) is not None:
            self.pass_by(w.charged, w.rank)
            self.waiters.remove(w)
            if w.reclaims is None:
                permit = self.grant(w.key, w.names, w.charged, w.owner, w.parent, w.rank, w.lease_ms)
            else:
                permit = self.retake(w.reclaims, w.charged)
            self.effects.append(("granted", w.rank, permit.fence))
        if circle := self.circle():
            victim = max((w for w in circle if w.held_up), key=lambda w: w.rank)
            self.end_wait(victim, "deadlock")
            self.walk()
            return
        for limit, recycled in self.asking.items():
            shut = limit.gated and limit.credits <= 0 and limit.pause is None
            if shut and self.waiting_at(limit) and limit.capacity - self.used(limit) > 0:
                self.effects.append(("gate", limit.name, recycled))
        self.asking = {}

    def pass_by(self, charged: Any, rank: tuple[int, int, int]) -> None:
        mine = {limit for limit, _ in charged}
        for head in self.heads():
            shares = any(limit in mine for limit, _ in head.charged)
            if head.rank < rank and shares and not self.aside(head) and head.passed < PATIENCE:
                head.passed += 1

    # circles

    def circle(self) -> list[Wait]:
        """From the oldest who waits in vain on to the youngest who keeps what it lacks, and so on."""
        if not any(w.below for w in self.waiters):
            return []
        vain = [w for w in self.waiters if w.below or self.may_reserve(w)]
        while (still := [w for w in vain if self.lacking(w, vain)]) != vain:
            vain = still
        way: list[Wait] = []
        w = min(vain, key=lambda w: w.rank, default=None)
        while w is not None and w not in way:
            way.append(w)
            limit = self.lacking(w, vain)[0]
            w = max(self.keepers(w, limit, vain), key=lambda w: w.rank)
        return way[way.index(w) :] if w is not None else []

    def may_reserve(self, e: Wait) -> bool:
        weighty = any(n > 1 for _, n in e.charged)
        return e in self.heads() and not self.aside(e) and (weighty or e.passed >= PATIENCE)

    def lacking(self, w: Wait, vain: list[Wait]) -> list[Lim]:
        """Limits of which *w* will never have enough if nobody in *vain* goes on."""
        lacking = []
        for limit, n in w.charged:
            older = (e for e in vain if e.rank < w.rank)
            kept = self.kept(limit, vain) + sum(self.keeps_for(e, limit, vain) for e in older)
            if n <= limit.capacity and limit.capacity - kept < n:
                lacking.append(limit)
        return lacking

    def kept(self, limit: Lim, vain: list[Wait]) -> int:
        held_up = [permit for w in vain for permit in w.held_up]
        return sum(
            c.weight for c in self.charges if c.limit is limit and any(p in held_up for p in c.members)
        )

    def keeps_for(self, e: Wait, limit: Lim, vain: list[Wait]) -> int:
        """What *e* has reserved of *limit* for as long as it waits."""
        if not self.may_reserve(e):
            return 0
        n = dict(e.charged).get(limit, 0)
        lacks = n > 1 and n <= limit.capacity and limit.capacity - self.kept(limit, vain) < n
        return n if lacks or e.passed >= PATIENCE else 0

    def keepers(self, w: Wait, limit: Lim, vain: list[Wait]) -> list[Wait]:
        holding = [p for c in self.charges if c.limit is limit for p in c.members]
        below = [v for v in vain if any(p in holding for p in v.held_up)]
        return below + [e for e in vain if e.rank < w.rank and self.keeps_for(e, limit, vain)]

    def grant(
        self, key: Any, names: Any, charged: Any, owner: Any, parent: Any, rank: Any, lease: Any
    ) -> Perm:
        self.fence += 1
        permit = Perm(key, names, owner, parent, self.fence, rank)
        own = {limit for limit, _ in charged}
        for limit, n in charged:
            self.charges.append(Charge(limit, n, [permit]))
            if limit.gated:
                limit.credits = max(0, limit.credits - n)
        for name in set(names):
            if self.limits[name] not in own:
                self.charge_of(parent, name).members.append(permit)
        self.permits.append(permit)
        self.by_fence[permit.fence] = permit
        if lease is not None:
            permit.lease = (self.now + lease, self.arm())
        return permit

    def charge_of(self, permit: Perm, name: str) -> Charge:
        return next(c for c in self.charges if c.limit.name == name and permit in c.members)

    def arm(self) -> int:
        self.arms += 1
        return self.arms

    # operations

    now = 0

    def configure(
        self, name: str, now: int, capacity: int | None, cooldown: Any, queue_max: Any, gated: bool
    ) -> None:
        self.now = now
        limit = self.limits.setdefault(name, Lim(name))
        before, limit.capacity = limit.capacity, float("inf") if capacity is None else capacity
        limit.credits = int(
            max(0, limit.credits - (max(0, before - limit.capacity) if before > limit.capacity else 0))
        )
        limit.cooldown, limit.queue_max, limit.removed = cooldown, queue_max, False
        if limit.gated and not gated:
            limit.credits, limit.fresh = 0, None
        limit.gated = gated
        self.recycled(limit)
        self.walk()

    def remove(self, name: str, now: int) -> None:
        self.now = now
        limit = self.limits[name]
        limit.removed = True
        for w in sorted(self.waiting_at(limit), key=lambda w: w.rank):
            if w in self.waiters:
                self.end_wait(w, "dropped")
        limit.credits, limit.fresh, limit.gated, limit.pause = 0, None, False, None
        self.walk()
        self.forget()

    def pause(self, name: str, until: int, now: int) -> None:
        self.now = now
        limit = self.limits[name]
        if until > max(now, limit.pause[0] if limit.pause else 0):
            limit.pause = (until, self.arm())
            self.walk()

    def resume(self, name: str, now: int) -> None:
        self.now = now
        self.limits[name].pause = None
        self.recycled(self.limits[name])
        self.walk()

    def admit(self, name: str, count: int, now: int, fresh_until: int | None) -> None:
        self.now = now
        limit = self.limits[name]
        if limit.gated:
            limit.credits = max(0, count)
            limit.fresh = None if fresh_until is None else (fresh_until, self.arm())
            self.walk()

    def acquire(
        self,
        names: tuple[str, ...],
        now: int,
        *,
        key: str | None,
        owner: str | None,
        parent: Perm | None,
        priority: int,
        since: int | None,
        deadline: int | None,
        lease: int | None,
        wait: bool,
    ) -> Any:
        self.now = now
        names = tuple(sorted(names))
        if key is not None:
            live: list[Perm | Wait] = [*self.permits, *self.waiters]
            for known in live:
                if known.key == key:
                    if known.names != names or known.owner != owner:
                        return ("refused", "conflict")
                    return ("refused", "lent") if isinstance(known, Perm) and known.lent else known
        if parent is not None and not parent.live:
            return ("refused", "parent_released")
        covered = parent.names if parent is not None and not parent.lent else ()
        units = Counter(name for name in names if name not in covered)
        charged = tuple((self.limits[name], units[name]) for name in sorted(units))
        plain = all(
            not self.waiting_at(limit)
            and not limit.gated
            and limit.pause is None
            and limit.capacity - self.used(limit) >= n
            for limit, n in charged
        )
        since = now if since is None else min(since, now)
        if parent is None and plain:
            rank = (priority, since, self.fence + 1 - UNLIMITED)
            return self.grant(key, names, charged, owner, parent, rank, lease)
        self.arrivals += 1
        rank = (priority, since, self.arrivals)
        if self.may_walk_in(charged, rank):
            self.pass_by(charged, rank)
            permit = self.grant(key, names, charged, owner, parent, rank, lease)
            self.walk()
            return permit
        if not wait:
            return ("refused", "would_block")
        if any(x.queue_max is not None and len(self.waiting_at(x)) >= x.queue_max for x, _ in charged):
            return ("refused", "queue_full")
        w = Wait(key, names, charged, owner, parent, rank, lease)
        if deadline is not None:
            w.deadline = (deadline, self.arm())
        self.waiters.append(w)
        for limit, _ in charged:
            if limit.gated:
                self.asking.setdefault(limit, False)
        self.walk()
        return self.answer(w)

    def may_walk_in(self, charged: Any, rank: tuple[int, int, int]) -> bool:
        behind = any(w.lane == (charged, rank[0]) and w.rank < rank for w in self.waiters)
        return not behind and self.fits(charged, rank, newcomer=True)

    def answer(self, w: Wait) -> Any:
        """*w*, unless it closed a circle as the youngest: its request is refused, nothing else is said."""
        said = ("ended", "deadlock", w.rank)
        if said in self.effects:
            self.effects.remove(said)
            return ("refused", "deadlock")
        return w

    def adopt(
        self, names: Any, now: int, *, key: str, fence: int, owner: Any, parent: Any, lease: Any
    ) -> Any:
        self.now = now
        names = tuple(sorted(names))
        known = next((one for one in [*self.permits, *self.waiters] if one.key == key), None)
        if known is not None:
            same = known.names == names and known.owner == owner
            held = isinstance(known, Perm) and known.fence == fence and not known.lent
            return known if same and held else ("refused", "conflict")
        parent = parent if parent is not None and parent.live else None
        covered = parent.names if parent is not None and not parent.lent else ()
        units = Counter(name for name in names if name not in covered)
        charged = tuple((self.limits[name], units[name]) for name in sorted(units))
        rank = (0, now, fence - UNLIMITED)
        permit = self.grant(key, names, charged, owner, parent, rank, lease)
        del self.by_fence[permit.fence]
        self.fence = max(self.fence - 1, fence)
        permit.fence = fence
        self.by_fence[fence] = permit
        self.walk()
        return permit

    def lend(self, permit: Perm, now: int) -> str | None:
        self.now = now
        if not permit.live:
            return "ended"
        if permit.lent:
            return "lent"
        mine = [c for c in self.charges if permit in c.members]
        whole = sorted((c.limit.name, c.weight) for c in mine) == sorted(Counter(permit.names).items())
        if (
            not whole
            or any(len(c.members) > 1 for c in mine)
            or any(w.parent is permit for w in self.waiters)
        ):
            return "family"
        self.put_back(permit, 0)
        permit.lent = True
        self.walk()
        self.forget()
        return None

    def reclaim(self, permit: Perm, now: int, deadline: int | None) -> Any:
        self.now = now
        if not permit.live or any(w.reclaims is permit for w in self.waiters):
            return ("refused", "conflict")
        if not permit.lent:
            return permit
        charged = tuple((self.limits[name], n) for name, n in sorted(Counter(permit.names).items()))
        if self.may_walk_in(charged, permit.rank):
            self.pass_by(charged, permit.rank)
            self.retake(permit, charged)
            self.walk()
            return permit
        w = Wait(None, permit.names, charged, permit.owner, None, permit.rank, None)
        w.reclaims = permit
        if deadline is not None:
            w.deadline = (deadline, self.arm())
        self.waiters.append(w)
        for limit, _ in charged:
            if limit.gated:
                self.asking.setdefault(limit, False)
        self.walk()
        return self.answer(w)

    def retake(self, permit: Perm, charged: Any) -> Perm:
        self.fence += 1
        permit.fence, permit.lent = self.fence, False
        self.by_fence[permit.fence] = permit
        for limit, n in charged:
            self.charges.append(Charge(limit, n, [permit]))
            if limit.gated:
                limit.credits = max(0, limit.credits - n)
        return permit

    def release(self, permit: Perm, now: int, outcome: int) -> bool:
        self.now = now
        if not permit.live:
            return False
        self.end(permit, outcome)
        self.walk()
        return True

    def revoke(self, permit: Perm, now: int) -> bool:
        self.now = now
        if not permit.live:
            return False
        self.end(permit, 2)
        self.effects.append(("ended", "revoked", permit.fence))
        self.walk()
        return True

    def release_owner(self, owner: str, now: int) -> int:
        self.now = now
        permits = [p for p in self.permits if p.owner == owner]
        for w in sorted((w for w in self.waiters if w.owner == owner), key=lambda w: w.rank):
            if w in self.waiters:
                self.end_wait(w, "revoked")
        for p in sorted(permits, key=lambda p: p.fence):
            if p.live:
                self.end(p, 0)
        self.walk()
        return len(permits)

    def renew(self, permit: Perm, fence: int, lease: int, now: int) -> int | None:
        if not permit.live or permit.fence != fence:
            return None
        permit.lease = (now + lease, self.arm())
        return now + lease

    def withdraw(self, w: Wait, now: int) -> bool:
        self.now = now
        if w not in self.waiters:
            return False
        self.stop_waiting(w)
        self.walk()
        return True

    # time

    def due(self) -> list[tuple[int, int, int, Any]]:
        """Everything that will fall due: when, in which order at one instant, armed when, what."""
        return sorted(
            [(h.until, 0, h.armed, h) for h in self.holds]
            + [(*_kinded(p.lease, 1), p) for p in self.permits if p.lease]
            + [(*_kinded(x.pause, 2), x) for x in self.limits.values() if x.pause]
            + [(*_kinded(x.fresh, 3), x) for x in self.limits.values() if x.fresh]
            + [(*_kinded(w.deadline, 4), w) for w in self.waiters if w.deadline],
            key=lambda due: due[:3],
        )

    def next_deadline(self) -> int | None:
        due = self.due()
        return due[0][0] if due else None

    def tick(self, now: int) -> None:
        while (due := self.due()) and due[0][0] <= now:
            self.now, kind, _, subject = due[0]
            if kind == 0:
                self.holds.remove(subject)
                self.recycled(subject.limit)
            elif kind == 1:
                self.end(subject, 2)
                self.effects.append(("ended", "expired", subject.fence))
            elif kind == 2:
                subject.pause = None
                self.recycled(subject)
            elif kind == 3:
                subject.fresh, subject.credits = None, 0
                if subject.gated:
                    self.asking.setdefault(subject, False)
            else:
                self.end_wait(subject, "timed_out")
            self.walk()
            self.forget()

    # ends

    def end(self, permit: Perm, outcome: int) -> None:
        permit.live = False
        self.permits.remove(permit)
        if not permit.lent:
            self.put_back(permit, outcome)
        for w in [w for w in self.waiters if w.reclaims is permit]:
            self.end_wait(w, "dropped")
        nested = [w for w in self.waiters if w.parent is permit]
        for w in sorted(nested, key=lambda w: w.rank):
            self.end_wait(w, "dropped")
        self.forget()

    def put_back(self, permit: Perm, outcome: int) -> None:
        for name in sorted(set(permit.names)):
            charge = self.charge_of(permit, name)
            charge.members.remove(permit)
            if charge.members:
                continue
            self.charges.remove(charge)
            cooldown = charge.limit.cooldown[outcome]
            if cooldown:
                hold = Hold(charge.limit, charge.weight, self.now + cooldown, self.arm())
                self.holds.append(hold)
            else:
                self.recycled(charge.limit)

    def end_wait(self, w: Wait, reason: str) -> None:
        self.effects.append(("ended", reason, w.rank))
        self.stop_waiting(w)

    def stop_waiting(self, w: Wait) -> None:
        self.waiters.remove(w)
        if w.reclaims is not None and w.reclaims.live:
            self.end(w.reclaims, 0)

    def recycled(self, limit: Lim) -> None:
        if limit.gated:
            self.asking[limit] = True

    def forget(self) -> None:
        for limit in list(self.limits.values()):
            if limit.removed and not self.used(limit):
                del self.limits[limit.name]


def _kinded(due: tuple[int, int] | None, kind: int) -> tuple[int, int, int]:
    assert due is not None
    return due[0], kind, due[1]
