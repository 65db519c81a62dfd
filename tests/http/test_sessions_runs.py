"""Runs over HTTP: submitted, watched, waited for, and ended by somebody's hand."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateways import caller, until
from interlock.admission.local import LocalAdmission
from interlock.limiter import ConcurrencyLimiter
from interlock.testing import VirtualClock
from served_sessions import HOLD, Served, refused, serving


def key(value: str) -> tuple[bytes, bytes]:
    return b"idempotency-key", value.encode("latin-1")


# -- submitted -----------------------------------------------------------------------------------------------


async def test_a_run_from_its_submission_to_its_end() -> None:
    """All that there is to know, absent values null; times in milliseconds."""
    clock = VirtualClock(1000.0)
    async with serving(clock=clock) as server:
        await server.session()
        asked = {
            "input": HOLD,
            "timeoutMs": 60_000,
            "priority": 2,
            "retry": "on_crash",
            "metadata": {"who": "me"},
        }
        first = await server.submit(HOLD)
        await server.started(first)
        await clock.advance(1.0)
        answer = await server.post("/sessions/s1/runs", asked)
        assert answer.status == 202
        run_id = answer.json["runId"]
        assert answer.json == {"runId": run_id, "sessionId": "s1", "status": "pending", "position": 1}
        waiting = {
            "runId": run_id,
            "sessionId": "s1",
            "status": "pending",
            "number": 2,
            "output": None,
            "error": None,
            "attempt": 0,
            "tokenUsage": {},
            "submittedAt": 1_001_000,
            "startedAt": None,
            "endedAt": None,
            "waitedMs": None,
            "position": 1,
            "waitsFor": [{"limit": "session", "used": 1, "capacity": 1}],
            **asked,
        }
        assert await server.run(run_id) == waiting
        await clock.advance(2.0)
        await server.worker.finish(first)
        await server.started(run_id)
        del waiting["position"], waiting["waitsFor"]
        begun = {"status": "running", "attempt": 1, "startedAt": 1_003_000, "waitedMs": 2000}
        assert await server.run(run_id) == waiting | begun
        await clock.advance(0.25)
        await server.worker.finish(run_id, {"said": ["ä", None]})
        ended = {"status": "completed", "output": {"said": ["ä", None]}, "endedAt": 1_003_250}
        assert await server.ended(run_id) == waiting | begun | ended
        assert await server.run(run_id) == waiting | begun | ended


async def test_a_run_that_may_start_at_once_has_no_place_in_line_for_long() -> None:
    async with serving() as server:
        await server.session()
        answer = await server.post("/sessions/s1/runs", {"input": {}})
        assert answer.json["position"] in (None, 1)
        assert await server.ended(answer.json["runId"])


async def test_runs_start_in_their_order_and_are_listed_in_it() -> None:
    """By pages and by status; each that waits says its place."""
    async with serving() as server:
        await server.session()
        submitted = [await server.submit() for _ in range(5)]
        await server.started(submitted[0])
        await server.worker.finish(submitted[0])
        await server.started(submitted[1])
        page = (await server.get("/sessions/s1/runs")).json
        assert page["next"] is None
        assert [
            (run["runId"], run["number"], run["status"], run.get("position")) for run in page["runs"]
        ] == [
            (submitted[0], 1, "completed", None),
            (submitted[1], 2, "running", None),
            (submitted[2], 3, "pending", 1),
            (submitted[3], 4, "pending", 2),
            (submitted[4], 5, "pending", 3),
        ]
        first = (await server.get("/sessions/s1/runs?limit=2")).json
        assert (len(first["runs"]), first["next"]) == (2, submitted[1])
        rest = (await server.get(f"/sessions/s1/runs?limit=3&after={first['next']}")).json
        assert first["runs"] + rest["runs"] == page["runs"]
        assert rest["next"] is None
        waiting = (await server.get("/sessions/s1/runs?status=pending&limit=2")).json
        assert [run["runId"] for run in waiting["runs"]] == submitted[2:4]
        some = (await server.get("/sessions/s1/runs?status=running&status=completed")).json
        assert [run["runId"] for run in some["runs"]] == submitted[:2]
        status = (await server.get("/sessions/s1")).json
        assert (status["inFlightRuns"], status["queuedRuns"]) == ([submitted[1]], submitted[2:])
        assert server.worker.started == submitted[:2]


async def test_a_run_says_which_limit_of_the_fleet_it_waits_for() -> None:
    """By name, with what is in use, as it is at this moment."""
    limiter = ConcurrencyLimiter(max_parallel_runs=1, admission=LocalAdmission())
    async with serving(limiter=limiter) as server:
        await server.session()
        permit = await limiter.acquire_run_slot("elsewhere", "r", timeout=0)
        run_id = await server.submit("x")
        full = [{"limit": "runs", "used": 1, "capacity": 1}]
        assert (await server.run(run_id))["waitsFor"] == full
        assert (await server.get("/sessions/s1/runs")).json["runs"][0]["waitsFor"] == full
        permit.release()
        assert (await server.ended(run_id))["output"] == {"say": "x"}


async def test_tokens_are_counted() -> None:
    async with serving() as server:
        await server.session()
        run = await server.ended(await server.submit({"do": "count"}))
        assert run["tokenUsage"] == {"inputTokens": 3, "outputTokens": 5}


async def test_a_session_of_a_restarted_server_takes_runs() -> None:
    """The first submit takes it up."""
    async with serving() as server:
        await server.session()
        await server.post("/sessions/s1/close")
        assert server.sessions.running == {}
        assert (await server.ended(await server.submit("x")))["output"] == {"say": "x"}


# -- submitted twice -----------------------------------------------------------------------------------------


async def test_the_same_key_is_the_same_run() -> None:
    """Also once it has ended; the answer says that it is a replay. Another session's keys are its own."""
    async with serving() as server:
        await server.session()
        await server.session("s2")
        body = {"input": {"say": 1}, "metadata": {"a": 1}}
        first = await server.post("/sessions/s1/runs", body, key("k-1"))
        assert (first.status, first.header(b"idempotent-replay")) == (202, None)
        await server.ended(first.json["runId"])
        again = await server.post("/sessions/s1/runs", body, key("k-1"))
        assert (again.status, again.header(b"idempotent-replay")) == (202, b"true")
        assert again.json == first.json | {"status": "completed", "position": None}
        for other in (
            await server.post("/sessions/s1/runs", body, key("k-2")),
            await server.post("/sessions/s2/runs", body, key("k-1")),
            await server.post("/sessions/s1/runs", body),
        ):
            assert (other.status, other.header(b"idempotent-replay")) == (202, None)
            assert other.json["runId"] != first.json["runId"]


