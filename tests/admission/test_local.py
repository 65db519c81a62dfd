"""`LocalAdmission` as its users meet it: the contract of permits and of admission, line by line."""

import asyncio
import gc
import logging
import random
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from interlock.admission.local import LocalAdmission
from interlock.admission.permit import Permit
from interlock.admission.readings import Explanation, Holder, LimitReading, Snapshot, Waiting
from interlock.core import model
from interlock.errors import (
    AcquireTimeout,
    InterlockError,
    InvalidOperation,
    LimitExceeded,
    QueueFull,
    Unavailable,
    ValidationError,
)
from interlock.ports import Admission
from interlock.testing import VirtualClock, idle


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock(100.0)


@pytest.fixture
def admission(clock: VirtualClock) -> Iterator[LocalAdmission]:
    """Limits ``a`` of 1, ``b`` of 2 and ``free`` without one."""
    admission = LocalAdmission(clock=clock)
    admission.configure("a", 1)
    admission.configure("b", 2)
    admission.configure("free", None)
    yield admission
    for record in tuple(admission.kernel.live):  # of a test that failed: its permits shall not warn in others
        admission.kernel.release(record, 0)


Task = asyncio.Task[Permit]


async def ask(admission: LocalAdmission, *names: str, **asked: Any) -> Task:
    """A task that awaits an acquire and has come as far as it can."""

    async def acquire() -> Permit:
        return await admission.acquire(*names, **asked)

    task = asyncio.create_task(acquire())
    await idle()
    return task


async def refused(task: Task, error: type[BaseException]) -> Any:
    with pytest.raises(error) as raised:
        await task
    return raised.value


def used(admission: LocalAdmission, name: str = "a") -> int:
    return admission.limits()[name].used


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


# -- keys


async def test_the_same_key_is_the_same_permit(admission: LocalAdmission) -> None:
    """Counted once, granted again even when full, and whoever releases it, it is released."""
    permit = await admission.acquire("a", key="k")
    again = await admission.acquire("a", key="k", timeout=0)
    assert again is permit
    assert admission.try_acquire("a", key="k") is permit
    assert (permit.id, permit.key, used(admission)) == ("k", "k", 1)
    assert again.release()
    assert not permit.release()


async def test_the_order_of_names_does_not_matter_to_a_key(admission: LocalAdmission) -> None:
    """The claims are the same."""
    permit = await admission.acquire("a", "b", key="k")
    assert await admission.acquire("b", "a", key="k") is permit
    permit.release()


async def test_a_key_with_other_names_or_another_owner_is_a_conflict(admission: LocalAdmission) -> None:
    """While it is held, and while it is waited for; the holder is not disturbed."""
    permit = await admission.acquire("a", key="k", owner="o")
    task = await ask(admission, "a", key="waiting")
    for names, asked in (
        (("a", "b"), {"key": "k", "owner": "o"}),
        (("a",), {"key": "k", "owner": "other"}),
        (("b",), {"key": "waiting"}),
    ):
        with pytest.raises(InvalidOperation, match="in use with other limits or another owner"):
            await admission.acquire(*names, **asked)
        with pytest.raises(InvalidOperation):
            admission.try_acquire(*names, **asked)
    permit.release()
    (await task).release()


async def test_a_key_is_free_after_its_release(admission: LocalAdmission) -> None:
    """The next permit under it is another one, and the late release of the old one leaves it alone."""
    old = await admission.acquire("a", key="k")
    old.release()
    new = await admission.acquire("b", key="k")
    assert new is not old
    assert new.fence > old.fence
    assert not old.release()
    assert not new.released
    new.release()


async def test_two_who_wait_with_one_key_get_one_permit(admission: LocalAdmission) -> None:
    """They are one waiter, counted once."""
    holder = await admission.acquire("a")
    tasks = [await ask(admission, "a", key="k") for _ in range(3)]
    assert len(admission.waiting()) == 1
    holder.release()
    permits = [await task for task in tasks]
    assert permits[0] is permits[1] is permits[2]
    assert used(admission) == 1
    assert permits[0].release()
    assert not permits[1].release()


async def test_one_of_two_who_wait_with_one_key_may_leave(admission: LocalAdmission) -> None:
    """The wait ends when the last of them is gone."""
    holder = await admission.acquire("a")
    first, second = [await ask(admission, "a", key="k") for _ in range(2)]
    first.cancel()
    await idle()
    assert len(admission.waiting()) == 1
    second.cancel()
    await idle()
    assert admission.waiting() == ()
    third = await ask(admission, "a", key="k")
    fourth = await ask(admission, "a", key="k")
    third.cancel()
    holder.release()
    assert (await fourth).release()
    assert used(admission) == 0


async def test_entering_one_key_again_nests(admission: LocalAdmission) -> None:
    """The last exit releases."""
    async with admission.acquire("a", key="k") as outer:
        async with admission.acquire("a", key="k") as inner:
            assert inner is outer
        assert not outer.released
        async with outer:
            pass
        assert not outer.released
    assert outer.released


