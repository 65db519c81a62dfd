"""The arithmetic of a limit that 429s cut and quiet raises."""

from __future__ import annotations

import pytest

from interlock.core.headroom import LOWEST, Headroom, admissible, configured, cut, recover


@pytest.mark.parametrize("limit", [None, 1, 4])
def test_what_the_operator_says_is_in_force(limit: int | None) -> None:
    """Nothing learned, nothing reduced."""
    assert configured(limit) == Headroom(configured=limit, effective=limit)
    assert not configured(limit).reduced


@pytest.mark.parametrize(
    ("before", "newest", "permit", "after"),
    [
        # an unlimited provider and the lowest limit have nothing to cut
        (Headroom(), 7, None, Headroom()),
        (Headroom(4, LOWEST, 4, 3), 7, None, Headroom(4, LOWEST, 4, 3)),
        (Headroom(1, 1), 7, 5, Headroom(1, 1)),
        # the first cut remembers what there was, later ones keep that
        (Headroom(4, 4), 7, None, Headroom(4, 3, 4, 7)),
        (Headroom(4, 3, 4, 7), 9, None, Headroom(4, 2, 4, 9)),
        (Headroom(4, 2, 4, 7), 9, None, Headroom(4, 1, 4, 9)),
        # a permit cuts if it was granted after the last cut
        (Headroom(4, 4), 7, 1, Headroom(4, 3, 4, 7)),
        (Headroom(4, 3, 4, 7), 9, 6, Headroom(4, 3, 4, 7)),
        (Headroom(4, 3, 4, 7), 9, 7, Headroom(4, 3, 4, 7)),
        (Headroom(4, 3, 4, 7), 9, 8, Headroom(4, 2, 4, 9)),
    ],
)
def test_cut(before: Headroom, newest: int, permit: int | None, after: Headroom) -> None:
    """One unit an episode, down to the lowest limit; the operator's number is never touched."""
    assert cut(before, newest, permit) == after


def test_a_report_that_changes_nothing_gives_the_same_value() -> None:
    """So that a caller sees by identity whether anything was cut."""
    for before, permit in ((Headroom(), None), (Headroom(2, 1, 2, 5), None), (Headroom(4, 3, 4, 5), 5)):
        assert cut(before, 9, permit) is before


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (Headroom(), Headroom()),
        (Headroom(4, 4), Headroom(4, 4)),
        (Headroom(4, 1, 4, 7), Headroom(4, 2, 4, 7)),
        (Headroom(4, 2, 4, 7), Headroom(4, 3, 4, 7)),
        (Headroom(4, 3, 4, 7), Headroom(4, 4, None, 7)),
    ],
)
def test_recover(before: Headroom, after: Headroom) -> None:
    """One unit more while it is reduced; the episode stays known, also when the reduction is over."""
    assert recover(before) == after


@pytest.mark.parametrize("limit", [2, 3, 9])
def test_recovery_ends_at_the_operator_s_limit(limit: int) -> None:
    """There, and not past it, the reduction is over."""
    headroom = configured(limit)
    for fence in range(limit + 3):
        headroom = cut(headroom, fence)
    assert headroom.effective == LOWEST
    for step in range(1, limit):
        assert headroom.reduced
        headroom = recover(headroom)
        assert headroom.effective == LOWEST + step
    assert not headroom.reduced
    assert recover(headroom) == headroom


@pytest.mark.parametrize(
    ("limit", "local", "reported", "since", "count"),
    [
        (4, 0, 0, 0, 4),
        (4, 3, 3, 0, 1),  # what it reports is ours
        (4, 1, 3, 0, 1),  # others use the account, too
        (4, 3, 1, 0, 1),  # it lags behind us
        (4, 2, 2, 1, 1),  # one of ours is on its way there
        (4, 2, 3, 1, 0),
        (4, 4, 0, 0, 0),
        (4, 0, 9, 0, 0),  # never below nothing
        (4, 9, 0, 0, 0),
        (4, 0, 3, 9, 0),
        (4, 1, None, 0, 3),  # it cannot tell: only our own count speaks
        (4, 1, None, 3, 3),
        (4, 5, None, 0, 0),
    ],
)
def test_admissible(limit: int, local: int, reported: int | None, since: int, count: int) -> None:
    """``limit - max(local, reported + granted since the poll began)``, and at least 0."""
    assert admissible(limit, local, reported, since) == count
