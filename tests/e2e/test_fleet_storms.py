"""Fleets of processes whose members are killed, frozen and cut off, and whose engine dies: what was promised?

Everybody writes down what happened; a program that shares no code with Interlock judges it (`fleet_checker`).
A run prints its seed; ``E2E_SEED=…`` repeats its choices.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from random import Random

import pytest

from e2e.engines import server_engine
from e2e.fleet_storm import storm
from fault_proxy import FAULTS

SEED = int(os.environ.get("E2E_SEED", time.time_ns() % 1_000_000))


@pytest.fixture
def dice() -> Random:
    print(f"E2E_SEED={SEED}")
    return Random(SEED)


async def test_clients_killed_frozen_and_cut_off(tmp_path: Path, dice: Random) -> None:
    """Whatever happens to some, the limits hold, the others go on in order, and all units come back."""
    async with server_engine(tmp_path) as engine, storm(engine, tmp_path, dice) as fleet:
        await fleet.join(8)
        await fleet.all_at_work()
        await fleet.hunt(kills=3, freezes=3, faults=tuple(FAULTS))
        await fleet.all_at_work()
        took = await fleet.finish()
        print(f"{await fleet.judged()}\nall units at once after {took:.2f} s")
        assert engine.complaints() == ""


async def test_the_engine_killed_and_frozen(tmp_path: Path, dice: Random) -> None:
    """It dies and comes back, and stands still, while its clients die as well."""
    async with server_engine(tmp_path) as engine, storm(engine, tmp_path, dice) as fleet:
        await fleet.join(8)
        await fleet.all_at_work()
        for _ in range(2):
            await fleet.engine_killed(dice.uniform(0, 0.5))
            await fleet.hunt(kills=1, at_once=1)
            await fleet.going_on(30)
        await fleet.engine_frozen(1.5)
        await fleet.going_on(30)
        took = await fleet.finish()
        print(f"{await fleet.judged()}\nall units at once after {took:.2f} s")
        assert engine.complaints() == ""
