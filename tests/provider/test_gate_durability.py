"""When a provider gate may say that a change is durable: not before the store has said so."""

from __future__ import annotations

import asyncio
import json

import pytest

from interlock import StoreError
from interlock.stores import MemoryStore
from interlock.testing.virtual_time import idle
from provider.conftest import Open
from provider.gates import P

KEY = f"provider:{P}"


class Disk(MemoryStore):
    """Settings whose writes happen when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.pending: list[asyncio.Future[None]] = []
        self.written: list[tuple[str, str | None]] = []
        self.free = False

    async def write(self) -> None:
        """Let the write that came first happen."""
        self.pending.pop(0).set_result(None)
        await idle()

    async def let_go(self) -> None:
        """Let every write happen, from now on at once."""
        self.free = True
        while self.pending:
            await self.write()

    async def _turn(self) -> None:
        if not self.free:
            self.pending.append(asyncio.get_running_loop().create_future())
            await self.pending[-1]

    async def set(self, key: str, value: str) -> None:
        await self._turn()
        await super().set(key, value)
        self.written.append((key, value))

    async def delete(self, key: str) -> None:
        await self._turn()
        await super().delete(key)
        self.written.append((key, None))


class Broken(MemoryStore):
    """Settings that fail while `error` is set."""

    error: Exception | None = None

    def _check_open(self) -> None:
        if self.error is not None:
            raise self.error


# -- when it is durable --------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["set_limit", "set_cooldown", "remove_limit"])
async def test_a_change_returns_when_it_is_durable(scene: Open, change: str) -> None:
    """It is in force before that, and acknowledged only then."""
    disk = Disk()
    disk.free = True
    here = await scene(9, settings=disk)
    disk.free, before = False, list(disk.written)
    calls = {
        "set_limit": lambda: here.gate.set_limit(P, 4),
        "set_cooldown": lambda: here.gate.set_cooldown(P, 4),
        "remove_limit": lambda: here.gate.remove_limit(P),
    }
    task = asyncio.ensure_future(calls[change]())
    await here.clock.advance(3600)
    assert not task.done()
    assert disk.written == before
    in_force = {"set_limit": (4, 0.35), "set_cooldown": (9, 4), "remove_limit": (None, None)}
    assert (here.gate.get_limit(P), here.gate.get_cooldown(P)) == in_force[change]
    await disk.write()
    assert task.done()
    assert len(disk.written) == len(before) + 1
    await disk.let_go()


async def test_many_quick_changes_land_in_order(scene: Open) -> None:
    """One write at a time, the latest last; each change returns when it, or a later one, is durable."""
    disk = Disk()
    here = await scene(settings=disk)
    tasks = []
    for limit in range(1, 51):
        tasks.append(asyncio.ensure_future(here.gate.set_limit(P, limit)))
        if limit % 10 == 0:
            await idle()
            assert len(disk.pending) == 1
    await disk.write()
    assert tasks[0].done()
    assert not tasks[-1].done()
    await disk.let_go()
    assert all(task.done() for task in tasks)
    written = [value for _, value in disk.written]
    limits = [json.loads(value)["limit"] for value in written if value]
    assert limits == sorted(limits)
    assert limits[-1] == 50


async def test_providers_are_written_in_turn(scene: Open) -> None:
    """One that changes all the time does not keep another from becoming durable."""
    disk = Disk()
    here = await scene(settings=disk)
    other = asyncio.ensure_future(here.gate.set_limit("other", 1))
    busy = []
    for limit in range(1, 6):
        busy.append(asyncio.ensure_future(here.gate.set_limit(P, limit)))
        await idle()
        await disk.write()
    assert other.done()
    await disk.let_go()
    assert all(task.done() for task in busy)


async def test_a_removal_does_not_overtake_a_change(scene: Open) -> None:
    """What is gone at the end is gone from the store, too, and the other way round."""
    disk = Disk()
    here = await scene(settings=disk)
    tasks = [asyncio.ensure_future(here.gate.set_limit(P, 4))]
    await idle()
    tasks.append(asyncio.ensure_future(here.gate.remove_limit(P)))
    await idle()
    await disk.let_go()
    assert disk.written == [(KEY, '{"limit":4}'), (KEY, None)]
    assert all(task.done() for task in tasks)
    assert await disk.items() == {}


@pytest.mark.parametrize(
    ("error", "raised"),
    [(OSError(28, "no space left"), StoreError), (StoreError("the disk is gone"), StoreError)],
    ids=["os", "store"],
)
async def test_a_failing_write_is_told(
    scene: Open, error: Exception, raised: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    """The change is in force, but its caller learns that it is not durable; the next one works."""
    store = Broken()
    here = await scene(4, settings=store)
    store.error = error
    with pytest.raises(raised, match=r"no space left|disk is gone"):
        await here.gate.set_limit(P, 2)
    with pytest.raises(raised):
        await here.gate.set_cooldown(P, 3)
    assert (here.gate.get_limit(P), here.gate.get_cooldown(P)) == (2, 3)
    assert "were not written" in caplog.text
    with pytest.raises(raised):
        await here.gate.remove_limit(P)
    assert here.gate.get_limit(P) is None
    store.error = None
    await here.gate.set_limit(P, 6)
    assert json.loads(await store.get(KEY) or "") == {"limit": 6, "cooldown": 3}


async def test_every_caller_of_a_failed_write_is_told(scene: Open) -> None:
    """Several changes that one write would have made durable."""
    store = Broken()
    here = await scene(4, settings=store)
    store.error = OSError("no")
    tasks = [asyncio.ensure_future(here.gate.set_limit(P, limit)) for limit in (1, 2, 3)]
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [StoreError] * 3
    store.error = None


async def test_a_cut_that_cannot_be_written_holds_all_the_same(scene: Open) -> None:
    """A full disk is no reason to go on as if there had been no 429."""
    store = Broken()
    here = await scene(4, settings=store)
    store.error = OSError("no")
    here.gate.report_rate_limit(P, 5)
    await idle()
    assert (here.status().limit, here.status().paused) == (3, True)
    store.error = None


async def test_who_gives_up_waiting_for_the_disk(scene: Open) -> None:
    """A cancelled change is in force and is written all the same."""
    disk = Disk()
    here = await scene(settings=disk)
    task = asyncio.ensure_future(here.gate.set_limit(P, 4))
    await idle()
    task.cancel()
    await idle()
    assert task.cancelled()
    assert here.gate.get_limit(P) == 4
    await disk.let_go()
    assert await disk.get(KEY) == '{"limit":4}'


async def test_closing_waits_for_what_is_to_be_written(scene: Open) -> None:
    """When aclose() has returned, nothing is on its way any more."""
    disk = Disk()
    here = await scene(settings=disk)
    task = asyncio.ensure_future(here.gate.set_limit(P, 4))
    await idle()
    closing = asyncio.ensure_future(here.gate.aclose())
    await idle()
    assert not closing.done()
    await disk.let_go()
    await closing
    await task
    assert await disk.get(KEY) == '{"limit":4}'
