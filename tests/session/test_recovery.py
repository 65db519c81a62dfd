"""What a restart finds, and what it does about it; and a store that fails in the middle."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from interlock.core.sessions import RunChange
from interlock.errors import (
    InvalidOperation,
    InvalidStatus,
    RunInterrupted,
    RunNotFound,
    SessionNotFound,
    StoreError,
    Unavailable,
    ValidationError,
)
from interlock.session.server import SessionServer
from interlock.session.sessions import Sessions
from interlock.stores import open_store
from interlock.stores.memory import MemoryStore
from interlock.testing import VirtualClock, idle
from session.scenes import Puppet, echo, scene, turns_until

if TYPE_CHECKING:
    from interlock.ports import Store


class Mortal:
    """The store as a process has it that dies: from then on nothing that it does arrives."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.dead = False

    def __getattr__(self, name: str) -> Any:
        if self.dead:
            raise Unavailable("the process is dead")
        return getattr(self.store, name)


async def died(store: Store, retry: list[str | None]) -> list[str]:
    """A session with a run for each of *retry*, all but the last in flight, whose server is no more."""
    mortal: Any = Mortal(store)
    server = await SessionServer.start(mortal, Puppet(), session_id="s", max_concurrent_runs=len(retry) - 1)
    ids = [await server.submit_run({"n": n}, retry=one) for n, one in enumerate(retry)]  # type: ignore[arg-type]
    attempts = server._scheduler.attempts
    await turns_until(lambda: len(attempts) == len(ids) - 1)
    await turns_until(lambda: all(attempt._work for attempt in attempts.values()))
    mortal.dead = True
    await server.close(timeout=0)
    return ids


@pytest.mark.parametrize("url", ["memory:", "sqlite"])
async def test_what_a_crash_leaves_is_settled(url: str, tmp_path: Path) -> None:
    """What waited runs; what was in flight is interrupted, or runs again in its place."""
    store = await open_store("memory:" if url == "memory:" else f"sqlite:///{tmp_path}/x.db")
    ids = await died(store, [None, "on_crash", None, None])
    assert [(await store.get_run(one)).status for one in ids] == ["running"] * 3 + ["pending"]
    order: list[str] = []

    async def agent(run: Any) -> Any:
        order.append(run.run_id)
        return run.attempt

    server = await SessionServer.attach(store, agent, "s")
    for run_id in (ids[0], ids[2]):
        with pytest.raises(RunInterrupted):
            await server.await_run(run_id)
        assert (await store.get_events("s", run_id=run_id))[-1].data == {"reason": "crash"}
    assert (await server.await_run(ids[1])).output == 2  # its second attempt
    assert (await server.await_run(ids[3])).output == 1
    assert order == [ids[1], ids[3]]
    log = await store.get_events("s")
    assert [event.sequence for event in log] == list(range(1, len(log) + 1))
    assert await store.change_run(ids[1], RunChange("complete", 1.0, attempt=1)) is None  # the dead attempt's
    await server.close()
    await store.aclose()


async def test_results_outlive_their_server() -> None:
    store = MemoryStore()
    server = await SessionServer.start(store, echo, session_id="s")
    run_id = await server.submit_run({"x": 1})
    await server.drain()
    await server.close()
    again = await SessionServer.attach(store, echo, "s")
    assert (await again.await_run(run_id)).output == {"x": 1}
    await again.close()


# -- a store that fails


class Failing(MemoryStore):
    """A store whose disk is full whenever the test says so."""

    full = False

    async def change_run(self, *args: Any, **kwargs: Any) -> Any:
        self._write()
        return await super().change_run(*args, **kwargs)

    async def submit_run(self, *args: Any, **kwargs: Any) -> Any:
        self._write()
        return await super().submit_run(*args, **kwargs)

    async def append(self, *args: Any, **kwargs: Any) -> Any:
        self._write()
        return await super().append(*args, **kwargs)

    def _write(self) -> None:
        if self.full:
            raise StoreError("the disk is full")


async def test_a_full_disk_is_told_and_what_was_taken_goes_on_by_itself() -> None:
    store = Failing()
    async with scene(store) as s:
        first, second = await s.submit(2)
        store.full = True
        with pytest.raises(StoreError):
            await s.server.submit_run({})
        with pytest.raises(StoreError):
            await s.puppet.contexts[first].emit("message_sent", {})
        with pytest.raises(StoreError):
            await s.server.cancel_run(second)
        await s.puppet.end(first, "done")
        await s.clock.advance(60)
        assert (await s.status(first), s.puppet.started) == ("running", [first])
        waiting = asyncio.create_task(s.server.await_run(first))
        store.full = False
        await s.clock.advance(5)
        assert (await waiting).output == "done"
        assert s.puppet.started == [first, second]
        assert (await s.types(first)).count("run_completed") == 1


async def test_a_cancel_of_a_queued_run_that_was_not_stored_did_not_happen() -> None:
    """The original answered ok, and whoever awaited the run hung (C1.12)."""
    store = Failing()
    async with scene(store) as s:
        first, second = await s.submit(2)
        store.full = True
        with pytest.raises(StoreError):
            await s.server.cancel_run(second)
        store.full = False
        assert s.server.status().queued_runs == (second,)
        await s.puppet.end(first)
        assert s.puppet.started == [first, second]


