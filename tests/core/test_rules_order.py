"""R4 to R7: who goes next.

`docs/semantics.md` says the same in prose and links here. All scenes play on the kernel itself: time is an
argument in milliseconds, and what the kernel has to tell is read from its outbox.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from core.scenes import ask, hold, let_in, permit_of, queue, used, world
from interlock.core.kernel import Kernel
from interlock.core.model import (
    PATIENCE,
    Cooldown,
    Permit,
    Refused,
)

# -- R4


ROOM_APPEARS: dict[str, Callable[[Kernel, Permit], object]] = {
    "release": lambda kernel, permit: kernel.release(permit, 5),
    "revoke": lambda kernel, permit: kernel.revoke(permit, 5),
    "owner released": lambda kernel, permit: kernel.release_owner("holder", 5),
    "lease expired": lambda kernel, permit: kernel.tick(7),
    "capacity raised": lambda kernel, permit: kernel.configure("a", 5, capacity=2),
    "capacity taken away": lambda kernel, permit: kernel.configure("a", 5, capacity=None),
}


@pytest.mark.parametrize("way", ROOM_APPEARS)
def test_r04_room_goes_to_the_oldest_in_the_same_step(way: str) -> None:
    """R4: the oldest waiter that fits is never left waiting, however the room appeared."""
    kernel = world(a=1)
    permit = hold(kernel, "a", owner="holder", lease_ms=7)
    oldest = queue(kernel, "a", at=1)
    queue(kernel, "a", at=2, priority=1)
    ROOM_APPEARS[way](kernel, permit)
    assert oldest == let_in(kernel)[0]


def test_r04_one_that_fits_is_not_stopped_by_an_older_one_that_does_not() -> None:
    """R4: an older waiter for something else stops nobody."""
    kernel = world(a=1, b=1)
    hold(kernel, "a")
    hold_b = hold(kernel, "b")
    on_a, on_b = queue(kernel, "a", at=1), queue(kernel, "b", at=2)
    kernel.release(hold_b, 3)
    assert let_in(kernel) == [on_b]
    assert on_a.waiting


def test_r04_what_an_elder_kept_is_room_when_it_leaves() -> None:
    """R4: if the one who kept a unit from others gives up, the next oldest gets it in the same step."""
    kernel = world(a=2)
    hold(kernel, "a")
    elder = queue(kernel, "a", "a", at=1)
    younger = queue(kernel, "a", at=2)
    kernel.withdraw(elder, 3)
    assert let_in(kernel) == [younger]


def test_r04_nobody_goes_the_short_way_past_one_who_waits() -> None:
    """R4: the short way in and out is shut where somebody waits, or where units cool."""
    kernel = world(a=2, b={"capacity": 1, "cooldown": Cooldown(success_ms=5)})
    one, cools = hold(kernel, "a"), hold(kernel, "b")
    large = queue(kernel, "a", "a")
    assert kernel.take(kernel.claims(("a",)), 1) is None
    assert not kernel.give_back(one)
    assert not kernel.give_back(cools)
    assert kernel.release(one, 2)
    assert let_in(kernel) == [large]


def test_r04_all_that_fit_go_at_once() -> None:
    """R4: one change that makes room for several lets in several, oldest first."""
    kernel = world(a=3)
    large = hold(kernel, "a", "a", "a")
    waiters = [queue(kernel, "a", at=1 + n) for n in range(4)]
    kernel.release(large, 9)
    assert waiters[:3] == let_in(kernel)


# -- R5


def test_r05_by_since_then_by_arrival() -> None:
    """R5: with the same claims and priority, order is strictly by `since`, then by arrival."""
    kernel = world(a=1)
    permit = hold(kernel, "a")
    waiters = {
        "late": queue(kernel, "a", at=8, since_ms=7),
        "early": queue(kernel, "a", at=8, since_ms=3),
        "early, arrived after": queue(kernel, "a", at=8, since_ms=3),
        "earliest": queue(kernel, "a", at=9, since_ms=1),
    }
    order = []
    for at in range(10, 14):
        kernel.release(permit, at)
        (waiter,) = let_in(kernel)
        permit = permit_of(waiter)
        order += [name for name, one in waiters.items() if one is waiter]
    assert order == ["earliest", "early", "early, arrived after", "late"]


def test_r05_a_start_in_the_future_counts_as_now() -> None:
    """R5: `since` is never later than the arrival."""
    kernel = world(a=1)
    permit = hold(kernel, "a")
    first = queue(kernel, "a", at=1, since_ms=50)
    queue(kernel, "a", at=2, since_ms=2)
    kernel.release(permit, 3)
    assert let_in(kernel) == [first]


def test_r05_priority_comes_before_since() -> None:
    """R5: a smaller priority number goes first, whenever it came."""
    kernel = world(a=1)
    permit = hold(kernel, "a")
    queue(kernel, "a", at=1)
    urgent = queue(kernel, "a", at=2, priority=-1)
    queue(kernel, "a", at=0, priority=1)
    kernel.release(permit, 3)
    assert let_in(kernel) == [urgent]


def test_r05_claims_are_the_same_in_any_order_of_names() -> None:
    """R5: the names of a request are a bag: their order makes no other claims."""
    kernel = world(a=2, b=1)
    assert kernel.claims(("a", "b", "a")) is kernel.claims(("b", "a", "a"))
    assert kernel.claims(("a", "b")) is not kernel.claims(("b", "a", "a"))


def test_r05_a_newcomer_does_not_pass_those_who_wait() -> None:
    """R5: room that is kept for one who waits is no room for a newcomer with the same claims."""
    kernel = world(a=2)
    hold(kernel, "a")
    queue(kernel, "a", "a", at=1)
    queue(kernel, "a", at=2)
    assert ask(kernel, "a", at=3, wait=False) == Refused("would_block", "a")
    assert hold(kernel, "a", at=3, since_ms=0)


# -- R6


def test_r06_what_an_elder_lacks_is_kept_from_the_younger() -> None:
    """R6: the units that a blocked elder lacks are reserved: nobody younger gets them, however small."""
    kernel = world(a=2)
    first, second = hold(kernel, "a"), hold(kernel, "a")
    large = queue(kernel, "a", "a", at=1)
    small = queue(kernel, "a", at=2)
    kernel.release(first, 3)
    assert let_in(kernel) == []
    kernel.release(second, 4)
    assert let_in(kernel) == [large]
    assert small.waiting


def test_r06_passed_sixteen_times_and_not_once_more() -> None:
    """R6: over two limits that are busy in turn a request is passed 16 times; then both are kept for it."""
    kernel = world(x=1, y=1)
    holders = {"x": hold(kernel, "x"), "y": hold(kernel, "y")}
    elder = queue(kernel, "x", "y")
    assert PATIENCE == 16
    for turn in range(PATIENCE):
        name = "xy"[turn % 2]
        younger = queue(kernel, name, at=turn + 1)
        kernel.release(holders[name], turn + 1)
        assert let_in(kernel) == [younger]
        holders[name] = permit_of(younger)
        assert turn + 1 == elder.passed
    seventeenth = queue(kernel, "x", at=20)
    kernel.release(holders["x"], 21)
    assert let_in(kernel) == []
    assert ask(kernel, "x", at=21, wait=False) == Refused("would_block", "x")
    kernel.release(holders["y"], 22)
    assert let_in(kernel) == [elder]
    assert seventeenth.waiting


def test_r06_nobody_is_held_back_before_that() -> None:
    """R6: a stream that waits for streams keeps no unit of the ceiling from a tool, 16 times over."""
    kernel = world(streams=1, ceiling=2)
    hold(kernel, "streams", "ceiling")
    stream = queue(kernel, "streams", "ceiling", at=1)
    for turn in range(PATIENCE):
        tool = hold(kernel, "ceiling", at=2 + turn)
        kernel.release(tool, 2 + turn)
    assert stream.passed == PATIENCE
    assert ask(kernel, "ceiling", at=20, wait=False) == Refused("would_block", "ceiling")


def test_r06_also_if_it_asks_for_several_units() -> None:
    """R6: two units of the ceiling are not kept for a stream that waits for streams, until patience ends."""
    kernel = world(streams=1, ceiling=4)
    hold(kernel, "streams", "ceiling")
    stream = queue(kernel, "streams", "ceiling", "ceiling", at=1)
    hold(kernel, "ceiling", at=2)
    last = hold(kernel, "ceiling", at=3)
    for turn in range(PATIENCE - 2):
        kernel.release(last, 5 + turn)
        last = hold(kernel, "ceiling", at=5 + turn)
    assert stream.passed == PATIENCE
    kernel.release(last, 30)
    assert ask(kernel, "ceiling", at=30, wait=False) == Refused("would_block", "ceiling")


def test_r06_out_of_patience_it_keeps_what_it_claims_and_no_more() -> None:
    """R6: a waiter whose patience ran out keeps one unit of the ceiling; the others are anybody's."""
    kernel = world(streams=1, ceiling=3)
    hold(kernel, "streams", "ceiling")
    stream = queue(kernel, "streams", "ceiling", at=1)
    for turn in range(3 * PATIENCE):
        tool = hold(kernel, "ceiling", at=2 + turn)
        kernel.release(tool, 2 + turn)
    assert stream.passed == PATIENCE
    hold(kernel, "ceiling", at=99)
    assert ask(kernel, "ceiling", at=99, wait=False) == Refused("would_block", "ceiling")


