"""Waiting with a deadline, by a clock that may be a test's."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from interlock.ports import Clock

T = TypeVar("T")


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


async def until(
    clock: Clock, timeout: float | None, waiting: asyncio.Future[None], error: Callable[[], Exception]
) -> None:
    """Return when *waiting* is done; after *timeout* seconds (None: never) raise *error*."""
    if timeout is None:
        await waiting
        return
    if timeout <= 0 and not waiting.done():
        raise error()

    def expire() -> None:
        if not waiting.done():
            waiting.set_exception(error())

    timer = clock.call_at(clock.now() + timeout, expire)
    try:
        await waiting
    finally:
        timer.cancel()


async def within(
    clock: Clock, timeout: float | None, work: Coroutine[Any, Any, None], error: Callable[[], Exception]
) -> None:
    """Do *work*, which only waits; after *timeout* seconds (None: never) leave it and raise *error*."""
    over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    task = asyncio.get_running_loop().create_task(work)
    task.add_done_callback(lambda _: settle(over))
    try:
        await until(clock, timeout, over, error)
    finally:
        task.cancel()
    await asyncio.wait((task,))
    task.result()


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