async def test_two_tasks_with_one_key_share_it_until_the_last_leaves(admission: LocalAdmission) -> None:
    """Also if both had to wait for it."""
    holder = await admission.acquire("a")
    gates = [asyncio.Event(), asyncio.Event()]

    async def work(gate: asyncio.Event) -> None:
        async with admission.acquire("a", key="k"):
            await gate.wait()

    tasks = [asyncio.create_task(work(gate)) for gate in gates]
    await idle()
    holder.release()
    await idle()
    gates[1].set()
    await idle()
    assert used(admission) == 1
    gates[0].set()
    await idle()
    assert used(admission) == 0
    await asyncio.gather(*tasks)


async def test_who_waits_with_a_key_holds_a_live_permit_when_let_in(admission: LocalAdmission) -> None:
    """Though the other one with this key came, did nothing and was gone in the meantime."""
    holder = await admission.acquire("a")

    async def enter() -> bool:
        async with admission.acquire("a", key="k") as permit:
            return permit.released

    tasks = [asyncio.create_task(enter()) for _ in range(2)]
    await idle()
    holder.release()
    assert [await task for task in tasks] == [False, False]
    assert used(admission) == 0
    assert not admission._keyed


async def test_timeout_0_does_not_wait_with_those_who_do(admission: LocalAdmission) -> None:
    """That its key is waited for already makes no difference to who never waits."""
    holder = await admission.acquire("a")
    waits = await ask(admission, "a", key="k")
    at_once = await ask(admission, "a", key="k", timeout=0)
    assert at_once.done()
    await refused(at_once, LimitExceeded)
    holder.release()
    (await waits).release()


async def test_who_joins_a_wait_waits_no_longer_than_it_said(
    admission: LocalAdmission, clock: VirtualClock
) -> None:
    """The other one with its key waits on."""
    holder = await admission.acquire("a")
    long = await ask(admission, "a", key="k", timeout=10.0)
    short = await ask(admission, "a", key="k", timeout=1.0)
    await clock.advance(1.0)
    assert short.done()
    await refused(short, AcquireTimeout)
    assert not long.done()
    holder.release()
    (await long).release()


async def test_who_joins_a_wait_waits_as_long_as_it_said(
    admission: LocalAdmission, clock: VirtualClock
) -> None:
    """Though the other one with its key gives up before."""
    holder = await admission.acquire("a")
    short = await ask(admission, "a", key="k", timeout=1.0)
    long = await ask(admission, "a", key="k", timeout=None)
    await clock.advance(1.0)
    await refused(short, AcquireTimeout)
    assert not long.done()
    holder.release()
    (await long).release()


async def test_try_acquire_does_not_wait_with_those_who_do(admission: LocalAdmission) -> None:
    """Its key is waited for: that is no permit yet."""
    holder = await admission.acquire("a")
    task = await ask(admission, "a", key="k")
    assert admission.try_acquire("a", key="k") is None
    assert not task.done()
    holder.release()
    (await task).release()


async def test_a_key_can_be_released_without_its_permit(admission: LocalAdmission) -> None:
    """Only by whom it is meant for, if a fence is given."""
    permit = await admission.acquire("a", key="k")
    assert not admission.release_key("k", fence=permit.fence + 1)
    assert not admission.release_key("other")
    assert admission.release_key("k", fence=permit.fence)
    assert permit.released
    assert not admission.release_key("k")


# -- owners


async def test_release_owner_ends_everything_of_an_owner(admission: LocalAdmission) -> None:
    """Permits and waits, keyed or not; others are let in in its place. It says how many permits."""
    first = await admission.acquire("a", owner="o")
    second = await admission.acquire("b", owner="o", key="k")
    other = await admission.acquire("b", owner="other")
    waits = await ask(admission, "a", owner="o")
    stranger = await ask(admission, "a")
    assert await admission.release_owner("o") == 2
    assert first.released
    assert second.released
    assert not first.lost
    assert not other.released
    error = await refused(waits, InvalidOperation)
    assert "owner 'o' was released" in error.message
    (await stranger).release()
    other.release()
    assert await admission.release_owner("o") == 0
    assert not admission._keyed


# -- parents


async def test_what_a_parent_holds_is_not_charged_again(admission: LocalAdmission) -> None:
    """The child pays only for what is new to the family, even where others wait for the rest."""
    parent = await admission.acquire("a")
    queued = await ask(admission, "a")
    child = await admission.acquire("a", "b", parent=parent, timeout=0)
    assert (used(admission, "a"), used(admission, "b")) == (1, 1)
    child.release()
    assert (used(admission, "a"), used(admission, "b")) == (1, 0)
    parent.release()
    (await queued).release()


@pytest.mark.parametrize("first", ["parent", "child"])
async def test_shared_limits_are_held_until_the_last_of_the_family(
    admission: LocalAdmission, first: str
) -> None:
    """Whoever goes first."""
    parent = await admission.acquire("a")
    child = await admission.acquire("a", parent=parent)
    grandchild = await admission.acquire("a", parent=child)
    family = [parent, child, grandchild] if first == "parent" else [grandchild, child, parent]
    for member in family:
        assert used(admission) == 1
        member.release()
    assert used(admission) == 0


