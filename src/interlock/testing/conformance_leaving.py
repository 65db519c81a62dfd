"""Cases: releasing, refusals and timeouts, giving up (R16), and the end of an admission."""

from __future__ import annotations

import asyncio
import gc
import warnings
from typing import Any

from interlock.errors import (
    AcquireTimeout,
    InterlockError,
    InvalidOperation,
    LimitExceeded,
    Unavailable,
    ValidationError,
)
from interlock.testing.conformance_scene import Scene, case, says


@case
async def an_acquisition_can_be_entered(scene: Scene) -> None:
    """Leaving releases, and so does an exception, which goes on as it was."""
    a = await scene.limit("a", 1)
    async with scene.admission.acquire(a) as permit:
        assert await scene.used(a) == 1
    assert permit.released

    async def failing() -> None:
        async with scene.admission.acquire(a):
            raise ZeroDivisionError

    await scene.refused(failing(), ZeroDivisionError)
    await scene.empty(a)


@case
async def an_awaited_permit_can_be_entered(scene: Scene) -> None:
    """It is an async context manager itself."""
    a = await scene.limit("a", 1)
    permit = await scene.admission.acquire(a)
    async with permit as same:
        assert same is permit
    assert permit.released
    await scene.empty(a)


@case
async def asking_happens_at_the_await(scene: Scene) -> None:
    """An acquisition that nobody awaits asks for nothing."""
    a = await scene.limit("a", 1)
    acquisition = scene.admission.acquire(a)
    await scene.empty(a)
    (await acquisition).release()


@case
async def a_second_release_says_no(scene: Scene) -> None:
    """R9: and leaves alone whoever has the unit by then."""
    a = await scene.limit("a", 1)
    permit = await scene.admission.acquire(a)
    assert permit.release() is True
    successor = await scene.admission.acquire(a)
    assert permit.release() is False
    assert await scene.used(a) == 1
    assert not successor.released
    successor.release()
    await scene.empty(a)


@case
async def a_release_may_come_from_another_thread(scene: Scene) -> None:
    """It counts there at once, and of two threads that release one says yes."""
    a = await scene.limit("a", 1)
    permit = await scene.admission.acquire(a)
    said = await asyncio.gather(*(asyncio.to_thread(permit.release) for _ in range(2)))
    assert sorted(said) == [False, True]
    assert permit.released
    await scene.empty(a)


