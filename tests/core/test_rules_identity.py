"""R8 to R11: keys, fences and owners.

`docs/semantics.md` says the same in prose and links here. All scenes play on the kernel itself: time is an
argument in milliseconds, and what the kernel has to tell is read from its outbox.
"""

from __future__ import annotations

import pytest

from core.scenes import ask, hold, let_in, permit_of, queue, told, used, world
from interlock.core.model import (
    Refused,
)

# -- R8


def test_r08_a_key_is_held_or_waiting_or_unknown() -> None:
    """R8: a key is held, waiting or unknown, never two of them."""
    kernel = world(a=1)

    def known() -> tuple[bool, bool]:
        return "k" in kernel.permits, "k" in kernel.waiters

    held, waiting, unknown = (True, False), (False, True), (False, False)
    permit = hold(kernel, "a")
    assert unknown == known()
    waiter = queue(kernel, "a", key="k")
    assert waiting == known()
    kernel.release(permit, 1)
    assert held == known()
    kernel.release(permit_of(waiter), 2)
    assert unknown == known()
    permit = hold(kernel, "a", at=3, key="k", lease_ms=4)
    assert held == known()
    kernel.tick(7)
    assert unknown == known()


@pytest.mark.parametrize("end", ["withdrawn", "timed out", "owner released", "limit removed"])
def test_r08_a_wait_that_ended_frees_its_key(end: str) -> None:
    """R8: however a wait ended, its key is unknown again."""
    kernel = world(a=1)
    hold(kernel, "a")
    waiter = queue(kernel, "a", key="k", owner="o", deadline_ms=5)
    if end == "withdrawn":
        kernel.withdraw(waiter, 1)
    elif end == "timed out":
        kernel.tick(5)
    elif end == "owner released":
        kernel.release_owner("o", 1)
    else:
        kernel.remove("a", 1)
    assert (kernel.permits, kernel.waiters, kernel.owners) == ({}, {}, {})


# -- R9


def test_r09_the_same_request_gets_the_same_permit() -> None:
    """R9: acquire is idempotent: a key that is live answers with what it has, counted once."""
    kernel = world(a=1, b=2)
    permit = hold(kernel, "a", "b", key="k", owner="o")
    assert permit is ask(kernel, "b", "a", key="k", owner="o")
    waiter = queue(kernel, "a", key="l")
    assert waiter is ask(kernel, "a", key="l", at=1)
    assert used(kernel) == {"a": 1, "b": 1}
    assert kernel.limit("a").waiters == {waiter}


def test_r09_a_key_with_another_request_is_a_conflict() -> None:
    """R9: a live key with other claims or another owner is refused, and changes nothing."""
    kernel = world(a=1, b=2)
    permit = hold(kernel, "a", key="k", owner="o")
    waiter = queue(kernel, "a", key="l")
    for key, names, owner in [
        ("k", ("b",), "o"),
        ("k", ("a", "a"), "o"),
        ("k", ("a",), "p"),
        ("k", ("a",), None),
        ("l", ("a", "b"), None),
        ("l", ("a",), "o"),
    ]:
        assert ask(kernel, *names, key=key, owner=owner) == Refused("conflict")
    assert (kernel.permits, kernel.waiters) == ({"k": permit}, {"l": waiter})
    assert used(kernel) == {"a": 1, "b": 0}


def test_r09_a_second_release_does_nothing() -> None:
    """R9: release is idempotent: the second says False, and never touches a successor."""
    kernel = world(a=1, b=1)
    permit = hold(kernel, "a", key="k")
    successor = queue(kernel, "a", at=1)
    assert kernel.release(permit, 2)
    assert let_in(kernel) == [successor]
    again = queue(kernel, "a", at=3, key="k")
    assert not kernel.release(permit, 4)
    assert not kernel.revoke(permit, 4)
    assert not kernel.give_back(permit)
    short = kernel.take(kernel.claims(("b",)), 4)
    assert short is not None
    assert [kernel.give_back(short), kernel.give_back(short)] == [True, False]
    assert let_in(kernel) == []
    assert used(kernel) == {"a": 1, "b": 0}
    assert again.waiting


