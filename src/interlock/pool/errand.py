"""Calls of what users gave us, each in a task of its own and for a limited time.

What follows from a call happens in a plain function that hears its end once: nothing of the pool's own state
hangs on an await that somebody could cancel. A call that ignores its cancellation is left behind.
"""

from __future__ import annotations

import asyncio
import inspect
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from interlock.ports import Clock, TimerHandle


class Errands:
    """All calls that are under way."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.running: dict[Errand, None] = {}
        # Not that of the caller in whose step a call happens to begin: an agent outlives many of them.
        self.context = copy_context()

    def send(
        self,
        seconds: float | None,
        then: Callable[[Any, BaseException | None], None],
        function: Callable[..., object],
        *arguments: object,
        late: Callable[[Any], None] | None = None,
    ) -> Errand:
        """Call *function*, plain or async; *then* hears its result or error, *late* a result that comes after
        the *seconds*."""
        errand = Errand(self, then, late)
        self.running[errand] = None
        loop = asyncio.get_running_loop()
        errand.task = loop.create_task(errand.run(function, arguments), context=self.context)
        errand.task.add_done_callback(errand.ended)
        if seconds is not None:
            error = TimeoutError(f"it took longer than {seconds:g} s")
            errand.timer = self.clock.call_at(self.clock.now() + seconds, lambda: errand.give_up(error))
        return errand


class Errand:
    """One call."""

    timer: TimerHandle | None = None
    task: asyncio.Task[None]

    def __init__(
        self,
        errands: Errands,
        then: Callable[[Any, BaseException | None], None],
        late: Callable[[Any], None] | None,
    ) -> None:
        self._errands = errands
        self._then = then
        self._late = late
        self._settled = False

    async def run(self, function: Callable[..., object], arguments: tuple[object, ...]) -> None:
        try:
            result = function(*arguments)
            if inspect.isawaitable(result):
                result = await result
        except BaseException as error:
            self._settle(None, error)
            if not isinstance(error, Exception):
                raise
        else:
            self._settle(result, None)

    def give_up(self, error: BaseException) -> None:
        """End it with *error*, whatever the call itself still does."""
        if not self._settled:
            self.task.cancel()
            self._settle(None, error)

    def ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() and not self._settled:  # before its first step
            self._settle(None, asyncio.CancelledError())

    def _settle(self, result: object, error: BaseException | None) -> None:
        if self._settled:
            if error is None and self._late is not None:
                self._late(result)
            return
        self._settled = True
        self._errands.running.pop(self, None)
        if self.timer is not None:
            self.timer.cancel()
        self._then(result, error)
