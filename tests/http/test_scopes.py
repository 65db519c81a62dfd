"""Which token opens which route: every cell, and nothing that is not in the table."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import BaseRoute, Host, Mount, Route
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

import interlock.http.app as application
from admission.harnesses import hosted
from gateways import Answer, call, hosting
from interlock.admission.remote import RemoteAdmission
from interlock.errors import InterlockError
from interlock.http.access.book import TokenBook
from interlock.http.access.scopes import CONNECT, GATEWAY, NAMES, OPEN, close
from interlock.http.endpoints import Path, endpoint, routes_of
from interlock.http.guard import Guard
from interlock.http.table import SCOPES
from interlock.provider.gate import ProviderGate
from interlock.secret import Secret
from interlock.stores import MemoryStore
from interlock.testing import VirtualClock
from served_tokens import bearer, door

CONFIGURED = "the-one-of-the-file"
NO_STREAM = (b"accept", b"application/json")
TOKENS = ("none", "wrong", "revoked", "expired", "configured", *NAMES, "gateway+read", "submit+read")
REFUSED = {"none", "wrong", "revoked", "expired"}


def asked(key: str) -> tuple[str, str]:
    """A request for what the table calls *key*, of things that are not there."""
    method, _, path = key.partition(" ")
    if key == GATEWAY:
        return "POST", "/gateway/p/v1/chat/completions"
    return method, re.sub(r"{[^}]*}", "nothing", path)


def expected(need: str, token: str) -> int | None:
    """401, 403, or None for whatever the route itself says."""
    if need == OPEN:
        return None
    if token in REFUSED:
        return 401
    return None if {need, "admin"} & {*token.split("+")} or token == "configured" else 403


def verdict(answer: Answer) -> int | None:
    return answer.status if answer.status in (401, 403, 429) else None


@pytest.mark.parametrize("key", [key for key in SCOPES if key != CONNECT])
async def test_each_token_opens_what_it_may(key: str) -> None:
    """One row of the matrix: the route with every kind of token."""
    method, path = asked(key)
    async with door(CONFIGURED) as server:
        shown: dict[str, str | None] = {"none": None, "wrong": "il_wrong", "configured": CONFIGURED}
        for name in TOKENS:
            if name not in shown:
                expires_in = 1.0 if name == "expired" else None
                scopes = ("admin",) if name in REFUSED else tuple(name.split("+"))
                shown[name] = await server.token(*scopes, name=name.replace("+", "-"), expires_in=expires_in)
        await server.book.revoke("revoked")
        await server.clock.advance(1.0)
        got = {}
        for name in TOKENS:
            answer = await server.ask(method, path, shown[name], None, NO_STREAM)
            got[name] = verdict(answer)
            check_shape(answer, key)
        assert got == {name: expected(SCOPES[key], name) for name in TOKENS}


def check_shape(answer: Answer, key: str) -> None:
    """A refusal says how to ask, and has the shape that its client understands."""
    if answer.status not in (401, 403):
        return
    challenge = answer.header(b"www-authenticate") or b""
    assert challenge.startswith(b"Bearer")
    assert (b"insufficient_scope" in challenge) == (answer.status == 403)
    code = "unauthorized" if answer.status == 401 else "insufficient_scope"
    if key == GATEWAY:
        assert answer.header(b"content-type") == b"application/json"
        assert answer.json["error"]["code"] == code
    else:
        assert answer.header(b"content-type") == b"application/problem+json"
        assert (answer.json["status"], answer.json["code"]) == (answer.status, code)


async def test_a_refusal_in_front_of_the_gateway_is_in_its_dialect() -> None:
    async with door(CONFIGURED) as server:
        reader = await server.token("read")
        version = (b"anthropic-version", b"2023-06-01")
        for token, kind in ((None, "authentication_error"), (reader, "permission_error")):
            answer = await server.ask("POST", "/gateway/p/v1/messages", token, {}, version)
            assert answer.json["type"] == "error"
            assert answer.json["error"]["type"] == kind


@pytest.mark.parametrize("token", TOKENS)
async def test_each_token_opens_the_connection_of_permits_that_it_may(token: str) -> None:
    """The one row that is a WebSocket."""
    clock = VirtualClock(1_000.0)
    book = TokenBook(MemoryStore(), clock, Secret(CONFIGURED))
    shown: str | None = {"none": None, "wrong": "il_wrong", "configured": CONFIGURED}.get(token, "")
    if shown == "":
        scopes = ("admin",) if token in REFUSED else tuple(token.split("+"))
        _, secret = await book.create("it", scopes, 1.0 if token == "expired" else None)
        shown = secret.reveal()
    if token == "revoked":
        await book.revoke("it")
    await clock.advance(1.0)
    async with hosted(book=book) as server:
        assert await connected(server.url, shown) == expected(SCOPES[CONNECT], token)


async def connected(url: str, token: str | None) -> int | None:
    """How a connection of permits is refused; None where it is not."""
    fields = {} if token is None else {"authorization": f"Bearer {token}"}
    try:
        address = url.replace("http", "ws") + "/permits/connect"
        async with connect(address, additional_headers=fields, proxy=None):
            return None
    except InvalidStatus as refused:
        return refused.response.status_code


async def test_limits_are_not_changed_over_a_connection_of_permits() -> None:
    """Not by who may submit only, who takes permits and reports what a provider says."""
    book = TokenBook(MemoryStore(), VirtualClock(1_000.0))
    _, submit = await book.create("submit", ("submit",))
    _, admin = await book.create("admin", ("admin",))
    async with hosted(book=book) as server:
        client = RemoteAdmission(server.url, token=submit.reveal())
        operator = RemoteAdmission(server.url, token=admin.reveal())
        try:
            await operator.set_limit("tools", 2)
            for change in (
                lambda: client.set_limit("tools", 99),
                lambda: client.remove_limit("tools"),
                lambda: ProviderGate(admission=client).set_limit("p", 5),  # type: ignore[arg-type]
            ):
                with pytest.raises(InterlockError) as refused:
                    await change()
                assert refused.value.code == "insufficient_scope"
            async with client.acquire("tools", timeout=5.0):
                assert server.admission.limits()["tools"].capacity == 2
            await operator.set_limit("tools", 3)
            assert server.admission.limits()["tools"].capacity == 3
        finally:
            await client.aclose()
            await operator.aclose()


async def test_every_route_has_its_scope(monkeypatch: pytest.MonkeyPatch) -> None:
    """All routes of the application are in the table, and the table has nothing else."""
    seen: list[str] = []

    def looked_at(routes: Iterable[BaseRoute], *, but: type) -> None:
        found = list(routes)
        for route in found:
            assert isinstance(route, Route)
            assert isinstance(route.app, Path)
            seen.extend(one.key for one in route.app.endpoints)
        close(found, but=but)

    monkeypatch.setattr(application, "close", looked_at)
    async with door():
        pass
    assert sorted([*seen, GATEWAY, CONNECT]) == sorted(SCOPES)
    assert {*SCOPES.values()} == {OPEN, *NAMES}


@pytest.mark.parametrize("scope", ["", "root", None])
def test_an_endpoint_without_a_scope_cannot_be_written(scope: Any) -> None:
    with pytest.raises(ValueError, match="there are: open, gateway"):
        endpoint("GET /x", scope, "It", tag="state", answers={200: None})


def ruled(key: str) -> str:
    """The scope that the rule gives, of which the table is the long form."""
    method, _, path = key.partition(" ")
    first = path.split("/")[1]
    if first in ("", "static", "healthz", "readyz"):
        return OPEN
    if first == "gateway":
        return "gateway"
    if first in ("tokens", "doctor"):
        return "admin"
    if method == "GET":
        return "read"
    return "submit" if first in ("permits", "waiting", "sessions", "runs") else "admin"


@pytest.mark.parametrize("key", SCOPES)
def test_the_table_says_what_the_rule_says(key: str) -> None:
    """To look is ``read``, to work is ``submit``, to change what holds for all is ``admin``."""
    assert SCOPES[key] == ruled(key)


async def said(request: Any) -> PlainTextResponse:
    return PlainTextResponse("said")


class Said:
    """Two endpoints of one path, and one that is open."""

    @endpoint("GET /healthz", "open", "Whether it runs", tag="state", answers={200: "text/plain"})
    async def health(self, request: Any) -> PlainTextResponse:
        return await said(request)

    @endpoint("GET /limits", "read", "It", tag="state", answers={200: "text/plain"})
    async def read(self, request: Any) -> PlainTextResponse:
        return await said(request)


async def test_a_route_that_is_not_declared_is_closed_to_everybody() -> None:
    """Also where no token is asked for, and also to an admin. A method that is not declared is not there."""
    routes: list[BaseRoute] = [
        *routes_of(Said()),
        Route("/forgotten", said),
        Mount("/files", app=Starlette(routes=[Route("/one", said)])),
    ]
    close(routes, but=Path)
    for configured in (None, CONFIGURED):
        book = TokenBook(MemoryStore(), VirtualClock(), None if configured is None else Secret(configured))
        async with hosting(Guard(Starlette(routes=routes), hosts=(), book=book)) as url:
            shown = [] if configured is None else [bearer(configured)]
            assert (await call(url, "GET", "/healthz")).status == 200
            assert (await call(url, "GET", "/limits", shown)).status == 200
            assert (await call(url, "HEAD", "/limits", shown)).status == 200
            assert (await call(url, "POST", "/limits", shown)).status == 405
            for method, path in (("GET", "/forgotten"), ("GET", "/files/one")):
                answer = await call(url, method, path, shown)
                assert (answer.status, answer.json["code"]) == (403, "closed")


def test_a_route_that_cannot_be_closed_is_not_taken() -> None:
    with pytest.raises(TypeError, match="cannot be closed"):
        close([Host("x", Starlette())], but=Path)


async def test_without_a_guard_nobody_may() -> None:
    """An application that was put up without one is closed, not open."""
    async with hosting(Starlette(routes=routes_of(Said()))) as url:
        assert (await call(url, "GET", "/limits")).status == 403
        assert (await call(url, "GET", "/healthz")).status == 200


@pytest.mark.parametrize(
    "path",
    ["/%68ealthz/../limits", "/healthz/..", "//healthz", "/healthz/", "/healthz%2f", "/gateway/../healthz"],
)
async def test_no_spelling_of_a_path_goes_round(path: str) -> None:
    async with door(CONFIGURED) as server:
        assert (await server.ask("GET", path)).status == 401


async def test_a_disguised_gateway_is_none() -> None:
    """What is asked for is read from the path as it came: no key in ``x-api-key`` opens anything else."""
    async with door(CONFIGURED) as server:
        key = (b"x-api-key", CONFIGURED.encode())
        assert (await server.ask("GET", "/%67ateway/p/v1/models", None, None, key)).status == 401
        assert (await server.ask("GET", "/limits", None, None, key)).status == 401
        assert (await server.ask("POST", "/gateway/p/v1/models", None, {}, key)).status == 502


async def test_several_tokens_open_what_any_of_them_does() -> None:
    async with door(CONFIGURED) as server:
        reader, worker = await server.token("read"), await server.token("submit")
        other = (b"x-interlock-token", worker.encode())
        assert (await server.ask("GET", "/limits", reader, None, other)).status == 200
        assert (await server.ask("DELETE", "/waiting/x", reader, None, other)).status == 404
        assert (await server.ask("PUT", "/limits/tools", reader, {"capacity": 1}, other)).status == 403
