"""Cancel, interrupt, pause, resume: what they do, to whom, and that an end is written once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from interlock.core.sessions import RunChange
from interlock.errors import (
    CapabilityNotSupported,
    InvalidOperation,
    RunCancelled,
    RunInterrupted,
    RunNotFound,
    StaleFence,
)
from interlock.session.readings import KEPT_OPERATIONS, KEPT_RUNS, OperationLog
from interlock.session.server import SessionServer
from interlock.stores.memory import MemoryStore
from interlock.testing import idle
from session.scenes import scene, turns_until

if TYPE_CHECKING:
    from interlock.session.context import RunContext


def ends(types: list[str]) -> list[str]:
    return [one for one in types if one.startswith("run_") and one not in ("run_queued", "run_started")]


async def test_cancelling_a_queued_run() -> None:
    async with scene() as s:
        ids = await s.submit(3)
        waiting = asyncio.create_task(s.server.await_run(ids[1]))
        await idle()
        await s.server.cancel_run(ids[1])
        assert await s.status(ids[1]) == "cancelled"
        with pytest.raises(RunCancelled, match=f"run '{ids[1]}' was cancelled"):
            await waiting
        assert await s.types(ids[1]) == ["run_queued", "run_cancelled"]
        await s.puppet.end(ids[0])
        assert s.puppet.started == [ids[0], ids[2]]


async def test_cancelling_a_run_in_flight() -> None:
    async with scene() as s:
        first, second = await s.submit(2)
        await s.server.cancel_run(first)
        assert s.puppet.contexts[first].cancelled
        await idle()
        with pytest.raises(RunCancelled):
            await s.server.await_run(first)
        assert (await s.types(first))[-1] == "run_cancelled"
        assert (await s.log(first))[-1].data == {}
        assert s.puppet.started == [first, second]


async def test_a_cancelled_run_is_not_overwritten() -> None:
    """In the original the agent's answer came over it: cancelled, then completed (C1.4)."""
    async with scene() as s:
        s.puppet.stubborn = True
        (run_id,) = await s.submit()
        await s.server.cancel_run(run_id)
        await idle()
        await s.puppet.end(run_id, "an answer all the same")
        assert await s.status(run_id) == "cancelled"
        assert ends(await s.types(run_id)) == ["run_cancelled"]
        with pytest.raises(RunCancelled):
            await s.server.await_run(run_id)


async def test_a_cancel_that_the_agent_ignores_ends_after_the_grace_period() -> None:
    """And says so. What the agent does later changes nothing, and the next run has the slot."""
    async with scene(cancel_grace=3) as s:
        s.puppet.stubborn = True
        first, second = await s.submit(2)
        await s.server.cancel_run(first)
        await s.clock.advance(2.9)
        assert (await s.status(first), s.puppet.started) == ("running", [first])
        await s.clock.advance(0.1)
        assert (await s.status(first), s.puppet.started) == ("cancelled", [first, second])
        assert (await s.log(first))[-1].data == {"ignored": True}
        with pytest.raises(StaleFence):
            await s.puppet.contexts[first].emit("message_sent", {})
        before = await s.types()
        await s.puppet.end(first, "late")
        assert await s.types() == before
        assert await s.status(first) == "cancelled"


async def test_cancelling_what_has_ended_changes_nothing() -> None:
    async with scene() as s:
        (run_id,) = await s.submit()
        await s.puppet.end(run_id, 1)
        await s.server.cancel_run(run_id)
        assert await s.status(run_id) == "completed"
        assert s.server.operations(run_id).history == ()


async def test_interrupting() -> None:
    async with scene() as s:
        first, second = await s.submit(2)
        for run_id in (second, "run_nothing"):
            with pytest.raises(RunNotFound, match=f"Run not in flight: {run_id}"):
                await s.server.interrupt_run(run_id)
        await s.server.interrupt_run(first)
        await idle()
        with pytest.raises(RunInterrupted):
            await s.server.await_run(first)
        assert (await s.log(first))[-1].data == {"reason": "requested"}
        with pytest.raises(RunNotFound):
            await s.server.interrupt_run(first)


async def test_who_says_first_how_it_ends_decides() -> None:
    async with scene() as s:
        s.puppet.stubborn = True
        (run_id,) = await s.submit()
        await s.server.interrupt_run(run_id)
        await s.server.cancel_run(run_id)
        await s.puppet.end(run_id)
        assert await s.status(run_id) == "interrupted"


async def test_all_at_once() -> None:
    async with scene(max_concurrent_runs=2) as s:
        ids = await s.submit(4)
        assert await s.server.interrupt_all() == {ids[0]: None, ids[1]: None}
        await idle()
        found = await s.server.cancel_all([ids[2], "run_nothing"])
        assert found.pop(ids[2]) is None
        assert isinstance(found.pop("run_nothing"), RunNotFound)
        await idle()
        assert await s.server.cancel_all() == {ids[3]: None}
        await idle()
        assert [await s.status(one) for one in ids] == ["interrupted"] * 2 + ["cancelled"] * 2
        assert await s.server.cancel_all() == {}


