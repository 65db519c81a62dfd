"""How the work of one operation grows with how many wait: counted in lines executed, not in seconds.

What is counted is the same on every machine and in every run, so a bound here can be tight.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from random import Random
from types import FrameType
from typing import Any

import pytest

from interlock.core.kernel import Kernel
from interlock.core.model import Claims, Lane, LaneHeap, Permit, Rank, Waiter

FEW, MANY = 10, 10_000


class Work:
    """Counts the lines that are executed inside of it."""

    def __init__(self) -> None:
        self.lines = 0

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        self.lines += event == "line"
        return self._trace

    def __enter__(self) -> Work:
        self._before = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *error: object) -> None:
        sys.settrace(self._before)


def lines(work: Callable[[], object]) -> int:
    with Work() as counted:
        work()
    return counted.lines


def crowd(kernel: Kernel, claims: list[tuple[str, ...]], **asked: Any) -> list[Waiter]:
    waiters = [kernel.acquire(kernel.claims(names), at, **asked) for at, names in enumerate(claims)]
    assert all(isinstance(waiter, Waiter) for waiter in waiters)
    return waiters  # type: ignore[return-value]


def shared(lanes: int) -> tuple[Kernel, Permit]:
    """*lanes* lanes with a limit each of their own, and one of capacity 1 that all share and one holds."""
    kernel = Kernel()
    kernel.configure("g", 0, capacity=1)
    for lane in range(lanes):
        kernel.configure(f"a{lane}", 0, capacity=1)
    permit = kernel.take(kernel.claims(("g",)), 0)
    assert permit is not None
    crowd(kernel, [(f"a{lane}", "g") for lane in range(lanes)])
    return kernel, permit


def one_lane(waiters: int) -> tuple[Kernel, Permit]:
    kernel = Kernel()
    kernel.configure("g", 0, capacity=1)
    permit = kernel.take(kernel.claims(("g",)), 0)
    assert permit is not None
    crowd(kernel, [("g",)] * waiters)
    return kernel, permit


def lines_of_releases(kernel: Kernel, permit: Permit) -> int:
    """What it takes to hand the unit on eight times."""
    total = 0
    for _ in range(8):
        total += lines(lambda: kernel.release(permit, 20_000))  # noqa: B023 - called at once
        (granted,) = kernel.outbox
        kernel.outbox.clear()
        permit = granted[1]  # type: ignore[assignment]
    return total


def lines_of_a_visit(kernel: Kernel, *names: str) -> int:
    """What it takes to come, to wait and to give up; no limit of these has room."""
    claims = kernel.claims(names)

    def visit() -> None:
        waiter = kernel.acquire(claims, 20_000)
        assert isinstance(waiter, Waiter)
        kernel.withdraw(waiter, 20_000)

    return lines(visit)


@pytest.mark.parametrize("scene", [shared, one_lane])
def test_a_release_does_not_ask_everyone_who_waits(scene: Callable[[int], tuple[Kernel, Permit]]) -> None:
    """A release that lets the next one in costs much the same whether 10 wait or 10,000."""
    few, many = (lines_of_releases(*scene(size)) for size in (FEW, MANY))
    assert many <= 3 * few


@pytest.mark.parametrize("scene", [shared, one_lane])
def test_to_come_and_to_go_does_not_ask_everyone_who_waits(
    scene: Callable[[int], tuple[Kernel, Permit]],
) -> None:
    """To take a place in line and to give it up costs much the same whether 10 wait or 10,000."""
    few, many = (lines_of_a_visit(scene(size)[0], "g") for size in (FEW, MANY))
    assert many <= 3 * few


def test_the_short_way_is_short() -> None:
    """With room and nobody waiting, a permit costs a few lines, however many permits and limits there are."""
    few, many = (short_way(size) for size in (FEW, MANY))
    assert many == few
    assert few < 60


def short_way(size: int) -> int:
    kernel = Kernel()
    for number in range(size):
        kernel.configure(f"a{number}", 0, capacity=1)
    kernel.configure("g", 0, capacity=None)
    for number in range(size):
        kernel.acquire(kernel.claims((f"a{number}", "g")), 0, key=f"k{number}", lease_ms=9)
    claims = kernel.claims(("g",))

    def in_and_out() -> None:
        permit = kernel.take(claims, 1)
        assert permit is not None
        kernel.give_back(permit)

    return lines(in_and_out)


ORDERS: dict[str, Callable[[list[Waiter]], object]] = {
    "oldest first": lambda waiters: None,
    "newest first": list.reverse,
    "random": Random(3).shuffle,
}


def lines_to_cancel(size: int, order: str, lanes: int) -> float:
    """Lines for each of *size* waiters, all with a deadline, that give up one after the other."""
    kernel = Kernel()
    kernel.configure("g", 0, capacity=1)
    for lane in range(lanes):
        kernel.configure(f"a{lane}", 0, capacity=1)
    kernel.take(kernel.claims(("g",)), 0)
    claims = [(f"a{number % lanes}", "g") for number in range(size)]
    waiters = crowd(kernel, claims, deadline_ms=90_000, owner="o")
    ORDERS[order](waiters)
    with Work() as work:
        for waiter in waiters:
            kernel.withdraw(waiter, 30_000)
    assert not kernel.limits["g"].waiters
    assert kernel.next_deadline() is None
    assert kernel.outbox == []
    return work.lines / size


@pytest.mark.parametrize("lanes", [1, 100])
@pytest.mark.parametrize("order", ORDERS)
def test_to_cancel_everyone_costs_the_same_for_each(order: str, lanes: int) -> None:
    """Ten times as many who give up, in whatever order, cost each of them no more."""
    few, many = lines_to_cancel(2_000, order, lanes), lines_to_cancel(20_000, order, lanes)
    assert many <= 1.5 * few


def test_lanes_are_found_by_rank_whatever_was_taken_out() -> None:
    """The heap of lanes answers as a sorted list would, and does not grow with what was taken out of it."""
    random, heap, filed = Random(6), LaneHeap(), dict[Lane, Rank]()
    lanes = [Lane(Claims((), ()), 0) for _ in range(300)]
    for turn in range(2_000):
        lane = random.choice(lanes)
        if lane in filed:
            heap.discard(lane)
            del filed[lane]
        elif random.randrange(3) or turn % 500 < 250:
            filed[lane] = (random.randrange(3), random.randrange(9), turn)
            heap.add(filed[lane], lane)
        assert len(heap._heap) <= 2 * len(filed) + 66
        if turn % 10 == 0:
            in_order = sorted((rank, nth) for nth, rank in enumerate(map(filed.get, lanes)) if rank)
            oldest = heap.oldest()
            assert (oldest and (oldest[0], lanes.index(oldest[1]))) == (in_order[0] if in_order else None)
            rank = (random.randrange(3), random.randrange(9), 0)
            older = sorted(lanes.index(lane) for lane in heap.older_than(rank))
            assert older == sorted(nth for at, nth in in_order if at < rank)