# -- R10


def test_r10_fences_only_grow() -> None:
    """R10: every grant has a greater fence than all before it, on whatever way it came."""
    kernel = world(a=3)
    first, second = hold(kernel, "a"), kernel.take(kernel.claims(("a",)), 0)
    assert second is not None
    permits = [first, second, hold(kernel, "a")]
    waiter = queue(kernel, "a")
    kernel.release(permits[0], 1)
    permits.append(permit_of(waiter))
    fences = [permit.fence for permit in permits]
    assert sorted(set(fences)) == fences


def test_r10_a_stale_fence_changes_nothing() -> None:
    """R10: a renewal with another fence than the permit's is refused and moves no expiry."""
    kernel = world(a=1)
    permit = hold(kernel, "a", lease_ms=10)
    assert kernel.renew(permit, permit.fence - 1, 100, 5) is None
    assert kernel.renew(permit, permit.fence + 1, 100, 5) is None
    assert permit.expires_ms == kernel.next_deadline() == 10
    assert kernel.renew(permit, permit.fence, 20, 5) == 25
    kernel.tick(10)
    assert permit.ended is None
    kernel.tick(25)
    assert permit.ended == "expired"


def test_r10_a_permit_that_ended_is_not_renewed() -> None:
    """R10: after expiry the old holder neither renews nor releases what its successor has."""
    kernel = world(a=1)
    old = hold(kernel, "a", key="k", lease_ms=10)
    successor = queue(kernel, "a", lease_ms=10)
    kernel.tick(10)
    assert let_in(kernel) == [successor]
    assert kernel.renew(old, old.fence, 100, 11) is None
    assert not kernel.release(old, 11)
    assert used(kernel) == {"a": 1}
    assert kernel.next_deadline() == permit_of(successor).expires_ms == 20


# -- R11


def test_r11_what_an_owner_holds_ends_with_the_owner() -> None:
    """R11: an owner's permits are released and its waits revoked, in whatever order they came."""
    kernel = world(a=2, b=1)
    one, two = hold(kernel, "a", owner="o", key="k"), hold(kernel, "a", owner="o")
    strange = hold(kernel, "b", owner="p")
    waits = [queue(kernel, "b", owner="o", at=1), queue(kernel, "a", owner="o", at=2)]
    assert kernel.release_owner("o", 3) == [one, two]
    assert told(kernel) == [("revoked", waiter) for waiter in waits]
    assert (one.ended, two.ended, strange.ended) == ("released", "released", None)
    assert used(kernel) == {"a": 0, "b": 1}
    assert kernel.owners == {"p": {strange}}
    assert kernel.release_owner("o", 4) == []
    assert kernel.release_owner("nobody", 4) == []


def test_r11_a_dead_owner_does_not_inherit_from_itself() -> None:
    """R11: what an owner gives back goes to others, never to a wait of its own that ends with it."""
    kernel = world(a=1)
    hold(kernel, "a", owner="o")
    own = queue(kernel, "a", owner="o", at=1)
    other = queue(kernel, "a", owner="p", at=2)
    kernel.release_owner("o", 3)
    assert let_in(kernel) == [other]
    assert own.permit is None


def test_r11_a_wait_that_was_granted_still_has_its_owner() -> None:
    """R11: the owner of a wait is the owner of its permit."""
    kernel = world(a=1)
    first = hold(kernel, "a")
    waiter = queue(kernel, "a", owner="o")
    kernel.release(first, 1)
    assert kernel.release_owner("o", 2) == [permit_of(waiter)]
    assert permit_of(waiter).ended == "released"
    assert used(kernel) == {"a": 0}
