"""A fleet of clients on one limit, a server that things happen to, and one who counts from outside.

Time is simulated: the server's clock is what a request says, true time is the fleet's. A holder counts its
permit as lost once nine tenths of its lease have passed since it last asked for it, as `interlock` does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Any

from admission.redis.servers import Namespace

LEASE_MS, CAPACITY, CLIENTS = 10_000, 3, 8
POLL_MS = (200, 900)


@dataclass(eq=False)
class Holder:
    """One process."""

    name: str
    number: int = 0
    seen: int = 0
    epoch: str = ""
    asks: int = 0
    next_ms: int = 0
    held: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Fence, and until when this one counts on it, by id."""
    waits: dict[int, str] = field(default_factory=dict)
    unsaid: list[Any] = field(default_factory=list)
    """Releases that nobody has heard yet."""


class Fleet:
    """Clients that come, hold, and go, over one limit of `CAPACITY` units."""

    def __init__(self, namespace: Namespace, seed: int, *, pauses: bool, copies: bool = False) -> None:
        """*copies*: a replica follows, which `fail_over` needs."""
        self.namespace = namespace
        self.random = Random(seed)
        self.pauses = pauses
        self.followed = copies
        self.now_ms = 1_000_000_000
        self.skew_ms = 0
        self.server = 1
        self.holders = [Holder(f"c{number}") for number in range(CLIENTS)]
        self.copies: list[tuple[Any, Any]] = []
        self.grants = 0
        self.granted_ms = self.now_ms
        namespace.empty()
        self._call(self.holders[0], [["set_limit", 0, "a", {"capacity": CAPACITY}]], allow=True)

    # -- what happens

    def run(self, steps: int) -> None:
        """So many requests, each by whoever's turn it is."""
        for _ in range(steps):
            holder = min(self.holders, key=lambda one: one.next_ms)
            self.now_ms = max(self.now_ms, holder.next_ms)
            self._count()
            self._step(holder)
            holder.next_ms = self.now_ms + self.random.randrange(*POLL_MS)
            if self.pauses and not self.random.randrange(60):
                holder.next_ms += self.random.choice((2_000, 8_000, 30_000))
            self._count()

    def lose_everything(self) -> None:
        self.namespace.connection.delete(self.namespace.records, self.namespace.lists)

    def fail_over(self) -> None:
        """A copy that has missed the last of what was written takes over."""
        connection, namespace = self.namespace.connection, self.namespace
        missed = min(len(self.copies), self.random.randrange(1, 100))
        copy = self.copies[-missed]
        for key, value in zip((namespace.records, namespace.lists), copy, strict=True):
            connection.delete(key)
            if value is not None:
                connection.restore(key, 0, value)
        self.copies.clear()
        self.server += 1

    def set_clock(self) -> None:
        self.skew_ms += self.random.choice((-3_600_000, 3_600_000))

    # -- one client

    def _step(self, holder: Holder) -> None:
        random = self.random
        ops: list[Any] = [list(word) for word in holder.unsaid]
        for key in [key for key, (_, until) in holder.held.items() if until <= self.now_ms]:
            del holder.held[key]
        for key, (fence, _) in list(holder.held.items()):
            if random.randrange(6) == 0:
                del holder.held[key]
                holder.unsaid.append(["release", key, fence, "success"])
                ops.append(["release", key, fence, "success"])
            else:
                ops.append(["hold", key, fence, ["a"], None, None, LEASE_MS / 1000, False])
        if len(holder.held) + len(holder.waits) < 2 and random.randrange(2):
            holder.asks += 1
            holder.waits[holder.asks] = f"{holder.name}-{holder.asks}"
            ops.append(["acquire", holder.asks, holder.waits[holder.asks], ["a"], {}])
        reply = self._call(holder, ops)
        if random.randrange(10) == 0:
            return  # it gets lost
        self._hear(holder, reply, self.now_ms)
        if reply["epoch"] != holder.epoch or not reply["known"]:
            holder.epoch = reply["epoch"]
            self._say_all(holder)

    def _say_all(self, holder: Holder) -> None:
        """The server is another one: say which limits there are, what is held, then what is wanted."""
        ops: list[Any] = [["set_limit", 0, "a", {"capacity": CAPACITY, "keep": True}]]
        ops += [
            ["hold", key, fence, ["a"], None, None, LEASE_MS / 1000, True]
            for key, (fence, _) in holder.held.items()
        ]
        ops.append(["wants", list(holder.waits)])
        ops += [["acquire", ask, key, ["a"], {}] for ask, key in holder.waits.items()]
        self._hear(holder, self._call(holder, ops), self.now_ms)

    def _call(self, holder: Holder, ops: list[Any], **more: Any) -> dict[str, Any]:
        holder.number += 1
        request = {"v": 1, "client": holder.name, "lease": LEASE_MS, "seen": holder.seen, "ops": ops}
        request |= {"server": f"s{self.server}", "number": holder.number, "time": self.now_ms + self.skew_ms}
        reply = self.namespace.call(request | more)
        if self.followed:
            connection, namespace = self.namespace.connection, self.namespace
            self.copies.append((connection.dump(namespace.records), connection.dump(namespace.lists)))
            del self.copies[:-100]
        return reply

    def _hear(self, holder: Holder, reply: dict[str, Any], asked_ms: int) -> None:
        holder.seen = reply["inbox"]
        holder.unsaid.clear()
        for word, *said in reply["answers"]:
            if word == "granted":
                ask, fence, _, left_ms = said
                key = holder.waits.pop(ask, None)
                if key is not None and left_ms:
                    holder.held[key] = fence, asked_ms + left_ms * 9 // 10
                    self.grants += 1
                    self.granted_ms = self.now_ms
            elif word == "held":
                key, fence, left_ms = said
                if key in holder.held:
                    holder.held[key] = fence, asked_ms + left_ms * 9 // 10
            elif word == "ended":
                holder.held.pop(said[0], None)
            elif word == "refused":
                holder.waits.pop(said[0], None)

    # -- who counts

    def _count(self) -> None:
        working = [key for one in self.holders for key, (_, until) in one.held.items() if until > self.now_ms]
        assert len(working) <= CAPACITY, f"{working} work at {self.now_ms}, allowed are {CAPACITY}"
