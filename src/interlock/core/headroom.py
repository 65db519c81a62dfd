"""What a 429, a quiet while or the operator does to a limit: pure arithmetic on one frozen value.

The operator's number and the one in force are two fields, so that a cut is never mistaken for a wish
and can be undone. One burst of 429s is one episode: a permit granted before the last cut tells nothing
new (the idea of admission by episodes is NVIDIA DataDesigner's; the originals cut once per report, and
never came back).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

LOWEST = 1
"""A limit is never cut below this."""


@dataclass(frozen=True, slots=True)
class Headroom:
    """``configured`` is the operator's limit, ``effective`` the one in force; None is unlimited.

    ``reduced_from`` is what was in force before the first cut of this decline, ``cut_fence`` the newest fence
    at the last cut.
    """

    configured: int | None = None
    effective: int | None = None
    reduced_from: int | None = None
    cut_fence: int = 0

    @property
    def reduced(self) -> bool:
        return self.reduced_from is not None


def configured(limit: int | None) -> Headroom:
    """The operator has spoken: whatever was learned before is forgotten."""
    return Headroom(configured=limit, effective=limit)


def cut(headroom: Headroom, newest_fence: int, permit_fence: int | None = None) -> Headroom:
    """One unit less, unless the report's permit was granted before the last cut, or nothing is left to
    cut."""
    limit = headroom.effective
    if limit is None or limit <= LOWEST:
        return headroom
    if permit_fence is not None and permit_fence <= headroom.cut_fence:
        return headroom
    return replace(
        headroom,
        effective=limit - 1,
        reduced_from=limit if headroom.reduced_from is None else headroom.reduced_from,
        cut_fence=newest_fence,
    )


def recover(headroom: Headroom) -> Headroom:
    """One unit more, up to the operator's limit, where the reduction is over."""
    if not headroom.reduced or headroom.effective is None or headroom.configured is None:
        return headroom
    limit = headroom.effective + 1
    if limit >= headroom.configured:
        return replace(configured(headroom.configured), cut_fence=headroom.cut_fence)
    return replace(headroom, effective=limit)


def admissible(limit: int, local: int, reported: int | None, granted_since: int) -> int:
    """How many more one reading admits (R14): in flight is the larger of what we hold and what the provider
    reports together with what we granted since we asked. Without a reading only our own count speaks."""
    in_flight = local if reported is None else max(local, reported + granted_since)
    return max(0, limit - in_flight)
