"""Permits over plain HTTP: bodies, long polls, leases, fences, who waits, and whatever bytes may come."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest

from admission.harnesses import Hosted, hosted
from gateways import Answer, call, caller, until
from interlock.admission.local import LocalAdmission
from interlock.errors import StoreError
from interlock.stores.memory import MemoryStore
from interlock.testing import VirtualClock

JSON = (b"content-type", b"application/json")


@asynccontextmanager
async def serving(clock: VirtualClock | None = None, **limits: int) -> AsyncIterator[Hosted]:
    """A server with *limits* (default: ``a`` of 1)."""
    admission = LocalAdmission(clock=clock)
    for name, capacity in (limits or {"a": 1}).items():
        admission.configure(name, capacity)
    async with hosted(admission) as server:
        yield server


async def post(server: Hosted, target: str = "/permits", **body: Any) -> Answer:
    return await call(server.url, "POST", target, [JSON], json.dumps(body).encode())


async def delete(server: Hosted, target: str) -> Answer:
    return await call(server.url, "DELETE", target)


def used(server: Hosted, name: str = "a") -> int:
    return server.admission.limits()[name].used


def refused(answer: Answer, status: int, code: str, *words: str) -> dict[str, Any]:
    """The problem document of *answer*."""
    assert answer.status == status, answer
    assert answer.header(b"content-type") == b"application/problem+json"
    problem: dict[str, Any] = answer.json
    assert (problem["status"], problem["code"]) == (status, code)
    assert [word for word in words if word not in problem["detail"]] == []
    return problem


# -- taking and giving back ----------------------------------------------------------------------------------


async def test_a_permit_is_taken_renewed_and_released() -> None:
    """Each answer says what there is to know; nothing is left."""
    async with serving(VirtualClock(1000.0), a=1, b=2) as server:
        answer = await post(server, limits=["a", "b"], owner="o", leaseMs=5000)
        assert answer.status == 201
        permit = answer.json
        assert permit == {
            "id": permit["id"],
            "fence": permit["fence"],
            "limits": ["a", "b"],
            "owner": "o",
            "grantedAt": 1_000_000,
            "expiresAt": 1_005_000,
        }
        assert permit["id"].startswith("permit_")
        assert (used(server), used(server, "b")) == (1, 1)
        renewed = await post(server, f"/permits/{permit['id']}/renew", fence=permit["fence"], leaseMs=9000)
        assert (renewed.status, renewed.json) == (200, {"expiresAt": 1_009_000})
        released = await delete(server, f"/permits/{permit['id']}?fence={permit['fence']}")
        assert (released.status, released.json) == (200, {"released": True})
        assert (used(server), used(server, "b")) == (0, 0)
        again = await delete(server, f"/permits/{permit['id']}?fence={permit['fence']}")
        assert (again.status, again.json) == (200, {"released": False})


async def test_a_key_is_the_id_and_is_idempotent() -> None:
    """The same request again is the same permit; with other limits it is refused."""
    async with serving(a=1, b=1) as server:
        for key in ("k", "a/b/c", "a:b@c_d-e.f", "x" * 128):
            first, again = (
                await post(server, limits=["a"], key=key),
                await post(server, limits=["a"], key=key),
            )
            assert (first.status, again.status) == (201, 201)
            assert first.json == again.json
            assert (first.json["id"], first.json["key"]) == (key, key)
            refused(await post(server, limits=["b"], key=key), 409, "invalid_operation", "in use")
            quoted = "".join(f"%{byte:02X}" for byte in key.encode())
            assert (await delete(server, f"/permits/{quoted}")).json == {"released": True}
        assert used(server) == 0


async def test_no_room_is_429() -> None:
    """At once, by default: the body says what is in the way, and that trying again makes sense."""
    async with serving() as server:
        await post(server, limits=["a"], owner="somebody")
        problem = refused(await post(server, limits=["a"]), 429, "limit_exceeded", "held by somebody")
        assert problem["retryable"] is True
        assert problem["details"] == {"limit": "a"}


async def test_a_fence_protects_the_successor() -> None:
    """A stale one renews nothing (409) and releases nothing; an unknown id is 404."""
    async with serving() as server:
        old = (await post(server, limits=["a"], key="k")).json
        await delete(server, "/permits/k")
        new = (await post(server, limits=["a"], key="k")).json
        assert new["fence"] > old["fence"]
        refused(await post(server, "/permits/k/renew", fence=old["fence"]), 409, "stale_fence", "stale")
        assert (await delete(server, f"/permits/k?fence={old['fence']}")).json == {"released": False}
        assert used(server) == 1
        refused(await post(server, "/permits/nobody/renew", fence=1), 404, "permit_lost", "nobody")
        assert (await delete(server, "/permits/nobody")).json == {"released": False}


async def test_a_lease_ends_by_itself() -> None:
    """Thirty seconds unless said otherwise; afterwards the id is unknown."""
    clock = VirtualClock(1000.0)
    async with serving(clock) as server:
        permit = (await post(server, limits=["a"])).json
        assert permit["expiresAt"] - permit["grantedAt"] == 30_000
        await clock.advance(29)
        await post(server, f"/permits/{permit['id']}/renew", fence=permit["fence"])
        await clock.advance(29)
        assert used(server) == 1
        await clock.advance(2)
        assert used(server) == 0
        gone = await post(server, f"/permits/{permit['id']}/renew", fence=permit["fence"])
        refused(gone, 404, "permit_lost")


async def test_a_lease_is_never_cut_short() -> None:
    """Another process may count on the longer one."""
    async with serving(VirtualClock(1000.0)) as server:
        permit = (await post(server, limits=["a"], leaseMs=50_000)).json
        renewed = await post(server, f"/permits/{permit['id']}/renew", fence=permit["fence"], leaseMs=1000)
        assert renewed.json == {"expiresAt": permit["expiresAt"]}


async def test_the_outcome_decides_the_cooldown() -> None:
    """As an ``async with`` does in Python."""
    async with serving() as server:
        server.admission.configure("a", 1, cooldown=0.0, cooldown_failed=60.0)
        for outcome, cooling in (("success", 0), ("cancelled", 0), ("failed", 1)):
            permit = (await post(server, limits=["a"])).json
            assert (await delete(server, f"/permits/{permit['id']}?outcome={outcome}")).json["released"]
            assert used(server) == cooling


async def test_nested_permits() -> None:
    """A parent's limits are not charged again; one that is gone is refused."""
    async with serving(a=1, b=1) as server:
        parent = (await post(server, limits=["a"])).json
        child = await post(server, limits=["a", "b"], parent=parent["id"])
        assert child.status == 201
        assert (used(server), used(server, "b")) == (1, 1)
        await delete(server, f"/permits/{parent['id']}")
        refused(
            await post(server, limits=["a"], parent=parent["id"]),
            409,
            "invalid_operation",
            "has been released",
        )


