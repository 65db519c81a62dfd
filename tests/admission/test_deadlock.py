"""Circles of nested waits: found at once, told to the youngest, and to nobody who only waits."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from interlock import DeadlockDetected, LimitExceeded, LocalAdmission, Permit
from interlock.core.model import PATIENCE
from interlock.testing import VirtualClock
from interlock.testing.virtual_time import idle


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock(start=100)


@pytest.fixture
def admission(clock: VirtualClock) -> LocalAdmission:
    admission = LocalAdmission(clock=clock)
    for name in "abc":
        admission.configure(name, 1)
    return admission


def ask(admission: LocalAdmission, *names: str, parent: Permit, **more: object) -> asyncio.Task[Permit]:
    async def acquire() -> Permit:
        return await admission.acquire(*names, parent=parent, timeout=None, **more)  # type: ignore[arg-type]

    return asyncio.create_task(acquire())


async def test_two_that_cross(admission: LocalAdmission) -> None:
    """The second to ask closes the circle and is told, with the circle; the first goes on when it lets go."""
    one = await admission.acquire("a", owner="one")
    two = await admission.acquire("b", owner="two")
    first = ask(admission, "b", parent=one)
    await idle()
    with pytest.raises(DeadlockDetected) as caught:
        await admission.acquire("a", parent=two)
    assert caught.value.message == (
        "this would wait for ever: two waits for 'a' that one keeps, one waits for 'b' that two keeps"
    )
    assert caught.value.details == {"limits": ["a", "b"], "circle": ["two", "one"]}
    assert not first.done()
    two.release()
    (await first).release()
    one.release()


async def test_the_youngest_is_told_also_if_another_closed_it(admission: LocalAdmission) -> None:
    """Age counts, not who happened to come last: the older request keeps its place."""
    one = await admission.acquire("a", owner="one")
    two = await admission.acquire("b", owner="two")
    young = ask(admission, "b", parent=one, since=50)
    await idle()
    old = ask(admission, "a", parent=two, since=20)
    await idle()
    with pytest.raises(DeadlockDetected, match="one waits for 'b' that two keeps, two waits for 'a'"):
        await young
    assert not old.done()
    one.release()
    (await old).release()
    two.release()


async def test_a_circle_of_three(admission: LocalAdmission) -> None:
    """However long the way round."""
    held = [await admission.acquire(name) for name in "abc"]
    waits = [ask(admission, wanted, parent=permit) for permit, wanted in zip(held[:2], "bc", strict=True)]
    await idle()
    with pytest.raises(DeadlockDetected, match="'a' that permit-1 keeps, permit-1 waits for 'b'"):
        await admission.acquire("a", parent=held[2])
    held[2].release()
    (await waits[1]).release()
    held[1].release()
    (await waits[0]).release()
    held[0].release()


async def test_with_oneself(admission: LocalAdmission) -> None:
    """What an ancestor further up holds is not covered: to wait for it is to wait for oneself."""
    root = await admission.acquire("a", owner="root")
    inner = await admission.acquire("b", parent=root)
    with pytest.raises(DeadlockDetected, match="wait for ever"):
        await admission.acquire("a", parent=inner)
    inner.release()
    root.release()


async def test_not_while_somebody_else_may_give_back(admission: LocalAdmission) -> None:
    """Two units, one of them in the hands of somebody who waits for nothing: that is a wait, no circle."""
    admission.configure("b", 2)
    one = await admission.acquire("a")
    two = await admission.acquire("b")
    free = await admission.acquire("b")
    wait = ask(admission, "b", parent=one)
    crossed = ask(admission, "a", parent=two)
    await idle()
    assert not wait.done()
    assert not crossed.done()
    free.release()
    (await wait).release()
    one.release()
    (await crossed).release()
    two.release()


async def test_all_units_in_the_circle(admission: LocalAdmission) -> None:
    """Two units, both with holders who wait in the circle: none can come back."""
    admission.configure("b", 2)
    one = await admission.acquire("a")
    two, three = [await admission.acquire("b") for _ in range(2)]
    waits = [ask(admission, "b", parent=one), ask(admission, "a", parent=two)]
    await idle()
    with pytest.raises(DeadlockDetected):
        await admission.acquire("a", parent=three)
    three.release()
    (await waits[0]).release()
    one.release()
    (await waits[1]).release()
    two.release()


async def test_lowering_a_limit_can_close_one(admission: LocalAdmission) -> None:
    """What was a wait becomes a circle when an operator takes the missing unit away."""
    admission.configure("b", 2)
    one = await admission.acquire("a")
    two = await admission.acquire("b")
    free = await admission.acquire("b")
    waits = [ask(admission, "b", parent=one), ask(admission, "a", parent=two)]
    await idle()
    admission.configure("b", 1)
    with pytest.raises(DeadlockDetected, match="permit-2 waits for 'a' that permit-1 keeps"):
        await waits[1]
    two.release()
    assert not waits[0].done()
    free.release()
    (await waits[0]).release()
    one.release()


async def test_a_deadline_does_not_hide_it(admission: LocalAdmission, clock: VirtualClock) -> None:
    """A wait that would end by its timeout is told at once as well: nothing else would end it."""
    one = await admission.acquire("a")
    two = await admission.acquire("b")
    first = ask(admission, "b", parent=one)
    await idle()
    with pytest.raises(DeadlockDetected):
        await admission.acquire("a", parent=two, timeout=5)
    with pytest.raises(LimitExceeded):
        await admission.acquire("a", parent=two, timeout=0)
    two.release()
    (await first).release()
    one.release()


async def test_a_pause_does_not_hide_it(admission: LocalAdmission, clock: VirtualClock) -> None:
    """The pause will end, the circle would not."""
    one = await admission.acquire("a")
    two = await admission.acquire("b")
    first = ask(admission, "b", parent=one)
    await idle()
    admission.pause("a", clock.now() + 60)
    with pytest.raises(DeadlockDetected):
        await admission.acquire("a", parent=two)
    two.release()
    (await first).release()
    one.release()


async def test_an_elder_out_of_patience_can_be_part_of_it(admission: LocalAdmission) -> None:
    """It keeps free room for itself and waits for the family; the nested claim is told, not the elder."""
    one = await admission.acquire("a", owner="one")
    elder = asyncio.create_task(_take(admission, "a", "b"))
    await idle()
    for _ in range(PATIENCE):
        (await admission.acquire("b", timeout=0)).release()
    with pytest.raises(DeadlockDetected, match="one waits for 'b' that waiter-1 keeps, waiter-1 waits for"):
        await admission.acquire("b", parent=one)
    one.release()
    (await elder).release()


async def _take(admission: LocalAdmission, *names: str) -> Permit:
    return await admission.acquire(*names, timeout=None)


async def test_lent_units_are_in_nobodys_way(admission: LocalAdmission) -> None:
    """Who lends what the others want is not part of a circle."""
    one = await admission.acquire("a")
    two = await admission.acquire("b")
    async with one.lend():
        async with AsyncExitStack() as stack:
            wait = ask(admission, "b", parent=one)
            await idle()
            permit = await stack.enter_async_context(admission.acquire("a", parent=two))
            assert permit.limits == ("a",)
        two.release()
        (await wait).release()
    one.release()


async def test_ten_thousand_nested_waits(admission: LocalAdmission) -> None:
    """Where nobody waits for what the families hold, no circle is looked for: the cost stays flat."""
    admission.configure("runs", None)
    tool = await admission.acquire("a")
    runs = [await admission.acquire("runs") for _ in range(10_000)]
    waits = [ask(admission, "a", parent=run) for run in runs]
    await idle()
    assert len(admission.kernel.limits["a"].waiters) == 10_000
    tool.release()
    for wait in waits:
        (await wait).release()
    for run in runs:
        run.release()
