"""A token of a tenant has to do with the tenant's things only; those of others are not there for it."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from gateways import OK, Answer, caller, chat, until, upstream
from interlock.errors import InterlockError
from interlock.http.access.terms import Terms
from served_sessions import HOLD
from served_tokens import Door, bearer, door

SESSION = {"agent": "worker"}


async def tenants(server: Door) -> tuple[str, str, str]:
    """A token of acme, one of beta, and one of everybody's."""
    scopes = ("submit", "read", "gateway")
    acme = await server.token(*scopes, name="acme", tenant="acme")
    beta = await server.token(*scopes, name="beta", tenant="beta")
    return acme, beta, await server.token("admin")


async def made(server: Door, token: str, name: str | None = None) -> str:
    answer = await server.ask("POST", "/sessions", token, {**SESSION, **({"id": name} if name else {})})
    assert answer.status == 201, answer
    return str(answer.json["id"])


async def submitted(server: Door, token: str, session: str) -> str:
    answer = await server.ask("POST", f"/sessions/{session}/runs", token, {"input": HOLD})
    assert answer.status == 202, answer
    return str(answer.json["runId"])


def same_but(answer: Answer, other: Answer, mine: str, theirs: str) -> None:
    """Both answers say the same of their ids, header for header."""
    assert answer.status == other.status
    assert _unnamed(answer, mine) == _unnamed(other, theirs)
    names = [[name for name, _ in one.headers] for one in (answer, other)]
    assert names[0] == names[1]


def _unnamed(answer: Answer, name: str) -> bytes:
    """The body without the id that was asked for, and without that of the request."""
    return re.sub(rb"req_[0-9a-f]{32}", b"REQ", answer.body.replace(name.encode(), b"ID"))


async def test_sessions_runs_and_events_of_others_are_not_there() -> None:
    """By every route, told in the very words of what does not exist; the list has one's own only."""
    async with door() as server:
        acme, beta, admin = await tenants(server)
        own = await made(server, acme, "s1@acme")
        generated = await made(server, acme)
        assert generated.endswith("@acme")
        foreign = await made(server, beta, "s1@beta")
        plain = await made(server, admin, "s1")
        run, hers = await submitted(server, acme, own), await submitted(server, beta, foreign)
        sessions = [
            ("GET", "/sessions/{}", None),
            ("GET", "/sessions/{}/events", None),
            ("GET", "/sessions/{}/runs", None),
            ("POST", "/sessions/{}/drain", {}),
            ("POST", "/sessions/{}/close", {}),
            ("POST", "/sessions/{}/runs", {"input": {}}),
        ]
        runs = [("GET", "/runs/{}", None), ("GET", "/runs/{}/wait?timeoutMs=0", None)]
        runs += [("POST", f"/runs/{{}}/{verb}", None) for verb in ("cancel", "interrupt", "pause", "resume")]
        for routes, ids, unknown in ((sessions, (foreign, plain), "nope@beta"), (runs, (hers,), "run_nope")):
            for method, path, body in routes:
                reference = await server.ask(method, path.format(unknown), acme, body)
                assert reference.status == 404, (method, path)
                for one in ids:
                    answer = await server.ask(method, path.format(one), acme, body)
                    same_but(answer, reference, one, unknown)
        stream = await server.ask(
            "GET", f"/sessions/{foreign}/events", acme, None, (b"accept", b"text/event-stream")
        )
        assert stream.status == 404

        async def listed(token: str, query: str = "") -> list[str]:
            answer = await server.ask("GET", "/sessions" + query, token)
            return [one["id"] for one in answer.json["sessions"]]

        assert set(await listed(acme)) == {own, generated}
        assert await listed(acme, "?limit=1") == [own]
        assert await listed(acme, f"?limit=1&after={own}") == [generated]
        assert await listed(beta) == [foreign]
        assert set(await listed(admin)) == {own, generated, foreign, plain}
        behind = [await server.ask("GET", f"/sessions?after={one}", acme) for one in (foreign, "nope@beta")]
        same_but(behind[0], behind[1], foreign, "nope@beta")

        assert (await server.ask("GET", f"/runs/{run}", acme)).json["sessionId"] == own
        assert (await server.ask("GET", f"/runs/{run}", admin)).status == 200
        fleet = (await server.ask("GET", "/events", beta, None, (b"accept", b"application/json"))).json
        assert list(fleet["sessions"]) == [foreign]
        assert (await server.ask("POST", f"/runs/{hers}/cancel", acme)).status == 404
        assert (await server.ask("GET", f"/runs/{hers}", beta)).json["status"] != "cancelled"