@pytest.mark.parametrize(
    "change",
    [{"input": {}}, {"metadata": {}}, {"priority": 1}, {"timeoutMs": 5}, {"retry": "on_crash"}],
)
async def test_the_same_key_with_another_body_is_refused(change: dict[str, Any]) -> None:
    """422, and there is no second run."""
    async with serving() as server:
        await server.session()
        body = {"input": {"say": 1}, "metadata": {"a": 1}}
        run_id = (await server.post("/sessions/s1/runs", body, key("k"))).json["runId"]
        answer = await server.post("/sessions/s1/runs", body | change, key("k"))
        problem = refused(answer, 422, "idempotency_key_reused", "k")
        assert problem["retryable"] is False
        assert [run["runId"] for run in (await server.get("/sessions/s1/runs")).json["runs"]] == [run_id]


async def test_the_same_key_many_times_at_once_is_one_run() -> None:
    async with serving() as server:
        await server.session(maxConcurrentRuns=20)
        posts = [server.post("/sessions/s1/runs", {"input": {}}, key("k")) for _ in range(10)]
        answers = await asyncio.gather(*posts)
        assert {answer.status for answer in answers} == {202}
        assert len({answer.json["runId"] for answer in answers}) == 1
        assert len((await server.get("/sessions/s1/runs")).json["runs"]) == 1


async def test_a_key_is_found_where_there_is_no_room() -> None:
    """Whoever did not hear the answer gets it, though the queue is full now."""
    async with serving() as server:
        await server.session(maxQueuedRuns=1)
        runs = [await server.post("/sessions/s1/runs", {"input": HOLD}, key(name)) for name in ("a", "b")]
        refused(await server.post("/sessions/s1/runs", {"input": HOLD}, key("c")), 429, "queue_full")
        again = await server.post("/sessions/s1/runs", {"input": HOLD}, key("b"))
        assert (again.status, again.json["runId"]) == (202, runs[1].json["runId"])


async def test_any_visible_text_is_a_key() -> None:
    async with serving() as server:
        await server.session()
        for name in ('"8e03978e-40d5-43dd"', "a/b", "!~", "k" * 255):
            ids = [
                (await server.post("/sessions/s1/runs", {"input": {}}, key(name))).json["runId"] for _ in "ab"
            ]
            assert ids[0] == ids[1]