async def test_a_released_parent_is_refused(admission: LocalAdmission) -> None:
    """Nobody can share what is not held any more."""
    parent = await admission.acquire("a")
    parent.release()
    with pytest.raises(InvalidOperation, match="has been released"):
        await admission.acquire("a", parent=parent)
    with pytest.raises(InvalidOperation):
        admission.try_acquire("b", parent=parent)
    assert used(admission) == 0


async def test_a_parent_released_while_its_child_waits_ends_the_wait(admission: LocalAdmission) -> None:
    """What the child counted on is gone."""
    parent = await admission.acquire("a")
    full = await admission.acquire("b", "b")
    child = await ask(admission, "a", "b", parent=parent)
    parent.release()
    error = await refused(child, InvalidOperation)
    assert "the parent was released" in error.message
    full.release()
    assert (used(admission, "a"), used(admission, "b")) == (0, 0)


# -- release


async def test_release_is_idempotent(admission: LocalAdmission) -> None:
    """The first call says True, every other one False, and no successor is touched."""
    permit = await admission.acquire("a")
    assert permit.release() is True
    successor = await admission.acquire("a")
    assert permit.release() is False
    assert permit.release("failed") is False
    assert used(admission) == 1
    assert successor.release() is True


async def test_release_never_raises(admission: LocalAdmission) -> None:
    """Not when its limit is gone, nor when the admission is closed, nor for an outcome nobody knows."""
    removed = await admission.acquire("a")
    closed = await admission.acquire("b")
    odd = await admission.acquire("b")
    await admission.remove_limit("a")
    assert removed.release()
    await admission.aclose()
    assert closed.release()
    assert odd.release("odd")  # type: ignore[arg-type]
    assert used(admission, "b") == 0


async def test_a_permit_can_be_released_from_another_thread(admission: LocalAdmission) -> None:
    """Whoever waits for it is let in by the loop."""
    permit = await admission.acquire("a")
    task = await ask(admission, "a")
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.extend((permit.release(), permit.release())))
    thread.start()
    thread.join()
    assert answers == [True, False]
    (await task).release()
    assert permit.released
    assert used(admission) == 0


async def test_a_release_from_another_thread_counts_before_the_loop_has_seen_it(
    admission: LocalAdmission,
) -> None:
    """Who releases second is told so, wherever the first was."""
    for asked in ({}, {"key": "k"}):
        permit = await admission.acquire("a", **asked)
        thread = threading.Thread(target=permit.release)
        thread.start()
        thread.join()
        assert permit.release() is False
        await idle()
        assert used(admission) == 0


async def test_of_two_threads_that_release_one_permit_exactly_one_succeeds(
    admission: LocalAdmission,
) -> None:
    """For many permits, with the loop working meanwhile."""
    count = 1_000
    permits = [await admission.acquire("free") for _ in range(count)]
    answers: list[list[bool]] = [[], []]
    together = threading.Barrier(2)

    def release(mine: list[bool]) -> None:
        together.wait()
        mine += [permit.release() for permit in permits]

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=release, args=(mine,)) for mine in answers]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):  # noqa: ASYNC110 - the loop takes its part
            await asyncio.sleep(0)
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    await idle()
    assert [sum(pair) for pair in zip(*answers, strict=True)] == [1] * count
    assert used(admission, "free") == 0
    assert not admission._handed_over


async def test_a_thread_that_is_slow_to_release_does_not_succeed_a_second_time(
    admission: LocalAdmission,
) -> None:
    """It had found the permit unreleased, and stood still until another thread and the loop were done."""
    permit = await admission.acquire("a")
    answers: dict[str, bool] = {}
    stands, may_go = threading.Event(), threading.Event()

    def slowly() -> None:
        def stop_inside(frame: Any, event: str, argument: object) -> None:
            if frame.f_code.co_name == "_release_from_afar":
                stands.set()
                may_go.wait(10)

        sys.settrace(stop_inside)
        answers["slow"] = permit.release()
        sys.settrace(None)

    def quickly() -> None:
        answers["quick"] = permit.release()

    slow, quick = threading.Thread(target=slowly), threading.Thread(target=quickly)
    slow.start()
    stands.wait(10)
    quick.start()
    quick.join()
    await idle()
    may_go.set()
    slow.join()
    await idle()
    assert answers == {"quick": True, "slow": False}
    assert not admission._handed_over


async def test_a_permit_that_is_forgotten_is_released_and_reported(admission: LocalAdmission) -> None:
    """By the garbage collector, if nobody else; whoever waits is let in."""
    permits = [await admission.acquire("a")]
    task = await ask(admission, "a")
    with pytest.warns(ResourceWarning, match="Permit permit-1 over a: held> was never released"):
        permits.clear()
    (await task).release()
    assert used(admission) == 0


def test_a_permit_that_is_forgotten_without_a_loop_is_released_by_the_next_request() -> None:
    """Nobody has to be there when it happens."""
    admission = LocalAdmission(clock=VirtualClock())
    admission.configure("a", 1)
    with pytest.warns(ResourceWarning):
        admission.try_acquire("a")
    permit = admission.try_acquire("a")
    assert permit is not None
    permit.release()