async def test_many_are_renewed_at_once() -> None:
    """Whoever is gone is named; with its limits it is counted again, as after a restart."""
    async with serving(VirtualClock(1000.0), a=2) as server:
        one = (await post(server, limits=["a"], leaseMs=1000)).json
        entry = {"id": one["id"], "fence": one["fence"]}
        gone, forgotten = {"id": "gone", "fence": 1}, {"id": "forgotten", "fence": 7, "limits": ["a"]}
        answer = await post(server, "/permits/renew", permits=[entry, gone, forgotten], leaseMs=60_000)
        assert answer.json["lost"] == ["gone"]
        assert used(server) == 2
        assert {holder.fence for holder in server.admission.holders("a")} == {one["fence"], 7}
        assert (await post(server, "/permits/renew", permits=[])).json == {
            "lost": [],
            "epoch": server.desk.epoch,
        }


async def test_what_cannot_be_remembered_is_not_granted() -> None:
    """The end of a lease has to be durable first: with a full disk the answer is 507 and the unit is free."""

    class Filling(MemoryStore):
        full = False

        async def set(self, key: str, value: str) -> None:
            if self.full:
                raise StoreError("the disk is full")

    admission, store = LocalAdmission(), Filling()
    admission.configure("a", 1)
    async with hosted(admission, store) as server:
        store.full = True
        refused(await post(server, limits=["a"]), 507, "storage_error", "the disk is full")
        assert used(server) == 0