async def test_a_store_that_is_closed_ends_the_serving() -> None:
    async with scene() as s:
        (run_id,) = await s.submit()
        await s.store.aclose()
        await s.puppet.end(run_id)
        with pytest.raises(Unavailable):
            await s.server.submit_run({})
        assert s.server.status().in_flight_count == 0


# -- every session of a store


def sessions(store: Store, **agents: Any) -> Sessions:
    return Sessions(store, agents, clock=VirtualClock(1.0))


async def test_sessions_are_started_once_and_found_again() -> None:
    store = MemoryStore()
    all_of_them = sessions(store, echo=echo)
    one, same = await asyncio.gather(
        *(all_of_them.start("s", agent="echo", metadata={"a": 1}) for _ in range(2))
    )
    assert one is same is await all_of_them.get("s")
    assert await all_of_them.start("s", agent="echo", metadata={"a": 1}) is one
    with pytest.raises(InvalidOperation, match="'s' exists with metadata"):
        await all_of_them.start("s", agent="echo")
    await one.close()
    other = sessions(store, echo=Puppet(), other=echo)
    with pytest.raises(InvalidOperation, match="'s' exists with agent_id 'echo'; 'other' was asked for"):
        await other.start("s", agent="other", metadata={"a": 1})
    assert dict(other.running) == {}
    one = await all_of_them.get("s")
    run_id = await one.submit_run({})
    assert await all_of_them.of_run(run_id) is one
    assert dict(all_of_them.running) == {"s": one}
    assert (await all_of_them.start(agent="echo")).session_id.startswith("ses_")
    await all_of_them.aclose()
    with pytest.raises(Unavailable):
        await all_of_them.get("s")


class Slow(MemoryStore):
    """A store whose answers about sessions come when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: list[asyncio.Future[None]] = []

    async def get_session(self, session_id: str) -> Any:
        self.answers.append(asyncio.get_running_loop().create_future())
        await self.answers[-1]
        return await super().get_session(session_id)


async def test_callers_who_ask_for_a_session_at_once_get_the_same_server() -> None:
    """Also one whose answer came when another's had led to a server already."""
    store = Slow()
    await (await SessionServer.start(store, echo, session_id="s", agent_id="echo")).close()
    all_of_them = sessions(store, echo=echo)
    asking = [asyncio.create_task(all_of_them.get("s")) for _ in range(3)]
    await idle()
    for answer in store.answers:
        answer.set_result(None)
        await idle()
    assert len({await one for one in asking}) == 1
    await all_of_them.aclose()


async def test_a_session_that_is_being_closed_is_served_again_afterwards() -> None:
    store, puppet = MemoryStore(), Puppet()
    all_of_them = sessions(store, puppet=puppet)
    server = await all_of_them.start("s", agent="puppet")
    run_id = await server.submit_run({})
    await idle()
    closing = asyncio.create_task(all_of_them.close("s", timeout=None))
    await idle()
    assert await all_of_them.get("s") is server  # whose run can be cancelled, and resumed
    with pytest.raises(Unavailable):
        await server.submit_run({})
    await puppet.end(run_id)
    assert (await closing).status == "active"
    again = await all_of_them.get("s")
    assert again is not server
    assert all_of_them.running["s"] is again
    await all_of_them.aclose()


async def test_sessions_that_cannot_be_served() -> None:
    store = MemoryStore()
    all_of_them = sessions(store, echo=echo)
    with pytest.raises(ValidationError, match="agent 'other' is not configured; known are echo"):
        await all_of_them.start("s", agent="other")
    with pytest.raises(SessionNotFound):
        await all_of_them.get("s")
    with pytest.raises(RunNotFound):
        await all_of_them.of_run("run_nothing")
    await all_of_them.start("s", agent="echo")
    ended = await all_of_them.close("s", complete=True)
    assert (ended.status, dict(all_of_them.running)) == ("completed", {})
    with pytest.raises(InvalidStatus):
        await all_of_them.get("s")
    await all_of_them.aclose()


async def test_a_restart_serves_what_has_work_left() -> None:
    """Of an agent that is not configured any more, what was in flight is settled, and the rest waits."""
    store = MemoryStore()
    first = sessions(store, echo=Puppet(), gone=Puppet())
    for name, agent in (("idle", "echo"), ("busy", "echo"), ("orphan", "gone")):
        await first.start(name, agent=agent)
    ids = {name: await (await first.get(name)).submit_run({}) for name in ("busy", "orphan")}
    await idle()
    waiting = {name: await (await first.get(name)).submit_run({}) for name in ("busy", "orphan")}
    closing = asyncio.create_task(first.aclose(timeout=0))
    await closing
    second = sessions(store, echo=echo)
    assert await second.recover() == 1
    assert list(second.running) == ["busy"]
    await idle()
    assert (await store.get_run(ids["busy"])).status == "interrupted"
    assert (await store.get_run(waiting["busy"])).status == "completed"
    assert (await store.get_run(waiting["orphan"])).status == "pending"
    with pytest.raises(InvalidOperation, match="'gone' of session 'orphan' is not configured any more"):
        await second.get("orphan")
    await second.aclose()
