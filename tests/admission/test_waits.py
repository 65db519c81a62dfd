"""Who is told of waits hears of every one, once at its beginning and once at its end, and harms nobody."""

from __future__ import annotations

import asyncio
import logging
from typing import NoReturn

import pytest

from interlock.admission.local import LocalAdmission
from interlock.admission.waits import Wait, WaitEnded
from interlock.errors import AcquireTimeout, InvalidOperation
from interlock.testing import VirtualClock, idle


class Watched:
    """An admission with one unit, which is taken, and what a watcher heard."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.admission = LocalAdmission(clock=self.clock)
        self.admission.configure("a", 1)
        self.admission.configure("b", 9)
        self.heard: list[tuple[str | None, tuple[str, ...], int | None]] = []
        self.ended: dict[str | None, tuple[str, float]] = {}
        self.admission.on_wait.append(self.begins)

    def begins(self, wait: Wait) -> WaitEnded:
        self.heard.append((wait.owner, wait.limits, wait.position()))

        def ended(how: str, seconds: float) -> None:
            assert wait.owner not in self.ended
            self.ended[wait.owner] = how, seconds

        return ended

    def ask(self, owner: str, timeout: float | None = None, priority: int = 0) -> asyncio.Task[None]:
        async def asking() -> None:
            async with self.admission.acquire("a", "b", owner=owner, timeout=timeout, priority=priority):
                pass

        return asyncio.create_task(asking())


async def test_every_end_of_a_wait_is_told_once() -> None:
    """Granted, given up, too late, refused, each with its seconds; who goes straight in is no wait."""
    scene = Watched()
    taken = await scene.admission.acquire("a")
    granted, left, late = scene.ask("granted"), scene.ask("left"), scene.ask("late", timeout=3)
    await idle()
    first = scene.ask("first", priority=-1)
    await scene.clock.advance(2)
    left.cancel()
    await scene.clock.advance(2)
    taken.release()
    await asyncio.gather(first, granted)
    taken = await scene.admission.acquire("a")
    gone = scene.ask("gone")
    await scene.clock.advance(1)
    await scene.admission.remove_limit("a")
    for task, error in ((left, asyncio.CancelledError), (late, AcquireTimeout), (gone, InvalidOperation)):
        with pytest.raises(error):
            await task
    taken.release()
    both = ("a", "b")
    assert scene.heard == [
        ("granted", both, 0),
        ("left", both, 1),
        ("late", both, 2),
        ("first", both, 0),
        ("gone", both, 0),
    ]
    assert scene.ended == {
        "left": ("cancelled", 2.0),
        "late": ("timeout", 3.0),
        "first": ("granted", 4.0),
        "granted": ("granted", 4.0),
        "gone": ("invalid_operation", 1.0),
    }


async def test_what_a_watcher_raises_is_logged_and_harms_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Neither the wait, nor who else is told of it."""
    scene = Watched()

    def fails_at_once(wait: Wait) -> NoReturn:
        raise RuntimeError("at once")

    def fails_later(wait: Wait) -> WaitEnded:
        def ended(how: str, seconds: float) -> NoReturn:
            raise RuntimeError("later")

        return ended

    scene.admission.on_wait[:0] = [fails_at_once, fails_later]
    with caplog.at_level(logging.ERROR):
        taken = await scene.admission.acquire("a")
        waits = scene.ask("ben")
        await idle()
        taken.release()
        await waits
    assert scene.ended == {"ben": ("granted", 0.0)}
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["at once", "later"]


async def test_a_place_among_very_many_is_not_counted() -> None:
    """To count it would hold everybody up, for each of them again."""
    scene = Watched()
    taken = await scene.admission.acquire("a")
    waiting = [scene.ask(f"{number}") for number in range(600)]
    await idle()
    places = [place for _, _, place in scene.heard]
    assert places[:500] == [*range(500)]
    assert places[-1] is None
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    taken.release()
