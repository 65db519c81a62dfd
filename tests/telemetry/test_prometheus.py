"""What the numbers say about a fleet: as it is, as it was, and how many steps it takes to say it."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from expositions import Exposition, parse
from interlock.admission.local import LocalAdmission
from interlock.admission.permit import Permit
from interlock.errors import AcquireTimeout
from interlock.governor import ConcurrencyGovernor
from interlock.provider.gate import ProviderGate
from interlock.telemetry.labels import MOST_VALUES
from interlock.telemetry.prometheus import METRICS, OUTCOMES, FleetMetrics
from interlock.testing import VirtualClock


@dataclass(frozen=True)
class Usage:
    """A provider's answer: seven of ours are in flight."""

    concurrent_sessions: int = 7
    limit: int | None = None


class Fleet:
    """An admission with a gate, at a time that the test moves, and its metrics."""

    def __init__(self, **gate: Any) -> None:
        self.clock = VirtualClock()
        self.admission = LocalAdmission(clock=self.clock)
        self.gate = ProviderGate(admission=self.admission, **gate)
        self.metrics = FleetMetrics(self.admission, self.gate, providers=["p"])
        self._held: list[Permit] = []
        self._asking: list[asyncio.Task[None]] = []

    def read(self) -> Exposition:
        return parse(self.metrics.text())

    async def take(self, *names: str, timeout: float | None = None, priority: int = 0) -> None:
        """Have one permit over *names* until the end."""
        self._held.append(await self.admission.acquire(*names, timeout=timeout, priority=priority))

    def ask(self, *names: str, **asked: Any) -> asyncio.Task[None]:
        """`take`, waiting in a task of its own."""
        self._asking.append(asyncio.create_task(self.take(*names, **asked)))
        return self._asking[-1]

    async def aclose(self) -> None:
        await self.gate.aclose()
        await self.admission.aclose()
        await asyncio.gather(*self._asking, return_exceptions=True)
        for permit in self._held:
            permit.release()


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    made = Fleet()
    yield made
    await made.aclose()


async def test_every_metric_is_told_also_without_a_sample(fleet: Fleet) -> None:
    """In the order of the list, each with its help and its kind."""
    said = fleet.read()
    assert list(said) == [metric.name for metric in METRICS]
    assert {name: (one.kind, one.help) for name, one in said.items()} == {
        metric.name: (metric.kind, metric.help) for metric in METRICS
    }


def test_names_say_their_unit_and_labels_are_no_ids() -> None:
    for metric in METRICS:
        assert metric.name.startswith("interlock_")
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric
        assert metric.name.endswith("_seconds") == (metric.kind == "histogram"), metric
        assert set(metric.labels) <= {"limit", "provider", "reason", "outcome", "status", "version"}


async def test_a_limit_is_told_as_it_is(fleet: Fleet) -> None:
    await fleet.admission.set_limit("tools", 2, cooldown=5.0)
    await fleet.admission.set_limit("runs", None)
    async with fleet.admission.acquire("tools"):
        await fleet.take("tools", "runs")
    fleet.ask("tools")
    await asyncio.sleep(0)
    said = fleet.read()
    assert said.by("interlock_limit_capacity", "limit") == {"runs": math.inf, "tools": 2}
    assert said.by("interlock_limit_in_use", "limit") == {"runs": 1, "tools": 2}
    assert said.by("interlock_limit_cooling", "limit") == {"runs": 0, "tools": 1}
    assert said.by("interlock_limit_waiting", "limit") == {"runs": 0, "tools": 1}


async def test_a_wait_counts_at_every_limit_that_it_was_for_however_it_ended(fleet: Fleet) -> None:
    """Granted after two seconds, too late after three, cancelled after four; no wait at all is none."""
    await fleet.admission.set_limit("tools", 1)
    await fleet.admission.set_limit("global", None)
    held = await fleet.admission.acquire("tools", "global")
    asking = [
        fleet.ask("tools", "global"),
        fleet.ask("tools", timeout=3.0),
        fleet.ask("tools"),
    ]
    await asyncio.sleep(0)
    await fleet.clock.advance(2.0)
    held.release()
    await fleet.clock.advance(2.0)
    asking[2].cancel()
    granted, late, left = await asyncio.gather(*asking, return_exceptions=True)
    assert granted is None
    assert isinstance(late, AcquireTimeout)
    assert isinstance(left, asyncio.CancelledError)
    said = fleet.read()
    assert said.value("interlock_wait_seconds_count", limit="tools") == 3
    assert said.value("interlock_wait_seconds_sum", limit="tools") == 9.0
    assert said.value("interlock_wait_seconds_bucket", limit="tools", le="2.5") == 1
    assert said.value("interlock_wait_seconds_count", limit="global") == 1
    assert said.value("interlock_wait_seconds_sum", limit="global") == 2.0


async def test_limits_of_single_agents_are_one(fleet: Fleet) -> None:
    """No id becomes a label, and their numbers are added up."""
    governor = ConcurrencyGovernor(max_tools_per_agent=2, admission=fleet.admission)
    async with governor.acquire_tool(agent="ann"), governor.acquire_tool(agent="bob"):
        said = fleet.read()
    assert said.by("interlock_limit_in_use", "limit")["tools:*"] == 2
    assert said.by("interlock_limit_capacity", "limit")["tools:*"] == 4
    assert "tools:ann" not in said.by("interlock_limit_in_use", "limit")


