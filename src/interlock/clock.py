"""Where time comes from outside of tests."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from interlock.ports import TimerHandle

_monotonic_ns = time.monotonic_ns


class SystemClock:
    """Seconds since the epoch that never run backwards: the wall clock at start plus monotonic time."""

    def __init__(self) -> None:
        self._offset_ns = time.time_ns() - time.monotonic_ns()

    def now(self) -> float:
        return (time.monotonic_ns() + self._offset_ns) / 1e9

    def now_ms(self) -> int:
        """`now` in whole milliseconds, for the one who asks at every call."""
        return (_monotonic_ns() + self._offset_ns) // 1_000_000

    def call_at(self, when: float, callback: Callable[[], None]) -> TimerHandle:
        """Call *callback* once ``now() >= when``. RuntimeError outside of a running event loop."""
        loop = asyncio.get_running_loop()
        return loop.call_later(max(0.0, when - self.now()), callback)