async def test_a_permit_with_a_key_is_kept_though_forgotten(admission: LocalAdmission) -> None:
    """By its admission, until it is released by key, owner or permit."""
    await admission.acquire("a", key="k", owner="o")
    gc.collect()
    await idle()
    assert used(admission) == 1
    assert (await admission.acquire("a", key="k", owner="o")).release()
    await admission.acquire("a", key="k")
    assert admission.release_key("k")
    await admission.acquire("a", key="k", owner="o")
    assert await admission.release_owner("o") == 1
    assert used(admission) == 0


async def test_a_released_permit_is_forgotten_in_silence(admission: LocalAdmission) -> None:
    """Warnings are errors here: none comes."""
    (await admission.acquire("a")).release()
    gc.collect()


async def test_touch_marks_progress(admission: LocalAdmission, clock: VirtualClock) -> None:
    """The idle watchdog goes by it."""
    permit = await admission.acquire("a")
    assert admission.holders("a")[0].touched_at is None
    await clock.advance(5.0)
    permit.touch()
    assert admission.holders("a")[0].touched_at == 105.0
    permit.release()
    permit.touch()


async def test_a_permit_says_what_it_is(admission: LocalAdmission) -> None:
    """One line that a log can print."""
    permit = await admission.acquire("a", "b", key="k")
    assert repr(permit) == "<Permit k over a, b: held>"
    assert repr(admission) == "<LocalAdmission a 1/1 | b 1/2 | free 0/unlimited>"
    permit.release()
    assert repr(permit) == "<Permit k over a, b: released>"


# -- cooldown, by how the work ended


async def leave(admission: LocalAdmission, how: str) -> None:
    """Leave ``async with`` the way that *how* says."""
    if how == "success":
        async with admission.acquire("a"):
            pass
    elif how == "failed":
        with pytest.raises(ZeroDivisionError):
            async with admission.acquire("a"):
                raise ZeroDivisionError
    else:

        async def hold() -> None:
            async with admission.acquire("a"):
                await asyncio.get_running_loop().create_future()

        task = asyncio.create_task(hold())
        await idle()
        task.cancel()
        await idle()


@pytest.mark.parametrize(("how", "seconds"), [("success", 1.0), ("cancelled", 2.0), ("failed", 3.0)])
@pytest.mark.parametrize("by", ["exit", "hand"])
async def test_the_outcome_decides_the_cooldown(
    admission: LocalAdmission, clock: VirtualClock, how: Any, seconds: float, by: str
) -> None:
    """What cools is still in use; then whoever waits gets it."""
    await admission.set_limit("a", 1, cooldown=1.0, cooldown_cancelled=2.0, cooldown_failed=3.0)
    if by == "exit":
        await leave(admission, how)
    else:
        (await admission.acquire("a")).release(how)
    reading = admission.limits()["a"]
    assert (reading.used, reading.cooling, reading.available) == (1, 1, 0)
    assert admission.holders("a") == ()
    task = await ask(admission, "a")
    await clock.advance(seconds - 0.001)
    assert not task.done()
    await clock.advance(0.001)
    assert (await task).granted_at == 100.0 + seconds
    (await task).release()


async def test_a_wait_that_is_cancelled_costs_no_cooldown(
    admission: LocalAdmission, clock: VirtualClock
) -> None:
    """Nothing was held, so nothing cools."""
    await admission.set_limit("b", 1, cooldown=1.0)
    holder = await admission.acquire("a")
    task = await ask(admission, "a", "b")
    task.cancel()
    await idle()
    assert used(admission, "b") == 0
    holder.release()


async def test_a_cooldown_of_nothing_else_is_that_of_success(
    admission: LocalAdmission, clock: VirtualClock
) -> None:
    """Cancelled and failed cool as long unless they say otherwise, and may say 0."""
    await admission.set_limit("a", 1, cooldown=1.0, cooldown_failed=0.0)
    (await admission.acquire("a")).release("failed")
    assert used(admission) == 0
    (await admission.acquire("a")).release("cancelled")
    assert used(admission) == 1
    await clock.advance(1.0)
    assert used(admission) == 0


# -- limits that change


async def test_lowering_a_limit_evicts_nobody(admission: LocalAdmission) -> None:
    """And lets nobody in until there is room below the new number; raising does at once."""
    await admission.set_limit("b", 4)
    permits = [await admission.acquire("b") for _ in range(4)]
    await admission.set_limit("b", 1)
    tasks = [await ask(admission, "b") for _ in range(2)]
    assert (used(admission, "b"), admission.limits()["b"].available) == (4, 0)
    for permit in permits[:2]:
        permit.release()
    await admission.set_limit("b", 2)
    await idle()
    assert not any(task.done() for task in tasks), "raised by one, but it was over-drawn by one"
    permits[2].release()
    await idle()
    assert [task.done() for task in tasks] == [True, False]
    await admission.set_limit("b", None)
    await idle()
    assert all(task.done() for task in tasks)
    for permit in (permits[3], *[await task for task in tasks]):
        permit.release()
    assert used(admission, "b") == 0