# -- waiting -------------------------------------------------------------------------------------------------


async def test_a_long_poll_waits_for_its_turn() -> None:
    """By priority, then by age; each is answered when its turn comes."""
    async with serving() as server:
        holder = (await post(server, limits=["a"])).json
        polls = {}
        for name, more in (("late", {}), ("old", {"since": 1000}), ("urgent", {"priority": -1})):
            polls[name] = asyncio.create_task(post(server, limits=["a"], key=name, timeoutMs=5000, **more))
            await until(lambda: len(server.admission.waiting()) == len(polls))
        for name in ("urgent", "old", "late"):
            await delete(server, f"/permits/{holder['id']}")
            holder = (await polls[name]).json
            assert holder["id"] == name


async def test_a_long_poll_ends_at_its_deadline() -> None:
    """504, naming the limit and who holds it."""
    async with serving() as server:
        await post(server, limits=["a"], owner="somebody")
        answer = await post(server, limits=["a"], timeoutMs=20)
        problem = refused(answer, 504, "timeout", "'a' is full (1/1 in use, held by somebody)")
        assert problem["details"]["blocked_by"] == ["a"]
        assert server.admission.waiting() == ()


async def test_a_client_that_leaves_waits_no_more() -> None:
    """Its place is gone at once, and nobody's turn is lost."""
    async with serving() as server:
        holder = (await post(server, limits=["a"])).json
        async with caller(server.url) as leaving:
            leaving.ask("POST", "/permits", [JSON], b'{"limits": ["a"], "timeoutMs": 60000}')
            await until(lambda: len(server.admission.waiting()) == 1)
            leaving.leave()
            await until(lambda: server.admission.waiting() == ())
        await delete(server, f"/permits/{holder['id']}")
        assert used(server) == 0


