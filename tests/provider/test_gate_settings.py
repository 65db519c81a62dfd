"""What a provider gate remembers over a restart, and when it reads it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from interlock import StoreError, Unavailable
from interlock.admission.local import LocalAdmission
from interlock.stores import MemoryStore, open_store
from interlock.testing import VirtualClock
from interlock.testing.virtual_time import idle
from provider.conftest import Open
from provider.gates import START, P, Scene

KEY = f"provider:{P}"


@pytest.fixture(params=["memory", "sqlite"])
async def restart(request: pytest.FixtureRequest, tmp_path: Path, scene: Open) -> AsyncIterator[Open]:
    """``await restart(**options)`` ends the gate there is, and opens another over the same settings."""
    gates: list[Scene] = []
    stores: list[Any] = []

    async def restart_(limit: int | None = None, **options: Any) -> Scene:
        if gates:
            await gates[-1].gate.aclose()
        if request.param == "sqlite":
            if stores:
                await stores[-1].aclose()
            stores.append(await open_store(f"sqlite:///{tmp_path}/interlock.db"))
        elif not stores:
            stores.append(MemoryStore())
        gates.append(await scene(limit, settings=stores[-1], **options))
        return gates[-1]

    yield restart_
    for here in gates:
        await here.end()
    await stores[-1].aclose()


class Broken(MemoryStore):
    """Settings that fail while `error` is set."""

    error: Exception | None = None
    loads = 0

    def _check_open(self) -> None:
        if self.error is not None:
            raise self.error

    async def items(self, prefix: str = "") -> dict[str, str]:
        self.loads += 1
        await asyncio.sleep(0)
        return await super().items(prefix)


# -- what survives -------------------------------------------------------------------------------


async def test_everything_survives_a_restart(restart: Open) -> None:
    """The operator's limit, the one in force, what it was, why, the notice, and the cooldowns."""
    here = await restart(8)
    await here.gate.set_cooldown(P, 0.5, cancelled=0.2, failed=2.0)
    for _ in range(3):
        here.gate.report_rate_limit(P, 60)
    before = here.status()
    here = await restart()
    await here.gate.load()
    after = here.status()
    assert (after.limit, after.configured_limit, after.auto_reduced_from) == (5, 8, 8)
    assert after.notice == before.notice is not None
    assert (after.auto_reduced, after.reason, after.cooldown) == (True, "concurrency", 0.5)
    assert not after.paused
    for outcome, seconds in (("success", 0.5), ("cancelled", 0.2), ("failed", 2.0)):
        await here.release(await here.hold(), outcome=outcome)
        await here.clock.advance(seconds - 0.001)
        assert here.status().cooling == 1
        await here.clock.advance(0.001)
        assert here.status().cooling == 0


async def test_what_the_operator_undid_stays_undone(restart: Open) -> None:
    """A limit that was set after a cut has no reduction; a removed one is gone, its cooldown is not."""
    here = await restart(4)
    await here.gate.set_limit("gone", 2)
    await here.gate.set_cooldown("gone", 7)
    here.gate.report_rate_limit(P, 0)
    await here.gate.set_limit(P, 3)
    await here.gate.remove_limit("gone")
    here = await restart()
    await here.gate.load()
    assert (here.status().limit, here.status().auto_reduced) == (3, False)
    assert here.gate.limits() == {P: 3}
    assert here.gate.cooldowns() == {"gone": 7, P: 0.35}


async def test_recovery_goes_on_after_a_restart(restart: Open) -> None:
    """From where it was, towards the operator's limit, and each step survives as well."""
    here = await restart(4, recovery="probe")
    for _ in range(3):
        here.gate.report_rate_limit(P, 0)
    await here.clock.advance(30)
    here = await restart(recovery="probe")
    await here.gate.load()
    assert (here.status().limit, here.status().auto_reduced_from) == (2, 4)
    await here.clock.advance(60)
    assert (here.status().limit, here.status().auto_reduced) == (4, False)
    here = await restart(recovery="probe")
    await here.gate.load()
    assert (here.status().limit, here.status().auto_reduced) == (4, False)


