"""The kernel and the plain reference, driven side by side; the first difference is an AssertionError."""

from __future__ import annotations

from collections import Counter
from typing import Any

from core.reference import Perm, Reference, Wait
from interlock.core.kernel import Kernel
from interlock.core.model import (
    UNLIMITED,
    Cooldown,
    Ended,
    GateWaiting,
    Granted,
    Permit,
    Refused,
    Waiter,
)
from interlock.testing.walk import Step

OUTCOMES = ("success", "cancelled", "failed")


class Pair:
    """Both machines and what is live in them; ``reached`` counts every answer and effect."""

    def __init__(self) -> None:
        self.kernel = Kernel()
        self.reference = Reference()
        self.permits: list[tuple[Permit, Perm]] = []
        self.ended: list[tuple[Permit, Perm]] = []
        self.waiters: list[tuple[Waiter, Wait]] = []
        self.reached: Counter[str] = Counter()

    def carry_out(self, step: Step) -> None:
        apply = getattr(self, f"_{step.operation}")
        apply(step.now_ms, step.pick, **step.arguments)
        self._compare()

    def _known(self, name: str) -> bool:
        return name in self.kernel.limits and not self.kernel.limits[name].removed

    # operations

    def _configure(self, now: int, pick: int, *, name: str, cooldown_ms: Any, **rest: Any) -> None:
        self.kernel.configure(name, now, cooldown=Cooldown(*cooldown_ms), **rest)
        self.reference.configure(name, now, cooldown=cooldown_ms, **rest)

    def _remove(self, now: int, pick: int, *, name: str) -> None:
        if self._known(name):
            self.kernel.remove(name, now)
            self.reference.remove(name, now)
            self.reached["removed"] += 1

    def _pause(self, now: int, pick: int, *, name: str, until_ms: int) -> None:
        if self._known(name):
            self.kernel.pause(name, until_ms, now)
            self.reference.pause(name, until_ms, now)

    def _resume(self, now: int, pick: int, *, name: str) -> None:
        if self._known(name):
            self.kernel.resume(name, now)
            self.reference.resume(name, now)

    def _admit(self, now: int, pick: int, *, name: str, count: int, fresh_until_ms: Any) -> None:
        if self._known(name):
            self.kernel.admit(name, count, now, fresh_until_ms)
            self.reference.admit(name, count, now, fresh_until_ms)

    def _acquire(self, now: int, pick: int, *, names: tuple[str, ...], nested: bool, **rest: Any) -> None:
        keyed = [mine for mine, _ in self.permits if mine.key is not None]
        if pick % 16 == 0 and keyed:  # somebody comes again, as one that lost the answer does
            known = keyed[pick // 16 % len(keyed)]
            names, rest = known.claims.names, rest | {"key": known.key, "owner": known.owner}
        try:
            claims = self.kernel.claims(names)
        except KeyError:
            self.reached["unknown limit"] += 1
            return
        parents = [*self.permits[-6:], *self.ended[-1:]] if nested else []
        mine, theirs = parents[pick % len(parents)] if parents else (None, None)
        got = self.kernel.acquire(claims, now, parent=mine, **rest)
        renamed = {"since_ms": "since", "deadline_ms": "deadline", "lease_ms": "lease"}
        rest = {renamed.get(name, name): value for name, value in rest.items()}
        expected = self.reference.acquire(names, now, parent=theirs, **rest)
        if isinstance(got, Permit):
            assert isinstance(expected, Perm), (got, expected)
            assert got.fence == expected.fence
            if (got, expected) not in self.permits:
                self.permits.append((got, expected))
                self.reached["nested grant" if mine else "grant"] += 1
            else:
                self.reached["same permit"] += 1
        elif isinstance(got, Waiter):
            assert isinstance(expected, Wait), (got, expected)
            if (got, expected) not in self.waiters:
                self.waiters.append((got, expected))
                self.reached["nested wait" if mine else "wait"] += 1
            else:
                self.reached["same waiter"] += 1
        else:
            assert ("refused", got.reason) == expected
            self.reached[f"refused {got.reason}"] += 1

    def _lend(self, now: int, pick: int) -> None:
        among = [*self.permits, *self.ended[-1:]]
        if among:
            mine, theirs = among[pick % len(among)]
            got = self.kernel.lend(mine, now)
            assert self.reference.lend(theirs, now) == got
            self.reached[f"lend {got}"] += 1

    def _reclaim(self, now: int, pick: int, *, deadline_ms: int | None) -> None:
        among = [pair for pair in self.permits if pair[0].lent] or self.permits
        if not among:
            return
        mine, theirs = among[pick % len(among)]
        try:
            claims = self.kernel.claims(mine.claims.names)
        except KeyError:
            return
        got = self.kernel.reclaim(mine, claims, now, deadline_ms)
        expected = self.reference.reclaim(theirs, now, deadline_ms)
        if isinstance(got, Permit):
            assert expected is theirs
            self.reached["reclaimed"] += 1
        elif isinstance(got, Waiter):
            assert isinstance(expected, Wait), (got, expected)
            self.waiters.append((got, expected))
            self.reached["wait to reclaim"] += 1
        else:
            assert ("refused", got.reason) == expected
            self.reached[f"reclaim refused {got.reason}"] += 1

    def _adopt(
        self, now: int, pick: int, *, names: Any, key: str, ahead: int, nested: bool, **rest: Any
    ) -> None:
        if not all(map(self._known, names)):
            return
        parents = self.permits[-3:] if nested else []
        mine, theirs = parents[pick % len(parents)] if parents else (None, None)
        held = self.kernel.permits.get(key)
        fence = held.fence if held is not None and ahead else self.kernel.fence + 1 + ahead
        claims, owner, lease = self.kernel.claims(names), rest["owner"], rest["lease_ms"]
        got = self.kernel.adopt(claims, now, key, fence, owner, mine, lease)
        expected = self.reference.adopt(
            names, now, key=key, fence=fence, owner=owner, parent=theirs, lease=lease
        )
        if isinstance(got, Refused):
            assert ("refused", got.reason) == expected
            self.reached["adoption refused"] += 1
        else:
            assert got.fence == expected.fence == fence
            if (got, expected) not in self.permits:
                self.permits.append((got, expected))
            self.reached["adopted"] += 1

    def _release(self, now: int, pick: int, *, outcome: int, again: bool) -> None:
        among = self.ended if again else self.permits
        if among:
            mine, theirs = among[pick % len(among)]
            got = self.kernel.release(mine, now, OUTCOMES[outcome])
            assert self.reference.release(theirs, now, outcome) == got
            self.reached[f"release {got}"] += 1

    def _revoke(self, now: int, pick: int) -> None:
        if self.permits:
            mine, theirs = self.permits[pick % len(self.permits)]
            assert self.kernel.revoke(mine, now)
            assert self.reference.revoke(theirs, now)

    def _release_owner(self, now: int, pick: int, *, owner: str) -> None:
        got = len(self.kernel.release_owner(owner, now))
        assert self.reference.release_owner(owner, now) == got
        self.reached["owner released"] += got

    def _renew(self, now: int, pick: int, *, stale: bool, lease_ms: int) -> None:
        if self.permits:
            mine, theirs = self.permits[pick % len(self.permits)]
            fence = mine.fence - stale
            got = self.kernel.renew(mine, fence, lease_ms, now)
            assert self.reference.renew(theirs, fence, lease_ms, now) == got
            self.reached["stale fence" if got is None else "renewed"] += 1

    def _withdraw(self, now: int, pick: int) -> None:
        if self.waiters:
            mine, theirs = self.waiters[pick % len(self.waiters)]
            assert self.kernel.withdraw(mine, now)
            assert self.reference.withdraw(theirs, now)
            self.waiters.remove((mine, theirs))
            self.reached["withdrawn"] += 1

    def _tick(self, now: int, pick: int) -> None:
        assert self.kernel.next_deadline() == self.reference.next_deadline()
        self.kernel.tick(now)
        self.reference.tick(now)

    # comparison

    def _compare(self) -> None:
        effects = [self._plain(effect) for effect in self.kernel.outbox]
        assert effects == self.reference.effects
        self.kernel.outbox.clear()
        self.reference.effects.clear()
        for waiter, wait in self.waiters:
            if waiter.permit is not None:
                perm = self.reference.by_fence[waiter.permit.fence]
                if waiter.reclaims is None:
                    self.permits.append((waiter.permit, perm))
            elif waiter.waiting and waiter.charged.lanes[waiter.priority].head is waiter:
                assert waiter.passed == wait.passed, "patience differs"
                self.reached["impatient"] += waiter.passed == 16
        self.ended += [pair for pair in self.permits if pair[0].ended]
        self.permits = [pair for pair in self.permits if not pair[0].ended]
        self.waiters = [pair for pair in self.waiters if pair[0].waiting]
        assert [perm.live for _, perm in self.permits] == [True] * len(self.permits)
        assert len(self.permits) == len(self.reference.permits)
        assert {id(wait) for _, wait in self.waiters} == {id(w) for w in self.reference.waiters}
        assert self.kernel.limits.keys() == self.reference.limits.keys()
        for name, limit in self.kernel.limits.items():
            other = self.reference.limits[name]
            assert limit.used == self.reference.used(other), name
            assert limit.credits == other.credits, name
            assert limit.closed == self.reference.closed(other), name
            assert len(limit.waiters) == len(self.reference.waiting_at(other)), name
            assert len(limit.holds) == sum(h.limit is other for h in self.reference.holds), name
        self.kernel.check()
        self._check_rules()

    def _check_rules(self) -> None:
        """What must hold in every state, whatever both machines agree on."""
        for limit in self.kernel.limits.values():
            plain = not limit.waiters and limit.paused_until_ms is None and not limit.gated
            if not limit.removed:
                assert limit.open_capacity == (limit.capacity if plain else -1)
            assert limit.capacity <= UNLIMITED
        assert not any(self.reference.fits(w.charged, w.rank) for w in self.reference.heads()), (
            "a waiter that fits was left waiting"
        )

    def _plain(self, effect: object) -> tuple[Any, ...]:
        match effect:
            case Granted(waiter, permit):
                self.reached["effect granted"] += 1
                return ("granted", waiter.rank, permit.fence)
            case Ended(reason, subject):
                self.reached[f"effect {reason}"] += 1
                told = subject.fence if isinstance(subject, Permit) else subject.rank
                return ("ended", reason, told)
            case GateWaiting(limit, recycled):
                self.reached[f"effect gate recycled={recycled}"] += 1
                return ("gate", limit, recycled)
            case _:
                raise AssertionError(effect)


EVERYTHING = {
    "grant",
    "nested grant",
    "same permit",
    "wait",
    "nested wait",
    "same waiter",
    "refused conflict",
    "refused would_block",
    "refused queue_full",
    "refused parent_released",
    "refused lent",
    "refused deadlock",
    "lend None",
    "lend ended",
    "lend lent",
    "lend family",
    "reclaimed",
    "wait to reclaim",
    "reclaim refused conflict",
    "adopted",
    "adoption refused",
    "unknown limit",
    "release True",
    "release False",
    "owner released",
    "renewed",
    "stale fence",
    "withdrawn",
    "removed",
    "impatient",
    "effect granted",
    "effect expired",
    "effect revoked",
    "effect timed_out",
    "effect dropped",
    "effect deadlock",
    "effect gate recycled=True",
    "effect gate recycled=False",
}
"""Every answer, refusal and effect; a hunt that missed one has not hunted."""
