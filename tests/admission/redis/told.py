"""The kernel in Python with what its clients are told: the half of the oracle that is about them.

Who asked for what, who has to hear of it, whose time it is and which epoch; in lists and dictionaries."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from math import floor
from typing import Any

from interlock.core.explain import blocks
from interlock.core.kernel import Kernel
from interlock.core.model import (
    UNLIMITED,
    Claims,
    Ended,
    GateWaiting,
    Granted,
    Limit,
    Permit,
    Rank,
    Refused,
    Waiter,
)

SILENCE_MS = 5_000


class Kept(Kernel):
    """The kernel, which notes how the members of a circle are called while they are in it."""

    def _note(self, waiter: Waiter) -> None:
        if waiter.circle and not hasattr(waiter, "circle_named"):
            waiter.circle_named = [[_above(one), limit.name] for one, limit in waiter.circle]  # type: ignore[attr-defined]

    def _stop_waiting(self, waiter: Waiter) -> None:
        self._note(waiter)
        super()._stop_waiting(waiter)


def _above(waiter: Waiter) -> str:
    under = waiter.under
    if under is not None and under.ended is None:
        return under.owner or str(under.key)
    return waiter.owner or waiter.key or str(waiter.reclaims and waiter.reclaims.key)


@dataclass(eq=False)
class Ask:
    """Somebody who waits for a waiter."""

    client: str
    number: int
    deadline_ms: int | None
    timer: tuple[int, int, int] | None = None


@dataclass(eq=False)
class Client:
    """A process, as far as it is known."""

    number: int
    inbox: int
    lease_ms: int
    seen_ms: int
    timer: tuple[int, int, int] = (0, 0, 0)
    news: list[tuple[int, list[Any]]] = field(default_factory=list)


def ms(seconds: float) -> int:
    return floor(seconds * 1000 + 0.001)


class Told:
    """Clients around a kernel; what they say is in `Oracle`."""

    def __init__(self) -> None:
        self.reached: Counter[str] = Counter()
        self.server = ""
        self.alive = False
        self._forget()

    def _forget(self) -> None:
        self.kernel = Kept()
        self.clients: dict[str, Client] = {}
        self.asks: dict[Waiter, list[Ask]] = {}
        self.takers: dict[Permit, list[str]] = {}
        self.told: set[Permit] = set()
        self.keepers: dict[str, str] = {}
        self.timers: dict[tuple[int, int, int], Any] = {}
        self.serial = 0
        self.jumped_ms: int | None = None
        self.quarantine_ms = 0

    # -- time and epochs

    def _start(self, request: dict[str, Any]) -> None:
        time_ms, lease_ms = request["time"], request["lease"]
        leases = [client.lease_ms for client in self.clients.values()]
        if not self.alive:
            self._forget()
            self.alive, self.now, self.time_ms = True, time_ms, time_ms
            self._begin_epoch(request)
            return
        shortest = min([lease_ms, *leases])
        passed, most = max(0, time_ms - self.time_ms), shortest // 2
        self.time_ms = time_ms
        if passed > most:
            self.reached["leap"] += 1
            passed = 0
            if self.jumped_ms is None or self.now - self.jumped_ms >= shortest:
                passed = most
                self.jumped_ms = self.now + most
                self.reached["leap counted"] += 1
        self.now += passed
        if self.server != request["server"]:
            self.reached["another server"] += 1
            self._begin_epoch(request)
        elif self.now < self.quarantine_ms < self.started_ms + lease_ms:
            self.reached["quarantine extended"] += 1
            self.quarantine_ms = self.started_ms + lease_ms
            self._hold_all_back()

    def _begin_epoch(self, request: dict[str, Any]) -> None:
        leases = [client.lease_ms for client in self.clients.values()]
        self.server = request["server"]
        self.kernel.fence = max(self.kernel.fence, request["time"] * 1000)
        self.started_ms = self.now
        self.quarantine_ms = 0 if request.get("allow") else self.now + max([request["lease"], *leases])
        self.reached["quarantine" if self.quarantine_ms else "epoch without quarantine"] += 1
        self._hold_all_back()

    def _hold_all_back(self) -> None:
        for _, limit in sorted(self.kernel.limits.items()):
            self._hold_back(limit)

    def _quarantined(self, limit: Limit) -> int:
        if not self.quarantine_ms or limit.capacity == UNLIMITED or limit.removed:
            return 0
        cooldown = limit.cooldown
        return self.quarantine_ms + max(cooldown.success_ms, cooldown.cancelled_ms, cooldown.failed_ms)

    def _hold_back(self, limit: Limit) -> None:
        if self._quarantined(limit) > self.now:
            self.kernel.pause(limit.name, self._quarantined(limit), self.now)

    def _arm(self, due_ms: int, kind: int, subject: Any) -> tuple[int, int, int]:
        self.serial += 1
        timer = due_ms, kind, self.serial
        self.timers[timer] = subject
        return timer

    def _tick(self, now: int) -> None:
        while True:
            due, other = self.kernel.next_deadline(), min(self.timers, default=None)
            if due is not None and due <= now and (other is None or due <= other[0]):
                self.kernel.tick(due)
            elif other is not None and other[0] <= now:
                self._carry_out(other[0])
                subject = self.timers.pop(other, None)
                if subject is None:
                    self.reached["ended as it timed out"] += 1
                elif isinstance(subject, Ask):
                    self._ask_times_out(subject, other[0])
                else:
                    self._fall_silent(subject, other[0])
            else:
                return

    # -- clients

    def _greet(self, request: dict[str, Any]) -> tuple[bool, bool]:
        name, seen = request["client"], request["seen"]
        client = self.clients.get(name)
        known = client is not None
        if client is None:
            client = self.clients[name] = Client(0, seen, request["lease"], self.now)
            client.timer = self._arm(self.now + max(SILENCE_MS, request["lease"]), 5, name)
        elif request["number"] <= client.number:
            self.reached["stale request"] += 1
            return True, False
        client.number, client.seen_ms, client.lease_ms = request["number"], self.now, request["lease"]
        client.inbox = max(client.inbox, seen)
        client.news = [(number, entry) for number, entry in client.news if number > seen]
        return known, True

    def _tell(self, name: str, *entry: Any) -> None:
        client = self.clients.get(name)
        if client is not None:
            client.inbox += 1
            client.news.append((client.inbox, list(entry)))
            self.reached[f"told {entry[0]}" + (f" {entry[2]}" if entry[0] == "refused" else "")] += 1

    def _tell_ended(self, permit: Permit, how: str, caller: str | None = None) -> None:
        if permit not in self.told:
            self.told.add(permit)
            for taker in self.takers.pop(permit, ()):
                if taker != caller:
                    self._tell(taker, "ended", permit.key, permit.fence, how)

    def _take(self, permit: Permit, name: str) -> None:
        takers = self.takers.setdefault(permit, [])
        if name not in takers:
            takers.append(name)

    def _give_back(self, permit: Permit, name: str, now: int) -> None:
        takers = self.takers.get(permit, [])
        if name in takers:
            takers.remove(name)
        if not takers:
            self.kernel.release(permit, now, "unused")
            self.reached["given back unused"] += 1
        else:
            self.reached["given back, but not by all"] += 1

    def _fall_silent(self, name: str, now: int) -> None:
        client = self.clients[name]
        end = client.seen_ms + max(SILENCE_MS, client.lease_ms)
        if end > now:
            client.timer = self._arm(end, 5, name)
            return
        self.reached["client fell silent"] += 1
        mine = [(ask.number, waiter, ask) for waiter, asks in self.asks.items() for ask in asks]
        for _, waiter, ask in sorted((one for one in mine if one[2].client == name), key=lambda one: -one[0]):
            if waiter.waiting:
                self._forget_ask(waiter, ask)
                if not self.asks[waiter] and waiter.reclaims is None:
                    self.kernel.withdraw(waiter, now)
                    self.reached["silent one's wait withdrawn"] += 1
        self._carry_out(now)
        for _, entry in client.news:
            permit = self.kernel.permits.get(entry[2]) if entry[0] == "granted" else None
            if permit is not None and permit.fence == entry[3]:
                self._give_back(permit, name, now)
                self.reached["silent one's grant given back"] += 1
        self._carry_out(now)
        del self.clients[name]

    # -- asks

    def _add_ask(self, waiter: Waiter, name: str, number: int, deadline_ms: int | None) -> None:
        ask = Ask(name, number, deadline_ms)
        own = waiter.deadline_ms
        if deadline_ms is not None and (own is None or deadline_ms < own):
            ask.timer = self._arm(deadline_ms, 6, ask)
        self.asks.setdefault(waiter, []).append(ask)

    def _forget_ask(self, waiter: Waiter, ask: Ask) -> None:
        self.asks[waiter].remove(ask)
        if ask.timer is not None:
            self.timers.pop(ask.timer, None)

    def _forget_asks(self, waiter: Waiter) -> list[Ask]:
        asks = list(self.asks.get(waiter, ()))
        for ask in asks:
            self._forget_ask(waiter, ask)
        self.asks.pop(waiter, None)
        return asks

    def _find(self, name: str, number: int) -> tuple[Waiter, Ask] | None:
        for waiter, asks in self.asks.items():
            for ask in asks:
                if waiter.waiting and (ask.client, ask.number) == (name, number):
                    return waiter, ask
        return None

    def _ask_times_out(self, ask: Ask, now: int) -> None:
        waiter = next(waiter for waiter, asks in self.asks.items() if ask in asks)
        details = self._ending("timed_out", waiter, now)
        self._forget_ask(waiter, ask)
        self._tell(ask.client, "refused", ask.number, *details)
        self.reached["one of several timed out"] += 1
        if not self.asks[waiter]:
            self.kernel.withdraw(waiter, now)

    # -- effects

    def _carry_out(self, now: int) -> None:
        again: list[tuple[Waiter, Ask]] = []
        while self.kernel.outbox:
            effects = self.kernel.outbox[:]
            self.kernel.outbox.clear()
            for effect in effects:
                match effect:
                    case Granted(waiter, permit):
                        self._carry_out_grant(waiter, permit)
                    case GateWaiting(limit, recycled):
                        self.reached[f"gate recycled={recycled}"] += 1
                        if limit in self.keepers:
                            self._tell(self.keepers[limit], "gate", limit, recycled)
                    case Ended(reason, Waiter() as waiter):
                        self._carry_out_ending(waiter, reason, again, now)
                    case Ended(reason, permit):
                        self._tell_ended(permit, reason)  # type: ignore[arg-type]
            for waiter, ask in again:
                self._ask_again(waiter, ask, now)
            again = []

    def _carry_out_grant(self, waiter: Waiter, permit: Permit) -> None:
        for ask in self._forget_asks(waiter):
            if waiter.reclaims is not None:
                self._tell(ask.client, "done", ask.number, [permit.fence, permit.granted_ms])
            else:
                self._take(permit, ask.client)
                self._tell(ask.client, "granted", ask.number, permit.key, permit.fence, permit.granted_ms)

    def _carry_out_ending(self, waiter: Waiter, reason: str, again: list[Any], now: int) -> None:
        details = self._ending(reason, waiter, now)
        for ask in self._forget_asks(waiter):
            lasting = ask.deadline_ms is None or ask.deadline_ms > now
            if reason == "timed_out" and waiter.reclaims is None and lasting:
                again.append((waiter, ask))
                self.reached["outlived the one it had joined"] += 1
            else:
                self._tell(ask.client, "refused", ask.number, *details)
        lent = waiter.reclaims
        if lent is not None and lent.ended == "released":
            self._tell_ended(lent, "released")

    def _ask_again(self, waiter: Waiter, ask: Ask, now: int) -> None:
        kernel = self.kernel
        claims = kernel.claims(waiter.claims.names)
        rank = {"priority": waiter.priority, "since_ms": waiter.since_ms}
        got = kernel.acquire(
            claims,
            now,
            waiter.key,
            waiter.owner,
            waiter.parent,
            deadline_ms=ask.deadline_ms,
            lease_ms=waiter.lease_ms,
            **rank,
        )
        if isinstance(got, Permit):
            self._take(got, ask.client)
            self._tell(ask.client, "granted", ask.number, got.key, got.fence, got.granted_ms)
        elif isinstance(got, Waiter):
            self._add_ask(got, ask.client, ask.number, ask.deadline_ms)
        else:
            parent = waiter.parent.key if waiter.parent and got.reason == "parent_released" else None
            details = {"limit": got.limit, "circle": circle_of(got), "parent": parent}
            self._tell(ask.client, "refused", ask.number, got.reason, some(details))

    # -- refusals

    def _blocks(self, claims: Claims, rank: Rank) -> list[list[Any]]:
        return [
            [
                block.limit.name,
                block.why,
                block.missing,
                block.limit.used,
                False if block.limit.capacity == UNLIMITED else block.limit.capacity,
                block.limit.paused_until_ms or False,
                len(block.ahead),
                [one.owner or one.key for one in self.kernel.holders(block.limit)[:3]],
            ]
            for block in blocks(self.kernel, claims, rank)
        ]

    def _ending(self, reason: str, waiter: Waiter, now: int) -> tuple[str, dict[str, Any]]:
        details: dict[str, Any] = {"names": list(waiter.claims.names)}
        lent, parent = waiter.reclaims, waiter.parent
        if reason == "timed_out":
            details["waited_ms"] = now - waiter.arrived_ms
            details["blocks"] = self._blocks(waiter.charged, waiter.rank)
            return "timed_out", details
        if reason == "deadlock":
            return "deadlock", {"circle": waiter.circle_named}  # type: ignore[attr-defined]
        if lent is not None and lent.ended in ("expired", "revoked"):
            return "lost", details
        if reason == "revoked":
            return "revoked", {"owner": waiter.owner}
        if parent is not None and parent.ended is not None:
            return "parent_ended", details
        if lent is not None and not any(limit.removed for limit, _ in waiter.charged.limits):
            return "released", details
        return "limit_removed", details

    def _refuse(self, ask: int, reason: str, **details: Any) -> None:
        self.answers.append(["refused", ask, reason, details])
        self.reached[f"refused {reason}"] += 1

    def _done(self, ask: int, *value: Any) -> None:
        self.answers.append(["done", ask, *value])

    def _unknown(self, ask: int, names: Any) -> bool:
        limits = self.kernel.limits
        for name in sorted(set(names)):
            if name not in limits or limits[name].removed:
                known = [one.name for _, one in sorted(limits.items()) if not one.removed]
                self._refuse(ask, "unknown_limit", limit=name, known=known)
                return True
        return False


def owns(permit: Permit, fence: int) -> bool:
    return (permit.serial or permit.fence) <= fence <= permit.fence


def some(details: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in details.items() if value is not None}


def circle_of(refused: Refused) -> list[list[str]] | None:
    if not refused.circle:
        return None
    named: list[list[str]] = refused.circle[0][0].circle_named  # type: ignore[attr-defined]
    return named
