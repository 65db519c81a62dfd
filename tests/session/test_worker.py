"""Workers: who holds a session, what reaches its holder from elsewhere, and what a lost lease ends."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from interlock import agent
from interlock.clock import SystemClock
from interlock.errors import (
    AcquireTimeout,
    CapabilityNotSupported,
    Draining,
    InvalidOperation,
    InvalidStatus,
    KeyReused,
    QueueFull,
    RunCancelled,
    RunInterrupted,
    RunNotFound,
    StoreError,
    ValidationError,
)
from interlock.session.sessions import Sessions
from interlock.session.shared import SharedSession
from interlock.stores import open_store
from interlock.stores.memory import MemoryStore


class Stage:
    """An agent whose runs go on as the test lets them, and who says what it did."""

    def __init__(self) -> None:
        self.capabilities: tuple[str, ...] = ("pause",)
        self.started: list[str] = []
        self.stopped: list[str] = []
        self.doors: dict[str, asyncio.Event] = {}

    def door(self, name: str) -> asyncio.Event:
        return self.doors.setdefault(name, asyncio.Event())

    async def run(self, run: Any) -> str:
        name = run.input["name"]
        self.started.append(name)
        try:
            while not self.door(name).is_set():
                await run.checkpoint()
                await asyncio.sleep(0.005)
            await run.emit("message_sent", {"name": name})
        except asyncio.CancelledError:
            self.stopped.append(name)
            raise
        return f"{name} by attempt {run.attempt}"


@agent
async def quick(run: Any) -> Any:
    """Gives back what it was given."""
    return run.input


class Fleet:
    """Processes that share a database, in this one."""

    def __init__(self, url: str, stack: AsyncExitStack) -> None:
        self.url = url
        self._stack = stack
        self.stages: dict[Sessions, Stage] = {}

    async def plane(self) -> Sessions:
        """A control plane without agents."""
        return await self._sessions({}, 30.0)

    async def worker(self, lease: float = 30.0) -> tuple[Sessions, Stage]:
        """A worker, and the stage that its agent has."""
        stage = Stage()
        sessions = await self._sessions({"stage": stage, "quick": quick}, lease)
        await sessions.recover()
        return sessions, stage

    async def _sessions(self, agents: dict[str, Any], lease: float) -> Sessions:
        store = await self._stack.enter_async_context(await open_store(self.url))
        sessions = Sessions(store, agents, clock=SystemClock(), lease=lease)
        self._stack.push_async_callback(sessions.aclose, 0)
        return sessions


@pytest.fixture
def fleet(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    monkeypatch.setattr("interlock.session.worker.ROUND", 0.2)
    monkeypatch.setattr("interlock.session.shared.POLL", 0.2)

    @asynccontextmanager
    async def open_() -> AsyncIterator[Fleet]:
        async with AsyncExitStack() as stack:
            yield Fleet(postgres_url, stack)

    return open_


async def until(holds: Callable[[], Any], what: str, within: float = 15.0) -> None:
    """Return once *holds* does, or what it gives to be awaited."""
    try:
        async with asyncio.timeout(within):
            while True:
                found = holds()
                if await found if inspect.isawaitable(found) else found:
                    return
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"not within {within} s: {what}") from None


async def made(plane: Sessions, session_id: str, **options: Any) -> SharedSession:
    """A session whose agent is the stage, once some worker is there that has it."""

    async def there() -> bool:
        return "stage" in await plane.agent_names()

    await until(there, "a worker")
    session = await plane.start(session_id, agent="stage", **options)
    assert isinstance(session, SharedSession)
    return session


async def in_flight(session: SharedSession, run_id: str) -> None:
    async def running() -> bool:
        return (await session.store.get_run(run_id)).status == "running"

    await until(running, f"{run_id} is in flight")


async def test_any_plane_answers_for_all(fleet: Any) -> None:
    """What one takes, another finds; runs start in one order and slots are kept, whoever submits."""
    async with fleet() as processes:
        _, stage = await processes.worker()
        planes = [await processes.plane() for _ in range(2)]
        one = await made(planes[0], "s", max_concurrent_runs=2, max_queued_runs=20)
        two = await planes[1].get("s")
        runs = [await (one, two)[n % 2].submit_run({"name": f"r{n}"}) for n in range(10)]
        await until(lambda: stage.started == ["r0", "r1"], "two slots")
        await two.refresh()
        assert two.status().in_flight_runs == tuple(runs[:2])
        assert two.status().queued_runs == tuple(runs[2:])
        assert two.waits_for(runs[4])[0] == 3
        with pytest.raises(AcquireTimeout, match="has not ended within"):
            await two.await_run(runs[0], timeout=0.05)
        with pytest.raises(AcquireTimeout, match="2 runs are in flight and 8 wait"):
            await one.drain(timeout=0.05)
        draining = asyncio.create_task(one.drain(timeout=20))
        await asyncio.sleep(0)
        with pytest.raises(Draining):
            await (await planes[0].get("s")).submit_run({"name": "late"})
        draining.cancel()
        await asyncio.wait((draining,))
        with pytest.raises(InvalidOperation, match="has unfinished runs"):
            await planes[1].close("s", complete=True)
        for n in range(10):
            stage.door(f"r{n}").set()
        results = await asyncio.gather(*((two, one)[n % 2].await_run(runs[n], 20) for n in range(10)))
        assert [result.output for result in results] == [f"r{n} by attempt 1" for n in range(10)]
        assert stage.started == [f"r{n}" for n in range(10)]
        assert await one.drain(5)
        assert (await planes[1].close("s", complete=True)).status == "completed"
        with pytest.raises(InvalidStatus, match="is completed"):
            await planes[0].get("s")
        log = await planes[0].store.get_events("s")
        assert [event.sequence for event in log] == list(range(1, len(log) + 1))


async def test_what_is_refused_is_refused_by_any_plane(fleet: Any) -> None:
    """Keys, room, collisions, unknown agents and other sessions' runs."""
    async with fleet() as processes:
        await processes.worker()
        planes = [await processes.plane() for _ in range(2)]
        one = await made(planes[0], "s", max_queued_runs=1)
        two = await planes[1].get("s")
        run = await one.submit_run({"name": "a"}, idempotency_key="k")
        assert await two.submit_run({"name": "a"}, idempotency_key="k") == run
        with pytest.raises(KeyReused):
            await two.submit_run({"name": "b"}, idempotency_key="k")
        await two.submit_run({"name": "b"})
        with pytest.raises(QueueFull, match="1 runs may be in flight and 1 more may wait"):
            await one.submit_run({"name": "c"})
        with pytest.raises(InvalidOperation, match="exists with max_queued_runs 1"):
            await planes[1].start("s", agent="stage", max_queued_runs=2)
        with pytest.raises(ValidationError, match="known are quick, stage"):
            await planes[1].start("t", agent="nobody")
        other = await planes[1].start("t", agent="stage", collision="reject")
        with pytest.raises(RunNotFound):
            await other.cancel_run(run)
        await other.submit_run({"name": "d"})
        with pytest.raises(InvalidStatus, match="rejects another"):
            await other.submit_run({"name": "e"})


