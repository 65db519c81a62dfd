"""How a provider counts the calls of one account: late, and with a punishment for going over."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(eq=False, slots=True)
class Unit:
    """One call in the provider's books; it lags on after its end, until ``counted_until``."""

    started: float
    counted_until: float | None = None


@dataclass(slots=True)
class Stats:
    """What an account has seen. Counts, and seconds."""

    requests: int = 0
    served: int = 0
    refused: int = 0
    abandoned: int = 0
    peak: int = 0
    """The most that it counted at once: running, lagging and foreign together."""
    peak_running: int = 0
    busy_seconds: float = 0.0
    faults: dict[str, int] = field(default_factory=dict)


class Account:
    """One account at a provider.

    Args:
        limit: what the provider advertises.
        hard_cap: above it a call is refused.
        lag: a call that has ended is still counted for up to this many seconds (seeded, from half of it on).
        penalty: seconds after a refusal during which calls take twice as long and the cap is ``limit``.
        now: the time in seconds.
    """

    def __init__(
        self,
        *,
        limit: int = 4,
        hard_cap: int = 5,
        lag: float = 0.3,
        penalty: float = 2.0,
        seed: int = 0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limit = limit
        self.hard_cap = hard_cap
        self.lag = lag
        self.penalty = penalty
        self.foreign = 0
        self.stats = Stats()
        self._now = now
        self._random = Random(seed)  # noqa: S311 - repeatable on purpose
        self._running: set[Unit] = set()
        self._lagging: set[Unit] = set()
        self._punished_until = 0.0

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def counted(self) -> int:
        """What the account has in flight, as the provider sees it."""
        now = self._now()
        self._lagging = {unit for unit in self._lagging if (unit.counted_until or 0) > now}
        return len(self._running) + len(self._lagging) + self.foreign

    @property
    def punished(self) -> bool:
        return self._now() < self._punished_until

    def begin(self) -> Unit | None:
        """Take one more call, or refuse it."""
        counted = self.counted + 1
        self.stats.requests += 1
        if counted > (self.limit if self.punished else self.hard_cap):
            self.stats.refused += 1
            self._punished_until = self._now() + self.penalty
            return None
        self.stats.peak = max(self.stats.peak, counted)
        unit = Unit(self._now())
        self._running.add(unit)
        self.stats.peak_running = max(self.stats.peak_running, self.running)
        return unit

    def end(self, unit: Unit, *, served: bool = True) -> None:
        """The call is over; it is counted a while longer."""
        if unit not in self._running:
            return
        self._running.discard(unit)
        now = self._now()
        self.stats.busy_seconds += now - unit.started
        if served:
            self.stats.served += 1
        else:
            self.stats.abandoned += 1
        unit.counted_until = now + self.lag * self._random.uniform(0.5, 1.0)
        self._lagging.add(unit)

    def set_foreign(self, count: int) -> None:
        """Somebody else uses the same account for *count* calls, which may exceed what is left."""
        self.foreign = max(0, count)

    def reset(self) -> None:
        """Forget the statistics, not what is in flight."""
        self.stats = Stats()

    def report(self) -> dict[str, Any]:
        """The statistics in the names of ``GET /stats``."""
        stats = self.stats
        return {
            "requests": stats.requests,
            "served": stats.served,
            "refused": stats.refused,
            "abandoned": stats.abandoned,
            "peak": stats.peak,
            "peakRunning": stats.peak_running,
            "busySeconds": round(stats.busy_seconds, 6),
            "inFlight": self.counted,
            "running": self.running,
            "foreign": self.foreign,
            "limit": self.limit,
            "hardCap": self.hard_cap,
            "punished": self.punished,
            "faults": dict(stats.faults),
        }
