"""The numbers that OpenTelemetry is told: waits and calls as they end, limits whenever it asks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

from opentelemetry.metrics import Observation

from interlock.telemetry import genai
from interlock.telemetry.labels import BUCKETS, LimitLabels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from opentelemetry.metrics import CallbackOptions, Meter

    from interlock.admission.local import LocalAdmission
    from interlock.admission.readings import LimitReading

PROVIDER: Final = "provider:"
WAIT_DURATION: Final = "interlock.wait.duration"
CAPACITY: Final = "interlock.limit.capacity"
IN_USE: Final = "interlock.limit.in_use"
COOLING: Final = "interlock.limit.cooling"
WAITING: Final = "interlock.limit.waiting"
LIMIT: Final = "interlock.limit.name"
_OPERATION_BUCKETS: Final = (*(0.01 * 2**power for power in range(14)),)
"""Those that the conventions advise, in seconds."""


class Numbers:
    """What one meter measures, of every admission that it watches."""

    def __init__(self, meter: Meter) -> None:
        self._admissions: WeakSet[LocalAdmission] = WeakSet()
        self._label = LimitLabels().value
        self._waits = meter.create_histogram(
            WAIT_DURATION,
            unit="s",
            description="How long requests waited at each limit that they needed; no wait is not counted.",
            explicit_bucket_boundaries_advisory=BUCKETS,
        )
        self._calls = meter.create_histogram(
            genai.OPERATION_DURATION,
            unit="s",
            description="GenAI operation duration.",
            explicit_bucket_boundaries_advisory=_OPERATION_BUCKETS,
        )
        gauges: dict[str, tuple[str, Callable[[LimitReading], int | None]]] = {
            CAPACITY: ("Units that may be taken; an unlimited limit has none.", lambda one: one.capacity),
            IN_USE: ("Units that are taken, cooling ones included.", lambda one: one.used),
            COOLING: ("Units that cool after a release.", lambda one: one.cooling),
            WAITING: ("Requests that wait and need this limit.", lambda one: one.waiting),
        }
        for name, (says, number) in gauges.items():
            meter.create_observable_gauge(name, [self._reader(number)], unit="1", description=says)

    def watch(self, admission: LocalAdmission) -> None:
        """Tell the limits of *admission*, too, as long as it lives."""
        self._admissions.add(admission)

    def waited(self, limits: Iterable[str], seconds: float) -> None:
        """A wait over *limits* is over."""
        for label in {self._label(name) for name in limits}:
            self._waits.record(seconds, {LIMIT: label})

    def called(self, attributes: dict[str, Any], seconds: float) -> None:
        """A call to a provider is over."""
        self._calls.record(seconds, attributes)

    def _reader(
        self, number: Callable[[LimitReading], int | None]
    ) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def read(_: CallbackOptions) -> Iterable[Observation]:
            sums: dict[str, int] = {}
            for admission in list(self._admissions):
                for name, limit in admission.limits().items():
                    value = number(limit)
                    if value is not None:
                        label = self._label(name)
                        sums[label] = sums.get(label, 0) + value
            return [Observation(value, {LIMIT: label}) for label, value in sums.items()]

        return read
