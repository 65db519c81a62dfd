"""R1 to R3: how much may be in use.

`docs/semantics.md` says the same in prose and links here. All scenes play on the kernel itself: time is an
argument in milliseconds, and what the kernel has to tell is read from its outbox.
"""

from __future__ import annotations

import pytest

from core.differential import Pair
from core.scenes import ask, hold, let_in, permit_of, queue, used, world
from interlock.core.model import (
    Cooldown,
    Refused,
)
from interlock.testing.walk import random_steps

# -- R1


def test_r01_a_grant_never_takes_a_limit_past_its_capacity() -> None:
    """R1: a grant never takes a limit past its capacity."""
    kernel = world(a=2)
    first, _second = hold(kernel, "a"), hold(kernel, "a")
    third, fourth = queue(kernel, "a"), queue(kernel, "a")
    kernel.release(first, 1)
    assert let_in(kernel) == [third]
    assert used(kernel) == {"a": 2}
    assert fourth.waiting


def test_r01_two_units_need_two() -> None:
    """R1: a request for two units is not granted over the last one, nor over none."""
    kernel = world(a=3)
    hold(kernel, "a", "a")
    assert ask(kernel, "a", "a", wait=False) == Refused("would_block", "a")
    hold(kernel, "a")
    assert ask(kernel, "a", "a", wait=False) == Refused("would_block", "a")
    assert used(kernel) == {"a": 3}


def test_r01_all_that_is_claimed_or_nothing() -> None:
    """R1: a request over several limits gets all of them at once, and takes nothing while it waits."""
    kernel = world(a=1, b=1)
    on_b = hold(kernel, "b")
    both = queue(kernel, "a", "b")
    assert used(kernel) == {"a": 0, "b": 1}
    kernel.release(on_b, 1)
    assert let_in(kernel) == [both]
    assert used(kernel) == {"a": 1, "b": 1}


def test_r01_the_short_way_keeps_to_the_capacity_too() -> None:
    """R1: the plainest request, too, gets all of its limits or leaves them as they were."""
    kernel = world(a=2, b=1)
    both = kernel.claims(("a", "b"))
    permit = kernel.take(both, 0)
    assert permit is not None
    assert kernel.take(both, 0) is None
    assert used(kernel) == {"a": 1, "b": 1}
    assert kernel.give_back(permit)
    assert not kernel.give_back(permit)
    assert used(kernel) == {"a": 0, "b": 0}


@pytest.mark.parametrize("seed", range(4))
def test_r01_whatever_is_done(seed: int) -> None:
    """R1: if more is in use than fits, the capacity was lowered or what others had granted is counted."""
    pair = Pair()
    before: dict[str, int] = {}
    for step in random_steps(f"capacity {seed}", 600):
        pair.carry_out(step)
        for name, limit in pair.kernel.limits.items():
            adopted = step.operation == "adopt"
            assert limit.used <= limit.capacity or limit.used <= before.get(name, 0) or adopted
        before = used(pair.kernel)


# -- R2


def test_r02_used_is_what_is_held_and_what_cools() -> None:
    """R2: what is used is exactly what permits hold and what cools after them."""
    kernel = world(a={"capacity": 9, "cooldown": Cooldown(success_ms=10)}, b=9)
    one, two = hold(kernel, "a"), hold(kernel, "a", "a", "b")
    assert used(kernel) == {"a": 3, "b": 1}
    kernel.release(two, 5)
    assert used(kernel) == {"a": 3, "b": 0}
    assert [cooling.weight for cooling in kernel.limit("a").holds] == [2]
    assert kernel.holders(kernel.limit("a")) == [one]
    kernel.tick(15)
    assert used(kernel) == {"a": 1, "b": 0}
    kernel.check()


def test_r02_a_request_that_waits_uses_nothing() -> None:
    """R2: a waiter, a refusal and a withdrawal use nothing."""
    kernel = world(a=1, b=1)
    hold(kernel, "a")
    waiter = queue(kernel, "a", "b")
    assert ask(kernel, "a", wait=False) == Refused("would_block", "a")
    kernel.withdraw(waiter, 0)
    assert used(kernel) == {"a": 1, "b": 0}


def test_r02_check_notices_a_wrong_count() -> None:
    """R2: a count that left what it is derived from is an error that says so."""
    kernel = world(a=2)
    hold(kernel, "a")
    kernel.check()
    kernel.limit("a").used += 1
    with pytest.raises(AssertionError, match="1 units are taken, 2 are counted"):
        kernel.check()


# -- R3


def test_r03_lowering_evicts_nobody() -> None:
    """R3: lowering a capacity evicts nobody, and admits nobody until there is room."""
    kernel = world(a=3)
    permits = [hold(kernel, "a") for _ in range(3)]
    waiter = queue(kernel, "a")
    kernel.configure("a", 1, capacity=1)
    assert used(kernel) == {"a": 3}
    kernel.release(permits[0], 2)
    kernel.release(permits[1], 3)
    assert let_in(kernel) == []
    kernel.release(permits[2], 4)
    assert let_in(kernel) == [waiter]


def test_r03_raising_admits_by_what_fits_not_by_the_difference() -> None:
    """R3: raised after it was lowered below what is in use, a limit still admits nobody without room."""
    kernel = world(a=4)
    permits = [hold(kernel, "a") for _ in range(4)]
    waiter = queue(kernel, "a")
    kernel.configure("a", 1, capacity=1)
    kernel.configure("a", 2, capacity=2)
    kernel.configure("a", 3, capacity=4)
    assert let_in(kernel) == []
    assert ask(kernel, "a", wait=False) == Refused("would_block", "a")
    assert used(kernel) == {"a": 4}
    kernel.configure("a", 4, capacity=5)
    assert let_in(kernel) == [waiter]
    assert not any(permit.ended for permit in permits)


def test_r03_a_limit_made_again_still_counts_who_holds_it() -> None:
    """R3: a limit removed and made again counts the permits that were held meanwhile."""
    kernel = world(a=2)
    first, second = hold(kernel, "a"), hold(kernel, "a")
    kernel.remove("a", 1)
    with pytest.raises(KeyError):
        ask(kernel, "a", at=1)
    kernel.configure("a", 2, capacity=2)
    waiter = queue(kernel, "a", at=2)
    kernel.release(first, 3)
    assert let_in(kernel) == [waiter]
    kernel.remove("a", 4)
    kernel.release(second, 5)
    kernel.release(permit_of(waiter), 6)
    assert kernel.limits == {}