async def test_a_cut_is_written_before_the_gate_has_closed(restart: Open) -> None:
    """Though nobody awaited it."""
    here = await restart(4)
    here.gate.report_rate_limit(P, 0)
    here = await restart()
    await here.gate.load()
    assert here.gate.get_limit(P) == 3


@pytest.mark.parametrize("provider_id", ["cooldown:x", "provider:x", "a%_b", "ä 🙂", "x" * 128])
async def test_every_id_survives(restart: Open, provider_id: str) -> None:
    """Limit and cooldown of one provider are not mistaken for those of another."""
    here = await restart()
    await here.gate.set_limit(provider_id, 3)
    await here.gate.set_cooldown("x", 2)
    here = await restart()
    await here.gate.load()
    assert here.gate.limits() == {provider_id: 3}
    assert here.gate.cooldowns()["x"] == 2


# -- when it is loaded ---------------------------------------------------------------------------


async def test_the_first_acquire_loads(restart: Open) -> None:
    """Nobody is let in before the limits are known, though nobody called load()."""
    await restart(2)
    here = await restart()
    assert here.gate.get_limit(P) is None
    calls = [asyncio.ensure_future(here.gate.acquire(P, f"c{number}")) for number in range(4)]
    await asyncio.wait(calls[:2])
    assert (here.status().in_flight, here.status().queued) == (2, 2)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert [call.result().release() for call in calls[:2]] == [True, True]


async def test_the_first_setting_loads(restart: Open) -> None:
    """A change before the first load is not undone by it."""
    here = await restart(2)
    await here.gate.set_limit("other", 1)
    here = await restart()
    await here.gate.set_cooldown(P, 9)
    assert here.gate.limits() == {"other": 1, P: 2}
    here = await restart()
    await here.gate.set_limit(P, 5)
    await here.gate.load()
    assert (here.gate.get_limit(P), here.gate.get_cooldown(P)) == (5, 9)
    here = await restart()
    assert await here.gate.remove_limit(P) is True


async def test_it_is_loaded_once(scene: Open) -> None:
    """Also by several who ask at the same time."""
    store = Broken()
    await store.set(KEY, '{"limit":2}')
    here = await scene(settings=store)
    callers = [await here.ask(f"c{number}") for number in range(3)]
    assert [caller.waits for caller in callers] == [False, False, True]
    await here.gate.load()
    loads = store.loads
    await here.gate.load()
    await here.ask()
    assert store.loads == loads


async def test_nobody_is_let_in_while_the_settings_are_unknown(scene: Open) -> None:
    """A store that fails fails the acquire; the next one tries again."""
    store = Broken()
    await store.set(KEY, '{"limit":1}')
    store.error = StoreError("the disk is gone")
    here = await scene(settings=store)
    with pytest.raises(StoreError, match="disk is gone"):
        await here.gate.acquire(P)
    with pytest.raises(StoreError, match="disk is gone"):
        await here.gate.set_limit(P, 4)
    assert here.gate.get_limit(P) is None
    store.error = None
    await here.hold()
    await here.queue()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "4",
        "null",
        "[]",
        "{",
        "limit: 4",
        '{"limit": "4"}',
        '{"limit": 4.5}',
        '{"limit": true}',
        '{"limit": NaN}',
        '{"limit": 0}',
        '{"limit": -3}',
        '{"limit": 4, "cooldown": "soon"}',
        '{"cooldown": -1}',
        "\0",
        "[" * 10_000,
    ],
    ids=lambda text: repr(text)[:50],
)
async def test_an_unreadable_record_is_ignored_and_left_alone(restart: Open, text: str) -> None:
    """Whatever it holds, the gate works, knows every other record, and does not write it anew."""
    here = await restart(2)
    await here.settings.set("provider:odd", text)
    here = await restart()
    await here.gate.load()
    assert here.gate.limits() == {P: 2}
    assert here.gate.cooldowns() == {P: 0.35}
    await here.gate.set_limit(P, 3)
    here = await restart()
    assert await here.settings.get("provider:odd") == text
    await here.gate.set_limit("odd", 7)
    here = await restart()
    await here.gate.load()
    assert here.gate.limits() == {"odd": 7, P: 3}


