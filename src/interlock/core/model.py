"""The records that the kernel keeps, and the effects that it hands back.

Times are integers in milliseconds. `Limit`, `Lane`, `Waiter` and `Permit` are the kernel's own state:
others read them, only `kernel.py` writes them. Attributes that are rarely set live on the class until
they are, because a permit is made for every call.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from interlock.core.timers import Timer

UNLIMITED = sys.maxsize
"""The capacity of a limit that only counts."""

PATIENCE = 16
"""How often the front waiter of a lane is passed before it reserves on every limit that it claims."""

Outcome = Literal["success", "cancelled", "failed", "unused"]
"""How the work under a permit ended; ``unused`` is one that nobody ever took, so nothing has to cool."""
Key: TypeAlias = str | int
Rank: TypeAlias = tuple[int, int, int]
"""Who goes first: priority, then ``since``, then arrival."""


@dataclass(frozen=True, slots=True)
class Cooldown:
    """How long a unit stays taken after its release, by how the work ended."""

    success_ms: int = 0
    cancelled_ms: int = 0
    failed_ms: int = 0

    def after(self, outcome: Outcome) -> int:
        if outcome == "success":
            return self.success_ms
        if outcome == "unused":
            return 0
        return self.cancelled_ms if outcome == "cancelled" else self.failed_ms

    @property
    def longest_ms(self) -> int:
        return max(self.success_ms, self.cancelled_ms, self.failed_ms)


NO_COOLDOWN = Cooldown()


class Hold:
    """Units that cool after a release; not free until their time."""

    __slots__ = ("limit", "until_ms", "weight")

    def __init__(self, limit: Limit, weight: int, until_ms: int) -> None:
        self.limit = limit
        self.weight = weight
        self.until_ms = until_ms


class LaneHeap:
    """Lanes by the rank under which each was filed; a lane taken out stays in the heap until it is met."""

    __slots__ = ("_heap", "filed")

    def __init__(self) -> None:
        self._heap: list[tuple[Rank, Lane]] = []
        self.filed: dict[Lane, Rank] = {}

    def add(self, rank: Rank, lane: Lane) -> None:
        self.filed[lane] = rank
        heappush(self._heap, (rank, lane))

    def discard(self, lane: Lane) -> None:
        filed = self.filed
        if filed.pop(lane, None) is not None and len(self._heap) > 2 * len(filed) + 64:
            self._heap = [(rank, one) for one, rank in filed.items()]
            heapify(self._heap)

    def oldest(self) -> tuple[Rank, Lane] | None:
        heap, filed = self._heap, self.filed
        while heap:
            rank, lane = heap[0]
            if filed.get(lane) is rank:
                return heap[0]
            heappop(heap)
        return None

    def older_than(self, rank: Rank) -> list[Lane]:
        """Every lane filed under a smaller rank, in no order; costs no more than there are of them."""
        oldest = self.oldest()
        if oldest is None or oldest[0] >= rank:
            return []
        heap, filed = self._heap, self.filed
        found: list[Lane] = []
        below = [0]
        while below:
            index = below.pop()
            if index < len(heap) and heap[index][0] < rank:
                at, lane = heap[index]
                if filed.get(lane) is at:
                    found.append(lane)
                below += (2 * index + 1, 2 * index + 2)
        return found


class Limit:
    """A named capacity and everyone who has to do with it.

    ``used`` is the cached sum of what `Kernel.holders` and ``holds`` take; `Kernel.check` holds the two
    together. The last four are the granter's files: ``line`` are the patient of the blocked front waiters
    that claim it, ``reservers`` those of them whose reservation counts for younger ones although there is
    room (oldest first), ``watchers`` the lanes that this limit blocks, ``aside`` those that it keeps from
    even reserving.
    """

    __slots__ = (
        "aside",
        "busy",
        "capacity",
        "closed",
        "cooldown",
        "credits",
        "gated",
        "granted",
        "holds",
        "line",
        "name",
        "open_capacity",
        "pause_timer",
        "paused_until_ms",
        "queue_max",
        "reading_timer",
        "removed",
        "reservers",
        "used",
        "waiters",
        "watchers",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.capacity = UNLIMITED
        self.open_capacity = UNLIMITED
        """`capacity` while the short way is open: nobody waits, no pause, no gate; else -1."""
        self.busy = False
        """Whether a release is more than giving back: somebody waits, units cool, or it was removed."""
        self.cooldown = NO_COOLDOWN
        self.queue_max: int | None = None
        self.removed = False
        self.used = 0
        self.granted = 0
        """Units granted to all but the plainest requests; the difference of two readings means something."""
        self.holds: set[Hold] = set()
        self.waiters: set[Waiter] = set()
        self.paused_until_ms: int | None = None
        self.pause_timer: Timer | None = None
        self.gated = False
        self.credits = 0
        self.reading_timer: Timer | None = None
        self.closed = False
        """Paused, or gated without a credit: nobody who waits gets past."""
        self.line = LaneHeap()
        self.reservers: list[tuple[Rank, int, Lane]] = []
        self.watchers = LaneHeap()
        self.aside: set[Lane] = set()

    @property
    def free(self) -> int:
        return self.capacity - self.used

    def __repr__(self) -> str:
        capacity = "unlimited" if self.capacity == UNLIMITED else self.capacity
        notes = [
            f"{len(self.holds)} cooling" if self.holds else "",
            f"{len(self.waiters)} waiting" if self.waiters else "",
            "paused" if self.paused_until_ms is not None else "",
            f"gated, {self.credits} credits" if self.gated else "",
            "removed" if self.removed else "",
        ]
        note = ", ".join(filter(None, notes))
        return f"{self.name} {self.used}/{capacity}" + (f" ({note})" if note else "")


class Claims:
    """The limits that a request needs, each with how many units; one object for equal claims."""

    __slots__ = ("lanes", "limits", "names")

    def __init__(self, names: tuple[str, ...], limits: tuple[tuple[Limit, int], ...]) -> None:
        self.names = names
        self.limits = limits
        self.lanes: dict[int, Lane] = {}

    def weight(self, limit: Limit) -> int:
        return next((weight for claimed, weight in self.limits if claimed is limit), 0)


class Lane:
    """Those who wait with the same claims and priority, as a heap by rank; only its front competes."""

    __slots__ = ("aside_at", "claims", "dead", "head", "heap", "in_line", "priority", "watching")

    def __init__(self, claims: Claims, priority: int) -> None:
        self.claims = claims
        self.priority = priority
        self.heap: list[tuple[Rank, Waiter]] = []
        self.dead = 0
        self.head: Waiter | None = None
        self.in_line = False
        self.watching: Limit | None = None
        self.aside_at: Limit | None = None

    def __lt__(self, other: Lane) -> bool:
        return False  # reached only when one lane is noted twice at one rank: either may go first


class Share:
    """One charge that a family of nested permits holds together until its last member goes."""

    __slots__ = ("members", "weight")

    def __init__(self, weight: int, first: Permit) -> None:
        self.weight = weight
        self.members = {first}


class Permit:
    """Units of every claimed limit in one holder's hand."""

    key: str | None = None
    owner: str | None = None
    parent: Permit | None = None
    shares: dict[Limit, Share] | None = None
    nested: set[Waiter] | None = None
    lease: Timer | None = None
    ended: Literal["released", "expired", "revoked"] | None = None
    touched_ms: int | None = None
    asked: Rank | None = None
    """The rank of the request, where it was not the plainest."""
    serial: int | None = None
    """Its first fence, once it was lent and taken again."""
    lent = False
    """Live, but its units are given back until its holder takes them again."""
    reclaiming: Waiter | None = None
    """It itself, waiting to have its units back."""
    bound = False
    """Whether anything but its limits knows of it: a key, an owner, a lease, a family."""

    def __init__(self, claims: Claims, fence: int, granted_ms: int) -> None:
        self.claims = claims
        self.fence = fence
        self.granted_ms = granted_ms

    @property
    def rank(self) -> Rank:
        """Its place in line, were it to ask again: that of the request that it was granted for.

        A request that went straight in has no number among the arrivals; it came before all who wait.
        """
        return self.asked or (0, self.granted_ms, self.fence - UNLIMITED)

    @property
    def expires_ms(self) -> int | None:
        return None if self.lease is None else self.lease.due_ms


