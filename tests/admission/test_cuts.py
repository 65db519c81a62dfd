"""The connection to a server breaks at any byte, in either direction: nothing is lost, nothing done twice."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import pytest

from admission.harnesses import Hosted, hosted
from fault_proxy import Proxy, proxy
from interlock.admission.local import LocalAdmission
from interlock.admission.remote import RemoteAdmission

GREETING, REQUEST = 700, 400
"""Bytes that a new connection, and a permit on one that is there, take at the most."""


async def settled(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


async def cut_at(server: Hosted, wire: Proxy, admission: RemoteAdmission, requests: bool, place: int) -> int:
    """One permit, with the connection reset after *place* bytes; its fence."""
    (wire.requests if requests else wire.answers).cut_after(place)
    async with asyncio.timeout(10):
        permit = await admission.acquire("a", key=f"{requests} {place}")
    (holder,) = server.admission.holders("a")
    assert (holder.id, holder.fence) == (permit.id, permit.fence)
    async with asyncio.timeout(10):
        again = await admission.acquire("a", key=f"{requests} {place}")
    assert again is permit
    assert permit.release()
    assert not again.release()
    await settled(lambda: server.admission.limits()["a"].used == 0)
    wire.heal()
    return permit.fence


async def cut_everywhere(step: int) -> None:
    local = LocalAdmission()
    local.configure("a", 1)
    async with hosted(local) as server, proxy(server.url) as wire:
        admission = RemoteAdmission(wire.url)
        last = cuts = 0
        for requests in (True, False):
            for place in range(0, GREETING, step):
                if again := place % 2 or place > REQUEST:
                    wire.reset()  # the greeting is cut
                before = wire.connections + bool(again)
                fence = await cut_at(server, wire, admission, requests, place)
                cuts += wire.connections > before
                assert fence > last
                last = fence
        print(f"{cuts} connections were cut")
        assert cuts > 500 / step
        await admission.aclose()
        await settled(lambda: not server.admission.waiting())


async def test_a_connection_cut_at_any_byte(caplog: pytest.LogCaptureFixture) -> None:
    """At every thirteenth, while it is greeted, while a permit is asked for, granted, shared and released."""
    caplog.set_level(logging.CRITICAL)
    await cut_everywhere(13)


@pytest.mark.deep
@pytest.mark.timeout(600)
async def test_a_connection_cut_at_every_byte(caplog: pytest.LogCaptureFixture) -> None:
    """At each of them, three times."""
    caplog.set_level(logging.CRITICAL)
    for _ in range(3):
        await cut_everywhere(1)
