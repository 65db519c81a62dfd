"""What ``GET /metrics`` says: the fleet's limits, its providers, its gateway, its runs, and its own health.

Most of it is read when somebody asks, in steps that depend on the number of limits and of permits, never on
how many wait. What has passed by then is counted where it happens. No id of a session, a run, an agent or a
caller becomes a label.
"""

from __future__ import annotations

import logging
from math import inf
from typing import TYPE_CHECKING, Final

from interlock import __version__
from interlock.core.runs import ENDED
from interlock.provider.signals import REASONS
from interlock.session.tally import tally_of
from interlock.telemetry.exposition import Counter, Histogram, Metric, Sample, render
from interlock.telemetry.invariants import broken_rules, stuck_at
from interlock.telemetry.labels import BUCKETS, Bounded, LimitLabels

if TYPE_CHECKING:
    from collections.abc import Iterable

    from interlock.admission.local import LocalAdmission
    from interlock.admission.waits import Wait, WaitEnded
    from interlock.provider.gate import ProviderGate
    from interlock.session.sessions import Sessions

    Samples = Iterable[Sample]

log = logging.getLogger(__name__)

OUTCOMES: Final = ("answered", "upstream_error", "upstream_failed", "refused", "failed", "torn", "left")
"""How a gateway call can end; see `interlock.http.gateway.reply.Reply.outcome`."""
UNKNOWN: Final = "unknown"
"""The provider of a call that named none of ours."""
_PROVIDER: Final = "provider:"

BUILD = Metric("interlock_build_info", "gauge", ("version",), "Always 1; the version that runs.")
CAPACITY = Metric(
    "interlock_limit_capacity", "gauge", ("limit",), "Units that may be taken; +Inf: unlimited."
)
IN_USE = Metric("interlock_limit_in_use", "gauge", ("limit",), "Units that are taken, cooling ones included.")
COOLING = Metric("interlock_limit_cooling", "gauge", ("limit",), "Units that cool after a release.")
WAITING = Metric("interlock_limit_waiting", "gauge", ("limit",), "Requests that wait and need this limit.")
WAIT = Metric(
    "interlock_wait_seconds",
    "histogram",
    ("limit",),
    "How long requests waited, however it ended, at each limit that they needed; no wait is not counted.",
)
PAUSED = Metric("interlock_provider_paused", "gauge", ("provider",), "1 while nobody is admitted, else 0.")
REDUCED = Metric(
    "interlock_provider_reduced",
    "gauge",
    ("provider",),
    "1 while the limit in force is lower than the operator's, after a 429, else 0.",
)
UPSTREAM = Metric(
    "interlock_provider_upstream_in_flight",
    "gauge",
    ("provider",),
    "What the provider itself says is in flight, while that is fresh.",
)
REFUSALS = Metric(
    "interlock_refusals_total", "counter", ("provider", "reason"), "Answers of providers that said: too much."
)
GATEWAY = Metric(
    "interlock_gateway_requests_total", "counter", ("provider", "outcome"), "Gateway calls that have ended."
)
SESSIONS = Metric("interlock_sessions_running", "gauge", (), "Sessions that this server works on.")
STARTED = Metric("interlock_runs_started_total", "counter", (), "Starts of runs since this server began.")
RUNS_ENDED = Metric(
    "interlock_runs_ended_total", "counter", ("status",), "Runs that have ended since this server began."
)
STUCK = Metric(
    "interlock_stuck_waiters", "gauge", (), "Limits at which somebody waits who could go; must be 0."
)
CHECKS = Metric("interlock_invariant_checks_total", "counter", (), "How often the rules were checked.")
VIOLATIONS = Metric(
    "interlock_invariant_violations_total", "counter", (), "Rules that were found broken; must stay 0."
)

METRICS: Final = (
    *(BUILD, CAPACITY, IN_USE, COOLING, WAITING, WAIT, PAUSED, REDUCED, UPSTREAM, REFUSALS, GATEWAY),
    *(SESSIONS, STARTED, RUNS_ENDED, STUCK, CHECKS, VIOLATIONS),
)
"""All of them, in the order in which they are told."""


