"""Asking `LocalAdmission` for a permit, and waiting for it."""

from typing import Any

import pytest

from admission.asking import ask, refused, used
from interlock.admission.local import LocalAdmission
from interlock.errors import (
    AcquireTimeout,
    LimitExceeded,
    ValidationError,
)
from interlock.ports import Admission
from interlock.testing import VirtualClock, idle

# -- asking and giving back


def test_it_is_an_admission() -> None:
    """What every admission offers, this one does."""
    assert isinstance(LocalAdmission(), Admission)


async def test_a_permit_can_be_awaited(admission: LocalAdmission) -> None:
    """It is held from then on until it is released, and says what it is."""
    permit = await admission.acquire("a", "b", owner="o")
    assert (permit.limits, permit.key, permit.owner) == (("a", "b"), None, "o")
    assert (permit.granted_at, permit.released, permit.lost) == (100.0, False, False)
    assert isinstance(permit.id, str)
    assert isinstance(permit.fence, int)
    assert (used(admission, "a"), used(admission, "b")) == (1, 1)
    assert permit.release()
    assert permit.released
    assert not permit.lost
    assert (used(admission, "a"), used(admission, "b")) == (0, 0)


async def test_a_permit_can_be_entered(admission: LocalAdmission) -> None:
    """Leaving releases it."""
    async with admission.acquire("a") as permit:
        assert not permit.released
        assert used(admission) == 1
    assert permit.released
    assert used(admission) == 0


async def test_an_awaited_permit_can_be_entered(admission: LocalAdmission) -> None:
    """It is a context manager itself."""
    permit = await admission.acquire("a")
    async with permit as same:
        assert same is permit
    assert permit.released


async def test_asking_happens_at_the_await(admission: LocalAdmission) -> None:
    """An acquisition that nobody awaits asks for nothing."""
    acquisition = admission.acquire("a")
    assert used(admission) == 0
    permit = await acquisition
    assert used(admission) == 1
    permit.release()


async def test_a_permit_released_inside_is_not_released_again(admission: LocalAdmission) -> None:
    """Leaving finds it gone and leaves the next holder alone."""
    async with admission.acquire("a") as permit:
        assert permit.release()
        successor = await admission.acquire("a")
    assert not successor.released
    assert used(admission) == 1
    successor.release()


async def test_an_exception_releases(admission: LocalAdmission) -> None:
    """And goes on to the caller as it was."""
    with pytest.raises(ZeroDivisionError):
        async with admission.acquire("a"):
            raise ZeroDivisionError
    assert used(admission) == 0


async def test_over_all_limits_at_once_or_none(admission: LocalAdmission) -> None:
    """Who waits for one limit holds nothing of the others."""
    holder = await admission.acquire("a")
    task = await ask(admission, "a", "b")
    assert (used(admission, "a"), used(admission, "b")) == (1, 0)
    other = await admission.acquire("b", "b", timeout=0)
    holder.release()
    await idle()
    assert not task.done()
    assert (used(admission, "a"), used(admission, "b")) == (0, 2)
    other.release()
    assert (used(admission, "a"), used(admission, "b")) == (1, 1)
    (await task).release()


async def test_a_name_given_twice_takes_two_units(admission: LocalAdmission) -> None:
    """Weight is said by repeating."""
    permit = await admission.acquire("b", "b")
    assert used(admission, "b") == 2
    assert admission.try_acquire("b") is None
    permit.release()
    assert used(admission, "b") == 0


async def test_an_unlimited_limit_counts(admission: LocalAdmission) -> None:
    """None is no limit, but what is held shows."""
    permits = [await admission.acquire("free") for _ in range(50)]
    reading = admission.limits()["free"]
    assert (reading.capacity, reading.used, reading.available) == (None, 50, None)
    for permit in permits:
        permit.release()
    assert used(admission, "free") == 0


async def test_the_fence_rises_from_grant_to_grant(admission: LocalAdmission) -> None:
    """Also over different limits, and for who had to wait."""
    first = await admission.acquire("a")
    task = await ask(admission, "a")
    second = await admission.acquire("b")
    first.release()
    third = await task
    fences = [first.fence, second.fence, third.fence]
    assert fences == sorted(set(fences))
    second.release()
    third.release()


async def test_what_is_released_belongs_to_the_next_at_once(admission: LocalAdmission) -> None:
    """Ownership passes in the release itself: a newcomer in between finds no room."""
    holder = await admission.acquire("a")
    task = await ask(admission, "a", owner="next")
    holder.release()
    assert not task.done()
    assert [holder.owner for holder in admission.holders("a")] == ["next"]
    assert admission.try_acquire("a") is None
    (await task).release()