@pytest.mark.parametrize(
    "cooldowns",
    [
        '"cooldown":-1',
        '"cooldown":1e9',
        '"cooldown":1,"cooldownFailed":-1',
        '"cooldown":1,"cooldownCancelled":1e9',
    ],
)
async def test_a_cooldown_out_of_range_is_ignored(scene: Open, cooldowns: str) -> None:
    """The limit beside it and the records after it are loaded all the same."""
    store = MemoryStore()
    await store.set("provider:a", f'{{"limit":4,{cooldowns}}}')
    await store.set(KEY, '{"limit":2}')
    here = await scene(settings=store)
    await here.gate.load()
    assert here.gate.limits() == {"a": 4, P: 2}
    assert here.gate.cooldowns() == {"a": 0.35, P: 0.35}


@pytest.mark.parametrize("key", ["provider:", "provider:" + "x" * 129], ids=["empty", "long"])
async def test_a_record_of_an_impossible_id_is_ignored_and_left_alone(scene: Open, key: str) -> None:
    """It cannot be one of ours."""
    store = MemoryStore()
    await store.set(key, '{"limit":1}')
    await store.set(KEY, '{"limit":2}')
    here = await scene(settings=store)
    await here.gate.load()
    assert here.gate.limits() == {P: 2}
    assert await store.get(key) == '{"limit":1}'


@pytest.mark.parametrize(
    ("text", "limit", "reduced_from"),
    [
        ('{"limit":4,"effective":9,"reducedFrom":9}', 4, None),
        ('{"limit":4,"effective":0,"reducedFrom":4}', 4, None),
        ('{"limit":4,"effective":4,"reducedFrom":4}', 4, None),
        ('{"limit":4,"effective":2}', 2, 4),
        ('{"limit":4,"effective":2,"reason":"boredom"}', 2, 4),
        ('{"limit":4,"novelty":1}', 4, None),
        ('{"limit":4,"effective":2,"reducedFrom":-7}', 2, 4),
    ],
)
async def test_a_record_that_contradicts_itself(
    scene: Open, text: str, limit: int, reduced_from: int | None
) -> None:
    """Of two numbers that cannot be true together, the operator's stands."""
    store = MemoryStore()
    await store.set(KEY, text)
    here = await scene(settings=store)
    await here.gate.load()
    status = here.status()
    assert (status.limit, status.configured_limit, status.auto_reduced_from) == (limit, 4, reduced_from)


async def test_the_rest_of_the_store_is_left_alone(scene: Open) -> None:
    """Only keys of providers are read or written."""
    store = MemoryStore()
    others = {"provider": "{}", "providerx:y": '{"limit":1}', "token:provider:x": "secret"}
    for key, value in others.items():
        await store.set(key, value)
    here = await scene(3, settings=store)
    assert here.gate.limits() == {P: 3}
    await here.gate.remove_limit(P)
    assert await store.items() == others


async def test_a_gate_that_closes_while_it_loads(scene: Open) -> None:
    """Who waits for the settings is turned away like any other."""

    class Slow(MemoryStore):
        ready = asyncio.Event()

        async def items(self, prefix: str = "") -> dict[str, str]:
            await self.ready.wait()
            return await super().items(prefix)

    store = Slow()
    here = await scene(settings=store, admission=LocalAdmission(clock=VirtualClock(START)))
    caller = await here.ask()
    await here.gate.aclose()
    store.ready.set()
    await idle()
    assert isinstance(caller.error, Unavailable)


# -- what a file says ----------------------------------------------------------------------------


