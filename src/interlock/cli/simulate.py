"""``interlock simulate``: what a fleet would do under other limits."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from rich.table import Table

from interlock.cli.output import Json, console
from interlock.cli.progress import progress
from interlock.testing.simulator import Measured, ProviderMeasured, Scenario, load_scenario, simulate


def simulate_file(file: Path, /, *, seed: int | None = None, as_json: Json = False) -> int:
    """Simulate a scenario and its what-ifs: the real gate on a virtual clock; no provider is asked.

    The same file and seed give the same numbers.

    Example: interlock simulate fleet.toml --seed 7

    Args:
        file: a scenario in TOML; its limits and providers are those of interlock.toml.
        seed: of everything random (default: the file's, else 0).
        as_json: print a JSON document instead of a table.
    """
    found = asyncio.run(_simulated(load_scenario(file, seed=seed)))
    if as_json:
        print(json.dumps({"variants": [one.document() for one in found]}))
    else:
        console().print(table_of(found))
    return 0


async def _simulated(scenario: Scenario) -> list[Measured]:
    with progress("simulating") as advance:
        return await simulate(scenario, on_progress=advance)


def table_of(found: list[Measured]) -> Table:
    """A column for each variant, a row for each measure; those of each provider, if there are several."""
    shown = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    shown.add_column("", no_wrap=True)
    for one in found:
        shown.add_column(one.variant, justify="right", overflow="fold")
    providers = list(dict.fromkeys(name for one in found for name in one.providers))
    columns = [_measures(one) | _of_providers(one, providers) for one in found]
    for label in columns[0]:
        shown.add_row(label, *(column[label] for column in columns))
    return shown


def _measures(one: Measured) -> dict[str, str]:
    return {
        "completed": f"{one.completed}",
        "failed": f"{one.failed}",
        "took": _seconds(one.seconds),
        "calls/s": f"{one.calls_per_second:.2f}",
        "utilisation": _share(one.utilisation),
        "wait p50": _seconds(one.wait_p50),
        "wait p95": _seconds(one.wait_p95),
        "wait max": _seconds(one.wait_max),
        "429s": f"{one.refused}",
        "overshoot": f"{one.overshoot}",
        "turn mean": _seconds(one.turn_mean),
        "turn p99": _seconds(one.turn_p99),
        "passed by younger": f"{one.passed}",
    }


def _of_providers(one: Measured, names: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in names:
        about = f"{name}: " if len(names) > 1 else ""
        provider = one.providers.get(name, ProviderMeasured())
        if about:
            found[f"{about}completed"] = f"{provider.calls}"
            found[f"{about}utilisation"] = _share(provider.utilisation)
            found[f"{about}429s"] = f"{provider.refused}"
        found[f"{about}limit at the end"] = "∞" if provider.limit is None else f"{provider.limit}"
    return found


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s"
