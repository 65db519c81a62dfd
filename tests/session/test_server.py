"""A session's runs: submitted, started in order, ended once, and heard of by whoever waits."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from interlock.core.runs import ENDED
from interlock.errors import (
    AcquireTimeout,
    Draining,
    InvalidOperation,
    InvalidStatus,
    KeyReused,
    QueueFull,
    RunFailed,
    RunNotFound,
    RunTimedOut,
    SessionNotFound,
    StaleFence,
    Unavailable,
    ValidationError,
)
from interlock.limiter import ConcurrencyLimiter
from interlock.session.context import RunContext
from interlock.session.readings import SessionStatus
from interlock.session.server import SessionServer
from interlock.stores.memory import MemoryStore
from interlock.testing import VirtualClock, idle
from session.scenes import Puppet, echo, scene

# -- a run


async def test_a_run_from_its_submission_to_its_result() -> None:
    async with scene() as s:
        run_id = await s.server.submit_run({"prompt": "hi"}, metadata={"by": "me"})
        await idle()
        context = s.puppet.contexts[run_id]
        assert (context.session_id, context.run_id, context.attempt) == ("s", run_id, 1)
        assert (context.input, context.metadata, context.cancelled) == ({"prompt": "hi"}, {"by": "me"}, False)
        await context.emit("message_streamed", {"content": "he"})
        context.usage(input_tokens=3)
        context.usage(input_tokens=4, output_tokens=1)
        await s.clock.advance(2)
        await s.puppet.end(run_id, {"answer": [1, None]})
        result = await s.server.await_run(run_id)
        assert (result.run_id, result.session_id, result.status) == (run_id, "s", "completed")
        assert (result.output, result.token_usage) == (
            {"answer": [1, None]},
            {"input_tokens": 7, "output_tokens": 1},
        )
        assert (result.started_at, result.ended_at, result.waited) == (1000.0, 1002.0, 0.0)
        log = await s.log()
        assert [(event.sequence, event.type) for event in log] == [
            (1, "session_created"),
            (2, "session_started"),
            (3, "run_queued"),
            (4, "run_started"),
            (5, "message_streamed"),
            (6, "run_completed"),
        ]
        assert {event.run_id for event in log} == {None, run_id}
        assert log[-1].data == {"stop_reason": "completed", "duration": 2.0}


async def test_runs_start_in_the_order_of_their_submission() -> None:
    """As many at once as may be; a freed slot goes to the next."""
    async with scene(max_concurrent_runs=2) as s:
        ids = await s.submit(5)
        assert s.puppet.started == ids[:2]
        assert s.server.status() == SessionStatus("s", tuple(ids[:2]), 2, tuple(ids[2:]), 3, 2, 100, 0)
        assert [s.server.waits_for(one) is None for one in ids] == [True, True, False, False, False]
        place, blocking = s.server.waits_for(ids[3]) or (0, [])
        assert (place, [one.as_data() for one in blocking]) == (
            2,
            [{"limit": "session", "used": 2, "capacity": 2}],
        )
        await s.puppet.end(ids[1])
        assert s.puppet.started == ids[:3]
        await s.puppet.end(ids[0])
        await s.puppet.end(ids[2])
        assert s.puppet.started == ids


async def test_what_a_run_waited_for_is_in_the_log() -> None:
    async with scene() as s:
        first, second = await s.submit(2)
        await s.clock.advance(3)
        await s.puppet.end(first)
        queued, started = [event.data for event in await s.log(second)]
        assert queued == {"position": 1, "waits_for": [{"limit": "session", "used": 1, "capacity": 1}]}
        assert started == {"attempt": 1, "waited": 3.0, "limits": {"session": 3.0}}
        assert (await s.log(first))[0].data == {"position": 1, "waits_for": []}


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (ZeroDivisionError("by zero"), "internal_error", "ZeroDivisionError: by zero"),
        (KeyError(), "internal_error", "KeyError"),
        (RunFailed("no money", code="provider_quota_exceeded"), "provider_quota_exceeded", "no money"),
        (SystemExit(3), "internal_error", "RuntimeError: the agent called for exit (3)"),
        (asyncio.CancelledError(), "cancelled", "the agent's task was cancelled from within"),
    ],
)
async def test_a_crash_fails_that_run_and_starts_the_next(
    raised: BaseException, code: str, message: str
) -> None:
    """The original left such a run "running" in its store (C1.8)."""

    async def agent(run: RunContext) -> Any:
        if run.input["n"] == 0:
            raise raised

    store = MemoryStore()
    server = await SessionServer.start(store, agent, session_id="s")
    first, second = [await server.submit_run({"n": n}) for n in range(2)]
    with pytest.raises(RunFailed, match=message.replace("(", r"\(").replace(")", r"\)")) as caught:
        await server.await_run(first)
    assert (caught.value.code, caught.value.details["run_id"]) == (code, first)
    assert (await server.await_run(second)).status == "completed"
    failed = (await store.get_events("s", run_id=first))[-1]
    assert (failed.type, failed.data) == ("run_failed", {"error_code": code, "error_message": message})
    assert (await store.get_run(first)).error == {"code": code, "message": message}
    await server.close()


async def test_an_output_that_is_not_json_fails_the_run() -> None:
    async with scene() as s:
        (run_id,) = await s.submit()
        await s.puppet.end(run_id, object())
        with pytest.raises(RunFailed, match="the output is not JSON"):
            await s.server.await_run(run_id)


async def test_a_run_that_outlives_its_timeout() -> None:
    """Counted from its start; its agent is told to stop."""
    async with scene() as s:
        await s.submit()
        (run_id,) = await s.submit(timeout=5)
        await s.clock.advance(100)
        await s.puppet.end(s.puppet.started[0])
        await s.clock.advance(4.9)
        assert await s.status(run_id) == "running"
        await s.clock.advance(0.1)
        assert await s.status(run_id) == "timeout"
        with pytest.raises(RunTimedOut, match=r"outlived its timeout of 5 s"):
            await s.server.await_run(run_id)
        assert (await s.log(run_id))[-1].data == {"timeout": 5.0}


# -- awaiting


async def test_any_number_of_callers_await_a_run_at_any_time() -> None:
    async with scene() as s:
        (run_id,) = await s.submit()
        waiting = [asyncio.create_task(s.server.await_run(run_id)) for _ in range(3)]
        await idle()
        waiting[0].cancel()
        await s.puppet.end(run_id, "x")
        assert [(await one).output for one in waiting[1:]] == ["x", "x"]
        assert waiting[0].cancelled()
        assert (await s.server.await_run(run_id, timeout=0)).output == "x"


async def test_a_run_that_nobody_knows_is_told_at_once() -> None:
    """The original let the caller wait for its timeout (C1.7)."""
    async with scene() as s:
        other = await SessionServer.start(s.store, echo, clock=s.clock)
        foreign = await other.submit_run({})
        for run_id in ("run_nothing", foreign):
            with pytest.raises(RunNotFound):
                await s.server.await_run(run_id)
            with pytest.raises(RunNotFound):
                await s.server.cancel_run(run_id)
        await other.close()


async def test_a_timeout_of_the_wait_is_an_error_and_the_run_goes_on() -> None:
    async with scene() as s:
        (run_id,) = await s.submit()
        waiting = asyncio.create_task(s.server.await_run(run_id, timeout=3))
        await s.clock.advance(3)
        with pytest.raises(AcquireTimeout, match="has not ended within 3 s; it goes on"):
            await waiting
        await s.puppet.end(run_id, 1)
        assert (await s.server.await_run(run_id)).output == 1


async def test_execute() -> None:
    server = await SessionServer.start(MemoryStore(), echo)
    assert (await server.execute_run({"a": 1}, priority=2)).output == {"a": 1}
    await server.close()


# -- the queue's bounds


async def test_a_full_queue_refuses_and_loses_nothing() -> None:
    async with scene(max_concurrent_runs=1, max_queued_runs=2) as s:
        ids = await s.submit(3)
        with pytest.raises(QueueFull, match="1 runs may be in flight and 2 more may wait"):
            await s.server.submit_run({})
        assert [run.id for run in await s.store.list_runs("s")] == ids
        await s.puppet.end(ids[0])
        assert len(await s.submit()) == 1


async def test_a_queue_of_nothing_takes_what_can_start_at_once() -> None:
    """The original answered an id and dropped the run (C1.6)."""
    async with scene(max_queued_runs=0) as s:
        (run_id,) = await s.submit()
        with pytest.raises(QueueFull):
            await s.server.submit_run({})
        await s.puppet.end(run_id)
        (run_id,) = await s.submit()
        assert s.puppet.started[-1] == run_id


async def test_the_same_key_is_the_same_run() -> None:
    """Also when the queue is full; with another body it is refused."""
    async with scene(max_queued_runs=0) as s:
        run_id = await s.server.submit_run({"a": 1}, idempotency_key="k", timeout=3)
        assert await s.server.submit_run({"a": 1}, idempotency_key="k", timeout=3.0) == run_id
        for other in ({"input": {"a": 2}}, {"timeout": 4}, {"priority": 1}, {"retry": "on_crash"}):
            asked: dict[str, Any] = {"input": {"a": 1}, "timeout": 3, **other}
            with pytest.raises(KeyReused, match=f"'k' belongs to run '{run_id}', whose {next(iter(other))}"):
                await s.server.submit_run(asked.pop("input"), idempotency_key="k", **asked)
        assert len(await s.store.list_runs("s")) == 1


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"input": "text"}, "input is str; allowed are objects"),
        ({"input": {"x": object()}}, "input is not JSON"),
        ({"input": {"x": float("nan")}}, "input is not JSON: it has the number nan"),
        ({"input": {}, "timeout": 0}, "timeout is 0; allowed are seconds above 0"),
        ({"input": {}, "timeout": True}, "timeout is True"),
        ({"input": {}, "retry": "always"}, "retry is 'always'; allowed"),
        ({"input": {}, "priority": 1.5}, "priority is 1.5; allowed are whole numbers"),
        ({"input": {}, "idempotency_key": ""}, "idempotency_key is ''; allowed"),
        ({"input": {}, "metadata": [1]}, "metadata is list; allowed are objects"),
    ],
)
async def test_a_submission_that_makes_no_sense(asked: dict[str, Any], message: str) -> None:
    async with scene() as s:
        with pytest.raises(ValidationError, match=message):
            await s.server.submit_run(asked.pop("input"), **asked)
        assert await s.store.list_runs("s") == []


async def test_a_submission_that_is_cancelled_is_whole_or_not_there() -> None:
    """Whoever asked does not know; but a run that was stored is also run."""
    async with scene() as s:
        submitting = asyncio.create_task(s.server.submit_run({"n": 1}))
        await asyncio.sleep(0)
        submitting.cancel()
        await idle()
        runs = await s.store.list_runs("s")
        assert [run.id for run in runs] == s.puppet.started


# -- the fleet's limits


async def test_a_saturated_limiter_makes_runs_wait() -> None:
    """The original failed the whole queue at once, and left it "pending" for ever (C1.5)."""
    clock = VirtualClock(1000.0)
    limiter = ConcurrencyLimiter(max_parallel_runs=1, clock=clock)
    await limiter.acquire_run_slot("elsewhere", "r0")
    async with scene(limiter=limiter, max_concurrent_runs=3) as s:
        ids = await s.submit(3)
        assert (s.puppet.started, s.server.status().queued_count) == ([], 3)
        place, blocking = s.server.waits_for(ids[0]) or (0, [])
        assert (place, [one.limit for one in blocking]) == (1, ["runs"])
        assert (await s.log(ids[0]))[0].data["waits_for"] == [{"limit": "runs", "used": 1, "capacity": 1}]
        await s.clock.advance(2)
        await limiter.release_run_slot("r0")
        await idle()
        assert s.puppet.started == ids[:1]
        started = (await s.log(ids[0]))[-1].data
        assert started["waited"] == 2.0
        assert sorted(started["limits"]) == ["runs", "session", "sessions"]
        for run_id in ids:
            await s.puppet.end(run_id)
        assert [await s.status(one) for one in ids] == ["completed"] * 3
        assert (limiter.status().active_runs, limiter.status().active_sessions) == (0, 0)


async def test_a_session_holds_its_slot_while_it_has_work() -> None:
    limiter = ConcurrencyLimiter(max_parallel_sessions=1)
    async with scene(limiter=limiter) as s:
        other_puppet = Puppet()
        other = await SessionServer.start(
            s.store, other_puppet, session_id="t", clock=s.clock, limiter=limiter
        )
        ids = await s.submit(2)
        waiting = await other.submit_run({})
        await idle()
        await s.puppet.end(ids[0])
        assert (s.puppet.started, other_puppet.started) == (ids, [])
        await s.puppet.end(ids[1])
        assert other_puppet.started == [waiting]
        await other_puppet.end(waiting)
        await other.close()
    assert limiter.status().active_sessions == 0


async def test_a_slot_that_was_taken_by_hand_is_not_given_back() -> None:
    limiter = ConcurrencyLimiter()
    await limiter.acquire_session_slot("s")
    async with scene(limiter=limiter) as s:
        (run_id,) = await s.submit()
        await s.puppet.end(run_id)
    assert limiter.status().active_sessions == 1


async def test_what_waits_for_the_fleet_can_be_cancelled() -> None:
    limiter = ConcurrencyLimiter(max_parallel_runs=1)
    blocking = await limiter.acquire_run_slot("elsewhere", "r0")
    async with scene(limiter=limiter) as s:
        ids = await s.submit(2)
        await s.server.cancel_run(ids[0])
        await idle()
        assert await s.status(ids[0]) == "cancelled"
        blocking.release()
        await idle()
        assert s.puppet.started == ids[1:]
    assert limiter.status().active_runs == 0


# -- the session


async def test_a_session_that_is_created_and_found_again() -> None:
    clock, store = VirtualClock(5.0), MemoryStore()
    server = await SessionServer.start(
        store, echo, session_id="s", agent_id="coder", metadata={"a": 1}, clock=clock
    )
    session = await store.get_session("s")
    assert (session.status, session.agent_id, session.metadata, session.created_at) == (
        "active",
        "coder",
        {"a": 1},
        5.0,
    )
    with pytest.raises(InvalidOperation, match="'s' is served already"):
        await SessionServer.attach(store, echo, "s")
    await server.close()
    wider = await SessionServer.start(store, echo, session_id="s", max_concurrent_runs=3, max_queued_runs=7)
    assert (wider.status().max_concurrent_runs, wider.status().max_queued_runs) == (3, 7)
    await wider.close()
    again = await SessionServer.attach(store, echo, "s")
    assert await store.get_latest_sequence("s") == 2  # attaching is no event: it happened once
    await again.close(complete=True)
    with pytest.raises(InvalidStatus, match="'s' is completed"):
        await SessionServer.attach(store, echo, "s")
    with pytest.raises(InvalidStatus, match="'s' is completed"):
        await SessionServer.start(store, echo, session_id="s")
    with pytest.raises(SessionNotFound):
        await SessionServer.attach(store, echo, "t")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"max_concurrent_runs": 0}, "max_concurrent_runs is 0; allowed are whole numbers from 1"),
        ({"max_concurrent_runs": True}, "max_concurrent_runs is True"),
        ({"max_queued_runs": -1}, "max_queued_runs is -1; allowed are whole numbers from 0"),
        ({"session_id": "a/b"}, "session_id is 'a/b'; allowed"),
        ({"session_id": ""}, "session_id is ''; allowed"),
        ({"collision": "explode"}, "collision is 'explode'; allowed are enqueue"),
        ({"metadata": {"x": b"\xff", "y": object()}}, "metadata is not JSON"),
        ({"agent": 3}, "agent is int; allowed are async functions"),
    ],
)
async def test_a_session_that_makes_no_sense(asked: dict[str, Any], message: str) -> None:
    store = MemoryStore()
    with pytest.raises(ValidationError, match=message):
        await SessionServer.start(store, asked.pop("agent", echo), **{"session_id": "s", **asked})


async def test_draining_takes_nothing_new_and_opens_again() -> None:
    """The original's could be starved by new submissions (C1.9)."""
    async with scene() as s:
        ids = await s.submit(2)
        draining = [asyncio.create_task(s.server.drain(timeout=n)) for n in (5, 60)]
        await idle()
        with pytest.raises(Draining):
            await s.server.submit_run({})
        await s.clock.advance(5)
        with pytest.raises(AcquireTimeout, match="1 runs are in flight and 1 wait"):
            await draining[0]
        with pytest.raises(Draining):
            await s.server.submit_run({})
        for run_id in ids:
            await s.puppet.end(run_id)
        assert await draining[1] is True
        assert len(await s.submit()) == 1