async def test_refresh_and_protocol_calls_are_awaitable(admission: LocalAdmission) -> None:
    """They have nothing to wait for here, but read the same everywhere."""
    await admission.refresh()
    await admission.set_limit("c", 3)
    assert await admission.release_owner("nobody") == 0
    await admission.remove_limit("c")
    assert "c" not in admission.limits()


# -- the order


async def test_order_is_arrival(admission: LocalAdmission, clock: VirtualClock) -> None:
    """First come, first served, also within one moment."""
    holder = await admission.acquire("a")
    tasks = [await ask(admission, "a") for _ in range(3)]
    for task in tasks:
        holder.release()
        holder = await task
        assert sum(task.done() for task in tasks) == tasks.index(task) + 1
    holder.release()


async def test_order_is_priority_then_since_then_arrival(
    admission: LocalAdmission, clock: VirtualClock
) -> None:
    """A smaller priority goes first, then who began earlier."""
    holder = await admission.acquire("a")
    wishes: list[dict[str, Any]] = [
        {"key": "late"},
        {"key": "early", "since": 50.0},
        {"key": "earlier, but less urgent", "since": 10.0, "priority": 1},
        {"key": "urgent", "priority": -1},
        {"key": "late, too"},
    ]
    tasks = [await ask(admission, "a", **wish) for wish in wishes]
    order = ["urgent", "early", "late", "late, too", "earlier, but less urgent"]
    assert [waiting.key for waiting in admission.waiting()] == order
    for key in order:
        holder.release()
        await idle()
        (held,) = admission.holders("a")
        assert held.key == key
        holder = await next(task for task, wish in zip(tasks, wishes, strict=True) if wish["key"] == key)
    holder.release()


async def test_since_in_the_future_counts_as_now(admission: LocalAdmission, clock: VirtualClock) -> None:
    """Nobody gains or loses by a clock that is ahead."""
    holder = await admission.acquire("a")
    ahead = await ask(admission, "a", since=10_000.0, key="ahead")
    honest = await ask(admission, "a", key="honest")
    assert [(one.key, one.since) for one in admission.waiting()] == [("ahead", 100.0), ("honest", 100.0)]
    holder.release()
    (await ahead).release()
    (await honest).release()


async def test_a_newcomer_does_not_pass_who_waits(admission: LocalAdmission) -> None:
    """Not even where there is room for it but not for the first in line."""
    holder = await admission.acquire("b")
    big = await ask(admission, "b", "b")
    assert admission.try_acquire("b") is None
    small = await ask(admission, "b")
    assert not small.done()
    holder.release()
    (await big).release()
    (await small).release()


async def test_who_waits_elsewhere_is_not_in_the_way(admission: LocalAdmission) -> None:
    """A waiter for a full limit keeps nobody from another one."""
    holder = await admission.acquire("a")
    task = await ask(admission, "a", "b")
    async with admission.acquire("b", timeout=0), admission.acquire("free", timeout=0):
        assert not task.done()
    holder.release()
    (await task).release()


# -- how long to wait


async def test_timeout_0_never_waits(admission: LocalAdmission) -> None:
    """No room is said at once, with what is in the way and who holds it."""
    holder = await admission.acquire("a", owner="alice")
    error = await refused(await ask(admission, "a", "b", timeout=0), LimitExceeded)
    assert (error.code, error.retryable) == ("limit_exceeded", True)
    assert "'a' is full (1/1 in use, held by alice)" in error.message
    assert "'b'" not in error.message
    assert error.details["limit"] == "a"
    assert admission.waiting() == ()
    holder.release()


async def test_a_timeout_names_what_blocks_and_who_holds_it(
    admission: LocalAdmission, clock: VirtualClock
) -> None:
    """The error is a TimeoutError, too, and no trace of the wait is left."""
    holder = await admission.acquire("a", key="run-7")
    task = await ask(admission, "a", timeout=2.5)
    await clock.advance(2.499)
    assert not task.done()
    await clock.advance(0.001)
    error = await refused(task, AcquireTimeout)
    assert isinstance(error, TimeoutError)
    assert (error.code, error.retryable) == ("timeout", True)
    assert error.message == "waited 2.5 s for a: 'a' is full (1/1 in use, held by run-7)"
    assert error.details == {"limits": ("a",), "blocked_by": ["a"]}
    assert admission.waiting() == ()
    holder.release()
    assert used(admission) == 0


async def test_the_default_timeout_is_300_seconds(admission: LocalAdmission, clock: VirtualClock) -> None:
    """A deadline always exists unless it was waived."""
    holder = await admission.acquire("a")
    usual, patient = await ask(admission, "a"), await ask(admission, "a", timeout=None)
    await clock.advance(299.999)
    assert not usual.done()
    await clock.advance(0.001)
    await refused(usual, AcquireTimeout)
    await clock.advance(1_000_000.0)
    assert not patient.done()
    holder.release()
    (await patient).release()


