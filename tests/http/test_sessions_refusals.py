"""Whatever comes at the routes of sessions and runs: a clear refusal, and nothing changed or lost."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest

from gateways import call, caller
from interlock.errors import StoreError
from interlock.stores.memory import MemoryStore
from served_sessions import HOLD, JSON, refused, serving

RUN_VERBS = ("cancel", "interrupt", "pause", "resume")


def nested(levels: int) -> dict[str, Any]:
    """An object of so many objects in each other."""
    value: dict[str, Any] = {}
    for _ in range(levels - 1):
        value = {"a": value}
    return value


# -- unknown -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["nobody", "x" * 300, "%00", "%0A", "a%2520", "%F0%9F%A6%8A", "%FF", "..."])
async def test_unknown_ids_are_404(name: str) -> None:
    """As a problem document, whatever the id looks like."""
    async with serving() as server:
        for target in (f"/sessions/{name}", f"/sessions/{name}/runs"):
            refused(await server.get(target), 404, "session_not_found")
        for target in (f"/sessions/{name}/drain", f"/sessions/{name}/close"):
            refused(await server.post(target), 404, "session_not_found")
        refused(await server.post(f"/sessions/{name}/runs", {"input": {}}), 404, "session_not_found")
        for target in (f"/runs/{name}", f"/runs/{name}/wait"):
            refused(await server.get(target), 404, "run_not_found")
        for verb in RUN_VERBS:
            refused(await server.post(f"/runs/{name}/{verb}"), 404, "run_not_found")
        assert server.sessions.running == {}


async def test_unknown_paths_and_methods_are_problems_as_well() -> None:
    async with serving() as server:
        for target in (
            "/nothing",
            "/runs",
            "/sessions/a%2Fb",
            "/sessions/s1/nothing",
            "/runs/r1/kill",
            "/sessions/",
        ):
            refused(await server.get(target), 404, "not_found")
        answer = await call(server.url, "DELETE", "/sessions")
        refused(answer, 405, "method_not_allowed", "DELETE", "GET, HEAD, OPTIONS, POST")
        assert answer.header(b"allow") == b"GET, HEAD, OPTIONS, POST"


# -- bodies --------------------------------------------------------------------------------------------------

ANY_BODY = [
    (b"{", "not JSON"),
    (b"nonsense", "not JSON"),
    (b"\xff\xfe", "not JSON"),
    (b"[]", "Expected `object`, got `array`"),
    (b"null", "Expected `object`, got `null`"),
    (b'"x"', "Expected `object`"),
]

WRONG_SESSIONS = [
    *ANY_BODY,
    (b"", "not JSON"),
    ({}, "missing required field `agent`"),
    ({"agent": 1}, "$.agent"),
    ({"agent": ""}, "$.agent"),
    ({"agent": "x" * 201}, "$.agent"),
    ({"agent": "worker", "id": ""}, "$.id"),
    ({"agent": "worker", "id": "x" * 201}, "$.id"),
    ({"agent": "worker", "id": 5}, "$.id"),
    ({"agent": "worker", "id": "a/b"}, "id is 'a/b'; allowed are"),
    ({"agent": "worker", "id": "a\n"}, "id is"),
    ({"agent": "worker", "id": "\0"}, "id is"),
    ({"agent": "worker", "id": "a b"}, "id is 'a b'; allowed are 1 to 128 of A-Z a-z 0-9"),
    ({"agent": "worker", "id": "ä"}, "id is"),
    ({"agent": "worker", "id": "."}, "id is"),
    ({"agent": "worker", "id": "a..b"}, "without '..'"),
    ({"agent": "worker", "id": ".."}, "id is '..'"),
    ({"agent": "worker", "ID": "x"}, "unknown field `ID`"),
    ({"agent": "worker", "max_concurrent_runs": 1}, "unknown field `max_concurrent_runs`"),
    ({"agent": "worker", "maxConcurrentRuns": 0}, "$.maxConcurrentRuns"),
    ({"agent": "worker", "maxConcurrentRuns": None}, "$.maxConcurrentRuns"),
    ({"agent": "worker", "maxConcurrentRuns": True}, "$.maxConcurrentRuns"),
    ({"agent": "worker", "maxConcurrentRuns": 10**9}, "$.maxConcurrentRuns"),
    ({"agent": "worker", "maxQueuedRuns": -1}, "$.maxQueuedRuns"),
    ({"agent": "worker", "maxQueuedRuns": 1.5}, "$.maxQueuedRuns"),
    ({"agent": "worker", "collision": "explode"}, "$.collision"),
    ({"agent": "worker", "metadata": []}, "$.metadata"),
    ({"agent": "worker", "metadata": nested(64)}, "nested too deeply; allowed are 64 levels"),
    ({"agent": "worker", "tags": "x"}, "$.tags"),
    ({"agent": "worker", "tags": [""]}, "$.tags"),
    ({"agent": "worker", "tags": ["x"] * 65}, "$.tags"),
]

WRONG_RUNS = [
    *ANY_BODY,
    (b"", "not JSON"),
    ({}, "missing required field `input`"),
    ({"input": "x"}, "$.input"),
    ({"input": None}, "$.input"),
    ({"input": [1]}, "$.input"),
    (b'{"input": {"a": "\xff"}}', "not JSON"),
    (b'{"input": {"a": NaN}}', "the body"),
    (b'{"input": {"a": 1e400}}', "the body"),
    (b'{"input": {"a": ' + b"9" * 5000 + b"}}", "the body"),
    (b'{"input": {"a": "\\ud800"}}', "not JSON"),
    ({"input": {}, "prompt": "x"}, "unknown field `prompt`"),
    ({"input": {}, "timeoutMs": 0}, "$.timeoutMs"),
    ({"input": {}, "timeoutMs": -5}, "$.timeoutMs"),
    ({"input": {}, "timeoutMs": 1.5}, "$.timeoutMs"),
    ({"input": {}, "timeoutMs": 10**12}, "$.timeoutMs"),
    ({"input": {}, "priority": 1001}, "$.priority"),
    ({"input": {}, "priority": "high"}, "$.priority"),
    ({"input": {}, "retry": "always"}, "$.retry"),
    ({"input": {}, "metadata": None}, "$.metadata"),
    ({"input": nested(64)}, "nested too deeply; allowed are 64 levels"),
    ({"input": {"a": [2**53 + 1]}}, "9007199254740993 is too large; allowed are whole numbers up to 2^53"),
    ({"input": {"a": -(2**53) - 1}}, "is too large"),
    ({"input": {str(n): n for n in range(10_000)}}, "too many members; allowed are 10000"),
    (b'{"input": {"a": {"b": 1, "b": 2}}}', "it has the member 'b' twice"),
    (b'{"input": {"a":' + b"[" * 500_000 + b"]" * 500_000 + b"}}", "nested too deeply"),
    (b'{"input": ' + b'{"a":' * 150_000, "nested too deeply"),
]


def shown(value: Any) -> str:
    return str(value)[:32]


@pytest.mark.parametrize(("body", "words"), WRONG_SESSIONS, ids=shown)
async def test_a_wrong_session_is_refused_by_name(body: Any, words: str) -> None:
    async with serving() as server:
        refused(await server.post("/sessions", body), 400, "validation_error", words)
        assert (await server.get("/sessions")).json == {"sessions": [], "next": None}


@pytest.mark.parametrize(("body", "words"), WRONG_RUNS, ids=shown)
async def test_a_wrong_run_is_refused_by_name(body: Any, words: str) -> None:
    async with serving() as server:
        await server.session()
        before = (await server.get("/sessions/s1")).json
        refused(await server.post("/sessions/s1/runs", body), 400, "validation_error", words)
        assert (await server.get("/sessions/s1/runs")).json["runs"] == []
        assert (await server.get("/sessions/s1")).json == before


@pytest.mark.parametrize(
    ("body", "words"),
    [
        *ANY_BODY,
        ({"timeoutMs": -1}, "$.timeoutMs"),
        ({"timeoutMs": 300_001}, "$.timeoutMs"),
        ({"timeoutMs": None}, "$.timeoutMs"),
        ({"timeout": 1}, "unknown field `timeout`"),
    ],
    ids=shown,
)
async def test_a_wrong_drain_or_close_is_refused_by_name(body: Any, words: str) -> None:
    async with serving() as server:
        await server.session()
        for verb in ("drain", "close"):
            refused(await server.post(f"/sessions/s1/{verb}", body), 400, "validation_error", words)
        refused(
            await server.post("/sessions/s1/close", {"complete": 1}), 400, "validation_error", "$.complete"
        )
        refused(
            await server.post("/sessions/s1/drain", {"complete": True}), 400, "validation_error", "complete"
        )
        assert (await server.get("/sessions/s1")).json["status"] == "active"
        assert "s1" in server.sessions.running


async def test_what_is_as_deep_or_as_large_as_allowed_is_taken() -> None:
    """And comes back as it was."""
    async with serving() as server:
        await server.session(metadata=nested(63))
        assert (await server.get("/sessions/s1")).json["metadata"] == nested(63)
        values = {
            "deep": nested(62),
            "whole": [2**53, -(2**53), 0],
            "text": "\0ä🦊\u2028",
            "long": "x" * 1_000_000,
        }
        run = await server.ended(await server.submit(values))
        assert (run["input"], run["output"]) == (values, values)


async def test_a_body_has_its_kind_and_its_size() -> None:
    """415 for what a foreign page's form could send, 413 for what is too large, by its route."""
    async with serving() as server:
        await server.session()
        large = json.dumps({"input": {"a": "x" * (1 << 20)}}).encode()
        refused(await server.post("/sessions/s1/runs", large), 413, "too_large", "1048576")
        large = json.dumps({"agent": "worker", "metadata": {"a": "x" * (1 << 20)}}).encode()
        refused(await server.post("/sessions", large), 413, "too_large", "1048576")
        large = json.dumps({"timeoutMs": 5}).encode() + b" " * 70_000
        refused(await server.post("/sessions/s1/drain", large), 413, "too_large", "65536")
        for kind in (b"text/plain", b"application/x-www-form-urlencoded"):
            for target, body in (
                ("/sessions", b'{"agent": "worker"}'),
                ("/sessions/s1/runs", b'{"input": {}}'),
            ):
                answer = await call(server.url, "POST", target, [(b"content-type", kind)], body)
                refused(answer, 415, "unsupported_media_type", "application/json")
        assert len((await server.get("/sessions")).json["sessions"]) == 1
        assert (await server.get("/sessions/s1/runs")).json["runs"] == []


