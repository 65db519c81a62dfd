"""The history of the limits: buckets that stay bounded, survive a restart, and say when nobody looked."""

from __future__ import annotations

import asyncio
from itertools import pairwise

from interlock.admission.local import LocalAdmission
from interlock.history import COARSE, FINE, MOST_LIMITS, PREFIX, History, Reading, Row
from interlock.provider.gate import ProviderGate
from interlock.stores.memory import MemoryStore
from interlock.telemetry.sampling import Sampler
from interlock.testing import VirtualClock
from interlock.testing.virtual_time import idle

START = 1_795_269_600.0
"""A whole hour."""


async def test_a_bucket_is_the_most_of_its_time() -> None:
    """What was taken and waited at most, the median wait, the longest, and the refusals."""
    clock = VirtualClock(START)
    history = History(MemoryStore(), clock)
    history.sample({"p": Reading(4, 3, 7)})
    for seconds in (0.1, 0.2, 4.0):
        history.waited("p", seconds)
    history.refused("p", 2)
    await clock.advance(9.0)
    history.sample({"p": Reading(2, 1, 0, longest=6.0)})
    [row] = history.series("p", START).rows
    assert (row.in_flight, row.waiting, row.capacity, row.refusals) == (3, 7, 2, 2)
    assert (row.waited, row.longest_ms) == (3, 6000)
    assert 200 <= row.median_ms <= 250
    await clock.advance(1.0)
    history.sample({"p": Reading(2, 0, 0)})
    assert history.series("p", START).at == [START, START + 10]
    assert history.series("p", START).rows[1] == Row(capacity=2)


async def test_an_hour_is_fine_and_a_day_is_coarse_and_no_more_is_kept() -> None:
    """A day and an hour of samples: a bounded number of buckets, in a bounded number of settings."""
    clock, store = VirtualClock(START), MemoryStore()
    history = History(store, clock)
    for minute in range(25 * 60):
        for _ in range(6):
            history.sample({"p": Reading(4, minute % 5, 0)})
            await clock.advance(10.0)
            await idle()
    now = clock.now()
    fine, coarse = history.series("p", now - 3600), history.series("p", now - 86_400)
    assert (fine.step, len(fine.at)) == (10, 360)
    assert (coarse.step, len(coarse.at)) == (60, 1440)
    assert coarse.at[-1] == now - 60
    kept = await store.items(PREFIX)
    assert len(kept) <= COARSE.span / COARSE.block + FINE.span / FINE.block + 4


async def test_a_write_a_minute_at_most() -> None:
    clock, store = VirtualClock(START), MemoryStore()
    writes: list[tuple[float, str]] = []
    write = store.set

    async def counted(key: str, value: str) -> None:
        writes.append((clock.now(), key))
        await write(key, value)

    store.set = counted  # type: ignore[method-assign]
    history = History(store, clock)
    for _ in range(601):
        history.sample({"p": Reading(4, 1, 0)})
        await clock.advance(1.0)
        await idle()
    moments = sorted({at for at, _ in writes})
    assert len(moments) == 10
    assert all(later - one >= 60 for one, later in pairwise(moments))
    assert max(sum(at == moment for at, _ in writes) for moment in moments) <= 4


async def test_what_was_survives_a_restart() -> None:
    """Also the bucket in hand, which goes on; the time between is missing, not zero."""
    clock, store = VirtualClock(START), MemoryStore()
    before = History(store, clock)
    before.sample({"p": Reading(4, 4, 9)})
    for _ in range(3):
        before.waited("p", 1.0)
    before.refused("p", 1)
    await clock.advance(3.0)
    await before.aclose()

    after = History(store, clock)
    await after.load()
    after.waited("p", 0.001)
    after.sample({"p": Reading(4, 1, 0)})
    [row] = after.series("p", START).rows
    assert (row.in_flight, row.waiting, row.waited, row.refusals) == (4, 9, 4, 1)
    assert 800 <= row.median_ms <= 1000
    await after.aclose()

    await clock.advance(100.0)
    later = History(store, clock)
    await later.load()
    later.sample({"p": Reading(4, 0, 0)})
    assert later.series("p", START).at == [START, START + 100]
    assert later.names() == ["p"]


async def test_what_is_damaged_or_old_is_passed_over() -> None:
    clock, store = VirtualClock(START), MemoryStore()
    old, damaged = f"{PREFIX}10:{round(START) - 7200}", f"{PREFIX}60:{round(START)}"
    await store.set(old, "{}")
    await store.set(damaged, '{"p": 3')
    await store.set(f"{PREFIX}nonsense", "?")
    history = History(store, clock)
    await history.load()
    assert history.names() == []
    assert list(await store.items(PREFIX)) == [damaged]
    history.sample({"p": Reading(None, 1, 0)})
    await history.aclose()
    again = History(store, clock)
    await again.load()
    assert len(again.series("p", START - 80_000).rows) == 1


async def test_limits_beyond_the_bound_have_no_history() -> None:
    clock = VirtualClock(START)
    history = History(MemoryStore(), clock)
    history.sample({f"x{number:03}": Reading(1, 0, 0) for number in range(MOST_LIMITS + 20)})
    history.waited("unknown", 1.0)
    history.refused("unknown", 1)
    assert len(history.names()) == MOST_LIMITS


async def test_the_sampler_looks_every_second_and_hears_every_wait() -> None:
    """In flight, the queue and its waits, 429s; not the limits of single agents. Others go on to be told."""
    clock, store = VirtualClock(START), MemoryStore()
    admission = LocalAdmission(clock=clock)
    heard: list[float] = []
    async with ProviderGate(admission=admission, default_cooldown=0.0) as gate:
        await gate.set_limit("p", 1)
        admission.configure("tools:coder", 1)
        admission.on_wait.append(lambda wait: lambda how, seconds: heard.append(seconds))
        history = History(store, clock)
        sampler = Sampler(history, admission, gate)
        sampler.start()
        first = await gate.acquire("p")
        waiting = gate.acquire("p", timeout=60.0)

        async def wait() -> None:
            (await waiting).release()

        task = asyncio.create_task(wait())
        await clock.advance(5.0)
        [row] = history.series("provider:p", START).rows
        assert (row.in_flight, row.waiting, row.waited, row.longest_ms) == (1, 1, 0, 5000)
        first.release()
        await task
        gate.report_rate_limit("p", 1.0)
        await clock.advance(1.0)
        [row] = history.series("provider:p", START).rows
        assert (row.waited, row.refusals, row.capacity) == (1, 1, 1)
        assert heard == [5.0]
        assert history.names() == ["provider:p"]
        await sampler.aclose()
        assert await store.items(PREFIX)
