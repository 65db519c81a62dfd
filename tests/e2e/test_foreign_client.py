"""Somebody else uses the same account, and the provider counts every call up to a second longer than it runs.

What can be promised, and is shown here: a call that somebody else starts between our reading of the usage
and our grant cannot be seen by us. It takes the account one over the limit at the most, which the provider's
hard cap, one above, covers; our next reading shows it, and nobody is let in until there is room again. So the
other client keeps to what a real one is held to: one call at a time, none that the provider would refuse
itself, and none within the moment in which our grants are still on their way. Two at once in that moment
would need a hard cap of two above.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import aiohttp

from e2e.observe import reading
from interlock.app import Interlock
from processes import mock_provider

LIMIT, HARD_CAP = 80, 81
LATENCY, LAG, SETTLE = 0.008, 1.0, 0.25
"""Seconds. A call occupies its unit for the latency and, on average, three quarters of the lag, so that the
account can serve some 100 a second. One that was granted less than `SETTLE` before a reading may not be in
it yet."""
WORKERS = 100
COUNTER = """\
store = "memory:"

[providers.mock]
base_url = "{provider}"
limit = {limit}
cooldown = "50ms"
"""
GATE = 'usage = "/usage"\nusage_repoll = "20ms"\nusage_settle = "250ms"\n'


async def call(client: aiohttp.ClientSession, provider: str, number: int) -> int:
    """One request; the status of its answer."""
    body = {"model": "mock", "messages": [{"role": "user", "content": f"call {number}"}]}
    async with client.post(f"{provider}/v1/chat/completions", json=body) as response:
        await response.read()
        return response.status


async def drive(
    fleet: Interlock, client: aiohttp.ClientSession, provider: str, requests: int
) -> Counter[int]:
    """*requests* calls by workers who outnumber the limit, each under a permit; the answers by status."""
    statuses: Counter[int] = Counter()
    numbers = iter(range(requests))

    async def work() -> None:
        for number in numbers:
            async with fleet.gate.acquire("mock", timeout=60.0) as permit:
                status = await call(client, provider, number)
                if status == 429:
                    fleet.gate.report_rate_limit("mock", 1.0, permit=permit)
            statuses[status] += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(WORKERS):
            group.create_task(work())
    return statuses


@asynccontextmanager
async def foreign_client(
    client: aiohttp.ClientSession, provider: str, seed: int
) -> AsyncIterator[Counter[int]]:
    """Somebody who holds 0, 1 or 2 units of the account, by turns; counts how often it held how many."""
    held, steps = 0, Counter[int]()

    async def hold(count: int) -> None:
        nonlocal held
        async with client.post(f"{provider}/foreign", json={"count": count}) as response:
            assert (await response.json())["foreign"] == count
        held = count
        steps[count] += 1

    async def step(wanted: int) -> None:
        """One unit up or down; up only where the provider would not refuse: at most the limit is counted."""
        if wanted < held:
            await hold(held - 1)
        elif wanted > held and (await reading(client, f"{provider}/stats"))["inFlight"] <= LIMIT:
            await hold(held + 1)

    async def live() -> None:
        dice = Random(seed)
        while True:
            wanted = dice.randrange(3)
            while held != wanted:
                # The least pause is longer than any of our grants is on its way.
                await asyncio.sleep(SETTLE + dice.uniform(0.05, 0.4))
                await step(wanted)
            await asyncio.sleep(dice.uniform(0.05, 0.4))

    living = asyncio.create_task(live())
    try:
        yield steps
        assert not living.done(), living
    finally:
        living.cancel()
        await asyncio.wait((living,))


@asynccontextmanager
async def opened(
    tmp_path: Path, *, gated: bool
) -> AsyncIterator[tuple[Interlock, aiohttp.ClientSession, str]]:
    """A fleet with or without the usage gate, and the provider, in a process of its own."""
    times = {"lag": f"{LAG:g}s", "latency": f"{LATENCY * 1000:g}ms"}
    async with (
        mock_provider(LIMIT, HARD_CAP, **times) as provider,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client,
    ):
        config = tmp_path / "interlock.toml"
        config.write_text(COUNTER.format(provider=provider, limit=LIMIT) + (GATE if gated else ""))
        async with Interlock.open(config) as fleet:
            yield fleet, client, provider


async def stats_of(client: aiohttp.ClientSession, provider: str) -> dict[str, Any]:
    stats: dict[str, Any] = await reading(client, f"{provider}/stats")
    return stats


async def test_with_the_usage_gate_nothing_is_refused(tmp_path: Path) -> None:
    """2,000 calls beside a foreign client, on an account that counts up to a second too long: no refusal,
    and the limit is nearly all used."""
    async with (
        opened(tmp_path, gated=True) as (fleet, client, provider),
        foreign_client(client, provider, seed=1) as steps,
    ):
        began = time.monotonic()
        statuses = await drive(fleet, client, provider, 2000)
        took = time.monotonic() - began
        stats = await stats_of(client, provider)
        used = 2000 * (LATENCY + 0.75 * LAG) / took / LIMIT
        print(f"{took:.1f} s, peak {stats['peak']}, {used:.0%} of the limit, foreign {dict(steps)}")
        assert statuses == {200: 2000}
        assert (stats["requests"], stats["refused"]) == (2000, 0)
        assert LIMIT <= stats["peak"] <= HARD_CAP
        assert min(steps[count] for count in (0, 1, 2)) >= 2
        assert fleet.gate.get_limit("mock") == LIMIT
        assert used >= 0.5


async def test_without_it_calls_are_refused(tmp_path: Path) -> None:
    """The same account and fleet with nothing but a cooldown, shorter than the lag: refusals at once."""
    async with opened(tmp_path, gated=False) as (fleet, client, provider):
        statuses = await drive(fleet, client, provider, 200)
        stats = await stats_of(client, provider)
        print(f"{stats['refused']} of 200 refused, the limit is down to {fleet.gate.get_limit('mock')}")
        assert statuses[429] == stats["refused"] > 0
        assert statuses.total() == 200