def test_r06_only_those_that_share_a_limit_pass_and_only_once() -> None:
    """R6: who shares no limit does not pass; who shares two passes once; an older one does not pass."""
    kernel = world(a=1, b=3, c=3, d=3)
    hold(kernel, "a")
    elder = queue(kernel, "a", "b", "c", at=5)
    hold(kernel, "d", at=6)
    assert elder.passed == 0
    hold(kernel, "b", "c", at=7)
    assert elder.passed == 1
    hold(kernel, "b", "c", at=8, since_ms=4)
    hold(kernel, "c", at=9, priority=-1)
    assert elder.passed == 1


def test_r06_passes_count_for_the_front_of_a_lane() -> None:
    """R6: of those with the same claims only the front waiter competes, so only it is passed."""
    kernel = world(streams=1, ceiling=9)
    stream = hold(kernel, "streams", "ceiling")
    front, second = (queue(kernel, "streams", "ceiling", at=1 + n) for n in range(2))
    for turn in range(3):
        hold(kernel, "ceiling", at=4 + turn)
    assert (front.passed, second.passed) == (3, 0)
    kernel.release(stream, 8)
    assert let_in(kernel) == [front]
    hold(kernel, "ceiling", at=9)
    assert second.passed == 1


# -- R7


def test_r07_what_can_never_fit_delays_nobody() -> None:
    """R7: a request for more units than there are waits, and delays nobody."""
    kernel = world(a=1, b=1)
    permit = hold(kernel, "a")
    giant = queue(kernel, "a", "a", "b", at=1)
    younger = queue(kernel, "a", at=2)
    hold(kernel, "b", at=3)
    kernel.release(permit, 4)
    assert let_in(kernel) == [younger]
    permit = permit_of(younger)
    for turn in range(2 * PATIENCE):
        kernel.release(permit, 5 + turn)
        permit = hold(kernel, "a", at=5 + turn)
    assert giant.waiting
    assert giant.passed == 0


def test_r07_a_name_given_twice_takes_two_units() -> None:
    """R7: two units of a limit of one never fit; raised to two, the request competes at its old place."""
    kernel = world(a=1)
    permit = hold(kernel, "a")
    twice = queue(kernel, "a", "a", at=1)
    once = queue(kernel, "a", at=2)
    kernel.configure("a", 3, capacity=2)
    assert let_in(kernel) == []
    kernel.release(permit, 4)
    assert let_in(kernel) == [twice]
    assert used(kernel) == {"a": 2}
    kernel.release(permit_of(twice), 5)
    assert let_in(kernel) == [once]


def test_r07_also_if_it_became_too_large_while_it_waited() -> None:
    """R7: lowered below what it asks for, a limit is kept for it no longer."""
    kernel = world(a=2)
    first, second = hold(kernel, "a"), hold(kernel, "a")
    queue(kernel, "a", "a", at=1)
    small = queue(kernel, "a", at=2)
    kernel.release(first, 3)
    kernel.configure("a", 4, capacity=1)
    kernel.release(second, 5)
    assert let_in(kernel) == [small]
