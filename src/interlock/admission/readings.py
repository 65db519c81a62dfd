"""What an admission tells about itself: frozen values, times in seconds, consistent as of one moment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from interlock.core import explain as core
from interlock.core.model import UNLIMITED

if TYPE_CHECKING:
    from interlock.core.kernel import Kernel
    from interlock.core.model import Claims, Limit, Permit, Rank, Waiter


@dataclass(frozen=True, slots=True)
class LimitReading:
    """One limit: ``used`` counts what is held and what cools; ``capacity`` None is unlimited."""

    name: str
    capacity: int | None
    used: int
    cooling: int
    waiting: int
    paused_until: float | None
    gated: bool

    @property
    def available(self) -> int | None:
        return None if self.capacity is None else max(0, self.capacity - self.used)


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a permit, over what, and since when; ``touched_at`` is its last sign of progress."""

    id: str
    key: str | None
    owner: str | None
    limits: tuple[str, ...]
    fence: int
    granted_at: float
    touched_at: float | None


@dataclass(frozen=True, slots=True)
class Waiting:
    """Who waits; ``since`` is the age it is ordered by, ``position`` how many go first."""

    id: str
    key: str | None
    owner: str | None
    limits: tuple[str, ...]
    priority: int
    since: float
    arrived_at: float
    deadline: float | None
    position: int


@dataclass(frozen=True, slots=True)
class BlockReading:
    """One limit that keeps a waiter out; see `interlock.core.explain.Block` for ``why``."""

    limit: str
    why: core.Why
    missing: int
    used: int
    capacity: int | None
    until: float | None
    ahead: tuple[str, ...]
    holders: tuple[Holder, ...]

    def __str__(self) -> str:
        capacity = "unlimited" if self.capacity is None else self.capacity
        taken = f"{self.used}/{capacity} in use"
        match self.why:
            case "never_fits":
                return f"{self.limit!r} has {capacity} units, more were asked for"
            case "paused":
                return f"{self.limit!r} is paused"
            case "gate":
                return f"{self.limit!r} waits for its provider to report room ({taken})"
            case "reserved":
                return f"{self.limit!r} keeps its room for {len(self.ahead)} older ({taken})"
            case "behind":
                return f"{len(self.ahead)} with the same claims go first"
        held_by = _held_by(self.holders)
        return f"{self.limit!r} is full ({taken}{held_by})"


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a waiter waits: its place in line and every limit that keeps it out."""

    waiter: Waiting
    blocks: tuple[BlockReading, ...]

    def __str__(self) -> str:
        reasons = "; ".join(str(block) for block in self.blocks) or "it may go now"
        return f"{self.waiter.id}: {self.waiter.position} ahead; {reasons}"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything at one moment."""

    at: float
    limits: tuple[LimitReading, ...]
    waiting: tuple[Waiting, ...]


def read_limit(limit: Limit) -> LimitReading:
    """*limit* as it is now."""
    return LimitReading(
        name=limit.name,
        capacity=_capacity(limit),
        used=limit.used,
        cooling=sum(hold.weight for hold in limit.holds),
        waiting=len(limit.waiters),
        paused_until=_seconds(limit.paused_until_ms),
        gated=limit.gated,
    )


def read_holder(permit: Permit) -> Holder:
    """Who holds *permit*."""
    return Holder(
        id=permit_id(permit),
        key=permit.key,
        owner=permit.owner,
        limits=permit.claims.names,
        fence=permit.fence,
        granted_at=permit.granted_ms / 1000,
        touched_at=_seconds(permit.touched_ms),
    )


def read_holders(kernel: Kernel, limit: Limit) -> tuple[Holder, ...]:
    """Who holds *limit*, longest first."""
    return tuple(read_holder(permit) for permit in kernel.holders(limit))


def read_waiting(waiter: Waiter, position: int | None = None) -> Waiting:
    """Who *waiter* is, and its place in line (*position*, where that is known already)."""
    return Waiting(
        id=waiter_id(waiter),
        key=waiter.key,
        owner=waiter.owner,
        limits=waiter.claims.names,
        priority=waiter.priority,
        since=waiter.since_ms / 1000,
        arrived_at=waiter.arrived_ms / 1000,
        deadline=_seconds(waiter.deadline_ms),
        position=core.position(waiter.charged, waiter.rank) if position is None else position,
    )


def read_blocks(kernel: Kernel, claims: Claims, rank: Rank) -> tuple[BlockReading, ...]:
    """Everything that keeps *claims* at *rank* out."""
    return tuple(
        BlockReading(
            limit=block.limit.name,
            why=block.why,
            missing=block.missing,
            used=block.limit.used,
            capacity=_capacity(block.limit),
            until=_seconds(block.limit.paused_until_ms),
            ahead=tuple(waiter_id(waiter) for waiter in block.ahead),
            holders=read_holders(kernel, block.limit),
        )
        for block in core.blocks(kernel, claims, rank)
    )


def permit_id(permit: Permit) -> str:
    """The name of *permit*: its key, else one made of its fence."""
    return permit.key if permit.key is not None else f"permit-{permit.serial or permit.fence}"


def waiter_id(waiter: Waiter) -> str:
    """The name of *waiter*: its key, else one made of its arrival."""
    return waiter.key if waiter.key is not None else f"waiter-{waiter.rank[2]}"


def _held_by(holders: tuple[Holder, ...]) -> str:
    if not holders:
        return ""
    shown = ", ".join(holder.owner or holder.id for holder in holders[:3])
    more = f" and {len(holders) - 3} more" if len(holders) > 3 else ""
    return f", held by {shown}{more}"


def _capacity(limit: Limit) -> int | None:
    return None if limit.capacity == UNLIMITED else limit.capacity


def _seconds(ms: int | None) -> float | None:
    return None if ms is None else ms / 1000
