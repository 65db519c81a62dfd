"""What a fleet would do under other limits: the very kernel, under virtual time, with a provider by the rules
of `interlock.testing.account`.

    report = await simulate(load_scenario("fleet.toml"))

The same scenario and seed give the same result, to the last digit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from interlock.testing.simulator.measure import Measured, ProviderMeasured, measure
from interlock.testing.simulator.scenario import Scenario, Variant, load_scenario, read_scenario
from interlock.testing.simulator.workload import plan
from interlock.testing.simulator.world import CallRecord, World

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "CallRecord",
    "Measured",
    "ProviderMeasured",
    "Scenario",
    "Variant",
    "load_scenario",
    "read_scenario",
    "simulate",
]


async def simulate(
    scenario: Scenario, *, on_progress: Callable[[int, int], object] | None = None
) -> list[Measured]:
    """What comes of each variant of *scenario*, as it is first; ``calls`` of each has every call.

    *on_progress* is called now and then with how many calls are done, and how many there are in all.
    """
    planned = [(variant, plan(variant)) for variant in scenario.variants]
    total, done = sum(sessions.calls for _, sessions in planned), 0
    found = []
    for variant, sessions in planned:
        before = done

        def ended(count: int, before: int = before) -> None:
            if on_progress is not None:
                on_progress(before + count, total)

        world = World(variant, ended)
        await world.run(sessions)
        done += sessions.calls
        found.append(measure(variant, world))
    return found