async def test_a_client_that_leaves_in_the_middle_of_its_body_submits_nothing() -> None:
    async with serving() as server:
        await server.session()
        async with caller(server.url) as leaving:
            length = (b"content-length", b"50")
            leaving.ask("POST", "/sessions/s1/runs", [JSON, length], b'{"input": {}}')
            await leaving.writer.drain()
            leaving.leave()
        assert (await server.get("/sessions/s1/runs")).json["runs"] == []


# -- stores --------------------------------------------------------------------------------------------------


async def test_what_cannot_be_stored_is_not_acknowledged() -> None:
    """507, as long as the disk is full; then all is well again."""

    class Filling(MemoryStore):
        full = False

        async def submit_run(self, *args: Any, **more: Any) -> Any:
            if self.full:
                raise StoreError("the disk is full")
            return await super().submit_run(*args, **more)

    store = Filling()
    async with serving(store) as server:
        await server.session()
        store.full = True
        problem = refused(
            await server.post("/sessions/s1/runs", {"input": HOLD}), 507, "storage_error", "full"
        )
        assert problem["retryable"] is True
        assert (await server.get("/sessions/s1/runs")).json["runs"] == []
        store.full = False
        await server.started(await server.submit())


# -- anything ------------------------------------------------------------------------------------------------