async def test_draining_what_is_idle() -> None:
    async with scene() as s:
        assert await s.server.drain() is True


async def test_closing_leaves_what_waits_and_interrupts_what_is_late() -> None:
    """The original let its tasks go on and write (C1.9)."""
    async with scene(max_concurrent_runs=2) as s:
        ids = await s.submit(3)
        waiting = [asyncio.create_task(s.server.await_run(one)) for one in ids]
        closing = asyncio.create_task(s.server.close(timeout=5))
        await idle()
        with pytest.raises(Unavailable):
            await s.server.submit_run({})
        await s.puppet.end(ids[0], "in time")
        await s.clock.advance(5)
        await closing
        assert [await s.status(one) for one in ids] == ["completed", "interrupted", "pending"]
        assert (await s.log(ids[1]))[-1].data == {"reason": "close"}
        ended = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(one).__name__ for one in ended] == ["RunResult", "RunInterrupted", "Unavailable"]
        again = await SessionServer.attach(s.store, s.puppet, "s", clock=s.clock)
        await idle()
        assert s.puppet.started == ids
        await s.puppet.end(ids[2])
        assert (await again.await_run(ids[2])).status == "completed"
        await again.close()


async def test_a_close_goes_on_when_its_caller_is_cancelled() -> None:
    """At its time, and whoever closes later may be in more of a hurry."""
    for hurry in (True, False):
        async with scene() as s:
            (run_id,) = await s.submit()
            closing = asyncio.create_task(s.server.close(timeout=5))
            await idle()
            closing.cancel()
            await idle()
            assert (await s.status(run_id), s.server.closed) == ("running", True)
            if hurry:
                await s.server.close(timeout=0)
            else:
                await s.clock.advance(5)
            assert await s.status(run_id) == "interrupted"
            again = await SessionServer.attach(s.store, echo, "s", clock=s.clock)
            await again.close()


