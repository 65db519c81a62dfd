"""The way to PostgreSQL breaks at any byte, or goes silent: what is asked happens once, and in time."""

import asyncio
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest

from interlock.core.sessions import Run, RunChange, Session
from interlock.errors import StoreError
from interlock.stores.postgres import PostgresStore
from stores.postgres_scenes import event, opened
from wires import Wire, wire


@pytest.fixture
def chance() -> random.Random:
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"seed: {seed}")
    return random.Random(seed)


@asynccontextmanager
async def over_a_wire(url: str) -> AsyncIterator[tuple[Wire, PostgresStore]]:
    at = urlsplit(url)
    async with wire(at.hostname or "", at.port or 5432) as between:
        store = await opened(f"postgresql://{at.username}@127.0.0.1:{between.here}{at.path}")
        async with store:
            yield between, store


async def cut_and_check(url: str, chance: random.Random, cuts: int) -> None:
    """Each call gives what it would have given over a whole wire: done once, and in its order."""
    async with over_a_wire(url) as (between, store):
        await store.create_session(Session("s", "active"))
        n = 0
        while between.cuts < cuts:
            between.cut_after(chance.choice(("there", "back")), chance.randrange(1, 3000))
            for _ in range(3):
                n += 1
                run, new = await store.submit_run(Run(f"r{n}", "s"), [event(f"q{n}")])
                assert (run.number, new) == (n, True)
                started = await store.change_run(run.id, RunChange("start", 1.0))
                assert started is not None
                assert started.attempt == 1
                last = await store.append("s", [event(f"e{n}")], run_id=run.id, attempt=1)
                assert last == 2 * n
                done = await store.change_run(run.id, RunChange("complete", 2.0, 1, token_usage={"n": 1}))
                assert done is not None
                assert done.token_usage == {"n": 1}
                assert (await store.get_run(run.id)).status == "completed"
        log = await store.get_events("s")
        assert [one.id for one in log] == [f"{kind}{k}" for k in range(1, n + 1) for kind in "qe"]


async def test_a_wire_that_is_cut_at_any_byte(postgres_url: str, chance: random.Random) -> None:
    """Before, in and after every message, there and back."""
    await cut_and_check(postgres_url, chance, 60)


@pytest.mark.deep
@pytest.mark.timeout(900)
async def test_a_wire_that_is_cut_at_very_many_bytes(postgres_url: str, chance: random.Random) -> None:
    """The same, as often as D2 asks for."""
    await cut_and_check(postgres_url, chance, 2_000)


async def test_a_wire_that_is_silent(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody is told in time, and nobody is given what was meant for another when it speaks again."""
    for module in ("writer", "readers"):
        monkeypatch.setattr(f"interlock.stores.postgres.{module}.TRANSACTION_SECONDS", 0.4)
    monkeypatch.setattr("interlock.stores.postgres.link.CONNECT_SECONDS", 0.4)
    monkeypatch.setattr("interlock.stores.postgres.writer.PATIENCE", 0.8)
    async with over_a_wire(postgres_url) as (between, store):
        await store.set("k", "before")
        assert await store.get("k") == "before"
        between.silence()
        calls = [store.set("k", "silent"), store.get("k"), store.get("x"), store.list_sessions()]
        async with asyncio.timeout(10):
            told = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(one) for one in told] == [StoreError] * 4
        assert "does not answer" in str(told[1])
        between.speak()
        assert (await store.get("x"), await store.list_sessions()) == (None, [])
        await store.set("k", "after")
        assert await store.get("k") == "after"