async def test_leaving_in_the_instant_of_the_grant_leaks_nothing() -> None:
    """Whichever comes first: the unit is free again, at the latest when the lease of an answer that nobody
    read has ended."""
    async with serving() as server:
        for number in range(20):
            holder = (await post(server, limits=["a"])).json
            async with caller(server.url) as leaving:
                body = b'{"limits": ["a"], "timeoutMs": 60000, "leaseMs": 100}'
                leaving.ask("POST", "/permits", [JSON], body)
                await until(lambda: len(server.admission.waiting()) == 1)
                permit = server.admission.permit(holder["id"])
                assert permit is not None
                if number % 2:
                    leaving.leave()
                for _ in range(number // 4):
                    await asyncio.sleep(0)
                permit.release()
                leaving.leave()
                await until(lambda: used(server) == 0)
            assert server.admission.waiting() == ()


async def test_two_polls_of_one_key_are_one_permit() -> None:
    """One of them leaving in any moment takes nothing from the other."""
    async with serving() as server:
        holder = (await post(server, limits=["a"])).json
        async with caller(server.url) as leaving:
            leaving.ask("POST", "/permits", [JSON], b'{"limits": ["a"], "key": "k", "timeoutMs": 60000}')
            await until(lambda: len(server.admission.waiting()) == 1)
            staying = asyncio.create_task(post(server, limits=["a"], key="k", timeoutMs=5000))
            await asyncio.sleep(0.02)
            permit = server.admission.permit(holder["id"])
            assert permit is not None
            permit.release()
            leaving.leave()
            assert (await staying).json["id"] == "k"
            assert used(server) == 1


async def test_who_waits_can_be_seen_explained_and_sent_away() -> None:
    """In camelCase and milliseconds, absent members absent."""
    clock = VirtualClock(1000.0)
    async with serving(clock, a=1, b=9) as server:
        await post(server, limits=["a"], owner="somebody")
        poll = asyncio.create_task(post(server, limits=["a", "b"], key="x/y", owner="o", timeoutMs=60_000))
        await until(lambda: len(server.admission.waiting()) == 1)
        (waiting,) = (await call(server.url, "GET", "/waiting")).json["waiting"]
        assert waiting == {
            "id": "x/y",
            "key": "x/y",
            "owner": "o",
            "limits": ["a", "b"],
            "priority": 0,
            "since": 1_000_000,
            "arrivedAt": 1_000_000,
            "deadline": 1_060_000,
            "position": 0,
        }
        found = (await call(server.url, "GET", "/waiting/x/y")).json
        assert found.items() >= waiting.items()
        (block,) = found["blocks"]
        assert (block["limit"], block["why"], block["missing"]) == ("a", "full", 1)
        assert block["holders"][0]["owner"] == "somebody"
        assert "key" not in block["holders"][0]
        assert found["text"].endswith("'a' is full (1/1 in use, held by somebody)")
        assert (await delete(server, "/waiting/x/y")).json == {"withdrawn": True}
        refused(await poll, 409, "invalid_operation", "ended this wait")
        refused(await delete(server, "/waiting/x/y"), 404, "not_found", "x/y")
        refused(await call(server.url, "GET", "/waiting/x/y"), 404, "not_found")
        assert (await call(server.url, "GET", "/waiting")).json == {"waiting": [], "next": None}


async def test_draining_ends_the_polls() -> None:
    """503 for who waits and who comes; what is held can be renewed and released still."""
    async with serving() as server:
        holder = (await post(server, limits=["a"])).json
        poll = asyncio.create_task(post(server, limits=["a"], timeoutMs=60_000))
        await until(lambda: len(server.admission.waiting()) == 1)
        server.desk.drain()
        refused(await poll, 503, "draining")
        refused(await post(server, limits=["a"]), 503, "draining")
        renewed = await post(server, f"/permits/{holder['id']}/renew", fence=holder["fence"])
        assert renewed.status == 200
        assert (await delete(server, f"/permits/{holder['id']}")).json == {"released": True}


async def test_the_examples_of_the_docs_work() -> None:
    """The bodies that `docs/remote.md` shows to curl are taken, and answered as it shows."""
    page = (Path(__file__).parents[2] / "docs/remote.md").read_text()
    (taken, renewed), (released,) = (
        re.findall(r"--json '(.*?)'", page),
        re.findall(r"-X DELETE '(.*?)'", page),
    )
    shown = [json.loads(text) for text in re.findall(r"^(\{.*?\})$", page, re.MULTILINE | re.DOTALL)]
    async with serving(tools=1, **{"global": 1}) as server:
        permit = (await call(server.url, "POST", "/permits", [JSON], taken.encode())).json
        assert permit.keys() == shown[0].keys()
        renewal = json.loads(renewed) | {"fence": permit["fence"]}
        assert (await post(server, f"/permits/{permit['id']}/renew", **renewal)).json.keys() == shown[
            1
        ].keys()
        target = released.replace("permit_9f2c…", permit["id"]).rpartition("fence=")[0]
        path = f"{target.partition('7411')[2]}fence={permit['fence']}"
        assert (await delete(server, path)).json == shown[2] == {"released": True}


# -- whatever comes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b'{"limits": ["\xff"]}', "not JSON"),
        (b"[]", "Expected `object`, got `array`"),
        (b"{}", "missing required field `limits`"),
        (b'{"limits": []}', "$.limits"),
        (b'{"limits": [""]}', "$.limits"),
        (b'{"limits": "a"}', "$.limits"),
        (b'{"limits": ["a"], "leaseMS": 5}', "unknown field `leaseMS`"),
        (b'{"limits": ["a"], "lease_ms": 5}', "unknown field `lease_ms`"),
        (b'{"limits": ["a"], "leaseMs": 0}', "$.leaseMs"),
        (b'{"limits": ["a"], "leaseMs": 1.5}', "$.leaseMs"),
        (b'{"limits": ["a"], "leaseMs": true}', "$.leaseMs"),
        (b'{"limits": ["a"], "leaseMs": 1e400}', "$.leaseMs"),
        (b'{"limits": ["a"], "leaseMs": 99999999999}', "$.leaseMs"),
        (b'{"limits": ["a"], "timeoutMs": -1}', "$.timeoutMs"),
        (b'{"limits": ["a"], "timeoutMs": null}', "$.timeoutMs"),
        (b'{"limits": ["a"], "priority": 1001}', "$.priority"),
        (b'{"limits": ["a"], "key": ""}', "$.key"),
        (b'{"limits": ["a"], "key": "' + b"k" * 257 + b'"}', "$.key"),
        (b'{"limits": ["a"], "key": "a b"}', "key is 'a b'; allowed are 1 to 128 of"),
        (b'{"limits": ["a"], "key": "../b"}', "without '..'"),
        (b'{"limits": ["a"], "key": "a/renew"}', "the address of something else"),
        (b'{"limits": ["a"], "owner": "\xc3\xa4"}', "owner is"),
        (b'{"limits": ["a"], "limits": ["b"]}', "the member 'limits' twice"),
        (b'{"limits": ["a"], "since": ' + b"9" * 5000 + b"}", "$.since"),
        (b'{"limits": ' + b"[" * 30_000 + b"]" * 30_000 + b"}", "nested too deeply; allowed are 64"),
        (b'{"limits": ["nothing"]}', "unknown limit 'nothing'; known are: "),
    ],
)
async def test_a_bad_body_is_refused_by_name(body: bytes, words: str) -> None:
    """400, and nothing changes."""
    async with serving() as server:
        refused(await call(server.url, "POST", "/permits", [JSON], body), 400, "validation_error", words)
        assert used(server) == 0


