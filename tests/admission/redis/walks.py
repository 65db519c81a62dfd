"""Seeded walks over what clients say: the same seed, the same requests, whoever answers them.

The operations are those of `interlock.testing.walk`, put into words. What a word is about (a permit, a wait)
is chosen among what the oracle has, so the oracle has to answer each request before the next is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from admission.redis.oracle import Oracle
from interlock.core.model import Permit
from interlock.testing.walk import Step, random_steps

CLIENTS = ("c1", "c2", "c3")
OUTCOMES = ("success", "cancelled", "failed", "unused")
EMPTYING = {"admit", "pause", "release_owner", "remove", "resume", "revoke", "withdraw"}

Request = dict[str, Any]


def calm_steps(seed: str, count: int) -> Iterator[Step]:
    yield from random_steps(seed, count)


def crowded_steps(seed: str, count: int) -> Iterator[Step]:
    """Nothing empties the lines, so that patience runs out."""
    for step in random_steps(seed, count):
        rare = step.pick % 8 == 0
        if step.operation in EMPTYING and not (rare and step.operation == "withdraw"):
            continue
        arguments = step.arguments
        if step.operation == "configure":
            arguments = arguments | {
                "capacity": arguments["capacity"] or 2,
                "gated": False,
                "cooldown_ms": (0,) * 3,
            }
        if step.operation == "acquire":
            plain = {"since_ms": None, "deadline_ms": None, "lease_ms": None, "wait": True}
            arguments = arguments | plain | {"priority": arguments["priority"] if rare else 0}
        yield step._replace(arguments=arguments)


def nested_steps(seed: str, count: int) -> Iterator[Step]:
    """Most ask below a permit, and nobody leaves before he must."""
    for step in crowded_steps(seed, count):
        if step.operation == "adopt" or (step.operation == "release" and step.pick % 3 == 0):
            continue
        if step.operation == "acquire" and step.pick % 4:
            step = step._replace(arguments=step.arguments | {"nested": True})
        yield step


def slow_steps(seed: str, count: int) -> Iterator[Step]:
    """Hardly anybody sets himself a time, so that it is silence that ends things."""
    for step in random_steps(seed, count):
        if step.operation == "acquire" and step.pick % 4:
            step = step._replace(
                arguments=step.arguments | {"deadline_ms": None, "lease_ms": None, "wait": True}
            )
        yield step


STEPS: dict[str, Callable[[str, int], Iterator[Step]]] = {
    "open": calm_steps,
    "crowded": crowded_steps,
    "nested": nested_steps,
    "stormy": calm_steps,
    "slow": slow_steps,
}
"""*stormy* loses the server now and then; in *slow* ones seconds pass, and clients fall silent."""


class Walk:
    """The requests of one walk; `requests` is to be stepped with every request answered in between."""

    def __init__(self, kind: str, seed: int, count: int, oracle: Oracle) -> None:
        self.oracle = oracle
        self.random = Random(f"{kind} {seed}")
        self.steps = STEPS[kind](f"{kind} {seed}", count)
        self.stormy, self.slow = kind == "stormy", kind == "slow"
        lease_ms = self.random.choice((40, 1_000)) if not self.slow else self.random.choice((6_000, 20_000))
        self.leases = {name: lease_ms * self.random.choice((1, 1, 2)) for name in CLIENTS}
        self.numbers = dict.fromkeys(CLIENTS, 0)
        self.seen = dict.fromkeys(CLIENTS, 0)
        self.asleep = dict.fromkeys(CLIENTS, 0)
        self.asked = self.fence = 0
        self.time_ms = 1_000_000_000
        self.server = "s1"
        self.said: list[tuple[str, Any]] = []
        self.gone: list[tuple[str, int, tuple[str, ...]]] = []

    def requests(self) -> Iterator[Request | None]:
        """Requests, and None where the server loses everything."""
        ops: list[Any] = []
        client, wanted = self._somebody(), 1
        for step in self.steps:
            if self.stormy and self.random.randrange(150) == 0:
                yield from self._storm()
            if step.operation == "tick":
                self._pass_time()
            else:
                op = getattr(self, f"_{step.operation}")(client, step, **step.arguments)
                ops += [] if op is None else [op]
            if len(ops) >= wanted or step.operation == "tick":
                yield self._request(client, ops)
                ops, client, wanted = [], self._somebody(), self.random.choice((1, 1, 1, 2, 5))
        yield self._request(client, ops)

    def heard(self, request: Request, reply: dict[str, Any]) -> None:
        """What the client does with the reply; now and then it is lost."""
        if self.random.randrange(12):
            self.seen[request["client"]] = reply["inbox"]

    def _somebody(self) -> str:
        if self.slow and not self.random.randrange(40):
            name = self.random.choice(CLIENTS[1:])
            self.asleep[name] = self.time_ms + 3 * self.leases[name]
        return self.random.choice([name for name in CLIENTS if self.asleep[name] <= self.time_ms])

    def _request(self, client: str, ops: list[Any]) -> Request:
        stale = not self.random.randrange(60)
        if not stale:
            self.numbers[client] += 1
        allow = not self.stormy or not self.random.randrange(3)
        header = {"v": 1, "client": client, "lease": self.leases[client], "server": self.server}
        header |= {"allow": allow} if allow else {}
        if ops and not self.random.randrange(10):
            ops = [*ops, ["touch", *self._permit_words()]]
        for op in ops:
            self.said.append((client, op))
        del self.said[:-30]
        number = max(1, self.numbers[client])
        return {**header, "seen": self.seen[client], "number": number, "ops": ops, "time": self.time_ms}

    def _pass_time(self) -> None:
        steps = (0, 1, 1, 2, 3, 5, 8, 40)
        if self.slow:
            steps = (0, 1, 5, 40, 300, 900, 2_500, 4_000)
        self.time_ms += self.random.choice(steps)
        if not self.random.randrange(200):
            self.time_ms += self.random.choice((3_600_000, -3_600_000, 700))

    def _storm(self) -> Iterator[Request | None]:
        if self.random.randrange(2):
            yield None
        else:
            self.server = self.random.choice(("s1", "s2", "s3"))

    # -- operations as words

    def _ask(self) -> int:
        self.asked += 1
        return self.asked

    def _permits(self) -> list[Permit]:
        return sorted(self.oracle.kernel.permits.values(), key=lambda permit: permit.fence)

    def _permit_words(self, pick: int | None = None) -> tuple[str, int]:
        """Id and fence of a permit; sometimes a stale fence, or one that ended."""
        permits = self._permits()
        pick = self.random.randrange(1 << 20) if pick is None else pick
        if not permits or self.random.randrange(10) == 0:
            return ("nobody", 2) if not self.gone else self.gone[pick % len(self.gone)][:2]
        permit = permits[pick % len(permits)]
        self.gone = [*self.gone[-9:], (str(permit.key), permit.fence, permit.claims.names)]
        return str(permit.key), max(1, permit.fence - (self.random.randrange(12) == 0))

    def _configure(self, client: str, step: Step, *, name: str, cooldown_ms: Any, **rest: Any) -> Any:
        success, cancelled, failed = (time_ms / 1000 for time_ms in cooldown_ms)
        settings = {"cooldown": success, "cooldown_cancelled": cancelled, "cooldown_failed": failed, **rest}
        if step.pick % 7 == 0:
            settings["keep"] = True
        return ["set_limit", self._ask(), name, settings]

    def _acquire(self, client: str, step: Step, *, names: tuple[str, ...], nested: bool, **rest: Any) -> Any:
        permits, waiters = self._permits(), self.oracle.kernel.waiters
        key, owner, pick = rest["key"], rest["owner"], step.pick
        again = [op for by, op in self.said if by == client and op[0] == "acquire"]
        if pick % 23 == 0 and again:
            return again[pick // 23 % len(again)]
        if pick % 16 == 0 and (permits or waiters):  # the same request from somebody else
            live = [*permits, *waiters.values()]
            known = live[pick // 16 % len(live)]
            key, owner, names = known.key, known.owner, known.claims.names
        now = self.time_ms
        more: dict[str, Any] = {"owner": owner, "priority": rest["priority"]}
        if rest["since_ms"] is not None:
            more["since"] = (self.oracle.now + rest["since_ms"] - step.now_ms) / 1000
        elif pick % 19 == 0:
            more["age"] = 0.005
        if rest["deadline_ms"] is not None:
            more["timeout"] = (rest["deadline_ms"] - step.now_ms) / 1000
        if not rest["wait"]:
            more["timeout"] = 0
        if rest["lease_ms"] is not None:
            more["lease"] = rest["lease_ms"] / 1000
        if nested and permits:
            more["parent"] = [*permits[-6:], *permits[:1]][pick % len(permits[-6:])].key
            if pick % 31 == 0:
                more["parent"] = "nobody"
        more = {name: value for name, value in more.items() if value is not None}
        ask = self._ask()
        return ["acquire", ask, key or f"permit_{ask}_{now}", names, more]

    def _release(self, client: str, step: Step, *, outcome: int, again: bool) -> Any:
        key, fence = self._permit_words(step.pick)
        if step.pick % 13 == 0:
            outcome = 3
        return ["release", key, 0 if again else fence, OUTCOMES[outcome]]

    def _withdraw(self, client: str, step: Step) -> Any:
        mine = [ask.number for asks in self.oracle.asks.values() for ask in asks if ask.client == client]
        permits = self._permits()
        if permits and step.pick % 4 == 0:
            return ["withdraw", 0, permits[step.pick // 4 % len(permits)].key]
        if step.pick % 9 == 0:
            return ["wants", [ask for ask in mine if self.random.randrange(3)]]
        return ["withdraw", mine[step.pick % len(mine)], ""] if mine else None

    def _renew(self, client: str, step: Step, *, stale: bool, lease_ms: int) -> Any:
        return self._adopt(client, step, key="", ahead=0, lease_ms=lease_ms, adopt=step.pick % 2 == 0)

    def _adopt(self, client: str, step: Step, *, key: str, ahead: int, lease_ms: Any, **rest: Any) -> Any:
        """Somebody holds what he holds, or what the server has lost, or what it still has waiting."""
        oracle, pick = self.oracle, step.pick
        lost = [one for one in self.gone if one[0] not in oracle.kernel.permits]
        adopt, lease = rest.get("adopt", True), (lease_ms or 20) / 1000
        if pick % 3 == 0 and lost:
            known, fence, names = lost[pick // 3 % len(lost)]
            if fence > oracle.kernel.fence or fence in {permit.fence for permit in self._permits()}:
                fence = self._new_fence(0)
            return ["hold", known, fence, names, None, None, lease, adopt]
        if pick % 3 == 1 and oracle.kernel.waiters:
            waiters = list(oracle.kernel.waiters.values())
            waiter = waiters[pick // 3 % len(waiters)]
            fence = self._new_fence(ahead)
            return ["hold", waiter.key, fence, waiter.claims.names, waiter.owner, None, lease, adopt]
        if key and pick % 3 == 2:
            fence = self._new_fence(ahead) + (DAY if pick % 7 == 0 else 0)
            parent = [str(one.key) for one in self._permits()[-1:] if rest["nested"]]
            return ["hold", key, fence, rest["names"], rest["owner"], *(parent or [None]), lease, True]
        known, fence = self._permit_words(pick)
        permit = oracle.kernel.permits.get(known)
        names = ("a",) if permit is None else permit.claims.names
        return ["hold", known, fence, names, None, None, lease, adopt]

    def _new_fence(self, ahead: int) -> int:
        """One that nobody has, nor will have when the request is answered: no two permits share one."""
        self.fence = max(self.oracle.kernel.fence + 40, self.fence + 1) + ahead
        return self.fence

    def _lend(self, client: str, step: Step) -> Any:
        return ["lend", *self._permit_words(step.pick)]

    def _reclaim(self, client: str, step: Step, *, deadline_ms: int | None) -> Any:
        lent = [permit for permit in self._permits() if permit.lent]
        timeout = None if deadline_ms is None else (deadline_ms - step.now_ms) / 1000
        if not lent or step.pick % 9 == 0:
            return ["reclaim", self._ask(), *self._permit_words(step.pick), timeout]
        permit = lent[step.pick % len(lent)]
        return ["reclaim", self._ask(), permit.key, permit.fence, timeout]

    def _revoke(self, client: str, step: Step) -> Any:
        return ["revoke", self._ask(), *self._permit_words(step.pick)]

    def _release_owner(self, client: str, step: Step, *, owner: str) -> Any:
        return ["release_owner", self._ask(), owner]

    def _remove(self, client: str, step: Step, *, name: str) -> Any:
        return ["remove_limit", self._ask(), name]

    def _pause(self, client: str, step: Step, *, name: str, until_ms: int) -> Any:
        return ["pause", self._ask(), name, max(0, until_ms - step.now_ms) / 1000]

    def _resume(self, client: str, step: Step, *, name: str) -> Any:
        return ["resume", self._ask(), name]

    def _admit(self, client: str, step: Step, *, name: str, count: int, fresh_until_ms: Any) -> Any:
        fresh = None if fresh_until_ms is None else (fresh_until_ms - step.now_ms) / 1000
        return ["admit", self._ask(), name, count, fresh]


DAY = 86_400_000_001