@pytest.mark.parametrize("name", ["s1", "s1@beta", "s1@acme@beta", "@acmes", "acme"])
async def test_a_name_says_whose_it_is(name: str) -> None:
    """What is called otherwise cannot be made with the token; the message says how it would be called."""
    async with door() as server:
        acme, _, _ = await tenants(server)
        answer = await server.ask("POST", "/sessions", acme, {**SESSION, "id": name})
        assert (answer.status, "'@acme'" in answer.json["detail"]) == (400, True)
        for key in ("key", "owner", "parent"):
            answer = await server.ask("POST", "/permits", acme, {"limits": ["p"], key: name})
            assert (answer.status, "'@acme'" in answer.json["detail"]) == (400, True)


async def test_permits_and_waiters_of_others_are_not_there() -> None:
    """They cannot be renewed, released, explained or sent away; and what one waits for names nobody else."""
    async with door(real_time=True) as server:
        server.admission.configure("a", 1)
        acme, beta, admin = await tenants(server)

        async def take(token: str, **more: Any) -> Answer:
            return await server.ask("POST", "/permits", token, {"limits": ["a"], "leaseMs": 60_000, **more})

        held = await take(beta, key="k@beta", owner="secret@beta")
        assert held.status == 201, held
        fence = held.json["fence"]
        for one in ("k@beta", "nope@beta"):
            renewed = await server.ask("POST", f"/permits/{one}/renew", acme, {"fence": fence})
            assert (renewed.status, renewed.json["code"]) == (404, "permit_lost")
            assert (await server.ask("DELETE", f"/permits/{one}", acme)).json == {"released": False}
        many = {
            "permits": [{"id": "k@beta", "fence": fence}, {"id": "x@beta", "fence": fence, "limits": ["a"]}]
        }
        answer = await server.ask("POST", "/permits/renew", acme, many)
        assert answer.json["lost"] == ["k@beta", "x@beta"]
        assert [one.id for one in server.admission.holders("a")] == ["k@beta"]

        refused = await take(acme, timeoutMs=1)
        assert (refused.status, b"beta" in refused.body) == (504, False)
        waits = [asyncio.ensure_future(take(token, timeoutMs=60_000)) for token in (acme, beta)]
        try:
            await until(lambda: len(server.admission.waiting()) == 2)

            async def seen(token: str) -> list[str]:
                return [one["id"] for one in (await server.ask("GET", "/waiting", token)).json["waiting"]]

            (mine,), (hers,) = await seen(acme), await seen(beta)
            assert mine.endswith("@acme")
            assert set(await seen(admin)) == {mine, hers}
            told = await server.ask("GET", f"/waiting/{mine}", acme)
            assert (told.status, b"beta" in told.body, told.json["blocks"][0]["holders"]) == (200, False, [])
            assert b"secret@beta" in (await server.ask("GET", f"/waiting/{mine}", admin)).body
            for method in ("GET", "DELETE"):
                found = [await server.ask(method, f"/waiting/{one}", acme) for one in (hers, "nope@beta")]
                assert found[0].status == 404
                same_but(found[0], found[1], hers, "nope@beta")
            assert len(server.admission.waiting()) == 2
            assert (await server.ask("DELETE", f"/waiting/{mine}", acme)).json == {"withdrawn": True}
            assert (await server.ask("DELETE", f"/waiting/{hers}", admin)).status == 200
        finally:
            ended = await asyncio.gather(*waits)
        assert [one.status for one in ended] == [409, 409]


