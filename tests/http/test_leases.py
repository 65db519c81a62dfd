"""What a restarted server knows about leases: durable before it is said, one write for each period."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from interlock.errors import StoreError
from interlock.http.permits.leases import LeaseRecord
from interlock.stores.memory import MemoryStore
from interlock.testing import VirtualClock


class Slow(MemoryStore):
    """Counts its writes; each takes as long as the test wants."""

    def __init__(self) -> None:
        super().__init__()
        self.writes = 0
        self.open = asyncio.Event()
        self.open.set()
        self.error: Exception | None = None

    async def set(self, key: str, value: str) -> None:
        self.writes += 1
        await self.open.wait()
        if self.error is not None:
            raise self.error
        await super().set(key, value)


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock(1000.0)


async def test_one_write_for_each_limit_and_period(clock: VirtualClock) -> None:
    """However many grants there are."""
    store = Slow()
    record = LeaseRecord(store, clock.now)
    for _ in range(1000):
        await record.cover(("a", "b"), clock.now() + 10, 10)
        await clock.advance(0.1)
    assert 2 * 9 <= store.writes <= 2 * 11


async def test_a_longer_lease_is_written_at_once(clock: VirtualClock) -> None:
    """Also where the end that is written would do: how long one may be bounds the wait after a restart."""
    record = LeaseRecord(MemoryStore(), clock.now)
    await record.cover(("a",), clock.now() + 10, 10)
    assert record.covers(("a",), clock.now() + 15, 10)
    assert not record.covers(("a",), clock.now() + 15, 15)
    assert not record.covers(("a", "b"), clock.now() + 1, 1)


async def test_many_wait_for_one_write(clock: VirtualClock) -> None:
    """And who is cancelled meanwhile does not end it for the others."""
    store = Slow()
    store.open.clear()
    record = LeaseRecord(store, clock.now)
    waiting = [asyncio.create_task(record.cover(("a",), 1010.0, 10)) for _ in range(5)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting[1:])
    store.open.set()
    await asyncio.gather(*waiting[1:])
    assert store.writes == 1


async def test_a_failed_write_covers_nothing(clock: VirtualClock) -> None:
    """Everybody who waited for it learns so; the next one tries again."""
    store = Slow()
    store.error = StoreError("the disk is full")
    record = LeaseRecord(store, clock.now)
    results: list[Any] = await asyncio.gather(
        *(record.cover(("a",), 1010.0, 10) for _ in range(3)), return_exceptions=True
    )
    assert all(isinstance(one, StoreError) for one in results)
    assert not record.covers(("a",), 1010.0, 10)
    store.error = None
    await record.cover(("a",), 1010.0, 10)
    assert record.covers(("a",), 1010.0, 10)


async def test_a_later_start_waits_no_longer_than_a_lease(clock: VirtualClock) -> None:
    """What is written reaches further, and the clock may have been set back."""
    store = MemoryStore()
    await LeaseRecord(store, clock.now).cover(("a",), clock.now() + 10, 10)
    assert await LeaseRecord(store, clock.now).load() == {"a": 1010.0}
    earlier = VirtualClock(5.0)
    assert await LeaseRecord(store, earlier.now).load() == {"a": 15.0}
    await clock.advance(30)
    assert await LeaseRecord(store, clock.now).load() == {}


async def test_a_second_start_remembers_the_first(clock: VirtualClock) -> None:
    """Shorter leases of today do not make less of the long one from before, which may still be out."""
    store = MemoryStore()
    await LeaseRecord(store, clock.now).cover(("a",), 1030.0, 30)
    second = LeaseRecord(store, clock.now)
    assert await second.load() == {"a": 1030.0}
    await second.cover(("a",), 1001.0, 1)
    assert await LeaseRecord(store, clock.now).load() == {"a": 1030.0}


async def test_a_clean_end_leaves_what_is_held(clock: VirtualClock) -> None:
    """And nothing else."""
    store = MemoryStore()
    record = LeaseRecord(store, clock.now)
    await record.cover(("a", "b"), clock.now() + 10, 10)
    await record.settle({"b": 1003.0})
    assert await LeaseRecord(store, clock.now).load() == {"b": 1003.0}


@pytest.mark.parametrize(
    "value", ["", "{}", "[]", "null", '{"until": "x", "lease": 1}', '{"until": NaN, "lease": 1}']
)
async def test_an_unreadable_entry_is_waited_for(clock: VirtualClock, value: str) -> None:
    """It says at least that somebody may hold the limit."""
    store = MemoryStore()
    await store.set("lease:a", value)
    assert await LeaseRecord(store, clock.now).load() == {"a": 1060.0}