async def test_removing_a_limit_ends_the_waits_for_it_and_counts_on(admission: LocalAdmission) -> None:
    """Who holds it may go on; made again before that, the limit knows of it."""
    holder = await admission.acquire("a")
    task = await ask(admission, "a", "b")
    await admission.remove_limit("a")
    error = await refused(task, InvalidOperation)
    assert "was removed while this waited" in error.message
    with pytest.raises(ValidationError, match="unknown limit 'a'"):
        await admission.acquire("a")
    await admission.set_limit("a", 1)
    assert used(admission) == 1
    assert admission.try_acquire("a") is None
    assert holder.release()
    assert used(admission) == 0


async def test_a_pause_admits_nobody_until_it_ends(admission: LocalAdmission, clock: VirtualClock) -> None:
    """It only grows; holders are left alone."""
    holder = await admission.acquire("b")
    admission.pause("b", 110.0)
    admission.pause("b", 105.0)
    assert admission.limits()["b"].paused_until == 110.0
    task = await ask(admission, "b")
    error = await refused(await ask(admission, "b", timeout=0), LimitExceeded)
    assert "'b' is paused" in error.message
    await clock.advance(9.999)
    assert not task.done()
    await clock.advance(0.001)
    (await task).release()
    admission.pause("b", 200.0)
    admission.resume("b")
    (await admission.acquire("b", timeout=0)).release()
    holder.release()


async def test_a_bounded_queue_refuses_whom_it_cannot_take(admission: LocalAdmission) -> None:
    """Who left it does not count any more."""
    await admission.set_limit("a", 1, queue_max=1)
    holder = await admission.acquire("a")
    first = await ask(admission, "a")
    error = await refused(await ask(admission, "a"), QueueFull)
    assert (error.code, error.details) == ("queue_full", {"limit": "a"})
    first.cancel()
    await idle()
    second = await ask(admission, "a")
    assert not second.done()
    holder.release()
    (await second).release()


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


# -- readings


async def test_readings_tell_all(admission: LocalAdmission, clock: VirtualClock) -> None:
    """Limits, who holds them, who waits and in which order, as of one moment."""
    permit = await admission.acquire("a", "b", owner="alice")
    await clock.advance(1.0)
    first = await ask(admission, "a", key="first", owner="bob", timeout=9.0)
    second = await ask(admission, "a", priority=3, since=7.0, timeout=None)
    assert admission.limits() == {
        "a": LimitReading("a", 1, 1, 0, 2, None, gated=False),
        "b": LimitReading("b", 2, 1, 0, 0, None, gated=False),
        "free": LimitReading("free", None, 0, 0, 0, None, gated=False),
    }
    holder = Holder(permit.id, None, "alice", ("a", "b"), permit.fence, 100.0, None)
    assert admission.holders("a") == admission.holders("b") == (holder,)
    assert admission.holders("free") == ()
    waiting = admission.waiting()
    assert waiting == (
        Waiting("first", "first", "bob", ("a",), 0, 101.0, 101.0, 110.0, 0),
        Waiting(waiting[1].id, None, None, ("a",), 3, 7.0, 101.0, None, 1),
    )
    limits = tuple(admission.limits().values())
    assert admission.snapshot() == Snapshot(101.0, limits, waiting)
    permit.release()
    (await first).release()
    (await second).release()
    assert admission.waiting() == ()


async def test_explain_says_why_somebody_waits(admission: LocalAdmission) -> None:
    """By the id of the waiter: its key, or what `waiting` calls it."""
    permit = await admission.acquire("a", owner="alice")
    first = await ask(admission, "a", "b", key="k")
    second = await ask(admission, "a", "b")
    explanation = admission.explain("k")
    assert isinstance(explanation, Explanation)
    assert explanation.waiter == admission.waiting()[0]
    (block,) = explanation.blocks
    assert (block.limit, block.why, block.missing, block.used, block.capacity) == ("a", "full", 1, 1, 1)
    assert [holder.owner for holder in block.holders] == ["alice"]
    assert str(explanation) == "k: 0 ahead; 'a' is full (1/1 in use, held by alice)"
    other = admission.explain(admission.waiting()[1].id)
    assert other is not None
    assert other.waiter.position == 1
    assert other.blocks[0].ahead == ("k",)
    assert admission.explain("nobody") is None
    permit.release()
    (await first).release()
    (await second).release()
    assert admission.explain("k") is None


async def test_an_error_that_names_many_holders_stays_short(admission: LocalAdmission) -> None:
    """Three, and how many more."""
    await admission.set_limit("b", 5)
    permits = [await admission.acquire("b", owner=f"o{number}") for number in range(5)]
    error = await refused(await ask(admission, "b", timeout=0), LimitExceeded)
    assert "held by o0, o1, o2 and 2 more" in error.message
    for permit in permits:
        permit.release()


# -- leases


