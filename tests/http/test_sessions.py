"""Sessions over HTTP: made once, read, listed, drained and closed, whether somebody works on them or not."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from gateways import caller, until
from interlock.stores import MemoryStore, open_store
from interlock.testing import VirtualClock
from served_sessions import JSON, Served, refused, serving

# -- made ----------------------------------------------------------------------------------------------------


async def test_a_session_is_made() -> None:
    """With what was not said as it is by default; times in milliseconds."""
    async with serving(clock=VirtualClock(1000.0)) as server:
        answer = await server.post("/sessions", {"id": "s1", "agent": "worker"})
        assert answer.status == 201
        assert answer.json == {
            "id": "s1",
            "agent": "worker",
            "status": "active",
            "maxConcurrentRuns": 1,
            "maxQueuedRuns": 100,
            "collision": "enqueue",
            "metadata": {},
            "tags": [],
            "createdAt": 1_000_000,
            "updatedAt": 1_000_000,
            "lastSequence": answer.json["lastSequence"],
            "inFlightRuns": [],
            "queuedRuns": [],
            "subscribers": 0,
        }
        assert (await server.get("/sessions/s1")).json == answer.json


async def test_a_session_is_made_as_it_was_asked_for() -> None:
    async with serving() as server:
        asked = {
            "agent": "worker",
            "maxConcurrentRuns": 3,
            "maxQueuedRuns": 0,
            "collision": "reject",
            "metadata": {"a": {"b": [1, 2.5, None, "ü"]}},
            "tags": ["pinned", "x"],
        }
        answer = await server.post("/sessions", asked)
        assert answer.status == 201
        assert answer.json["id"]
        assert answer.json.items() >= asked.items()
        assert (await server.get(f"/sessions/{answer.json['id']}")).json.items() >= asked.items()


async def test_the_same_body_again_finds_the_session() -> None:
    """200; with another body 409, which names what differs, and nothing changes."""
    async with serving(agents=("worker", "other")) as server:
        body = {"id": "s1", "agent": "worker", "metadata": {"a": 1}, "tags": ["x"]}
        assert (await server.post("/sessions", body)).status == 201
        again = await server.post("/sessions", body)
        assert again.status == 200
        changes: list[dict[str, Any]] = [
            {"agent": "other"},
            {"maxConcurrentRuns": 2},
            {"maxQueuedRuns": 5},
            {"collision": "reject"},
            {"metadata": {}},
            {"tags": []},
        ]
        for change in changes:
            refused(await server.post("/sessions", body | change), 409, "invalid_operation", *change)
        assert (await server.get("/sessions/s1")).json == again.json


async def test_the_same_session_asked_for_at_once_is_one() -> None:
    async with serving() as server:
        body = {"id": "s1", "agent": "worker"}
        answers = await asyncio.gather(*(server.post("/sessions", body) for _ in range(8)))
        assert {answer.status for answer in answers} <= {200, 201}
        created = await server.store.get_events("s1", types=("session_created",))
        assert len(created) == 1


async def test_of_two_who_ask_for_one_id_at_once_one_is_refused() -> None:
    """Where they want different things."""
    async with serving() as server:
        bodies = [{"id": "s1", "agent": "worker", "maxConcurrentRuns": slots} for slots in (1, 2)]
        answers = await asyncio.gather(*(server.post("/sessions", body) for body in bodies))
        assert sorted(answer.status for answer in answers) == [201, 409]
        (made,) = [answer.json for answer in answers if answer.status == 201]
        assert (await server.get("/sessions/s1")).json == made


async def test_what_an_id_may_look_like() -> None:
    """And is found again under it."""
    async with serving() as server:
        for name in ("a", "9", "a:b@c", "x" * 128, "_", ".hidden", "a.b-c"):
            assert await server.session(name) == name
            assert (await server.get(f"/sessions/{quote(name)}")).json["id"] == name


async def test_an_agent_has_to_be_configured() -> None:
    async with serving(agents=("worker", "coder")) as server:
        answer = await server.post("/sessions", {"id": "s1", "agent": "nobody"})
        refused(answer, 400, "validation_error", "'nobody'", "configured are: coder, worker")
        refused(await server.get("/sessions/s1"), 404, "session_not_found")
    async with serving(agents=()) as server:
        answer = await server.post("/sessions", {"agent": "nobody"})
        refused(answer, 400, "validation_error", "configured are: none")


# -- listed --------------------------------------------------------------------------------------------------


async def test_sessions_are_listed_in_pages() -> None:
    """In the order in which they were made; ``next`` leads on, and is null at the end."""
    clock = VirtualClock(1000.0)
    async with serving(clock=clock) as server:
        for number in range(7):
            await server.session(f"s{number}")
            await clock.advance(1.0)
        seen: list[str] = []
        target = "/sessions?limit=3"
        while True:
            page = (await server.get(target)).json
            seen += [one["id"] for one in page["sessions"]]
            if page["next"] is None:
                break
            assert page["next"] == seen[-1]
            target = f"/sessions?limit=3&after={page['next']}"
        assert seen == [f"s{number}" for number in range(7)]
        whole = (await server.get("/sessions")).json
        assert ([one["id"] for one in whole["sessions"]], whole["next"]) == (seen, None)
        exact = (await server.get("/sessions?limit=7")).json
        assert (len(exact["sessions"]), exact["next"]) == (7, None)


async def test_sessions_are_listed_by_status() -> None:
    async with serving() as server:
        for name in ("s1", "s2", "s3"):
            await server.session(name)
        assert (await server.post("/sessions/s2/close", {"complete": True})).status == 200
        for query, names in (
            ("status=active", {"s1", "s3"}),
            ("status=completed", {"s2"}),
            ("status=completed&status=active", {"s1", "s2", "s3"}),
            ("status=failed", set()),
        ):
            page = (await server.get(f"/sessions?{query}")).json
            assert {one["id"] for one in page["sessions"]} == names


def of_runs(text: str) -> str:
    """*text* with a session's status as one of a run, and the other way round."""
    swapped = {"active": "running", "running": "active"}
    return re.sub("active|running", lambda found: swapped[found[0]], text)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("status=running", "status is 'running'; allowed are active, "),
        ("status=", "status is ''"),
        ("status=active&status=x", "status is 'x'"),
        ("limit=0", "limit is '0'; allowed are whole numbers from 1 to 1000"),
        ("limit=1001", "limit is"),
        ("limit=-1", "limit is"),
        ("limit=1.5", "limit is"),
        ("limit=%D9%A3", "limit is"),
        ("limit=" + "9" * 5000, "limit is"),
        ("limit=", "limit is"),
        ("limit=1&limit=2", "limit is given 2 times"),
        ("after=nobody", "after is 'nobody'"),
        ("after=%00", "after is"),
        ("after=a/b", "after is"),
        ("stat=active", "unknown query parameter 'stat'; known are: limit, after, status"),
    ],
)
async def test_a_bad_query_is_refused_by_name(query: str, words: str) -> None:
    """Of either list; the statuses of runs are others."""
    async with serving() as server:
        await server.session()
        refused(await server.get(f"/sessions?{query}"), 400, "validation_error", words)
        query, words = (of_runs(text) for text in (query, words.partition(";")[0]))
        refused(await server.get(f"/sessions/s1/runs?{query}"), 400, "validation_error", words)


