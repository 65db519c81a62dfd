"""An end that is begun once, by whoever closes first, and that everyone who closes waits for."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from interlock.errors import InterlockError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from interlock.ports import Clock, Store, TimerHandle
    from interlock.session.subscription import Subscription


class Closing:
    """The end of something; it goes on where those who wait for it are cancelled: half an end is none."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._task: asyncio.Task[None] | None = None
        self._timers: set[TimerHandle] = set()

    @property
    def begun(self) -> bool:
        """Whether somebody has closed it."""
        return self._task is not None

    async def close(
        self,
        work: Callable[[], Coroutine[None, None, None]],
        hurry: Callable[[], None],
        timeout: float | None,
    ) -> None:
        """Begin *work* if it has not begun, and wait for its end; who began it is told what it raised.

        After *timeout* seconds *hurry* is called; None gives it all the time that it takes.
        """
        first = self._task is None
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(work())
            self._task.add_done_callback(self._ended)
        if timeout is not None and timeout <= 0:
            hurry()
        elif timeout is not None and not self._task.done():
            self._timers.add(self._clock.call_at(self._clock.now() + timeout, hurry))
        await asyncio.wait((self._task,))
        if first:
            self._task.result()

    async def over(self) -> None:
        """Return when the end has come, however; at once if it has not begun."""
        if self._task is not None:
            await asyncio.wait((self._task,))

    def _ended(self, task: asyncio.Task[None]) -> None:
        for timer in self._timers:
            timer.cancel()
        if not task.cancelled():
            task.exception()


async def finish_all(store: Store, session_id: str, subscriptions: Iterable[Subscription]) -> None:
    """Have the *subscriptions* to one session end when they have given all that there is now."""
    last = 0
    with suppress(InterlockError):
        last = await store.get_latest_sequence(session_id)
    for subscription in list(subscriptions):
        subscription.finish(last)
