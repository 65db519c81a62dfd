"""Cancelling at any moment; the watchdog's and the gate's part."""

import asyncio
import random

import pytest

from admission.asking import Task, ask, refused, used
from interlock.admission.local import LocalAdmission
from interlock.admission.permit import Permit
from interlock.core import model
from interlock.errors import (
    AcquireTimeout,
    InterlockError,
)
from interlock.testing import VirtualClock, idle

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
