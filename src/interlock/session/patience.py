"""Waiting with a deadline, by a clock that may be a test's."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

    from interlock.ports import Clock

T = TypeVar("T")

_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 5.0


def settle(waiting: asyncio.Future[None]) -> None:
    """Wake who waits, if he still does."""
    if not waiting.done():
        waiting.set_result(None)


async def sleep(clock: Clock, seconds: float) -> None:
    """Return after *seconds* by *clock*."""
    woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    timer = clock.call_at(clock.now() + seconds, lambda: settle(woken))
    try:
        await woken
    finally:
        timer.cancel()


@asynccontextmanager
async def within(clock: Clock, seconds: float | None) -> AsyncIterator[None]:
    """Raise TimeoutError once *seconds* have passed inside; None: no limit."""
    async with asyncio.timeout(None) as scope:
        timer = None
        if seconds is not None and seconds <= 0:
            scope.reschedule(0.0)
        elif seconds is not None:
            timer = clock.call_at(clock.now() + seconds, lambda: scope.reschedule(0.0))
        try:
            yield
        finally:
            if timer is not None:
                timer.cancel()


class Backoff:
    """The pauses between tries of something that fails: twice as long each time, from 0.05 to 5 seconds."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._next = _FIRST_PAUSE

    async def pause(self) -> None:
        """Wait before the next try."""
        await sleep(self._clock, self._next)
        self._next = min(_LONGEST_PAUSE, 2 * self._next)


class Writes:
    """Work that is carried out to its end, also where the caller who waits for it is cancelled."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    async def finish(self, work: Coroutine[Any, Any, T]) -> T:
        """What *work* gives or raises."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._seen)
        await asyncio.wait((task,))
        return task.result()

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return not self._tasks

    async def finished(self) -> None:
        """Return when all of it is done."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    def _seen(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()
