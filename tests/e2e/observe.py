"""What a test sees of running processes: readings over HTTP, and the wait for one to become true."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp


async def reading(client: aiohttp.ClientSession, url: str) -> Any:
    """The JSON document at *url*."""
    async with client.get(url) as response:
        assert response.status == 200
        return await response.json()


async def gate_of(client: aiohttp.ClientSession, server: str, provider_id: str) -> dict[str, Any]:
    """One provider's gate as ``GET /concurrency/status`` of *server* has it."""
    gates = (await reading(client, f"{server}/concurrency/status"))["providers"]
    gate: dict[str, Any] = next(gate for gate in gates if gate["providerId"] == provider_id)
    return gate


async def until(
    holds: Callable[[], Awaitable[Any]], what: str, within: float = 10.0, every: float = 0.02
) -> float:
    """Ask until the answer *holds*; how many seconds that took, and an AssertionError if over *within*."""
    began = time.monotonic()
    while not await holds():
        assert time.monotonic() < began + within, f"not within {within} s: {what}"
        await asyncio.sleep(every)
    return time.monotonic() - began