async def test_any_bytes_are_answered() -> None:
    """Bodies that once were good: never a 5xx, never an open question, and only what was taken is there."""
    dice = Random(11)
    goods = {
        "/sessions": b'{"agent": "worker", "maxConcurrentRuns": 3, "metadata": {"a": [1, 2]}, "tags": ["x"]}',
        "/sessions/s1/runs": b'{"input": {"say": "x"}, "timeoutMs": 5000, "priority": 1, "metadata": {}}',
    }
    taken = 0
    async with serving() as server:
        await server.session(maxQueuedRuns=10_000)
        for number in range(600):
            target, good = list(goods.items())[number % 2]
            body = bytearray(good)
            for _ in range(dice.randrange(1, 4)):
                place = dice.randrange(len(body))
                body[place : place + dice.randrange(3)] = dice.randbytes(dice.randrange(3))
            answer = await call(server.url, "POST", target, [JSON], bytes(body))
            assert answer.status in (201, 202, 400), bytes(body)
            if answer.status == 400:
                refused(answer, 400, "validation_error")
            taken += answer.status == 202
        runs = (await server.get("/sessions/s1/runs?limit=1000")).json["runs"]
        assert len(runs) == taken


async def test_any_path_is_answered() -> None:
    """Targets of random bytes in the place of an id: never a 5xx."""
    dice = Random(12)
    async with serving() as server:
        await server.session()
        for _ in range(200):
            name = "".join(f"%{byte:02X}" for byte in dice.randbytes(dice.randrange(1, 12)))
            for target in (f"/sessions/{name}", f"/runs/{name}/wait", f"/sessions/s1/runs?status={name}"):
                assert (await server.get(target)).status in (400, 404), target
