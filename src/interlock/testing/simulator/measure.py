"""What a simulated variant came to, in numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from interlock.testing.simulator.scenario import Variant
    from interlock.testing.simulator.world import CallRecord, World


@dataclass(frozen=True)
class ProviderMeasured:
    """One provider. *utilisation* is the share of the configured slots that had a call; None: unlimited.

    *peak* is the most that it had to count at once: calls that it counts late, and those that it refused,
    included. *overshoot* is by how much that was above what it allows, *limit* what its gate let in last.
    """

    calls: int = 0
    utilisation: float | None = None
    refused: int = 0
    peak: int = 0
    overshoot: int = 0
    limit: int | None = None


@dataclass(frozen=True)
class Measured:
    """One variant. Times in seconds; *seconds* is from the first arrival to the end of the last call.

    *failed* calls gave up or were refused for good. Waits are of all calls, those that went straight in
    included. A turn lasts from its prompt to the end of its last call, if all were answered. *passed* is how
    often, at most, a call was passed by others whose prompts are younger.
    """

    variant: str
    completed: int
    failed: int
    seconds: float
    calls_per_second: float
    utilisation: float | None
    wait_p50: float
    wait_p95: float
    wait_max: float
    refused: int
    overshoot: int
    turns: int
    turn_mean: float
    turn_p99: float
    passed: int
    providers: dict[str, ProviderMeasured] = field(default_factory=dict)
    calls: list[CallRecord] = field(default_factory=list, repr=False, compare=False)

    def document(self) -> dict[str, Any]:
        """As plain JSON values, in camelCase and without the calls."""
        told = {name: value for name, value in vars(self).items() if name not in ("providers", "calls")}
        providers = {
            name: {_camel(key): value for key, value in vars(one).items()}
            for name, one in self.providers.items()
        }
        return {_camel(name): value for name, value in told.items()} | {"providers": providers}


def measure(variant: Variant, world: World) -> Measured:
    """The numbers of *world*, in which *variant* has been lived through."""
    calls = world.calls
    began = min((call.at for call in calls), default=0.0)
    seconds = max((call.ended for call in calls), default=0.0) - began
    waits = sorted(call.waited for call in calls)
    lasted = sorted(ended - since for (_, since), (ended, answered) in world.turns.items() if answered)
    completed = sum(call.granted is not None for call in calls)
    providers = {name: _provider(name, variant, world, seconds) for name in variant.settings.providers}
    limited = [name for name, one in variant.settings.providers.items() if one.limit is not None]
    room = sum((variant.settings.providers[name].limit or 0) * seconds for name in limited)
    busy = sum(world.accounts[name].stats.busy_seconds for name in limited)
    return Measured(
        variant=variant.name,
        completed=completed,
        failed=len(calls) - completed,
        seconds=seconds,
        calls_per_second=completed / seconds if seconds else 0.0,
        utilisation=busy / room if room else None,
        wait_p50=quantile(waits, 0.5),
        wait_p95=quantile(waits, 0.95),
        wait_max=waits[-1] if waits else 0.0,
        refused=sum(one.refused for one in providers.values()),
        overshoot=max((one.overshoot for one in providers.values()), default=0),
        turns=len(lasted),
        turn_mean=sum(lasted) / len(lasted) if lasted else 0.0,
        turn_p99=quantile(lasted, 0.99),
        passed=max((call.passed for call in calls), default=0),
        providers=providers,
        calls=calls,
    )


def _provider(name: str, variant: Variant, world: World, seconds: float) -> ProviderMeasured:
    configured = variant.settings.providers[name].limit
    account = world.accounts[name]
    room = (configured or 0) * seconds
    return ProviderMeasured(
        calls=account.stats.served,
        utilisation=account.stats.busy_seconds / room if room else None,
        refused=account.stats.refused,
        peak=world.demand[name],
        overshoot=max(0, world.demand[name] - account.limit),
        limit=world.gate.get_limit(name),
    )


def quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest of *ordered* that at least *share* of them do not exceed; 0 of nothing."""
    if not ordered:
        return 0.0
    rank = -(-len(ordered) * round(share * 1000) // 1000)  # rounded up, in whole numbers
    return ordered[max(0, rank - 1)]


def _camel(name: str) -> str:
    first, *more = name.split("_")
    return first + "".join(word.title() for word in more)
