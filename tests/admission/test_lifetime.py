"""The end of an admission, and several loops over one."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from admission.asking import ask, refused, used
from interlock.admission.local import LocalAdmission
from interlock.admission.permit import Permit
from interlock.errors import (
    AcquireTimeout,
    Unavailable,
)
from interlock.testing import VirtualClock, idle

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
