"""Behind a transaction pooler a store keeps the same rules: nothing is left with a connection."""

import asyncio

import pytest

from interlock.core.sessions import NewEvent, Session
from interlock.stores import open_store
from interlock.testing.store_conformance import CASES, Case, run
from poolers import pooler


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=() if n % 3 == 0 else pytest.mark.deep) for n, case in enumerate(CASES)],
    ids=lambda case: case.name,
)
async def test_it_conforms_behind_a_pooler(case: Case, postgres_url: str) -> None:
    """One case, with another connection for every transaction; no named statement, no LISTEN."""
    async with pooler(postgres_url) as pool:
        async with await open_store(pool.url) as store:
            await run(case, store)
        assert pool.unbearable == []


async def test_a_pooler_is_found_out(postgres_url: str) -> None:
    """So several stores share its few connections, and each reads what the others wrote."""
    async with pooler(postgres_url, 2) as pool:
        stores = [await open_store(pool.url) for _ in range(3)]
        await stores[0].create_session(Session("s", "active"))

        async def work(n: int) -> None:
            for k in range(20):
                await stores[n].append("s", [NewEvent(f"{n}/{k}", "message_sent", 1.0)])
                assert len(await stores[(n + 1) % 3].get_events("s")) > k

        await asyncio.gather(*map(work, range(3)))
        assert [one.sequence for one in await stores[1].get_events("s")] == list(range(1, 61))
        for store in stores:
            await store.aclose()
        assert pool.lent == {0, 1}
        assert pool.unbearable == []