async def test_a_page_does_not_grow_with_what_is_in_it() -> None:
    """One that has become large ends early, and the next goes on behind it."""
    async with serving() as server:
        for number in range(12):
            await server.session(f"s{number:02}", metadata={"a": "x" * 1_000_000})
        first = (await server.get("/sessions")).json
        assert [one["id"] for one in first["sessions"]] == [f"s{number:02}" for number in range(10)]
        rest = (await server.get(f"/sessions?after={first['next']}")).json
        assert ([one["id"] for one in rest["sessions"]], rest["next"]) == (["s10", "s11"], None)


# -- drained and closed --------------------------------------------------------------------------------------


async def test_a_session_is_drained() -> None:
    """New runs are refused meanwhile, with 503; what was there is finished; afterwards it is open again."""
    async with serving() as server:
        await server.session()
        first, second = await server.submit(), await server.submit()
        draining = asyncio.create_task(server.post("/sessions/s1/drain"))
        await server.started(first)
        await until_draining(server)
        await server.worker.finish(first)
        await server.worker.finish(second)
        answer = await draining
        assert (answer.status, answer.json) == (200, {"drained": True})
        assert (await server.ended(await server.submit("again")))["output"] == {"say": "again"}


async def test_a_drain_has_its_deadline() -> None:
    async with serving() as server:
        await server.session()
        run_id = await server.submit()
        refused(await server.post("/sessions/s1/drain", {"timeoutMs": 20}), 504, "timeout")
        await server.worker.finish(run_id)
        assert (await server.post("/sessions/s1/drain", {"timeoutMs": 5000})).json == {"drained": True}