@pytest.mark.parametrize("value", ["", "a b", "ä", "k" * 256, "\x7f"])
async def test_a_wrong_key_is_refused(value: str) -> None:
    """Nothing is submitted."""
    async with serving() as server:
        await server.session()
        answer = await server.post("/sessions/s1/runs", {"input": {}}, key(value))
        assert answer.status == 400
        if value != "\x7f":  # which the HTTP parser refuses itself
            refused(answer, 400, "validation_error", "Idempotency-Key", "1 to 255 visible ASCII")
        twice = await server.post("/sessions/s1/runs", {"input": {}}, key("a"), key("b"))
        refused(twice, 400, "validation_error", "Idempotency-Key is given 2 times")
        assert (await server.get("/sessions/s1/runs")).json["runs"] == []


# -- no room -------------------------------------------------------------------------------------------------


async def test_a_full_queue_is_429() -> None:
    """With a ``Retry-After``; once there is room again, it is taken."""
    async with serving() as server:
        await server.session(maxQueuedRuns=1)
        running, queued = await server.submit(), await server.submit()
        problem = refused(await server.post("/sessions/s1/runs", {"input": HOLD}), 429, "queue_full", "s1")
        assert problem["retryable"] is True
        await server.worker.finish(running)
        await server.started(queued)
        await server.submit()


async def test_without_a_queue_a_run_starts_or_is_refused() -> None:
    async with serving() as server:
        await server.session(maxQueuedRuns=0)
        run_id = await server.submit()
        refused(await server.post("/sessions/s1/runs", {"input": HOLD}), 429, "queue_full")
        await server.worker.finish(run_id)
        await server.ended(run_id)
        await server.submit()


async def test_a_session_may_reject_collisions() -> None:
    async with serving() as server:
        await server.session(collision="reject")
        await server.submit()
        refused(await server.post("/sessions/s1/runs", {"input": HOLD}), 409, "run_in_progress")


# -- waited for ----------------------------------------------------------------------------------------------


async def test_waiting_gives_the_run_however_it_ended() -> None:
    """200 for every end; any number may wait, before and after."""
    async with serving() as server:
        await server.session(maxConcurrentRuns=9)
        ended = {}
        for status, asked in (
            ("completed", {"input": {"say": "x"}}),
            ("failed", {"input": {"do": "fail"}}),
            ("timeout", {"input": HOLD, "timeoutMs": 5}),
            ("cancelled", {"input": HOLD}),
            ("interrupted", {"input": HOLD}),
        ):
            run_id = (await server.post("/sessions/s1/runs", asked)).json["runId"]
            polls = [asyncio.create_task(server.get(f"/runs/{run_id}/wait?timeoutMs=5000")) for _ in range(3)]
            await server.started(run_id)
            if status in ("cancelled", "interrupted"):
                await server.post(f"/runs/{run_id}/{status.removesuffix('led').removesuffix('ed')}")
            answers = await asyncio.gather(*polls, server.get(f"/runs/{run_id}/wait"))
            assert {answer.status for answer in answers} == {200}
            assert {answer.body for answer in answers} == {answers[0].body}
            assert answers[0].json["status"] == status
            ended[status] = answers[0].json
        assert ended["failed"]["error"] == {"code": "internal_error", "message": "RuntimeError: it broke"}
        assert ended["timeout"]["error"]["code"] == "timeout"
        assert ended["cancelled"]["error"] is None


async def test_a_long_poll_ends_at_its_deadline() -> None:
    """504, and the run goes on."""
    async with serving() as server:
        await server.session()
        run_id = await server.submit()
        for timeout in (0, 20):
            problem = refused(await server.get(f"/runs/{run_id}/wait?timeoutMs={timeout}"), 504, "timeout")
            assert problem["retryable"] is True
        await server.worker.finish(run_id)
        assert (await server.ended(run_id))["status"] == "completed"


async def test_a_client_that_leaves_waits_no_more() -> None:
    """Nothing of its poll is left, and the run goes on."""
    async with serving() as server:
        await server.session()
        run_id = await server.submit()
        await server.started(run_id)
        before = asyncio.all_tasks()
        async with caller(server.url) as leaving:
            leaving.ask("GET", f"/runs/{run_id}/wait")
            await until(lambda: len(asyncio.all_tasks() - before) >= 3)
            leaving.leave()
        await until(lambda: asyncio.all_tasks() <= before)
        await server.worker.finish(run_id)
        assert (await server.ended(run_id))["status"] == "completed"


