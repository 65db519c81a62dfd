"""The rules of admission, R1 to R16, each in small scenes that can be read as their specification.

`docs/semantics.md` says the same in prose and links here. All scenes play on the kernel itself: time is an
argument in milliseconds, and what the kernel has to tell is read from its outbox.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest

from core.differential import Pair
from interlock.core.explain import Block, blocks, position
from interlock.core.kernel import Kernel
from interlock.core.model import (
    NO_COOLDOWN,
    PATIENCE,
    Cooldown,
    Ended,
    GateWaiting,
    Granted,
    Permit,
    Refused,
    Waiter,
)
from interlock.testing.walk import random_steps


def world(**limits: int | dict[str, Any] | None) -> Kernel:
    """A kernel with these limits: a capacity each, or a dict with more settings."""
    kernel = Kernel()
    for name, setting in limits.items():
        kernel.configure(name, 0, **(setting if isinstance(setting, dict) else {"capacity": setting}))
    return kernel


def ask(kernel: Kernel, *names: str, at: int = 0, **asked: Any) -> Permit | Waiter | Refused:
    return kernel.acquire(kernel.claims(names), at, **asked)


def hold(kernel: Kernel, *names: str, at: int = 0, **asked: Any) -> Permit:
    """Ask, and be let in at once."""
    permit = ask(kernel, *names, at=at, **asked)
    assert isinstance(permit, Permit), f"{names} should have had room: {kernel}"
    return permit


def queue(kernel: Kernel, *names: str, at: int = 0, **asked: Any) -> Waiter:
    """Ask, and have to wait."""
    waiter = ask(kernel, *names, at=at, **asked)
    assert isinstance(waiter, Waiter), f"{names} should have had to wait: {kernel}"
    assert waiter.waiting
    return waiter


def let_in(kernel: Kernel) -> list[Waiter]:
    """Who of those who waited was let in since this was asked last, in order."""
    granted = [effect.waiter for effect in kernel.outbox if isinstance(effect, Granted)]
    kernel.outbox.clear()
    return granted


def told(kernel: Kernel) -> list[tuple[str, Permit | Waiter]]:
    """What came to an end unasked since this was asked last, and why."""
    endings = [(effect.reason, effect.subject) for effect in kernel.outbox if isinstance(effect, Ended)]
    kernel.outbox.clear()
    return endings


def copy_of(kernel: Kernel, *more: Any) -> Any:
    """The same state once more, to try something on it."""
    return deepcopy((kernel, *more), {id(NO_COOLDOWN): NO_COOLDOWN})


def permit_of(waiter: Waiter) -> Permit:
    assert waiter.permit is not None, "it waits still"
    return waiter.permit


def used(kernel: Kernel) -> dict[str, int]:
    return {name: limit.used for name, limit in kernel.limits.items()}


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


# -- R12


def test_r12_a_cooling_unit_is_not_free_until_its_time() -> None:
    """R12: a unit that cools is used until its time, and goes to who waits in that very millisecond."""
    kernel = world(a={"capacity": 1, "cooldown": Cooldown(success_ms=10)})
    kernel.release(hold(kernel, "a"), 5)
    waiter = queue(kernel, "a", at=6, deadline_ms=15)
    kernel.tick(14)
    assert used(kernel) == {"a": 1}
    assert let_in(kernel) == []
    kernel.tick(15)
    assert let_in(kernel) == [waiter]
    assert permit_of(waiter).granted_ms == 15


@pytest.mark.parametrize(
    ("end", "free_at"), [("success", 11), ("cancelled", 21), ("failed", 31), ("revoke", 31), ("expire", 31)]
)
def test_r12_by_how_the_work_ended(end: str, free_at: int) -> None:
    """R12: how long a unit cools depends on how the work ended; what was taken away cools as failed."""
    kernel = world(a={"capacity": 1, "cooldown": Cooldown(10, 20, 30)})
    permit = hold(kernel, "a", lease_ms=1 if end == "expire" else None)
    if end == "expire":
        kernel.tick(1)
    elif end == "revoke":
        kernel.revoke(permit, 1)
    else:
        kernel.release(permit, 1, end)  # type: ignore[arg-type]
    assert free_at == kernel.next_deadline()
    kernel.tick(free_at)
    assert used(kernel) == {"a": 0}


def test_r12_what_nobody_used_does_not_cool() -> None:
    """R12: a permit that never reached anybody gives its units back at once."""
    kernel = world(a={"capacity": 1, "cooldown": Cooldown(10, 20, 30)})
    kernel.release(hold(kernel, "a"), 1, "unused")
    assert used(kernel) == {"a": 0}


def test_r12_only_the_limits_with_a_cooldown_cool() -> None:
    """R12: of several limits each cools by its own setting, and cooled units outlive a removal."""
    kernel = world(a={"capacity": 1, "cooldown": Cooldown(success_ms=10)}, b=1)
    kernel.release(hold(kernel, "a", "b"), 0)
    assert used(kernel) == {"a": 1, "b": 0}
    kernel.remove("a", 1)
    kernel.configure("a", 2, capacity=1)
    assert ask(kernel, "a", at=3, wait=False) == Refused("would_block", "a")
    kernel.tick(10)
    hold(kernel, "a", at=10)


# -- R13


def test_r13_nobody_passes_a_pause() -> None:
    """R13: while a limit is paused, neither waiters nor newcomers are admitted over it."""
    kernel = world(a=2, b=1)
    permit = hold(kernel, "a")
    kernel.pause("a", 10, 1)
    assert ask(kernel, "a", at=2, wait=False) == Refused("would_block", "a")
    assert kernel.take(kernel.claims(("a",)), 2) is None
    waiter = queue(kernel, "a", "b", at=2)
    kernel.release(permit, 3)
    kernel.configure("a", 4, capacity=9)
    kernel.tick(9)
    assert let_in(kernel) == []
    kernel.tick(10)
    assert let_in(kernel) == [waiter]


def test_r13_a_pause_shuts_an_open_gate_too() -> None:
    """R13: a gate that would let newcomers by does not while its limit is paused."""
    kernel = world(a={"capacity": 1, "gated": True})
    kernel.pause("a", 10, 0)
    assert ask(kernel, "a", at=1, wait=False) == Refused("would_block", "a")
    kernel.tick(10)
    hold(kernel, "a", at=10)


def test_r13_a_pause_only_grows() -> None:
    """R13: a shorter pause does not shorten a longer one; only `resume` ends it early."""
    kernel = world(a=1)
    kernel.pause("a", 10, 0)
    kernel.pause("a", 5, 1)
    assert kernel.limit("a").paused_until_ms == kernel.next_deadline() == 10
    kernel.pause("a", 20, 2)
    assert kernel.limit("a").paused_until_ms == kernel.next_deadline() == 20
    waiter = queue(kernel, "a", at=3)
    kernel.resume("a", 4)
    assert let_in(kernel) == [waiter]
    kernel.pause("a", 4, 4)
    assert kernel.limit("a").paused_until_ms is None


def test_r13_a_gate_is_open_to_newcomers_while_nobody_waits() -> None:
    """R13: with nobody waiting and no fresh reading a gate is open, and shut as soon as anyone waits."""
    kernel = world(a={"capacity": 2, "gated": True}, b=1)
    first, _second = hold(kernel, "a"), hold(kernel, "a")
    waiter = queue(kernel, "a", at=1)
    kernel.release(first, 2)
    assert let_in(kernel) == []
    assert ask(kernel, "a", at=3, wait=False) == Refused("would_block", "a")
    assert ask(kernel, "a", "b", at=3, priority=-1, wait=False) == Refused("would_block", "a")
    kernel.admit("a", 1, 4)
    assert let_in(kernel) == [waiter]


def test_r13_a_fresh_reading_binds_newcomers_too() -> None:
    """R13: while the last reading is fresh, a newcomer needs what is left of it."""
    kernel = world(a={"capacity": 9, "gated": True})
    kernel.admit("a", 1, 0, fresh_until_ms=10)
    hold(kernel, "a", at=1)
    assert ask(kernel, "a", at=2, wait=False) == Refused("would_block", "a")
    kernel.tick(10)
    hold(kernel, "a", at=10)


def kept_by_a_pause(kernel: Kernel) -> Waiter:
    kernel.pause("provider", 1_000, 0)
    return queue(kernel, "provider", "ceiling")


def kept_by_a_gate(kernel: Kernel) -> Waiter:
    kernel.configure("provider", 0, capacity=1, gated=True)
    kernel.admit("provider", 0, 0, fresh_until_ms=1_000)
    return queue(kernel, "provider", "ceiling")


def kept_by_the_capacity(kernel: Kernel) -> Waiter:
    return queue(kernel, "provider", "provider", "ceiling")


ASIDE = [kept_by_a_pause, kept_by_a_gate, kept_by_the_capacity]


@pytest.mark.parametrize("kept", ASIDE)
def test_r13_one_kept_out_stands_aside(kept: Callable[[Kernel], Waiter]) -> None:
    """R13: whom a pause, a gate or the capacity keeps out reserves nothing, and is not passed."""
    kernel = world(provider=1, ceiling=1)
    waiter = kept(kernel)
    for turn in range(2 * PATIENCE):
        kernel.release(hold(kernel, "ceiling", at=turn + 1), turn + 1)
    assert waiter.waiting
    assert waiter.passed == 0
    kernel.configure("provider", 50, capacity=2)
    kernel.resume("provider", 50)
    assert let_in(kernel) == [waiter]


@pytest.mark.parametrize("kept", ASIDE[:2])
def test_r13_standing_aside_gives_up_what_was_reserved(kept: Callable[[Kernel], Waiter]) -> None:
    """R13: one who stood in line and is kept out from now on keeps nothing from the younger."""
    kernel = world(provider=1, ceiling=2)
    hold(kernel, "ceiling")
    queue(kernel, "provider", "ceiling", "ceiling", at=1)
    younger = queue(kernel, "ceiling", at=2)
    assert let_in(kernel) == []
    kept(kernel)
    assert let_in(kernel) == [younger]


# -- R14


def test_r14_one_reading_of_n_admits_at_most_n() -> None:
    """R14: an answer of n admits n units, waiting or new, and then the gate is shut."""
    kernel = world(a={"capacity": 9, "gated": True})
    kernel.admit("a", 0, 0, fresh_until_ms=10)
    waiters = [queue(kernel, "a", at=1) for _ in range(4)]
    kernel.admit("a", 3, 2, fresh_until_ms=12)
    assert waiters[:3] == let_in(kernel)
    assert ask(kernel, "a", at=3, wait=False) == Refused("would_block", "a")
    kernel.release(permit_of(waiters[0]), 4)
    assert let_in(kernel) == []


def test_r14_units_count_not_requests() -> None:
    """R14: a request for two units spends two, and the last one is no room for it."""
    kernel = world(a={"capacity": 9, "gated": True})
    kernel.admit("a", 3, 0, fresh_until_ms=10)
    hold(kernel, "a", "a", at=1)
    assert kernel.limit("a").credits == 1
    large = queue(kernel, "a", "a", at=2)
    assert ask(kernel, "a", at=3, wait=False) == Refused("would_block", "a")
    kernel.admit("a", 2, 4, fresh_until_ms=14)
    assert let_in(kernel) == [large]
    assert kernel.limit("a").credits == 0


def test_r14_a_new_reading_replaces_the_last_and_an_old_one_lapses() -> None:
    """R14: readings are not added up, and what is left of one lapses when it is no longer fresh."""
    kernel = world(a={"capacity": 9, "gated": True})
    kernel.admit("a", 5, 0, fresh_until_ms=10)
    kernel.admit("a", 1, 1, fresh_until_ms=11)
    hold(kernel, "a", at=2)
    waiter = queue(kernel, "a", at=3)
    kernel.admit("a", -7, 4, fresh_until_ms=14)
    assert kernel.limit("a").credits == 0
    kernel.configure("a", 5, capacity=1, gated=True)
    kernel.admit("a", 2, 6, fresh_until_ms=16)
    assert kernel.limit("a").credits == 2
    kernel.tick(16)
    assert kernel.limit("a").credits == 0
    kernel.configure("a", 17, capacity=9, gated=True)
    assert let_in(kernel) == []
    kernel.admit("a", 1, 18)
    assert let_in(kernel) == [waiter]


def test_r14_a_lowered_capacity_takes_its_part_of_the_answer() -> None:
    """R14: lowered by two units, a limit has two credits less; raised again, it gets none back."""
    kernel = world(a={"capacity": 5, "gated": True})
    kernel.admit("a", 3, 0, fresh_until_ms=10)
    kernel.configure("a", 1, capacity=3, gated=True)
    assert kernel.limit("a").credits == 1
    kernel.configure("a", 2, capacity=9, gated=True)
    hold(kernel, "a", at=3)
    assert ask(kernel, "a", at=3, wait=False) == Refused("would_block", "a")


def test_r14_the_capacity_holds_whatever_a_reading_says() -> None:
    """R14: a reading never admits past the capacity, and an ungated limit takes none."""
    kernel = world(a={"capacity": 1, "gated": True}, b=1)
    kernel.admit("a", 5, 0)
    hold(kernel, "a")
    waiter = queue(kernel, "a", at=1)
    kernel.admit("a", 5, 2)
    kernel.admit("b", 5, 2)
    assert waiter.waiting
    assert kernel.limit("b").credits == 0


def test_r14_who_has_to_ask_is_told_so() -> None:
    """R14: `GateWaiting` says that somebody waits where there is room, and whether room appeared since."""
    kernel = world(a={"capacity": 1, "gated": True})

    def to_ask() -> list[GateWaiting]:
        asked = [effect for effect in kernel.outbox if isinstance(effect, GateWaiting)]
        kernel.outbox.clear()
        return asked

    first = hold(kernel, "a")
    queue(kernel, "a", at=1)
    assert to_ask() == []
    kernel.release(first, 2)
    assert to_ask() == [GateWaiting("a", recycled=True)]
    queue(kernel, "a", at=3)
    assert to_ask() == [GateWaiting("a", recycled=False)]
    kernel.pause("a", 9, 4)
    queue(kernel, "a", at=5)
    assert to_ask() == []
    kernel.tick(9)
    assert to_ask() == [GateWaiting("a", recycled=True)]
    kernel.configure("a", 10, capacity=2, gated=True)
    assert to_ask() == [GateWaiting("a", recycled=True)]
    kernel.admit("a", 0, 11, fresh_until_ms=12)
    assert to_ask() == []
    kernel.tick(12)
    assert to_ask() == [GateWaiting("a", recycled=False)]


# -- R15


def test_r15_nothing_happens_before_the_next_deadline() -> None:
    """R15: a tick before `next_deadline` changes nothing; at it, all happens that is due."""
    kernel = world(a={"capacity": 1, "cooldown": Cooldown(failed_ms=5)}, b=1)
    assert kernel.next_deadline() is None
    leased = hold(kernel, "a", lease_ms=10)
    late = queue(kernel, "a", deadline_ms=12)
    patient = queue(kernel, "a", deadline_ms=99)
    kernel.pause("b", 20, 0)
    paused = queue(kernel, "b")
    happened = []
    while (due := kernel.next_deadline()) is not None and due < 99:
        kernel.tick(due - 1)
        assert kernel.outbox == []
        kernel.tick(due)
        happened += [(due, effect[0], effect[1]) for effect in kernel.outbox]
        kernel.outbox.clear()
    assert [
        (10, "expired", leased),
        (12, "timed_out", late),
        (15, patient, patient.permit),
        (20, paused, paused.permit),
    ] == happened
    assert kernel.next_deadline() is None


def test_r15_what_is_called_off_is_no_deadline() -> None:
    """R15: the next deadline is that of something that will happen, not of what was withdrawn or released."""
    kernel = world(a=1)
    permit = hold(kernel, "a", lease_ms=5)
    waiter = queue(kernel, "a", deadline_ms=3)
    queue(kernel, "a", deadline_ms=9)
    assert kernel.next_deadline() == 3
    kernel.withdraw(waiter, 1)
    assert kernel.next_deadline() == 5
    kernel.release(permit, 2)
    assert kernel.next_deadline() is None


def test_r15_a_late_tick_lets_it_all_happen_in_order() -> None:
    """R15: however late the tick, what was due happens in its order and as of its own time."""
    kernel = world(a=1)
    hold(kernel, "a", lease_ms=10)
    second = queue(kernel, "a", at=1, lease_ms=10)
    third = queue(kernel, "a", at=2, deadline_ms=20)
    fourth = queue(kernel, "a", at=3, deadline_ms=19)
    kernel.tick(1_000)
    assert (permit_of(second).granted_ms, permit_of(third).granted_ms) == (10, 20)
    assert fourth.gone
    assert [type(effect) for effect in kernel.outbox] == [Ended, Granted, Ended, Ended, Granted]


@pytest.mark.parametrize("seed", range(3))
def test_r15_in_every_state(seed: int) -> None:
    """R15: wherever a walk has got to, a tick one millisecond early changes nothing."""
    pair = Pair()
    for step in random_steps(f"deadlines {seed}", 500):
        pair.carry_out(step)
        due = pair.kernel.next_deadline()
        if due is not None:
            before = repr(pair.kernel), pair.kernel.fence
            pair.kernel.tick(due - 1)
            assert pair.kernel.outbox == []
            assert before == (repr(pair.kernel), pair.kernel.fence)


# -- R16


def traces(kernel: Kernel) -> dict[str, Any]:
    """All that a request could leave behind."""
    limits = kernel.limits.values()
    lanes = {lane for claims in kernel.claims_by_names.values() for lane in claims.lanes.values()}
    filed = {lane for limit in limits for lane in (*limit.line.filed, *limit.watchers.filed, *limit.aside)}
    assert filed <= lanes, "a lane in which nobody waits is still filed"
    return {
        "limits": repr(kernel),
        "keys": {*kernel.permits, *kernel.waiters},
        "owners": {owner: set(owned) for owner, owned in kernel.owners.items()},
        "live": set(kernel.live),
        "nested": {waiter for permit in kernel.live for waiter in permit.nested or ()},
        "waiting": {limit.name: set(limit.waiters) for limit in limits},
        "front": {(lane, lane.head) for lane in lanes},
        "short way": {limit.name: (limit.open_capacity, limit.busy) for limit in limits},
        "deadline": kernel.next_deadline(),
    }


def test_r16_a_withdrawn_waiter_leaves_no_trace() -> None:
    """R16: after a withdrawal all is as if the request had never been made."""
    kernel = world(a=2, b=1)
    parent = hold(kernel, "a", owner="o")
    before = traces(kernel)
    hold_b = hold(kernel, "b")
    waiter = queue(kernel, "a", "b", key="k", owner="o", parent=parent, deadline_ms=9)
    assert before != traces(kernel)
    assert kernel.withdraw(waiter, 1)
    assert not kernel.withdraw(waiter, 1)
    kernel.release(hold_b, 2)
    assert before == traces(kernel)
    assert kernel.outbox == []


@pytest.mark.parametrize("seed", range(3))
def test_r16_in_every_state(seed: int) -> None:
    """R16: wherever a walk has got to, to come, to wait and to go again changes nothing."""
    pair, waited = Pair(), 0
    for step in random_steps(f"come and go {seed}", 300):
        pair.carry_out(step)
        (kernel,), pick = copy_of(pair.kernel), step.pick
        names = [name for name, limit in kernel.limits.items() if not limit.removed]
        claims = kernel.claims(tuple(names[pick % 3 :] + names[: pick % 2]))
        before = traces(kernel)
        waiter = kernel.acquire(
            claims,
            step.now_ms,
            key="come and go",
            owner="o1",
            priority=pick % 5 - 3,
            since_ms=step.now_ms - pick % 9,
            deadline_ms=step.now_ms + pick % 7,
        )
        if isinstance(waiter, Waiter):
            waited += 1
            assert kernel.withdraw(waiter, step.now_ms)
            assert before == traces(kernel)
    assert waited > 50


def test_r16_cancelled_in_the_instant_of_being_granted() -> None:
    """R16: if the grant came first, the withdrawal says so, and the unit goes on to the next in line."""
    kernel = world(a=1)
    holder = hold(kernel, "a")
    cancelled, following = queue(kernel, "a", at=1, key="k", owner="o"), queue(kernel, "a", at=2)
    kernel.release(holder, 3)
    assert let_in(kernel) == [cancelled]
    assert not kernel.withdraw(cancelled, 3)
    assert kernel.release(permit_of(cancelled), 3)
    assert let_in(kernel) == [following]
    assert (kernel.permits, kernel.waiters, kernel.owners) == ({}, {}, {})
    assert used(kernel) == {"a": 1}


def test_r16_a_cancelled_waiter_stops_counting_at_once() -> None:
    """R16: its place in a bounded line is free in the same moment, and its deadline never comes."""
    kernel = world(a={"capacity": 1, "queue_max": 1})
    hold(kernel, "a")
    waiter = queue(kernel, "a", deadline_ms=5)
    assert ask(kernel, "a") == Refused("queue_full", "a")
    kernel.withdraw(waiter, 1)
    queue(kernel, "a", at=1)
    assert kernel.next_deadline() is None
    kernel.tick(5)
    assert told(kernel) == []


# -- leases


def test_a_lease_that_runs_out_passes_its_unit_on() -> None:
    """A leased permit ends at its time, is reported as expired, and its unit goes to the next."""
    kernel = world(a=1)
    lost = hold(kernel, "a", key="k", owner="o", lease_ms=10)
    waiter = queue(kernel, "a", at=1, lease_ms=10)
    kernel.tick(10)
    assert kernel.outbox == [Ended("expired", lost), Granted(waiter, permit_of(waiter))]
    assert lost.ended == "expired"
    assert permit_of(waiter).expires_ms == 20
    assert (kernel.permits, kernel.owners) == ({}, {})


def test_a_lease_may_be_renewed_shorter_or_longer_or_begun() -> None:
    """A renewal counts from its own moment, and makes a lease of a permit that had none."""
    kernel = world(a=1)
    permit = hold(kernel, "a")
    assert permit.expires_ms is None
    for lease_ms in (30, 5, 50):
        assert kernel.renew(permit, permit.fence, lease_ms, 10) == 10 + lease_ms
        assert permit.expires_ms == kernel.next_deadline() == 10 + lease_ms
    kernel.release(permit, 20)
    assert kernel.next_deadline() is None


def test_a_revoked_permit_is_reported() -> None:
    """A permit taken back from a silent holder is told of, and its unit passed on."""
    kernel = world(a=1)
    permit, waiter = hold(kernel, "a"), queue(kernel, "a")
    kernel.touch(permit, 7)
    assert permit.touched_ms == 7
    assert kernel.revoke(permit, 9)
    assert kernel.outbox == [Ended("revoked", permit), Granted(waiter, permit_of(waiter))]
    assert not kernel.revoke(permit, 9)


# -- families


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


# -- bounded lines, removal


def test_a_bounded_line_refuses_the_next() -> None:
    """`queue_max` bounds who waits for a limit, over all lanes; who need not wait is not refused."""
    kernel = world(a={"capacity": 1, "queue_max": 1}, b={"capacity": 1, "queue_max": 0})
    permit = hold(kernel, "a")
    waiter = queue(kernel, "a")
    hold(kernel, "b")
    assert ask(kernel, "a", priority=-1) == Refused("queue_full", "a")
    assert ask(kernel, "b") == Refused("queue_full", "b")
    assert kernel.limit("a").waiters == {waiter}
    assert set() == kernel.limit("b").waiters
    kernel.release(permit, 1)
    queue(kernel, "a", at=1)


def test_a_removed_limit_drops_who_waits_for_it() -> None:
    """Who waits for a limit that is removed is dropped; others that they kept back go on."""
    kernel = world(a=2, b=1)
    hold(kernel, "a")
    hold(kernel, "b")
    kernel.pause("b", 50, 0)
    elder = queue(kernel, "a", "b", at=1)
    also = queue(kernel, "b", at=2)
    kernel.remove("b", 3)
    assert told(kernel) == [("dropped", elder), ("dropped", also)]
    assert kernel.next_deadline() is None
    with pytest.raises(KeyError, match="b"):
        kernel.pause("b", 9, 4)
    assert set() == kernel.limit("a").waiters
    hold(kernel, "a", at=5)


# -- why something waits


def test_a_refusal_names_the_limit_that_kept_it_out() -> None:
    """A gate that stands open for newcomers is not why one of them is refused: the full limit is."""
    kernel = world(a={"capacity": 5, "gated": True}, b=1)
    hold(kernel, "b")
    hold(kernel, "a")
    assert ask(kernel, "a", "b", wait=False) == Refused("would_block", "b")


def test_a_refusal_behind_others_names_the_limit_that_keeps_them_out() -> None:
    """Who would only stand behind others is refused for the limit that they all lack."""
    kernel = world(a=5, b=1)
    hold(kernel, "b")
    queue(kernel, "a", "b")
    assert ask(kernel, "a", "b", wait=False) == Refused("would_block", "b")


@pytest.mark.parametrize("seed", range(4))
def test_whoever_waits_is_told_why(seed: int) -> None:
    """In every state, something keeps every waiter out; and room where only room was missing lets it in."""
    pair, admitted = Pair(), 0
    for step in random_steps(f"why {seed}", 300):
        pair.carry_out(step)
        for waiter, _ in pair.waiters:
            found = blocks(pair.kernel, waiter.charged, waiter.rank)
            assert found, f"nothing keeps {waiter.claims.names} out of {pair.kernel}"
            at_front = waiter.charged.lanes[waiter.priority].head is waiter
            if at_front and [(block.why, block.ahead) for block in found] == [("full", ())]:
                admitted += lets_in(*copy_of(pair.kernel, waiter, found[0]), step.now_ms)
    assert admitted > 5


def lets_in(kernel: Kernel, waiter: Waiter, block: Block, now_ms: int) -> bool:
    """Whether as much more capacity as *block* says is missing is what the waiter waited for."""
    limit = block.limit
    if limit.gated:
        return False
    settings = {"cooldown": limit.cooldown, "queue_max": limit.queue_max}
    enough = limit.capacity + block.missing
    kernel.configure(limit.name, now_ms, capacity=enough - 1, **settings)
    assert waiter.waiting
    kernel.configure(limit.name, now_ms, capacity=enough, **settings)
    assert not waiter.waiting
    return True


def test_every_reason_has_its_scene() -> None:
    """What keeps a request out is named for each of its limits, with how many units are missing."""
    kernel = world(full=2, gate={"capacity": 2, "gated": True}, giant=1, paused=1, reserved=2, room=1)
    hold(kernel, "full", "reserved")
    kernel.admit("gate", 0, 0, fresh_until_ms=99)
    kernel.pause("paused", 99, 0)
    elder = queue(kernel, "reserved", "reserved", at=1)
    names = ("full", "full", "gate", "giant", "giant", "paused", "room")
    waiter = queue(kernel, *names, at=2)
    found = [(block.limit.name, block.why, block.missing) for block in why(kernel, waiter)]
    assert found == [
        ("full", "full", 1),
        ("gate", "gate", 1),
        ("giant", "never_fits", 1),
        ("paused", "paused", 0),
    ]
    younger = queue(kernel, "reserved", at=3)
    (block,) = why(kernel, younger)
    assert (block.limit.name, block.why, block.ahead) == ("reserved", "reserved", (elder,))
    assert block.missing > 0


def why(kernel: Kernel, waiter: Waiter) -> Any:
    return blocks(kernel, waiter.charged, waiter.rank)


def test_who_goes_first_is_listed() -> None:
    """`ahead` are the older waiters at a limit, oldest first; `position` counts them over all limits."""
    kernel = world(a=1, b=1)
    hold(kernel, "a", "b")
    third = queue(kernel, "a", "b", at=3)
    second = queue(kernel, "b", at=2)
    first = queue(kernel, "a", at=3, priority=-1)
    fourth = queue(kernel, "a", at=4)
    ahead = {block.limit.name: block.ahead for block in why(kernel, third)}
    assert ahead == {"a": (first,), "b": (second,)}
    places = [position(one.charged, one.rank) for one in (first, second, third, fourth)]
    assert places == [0, 0, 2, 2]


def test_the_kernel_reads_well() -> None:
    """One line says who holds what, for an operator and for a failing test."""
    cooling, gate = {"capacity": 3, "cooldown": Cooldown(9)}, {"capacity": 1, "gated": True}
    kernel = world(a=cooling, b=1, c=None, d=gate)
    assert repr(Kernel()) == "no limits"
    hold(kernel, "a")
    kernel.release(hold(kernel, "a"), 0)
    hold(kernel, "b")
    queue(kernel, "b")
    kernel.pause("b", 5, 0)
    readings = "a 2/3 (1 cooling)", "b 1/1 (1 waiting, paused)", "c 0/unlimited", "d 0/1 (gated, 0 credits)"
    assert repr(kernel) == " | ".join(readings)
