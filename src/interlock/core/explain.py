"""Why something waits: the answer is worked out from the kernel's state, nothing is recorded for it."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from interlock.core.kernel import Kernel
    from interlock.core.model import Claims, Limit, Rank, Waiter

Why = Literal["never_fits", "paused", "gate", "full", "reserved", "behind"]


@dataclass(frozen=True, slots=True)
class Block:
    """One limit that keeps a request out, and why.

    ``never_fits``: it asks for more units than there are. ``paused``: until the pause ends. ``full``:
    ``missing`` units have to come back. ``gate``: the provider has to be asked first. ``reserved``: there is
    room, but for older waiters. ``behind``: others with the same claims go first.
    """

    limit: Limit
    why: Why
    missing: int
    ahead: tuple[Waiter, ...]
    """Who waits for this limit and goes first, oldest first."""


def blocks(kernel: Kernel, claims: Claims, rank: Rank) -> list[Block]:
    """Everything that keeps *claims* at *rank* out right now, in alphabetical order of the limits."""
    found = []
    for limit, weight in claims.limits:
        why, missing = obstacle(kernel, limit, weight, rank)
        if why is not None:
            found.append(Block(limit, why, missing, _ahead(limit, rank)))
    if not found and claims.limits:
        limit = claims.limits[0][0]
        elders = tuple(waiter for waiter in _ahead(limit, rank) if waiter.charged is claims)
        if elders:
            found.append(Block(limit, "behind", 0, elders))
    return found


def position(claims: Claims, rank: Rank) -> int:
    """How many waiters that share a limit with *claims* go before *rank*."""
    sharing = {waiter for limit, _ in claims.limits for waiter in limit.waiters}
    return sum(waiter.rank < rank for waiter in sharing)


def positions(waiters: Sequence[Waiter]) -> list[int]:
    """`position` of each of *waiters*, sorted once for all with the same claims: there may be thousands."""
    ranks: dict[Claims, list[Rank]] = {}
    for waiter in waiters:
        claims = waiter.charged
        if claims not in ranks:
            sharing = {one for limit, _ in claims.limits for one in limit.waiters}
            ranks[claims] = sorted(one.rank for one in sharing)
    return [bisect_left(ranks[waiter.charged], waiter.rank) for waiter in waiters]


def obstacle(kernel: Kernel, limit: Limit, weight: int, rank: Rank) -> tuple[Why | None, int]:
    """Why *weight* units of *limit* are not to be had at *rank*, and how many are missing; None: they are."""
    if limit.capacity < weight:
        return "never_fits", weight - limit.capacity
    if limit.paused_until_ms is not None:
        return "paused", 0
    if limit.free < weight:
        return "full", weight - limit.free
    if limit.gated and limit.credits < weight:
        return "gate", weight - limit.credits
    room = kernel.room(limit, rank)
    return ("reserved", weight - room) if room < weight else (None, 0)


def _ahead(limit: Limit, rank: Rank) -> tuple[Waiter, ...]:
    older = (waiter for waiter in limit.waiters if waiter.rank < rank)
    return tuple(sorted(older, key=lambda waiter: waiter.rank))
