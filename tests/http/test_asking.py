"""Acquisitions stepped by hand: what a task would do, but at once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from interlock.admission.local import LocalAdmission
from interlock.errors import AcquireTimeout, InterlockError, LimitExceeded
from interlock.http.permits.asking import Asking, at_once
from interlock.testing import VirtualClock, idle


class Asked:
    """One asking over the limit ``a``, and what came of it."""

    def __init__(self, admission: LocalAdmission, **asked: Any) -> None:
        self.permit: Any = None
        self.error: InterlockError | None = None
        self.times = 0
        self.asking = Asking(admission.acquire("a", **asked).__await__(), self.settled)
        self.asking.begin()

    def settled(self, permit: Any, error: InterlockError | None) -> None:
        self.permit, self.error = permit, error
        self.times += 1


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def admission(clock: VirtualClock) -> LocalAdmission:
    admission = LocalAdmission(clock=clock)
    admission.configure("a", 1)
    return admission


async def test_what_is_free_is_had_at_once(admission: LocalAdmission) -> None:
    """And a refusal, too; nothing waits."""
    first, second = Asked(admission, key="k"), Asked(admission, timeout=0)
    assert first.permit.key == "k"
    assert isinstance(second.error, LimitExceeded)
    assert (first.asking.waiting, second.asking.waiting) == (False, False)
    assert (first.times, second.times) == (1, 1)


async def test_places_are_taken_in_the_order_of_asking(admission: LocalAdmission) -> None:
    """Without a turn of the loop between asking and standing in line."""
    first, second, third = (Asked(admission, key=key) for key in "xyz")
    assert [one.id for one in admission.waiting()] == ["y", "z"]
    first.permit.release()
    late = Asked(admission)
    await idle()
    assert (second.permit.key, third.permit, late.permit) == ("y", None, None)


async def test_a_deadline_ends_it(admission: LocalAdmission, clock: VirtualClock) -> None:
    """With the error that a task would get."""
    first, second = Asked(admission, key="k"), Asked(admission, timeout=5.0)
    await clock.advance(5.0)
    assert isinstance(second.error, AcquireTimeout)
    assert second.asking.leave() is False
    first.permit.release()


async def test_leaving_leaves_nothing(admission: LocalAdmission) -> None:
    """While it waits, and in the instant of the grant; nobody is called."""
    first, second = Asked(admission, key="k"), Asked(admission)
    assert second.asking.leave() is True
    assert admission.waiting() == ()
    third, fourth = Asked(admission), Asked(admission, key="m")
    first.permit.release()
    assert third.asking.leave() is True  # granted, and not yet told
    await idle()
    assert (second.times, third.times, fourth.times) == (0, 0, 1)
    assert admission.limits()["a"].used == 1
    fourth.permit.release()


async def test_what_never_waits_is_done_at_once(admission: LocalAdmission) -> None:
    """And what does wait is an error, not half done."""

    async def waits() -> None:
        await asyncio.sleep(0)

    assert at_once(admission.release_owner("o")) == 0
    with pytest.raises(RuntimeError, match="waits for something"):
        at_once(waits())