async def test_a_lease_that_is_not_renewed_is_lost(admission: LocalAdmission, clock: VirtualClock) -> None:
    """The permit says so, its release finds it gone, and the next in line has it."""
    permit = await admission.acquire("a", lease=10.0)
    task = await ask(admission, "a")
    await clock.advance(9.999)
    assert not permit.lost
    await clock.advance(0.001)
    assert permit.lost
    assert permit.released
    assert permit.release() is False
    successor = await task
    assert successor.fence > permit.fence
    assert used(admission) == 1
    successor.release()


async def test_a_lease_can_be_renewed_until_it_is_lost(
    admission: LocalAdmission, clock: VirtualClock
) -> None:
    """From now on, not from its end; a key that is lost is free."""
    permit = await admission.acquire("a", key="k", lease=10.0)
    await clock.advance(9.0)
    assert admission.renew(permit, 10.0) == 119.0
    await clock.advance(9.999)
    assert not permit.lost
    await clock.advance(0.001)
    assert permit.lost
    assert admission.renew(permit, 10.0) is None
    again = await admission.acquire("a", key="k", timeout=0)
    assert again is not permit
    again.release()


async def test_a_permit_without_a_lease_can_be_given_one(
    admission: LocalAdmission, clock: VirtualClock
) -> None:
    """And may be released within it as any other."""
    permit = await admission.acquire("a")
    assert admission.renew(permit, 5.0) == 105.0
    assert permit.release()
    await clock.advance(10.0)
    assert not permit.lost


# -- the end


async def test_aclose_tells_everyone_who_waits(admission: LocalAdmission) -> None:
    """And everyone who comes later; what is held may still be released."""
    holder = await admission.acquire("a")
    tasks = [
        await ask(admission, "a"),
        await ask(admission, "a", key="k"),
        await ask(admission, "a", key="k"),
    ]
    await admission.aclose()
    for task in tasks:
        error = await refused(task, Unavailable)
        assert (error.code, error.retryable) == ("unavailable", True)
    for names in (("a",), ("b",), ("free",)):
        with pytest.raises(Unavailable):
            await admission.acquire(*names)
        with pytest.raises(Unavailable):
            admission.try_acquire(*names)
    assert holder.release()
    assert used(admission) == 0
    await admission.aclose()


async def test_aclose_lets_nobody_in_behind_whom_it_sends_away(admission: LocalAdmission) -> None:
    """One that needs two units had reserved them; with it goes what kept the one behind out."""
    holder = await admission.acquire("b")
    big, small = await ask(admission, "b", "b"), await ask(admission, "b")
    await admission.aclose()
    await refused(big, Unavailable)
    await refused(small, Unavailable)
    assert holder.release()
    assert used(admission, "b") == 0


async def test_turn_away_lets_nobody_in_whom_it_sends_away(admission: LocalAdmission) -> None:
    """Everybody who waits at that moment gets the error, and nothing else."""
    holder = await admission.acquire("b")
    big, small = await ask(admission, "b", "b"), await ask(admission, "b")
    admission.turn_away("b", Unavailable("go away"))
    await refused(big, Unavailable)
    await refused(small, Unavailable)
    assert holder.release()
    assert used(admission, "b") == 0


# -- one admission, several runs of the loop


class BoundClock(VirtualClock):
    """Virtual time whose timers die with the loop in which they were set, as the system's do."""

    def call_at(self, when: float, callback: Callable[[], None]) -> Any:
        loop = asyncio.get_running_loop()
        return super().call_at(when, lambda: None if loop.is_closed() else callback())


def test_a_second_run_finds_what_the_first_left() -> None:
    """Timers are set again: what cooled when the first loop ended is given to who waits in the second."""
    clock = BoundClock()
    admission = LocalAdmission(clock=clock)
    admission.configure("a", 1, cooldown=10.0)

    async def first() -> None:
        async with admission.acquire("a"):
            await clock.advance(1.0)

    async def second() -> None:
        task = await ask(admission, "a")
        await clock.advance(9.999)
        assert not task.done()
        await clock.advance(0.001)
        (await task).release()

    asyncio.run(first())
    asyncio.run(second())


def test_a_second_run_keeps_its_deadlines() -> None:
    """One set in the second loop after an earlier one of the first."""
    clock = BoundClock()
    admission = LocalAdmission(clock=clock)
    admission.configure("a", 1, cooldown=5.0)

    async def first() -> None:
        (await admission.acquire("a")).release()

    async def second() -> None:
        task = await ask(admission, "a", timeout=2.0)
        await clock.advance(2.0)
        await refused(task, AcquireTimeout)

    asyncio.run(first())
    asyncio.run(second())


def test_a_second_run_loses_leases_on_time() -> None:
    """Though nobody asks for anything, and an earlier timer died with the first loop."""
    clock = BoundClock()
    admission = LocalAdmission(clock=clock)
    admission.configure("a", None)
    permits: list[Permit] = []

    async def first() -> None:
        permits.append(await admission.acquire("a", lease=10.0))

    async def second() -> None:
        permits.append(await admission.acquire("a", lease=20.0))
        await clock.advance(20.0)

    asyncio.run(first())
    asyncio.run(second())
    assert [permit.lost for permit in permits] == [True, True]


