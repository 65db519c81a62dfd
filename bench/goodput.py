"""How much of a provider's true capacity the gate uses, and how often the provider has to refuse.

The provider (`interlock mock-provider`) allows 4 calls at once, refuses above 5 and slows down for it. It
counts a call while it runs, for `LATENCY` seconds on average, and after its end for a while longer: at
most its lag, evenly spread from half of that on, so three quarters on average. Meanwhile it would take no
other call in its place. So what it can serve at its limit, whoever asks and however well, is ``limit /
(LATENCY + 0.75 * lag)`` calls a second. Goodput is what it served as a share of that.

16 agents ask all the time, with the retries of the official SDKs (two, after as long as the answer says). The
first seconds are left out, so that only full load is measured.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp

from bench.measure import Table
from bench.processes import serving

LIMIT, HARD_CAP = 4, 5
LATENCY = 0.2
LAGS = (0.0, 0.3, 1.0)
AGENTS = 16
RETRIES = 2
RAMP = 2.0
USAGE = 'usage = "/usage"\nusage_repoll = "5ms"\nusage_settle = "10ms"\ncooldown = "0s"'
WAYS = {
    "straight": None,
    "Interlock, cooldown only": 'cooldown = "{lag_ms}ms"',
    "Interlock, usage gate": USAGE,
}

_CONFIG = """
store = "memory:"
server.port = 0

[providers.mock]
base_url = "{provider}/v1"
limit = {limit}
{more}
"""


def run(*, quick: bool = False) -> list[Table]:
    """One table: every way at every lag."""
    seconds = 4.0 if quick else 15.0
    figures = {}
    for way, more in WAYS.items():
        for lag, found in zip(LAGS, asyncio.run(_at_all_lags(more, seconds)), strict=True):
            found["capacity"] = LIMIT / (LATENCY + 0.75 * lag)
            found["goodput"] = found["served"] / seconds / found["capacity"]
            figures[f"lag {lag:g} s, {way}"] = found
    rows = [
        (
            name,
            f"{found['served'] / seconds:.1f}",
            f"{found['capacity']:.1f}",
            f"{found['goodput']:.2f}",
            *(str(found[count]) for count in ("refused", "peak", "failed")),
        )
        for name, found in sorted(figures.items(), key=lambda item: item[1]["capacity"], reverse=True)
    ]
    columns = ("", "requests/s", "capacity/s", "goodput", "refused", "peak", "failed")
    note = (
        f"{AGENTS} agents for {seconds:g} s; limit {LIMIT}, refused above {HARD_CAP}; latency {LATENCY:g} s; "
        "usage asked every 5 ms while somebody waits, settled after 10 ms. Refused and peak as the provider "
        "counts them, failed after the SDK's retries."
    )
    return [Table("Goodput against the provider's true capacity", columns, rows, note, figures)]


async def _at_all_lags(more: str | None, seconds: float) -> list[dict[str, Any]]:
    """Every lag has a provider and a gateway of its own, all at once: they mostly wait."""
    with ExitStack() as stack:
        served = [_served(stack, lag, more) for lag in LAGS]
        return await asyncio.gather(*(_measured(provider, base, seconds) for provider, base in served))


def _served(stack: ExitStack, lag: float, more: str | None) -> tuple[str, str]:
    """The URLs of a provider, and of what the agents speak to."""
    interlock = Path(sys.executable).with_name("interlock")
    mock = ("mock-provider", "--port", "0", "--limit", str(LIMIT), "--hard-cap", str(HARD_CAP), "--seed", "1")
    times = ("--lag", f"{lag * 1000:.0f}ms", "--latency", f"{LATENCY * 1000:.0f}ms")
    provider = stack.enter_context(serving(interlock, *mock, *times, first_cpu=False)).url
    if more is None:
        return provider, f"{provider}/v1"
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    config = folder / "interlock.toml"
    more = more.format(lag_ms=round(lag * 1000))
    config.write_text(_CONFIG.format(provider=provider, limit=LIMIT, more=more))
    server = stack.enter_context(serving(interlock, "serve", "--config", config, first_cpu=True))
    return provider, f"{server.url}/gateway/mock"


async def _measured(provider: str, base: str, seconds: float) -> dict[str, Any]:
    """What the provider counted in *seconds* of full load, and how many calls failed for good."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        agents = [_Agent(session, f"{base}/chat/completions", number) for number in range(AGENTS)]
        working = [asyncio.create_task(agent.work()) for agent in agents]
        await asyncio.sleep(RAMP)
        await (await session.post(f"{provider}/stats/reset")).read()
        for agent in agents:
            agent.failed = 0
        await asyncio.sleep(seconds)
        stats: dict[str, Any] = await (await session.get(f"{provider}/stats")).json()
        stats["failed"] = sum(agent.failed for agent in agents)
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)
    await asyncio.sleep(0.2)  # until the server, too, knows that they left
    return stats


class _Agent:
    """Asks again as soon as it is answered; a call that fails for good is counted and left."""

    def __init__(self, session: aiohttp.ClientSession, url: str, number: int) -> None:
        self.session = session
        self.url = url
        self.number = number
        self.failed = 0

    async def work(self) -> None:
        for call in count():
            text = f"Agent {self.number}, call {call}."
            body = {"model": "mock", "messages": [{"role": "user", "content": text}]}
            if not await self.answered(body):
                self.failed += 1

    async def answered(self, body: dict[str, Any]) -> bool:
        for attempt in range(RETRIES + 1):
            async with self.session.post(self.url, json=body) as response:
                await response.read()
            if response.status < 400:
                return True
            if attempt < RETRIES:
                await asyncio.sleep(_patience(response, attempt))
        return False


def _patience(response: aiohttp.ClientResponse, attempt: int) -> float:
    """As the SDKs wait: what the answer says if that is at most a minute, else half a second, doubling."""
    said = float(response.headers.get("retry-after-ms", 0)) / 1000
    if 0 < said <= 60:
        return said
    return min(0.5 * 2.0**attempt, 8.0) * random.uniform(0.75, 1.0)