async def test_wishes_reach_the_holder(fleet: Any) -> None:
    """Cancel, interrupt, pause and resume, from a plane that has no agent; and why they cannot be done."""
    async with fleet() as processes:
        worker, stage = await processes.worker()
        plane = await processes.plane()
        session = await made(plane, "s", max_concurrent_runs=3)
        runs = [await session.submit_run({"name": f"r{n}"}) for n in range(5)]
        for run in runs[:3]:
            await in_flight(session, run)
        await session.cancel_run(runs[3])  # it waits: nobody has to be asked
        assert (await plane.store.get_run(runs[3])).status == "cancelled"
        await session.pause_run(runs[0])
        assert (await plane.store.get_run(runs[0])).status == "paused"
        with pytest.raises(InvalidOperation, match="only one in flight can pause"):
            await session.pause_run(runs[4])
        with pytest.raises(RunNotFound, match="not in flight"):
            await session.interrupt_run(runs[4])
        await session.resume_run(runs[0])
        assert (await plane.store.get_run(runs[0])).status == "running"
        await session.cancel_run(runs[1])
        await session.interrupt_run(runs[2])
        with pytest.raises(RunCancelled):
            await session.await_run(runs[1])
        with pytest.raises(RunInterrupted):
            await session.await_run(runs[2])
        for name in ("r0", "r4"):
            stage.door(name).set()
        assert (await session.await_run(runs[4])).output == "r4 by attempt 1"
        assert session.operations(runs[0]).state == "running"
        assert stage.started == ["r0", "r1", "r2", "r4"]
        assert await session.cancel_all() == await session.interrupt_all() == {}
        quick_ = await plane.start("q", agent="quick")
        slow = await quick_.submit_run({"a": 1})
        await quick_.await_run(slow)
        with pytest.raises(InvalidOperation):
            await quick_.pause_run(slow)
        assert worker.running.keys() == {"s", "q"}


async def test_an_agent_that_cannot_pause_says_so_through_its_worker(fleet: Any) -> None:
    """The holder's refusal is the caller's error."""
    async with fleet() as processes:
        _, stage = await processes.worker()
        stage.capabilities = ()
        plane = await processes.plane()
        session = await made(plane, "s")
        run = await session.submit_run({"name": "r"})
        await in_flight(session, run)
        with pytest.raises(CapabilityNotSupported, match="cannot pause"):
            await session.pause_run(run)