def test_a_second_run_hears_of_releases_in_threads() -> None:
    """The loop that is told is the one that turns."""
    admission = LocalAdmission(clock=VirtualClock())
    admission.configure("a", 1)

    async def release_in_a_thread() -> None:
        permit = await admission.acquire("a")
        task = await ask(admission, "a")
        thread = threading.Thread(target=permit.release)
        thread.start()
        thread.join()
        (await task).release()
        permit = await admission.acquire("a")
        thread = threading.Thread(target=permit.release)
        thread.start()
        thread.join()
        await idle()
        assert used(admission) == 0

    for _ in range(2):
        asyncio.run(release_in_a_thread())


def test_a_second_run_hears_of_a_release_in_a_thread_without_having_waited() -> None:
    """Nobody had to wait in it yet, so nothing but the acquire itself has shown the new loop."""
    admission = LocalAdmission(clock=VirtualClock())
    admission.configure("a", 1)

    async def release_in_a_thread() -> None:
        permit = await admission.acquire("a")
        thread = threading.Thread(target=permit.release)
        thread.start()
        thread.join()
        await idle()
        assert permit.released
        assert used(admission) == 0

    for _ in range(2):
        asyncio.run(release_in_a_thread())


# -- callbacks


async def test_on_queued_is_called_once_for_who_waits(admission: LocalAdmission) -> None:
    """And not for who gets it at once, or is refused."""
    calls: list[str] = []
    holder = await admission.acquire("a", on_queued=lambda: calls.append("holder"))
    await refused(await ask(admission, "a", timeout=0, on_queued=lambda: calls.append("no")), LimitExceeded)
    task = await ask(admission, "a", on_queued=lambda: calls.append("queued"))
    assert calls == ["queued"]
    holder.release()
    (await task).release()
    assert calls == ["queued"]


async def test_a_callback_that_raises_is_logged_and_harmless(
    admission: LocalAdmission, caplog: pytest.LogCaptureFixture
) -> None:
    """The one who waits waits on."""

    def on_queued() -> None:
        raise ZeroDivisionError

    holder = await admission.acquire("a")
    with caplog.at_level(logging.ERROR):
        task = await ask(admission, "a", on_queued=on_queued)
    assert "a callback raised" in caplog.text
    assert "ZeroDivisionError" in caplog.text
    assert not task.done()
    holder.release()
    (await task).release()


# -- cancelling


async def test_a_cancelled_wait_leaves_no_trace(admission: LocalAdmission, clock: VirtualClock) -> None:
    """Those behind move up, and its deadline goes with it."""
    holder = await admission.acquire("a")
    first, second = await ask(admission, "a"), await ask(admission, "a")
    first.cancel()
    await idle()
    assert first.cancelled()
    assert [waiting.position for waiting in admission.waiting()] == [0]
    holder.release()
    (await second).release()
    await clock.advance(1_000.0)
    assert used(admission) == 0


async def test_a_grant_that_meets_a_cancel_goes_to_the_next(admission: LocalAdmission) -> None:
    """In the same turn of the loop, in either order of the two."""
    for cancel_first in (True, False):
        holder = await admission.acquire("a")
        first, second = await ask(admission, "a"), await ask(admission, "a")
        if cancel_first:
            first.cancel()
            holder.release()
        else:
            holder.release()
            first.cancel()
        await idle()
        assert first.cancelled()
        assert second.done()
        second.result().release()
        assert used(admission) == 0


async def test_a_grant_that_nobody_took_does_not_cool(admission: LocalAdmission) -> None:
    """It goes to the next in the same turn: no work was begun under it."""
    await admission.set_limit("a", 1, cooldown=5.0)
    await admission.set_limit("b", 1)
    holder = await admission.acquire("b")
    first, second = await ask(admission, "a", "b"), await ask(admission, "a", "b")
    holder.release()
    first.cancel()
    await idle()
    assert second.done()
    (await second).release()


@pytest.mark.parametrize("order", ["fifo", "lifo", "random"])
async def test_ten_thousand_waiters_may_leave_at_once(admission: LocalAdmission, order: str) -> None:
    """In any order; nothing stays held, parked or timed, and the next one gets in."""
    holder = await admission.acquire("a")
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(ask_plainly(admission)) for _ in range(10_000)]
    await idle()
    assert admission.limits()["a"].waiting == 10_000
    if order == "lifo":
        tasks.reverse()
    elif order == "random":
        random.Random(1).shuffle(tasks)
    for task in tasks:
        task.cancel()
    await idle()
    assert all(task.cancelled() for task in tasks)
    assert admission.limits()["a"].waiting == 0
    assert not admission._parked
    assert admission.kernel.next_deadline() is None
    assert len(admission.kernel.timers) == 0
    assert holder.release()
    assert used(admission) == 0
    (await admission.acquire("a", timeout=0)).release()


async def ask_plainly(admission: LocalAdmission) -> Permit:
    return await admission.acquire("a")


