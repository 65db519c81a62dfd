"""A server that stood still for longer than a lease: what it granted and took back while it caught up."""

from __future__ import annotations

import asyncio
import time

from admission.harnesses import hosted
from gateways import call, until
from interlock.admission.local import LocalAdmission
from interlock.admission.remote import RemoteAdmission

LEASE = 0.2
BODY = b'{"limits": ["a"], "timeoutMs": 60000, "leaseMs": 200}'


def stand_still() -> None:
    """For two leases: whoever is granted at the end of the first one has lost it by the end of the second."""
    time.sleep(2.5 * LEASE)


async def test_whoever_waits_is_answered() -> None:
    """It was let in and its lease ran out before it could be told: it gets the unit all the same, or is told
    to ask again."""
    admission = LocalAdmission()
    admission.configure("a", 1)
    async with hosted(admission) as server:
        remote = RemoteAdmission(server.url, lease=LEASE)
        first = await admission.acquire("a", lease=LEASE)

        async def acquire() -> int:
            async with remote.acquire("a", timeout=60.0) as permit:
                return permit.fence

        waiting = asyncio.create_task(acquire())
        await until(admission.waiting)
        stand_still()
        async with asyncio.timeout(10):
            assert await waiting > first.fence
        assert first.lost
        await remote.aclose()


async def test_whoever_polls_is_answered() -> None:
    """Over plain HTTP."""
    admission = LocalAdmission()
    admission.configure("a", 1)
    async with hosted(admission) as server:
        first = await admission.acquire("a", lease=LEASE)
        json = [(b"content-type", b"application/json")]
        polling = asyncio.create_task(call(server.url, "POST", "/permits", json, BODY))
        await until(admission.waiting)
        stand_still()
        async with asyncio.timeout(10):
            answer = await polling
        assert (answer.status, answer.json["code"]) == (503, "unavailable")
        assert answer.json["retryable"] is True
        assert first.lost
        assert (await call(server.url, "POST", "/permits", json, BODY)).status == 201
