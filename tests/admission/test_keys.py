"""Permits that are known: by key, owner or parent."""

import asyncio

import pytest

from admission.asking import ask, refused, used
from interlock.admission.local import LocalAdmission
from interlock.errors import (
    AcquireTimeout,
    InvalidOperation,
    LimitExceeded,
)
from interlock.testing import VirtualClock, idle

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
