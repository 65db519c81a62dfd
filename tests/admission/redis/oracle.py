"""What the library in Lua is held against: the kernel in Python, told what clients say.

The kernel decides; `Told` knows who has to hear of it. Neither shares code with the library."""

from __future__ import annotations

from typing import Any

from admission.redis.told import Told, circle_of, ms, owns, some
from interlock.core.model import (
    Claims,
    Cooldown,
    Limit,
    Permit,
    Rank,
    Refused,
    Waiter,
)

DAY_US = 86_400_000_000


class Oracle(Told):
    """Answers requests as the library does."""

    # -- one call

    def flush(self) -> None:
        """The server has lost everything."""
        self.alive = False

    def call(self, request: dict[str, Any]) -> dict[str, Any]:
        self.answers: list[list[Any]] = []
        self._start(request)
        known, fresh = self._greet(request)
        self._tick(self.now)
        self._carry_out(self.now)
        if fresh:
            self.caller, self.lease = request["client"], request["lease"]
            for word, *said in request["ops"]:
                getattr(self, f"_{word}")(*said)
                self._carry_out(self.now)
        client = self.clients.get(request["client"])
        known = known and client is not None
        self.reached["overtaken, and silent by then"] += client is None
        for number, entry in client.news if client is not None else ():
            if number > request["seen"]:
                self.answers.append(self._delivered(entry))
        due = min([at for at, _, _ in self.timers] + [self.kernel.next_deadline() or 1 << 60])
        return {
            "known": known,
            "stale": not fresh,
            "now": self.now,
            "answers": self.answers,
            "inbox": request["seen"] if client is None else client.inbox,
            "due": max(0, due - self.now),
            "quarantine": max(0, self.quarantine_ms - self.now),
        }

    def _delivered(self, entry: list[Any]) -> list[Any]:
        if entry[0] != "granted":
            return entry
        _, ask, key, fence, granted_ms = entry
        permit = self.kernel.permits.get(key)
        left = 0
        if permit is not None and permit.fence == fence:
            left = max(0, (permit.expires_ms or self.now) - self.now)
        return ["granted", ask, fence, granted_ms, left]

    # -- words

    def _acquire(self, ask: int, key: str, names: Any, more: dict[str, Any]) -> None:
        kernel, now = self.kernel, self.now
        if self._unknown(ask, names):
            return
        parent = kernel.permits.get(more.get("parent", ""))
        if more.get("parent") is not None and parent is None:
            self._refuse(ask, "parent_released", parent=more["parent"])
            return
        timeout, since_ms = more.get("timeout"), None
        if more.get("since") is not None:
            since_ms = ms(more["since"])
        elif more.get("age"):
            since_ms = now - ms(more["age"])
        claims = kernel.claims(tuple(names))
        priority = more.get("priority", 0)
        deadline_ms = None if timeout is None else now + ms(timeout)
        lease_ms = ms(more["lease"]) if more.get("lease") else self.lease
        joined = kernel.waiters.get(key)
        got = kernel.acquire(
            claims,
            now,
            key,
            more.get("owner"),
            parent,
            priority,
            since_ms,
            deadline_ms,
            lease_ms,
            timeout != 0,
        )
        if isinstance(got, Waiter) and joined is not None and timeout == 0:
            got = Refused("would_block", joined.claims.names[0])
        if isinstance(got, Permit):
            self._take(got, self.caller)
            left = max(0, (got.expires_ms or now) - now)
            self.answers.append(["granted", ask, got.fence, got.granted_ms, left])
            self.reached["granted"] += 1
        elif isinstance(got, Refused):
            rank = (priority, now, kernel.arrivals + 1)
            self._refuse(ask, got.reason, **self._refusal(got, claims, rank))
        elif self._find(self.caller, ask):
            self.reached["asked twice"] += 1
            self.answers.append(["queued", ask, got.since_ms / 1000])
        else:
            self._add_ask(got, self.caller, ask, deadline_ms)
            if got.waiting:
                self.reached["queued" if joined is None else "joined"] += 1
                self.answers.append(["queued", ask, got.since_ms / 1000])

    def _refusal(self, refused: Refused, claims: Claims, rank: Rank) -> dict[str, Any]:
        match refused.reason:
            case "would_block":
                found = self._blocks(claims, rank)
                return {"limit": refused.limit, "names": list(claims.names), "blocks": found}
            case "queue_full":
                limit = self.kernel.limits[refused.limit or ""]
                return {"limit": limit.name, "queue_max": limit.queue_max}
            case "deadlock":
                return {"circle": circle_of(refused)}
        return {}

    def _wants(self, asks: Any) -> None:
        mine = [ask.number for found in self.asks.values() for ask in found if ask.client == self.caller]
        for number in sorted(set(mine) - set(asks), reverse=True):
            self.reached["not wanted any more"] += self._let_be(number)

    def _let_be(self, ask: int) -> bool:
        found = self._find(self.caller, ask)
        if found is None:
            return False
        waiter, mine = found
        self._forget_ask(waiter, mine)
        if not self.asks[waiter]:
            lent = waiter.reclaims
            self.kernel.withdraw(waiter, self.now)
            self.reached["withdrawn"] += 1
            if lent is not None and lent.ended is not None:
                self._tell_ended(lent, "released", self.caller)
        else:
            self.reached["withdrawn, others wait on"] += 1
        return True

    def _withdraw(self, ask: int, key: str) -> None:
        permit = self.kernel.permits.get(key)
        if not self._let_be(ask) and permit is not None:
            self.reached["withdrawn when granted"] += 1
            self._give_back(permit, self.caller, self.now)

    def _release(self, key: str, fence: int, outcome: Any) -> None:
        permit = self.kernel.permits.get(key)
        if permit is None or (fence and not owns(permit, fence)):
            self.reached["released nothing"] += 1
        elif outcome == "unused":
            self._give_back(permit, self.caller, self.now)
        else:
            self.kernel.release(permit, self.now, outcome)
            self._tell_ended(permit, "released", self.caller)
            self.reached[f"released {outcome}"] += 1

    def _touch(self, key: str, fence: int) -> None:
        permit = self.kernel.permits.get(key)
        if permit is not None and permit.fence == fence:
            self.kernel.touch(permit, self.now)
            self.reached["touched"] += 1

    def _hold(
        self, key: str, fence: int, names: Any, owner: Any, parent: Any, lease: float, adopt: bool
    ) -> None:
        kernel, now = self.kernel, self.now
        if key not in kernel.permits and adopt:
            self._adopt(key, fence, names, owner, parent, ms(lease))
        permit = kernel.permits.get(key)
        if permit is None or not owns(permit, fence):
            self.answers.append(["ended", key, fence, "expired"])
            self.reached["hold of nothing"] += 1
            return
        self._take(permit, self.caller)
        end = max(permit.expires_ms or 0, now + ms(lease))
        if end != permit.expires_ms:
            kernel.renew(permit, permit.fence, end - now, now)
        self.answers.append(["held", key, permit.fence, end - now])
        self.reached["held"] += 1

    def _adopt(self, key: str, fence: int, names: Any, owner: Any, parent: Any, lease_ms: int) -> None:
        kernel = self.kernel
        known = all(name in kernel.limits and not kernel.limits[name].removed for name in names)
        if fence > kernel.fence + DAY_US or not known:
            self.reached["adoption refused"] += 1
            return
        asks, waiter = [], kernel.waiters.get(key)
        if waiter is not None:
            asks = self._forget_asks(waiter)
            kernel.withdraw(waiter, self.now)
            self.reached["adopted what still waited"] += 1
        above = kernel.permits.get(parent or "")
        claims = kernel.claims(tuple(names))
        permit = kernel.adopt(claims, self.now, key, fence, owner, above, lease_ms)
        if isinstance(permit, Permit):
            self.reached["adopted"] += 1
            for ask in asks:
                self._take(permit, ask.client)
                self._tell(ask.client, "granted", ask.number, key, permit.fence, permit.granted_ms)

    def _lend(self, key: str, fence: int) -> None:
        permit = self.kernel.permits.get(key)
        if permit is not None and owns(permit, fence):
            self.reached[f"lend {self.kernel.lend(permit, self.now)}"] += 1

    def _reclaim(self, ask: int, key: str, fence: int, timeout: float | None) -> None:
        kernel, now = self.kernel, self.now
        permit = kernel.permits.get(key)
        if permit is None or not owns(permit, fence):
            return self._refuse(ask, "lost", id=key)
        if permit.reclaiming is not None:
            self._forget_asks(permit.reclaiming)
            self._add_ask(permit.reclaiming, self.caller, ask, None)
            self.reached["asked for its units twice"] += 1
            return None
        names = permit.claims.names
        if permit.lent and self._unknown(ask, names):
            kernel.release(permit, now, "unused")
            self._tell_ended(permit, "released", self.caller)
            return None
        claims = kernel.claims(names) if permit.lent else permit.claims
        got = kernel.reclaim(permit, claims, now, None if timeout is None else now + ms(timeout))
        if isinstance(got, Permit):
            self._done(ask, [got.fence, got.granted_ms])
            self.reached["reclaimed"] += 1
        elif isinstance(got, Waiter):
            self._add_ask(got, self.caller, ask, None)
            self.reached["waits to reclaim"] += 1
        else:
            self._refuse(ask, got.reason, **some({"circle": circle_of(got)}))
            if permit.ended is not None:
                self._tell_ended(permit, "released", self.caller)
        return None

    def _set_limit(self, ask: int, name: str, settings: dict[str, Any]) -> None:
        before = self.kernel.limits.get(name)
        if settings.get("keep") and before is not None and not before.removed:
            self.reached["limit kept"] += 1
            return self._done(ask)
        success = ms(settings.get("cooldown", 0))
        cancelled, failed = settings.get("cooldown_cancelled"), settings.get("cooldown_failed")
        gated = settings.get("gated", False)
        limit = self.kernel.configure(
            name,
            self.now,
            capacity=settings.get("capacity"),
            cooldown=Cooldown(
                success,
                success if cancelled is None else ms(cancelled),
                success if failed is None else ms(failed),
            ),
            queue_max=settings.get("queue_max"),
            gated=gated,
        )
        self.keepers.pop(name, None)
        if gated:
            self.keepers[name] = self.caller
        self._hold_back(limit)
        return self._done(ask)

    def _remove_limit(self, ask: int, name: str) -> None:
        if not self._unknown(ask, [name]):
            self.kernel.remove(name, self.now)
            self.reached["removed"] += 1
            self._done(ask)

    def _pause(self, ask: int, name: str, seconds: float) -> None:
        if not self._unknown(ask, [name]):
            self.kernel.pause(name, self.now + ms(seconds), self.now)
            self._done(ask)

    def _resume(self, ask: int, name: str) -> None:
        if self._unknown(ask, [name]):
            return
        limit = self.kernel.limits[name]
        until = self._quarantined(limit)
        if until <= self.now:
            self.kernel.resume(name, self.now)
        elif (limit.paused_until_ms or 0) > until:
            self.reached["resumed in quarantine"] += 1
            self.kernel.timers.cancel(limit.pause_timer)
            limit.pause_timer = limit.paused_until_ms = None
            self.kernel.pause(name, until, self.now)
        self._done(ask)

    def _admit(self, ask: int, name: str, count: int, fresh: float | None) -> None:
        if not self._unknown(ask, [name]):
            self.kernel.admit(name, count, self.now, None if fresh is None else self.now + ms(fresh))
            self._done(ask)

    def _revoke(self, ask: int, key: str, fence: int) -> None:
        permit = self.kernel.permits.get(key)
        found = permit is not None and owns(permit, fence)
        if found:
            assert permit is not None
            self.kernel.revoke(permit, self.now)
            self.reached["revoked"] += 1
        self._done(ask, found)

    def _release_owner(self, ask: int, owner: str) -> None:
        permits = self.kernel.release_owner(owner, self.now)
        self._carry_out(self.now)
        for permit in permits:
            self._tell_ended(permit, "released")
        self.reached["owner released"] += len(permits)
        self._done(ask, len(permits))

    def _check(self, ask: int) -> None:
        self.kernel.check()
        self._done(ask, [])

    def _state(self, ask: int) -> None:
        self._done(ask, state_of(self))


