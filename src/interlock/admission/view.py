"""All readings of one admission as a value that can travel: made where the kernel is, read elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from interlock.admission.readings import (
    BlockReading,
    Explanation,
    Holder,
    LimitReading,
    Snapshot,
    Waiting,
    read_holder,
    read_limit,
    read_waiting,
)
from interlock.admission.wire import is_generated
from interlock.core import explain as core
from interlock.core.ledger import by_fence

if TYPE_CHECKING:
    from interlock.core.kernel import Kernel
    from interlock.core.model import Waiter

MOST = 1000
"""Who waits and who holds, as far as a view that nobody asked for in whole shows them."""


@dataclass(frozen=True, slots=True)
class Obstacle:
    """One limit that keeps a waiter out; the rest of a `BlockReading` follows from the view."""

    limit: str
    why: core.Why
    missing: int


@dataclass(frozen=True, slots=True)
class Place:
    """One who waits, with the limits that it is charged for and those that keep it out."""

    waiting: Waiting
    charged: tuple[str, ...]
    obstacles: tuple[Obstacle, ...]


@dataclass(frozen=True, slots=True)
class View:
    """Every reading at one moment; without ``whole``, only the first of those who wait or hold are there."""

    at: float
    whole: bool
    limits: tuple[LimitReading, ...]
    places: tuple[Place, ...]
    held: tuple[Holder, ...]
    parts: dict[str, Any] = field(default_factory=dict)
    """What the parts above admission show, by name, as they like it."""

    def snapshot(self) -> Snapshot:
        """What `LocalAdmission.snapshot` says."""
        return Snapshot(self.at, self.limits, self.waiting())

    def waiting(self) -> tuple[Waiting, ...]:
        """Everybody who waits, in the order in which they would go."""
        return tuple(place.waiting for place in self.places)

    def holders(self, name: str) -> tuple[Holder, ...]:
        """Who holds the limit *name*, longest first."""
        return tuple(holder for holder in self.held if name in holder.limits)

    def explain(self, waiter_id: str) -> Explanation | None:
        """Why the waiter of this id waits; None if nobody does."""
        for index, place in enumerate(self.places):
            if place.waiting.id == waiter_id:
                blocks = tuple(self._block(obstacle, index) for obstacle in place.obstacles)
                return Explanation(place.waiting, blocks)
        return None

    def _block(self, obstacle: Obstacle, index: int) -> BlockReading:
        limit = next(one for one in self.limits if one.name == obstacle.limit)
        charged = self.places[index].charged
        ahead = tuple(
            place.waiting.id
            for place in self.places[:index]
            if (place.charged == charged if obstacle.why == "behind" else limit.name in place.charged)
        )
        return BlockReading(
            limit=limit.name,
            why=obstacle.why,
            missing=obstacle.missing,
            used=limit.used,
            capacity=limit.capacity,
            until=limit.paused_until,
            ahead=ahead,
            holders=self.holders(limit.name),
        )


EMPTY = View(0.0, True, (), (), ())


def look(kernel: Kernel, at: float, most: int | None = None, parts: dict[str, Any] | None = None) -> View:
    """The view of *kernel* now; no more than the *most* first of those who wait and of those who hold."""
    waiters = sorted(
        {waiter for limit in kernel.limits.values() for waiter in limit.waiters},
        key=lambda waiter: waiter.rank,
    )
    holding = [permit for permit in kernel.live if not permit.lent]
    if len(holding) > 1:
        holding.sort(key=by_fence)
    whole = most is None or max(len(waiters), len(holding)) <= most
    shown = waiters[:most]
    return View(
        at=at,
        whole=whole,
        limits=tuple(read_limit(limit) for _, limit in sorted(kernel.limits.items()) if not limit.removed),
        places=tuple(
            _place(kernel, waiter, position)
            for waiter, position in zip(shown, core.positions(shown), strict=True)
        ),
        held=tuple(_unnamed(read_holder(permit)) for permit in holding[:most]),
        parts=parts or {},
    )


def _place(kernel: Kernel, waiter: Waiter, position: int) -> Place:
    charged = waiter.charged
    obstacles = []
    for limit, weight in charged.limits:
        why, missing = core.obstacle(kernel, limit, weight, waiter.rank)
        if why is not None:
            obstacles.append(Obstacle(limit.name, why, missing))
    fronts = (lane.head for lane in charged.lanes.values())
    if not obstacles and any(front is not None and front.rank < waiter.rank for front in fronts):
        obstacles.append(Obstacle(charged.limits[0][0].name, "behind", 0))
    waiting = read_waiting(waiter, position)
    if is_generated(waiting.key):
        waiting = replace(waiting, key=None)
    return Place(waiting, charged.names, tuple(obstacles))


def _unnamed(holder: Holder) -> Holder:
    return replace(holder, key=None) if is_generated(holder.key) else holder
