"""What the history of the limits is made of: a look at them every second, and every wait when it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from interlock.admission.readings import read_limit
from interlock.history import Reading
from interlock.telemetry.labels import PER_ID
from interlock.telemetry.longest import Longest

if TYPE_CHECKING:
    from interlock.admission.local import LocalAdmission
    from interlock.admission.waits import Wait, WaitEnded
    from interlock.history import History
    from interlock.ports import TimerHandle
    from interlock.provider.gate import ProviderGate

SAMPLE_SECONDS: Final = 1.0
_PROVIDER: Final = "provider:"


class Sampler:
    """Tells *history* how the limits of *admission* are, and what the providers behind *gate* refuse."""

    def __init__(self, history: History, admission: LocalAdmission, gate: ProviderGate) -> None:
        self._history = history
        self._admission = admission
        self._gate = gate
        self._timer: TimerHandle | None = None
        self._refused = dict(gate.refusals)
        self._longest = Longest()

    def start(self) -> None:
        """Look every second from now on."""
        self._admission.on_wait.append(self._waiting)
        self._look()

    async def aclose(self) -> None:
        """Look no more, and have everything written."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        await self._history.aclose()

    def _look(self) -> None:
        clock = self._admission.clock
        self._timer = clock.call_at(clock.now() + SAMPLE_SECONDS, self._look)
        now = clock.now()
        readings = {}
        for name, limit in self._admission.kernel.limits.items():
            if limit.removed or not _is_kept(name):
                continue
            reading = read_limit(limit)
            since_ms = self._longest.since_ms(limit)
            longest = 0.0 if since_ms is None else max(0.0, now - since_ms / 1000)
            readings[name] = Reading(reading.capacity, reading.used, reading.waiting, longest)
        refused = dict(self._gate.refusals)
        for key, count in refused.items():
            if new := count - self._refused.get(key, 0):
                self._history.refused(_PROVIDER + key[0], new)
        self._refused = refused
        self._history.sample(readings)

    def _waiting(self, wait: Wait) -> WaitEnded:
        def ended(_: str, seconds: float) -> None:
            for name in wait.limits:
                if _is_kept(name):
                    self._history.waited(name, seconds)

        return ended


def _is_kept(name: str) -> bool:
    """Not the limits that there is one of for each agent or session."""
    family, colon, _ = name.partition(":")
    return not (colon and family in PER_ID)
