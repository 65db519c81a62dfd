"""Nested permits, which hold together."""

from __future__ import annotations

import pytest

from core.scenes import ask, hold, let_in, queue, told, used, world
from interlock.core.model import (
    Cooldown,
    Refused,
    Waiter,
)


def test_a_nested_permit_shares_what_its_parent_holds() -> None:
    """What a parent holds is not charged again; only what it lacks is."""
    kernel = world(session=1, runs=2)
    parent = hold(kernel, "session")
    child = hold(kernel, "session", "runs", parent=parent)
    hold(kernel, "session", parent=child)
    assert used(kernel) == {"session": 1, "runs": 1}
    kernel.check()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0)])
def test_a_shared_unit_stays_until_the_last_of_the_family_is_gone(order: tuple[int, ...]) -> None:
    """In whatever order a family goes, what it shares is free with the last, two units as one."""
    kernel = world(a=2)
    parent = hold(kernel, "a", "a")
    child = hold(kernel, "a", parent=parent)
    family = [parent, child, hold(kernel, "a", parent=child)]
    stranger = queue(kernel, "a", at=1)
    for nth in order:
        assert used(kernel) == {"a": 2}
        assert stranger.waiting
        kernel.release(family[nth], 2)
        kernel.check()
    assert let_in(kernel) == [stranger]
    assert used(kernel) == {"a": 1}


def test_only_the_direct_parent_covers() -> None:
    """What a grandparent holds is charged, unless the parent claimed it, too."""
    kernel = world(a=2, b=3)
    grandparent = hold(kernel, "a")
    parent = hold(kernel, "b", parent=grandparent)
    hold(kernel, "a", "b", parent=parent)
    assert used(kernel) == {"a": 2, "b": 1}


def test_a_family_cools_as_its_last_member_ended() -> None:
    """What is shared cools once, by how the last of the family ended."""
    kernel = world(a={"capacity": 1, "cooldown": Cooldown(success_ms=10, failed_ms=30)})
    parent = hold(kernel, "a")
    child = hold(kernel, "a", parent=parent)
    kernel.release(parent, 1, "success")
    assert kernel.next_deadline() is None
    kernel.release(child, 2, "failed")
    assert kernel.next_deadline() == 32


def test_a_released_parent_is_refused() -> None:
    """Nothing new is nested in a permit that ended."""
    kernel = world(a=1)
    parent = hold(kernel, "a")
    kernel.release(parent, 1)
    assert ask(kernel, "a", at=2, parent=parent) == Refused("parent_released")
    assert used(kernel) == {"a": 0}


@pytest.mark.parametrize("end", ["release", "revoke", "expire", "owner"])
def test_nested_waits_end_with_their_parent(end: str) -> None:
    """Who waits inside a permit is dropped when that ends, however it does."""
    kernel = world(a=2, b=1)
    hold(kernel, "b")
    parent = hold(kernel, "a", owner="o", lease_ms=5)
    nested = [queue(kernel, "a", "b", parent=parent, at=1 + n) for n in range(2)]
    stranger = queue(kernel, "a", "b", at=3)
    if end == "release":
        kernel.release(parent, 5)
    elif end == "revoke":
        kernel.revoke(parent, 5)
    elif end == "expire":
        kernel.tick(5)
    else:
        kernel.release_owner("o", 5)
    assert [one for one in told(kernel) if one[1] in nested] == [("dropped", waiter) for waiter in nested]
    assert stranger.waiting
    assert used(kernel) == {"a": 0, "b": 1}


def test_what_is_covered_is_granted_even_over_a_pause() -> None:
    """A nested request is asked only for what it is charged: a pause of what is shared does not stop it."""
    kernel = world(a=1, b=1)
    parent = hold(kernel, "a")
    kernel.pause("a", 99, 1)
    hold(kernel, "a", "b", parent=parent, at=2)
    assert ask(kernel, "a", "b", parent=parent, at=3, wait=False) == Refused("would_block", "b")


@pytest.mark.parametrize("end", ["remove", "release_owner"])
def test_a_wait_ends_once(end: str) -> None:
    """A lent permit that waits for its units ends with its wait, and with it who waits below it: they are not
    ended again by what ends them all."""
    kernel = world(a=1)
    lent = hold(kernel, "a", owner="o")
    kernel.lend(lent, 0)
    stranger = hold(kernel, "a", at=1)
    below = queue(kernel, "a", at=2, parent=lent, owner="o", key="k")
    wait = kernel.reclaim(lent, kernel.claims(("a",)), 3)
    assert isinstance(wait, Waiter)
    if end == "remove":
        kernel.remove("a", 4)
    else:
        kernel.release_owner("o", 4)
    assert {subject for _, subject in told(kernel)} == {wait, below}
    assert lent.ended == "released"
    assert kernel.release(stranger, 5)
    kernel.check()
