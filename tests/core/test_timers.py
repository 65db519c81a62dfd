"""The heap of deadlines: order, calling off, and that what is called off does not pile up."""

from __future__ import annotations

from random import Random

from interlock.core.timers import Kind, Timer, Timers


def drain(timers: Timers, now_ms: int) -> list[Timer]:
    popped = []
    while (timer := timers.pop_due(now_ms)) is not None:
        popped.append(timer)
    return popped


def test_what_is_due_comes_earliest_first() -> None:
    """What is due is popped by its time; what is not stays."""
    timers = Timers()
    late, early, middle = (timers.arm(due, Kind.LEASE, str(due)) for due in (30, 10, 20))
    assert timers.next_ms() == 10
    assert drain(timers, 9) == []
    assert drain(timers, 20) == [early, middle]
    assert timers.next_ms() == 30
    assert drain(timers, 99) == [late]
    assert timers.next_ms() is None


def test_at_one_instant_room_comes_before_deadlines() -> None:
    """At one instant what brings room back comes before what ends a wait, and else the first armed first."""
    timers = Timers()
    armed = [timers.arm(5, kind, kind.name) for kind in (*reversed(Kind), *Kind)]
    kinds = [timer.kind for timer in drain(timers, 5)]
    assert kinds == sorted(kinds)
    assert kinds[:2] == [Kind.HOLD, Kind.HOLD]
    assert kinds[-1] is Kind.DEADLINE
    first, second = (timers.arm(5, Kind.LEASE, name) for name in "ab")
    assert drain(timers, 5) == [first, second]
    assert len(armed) == 2 * len(Kind)


def test_what_is_called_off_does_not_fall_due() -> None:
    """A cancelled timer is never popped, and never the next deadline; cancelling twice is once."""
    timers = Timers()
    first, second = timers.arm(1, Kind.LEASE, "first"), timers.arm(2, Kind.LEASE, "second")
    timers.cancel(first)
    timers.cancel(first)
    timers.cancel(None)
    assert len(timers) == 1
    assert timers.next_ms() == 2
    assert drain(timers, 9) == [second]
    assert len(timers) == 0


def test_calling_off_what_fell_due_counts_nothing() -> None:
    """A timer that was popped already is in the heap no more: cancelling it changes nothing."""
    timers = Timers()
    popped, kept = timers.arm(1, Kind.LEASE, "popped"), timers.arm(2, Kind.LEASE, "kept")
    assert drain(timers, 1) == [popped]
    timers.cancel(popped)
    assert len(timers) == 1
    assert drain(timers, 2) == [kept]


def test_what_is_called_off_does_not_pile_up() -> None:
    """However many are armed and called off, the heap stays within a few times of what is live."""
    timers, random = Timers(), Random(4)
    live = [timers.arm(1_000_000 + n, Kind.LEASE, n) for n in range(100)]
    for n in range(20_000):
        timers.cancel(timers.arm(random.randrange(500_000), Kind.DEADLINE, n))
        assert len(timers._heap) <= 2 * len(live) + 130
    assert len(timers) == len(live)
    assert drain(timers, 2_000_000) == live


def test_any_order_of_arming_and_calling_off() -> None:
    """Whatever was armed and called off, what is popped is what a sorted list would give."""
    random = Random(5)
    for _ in range(30):
        timers = Timers()
        armed = [timers.arm(random.randrange(40), Kind(random.randrange(5)), n) for n in range(300)]
        off = set(random.sample(range(300), random.randrange(300)))
        for n in off:
            timers.cancel(armed[n])
        left = [timer for n, timer in enumerate(armed) if n not in off]
        assert len(timers) == len(left)
        expected = sorted(left, key=lambda timer: (timer.due_ms, timer.kind))
        assert drain(timers, 40) == expected


def test_moved_says_that_something_became_the_earliest() -> None:
    """`moved` is set when the alarm clock has to be set earlier, and only then."""
    timers = Timers()
    assert not timers.moved
    timers.arm(10, Kind.LEASE, "a")
    assert timers.moved
    timers.moved = False
    timers.arm(20, Kind.LEASE, "b")
    assert not timers.moved
    timers.arm(5, Kind.LEASE, "c")
    assert timers.moved