@case
async def a_forgotten_permit_is_released_and_reported(scene: Scene) -> None:
    """When it is collected, with a `ResourceWarning`; one with a key is kept."""
    a = await scene.limit("a", 2)
    await scene.admission.acquire(a, key=scene.named("kept"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        await scene.admission.acquire(a)
        gc.collect()
        await scene.settle()
    messages = [str(one.message) for one in caught if issubclass(one.category, ResourceWarning)]
    assert len([message for message in messages if "was never released" in message]) == 1
    assert await scene.used(a) == 1
    scene.admission.release_key(scene.named("kept"))
    await scene.empty(a)


@case
async def no_wait_means_no_wait(scene: Scene) -> None:
    """A timeout of 0 is refused at once, says what is in the way, and changes nothing."""
    a = await scene.limit("a", 1)
    holder = await scene.admission.acquire(a, owner=scene.named("holder"))
    error = await scene.refused(scene.admission.acquire(a, timeout=0), LimitExceeded)
    says(error, "limit_exceeded", f"{a!r} is full (1/1 in use, held by {scene.named('holder')})")
    assert error.retryable
    assert error.details["limit"] == a
    assert await scene.waiting() == []
    holder.release()
    (await scene.admission.acquire(a, timeout=0)).release()
    await scene.empty(a)


@case
async def patience_ends_at_its_deadline(scene: Scene) -> None:
    """`AcquireTimeout`, which is a `TimeoutError`, names the limit and its holders; no trace is left."""
    a = await scene.limit("a", 1)
    holder = await scene.admission.acquire(a, owner=scene.named("holder"))
    began = scene.admission.clock.now()
    task = await scene.ask(a, timeout=scene.seconds(2))
    await scene.advance(0.5)
    assert not task.done() or not scene.still(began, 2)
    await scene.advance(2)
    await scene.settle()
    error = await scene.refused(task, AcquireTimeout)
    assert isinstance(error, TimeoutError)
    says(error, "timeout", "waited", f"{a!r} is full (1/1 in use, held by {scene.named('holder')})")
    assert list(error.details["blocked_by"]) == [a]
    assert await scene.waiting() == []
    holder.release()
    await scene.empty(a)


@case
async def no_timeout_waits_for_ever(scene: Scene) -> None:
    """None is no deadline."""
    a = await scene.limit("a", 1)
    holder = await scene.admission.acquire(a)
    task = await scene.ask(a, timeout=None)
    await scene.advance(4)
    (waiting,) = [one for one in scene.admission.waiting() if one.limits == (a,)]
    assert waiting.deadline is None
    holder.release()
    (await task).release()
    await scene.empty(a)


@case
async def an_unknown_limit_is_refused_with_the_known(scene: Scene) -> None:
    """`ValidationError` lists them; so does a request over several of which one is unknown."""
    a = await scene.limit("a", 1)
    nothing = scene.named("nothing")
    for names in ((nothing,), (a, nothing)):
        error = await scene.refused(scene.admission.acquire(*names), ValidationError)
        says(error, "validation_error", f"unknown limit {nothing!r}; known are: ", a)
        assert isinstance(error, ValueError)
    await scene.empty(a)


@case
async def bad_arguments_are_refused(scene: Scene) -> None:
    """By name, with what was given; nothing changes."""
    a = await scene.limit("a", 1)
    acquire: Any = scene.admission.acquire
    says(await scene.refused(acquire(), ValidationError), "validation_error", "at least one limit")
    says(await scene.refused(acquire(a, timeout=-1), ValidationError), "validation_error", "timeout is -1")
    nan = float("nan")
    says(await scene.refused(acquire(a, since=nan), ValidationError), "validation_error", "since is nan")
    for capacity in (0, -1, 1.5, True):
        error = await scene.refused(scene.admission.set_limit(a, capacity), ValidationError)
        says(error, "validation_error", "whole numbers from 1")
    await scene.refused(scene.admission.set_limit("", 1), ValidationError)
    await scene.refused(scene.admission.remove_limit(scene.named("nothing")), ValidationError)
    await scene.empty(a)
    assert scene.admission.limits()[a].capacity == 1


@case
async def try_acquire_says_where_it_works(scene: Scene) -> None:
    """In process it gives a permit or None; elsewhere `InvalidOperation` says what to use instead."""
    a = await scene.limit("a", 1)
    try:
        permit = scene.admission.try_acquire(a)
    except InvalidOperation as error:
        says(error, "invalid_operation", "timeout=0")
        return
    assert scene.admission.try_acquire(a) is None
    permit.release()
    await scene.empty(a)


@case
async def who_has_to_wait_is_told_so_once(scene: Scene) -> None:
    """`on_queued` is called for a wait, and not for a request that finds room."""
    a = await scene.limit("a", 1)
    told: list[str] = []
    holder = await scene.admission.acquire(a, on_queued=lambda: told.append("no wait"))
    task = await scene.ask(a, on_queued=lambda: told.append("wait"))
    assert told == ["wait"]
    holder.release()
    (await task).release()
    assert told == ["wait"]
    await scene.empty(a)


@case
async def cancelled_while_waiting(scene: Scene) -> None:
    """R16: it leaves no trace, and the one behind moves up."""
    a = await scene.limit("a", 1)
    holder = await scene.admission.acquire(a)
    first, second = await scene.ask(a), await scene.ask(a, key=scene.named("second"))
    first.cancel()
    assert await scene.waiting() == [scene.named("second")]
    holder.release()
    await scene.settle()
    assert second.done()
    (await second).release()
    await scene.empty(a)


@case
async def cancelled_in_the_instant_of_the_grant(scene: Scene) -> None:
    """R16: whichever of the two came first, the unit is held or goes on to the next; none is lost."""
    a = await scene.limit("a", 1)
    for turns in range(6):
        holder = await scene.admission.acquire(a)
        first, second = await scene.ask(a), await scene.ask(a)
        holder.release()
        for _ in range(turns):
            await asyncio.sleep(0)
        first.cancel()
        await scene.settle()
        if not first.cancelled():
            (await first).release()
            await scene.settle()
        assert second.done(), f"cancelled {turns} turns after the release"
        (await second).release()
        await scene.empty(a)


@case
async def cancelled_before_it_was_heard(scene: Scene) -> None:
    """R16: asked and cancelled in one step, with room and without."""
    a = await scene.limit("a", 1)
    loop = asyncio.get_running_loop()
    for held in (False, True):
        holder = await scene.admission.acquire(a) if held else None
        for turns in range(4):
            task = loop.create_task(scene.acquired(a))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            if not task.cancelled():
                (await task).release()
            assert await scene.used(a) == int(held)
            assert await scene.waiting() == []
        if holder is not None:
            holder.release()
    await scene.empty(a)


@case
async def a_timeout_of_asyncios_is_a_cancellation(scene: Scene) -> None:
    """``async with asyncio.timeout()`` around an acquire leaves nothing."""
    a = await scene.limit("a", 1)
    holder = await scene.admission.acquire(a)

    async def impatient() -> None:
        async with asyncio.timeout(0.02):
            await scene.admission.acquire(a)

    error = await scene.refused(impatient(), TimeoutError)
    assert not isinstance(error, InterlockError)
    assert await scene.waiting() == []
    holder.release()
    await scene.empty(a)


@case
async def touching_shows(scene: Scene) -> None:
    """The holder's last sign of progress stands in the reading."""
    a = await scene.limit("a", 1)
    permit = await scene.admission.acquire(a)
    await scene.settle()
    assert scene.admission.holders(a)[0].touched_at is None
    await scene.advance(1)
    permit.touch()
    await scene.settle()
    touched = scene.admission.holders(a)[0].touched_at
    assert touched is not None
    assert touched >= permit.granted_at
    permit.release()


@case
async def a_closed_admission_admits_nobody(scene: Scene) -> None:
    """Who waits gets `Unavailable`, and so does who asks; closing again does nothing."""
    a = await scene.limit("a", 1)
    admission = await scene.harness.admission() if scene.harness.peers else scene.admission
    holder = await admission.acquire(a)
    task = await scene.ask(a, of=admission)
    await admission.aclose()
    says(await scene.refused(task, Unavailable), "unavailable", "closed while this waited")
    says(await scene.refused(admission.acquire(a), Unavailable), "unavailable", "closed")
    assert holder.release() is True
    assert holder.released
    await admission.aclose()
