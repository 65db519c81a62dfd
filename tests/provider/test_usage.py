"""Reading how much an upstream counts: a number in range or nothing, whatever it answers."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
from typing import TYPE_CHECKING

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from interlock.errors import ValidationError
from interlock.provider.usage import (
    MAX_BODY,
    ProviderUsage,
    fetch_usage,
    get_usage,
    parse_llama_slots,
    parse_usage,
    parse_vllm_metrics,
    usage_source,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

GOOD = b'{"usage": {"concurrent_sessions": 3}, "limits": {"concurrency": {"limit": 4, "hard_cap": 5}}}'


# -- the parsers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "sessions"),
    [
        (b"0", 0),
        (b"3", 3),
        (b"2.9", 2),
        (b"1000000", 1_000_000),
        (b"1000001", None),
        (b"-1", None),
        (b"-0.5", None),
        (b"NaN", None),
        (b"Infinity", None),
        (b"1e309", None),
        (b"9" * 5000, None),
        (b'"3"', None),
        (b"true", None),
        (b"null", None),
        (b"[3]", None),
        (b'"\xff"', None),
        (b"[" * 100_000 + b"]" * 100_000, None),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_count_of_sessions(number: bytes, sessions: int | None) -> None:
    """Only a finite number of sensible size is a count; its fraction is cut off."""
    usage = parse_usage(b'{"usage": {"concurrent_sessions": ' + number + b"}}")
    assert usage == (None if sessions is None else ProviderUsage(sessions))


@pytest.mark.parametrize(
    ("body", "usage"),
    [
        (GOOD, ProviderUsage(3, 4)),
        (b'{"usage": {"concurrent_sessions": 1}, "limits": []}', ProviderUsage(1)),
        (
            b'{"usage": {"concurrent_sessions": 1}, "limits": {"concurrency": {"limit": true}}}',
            ProviderUsage(1),
        ),
        (
            b'{"usage": {"concurrent_sessions": 1}, "limits": {"concurrency": {"limit": 0}}}',
            ProviderUsage(1),
        ),
        (b'{"usage": {"concurrent_sessions": 1, "concurrent_sessions": 2}}', ProviderUsage(2)),
        (b'{"usage": 3}', None),
        (b'{"usage": [{"concurrent_sessions": 1}]}', None),
        (b"{}", None),
        (b"[]", None),
        (b"3", None),
        (b"", None),
        (GOOD[:-1], None),
    ],
)
def test_the_shape_of_usage(body: bytes, usage: ProviderUsage | None) -> None:
    """The count stands in ``usage``, the limit beside it; another shape says nothing."""
    assert parse_usage(body) == usage


@pytest.mark.parametrize(
    ("slots", "usage"),
    [
        (
            [{"id": 0, "is_processing": True}, {"id": 1, "is_processing": False}],
            ProviderUsage(1, 2),
        ),
        ([{"id": 0, "state": 0}, {"id": 1, "state": 1}, {"state": 4}], ProviderUsage(2, 3)),
        ([{"is_processing": False}], ProviderUsage(0, 1)),
        ([{"is_processing": "yes"}], None),
        ([{"id": 0}], None),
        ([7], None),
        ([], None),
        ({"error": {"code": 501, "message": "This server does not support slots endpoint."}}, None),
    ],
)
def test_llama_slots(slots: object, usage: ProviderUsage | None) -> None:
    """Busy slots are counted in old and new answers; the number of slots is the limit."""
    assert parse_llama_slots(json.dumps(slots).encode()) == usage


VLLM = b"""\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a/b {c} d"} 2.0
vllm:num_requests_running{engine="1",model_name="a/b {c} d"} 3.0 1790000000000
vllm:num_requests_running_created{engine="0"} 99.0
vllm:num_requests_waiting{engine="0",model_name="vllm:num_requests_running 8"} 7.0
"""


@pytest.mark.parametrize(
    ("text", "usage"),
    [
        (VLLM, ProviderUsage(5)),
        (b"vllm:num_requests_running 1e+00\r\n", ProviderUsage(1)),
        (b"vllm:num_requests_running NaN\n", None),
        (b"vllm:num_requests_running +Inf\n", None),
        (b"vllm:num_requests_running -1\nvllm:num_requests_running 5\n", None),
        (b"vllm:num_requests_running many\n", None),
        (b"vllm:num_requests_waiting 1\n", None),
        (b"", None),
    ],
)
def test_vllm_metrics(text: bytes, usage: ProviderUsage | None) -> None:
    """The running requests of all engines are added up; one bad number spoils the reading."""
    assert parse_vllm_metrics(text) == usage


BODIES = st.one_of(
    st.binary(),
    st.floats().map(lambda n: b"vllm:num_requests_running " + str(n).encode()),
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
        lambda inner: st.one_of(
            st.lists(inner),
            st.dictionaries(
                st.sampled_from(["usage", "concurrent_sessions", "limits", "concurrency", "limit", "state"]),
                inner,
            ),
        ),
        max_leaves=10,
    ).map(lambda value: json.dumps(value).encode()),
)


@given(st.sampled_from([parse_usage, parse_llama_slots, parse_vllm_metrics]), BODIES)
def test_any_body_gives_a_reading_or_none(
    parse: Callable[[bytes], ProviderUsage | None], body: bytes
) -> None:
    """No body makes a parser fail, and a reading holds whole numbers in range."""
    usage = parse(body)
    if usage is not None:
        assert type(usage.concurrent_sessions) is int
        assert 0 <= usage.concurrent_sessions <= 1_000_000
        assert usage.limit is None or 0 < usage.limit <= 1_000_000


# -- over a real socket --------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    """A server on a free loopback port that answers everything with *handler*."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}/v1"
    finally:
        await runner.cleanup()