async def test_a_client_that_leaves_ends_its_drain() -> None:
    """The session takes runs again."""
    async with serving() as server:
        await server.session()
        run_id = await server.submit()
        async with caller(server.url) as leaving:
            leaving.ask("POST", "/sessions/s1/drain", [JSON], b"{}")
            await until_draining(server)
            leaving.leave()
        await until_open(server)
        await server.worker.finish(run_id)


async def until_draining(server: Served) -> None:
    """Return once submits are refused, each in the way that is due."""
    while (answer := await server.post("/sessions/s1/runs", {"input": {}})).status != 503:
        assert answer.status == 202
    refused(answer, 503, "draining")


async def until_open(server: Served) -> None:
    """Return once submits are taken."""
    while (answer := await server.post("/sessions/s1/runs", {"input": {}})).status != 202:
        refused(answer, 503, "draining")


async def test_closing_keeps_what_is_queued() -> None:
    """What runs gets its time, then ends interrupted; the next submit takes up where it was left."""
    async with serving() as server:
        await server.session()
        running, queued = await server.submit(), await server.submit()
        await server.started(running)
        answer = await server.post("/sessions/s1/close", {"timeoutMs": 0})
        assert (answer.status, answer.json["id"], answer.json["status"]) == (200, "s1", "active")
        assert "queuedRuns" not in answer.json
        assert (await server.run(running))["status"] == "interrupted"
        waiting = await server.run(queued)
        assert (waiting["status"], waiting["position"], waiting["waitsFor"]) == ("pending", 1, [])
        assert "s1" not in server.sessions.running
        last = await server.submit("last")
        await server.worker.finish(queued)
        assert (await server.ended(last))["output"] == {"say": "last"}


async def test_closing_for_good() -> None:
    """Only with nothing left to do; it can be read then, but takes nothing; the same again is no error."""
    async with serving() as server:
        await server.session()
        run_id = await server.submit()
        await server.started(run_id)
        refused(await server.post("/sessions/s1/close", {"complete": True}), 409, "invalid_operation")
        await server.worker.finish(run_id)
        await server.ended(run_id)
        closed = await server.post("/sessions/s1/close", {"complete": True})
        assert (closed.status, closed.json["status"]) == (200, "completed")
        for body in ({"complete": True}, None):
            again = await server.post("/sessions/s1/close", body)
            assert (again.status, again.json) == (200, closed.json)
        refused(await server.post("/sessions/s1/runs", {"input": {}}), 409, "invalid_status")
        refused(await server.post("/sessions/s1/drain"), 409, "invalid_status")
        same = {"id": "s1", "agent": "worker"}
        refused(await server.post("/sessions", same), 409, "invalid_status")
        assert (await server.get("/sessions/s1")).json == closed.json
        assert [run["runId"] for run in (await server.get("/sessions/s1/runs")).json["runs"]] == [run_id]
        assert (await server.get(f"/runs/{run_id}/wait")).json["status"] == "completed"


