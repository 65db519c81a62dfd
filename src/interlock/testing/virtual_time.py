"""Time that moves only when a test says so."""

from __future__ import annotations

import asyncio
from heapq import heappop, heappush
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_NS = 1_000_000_000
_PATIENCE = 10_000


class VirtualTimer:
    """A callback that waits for its moment of virtual time."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class VirtualClock:
    """A `Clock` that stands still until `advance`. Kept in nanoseconds, so that sums stay exact."""

    def __init__(self, start: float = 0.0) -> None:
        self._now_ns = round(start * _NS)
        self._timers: list[tuple[int, int, VirtualTimer]] = []
        self._serial = 0

    def now(self) -> float:
        return self._now_ns / _NS

    def call_at(self, when: float, callback: Callable[[], None]) -> VirtualTimer:
        self._serial += 1
        timer = VirtualTimer(callback)
        heappush(self._timers, (round(when * _NS), self._serial, timer))
        return timer

    async def sleep(self, seconds: float) -> None:
        """Wait *seconds* of virtual time."""
        woken = asyncio.Event()
        timer = self.call_at(self.now() + seconds, woken.set)
        try:
            await woken.wait()
        finally:
            timer.cancel()

    async def advance(self, seconds: float) -> None:
        """Let *seconds* pass: fire what is due in its order, and after each let tasks run until idle."""
        if seconds < 0:
            raise ValueError(f"seconds is {seconds!r}; time does not run backwards")
        until_ns = self._now_ns + round(seconds * _NS)
        await idle()
        while await self._fire(until_ns):
            pass
        self._now_ns = until_ns
        await idle()

    async def step(self) -> bool:
        """Let time pass up to the next timer, and fire it as `advance` does; False if there is none."""
        await idle()
        return await self._fire(None)

    async def _fire(self, until_ns: int | None) -> bool:
        while self._timers and (until_ns is None or self._timers[0][0] <= until_ns):
            due_ns, _, timer = heappop(self._timers)
            if timer.callback is None:
                continue
            self._now_ns = max(self._now_ns, due_ns)
            timer.callback()
            await idle()
            return True
        return False


async def idle() -> None:
    """Return once no task of this loop can go on without time passing or input arriving."""
    loop = asyncio.get_running_loop()
    ready = getattr(loop, "_ready", None)
    for _ in range(_PATIENCE):
        await asyncio.sleep(0)
        if not ready:
            if ready is None and _ < 50:
                continue  # a loop that does not show its queue (uvloop): give everyone many turns
            return
    raise RuntimeError(f"tasks were still busy after {_PATIENCE} turns of the loop")
