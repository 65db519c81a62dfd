"""Virtual time stands still until it is advanced, and then passes exactly."""

import asyncio
from collections.abc import Callable

import pytest

from interlock.ports import Clock
from interlock.testing import VirtualClock, idle


def noting(notes: list[tuple[str, float]], clock: VirtualClock, name: str) -> Callable[[], None]:
    return lambda: notes.append((name, clock.now()))


def test_it_is_a_clock() -> None:
    """It starts where it is told to, at 0 by default."""
    assert isinstance(VirtualClock(), Clock)
    assert VirtualClock().now() == 0.0
    assert VirtualClock(start=1_700_000_000.5).now() == 1_700_000_000.5


async def test_it_stands_still() -> None:
    """However much is done, no time passes without `advance`."""
    clock = VirtualClock(5.0)
    await idle()
    assert clock.now() == 5.0


async def test_sums_are_exact() -> None:
    """Ten tenths are one, where floats would fall short of it."""
    clock = VirtualClock()
    for _ in range(10):
        await clock.advance(0.1)
    assert clock.now() == 1.0
    assert sum([0.1] * 10) != 1.0


async def test_timers_fire_in_order_at_their_time() -> None:
    """The earliest first, whatever the order of asking; at one moment, who asked first."""
    clock = VirtualClock()
    notes: list[tuple[str, float]] = []
    for name, when in (("c", 3.0), ("a", 1.0), ("b1", 2.0), ("b2", 2.0)):
        clock.call_at(when, noting(notes, clock, name))
    await clock.advance(3.0)
    assert notes == [("a", 1.0), ("b1", 2.0), ("b2", 2.0), ("c", 3.0)]


async def test_a_timer_fires_when_it_is_due_and_not_before() -> None:
    """The end of the stretch belongs to it."""
    clock = VirtualClock()
    notes: list[tuple[str, float]] = []
    clock.call_at(1.0, noting(notes, clock, "a"))
    await clock.advance(0.999)
    assert notes == []
    await clock.advance(0.001)
    assert notes == [("a", 1.0)]
    await clock.advance(1.0)
    assert notes == [("a", 1.0)]


async def test_a_timer_of_the_past_fires_at_once_without_turning_time_back() -> None:
    """Too late is now."""
    clock = VirtualClock(10.0)
    notes: list[tuple[str, float]] = []
    clock.call_at(3.0, noting(notes, clock, "late"))
    await clock.advance(0.0)
    assert notes == [("late", 10.0)]
    assert clock.now() == 10.0


async def test_a_cancelled_timer_never_fires() -> None:
    """Nor does cancelling it twice, or after it fired, do anything."""
    clock = VirtualClock()
    notes: list[tuple[str, float]] = []
    off = clock.call_at(1.0, noting(notes, clock, "off"))
    on = clock.call_at(1.0, noting(notes, clock, "on"))
    off.cancel()
    off.cancel()
    await clock.advance(2.0)
    on.cancel()
    assert notes == [("on", 1.0)]


async def test_a_timer_may_be_cancelled_by_one_that_fires_at_the_same_moment() -> None:
    """Due is not fired."""
    clock = VirtualClock()
    notes: list[tuple[str, float]] = []
    clock.call_at(1.0, lambda: second.cancel())
    second = clock.call_at(1.0, noting(notes, clock, "second"))
    await clock.advance(1.0)
    assert notes == []


async def test_what_a_timer_sets_fires_in_the_same_stretch() -> None:
    """One `advance` over a chain of timers is as good as many."""
    clock = VirtualClock()
    beats: list[float] = []

    def beat() -> None:
        beats.append(clock.now())
        clock.call_at(clock.now() + 1.0, beat)

    clock.call_at(1.0, beat)
    await clock.advance(3.5)
    assert beats == [1.0, 2.0, 3.0]
    assert clock.now() == 3.5


async def test_tasks_run_before_the_first_timer_and_after_each() -> None:
    """What a timer wakes is done by the time the next one fires."""
    clock = VirtualClock()
    notes: list[tuple[str, float]] = []

    async def work() -> None:
        noting(notes, clock, "began")()
        await clock.sleep(1.0)
        await asyncio.sleep(0)
        noting(notes, clock, "went on")()

    clock.call_at(1.5, noting(notes, clock, "timer"))
    task = asyncio.create_task(work())
    await clock.advance(2.0)
    assert notes == [("began", 0.0), ("went on", 1.0), ("timer", 1.5)]
    await task


async def test_sleep_takes_virtual_time() -> None:
    """An hour passes as quickly as a second."""
    clock = VirtualClock()
    sleeper = asyncio.create_task(clock.sleep(3600.0))
    await clock.advance(3599.0)
    assert not sleeper.done()
    await clock.advance(1.0)
    assert sleeper.done()


async def test_a_cancelled_sleep_leaves_no_timer() -> None:
    """The one who slept is gone, and nothing wakes it later."""
    clock = VirtualClock()
    sleeper = asyncio.create_task(clock.sleep(1.0))
    await idle()
    sleeper.cancel()
    await clock.advance(2.0)
    assert sleeper.cancelled()
    assert all(timer.callback is None for _, _, timer in clock._timers)


async def test_what_a_callback_raises_reaches_the_one_who_advances() -> None:
    """A test hears of it; the rest of the time can still pass."""
    clock = VirtualClock()
    notes: list[tuple[str, float]] = []
    clock.call_at(1.0, lambda: 1 // 0)  # type: ignore[arg-type,return-value]
    clock.call_at(2.0, noting(notes, clock, "b"))
    with pytest.raises(ZeroDivisionError):
        await clock.advance(5.0)
    assert clock.now() == 1.0
    await clock.advance(1.0)
    assert notes == [("b", 2.0)]


async def test_time_never_runs_backwards() -> None:
    """A negative stretch is refused."""
    clock = VirtualClock(5.0)
    with pytest.raises(ValueError):
        await clock.advance(-1.0)
    assert clock.now() == 5.0


async def test_idle_returns_when_nobody_can_go_on() -> None:
    """However long the chain of wake-ups is, it is run to its end."""
    steps = 0

    async def walk() -> None:
        nonlocal steps
        for _ in range(500):
            await asyncio.sleep(0)
            steps += 1
        await asyncio.get_running_loop().create_future()

    task = asyncio.create_task(walk())
    await idle()
    assert steps == 500
    task.cancel()
    await idle()
    assert task.done()


async def test_idle_does_not_wait_for_ever() -> None:
    """A task that never rests is an error, not a test that hangs."""

    async def spin() -> None:
        while True:  # noqa: ASYNC110 - on purpose
            await asyncio.sleep(0)

    task = asyncio.create_task(spin())
    with pytest.raises(RuntimeError, match="still busy"):
        await idle()
    task.cancel()
    await idle()
