"""Giving a permit back, and losing it."""

import asyncio
import gc
import sys
import threading
from typing import Any

import pytest

from admission.asking import ask, used
from interlock.admission.local import LocalAdmission
from interlock.testing import VirtualClock, idle

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


async def test_released_in_another_thread_and_dropped_at_once_it_is_no_leak(
    admission: LocalAdmission,
) -> None:
    """The loop has not seen the release yet when the permit is collected: that is nothing to warn about."""

    held = [await admission.acquire("a")]
    thread = threading.Thread(target=lambda: held.pop().release())
    thread.start()
    thread.join()
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
