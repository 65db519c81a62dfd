"""Slots whose holder shows no sign of life are taken back, and cool like any other."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from interlock.admission.callback import call_back
from interlock.errors import ValidationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from interlock.admission.local import LocalAdmission
    from interlock.ports import TimerHandle
    from interlock.provider.state import Provider


class Watchdog:
    """Looks at *providers* every *interval* seconds while anything is held or waited for there.

    *on_reclaim* hears of the provider, the conversation and the seconds for which the slot was held.
    """

    def __init__(
        self,
        admission: LocalAdmission,
        providers: Mapping[str, Provider],
        interval: float,
        on_reclaim: Callable[[str, str | None, float], object] | None,
    ) -> None:
        if not 0 < interval <= 86_400:
            raise ValidationError(f"watchdog_interval is {interval!r}; allowed are seconds above 0")
        self._admission = admission
        self._clock = admission.clock
        self._providers = providers
        self._interval = interval
        self._on_reclaim = on_reclaim
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: TimerHandle | None = None

    def wake(self) -> bool:
        """Somebody asks, in the running loop; whether that is another one than before."""
        loop = asyncio.get_running_loop()
        moved = loop is not self._loop
        if moved or self._timer is None:
            self.close()
            self._loop = loop
            self._timer = self._clock.call_at(self._clock.now() + self._interval, self._sweep)
        return moved

    def close(self) -> None:
        """Look no more, until somebody asks again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _sweep(self) -> None:
        self._timer = None
        now_ms = round(self._clock.now() * 1000)
        kernel = self._admission.kernel
        for provider in list(self._providers.values()):
            for record in kernel.holders(kernel.limits[provider.limit_name]):
                idle_ms = now_ms - max(record.granted_ms, record.touched_ms or 0)
                # The upstream may still be at work for it: it cools like any other.
                if idle_ms <= provider.policy.slot_timeout * 1000 or not self._admission.revoke(record):
                    continue
                if self._on_reclaim is not None:
                    held_seconds = (now_ms - record.granted_ms) / 1000
                    call_back(self._on_reclaim, provider.id, record.owner, held_seconds)
        limits = [kernel.limits[one.limit_name] for one in self._providers.values()]
        if any(limit.used or limit.waiters for limit in limits):
            self.wake()