async def test_however_many_limits_there_are_the_labels_are_bounded(fleet: Fleet) -> None:
    """Also over time: limits that come and go do not make new series for ever, and none is lost."""
    for round_ in range(3):
        for number in range(600):
            await fleet.admission.set_limit(f"mine-{round_}-{number}", 1)
            await fleet.take(f"mine-{round_}-{number}")
        used = fleet.read().by("interlock_limit_in_use", "limit")
        assert len(used) <= MOST_VALUES
        assert sum(used.values()) == 600 * (round_ + 1)
    assert used["other"] == 1800 - (MOST_VALUES - 1)


async def test_refusals_count_by_reason_and_pauses_show(fleet: Fleet) -> None:
    await fleet.gate.set_limit("p", 3)
    assert fleet.read().value("interlock_refusals_total", provider="p", reason="rate") == 0
    fleet.gate.report_rate_limit("p", 10.0, reason="rate")
    fleet.gate.report_rate_limit("p", 10.0)
    fleet.gate.report_rate_limit("q", 10.0, reason="quota")
    said = fleet.read()
    assert said.value("interlock_refusals_total", provider="p", reason="rate") == 1
    assert said.value("interlock_refusals_total", provider="p", reason="concurrency") == 1
    assert said.value("interlock_refusals_total", provider="q", reason="quota") == 1
    assert said.by("interlock_provider_paused", "provider") == {"p": 1, "q": 1}
    assert said.by("interlock_provider_reduced", "provider") == {"p": 1, "q": 0}
    fleet.gate.resume("p")
    await fleet.gate.set_limit("p", 3)
    said = fleet.read()
    assert said.value("interlock_provider_paused", provider="p") == 0
    assert said.value("interlock_provider_reduced", provider="p") == 0
    assert said.value("interlock_refusals_total", provider="p", reason="rate") == 1


async def test_what_the_provider_counts_is_told_while_it_is_fresh() -> None:
    fleet = Fleet(fetch_usage=lambda provider_id: Usage())
    await fleet.gate.set_limit("p", 3)
    assert fleet.read()["interlock_provider_upstream_in_flight"].samples == {}
    async with fleet.admission.acquire("provider:p"):
        for _ in range(3):
            fleet.ask("provider:p")
        await asyncio.sleep(0)
    await fleet.clock.advance(1.0)  # it has cooled: the provider is asked for whoever waits
    assert fleet.read().value("interlock_provider_upstream_in_flight", provider="p") == 7
    await fleet.aclose()


async def test_calls_of_the_gateway_count_by_how_they_ended(fleet: Fleet) -> None:
    """Those of configured providers are there as 0 from the beginning; an unknown one is just that."""
    assert set(fleet.read()["interlock_gateway_requests_total"].samples.values()) == {0}
    for outcome in OUTCOMES:
        fleet.metrics.ended("p", outcome)
    fleet.metrics.ended(None, "refused")
    said = fleet.read()
    for outcome in OUTCOMES:
        assert said.value("interlock_gateway_requests_total", provider="p", outcome=outcome) == 1
    assert said.value("interlock_gateway_requests_total", provider="unknown", outcome="refused") == 1


async def test_a_broken_rule_is_counted_and_said_once(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    """As long as it is broken the number grows; the log does not."""
    await fleet.admission.set_limit("tools", 1)
    await fleet.take("tools")
    fleet.ask("tools")
    await asyncio.sleep(0)
    said = fleet.read()
    assert said.value("interlock_stuck_waiters") == said.value("interlock_invariant_violations_total") == 0
    fleet.admission.kernel.limit("tools").used = 0
    with caplog.at_level(logging.ERROR):
        said = [fleet.read(), fleet.read()][-1]
    assert said.value("interlock_stuck_waiters") == 1
    assert said.value("interlock_invariant_checks_total") == 3
    assert said.value("interlock_invariant_violations_total") == 4  # twice two: the books are wrong as well
    assert [record.message.partition(": ")[2] for record in caplog.records] == [
        "somebody waits at tools although there is room",
        "tools 0/1 (1 waiting): 1 units are taken, 0 are counted",
    ]
    fleet.admission.kernel.limit("tools").used = 1


async def test_no_step_depends_on_how_many_wait(fleet: Fleet) -> None:
    """10,000 waiters in many lanes cost as many calls as 100."""
    for name in ("tools", "global"):
        await fleet.admission.set_limit(name, 1)
    await fleet.take("tools", "global")
    waiting = 0
    counted = []
    for count in (100, 10_000):
        while waiting < count:
            fleet.ask("tools", "global", priority=waiting % 50)
            waiting += 1
        await asyncio.sleep(0)
        fleet.metrics.text()
        steps, said = _steps(fleet)
        counted.append(steps)
        assert said.value("interlock_limit_waiting", limit="tools") == count
    assert counted[0] == counted[1] < 3000


def _steps(fleet: Fleet) -> tuple[int, Exposition]:
    """How many calls and returns it takes to tell everything, and what is told."""
    count = 0

    def step(*_: object) -> None:
        nonlocal count
        count += 1

    gc.disable()  # what it calls on its own account does not count
    sys.setprofile(step)
    try:
        text = fleet.metrics.text()
    finally:
        sys.setprofile(None)
        gc.enable()
    return count, parse(text)
