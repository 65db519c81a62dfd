"""What the first version of the gate left open, each as it went wrong."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from interlock import AcquireTimeout, ProviderGate, ProviderUsage, StoreError, Unavailable, ValidationError
from interlock.stores import MemoryStore
from interlock.testing.virtual_time import idle
from provider.conftest import Open
from provider.gates import Account, P

KEY = f"provider:{P}"


class Hanging(MemoryStore):
    """Settings that answer nothing while they hang."""

    def __init__(self, *, reads: bool = True, writes: bool = True) -> None:
        super().__init__()
        self.reads = reads
        self.writes = writes
        self.loads = 0

    async def items(self, prefix: str = "") -> dict[str, str]:
        self.loads += 1
        if not self.reads:
            await asyncio.Event().wait()
        return await super().items(prefix)

    async def set(self, key: str, value: str) -> None:
        if not self.writes:
            await asyncio.Event().wait()
        await super().set(key, value)


# -- settings ------------------------------------------------------------------------------------------------


async def test_a_cooldown_can_be_set_back_to_the_default(scene: Open) -> None:
    """C4.15: None forgets it, durably; without a limit there is nothing left to report."""
    store = MemoryStore()
    here = await scene(settings=store)
    await here.gate.set_cooldown(P, 5, cancelled=1, failed=9)
    await here.gate.set_cooldown(P, None)
    assert (here.gate.get_cooldown(P), here.gate.cooldowns()) == (None, {})
    assert await store.items() == {}
    await here.gate.set_limit(P, 1)
    assert here.gate.get_cooldown(P) == 0.35
    await here.release(await here.hold(), outcome="failed")
    await here.clock.advance(0.35)
    assert here.in_flight() == 0
    with pytest.raises(ValidationError, match="back to the default"):
        await here.gate.set_cooldown(P, None, failed=2)


async def test_a_cooldown_goes_back_to_the_files(scene: Open) -> None:
    here = await scene(settings=MemoryStore())
    here.gate.preset(P, 1, cooldown=3.0)
    await here.gate.set_cooldown(P, 5)
    await here.gate.set_cooldown(P, None)
    assert here.gate.get_cooldown(P) == 3.0


async def test_the_limit_that_a_provider_advertises_is_shown(scene: Open, account: Account) -> None:
    account.answer = ProviderUsage(1, 4)
    here = await scene(4, fetch_usage=account, default_cooldown=0)
    assert here.status().upstream_limit is None
    await here.holds(4)
    waiting = await here.queue()
    await here.release(here.callers[0].permit)
    assert not waiting.waits
    assert (here.status().upstream_in_flight, here.status().upstream_limit) == (1, 4)
    await here.clock.advance(60)
    assert here.status().upstream_limit is None


@pytest.mark.parametrize("limit", [0, -3])
async def test_a_stored_limit_of_nothing_was_never_set(scene: Open, limit: int) -> None:
    """It limits nothing, does not outlive the file's limit, and is not written back."""
    store = MemoryStore()
    await store.set(KEY, json.dumps({"limit": limit, "cooldown": 1.0}))
    here = await scene(settings=store)
    here.gate.preset(P, 4, cooldown=0)
    await here.gate.load()
    assert (here.gate.get_limit(P), here.status().configured_limit) == (4, 4)
    await here.gate.set_cooldown(P, 2.0)
    assert json.loads(await store.get(KEY) or "") == {"cooldown": 2.0}


async def test_what_a_later_429_says_is_kept_as_well(scene: Open) -> None:
    """After a cut the reason is that of the last 429, in memory and in the store alike."""
    store = MemoryStore()
    here = await scene(4, settings=store)
    here.gate.report_rate_limit(P)
    await idle()
    assert json.loads(await store.get(KEY) or "")["reason"] == "concurrency"
    here.gate.report_rate_limit(P, reason="rate")
    await idle()
    assert (here.status().limit, here.status().reason) == (3, "rate")
    again = await scene(settings=store)
    await again.gate.load()
    assert (again.status().limit, again.status().reason) == (3, "rate")