def answering(body: bytes, **options: object) -> Handler:
    async def handler(_request: web.Request) -> web.Response:
        return web.Response(body=body, **options)

    return handler


async def test_get_usage_asks_with_the_key() -> None:
    """``GET {base_url}/usage`` with the key as bearer, with a client of its own or a given one."""
    asked = []

    async def handler(request: web.Request) -> web.Response:
        asked.append((request.method, request.path, request.headers.get("Authorization")))
        return web.Response(body=GOOD)

    async with serving(handler) as base_url, aiohttp.ClientSession() as client:
        assert await get_usage(base_url, "key") == ProviderUsage(3, 4)
        assert await get_usage(f"{base_url}/", None, client=client) == ProviderUsage(3, 4)
    assert asked == [("GET", "/v1/usage", "Bearer key"), ("GET", "/v1/usage", None)]


async def test_each_kind_of_source_asks_its_own_route() -> None:
    """A path stands under the base URL; the engines' routes stand beside its ``/v1``."""
    answers = {
        "/v1/stats/now": GOOD,
        "/slots": b'[{"is_processing": true}]',
        "/metrics": VLLM + b"# " + b"x" * (2 * MAX_BODY),
    }

    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=answers[request.path])

    async with serving(handler) as base_url:
        for kind, usage in (
            ("/stats/now", ProviderUsage(3, 4)),
            ("llama.cpp", ProviderUsage(1, 1)),
            ("vllm", ProviderUsage(5)),
        ):
            assert await usage_source(kind, base_url, "key")("any provider") == usage


