"""Time limits by a clock that may be a test's."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from interlock.ports import Clock


@asynccontextmanager
async def within(clock: Clock, seconds: float | None) -> AsyncIterator[None]:
    """Raise TimeoutError once *seconds* have passed inside; None: no limit."""
    async with asyncio.timeout(None) as scope:
        timer = None
        if seconds is not None:
            timer = clock.call_at(clock.now() + seconds, lambda: scope.reschedule(0.0))
        try:
            yield
        finally:
            if timer is not None:
                timer.cancel()