async def test_room_at_the_moment_of_the_deadline_is_still_granted(
    admission: LocalAdmission, clock: VirtualClock
) -> None:
    """What brings room back comes before what gives up, at one moment."""
    await admission.set_limit("a", 1, cooldown=2.0)
    (await admission.acquire("a")).release()
    task = await ask(admission, "a", timeout=2.0)
    await clock.advance(2.0)
    (await task).release()


async def test_a_timeout_does_not_end_a_held_permit(admission: LocalAdmission, clock: VirtualClock) -> None:
    """It is the waiting that is limited, not the work."""
    permit = await admission.acquire("a", timeout=1.0)
    await clock.advance(10.0)
    assert not permit.released
    permit.release()


@pytest.mark.parametrize("timeout", [-1, -0.001, float("nan"), float("inf")])
async def test_a_timeout_that_is_none_is_refused(admission: LocalAdmission, timeout: float) -> None:
    """Allowed are None and seconds from 0; nothing is held or waits afterwards."""
    with pytest.raises(ValidationError):
        await admission.acquire("a", timeout=timeout)
    assert used(admission) == 0
    assert admission.waiting() == ()


async def test_a_loop_that_is_late_does_not_make_anyone_wait(clock: VirtualClock) -> None:
    """What is due has happened for whoever asks, although its timer has not been called yet."""
    admission = LocalAdmission(clock=clock)
    await admission.set_limit("a", 1, cooldown=1.0)
    (await admission.acquire("a")).release()
    await admission.set_limit("b", 1)
    await clock.advance(0.5)
    due, clock._timers = clock._timers, []  # the loop is busy: nothing fires
    await clock.advance(0.5)
    permit = admission.try_acquire("a")
    assert permit is not None
    clock._timers += due
    await clock.advance(0.0)
    permit.release("success")
    await clock.advance(1.0)
    assert used(admission) == 0


# -- bad arguments


async def test_an_unknown_limit_is_refused_with_those_that_are_known(admission: LocalAdmission) -> None:
    """Everywhere where a limit is named."""
    for call in (
        lambda: admission.try_acquire("a", "nope"),
        lambda: admission.holders("nope"),
        lambda: admission.pause("nope", 1.0),
        lambda: admission.resume("nope"),
    ):
        with pytest.raises(ValidationError, match=r"unknown limit 'nope'; known are: a, b, free"):
            call()
    with pytest.raises(ValidationError, match="known are: a, b, free"):
        await admission.acquire("nope")
    with pytest.raises(ValueError, match="known are: a, b, free"):
        await admission.remove_limit("nope")
    with pytest.raises(ValidationError, match="known are: none"):
        await LocalAdmission().acquire("a")
    assert used(admission) == 0


async def test_an_acquire_of_nothing_is_refused(admission: LocalAdmission) -> None:
    """Over no limit at all there is nothing to hold."""
    with pytest.raises(ValidationError):
        await admission.acquire()


@pytest.mark.parametrize("capacity", [0, -1, True, False, 1.0, 2.5, "3"])
async def test_a_capacity_is_a_whole_number_from_1(admission: LocalAdmission, capacity: Any) -> None:
    """Or None; anything else is refused and changes nothing."""
    with pytest.raises(ValidationError, match="capacity of 'a'"):
        await admission.set_limit("a", capacity)
    with pytest.raises(ValidationError):
        await admission.set_limit("new", capacity)
    assert admission.limits()["a"].capacity == 1
    assert "new" not in admission.limits()


@pytest.mark.parametrize("which", ["cooldown", "cooldown_cancelled", "cooldown_failed"])
@pytest.mark.parametrize("seconds", [-0.001, float("nan"), float("inf"), 86_401])
async def test_a_cooldown_is_between_0_and_a_day(
    admission: LocalAdmission, which: str, seconds: float
) -> None:
    """The message names the argument."""
    with pytest.raises(ValidationError, match=f"^{which} is"):
        await admission.set_limit("a", 2, **{which: seconds})
    assert admission.limits()["a"].capacity == 1


@pytest.mark.parametrize("name", ["", "x" * 201])
async def test_a_name_has_1_to_200_characters(admission: LocalAdmission, name: str) -> None:
    """So that it fits everywhere."""
    with pytest.raises(ValidationError):
        await admission.set_limit(name, 1)


# -- trying


async def test_try_acquire_takes_what_is_free(admission: LocalAdmission) -> None:
    """Or answers None, at once, and never goes before who waits."""
    permit = admission.try_acquire("a", "b", owner="o")
    assert permit is not None
    assert (permit.limits, permit.owner) == (("a", "b"), "o")
    assert admission.try_acquire("a") is None
    assert admission.try_acquire("b", "b") is None
    task = await ask(admission, "a")
    permit.release()
    assert admission.try_acquire("a") is None
    (await task).release()