async def test_timeouts_leave_no_timers(admission: LocalAdmission, clock: VirtualClock) -> None:
    """What has fallen due is not counted as pending, nor as called off."""
    holder = await admission.acquire("a")
    for _ in range(3):
        await refused_in(clock, await ask(admission, "a", timeout=1.0))
    assert len(admission.kernel.timers) == 0
    holder.release()


async def refused_in(clock: VirtualClock, task: Task) -> None:
    await clock.advance(1.0)
    await refused(task, AcquireTimeout)


async def test_asyncio_timeout_around_an_acquire(admission: LocalAdmission) -> None:
    """It is a cancel like any other."""
    holder = await admission.acquire("a")
    with pytest.raises(TimeoutError) as raised:
        async with asyncio.timeout(0):
            await admission.acquire("a", timeout=None)
    assert not isinstance(raised.value, InterlockError)
    assert admission.waiting() == ()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0), admission.acquire("a", timeout=None):
            pytest.fail("there was no room")
    holder.release()
    assert used(admission) == 0
    with pytest.raises(TimeoutError):
        async with admission.acquire("a"), asyncio.timeout(0):
            await asyncio.get_running_loop().create_future()
    assert used(admission) == 0


async def test_a_task_group_that_fails_gives_everything_back(admission: LocalAdmission) -> None:
    """Of who waits and who holds."""

    async def hold() -> None:
        async with admission.acquire("a"):
            await asyncio.get_running_loop().create_future()

    async def fail() -> None:
        await idle()
        assert (used(admission), len(admission.waiting())) == (1, 4)
        raise ZeroDivisionError

    with pytest.RaisesGroup(ZeroDivisionError):
        async with asyncio.TaskGroup() as group:
            for _ in range(5):
                group.create_task(hold())
            group.create_task(fail())
    assert used(admission) == 0
    assert admission.waiting() == ()
    assert not admission._parked


async def test_a_step_before_asking_may_fail_or_be_cancelled(admission: LocalAdmission) -> None:
    """Then nothing was asked for."""

    async def fail() -> None:
        raise ZeroDivisionError

    acquisition = admission.acquire("a")
    acquisition.first(fail)
    with pytest.raises(ZeroDivisionError):
        await acquisition
    assert used(admission) == 0

    async def wait() -> None:
        await asyncio.get_running_loop().create_future()

    async def enter() -> None:
        acquisition = admission.acquire("a")
        acquisition.first(wait)
        async with acquisition:
            pytest.fail("it never came so far")

    task = asyncio.create_task(enter())
    await idle()
    task.cancel()
    await idle()
    assert task.cancelled()
    assert used(admission) == 0


# -- the watchdog's and the gate's part


async def test_a_permit_can_be_taken_back(admission: LocalAdmission) -> None:
    """Its holder sees that it is lost; the next in line has it."""
    permit = await admission.acquire("a", key="k")
    task = await ask(admission, "a")
    record: model.Permit = permit._record
    assert admission.revoke(record)
    assert not admission.revoke(record)
    assert permit.lost
    assert permit.release() is False
    (await task).release()
    assert not admission._keyed


async def test_a_gate_is_asked_and_answers_by_admit(admission: LocalAdmission) -> None:
    """Who waits at a gated limit with room is let in by as many as the answer says."""
    asked: list[bool] = []
    await admission.set_limit("a", 2, gated=True)
    admission.listen_at_gate("a", asked.append)
    walked_in = await admission.acquire("a", timeout=0)
    admission.pause("a", 200.0)
    tasks = [await ask(admission, "a") for _ in range(2)]
    admission.resume("a")
    assert asked[-1] is True
    await idle()
    assert not any(task.done() for task in tasks)
    reading = admission.gate_reading("a")
    assert (reading.capacity, reading.used, reading.granted, reading.waiting) == (2, 1, 1, True)
    admission.admit("a", 5)
    await idle()
    assert [task.done() for task in tasks] == [True, False]
    walked_in.release()
    await idle()
    admission.admit("a", 1)
    for task in tasks:
        (await task).release()


async def test_a_gate_may_answer_in_the_very_call_that_asks(admission: LocalAdmission) -> None:
    """Whoever made it ask is let in like any other."""
    await admission.set_limit("a", 2, gated=True)
    admission.listen_at_gate("a", lambda recycled: admission.admit("a", 1))
    admission.admit("a", 0, fresh_until=1_000.0)
    task = await ask(admission, "a")
    assert task.done()
    (await task).release()
    assert not admission._parked


async def test_a_listener_that_raises_is_logged_and_harmless(
    admission: LocalAdmission, caplog: pytest.LogCaptureFixture
) -> None:
    """The gate may still be answered."""

    def listen(recycled: bool) -> None:
        raise ZeroDivisionError

    await admission.set_limit("a", 1, gated=True)
    admission.listen_at_gate("a", listen)
    admission.pause("a", 200.0)
    task = await ask(admission, "a")
    admission.resume("a")
    assert "ZeroDivisionError" in caplog.text
    admission.admit("a", 1)
    (await task).release()