async def test_cancelling_while_it_starts() -> None:
    """Whatever comes first in the store, there is one end, and the agent's word counts for nothing."""
    for turns in range(12):
        async with scene() as s:
            run_id = await s.server.submit_run({})
            for _ in range(turns):
                await asyncio.sleep(0)
            await s.server.cancel_run(run_id)
            await idle()
            assert await s.status(run_id) == "cancelled"
            assert ends(await s.types(run_id)) == ["run_cancelled"]


async def test_pausing_and_resuming() -> None:
    reached: list[int] = []

    async def agent(run: RunContext) -> Any:
        for n in range(3):
            await run.checkpoint()
            reached.append(n)
            await run.emit("message_sent", {"n": n})
            for _ in range(20):
                await asyncio.sleep(0)

    agent.capabilities = {"pause"}  # type: ignore[attr-defined]
    store = MemoryStore()
    server = await SessionServer.start(store, agent, session_id="s")
    run_id = await server.submit_run({})
    await turns_until(lambda: reached)
    await server.pause_run(run_id)
    await server.pause_run(run_id)
    await idle()
    assert ((await store.get_run(run_id)).status, reached) == ("paused", [0])
    assert server.status().in_flight_runs == (run_id,)
    await server.resume_run(run_id)
    await server.resume_run(run_id)
    assert (await server.await_run(run_id)).status == "completed"
    assert reached == [0, 1, 2]
    operations = server.operations(run_id)
    assert [(one.operation, one.result) for one in operations.history] == [("pause", "ok"), ("resume", "ok")]
    assert (operations.state, operations.last) == ("running", operations.history[-1])
    with pytest.raises(InvalidOperation, match="is completed; only one in flight can resume"):
        await server.resume_run(run_id)
    await server.close()


@pytest.mark.parametrize("how", ["cancel", "interrupt"])
async def test_a_paused_run_can_be_ended(how: str) -> None:
    """Its checkpoint tells the agent, also one that does not hear of cancellation."""
    seen: list[BaseException] = []

    async def agent(run: RunContext) -> None:
        try:
            while True:
                await run.checkpoint()
                await asyncio.sleep(0)
        except asyncio.CancelledError as error:
            seen.append(error)
        try:
            await run.checkpoint()
        except (RunCancelled, RunInterrupted) as error:
            seen.append(error)

    agent.capabilities = {"pause"}  # type: ignore[attr-defined]
    store = MemoryStore()
    server = await SessionServer.start(store, agent, session_id="s")
    run_id = await server.submit_run({})
    await turns_until(lambda: server.status().in_flight_runs)
    await asyncio.sleep(0)
    await server.pause_run(run_id)
    await getattr(server, f"{how}_run")(run_id)
    await server.drain()
    assert (await store.get_run(run_id)).status == {"cancel": "cancelled", "interrupt": "interrupted"}[how]
    assert type(seen[-1]) is {"cancel": RunCancelled, "interrupt": RunInterrupted}[how]
    with pytest.raises(InvalidOperation):  # the original resumed it (C1.15)
        await server.resume_run(run_id)
    await server.close()


async def test_what_cannot_be_paused() -> None:
    async def agent(run: RunContext) -> None: ...

    store = MemoryStore()
    server = await SessionServer.start(store, agent, session_id="s")
    run_id = await server.submit_run({})
    for asked in (server.pause_run, server.resume_run):
        with pytest.raises(CapabilityNotSupported, match="has no capability 'pause'"):
            await asked(run_id)
    await server.close()
    async with scene() as s:
        ids = await s.submit(2)
        with pytest.raises(InvalidOperation, match="is pending; only one in flight can pause"):
            await s.server.pause_run(ids[1])
        with pytest.raises(RunNotFound):
            await s.server.pause_run("run_nothing")


def test_operations_are_kept_for_the_latest_only() -> None:
    """The original's history grew for ever (C1.15)."""
    log = OperationLog()
    for n in range(KEPT_RUNS + 5):
        for _ in range(KEPT_OPERATIONS + 5 if n == KEPT_RUNS else 1):
            log.note(f"r{n}", "cancel", 1.0, "cancelled")
    assert len(log.runs) == KEPT_RUNS
    assert log.of("r0").state == "unknown"
    assert len(log.of(f"r{KEPT_RUNS}").history) == KEPT_OPERATIONS


async def test_a_run_is_ended_by_its_own_attempt_alone() -> None:
    """A second start moved the fence: what the first one writes is refused by the store itself."""
    async with scene() as s:
        (run_id,) = await s.submit()
        assert await s.store.change_run(run_id, RunChange("complete", 1.0, attempt=0)) is None
        assert await s.status(run_id) == "running"