class FleetMetrics:
    """The numbers of one server. It listens to *admission* for what has waited; `ended` tells of calls."""

    def __init__(
        self,
        admission: LocalAdmission,
        gate: ProviderGate,
        sessions: Sessions | None = None,
        *,
        providers: Iterable[str] = (),
    ) -> None:
        """*providers* are those of the gateway, whose calls are told as 0 before the first."""
        self._admission = admission
        self._gate = gate
        self._sessions = sessions
        self._limit = LimitLabels().value
        self._providers = Bounded()
        self._waits = Histogram(BUCKETS)
        self._calls = Counter()
        for provider in (*providers, UNKNOWN):
            for outcome in OUTCOMES:
                self._calls.add(self._providers.value(provider), outcome, by=0)
        self._checks = 0
        self._violations = 0
        self._complained: list[str] = []
        admission.on_wait.append(self._waiting)

    # -- as it happens

    def _waiting(self, wait: Wait) -> WaitEnded:
        def ended(_: str, seconds: float) -> None:
            for label in {self._limit(name) for name in wait.limits}:
                self._waits.observe(seconds, label)

        return ended

    def ended(self, provider: str | None, outcome: str) -> None:
        """A gateway call to *provider* has ended; None: to none of ours."""
        self._calls.add(UNKNOWN if provider is None else self._providers.value(provider), outcome)

    # -- when asked

    def text(self) -> str:
        """Everything, as of now."""
        stuck = self._check()
        samples: dict[Metric, Samples] = {
            BUILD: [Sample((__version__,), 1)],
            **self._of_limits(),
            WAIT: self._waits.samples(),
            **self._of_providers(),
            GATEWAY: self._calls.samples(),
            **self._of_sessions(),
            STUCK: [Sample((), stuck)],
            CHECKS: [Sample((), self._checks)],
            VIOLATIONS: [Sample((), self._violations)],
        }
        return render((metric, samples[metric]) for metric in METRICS)

    def _of_limits(self) -> dict[Metric, Samples]:
        """By label: limits that share one are added up."""
        sums: dict[str, list[float]] = {}
        for name, limit in self._admission.limits().items():
            mine = (
                inf if limit.capacity is None else limit.capacity,
                limit.used,
                limit.cooling,
                limit.waiting,
            )
            label = self._limit(name)
            known = sums.get(label, (0, 0, 0, 0))
            sums[label] = [one + other for one, other in zip(known, mine, strict=True)]
        return {
            metric: [Sample((label,), numbers[place]) for label, numbers in sums.items()]
            for place, metric in enumerate((CAPACITY, IN_USE, COOLING, WAITING))
        }

    def _of_providers(self) -> dict[Metric, Samples]:
        paused: dict[str, int] = {}
        reduced: dict[str, int] = {}
        upstream: dict[str, int] = {}
        for name, limit in self._admission.limits().items():
            if name.startswith(_PROVIDER):
                label = self._providers.value(name.removeprefix(_PROVIDER))
                paused[label] = max(paused.get(label, 0), limit.paused_until is not None)
                reduced.setdefault(label, 0)
        for status in self._gate.statuses():
            label = self._providers.value(status.provider_id)
            reduced[label] = max(reduced.get(label, 0), status.auto_reduced)
            if status.upstream_in_flight is not None:
                upstream[label] = upstream.get(label, 0) + status.upstream_in_flight
        refusals = Counter()
        for label in paused:
            for reason in REASONS:
                refusals.add(label, reason, by=0)
        for (provider, reason), count in self._gate.refusals.items():
            refusals.add(self._providers.value(provider), reason, by=count)
        return {
            PAUSED: _by_label(paused),
            REDUCED: _by_label(reduced),
            UPSTREAM: _by_label(upstream),
            REFUSALS: refusals.samples(),
        }

    def _of_sessions(self) -> dict[Metric, Samples]:
        if self._sessions is None:
            return {SESSIONS: [], STARTED: [], RUNS_ENDED: []}
        tally = tally_of(self._sessions.store)
        return {
            SESSIONS: [Sample((), sum(not one.closed for one in self._sessions.running.values()))],
            STARTED: [Sample((), tally.started)],
            RUNS_ENDED: [Sample((status,), tally.ended[status]) for status in sorted(ENDED)],
        }

    def _check(self) -> int:
        """Look whether the rules hold, and say in the log what does not; at how many limits somebody is
        stuck."""
        kernel = self._admission.kernel
        stuck = stuck_at(kernel)
        found = [f"somebody waits at {name} although there is room" for name in stuck]
        found += broken_rules(kernel)
        self._checks += 1
        self._violations += len(found)
        if found != self._complained:
            self._complained = found
            for text in found[:10]:
                log.error("a rule is broken, please report this: %s", text)
        return len(stuck)


def _by_label(numbers: dict[str, int]) -> list[Sample]:
    return [Sample((label,), number) for label, number in numbers.items()]
