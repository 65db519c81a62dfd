"""A view says what the readings of the admission itself say, also after a journey as JSON."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from random import Random
from typing import Any

import msgspec
import pytest

from interlock.admission.local import LocalAdmission
from interlock.admission.view import MOST, View, look
from interlock.core import explain
from interlock.errors import InterlockError
from interlock.testing import VirtualClock, idle


def travelled(view: View) -> View:
    return msgspec.convert(msgspec.json.decode(msgspec.json.encode(view)), View)


@pytest.mark.parametrize("seed", range(8))
async def test_it_says_what_the_admission_says(seed: int) -> None:
    """In every state of a walk: who waits and where, who holds, and for everyone why."""
    dice, clock = Random(seed), VirtualClock(1000.0)
    admission = LocalAdmission(clock=clock)
    for name, capacity in (("a", 2), ("b", 3), ("c", None)):
        admission.configure(name, capacity, cooldown=dice.choice((0.0, 0.5)))
    held: list[Any] = []
    tasks: list[asyncio.Task[Any]] = []

    async def acquire() -> None:
        names = [name for name in ("a", "b", "c", "a") if dice.random() < 0.5] or ["b"]
        parent = dice.choice(held) if held and dice.random() < 0.2 else None
        more = {"priority": dice.randrange(2), "since": 1000.0 - dice.randrange(5), "parent": parent}
        with suppress(InterlockError):
            held.append(await admission.acquire(*names, owner=dice.choice((None, "o")), **more))

    seen = 0
    for _ in range(150):
        what = dice.random()
        if what < 0.6:
            tasks.append(asyncio.create_task(acquire()))
        elif what < 0.8 and held:
            held.pop(dice.randrange(len(held))).release()
        elif what < 0.9:
            admission.configure("a", dice.choice((1, 2, 5)))
        elif what < 0.93:
            admission.pause("b", clock.now() + 1)
        await clock.advance(0.1)
        await idle()
        view = travelled(look(admission.kernel, clock.now()))
        assert view.whole
        assert view.snapshot() == admission.snapshot()
        for waiting in view.waiting():
            assert view.explain(waiting.id) == admission.explain(waiting.id)
            seen += 1
        for name in ("a", "b", "c"):
            assert view.holders(name) == admission.holders(name)
        assert view.explain("nobody") is None
    assert seen > 500
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for permit in held:
        permit.release()


async def test_many_who_wait_are_no_burden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand in one line: the first are shown, and nobody's place by a look at all the others."""
    monkeypatch.setattr(explain, "position", None)
    monkeypatch.setattr(explain, "_ahead", None)
    admission = LocalAdmission()
    admission.configure("a", 1)
    permit = await admission.acquire("a")
    tasks = [asyncio.create_task(_acquired(admission)) for _ in range(10_000)]
    await asyncio.sleep(0)
    view = look(admission.kernel, 0.0, MOST)
    assert (view.whole, len(view.places), view.limits[0].waiting) == (False, MOST, 10_000)
    assert [place.waiting.position for place in view.places] == list(range(MOST))
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    permit.release()


async def _acquired(admission: LocalAdmission) -> None:
    await admission.acquire("a")