async def test_a_server_that_stops_ends_the_polls() -> None:
    """503, for who waits and for who comes."""
    async with serving() as server:
        await server.session()
        run_id = await server.submit()
        polls = [
            asyncio.create_task(server.get(f"/runs/{run_id}/wait")),
            asyncio.create_task(server.post("/sessions/s1/drain")),
        ]
        await server.started(run_id)
        await until_refused(server)
        server.desk.drain()
        for poll in polls:
            refused(await poll, 503, "draining")
        refused(await server.get(f"/runs/{run_id}/wait"), 503, "draining")


async def until_refused(server: Served) -> None:
    """Return once the session drains, which only its polls know of."""
    while (await server.post("/sessions/s1/runs", {"input": {}})).status == 202:
        pass


@pytest.mark.parametrize(
    "query", ["timeoutMs=-1", "timeoutMs=300001", "timeoutMs=x", "timeoutMs=", "timeout=5"]
)
async def test_a_bad_wait_is_refused(query: str) -> None:
    async with serving() as server:
        await server.session()
        run_id = await server.submit()
        refused(await server.get(f"/runs/{run_id}/wait?{query}"), 400, "validation_error", "timeout")


# -- ended, and held -----------------------------------------------------------------------------------------


async def test_a_queued_run_is_cancelled() -> None:
    """At once; those behind it move up."""
    async with serving() as server:
        await server.session()
        running, queued, last = [await server.submit() for _ in range(3)]
        await server.started(running)
        answer = await server.post(f"/runs/{queued}/cancel")
        assert (answer.status, answer.json) == (202, {"runId": queued, "status": "cancelled"})
        assert (await server.run(last))["position"] == 1
        await server.worker.finish(running)
        await server.worker.finish(last)
        assert (await server.ended(last))["status"] == "completed"
        assert server.worker.started == [running, last]


async def test_a_running_run_is_cancelled() -> None:
    """Its slot is the next one's; the same again changes nothing."""
    async with serving() as server:
        await server.session()
        run_id, following = await server.submit(), await server.submit()
        await server.started(run_id)
        assert (await server.post(f"/runs/{run_id}/cancel")).status == 202
        ended = await server.ended(run_id)
        assert (ended["status"], ended["output"]) == ("cancelled", None)
        await server.started(following)
        again = await server.post(f"/runs/{run_id}/cancel")
        assert (again.status, again.json) == (202, {"runId": run_id, "status": "cancelled"})
        assert await server.run(run_id) == ended


async def test_only_a_run_in_flight_is_interrupted() -> None:
    """One that waits, or has ended, is there, but cannot be: 409."""
    async with serving() as server:
        await server.session()
        run_id, queued = await server.submit(), await server.submit()
        await server.started(run_id)
        refused(await server.post(f"/runs/{queued}/interrupt"), 409, "invalid_status", "pending")
        assert (await server.post(f"/runs/{run_id}/interrupt")).status == 202
        assert (await server.ended(run_id))["status"] == "interrupted"
        refused(await server.post(f"/runs/{run_id}/interrupt"), 409, "invalid_status", "interrupted")


async def test_a_run_is_paused_and_resumed() -> None:
    """Only in flight; twice is as once."""
    async with serving() as server:
        await server.session()
        run_id, queued = await server.submit(), await server.submit()
        await server.started(run_id)
        for verb, status in (("pause", "paused"), ("pause", "paused"), ("resume", "running")):
            answer = await server.post(f"/runs/{run_id}/{verb}")
            assert (answer.status, answer.json) == (202, {"runId": run_id, "status": status})
            assert (await server.run(run_id))["status"] == status
        for verb in ("pause", "resume"):
            refused(await server.post(f"/runs/{queued}/{verb}"), 409, "invalid_operation", "pending")
        await server.worker.finish(run_id)
        await server.ended(run_id)
        refused(await server.post(f"/runs/{run_id}/pause"), 409, "invalid_status", "completed")


async def test_an_agent_that_cannot_pause_is_not_paused() -> None:
    async with serving() as server:
        server.worker.capabilities = frozenset()
        await server.session()
        run_id = await server.submit()
        await server.started(run_id)
        refused(await server.post(f"/runs/{run_id}/pause"), 409, "capability_not_supported")
        assert (await server.run(run_id))["status"] == "running"