class Waiter:
    """A request that found no room. ``charged`` are its claims without what its parent covers."""

    timer: Timer | None = None
    permit: Permit | None = None
    reclaims: Permit | None = None
    """The lent permit that gets its units back, where this asks for no new one."""
    circle: Circle = ()
    """What it closed, if that ended it."""
    gone = False
    passed = 0
    """How often a younger one that shares a limit went first while this stood at the front."""
    passed_by = 0
    """Which passing was counted last, so that sharing two limits with somebody counts once."""

    def __init__(
        self,
        key: str | None,
        claims: Claims,
        charged: Claims,
        owner: str | None,
        parent: Permit | None,
        rank: Rank,
        arrived_ms: int,
        lease_ms: int | None,
    ) -> None:
        self.key = key
        self.claims = claims
        self.charged = charged
        self.owner = owner
        self.parent = parent
        self.rank = rank
        self.arrived_ms = arrived_ms
        self.lease_ms = lease_ms

    @property
    def under(self) -> Permit | None:
        """Whose holder goes on only after this one."""
        return self.parent if self.reclaims is None else self.reclaims.parent

    @property
    def priority(self) -> int:
        return self.rank[0]

    @property
    def since_ms(self) -> int:
        return self.rank[1]

    @property
    def waiting(self) -> bool:
        return self.permit is None and not self.gone

    @property
    def deadline_ms(self) -> int | None:
        return None if self.timer is None else self.timer.due_ms


Circle: TypeAlias = tuple[tuple["Waiter", "Limit"], ...]
"""Waiters, each with the limit at which it waits for what the next one (the last: the first one) keeps."""

RefusalReason = Literal["conflict", "would_block", "queue_full", "parent_released", "lent", "deadlock"]
EndReason = Literal["expired", "revoked", "timed_out", "dropped", "deadlock"]


@dataclass(frozen=True, slots=True)
class Refused:
    """The answer to a request that changed nothing; *limit* says which one, where it is one."""

    reason: RefusalReason
    limit: str | None = None
    circle: Circle = ()


class Granted(NamedTuple):
    """Somebody who waited holds a permit now."""

    waiter: Waiter
    permit: Permit


class Ended(NamedTuple):
    """A permit or a wait came to an end that its holder did not ask for."""

    reason: EndReason
    subject: Permit | Waiter


class GateWaiting(NamedTuple):
    """Somebody waits at a gated limit that has room: ask outside, then `Kernel.admit`.

    *recycled* says that room appeared since the last answer, so that asking again at once makes sense.
    """

    limit: str
    recycled: bool


Effect: TypeAlias = Granted | Ended | GateWaiting
