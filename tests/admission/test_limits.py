"""Limits that change, and what can be read of them."""

import logging

import pytest

from admission.asking import ask, refused, used
from interlock.admission.local import LocalAdmission
from interlock.admission.readings import Explanation, Holder, LimitReading, Snapshot, Waiting
from interlock.errors import (
    InvalidOperation,
    LimitExceeded,
    QueueFull,
    ValidationError,
)
from interlock.testing import VirtualClock, idle

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
