"""`RedisAdmission` on a wire that breaks, swallows and stands still: nothing is lost, nothing is doubled."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from contextlib import AsyncExitStack
from random import Random
from urllib.parse import urlsplit

import pytest
import redis

from admission.redis.servers import shared_url
from admission.redis.test_admission import admission_to
from fault_proxy import Proxy, proxy
from interlock.admission.redis import RedisAdmission
from interlock.admission.redis.library import keys
from interlock.errors import AcquireTimeout

SEED = int(os.environ.get("E2E_SEED", time.time_ns() % 1_000_000))
CAPACITY = 3


class Crew:
    """Tasks of several processes that come and go; it counts who works."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.working = self.done = 0

    async def work(self, admission: RedisAdmission, turns: int) -> None:
        for _ in range(turns):
            try:
                async with admission.acquire("a", timeout=self.random.choice((0.05, 5.0, 30.0))) as permit:
                    self.working += not permit.lost
                    assert self.working <= CAPACITY
                    await asyncio.sleep(self.random.random() / 100)
                    self.working -= 1
                    self.done += 1
            except AcquireTimeout:
                pass


async def disturb(wire: Proxy, random: Random) -> None:
    """Hurt the wire again and again."""
    while True:
        await asyncio.sleep(random.random() / 10)
        match random.randrange(3):
            case 0:
                wire.reset()
            case 1:
                wire.answers.swallow = True
            case 2:
                wire.requests.swallow = True
        await asyncio.sleep(random.random() / 20)
        if wire.answers.swallow or wire.requests.swallow:
            wire.reset()
        wire.answers.swallow = wire.requests.swallow = False


async def test_a_bad_wire_costs_time_only(server: redis.Redis, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever gets lost: never over the limit, everybody is served, and nothing stays."""
    print(f"seed {SEED}")
    caplog.set_level(logging.CRITICAL, "interlock")
    random = Random(SEED)
    target = shared_url(server)
    async with AsyncExitStack() as stack:
        admissions, wires = [], []
        for _ in range(3):
            wire = await stack.enter_async_context(proxy(target))
            url = f"redis://{urlsplit(wire.url).netloc}/0"
            admissions.append(
                await stack.enter_async_context(admission_to(url, namespace="storm", lease=10.0))
            )
            wires.append(wire)
        await admissions[0].set_limit("a", CAPACITY)
        for admission in admissions:
            await admission.refresh()
        crew = Crew(random)
        disturbances = [asyncio.ensure_future(disturb(wire, random)) for wire in wires]
        workers = [crew.work(admission, 4) for admission in admissions for _ in range(8)]
        try:
            async with asyncio.timeout(60):
                await asyncio.gather(*workers)
        finally:
            for disturbance in disturbances:
                disturbance.cancel()
            for wire in wires:
                wire.answers.swallow = wire.requests.swallow = False
                wire.reset()
        assert crew.done > 25
        for admission in admissions:
            await admission.refresh()
        await admissions[0].refresh()
        reading = admissions[0].limits()["a"]
        assert (reading.used, reading.waiting) == (0, 0)
    server.delete(*keys("storm")[:2])