async def test_events_are_read_and_streams_end_with_the_server() -> None:
    """A page, or a stream that goes on until the server stops."""
    async with serving() as server:
        await server.session()
        await server.ended(await server.submit("x"))
        events = (await server.get("/sessions/s1/events")).json["events"]
        assert [event["sequence"] for event in events] == [*range(1, len(events) + 1)]
        assert events[-1]["type"] == "run_completed"
        async with caller(server.url) as reader:
            reader.ask("GET", "/sessions/s1/events", [(b"accept", b"text/event-stream")])
            assert (await reader.head())[0] == 200
            seen = b""
            while b"event: end-of-backfill" not in seen:
                seen += await reader.chunk()
            assert seen.count(b"\nid: ") + seen.startswith(b"id: ") == len(events)
            server.desk.drain()
            while await reader.chunk():
                pass


async def test_closing_goes_on_when_the_client_leaves() -> None:
    async with serving() as server:
        await server.session()
        run_id = await server.submit()
        await server.started(run_id)
        async with caller(server.url) as leaving:
            leaving.ask("POST", "/sessions/s1/close", [JSON], b'{"timeoutMs": 200}')
            await until(lambda: server.sessions.running["s1"].closed)
            leaving.leave()
        assert "s1" in server.sessions.running
        await until(lambda: "s1" not in server.sessions.running)
        assert (await server.run(run_id))["status"] == "interrupted"


# -- nobody works on them ------------------------------------------------------------------------------------


async def test_sessions_of_an_agent_that_is_gone_can_be_read() -> None:
    """After a restart with another configuration; what would need the agent is refused."""
    store = MemoryStore()
    async with serving(store) as server:
        await server.session()
        done = await server.submit("x")
        await server.ended(done)
        running, queued = await server.submit(), await server.submit()
        await server.started(running)
    async with serving(store, agents=("other",)) as server:
        session = (await server.get("/sessions/s1")).json
        assert (session["agent"], session["status"]) == ("worker", "active")
        assert "inFlightRuns" not in session
        assert [one["id"] for one in (await server.get("/sessions")).json["sessions"]] == ["s1"]
        runs = (await server.get("/sessions/s1/runs")).json["runs"]
        assert [one["runId"] for one in runs] == [done, running, queued]
        assert (await server.run(queued))["position"] == 1
        assert (await server.get(f"/runs/{done}/wait")).json["output"] == {"say": "x"}
        for answer in (
            await server.get(f"/runs/{queued}/wait"),
            await server.post(f"/runs/{queued}/cancel"),
            await server.post("/sessions/s1/runs", {"input": {}}),
            await server.post("/sessions/s1/drain"),
        ):
            refused(answer, 409, "invalid_operation", "its agent 'worker' is not configured")
        for verb, status in (("cancel", 202), ("interrupt", 409), ("pause", 409)):
            assert (await server.post(f"/runs/{done}/{verb}")).status == status
        assert (await server.post("/sessions/s1/close")).json == session
        assert (await server.run(queued))["status"] == "pending"
        events = (await server.get(f"/sessions/s1/events?run={queued}")).json["events"]
        assert [event["type"] for event in events] == ["run_queued"]


async def test_a_restarted_server_knows_its_sessions() -> None:
    """They are taken up by the first request that needs them."""
    store = MemoryStore()
    async with serving(store) as server:
        await server.session()
        running, queued = await server.submit(retry="on_crash"), await server.submit("next")
        await server.started(running)
    async with serving(store) as server:
        assert server.sessions.running == {}
        again = await server.post("/sessions", {"id": "s1", "agent": "worker"})
        assert again.status == 200
        assert (await server.ended(queued))["output"] == {"say": "next"}


