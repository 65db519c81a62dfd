"""Fleets of processes whose members are killed, frozen and cut off, and whose engine dies: what was promised?

Everybody writes down what happened; a program that shares no code with Interlock judges it (`fleet_checker`).
A run prints its seed; ``E2E_SEED=…`` repeats its choices.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from random import Random

import pytest

from e2e.engines import Engine, MakeEngine, server_engine, valkey_engine
from e2e.fleet_storm import Storm, storm
from e2e.namespaces import bridge, refusal
from fault_proxy import FAULTS

SEED = int(os.environ.get("E2E_SEED", time.time_ns() % 1_000_000))


@pytest.fixture
def dice() -> Random:
    print(f"E2E_SEED={SEED}")
    return Random(SEED)


LONG_LEASE = 4.0
"""An engine has come back before it ends: who holds something, and cannot say so, holds it still."""
ENGINES: dict[str, MakeEngine] = {"server": server_engine, "valkey": valkey_engine}


@pytest.fixture(params=ENGINES)
async def engine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Engine]:
    """Each that there is an admission for."""
    async with ENGINES[request.param](tmp_path) as made:
        yield made
        assert made.complaints() == ""


async def ended(fleet: Storm) -> None:
    """The fleet goes home, and what it wrote down is judged."""
    took = await fleet.finish()
    print(f"{await fleet.judged()}all units at once after {took:.2f} s")


async def clients_hunted(fleet: Storm, kills: int, freezes: int, faults: tuple[str, ...]) -> None:
    """Eight clients, three of which are left in peace: they are to be served whatever happens to others."""
    for member in (await fleet.join(8))[:3]:
        member.spared = True
    await fleet.all_at_work()
    await fleet.hunt(kills=kills, freezes=freezes, faults=faults)
    await fleet.engine_frozen(1.5 * fleet.lease)
    await fleet.going_on(20)
    await ended(fleet)


async def test_clients_killed_frozen_and_cut_off(engine: Engine, tmp_path: Path, dice: Random) -> None:
    """Whatever happens to some, the limits hold, the others go on in order, and all units come back.

    Also after the engine itself stood still for longer than a lease.
    """
    async with storm(engine, tmp_path, dice) as fleet:
        await clients_hunted(fleet, kills=3, freezes=3, faults=tuple(FAULTS))


@pytest.mark.deep
@pytest.mark.timeout(900)
async def test_clients_killed_frozen_and_cut_off_for_long(
    engine: Engine, tmp_path: Path, dice: Random
) -> None:
    """Two hundred of them killed, fifty frozen for two leases, twenty faults of each kind."""
    async with storm(engine, tmp_path, dice) as fleet:
        await clients_hunted(fleet, kills=200, freezes=50, faults=tuple(FAULTS) * 20)


async def engine_hunted(fleet: Storm, rounds: int) -> None:
    """Six clients, and two that mostly hold something, and cannot say so when the engine comes back."""
    await fleet.join(6)
    keepers = await fleet.join(2, tasks=1, mixed=False, shortest=fleet.lease, longest=2 * fleet.lease)
    for member in keepers:
        member.spared = True
    await fleet.all_at_work()
    for _ in range(rounds):
        deeds = [partial(fleet.engine_killed, fleet.dice.uniform(0, 0.3), cut_off=keepers)]
        deeds += [partial(fleet.engine_suffers, *one) for one in fleet.engine.happenings().items()]
        fleet.dice.shuffle(deeds)
        for deed in deeds:
            await deed()
            await fleet.hunt(kills=1, at_once=1)
            await fleet.going_on(10)
    await ended(fleet)


@pytest.mark.deep
async def test_the_engine_killed_and_stopped(engine: Engine, tmp_path: Path, dice: Random) -> None:
    """It dies and comes back, and is told to stop, while clients of its die, and others cannot reach it."""
    async with storm(engine, tmp_path, dice, LONG_LEASE) as fleet:
        await engine_hunted(fleet, rounds=1)


@pytest.mark.deep
@pytest.mark.timeout(900)
async def test_the_engine_killed_and_stopped_for_long(engine: Engine, tmp_path: Path, dice: Random) -> None:
    """Twenty times each."""
    async with storm(engine, tmp_path, dice, LONG_LEASE) as fleet:
        await engine_hunted(fleet, rounds=20)


@pytest.mark.deep
@pytest.mark.timeout(1800)
async def test_nobody_is_passed_in_a_crowd(engine: Engine, tmp_path: Path, dice: Random) -> None:
    """A hundred thousand grants to eight processes, in peace: all in order."""
    limits = {"tools": {"capacity": 12, "cooldown": 0.0}}
    async with storm(engine, tmp_path, dice, lease=10.0, limits=limits) as fleet:
        await fleet.join(8, tasks=8, mixed=False, longest=0.006)
        await fleet.going_on(100_000, within=1200.0)
        await ended(fleet)


@pytest.mark.deep
async def test_hosts_without_their_network(tmp_path: Path, dice: Random) -> None:
    """Three clients on hosts of their own, whose links drop every packet for two leases."""
    if reason := refusal():
        pytest.skip(reason)
    with bridge() as network:
        async with server_engine(tmp_path, network.address) as engine, storm(engine, tmp_path, dice) as fleet:
            await fleet.join(3)
            hosts = [network.host() for _ in range(3)]
            for host in hosts:
                await fleet.join(address=network.address, namespace=host.path)
            await fleet.all_at_work()
            away = list(fleet.members.values())[3:]
            await asyncio.gather(
                *(fleet.unplug(*one, 2 * fleet.lease) for one in zip(away, hosts, strict=True))
            )
            await fleet.going_on(30)
            await fleet.all_at_work()
            await ended(fleet)
            assert engine.complaints() == ""