async def test_the_first_call_does_not_put_off_the_recovery(scene: Open) -> None:
    """What was scheduled when the settings were read stays where it is."""
    store = MemoryStore()
    await store.set(KEY, json.dumps({"limit": 4, "effective": 3, "reducedFrom": 4}))
    here = await scene(settings=store, recovery="probe", recovery_window=30.0)
    await here.gate.load()
    await here.clock.advance(29)
    await here.hold()
    assert here.gate.get_limit(P) == 3
    await here.clock.advance(1)
    assert here.gate.get_limit(P) == 4


async def test_a_timeout_is_checked_before_anything_is_read(scene: Open) -> None:
    here = await scene(settings=Hanging(reads=False))
    caller = await here.ask(timeout=-1)
    assert isinstance(caller.error, ValidationError)


# -- a store that hangs --------------------------------------------------------------------------------------


async def test_a_store_that_hangs_holds_nobody_past_the_timeout(scene: Open) -> None:
    """Each gives up after its own time, and those who have time go on waiting for one reading."""
    store = Hanging(reads=False)
    here = await scene(settings=store)
    callers = [await here.ask("c", timeout=timeout) for timeout in (0, 2.0, 5.0, None)]
    await here.clock.advance(1)
    assert isinstance(callers[0].error, Unavailable)
    await here.clock.advance(1)
    assert isinstance(callers[1].error, AcquireTimeout)
    assert "settings" in str(callers[1].error)
    await here.clock.advance(3)
    assert isinstance(callers[2].error, AcquireTimeout)
    await here.clock.advance(3600)
    assert callers[3].waits
    assert store.loads == 1
    await here.gate.aclose()
    await idle()
    assert isinstance(callers[3].error, Unavailable)


async def test_reading_the_settings_counts_as_waiting(scene: Open) -> None:
    """What it took is gone from the timeout, so that the whole wait is as long as was said."""
    read = asyncio.Event()

    class Slow(MemoryStore):
        async def items(self, prefix: str = "") -> dict[str, str]:
            await read.wait()
            return await super().items(prefix)

    here = await scene(settings=Slow())
    here.gate.preset(P, 1, cooldown=0)
    first = await here.ask("a", timeout=10.0)
    second = await here.ask("b", timeout=10.0)
    await here.clock.advance(4)
    read.set()
    await idle()
    assert (first.waits, second.waits) == (False, True)
    await here.clock.advance(5.9)
    assert second.waits
    await here.clock.advance(0.1)
    assert isinstance(second.error, AcquireTimeout)


async def test_closing_does_not_wait_for_ever_for_a_store(
    scene: Open, caplog: pytest.LogCaptureFixture
) -> None:
    """After ten seconds it names what was not written, and tells those who wait for it."""
    store = Hanging()
    here = await scene(4, settings=store)
    store.writes = False
    setting = asyncio.ensure_future(here.gate.set_limit(P, 2))
    also = asyncio.ensure_future(here.gate.set_limit("other", 2))
    await idle()
    closing = asyncio.ensure_future(here.gate.aclose())
    await here.clock.advance(9.9)
    assert not closing.done()
    with caplog.at_level(logging.WARNING):
        await here.clock.advance(0.1)
    assert closing.done()
    for waiting in (setting, also):
        assert isinstance(waiting.exception(), StoreError)
    assert f"{P!r}" in caplog.text
    assert "'other'" in caplog.text
    store.writes = True


async def test_a_cut_that_nobody_waits_for_is_written_before_the_end(scene: Open) -> None:
    """A 429 asks for no acknowledgement; closing waits until it is durable all the same."""
    store = MemoryStore()
    here = await scene(4, settings=store)
    here.gate.report_rate_limit(P)
    await here.gate.aclose()
    assert json.loads(await store.get(KEY) or "")["effective"] == 3