async def test_collisions_are_the_holders_to_decide(fleet: Any) -> None:
    """A run that is submitted elsewhere ends those before it, as the session wants."""
    async with fleet() as processes:
        _, stage = await processes.worker()
        plane = await processes.plane()
        session = await made(plane, "s", collision="interrupt")
        first = await session.submit_run({"name": "first"})
        await in_flight(session, first)
        stage.door("second").set()
        second = await session.submit_run({"name": "second"})
        with pytest.raises(RunInterrupted):
            await session.await_run(first)
        assert (await session.await_run(second)).output == "second by attempt 1"


async def test_a_worker_that_leaves_gives_its_sessions_away(fleet: Any) -> None:
    """What runs may end, what waits goes on elsewhere, at once and in its order."""
    async with fleet() as processes:
        leaving, stage = await processes.worker()
        plane = await processes.plane()
        session = await made(plane, "s")
        runs = [await session.submit_run({"name": f"r{n}"}) for n in range(4)]
        await in_flight(session, runs[0])
        staying, other = await processes.worker()
        for n in range(4):
            other.door(f"r{n}").set()
        closing = asyncio.create_task(leaving.aclose(timeout=20))

        async def draining() -> bool:
            return any(one.draining for one in await plane.workers())

        await until(draining, "it drains")
        stage.door("r0").set()
        results = [await session.await_run(run, 10) for run in runs]
        await closing
        assert [result.output for result in results] == [f"r{n} by attempt 1" for n in range(4)]
        assert (stage.started, other.started) == (["r0"], ["r1", "r2", "r3"])
        [left] = await plane.workers()
        assert (left.alive, left.draining, left.sessions, left.agents) == (True, False, 1, ("quick", "stage"))
        assert staying.running.keys() == {"s"}


async def test_a_lost_lease_ends_all_that_a_worker_does(fleet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stops its agents before the lease is over, and writes nothing; its runs are another's then."""
    async with fleet() as processes:
        lost, stage = await processes.worker(lease=1.5)
        plane = await processes.plane()
        session = await made(plane, "s", max_concurrent_runs=2)
        again = await session.submit_run({"name": "again"}, retry="on_crash")
        once = await session.submit_run({"name": "once"})
        waits = await session.submit_run({"name": "waits"})
        await in_flight(session, once)

        async def cut_off(*_: Any, **__: Any) -> Any:
            raise StoreError("cut off")

        monkeypatch.setattr(lost.store, "hold", cut_off)
        await until(lambda: sorted(stage.stopped) == ["again", "once"], "its agents were stopped")
        assert {(await plane.store.get_run(run)).status for run in (again, once)} == {"running"}
        taking, other = await processes.worker()
        for name in ("again", "waits"):
            other.door(name).set()
        with pytest.raises(RunInterrupted):
            await session.await_run(once, 15)
        assert (await session.await_run(again, 15)).output == "again by attempt 2"
        assert (await session.await_run(waits, 15)).output == "waits by attempt 1"
        assert other.started == ["again", "waits"]
        assert lost.running == {}
        assert taking.running.keys() == {"s"}
        types = [event.type for event in await plane.store.get_events("s", run_id=once)]
        assert types == ["run_queued", "run_started", "run_interrupted"]


async def test_a_session_that_rests_is_let_go(fleet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a while without a run nobody holds it, and the next run finds a holder again."""
    monkeypatch.setattr("interlock.session.worker.LINGER", 0.2)
    async with fleet() as processes:
        worker, _ = await processes.worker()
        plane = await processes.plane()
        await made(plane, "s")
        session = await plane.start("q", agent="quick")

        async def free() -> bool:
            return not (await plane.workers())[0].sessions

        for n in range(2):
            assert (await session.execute_run({"n": n})).output == {"n": n}
            await until(lambda: not worker.running, "it was let go")
            await until(free, "nobody holds it")


async def test_hints_are_not_needed(fleet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any, a run starts and its end is seen all the same: rows are looked at now and then."""
    monkeypatch.setattr("interlock.stores.postgres.hints.Hints._hint", lambda *_: None)
    async with fleet() as processes:
        _, stage = await processes.worker()
        plane = await processes.plane()
        session = await made(plane, "s")
        run = await session.submit_run({"name": "r"})
        await in_flight(session, run)
        next_ = await session.submit_run({"name": "next"})
        await session.interrupt_run(run)
        stage.door("next").set()
        assert (await session.await_run(next_, 10)).output == "next by attempt 1"


async def test_a_store_of_one_process_has_no_workers() -> None:
    """There, sessions are served where they are started."""
    sessions = Sessions(MemoryStore(), {"quick": quick}, clock=SystemClock())
    assert not sessions.shared
    assert (sessions.worker, await sessions.workers(), await sessions.agent_names()) == (None, [], {"quick"})