async def test_a_file_s_limit_holds_until_one_is_set(restart: Open) -> None:
    """What was set at run time wins over it after a restart."""
    here = await restart()
    here.gate.preset(P, 4, cooldown=1.0, failed=3.0)
    await here.gate.load()
    assert (here.status().limit, here.status().cooldown) == (4, 1.0)
    await here.gate.set_limit(P, 6)
    await here.gate.set_cooldown(P, 0.1)
    here = await restart()
    here.gate.preset(P, 4, cooldown=1.0)
    await here.gate.load()
    assert (here.status().limit, here.status().cooldown) == (6, 0.1)


async def test_a_file_that_changes_is_heard(restart: Open) -> None:
    """Nothing was set at run time: the file is all there is."""
    for limit in (4, 8):
        here = await restart()
        here.gate.preset(P, limit, cooldown=0.5)
        await here.gate.load()
        assert here.status().configured_limit == limit


@pytest.mark.parametrize("way", ["set_cooldown", "429"])
async def test_a_file_s_limit_is_not_stored_as_the_operator_s(restart: Open, way: str) -> None:
    """A cooldown that was set, or a cut, is no reason to miss the file's next limit."""
    here = await restart()
    here.gate.preset(P, 4, cooldown=0.5)
    await here.gate.load()
    if way == "429":
        here.gate.report_rate_limit(P, 0)
    else:
        await here.gate.set_cooldown(P, 3)
    here = await restart()
    here.gate.preset(P, 8, cooldown=0.5)
    await here.gate.load()
    assert here.status().configured_limit == 8


async def test_a_removal_wins_over_the_file(restart: Open) -> None:
    """It was done at run time like any other change."""
    here = await restart()
    here.gate.preset(P, 4, cooldown=0.5)
    await here.gate.remove_limit(P)
    here = await restart()
    here.gate.preset(P, 4, cooldown=0.5)
    await here.gate.load()
    assert here.gate.get_limit(P) is None


@pytest.mark.parametrize("limit", [4, 8])
async def test_a_cut_of_the_file_s_limit_survives(restart: Open, limit: int) -> None:
    """While the file says the same; a cut of another limit than it says now is void."""
    here = await restart()
    here.gate.preset(P, 4, cooldown=0.5)
    await here.gate.load()
    here.gate.report_rate_limit(P, 0)
    here = await restart()
    here.gate.preset(P, limit, cooldown=0.5)
    await here.gate.load()
    status = here.status()
    assert (status.limit, status.configured_limit, status.auto_reduced) == (
        (3, 4, True) if limit == 4 else (8, 8, False)
    )


async def test_a_report_before_the_first_load(restart: Open) -> None:
    """The operator's stored limit is known before anything is written over it."""
    await restart(8)
    here = await restart()
    here.gate.preset(P, 4, cooldown=0.5)
    here.gate.report_rate_limit(P, 0)
    here = await restart()
    await here.gate.load()
    assert here.status().configured_limit == 8


async def test_a_report_before_the_first_load_is_remembered(restart: Open) -> None:
    """Also where nothing was stored: once the settings are known, the cut is written."""
    here = await restart()
    here.gate.preset(P, 4, cooldown=0.5)
    here.gate.report_rate_limit(P, 0)
    await here.gate.load()
    assert here.gate.get_limit(P) == 3
    here = await restart()
    here.gate.preset(P, 4, cooldown=0.5)
    await here.gate.load()
    assert here.gate.get_limit(P) == 3


async def test_a_report_before_the_first_load_cuts_what_is_stored(restart: Open) -> None:
    """Its reason is told, too."""
    await restart(8)
    here = await restart()
    here.gate.preset(P, 4, cooldown=0.5)
    here.gate.report_rate_limit(P, 0)
    await here.gate.load()
    status = here.status()
    assert (status.limit, status.configured_limit, status.auto_reduced_from) == (7, 8, 8)
    assert status.reason == "concurrency"