async def test_a_cut_before_anything_was_read_is_written_before_the_end(scene: Open) -> None:
    """Also that of a gate at which nobody has asked yet: the settings are read first."""
    store = MemoryStore()
    await store.set(KEY, json.dumps({"limit": 8, "cooldown": 1.0}))
    here = await scene(settings=store)
    here.gate.preset(P, 4, cooldown=0)
    here.gate.report_rate_limit(P)
    await here.gate.aclose()
    stored = json.loads(await store.get(KEY) or "")
    assert (stored["limit"], stored["effective"], stored["cooldown"]) == (8, 7, 1.0)


def test_a_cut_outside_of_a_loop_is_written_before_the_end() -> None:
    """A report between two runs of a loop finds none to write in."""
    store = MemoryStore()
    gate = ProviderGate(settings=store)
    asyncio.run(gate.set_limit(P, 4))
    gate.report_rate_limit(P)

    async def end() -> str:
        await gate.aclose()
        return await store.get(KEY) or ""

    assert json.loads(asyncio.run(end()))["effective"] == 3


def test_a_write_that_its_loop_cut_off_is_done_in_the_next() -> None:
    store = Hanging()
    gate = ProviderGate(settings=store)

    async def cut() -> None:
        await gate.set_limit(P, 4)
        store.writes = False
        gate.report_rate_limit(P)
        await idle()

    async def go_on() -> dict[str, str]:
        await gate.set_limit("other", 1)
        return await store.items()

    asyncio.run(cut())
    store.writes = True
    assert json.loads(asyncio.run(go_on())[KEY])["effective"] == 3


# -- a second loop -------------------------------------------------------------------------------------------


def twice(
    gate: ProviderGate,
    first: Callable[[], Awaitable[Any]],
    second: Callable[[], Awaitable[Any]],
) -> None:
    """Use *gate* in one `asyncio.run`, and then in another."""

    async def run(work: Callable[[], Awaitable[Any]]) -> None:
        async with asyncio.timeout(5):
            await work()

    asyncio.run(run(first))
    asyncio.run(run(second))


def test_the_watchdog_looks_in_a_second_loop_as_well() -> None:
    """Its timer went down with the first loop, and the gate took it for set."""
    reclaimed = asyncio.Event()
    gate = ProviderGate(slot_timeout=0.001, watchdog_interval=0.02, on_reclaim=lambda *told: reclaimed.set())

    async def use() -> None:
        async with gate.acquire(P):
            pass

    async def hang() -> None:
        async with gate.acquire(P) as permit:
            await reclaimed.wait()
            assert permit.lost

    twice(gate, use, hang)


def test_a_limit_recovers_in_a_second_loop_as_well() -> None:
    gate = ProviderGate(recovery="probe", recovery_window=0.02, default_cooldown=0)

    async def cut() -> None:
        await gate.set_limit(P, 2)
        gate.report_rate_limit(P, 0)

    async def recover() -> None:
        async with gate.acquire(P):
            assert gate.get_limit(P) == 1
        async with gate.acquire(P), gate.acquire(P):
            assert gate.get_limit(P) == 2

    twice(gate, cut, recover)


def test_usage_is_asked_in_a_second_loop_as_well() -> None:
    """A question and a cadence that the first loop took with it do not keep the next from being asked."""
    answers: list[Any] = [None]

    async def usage(provider_id: str) -> ProviderUsage | None:
        return answers[-1] or await asyncio.get_running_loop().create_future()

    gate = ProviderGate(fetch_usage=usage, usage_repoll=0.02, default_cooldown=0)
    gate.preset(P, 2, cooldown=0)

    async def take() -> None:
        async with gate.acquire(P):
            pass

    async def wait_in_vain() -> None:
        async with gate.acquire(P), gate.acquire(P):
            waiting = asyncio.ensure_future(take())
            await idle()
        await idle()
        assert not waiting.done()
        waiting.cancel()

    async def come_in() -> None:
        answers.append(ProviderUsage(0))
        async with gate.acquire(P), gate.acquire(P):
            waiting = asyncio.ensure_future(take())
            await idle()
        await waiting

    twice(gate, wait_in_vain, come_in)