async def test_a_body_has_its_kind_and_its_size() -> None:
    """415 for what a foreign page's form could send, 413 for what is too large."""
    async with serving() as server:
        for kind in (b"text/plain", b"application/x-www-form-urlencoded", b"multipart/form-data; x=json"):
            answer = await call(
                server.url, "POST", "/permits", [(b"content-type", kind)], b'{"limits": ["a"]}'
            )
            refused(answer, 415, "unsupported_media_type", "application/json")
        for kind in (b"application/json; charset=utf-8", b"application/merge+json"):
            answer = await call(
                server.url, "POST", "/permits", [(b"content-type", kind)], b'{"limits": ["a"]}'
            )
            assert answer.status in (201, 429)
        large = b'{"limits": ["a"], "owner": "' + b"x" * 70_000 + b'"}'
        refused(await call(server.url, "POST", "/permits", [JSON], large), 413, "too_large", "65536")


@pytest.mark.parametrize(
    ("query", "words"), [("fence=x", "fence is"), ("fence=-1", "fence is"), ("outcome=unused", "outcome is")]
)
async def test_a_bad_query_is_refused(query: str, words: str) -> None:
    """By name, with what is allowed."""
    async with serving() as server:
        refused(await delete(server, f"/permits/x?{query}"), 400, "validation_error", words, "allowed are")


async def test_any_bytes_are_answered() -> None:
    """A thousand bodies that once were good: never a 5xx, never an open question."""
    dice = Random(7)
    good = b'{"limits": ["a"], "key": "k", "owner": "o", "priority": 1, "since": 5, "timeoutMs": 0}'
    async with serving() as server:
        for _ in range(1000):
            body = bytearray(good)
            for _ in range(dice.randrange(1, 4)):
                place = dice.randrange(len(body))
                body[place : place + dice.randrange(3)] = dice.randbytes(dice.randrange(3))
            async with caller(server.url) as one:
                one.ask("POST", "/permits", [JSON], bytes(body))
                status = (await one.answer()).status
            assert status in (201, 400, 409, 429), bytes(body)