async def test_a_tenant_has_no_connection_of_permits() -> None:
    """It would be shown everybody's."""
    async with door() as server:
        acme, _, _ = await tenants(server)
        address = server.url.replace("http", "ws") + "/permits/connect"
        name, value = bearer(acme)
        with pytest.raises(InvalidStatus) as refused:
            await connect(address, additional_headers={name.decode(): value.decode()}, proxy=None)
        assert refused.value.response.status_code == 403


async def test_conversations_of_two_tenants_are_two() -> None:
    """Whatever they are called; a call of one's own is seen while it waits, another's is not."""
    async with upstream() as provider, door(provider=provider.url) as server:
        acme, beta, _ = await tenants(server)
        server.admission.configure("provider:p", 1)
        body = chat()
        waiting = []
        for token in (acme, acme, beta):
            fields = [
                bearer(token),
                (b"x-interlock-conversation", b"chat"),
                (b"content-length", b"%d" % len(body)),
            ]
            waiting.append((caller(server.url), fields))
        async with waiting[0][0] as first, waiting[1][0] as second, waiting[2][0] as third:
            for client, (_, fields) in zip((first, second, third), waiting, strict=True):
                client.ask(headers=fields, body=body)
                await asyncio.sleep(0)
            exchange = await provider.next()
            await until(lambda: len(server.admission.waiting()) == 2)
            owners = [one.owner for one in server.admission.waiting()]
            assert sorted(owners) == ["chat@acme", "chat@beta"]
            for token, owner in ((acme, "chat@acme"), (beta, "chat@beta")):
                listed = (await server.ask("GET", "/waiting", token)).json["waiting"]
                assert [one["owner"] for one in listed] == [owner]
            assert exchange.header(b"x-interlock-conversation") is None
            exchange.write(OK)
            for _ in range(2):
                (await provider.next()).write(OK)
            for client in (first, second, third):
                assert (await client.answer()).status == 200


@pytest.mark.parametrize(
    ("scopes", "terms"),
    [
        (("admin",), {"tenant": "acme"}),
        (("admin",), {"min_priority": 0}),
        (("read",), {"tenant": ""}),
        (("read",), {"tenant": "a@b"}),
        (("read",), {"tenant": "a" * 65}),
        (("read",), {"min_priority": 1001}),
        (("read",), {"min_priority": -1001}),
        (("read",), {"requests_per_day": 0}),
        (("read",), {"permit_seconds_per_day": 10**9 + 1}),
    ],
)
async def test_terms_that_cannot_be(scopes: tuple[str, ...], terms: dict[str, Any]) -> None:
    async with door() as server:
        with pytest.raises(InterlockError, match=next(iter(terms)).replace("_", "-")):
            await server.book.create("it", scopes, None, Terms(**terms))
        assert not server.book.required


async def test_terms_outlive_the_server_and_are_listed() -> None:
    """A token is the same after a restart; several tokens open what any of them does, but not two tenants."""
    async with door() as server:
        acme, beta, admin = await tenants(server)
        again = await server.book._settings.items("token:")
        assert json.loads(again["token:acme"])["terms"]["tenant"] == "acme"
        await server.book.load()
        assert (await server.ask("GET", "/sessions/x@beta", acme)).status == 404
        body = {"name": "t", "scopes": ["submit"], "tenant": "acme", "minPriority": 3, "requestsPerDay": 5}
        created = await server.ask("POST", "/tokens", admin, body, (b"content-type", b"application/json"))
        assert created.json["tenant"] == "acme"
        listed = {one["name"]: one for one in (await server.ask("GET", "/tokens", admin)).json["tokens"]}
        assert (listed["t"]["tenant"], listed["t"]["minPriority"], listed["t"]["requestsPerDay"]) == (
            "acme",
            3,
            5,
        )
        two = await server.ask("GET", "/sessions", acme, None, (b"x-interlock-token", beta.encode()))
        assert two.status == 401
        both = await server.ask("GET", "/tokens", acme, None, (b"x-interlock-token", admin.encode()))
        assert both.status == 200
