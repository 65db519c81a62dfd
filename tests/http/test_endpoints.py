"""What every endpoint does alike: methods, queries, problems, and when to come again."""

from __future__ import annotations

import logging
import re
from random import Random
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import Response

from gateways import call, hosting, open_to_all
from interlock.errors import Draining, InterlockError, LimitExceeded, StoreError
from interlock.http.endpoints import Endpoint, endpoint, routes_of
from interlock.http.guard import Guard
from interlock.http.problems import json
from interlock.http.queries import AnyQuery
from interlock.http.retrying import retry_fields, spread, spread_after
from interlock.http.table import ENDPOINTS
from served_tokens import door


def address(one: Endpoint) -> str:
    return re.sub(r"{[^}]*}", "nothing", one.path)


@pytest.mark.parametrize("one", ENDPOINTS, ids=lambda one: one.key)
async def test_a_parameter_that_is_misspelt_is_named(one: Endpoint) -> None:
    """On every route but the original's and the scraper's, which never looked."""
    async with door() as server:
        got = await server.ask(one.method, f"{address(one)}?limt=3")
        looked = b"unknown query parameter 'limt'" in got.body
        assert looked == (one.query is not AnyQuery)
        assert got.status == 400 or not looked


async def test_methods_of_a_path() -> None:
    """405 and OPTIONS name them all; HEAD is GET without a body; the closer path decides."""
    async with door() as server:
        for path, allowed in (
            ("/limits/tools", b"GET, HEAD, OPTIONS, PUT"),
            ("/limits/provider:a/b", b"GET, HEAD, OPTIONS, PUT"),
            ("/limits/tools/history", b"GET, HEAD, OPTIONS"),
            ("/concurrency/limits/p", b"DELETE, GET, HEAD, OPTIONS, PUT"),
            ("/permits/renew", b"OPTIONS, POST"),
            ("/permits/a/renew", b"OPTIONS, POST"),
            ("/permits/a", b"DELETE, OPTIONS"),
        ):
            refused = await server.ask("PATCH", path)
            assert (refused.status, refused.json["code"]) == (405, "method_not_allowed")
            asked = await server.ask("OPTIONS", path)
            assert (asked.status, asked.body) == (204, b"")
            assert refused.header(b"allow") == asked.header(b"allow") == allowed
        whole = await server.ask("GET", "/limits")
        head = await server.ask("HEAD", "/limits")
        assert (head.status, head.body) == (200, b"")
        assert head.header(b"content-length") == str(len(whole.body)).encode()


class Failing:
    """Endpoints that do not do well."""

    error: Exception = InterlockError("unused")

    @endpoint("GET /fails", "read", "It", tag="state", answers={200: None})
    async def fails(self, request: Any) -> Response:
        raise self.error


@pytest.mark.parametrize(
    ("error", "status", "level"),
    [
        (RuntimeError("a secret of the inside"), 500, logging.ERROR),
        (StoreError("the disk is full"), 507, logging.ERROR),
        (Draining("come back"), 503, logging.DEBUG),
        (LimitExceeded("too much"), 429, None),
    ],
)
async def test_a_failure_has_an_id_that_is_in_the_log(
    error: Exception, status: int, level: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    """The answer says nothing of the inside; what nobody foresaw is in the log with its trace."""
    holder = Failing()
    holder.error = error
    caplog.set_level(logging.DEBUG, "interlock.http.problems")
    async with hosting(open_to_all(holder)) as url:
        got = await call(url, "GET", "/fails")
    assert (got.status, got.header(b"content-type")) == (status, b"application/problem+json")
    assert got.json["title"]
    assert b"secret" not in got.body
    assert b"Traceback" not in got.body
    told = [record for record in caplog.records if got.json["requestId"] in record.getMessage()]
    assert ([record.levelno for record in told][:1] or [None]) == [level]
    assert any(record.exc_info for record in told) == isinstance(error, RuntimeError)
    if status in (429, 503):
        assert 800 <= int(got.header(b"retry-after-ms") or 0) <= 1201


async def test_every_refusal_has_an_id() -> None:
    """Also what no endpoint has seen."""
    async with door("configured") as server:
        for path, token in (("/limits", None), ("/nothing", "configured"), ("/runs/x", "configured")):
            got = await server.ask("GET", path, token)
            assert re.fullmatch("req_[0-9a-f]{32}", got.json["requestId"]), path
            assert got.json["title"]


async def test_who_is_refused_comes_again_at_different_times() -> None:
    """A fifth more or less, from a source that can be seeded; never before the end of a known wait."""
    holder = Failing()
    holder.error = LimitExceeded("too much")

    async def waits(seed: int) -> list[int]:
        app = Guard(Starlette(routes=routes_of(holder)), hosts=(), chance=Random(seed))
        async with hosting(app) as url:
            answers = [await call(url, "GET", "/fails") for _ in range(12)]
        assert {answer.header(b"retry-after") for answer in answers} <= {b"1", b"2"}
        return [int(answer.header(b"retry-after-ms") or 0) for answer in answers]

    first = await waits(7)
    assert first == await waits(7) != await waits(8)
    assert all(800 <= one <= 1201 for one in first)
    assert len(set(first)) > 8
    assert all(24 <= spread({}, 30.0) <= 36 for _ in range(100))
    assert all(30 <= spread_after({}, 30.0) <= 36 for _ in range(100))
    assert retry_fields(1.2001) == [(b"retry-after", b"2"), (b"retry-after-ms", b"1201")]


def test_an_endpoint_is_declared_once() -> None:
    class Twice:
        @endpoint("GET /healthz", "open", "It", tag="state", answers={200: None})
        async def again(self, request: Any) -> Response:
            return json({})

    with pytest.raises(ValueError, match="GET /healthz is declared twice"):
        routes_of(Twice(), Twice())
    with pytest.raises(ValueError, match="write it as 'GET /limits'"):
        endpoint("/limits", "open", "It", tag="state", answers={})