async def test_what_was_acknowledged_is_there_after_a_restart(tmp_path: Path) -> None:
    """From a database: sessions, keys, ends, and runs that wait go on by themselves."""
    url, body = f"sqlite:///{tmp_path}/i.db", {"input": {"say": 1}, "metadata": {"a": [None, 2.5]}}
    key = (b"idempotency-key", b"k")
    store = await open_store(url)
    async with serving(store) as server:
        await server.session(tags=["x"], metadata={"ä": 1})
        session = (await server.get("/sessions/s1")).json
        done = (await server.post("/sessions/s1/runs", body, key)).json["runId"]
        ended = await server.ended(done)
        running, queued = await server.submit(), await server.submit("next")
        await server.started(running)
    await store.aclose()
    store = await open_store(url)
    async with serving(store) as server:
        found = (await server.get("/sessions")).json["sessions"]
        assert [one["id"] for one in found] == ["s1"]
        assert found[0]["metadata"] == session["metadata"]
        assert await server.run(done) == ended
        again = await server.post("/sessions/s1/runs", body, key)
        assert (again.json["runId"], again.header(b"idempotent-replay")) == (done, b"true")
        assert (await server.ended(queued))["output"] == {"say": "next"}
        assert (await server.run(running))["status"] == "interrupted"
        recreated = {"id": "s1", "agent": "worker", "tags": ["x"], "metadata": {"ä": 1}}
        assert (await server.post("/sessions", recreated)).status == 200
    await store.aclose()


async def test_the_examples_of_the_docs_work() -> None:
    """What `docs/http.md` shows to curl is answered with the members that it shows."""
    page = (Path(__file__).parents[2] / "docs/http.md").read_text()
    asked = re.findall(
        r"^curl (?:--json '(.*?)' |-X (POST) )?(?:-H '(\S+): (\S+)' )?(?:\\\n  )?'?http://127.0.0.1:7411(\S+?)'?\n(\{.*?\})$",
        page,
        re.MULTILINE | re.DOTALL,
    )
    assert len(asked) == page.count("\ncurl ") >= 6
    run_id = ""
    async with serving(agents=("coder",)) as server:
        for body, post, header, value, target, shown in asked:
            target = re.sub(r"run_[0-9a-f]+…", run_id, target)
            headers = [(header.encode(), value.encode())] if header else []
            if body or post:
                answer = await server.post(target, body.encode() or None, *headers)
            else:
                answer = await server.get(target)
            assert answer.status < 300, answer
            assert answer.json.keys() == json.loads(shown.replace("…]", "]").replace("…}", "}")).keys(), (
                target
            )
            run_id = answer.json.get("runId", run_id)


async def test_without_a_store_for_them_there_are_no_sessions() -> None:
    """503, whatever is asked."""
    async with serving(with_sessions=False) as server:
        for target in ("/sessions", "/sessions/s1", "/sessions/s1/events", "/sessions/s1/runs", "/runs/r1"):
            refused(await server.get(target), 503, "unavailable", "no sessions")
        for target in ("/sessions", "/sessions/s1/runs", "/sessions/s1/close", "/runs/r1/cancel"):
            refused(await server.post(target, {}), 503, "unavailable")


async def test_a_server_that_stops_takes_nothing_new() -> None:
    """503 for what is new, while what there is can be read and ended."""
    async with serving() as server:
        await server.session()
        run_id = await server.submit()
        await server.started(run_id)
        server.gateway.draining = True
        refused(await server.post("/sessions", {"agent": "worker"}), 503, "draining")
        refused(await server.post("/sessions/s1/runs", {"input": {}}), 503, "draining")
        assert (await server.get("/sessions/s1")).status == 200
        assert (await server.post(f"/runs/{run_id}/cancel")).status == 202
        assert (await server.ended(run_id))["status"] == "cancelled"