def state_of(oracle: Oracle) -> dict[str, Any]:
    """What `readings.state` says of the kernel in Lua."""
    kernel = oracle.kernel
    waiters = sorted(
        {waiter for limit in kernel.limits.values() for waiter in limit.waiters}, key=lambda one: one.rank
    )
    return {
        "limits": {name: _limit(limit) for name, limit in kernel.limits.items()},
        "permits": {str(one.key): _permit(one, oracle.takers) for one in kernel.permits.values()},
        "waiters": {_reference(waiter): _waiter(waiter) for waiter in waiters},
        "clients": {name: client.inbox for name, client in oracle.clients.items()},
        "order": [_reference(waiter) for waiter in waiters],
        "fence": kernel.fence,
        "arrivals": kernel.arrivals,
    }


def _reference(waiter: Waiter) -> str:
    return f"={waiter.key}" if waiter.reclaims is None else f"~{waiter.reclaims.key}"


def _limit(limit: Limit) -> list[Any]:
    return [
        min(limit.capacity, 1 << 53),
        limit.used,
        sum(hold.weight for hold in limit.holds),
        len(limit.waiters),
        limit.credits,
        limit.granted,
        limit.closed,
        limit.gated,
        limit.removed,
        limit.paused_until_ms or False,
        False if limit.reading_timer is None else limit.reading_timer.due_ms,
    ]


def _permit(permit: Permit, takers: dict[Permit, list[str]]) -> list[Any]:
    return [
        permit.fence,
        permit.serial or False,
        list(permit.claims.names),
        permit.owner or False,
        permit.granted_ms,
        permit.expires_ms or False,
        permit.lent,
        permit.touched_ms or False,
        takers.get(permit, []),
    ]


def _waiter(waiter: Waiter) -> list[Any]:
    lane = waiter.charged.lanes[waiter.priority]
    return [
        list(waiter.claims.names),
        list(waiter.charged.names),
        waiter.owner or False,
        waiter.arrived_ms,
        waiter.deadline_ms or False,
        waiter.passed if lane.head is waiter else False,
        lane.watching.name if lane.watching else False,
        lane.aside_at.name if lane.aside_at else False,
    ]