class SlowToTake(MemoryStore):
    """A store that takes a run when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.may = asyncio.Event()

    async def submit_run(self, *args: Any, **kwargs: Any) -> Any:
        await self.may.wait()
        return await super().submit_run(*args, **kwargs)


async def test_completing_while_a_run_comes_in_leaves_the_session_open() -> None:
    """It was submitted before, and stored after we looked."""
    store = SlowToTake()
    async with scene(store) as s:
        submitting = asyncio.create_task(s.server.submit_run({}))
        await idle()
        closing = asyncio.create_task(s.server.close(complete=True))
        await idle()
        store.may.set()
        run_id = await submitting
        with pytest.raises(InvalidOperation, match="has unfinished runs"):
            await closing
        assert await s.status(run_id) == "pending"
        assert (await s.store.get_session("s")).status == "active"


async def test_completing_with_work_left_is_refused() -> None:
    async with scene() as s:
        (run_id,) = await s.submit()
        with pytest.raises(InvalidOperation, match="has unfinished runs"):
            await s.server.close(complete=True)
        await s.puppet.end(run_id)
        await s.server.close(complete=True)
        assert (await s.types())[-1] == "session_completed"
        await s.server.close()


async def test_a_subscriber_sees_all_of_it_to_the_end() -> None:
    async with scene() as s:
        seen: list[tuple[int, str]] = []

        async def watch() -> None:
            async with s.server.subscribe() as events:
                assert s.server.status().subscribers == 1
                seen.extend([(event.sequence, event.type) async for event in events])

        watching = asyncio.create_task(watch())
        (run_id,) = await s.submit()
        await s.puppet.end(run_id)
        await s.server.close(complete=True)
        await watching
        assert [number for number, _ in seen] == list(range(1, len(seen) + 1))
        assert seen[-1][1] == "session_completed"
        assert s.server.status().subscribers == 0


async def test_a_subscriber_sees_the_end_of_what_closing_interrupts() -> None:
    async with scene() as s:
        seen: list[str] = []

        async def watch(**filters: Any) -> None:
            async with s.server.subscribe(**filters) as events:
                seen.extend([event.type async for event in events])

        watching = [asyncio.create_task(watch(types=types)) for types in (None, ["run_interrupted"])]
        await s.submit()
        await s.server.close(timeout=0)
        await asyncio.gather(*watching)
        assert seen.count("run_interrupted") == 2
        assert s.server.status().subscribers == 0


# -- what an agent may do


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        ("made_up", {}, "event type 'made_up' is unknown; allowed are error_occurred"),
        ("run_completed", {}, "'run_completed' is written by the session server alone"),
        ("message_sent", [1], "data is list"),
        ("message_sent", {"x": object()}, "data is not JSON"),
    ],
)
async def test_events_that_are_refused(kind: str, data: Any, message: str) -> None:
    async with scene() as s:
        (run_id,) = await s.submit()
        before = await s.types()
        with pytest.raises(ValidationError, match=message):
            await s.puppet.contexts[run_id].emit(kind, data)
        assert await s.types() == before


async def test_a_run_that_has_ended_says_nothing_more() -> None:
    async with scene() as s:
        (run_id,) = await s.submit()
        await s.puppet.end(run_id)
        before = await s.types()
        with pytest.raises(StaleFence):
            await s.puppet.contexts[run_id].emit("message_sent", {})
        assert await s.types() == before


async def test_the_fleet_is_asked_in_the_name_of_the_run() -> None:
    from interlock.governor import ConcurrencyGovernor
    from interlock.provider.gate import ProviderGate

    governor, gate = ConcurrencyGovernor(), ProviderGate(default_cooldown=0)
    async with scene(governor=governor, gate=gate) as s:
        (run_id,) = await s.submit(priority=3)
        context = s.puppet.contexts[run_id]
        assert context.governor is not None
        assert context.gate is not None
        async with context.governor.acquire_tool() as tool, context.gate.acquire("p") as slot:
            assert (tool.owner, slot.owner) == (run_id, run_id)
            stats = governor.stats()
            assert (stats.tools_max or 0) - (stats.tools_available or 0) == 1
    await gate.aclose()


# -- collisions


async def test_collision_reject() -> None:
    async with scene(collision="reject") as s:
        (run_id,) = await s.submit()
        with pytest.raises(InvalidStatus, match="rejects another") as refused:
            await s.server.submit_run({})
        assert refused.value.code == "run_in_progress"
        await s.puppet.end(run_id)
        assert len(await s.submit()) == 1


async def test_collision_interrupt() -> None:
    async with scene(collision="interrupt") as s:
        (first,) = await s.submit()
        (second,) = await s.submit()
        await idle()
        assert (await s.status(first), await s.status(second)) == ("interrupted", "running")
        assert (await s.log(first))[-1].data == {"reason": "requested", "by": second}


async def test_collision_rollback() -> None:
    async with scene(collision="rollback", max_concurrent_runs=1) as s:
        (first,) = await s.submit()
        s.puppet.stubborn = True
        (second,) = await s.submit()
        s.puppet.stubborn = False
        (third,) = await s.submit()
        await s.clock.advance(10)
        assert [await s.status(one) for one in (first, second, third)] == [
            "cancelled",
            "cancelled",
            "running",
        ]
        assert (await s.log(second))[-1].data == {"by": third, "rolled_back": True}


# -- many at once


async def test_order_and_slots_hold_whatever_comes() -> None:
    """A hundred sessions share ten run slots; every run ends once, and starts follow the submissions."""
    limiter, store = ConcurrencyLimiter(max_parallel_runs=10, max_parallel_sessions=30), MemoryStore()
    inside: set[str] = set()
    most = 0

    async def agent(run: RunContext) -> Any:
        nonlocal most
        inside.add(run.run_id)
        most = max(most, len(inside))
        for _ in range(20 + run.input["n"] % 3):
            await asyncio.sleep(0)
        inside.discard(run.run_id)

    servers = [
        await SessionServer.start(
            store, agent, session_id=f"s{n}", limiter=limiter, max_concurrent_runs=1 + n % 3
        )
        for n in range(100)
    ]
    for n in range(20):
        for server in servers:
            await server.submit_run({"n": n})
    await asyncio.gather(*(server.drain() for server in servers))
    assert 1 < most <= 10
    for server in servers:
        runs = await store.list_runs(server.session_id)
        assert {run.status for run in runs} == {"completed"} < ENDED | {"completed"}
        log = await store.get_events(server.session_id)
        assert [event.run_id for event in log if event.type == "run_started"] == [run.id for run in runs]
        flying = 0
        for event in log:
            flying += (event.type == "run_started") - (event.type == "run_completed")
            assert flying <= server.session.max_concurrent_runs
        await server.close()
    assert limiter.status().active_runs == limiter.status().active_sessions == 0
