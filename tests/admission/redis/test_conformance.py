"""`RedisAdmission` plays the cases that every admission plays, against a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis

from admission.redis.servers import TESTING, shared_url
from interlock.admission.redis import RedisAdmission
from interlock.testing import VirtualClock
from interlock.testing.conformance import CASES, Case, run


@dataclass
class RedisHarness:
    """Through a server at *url*, whose library is told the time."""

    url: str
    namespace: str
    clock: VirtualClock = field(default_factory=lambda: VirtualClock(1_000_000.0))
    second: float = 1.0
    peers: bool = True
    made: list[RedisAdmission] = field(default_factory=list)

    async def admission(self) -> Any:
        admission = RedisAdmission(
            self.url, namespace=self.namespace, lease=80_000.0, on_failover="allow", library=TESTING
        )
        admission.clock = self.clock  # type: ignore[assignment]
        link: Any = admission._link
        renewals: Any = admission._keeper._renewals
        link.test_time = renewals.test_time = lambda: int(self.clock.now() * 1000)
        self.made.append(admission)
        await admission.refresh()
        return admission

    async def advance(self, seconds: float) -> None:
        await self.clock.advance(seconds)
        await self.settle()

    async def settle(self) -> None:
        """What was said before a refresh has been heard when it is answered; twice, as one's news are
        another's."""
        for _ in range(2):
            for _ in range(4):
                await asyncio.sleep(0)
            for admission in self.made:
                if not admission._closed:
                    await admission.refresh()
        for _ in range(4):
            await asyncio.sleep(0)

    async def aclose(self) -> None:
        for admission in self.made:
            await admission.aclose()


@asynccontextmanager
async def harness(server: redis.Redis, namespace: str) -> AsyncIterator[RedisHarness]:
    one = RedisHarness(shared_url(server), namespace)
    try:
        yield one
    finally:
        await one.aclose()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_redis(server: redis.Redis, case: Case) -> None:
    """The kernel in Lua, told the time."""
    async with harness(server, f"conformance {case.name}") as through_redis:
        await run(case, through_redis)