@pytest.mark.parametrize(
    ("kind", "base_url", "message"),
    [
        (
            "ollama",
            "http://h/v1",
            "usage is 'ollama'; allowed are a path under base_url such as \"",
        ),
        ("usage", "http://h/v1", "usage is 'usage'; allowed are"),
        ("//evil/usage", "http://h/v1", "allowed are"),
        ("/../admin", "http://h/v1", "allowed are"),
        ("http://evil/usage", "http://h/v1", "allowed are"),
        ("/usage?x=1", "http://h/v1", "allowed are"),
        ("/usage\n", "http://h/v1", "allowed are"),
        ("/usage", "ftp://h/v1", "base_url is no http or https address"),
        ("/usage", "http://user@h/v1", "base_url is no http or https address"),
        ("vllm", "http://h/v1?key=1", "base_url is no http or https address"),
    ],
)
def test_a_bad_source_is_named(kind: str, base_url: str, message: str) -> None:
    """What may not be asked is refused when it is configured, with what is allowed."""
    with pytest.raises(ValidationError) as caught:
        usage_source(kind, base_url, "key")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "handler",
    [
        answering(GOOD, status=500),
        answering(GOOD, status=401),
        answering(b"", status=204),
        answering(b"<html>", content_type="text/html"),
        answering(GOOD + b" " * MAX_BODY),
        answering(gzip.compress(b" " * 10**8 + GOOD), headers={"Content-Encoding": "gzip"}),
        answering(gzip.compress(GOOD), headers={"Content-Encoding": "gzip"}),
    ],
    ids=["500", "401", "empty", "a page", "too long", "a bomb", "compressed"],
)
@pytest.mark.parametrize("own", [True, False], ids=["own client", "given client"])
async def test_what_is_no_plain_answer_is_none(handler: Handler, own: bool) -> None:
    """An error, a page, a long or a compressed body: the source cannot tell."""
    async with serving(handler) as base_url, aiohttp.ClientSession() as client:
        assert await get_usage(base_url, "key", client=None if own else client) is None


async def test_the_largest_body_is_read() -> None:
    """A body of exactly 64 KiB is still read."""
    async with serving(answering(GOOD.ljust(MAX_BODY))) as base_url:
        assert await get_usage(base_url, "key") == ProviderUsage(3, 4)


async def test_redirects_are_not_followed() -> None:
    """A redirect could carry the key to another host, so it is no answer."""
    asked = []

    async def handler(request: web.Request) -> web.Response:
        asked.append(request.path)
        if request.path == "/v1/usage":
            raise web.HTTPFound("/v1/elsewhere")
        return web.Response(body=GOOD)

    async with serving(handler) as base_url:
        assert await get_usage(base_url, "key") is None
    assert asked == ["/v1/usage"]


async def test_an_endless_body_is_cut_off() -> None:
    """A body that never ends is dropped at 64 KiB, not collected until the deadline."""

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(b" " * 8192)
        return response

    async with serving(handler) as base_url:
        assert await get_usage(base_url, "key", timeout=60) is None


@pytest.mark.parametrize("after", [0, 10], ids=["before the first byte", "within the body"])
async def test_a_hanging_answer_ends_at_the_timeout(after: int) -> None:
    """Wherever an upstream stalls, the poll ends at its timeout, with nothing."""
    stalled = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        if after:
            await response.prepare(request)
            await response.write(GOOD[:after])
        stalled.set()
        await asyncio.Event().wait()
        return response

    async with serving(handler) as base_url:
        assert await get_usage(base_url, "key", timeout=0.2) is None
    assert stalled.is_set()


async def test_a_cancellation_passes() -> None:
    """Only failures of the poll are swallowed; to be cancelled is not one."""
    stalled = asyncio.Event()

    async def handler(_request: web.Request) -> web.Response:
        stalled.set()
        await asyncio.Event().wait()
        return web.Response()

    async with serving(handler) as base_url:
        poll = asyncio.create_task(get_usage(base_url, "key", timeout=60))
        await stalled.wait()
        poll.cancel()
        with pytest.raises(asyncio.CancelledError):
            await poll


async def test_whatever_fails_is_none() -> None:
    """Nobody listening, a key that cannot be sent, a parser that breaks, a closed client."""
    async with serving(answering(GOOD)) as base_url:
        assert await get_usage(base_url, "a\r\nkey: b") is None
        assert await fetch_usage(base_url, lambda body: 1 // 0 and None) is None
        async with aiohttp.ClientSession() as client:
            pass
        assert await get_usage(base_url, "key", client=client) is None
        assert await get_usage(base_url, "key", timeout=0) is None
    assert await get_usage(base_url, "key") is None
    assert await get_usage("no address", "key") is None
