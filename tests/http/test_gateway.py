"""What passes the gateway unchanged, what takes a slot meanwhile, and what is told about it."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any

import pytest

from gateways import (
    EVENTS,
    LAST,
    OK,
    Header,
    answer,
    call,
    caller,
    chat,
    chunk,
    event,
    gateway,
    turns,
    until,
    upstream,
)
from interlock.http.gateway.call import GatewayProvider
from interlock.testing.provider import MockProvider, running

CHAT = "/gateway/p/v1/chat/completions"
OURS = (b"x-interlock-wait-ms", b"ratelimit-policy", b"ratelimit")


def theirs(headers: list[Header]) -> list[Header]:
    """The header fields that the provider sent."""
    return [one for one in headers if one[0] not in (*OURS, b"transfer-encoding")]


# -- what passes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
@pytest.mark.parametrize(
    "target",
    [
        "",
        "/",
        "/v1/models/",
        "/v1/models/gpt-5:free?a",
        "/v1/a%20b~c%C3%A9%7Eb@x;v=1/(d)?q=%2F+%41&&=;x&q=&%zz=[]{}|\\^`\"<>'",
        "/v1/x?" + "y" * 8000,
    ],
)
async def test_any_path_and_method_passes_byte_for_byte(method: str, target: str) -> None:
    """Also what no client library would write: the query is the provider's to judge."""
    async with upstream() as provider, gateway(provider.url + "/base") as served:
        provider.will_answer(OK)
        got = await call(served.url, method, f"/gateway/p{target}", [], b"\x00body\xff")
        seen = await provider.next()
        assert seen.head.split(b"\r\n")[0] == f"{method} /base{target} HTTP/1.1".encode()
        assert (got.status, got.body, seen.body) == (200, b"{}", b"\x00body\xff")


async def test_a_head_request_passes() -> None:
    """Its answer has a length and no body."""
    async with upstream() as provider, gateway(provider.url) as served:
        provider.will_answer(answer(200, b"", (b"content-type", b"x/y")).replace(b"length: 0", b"length: 77"))
        got = await call(served.url, "HEAD", "/gateway/p/v1/models")
        assert (got.status, got.header(b"content-length"), got.header(b"content-type")) == (
            200,
            b"77",
            b"x/y",
        )


async def test_a_chunked_request_arrives_whole() -> None:
    """How a body is cut up on the way is a matter of one connection."""
    async with upstream() as provider, gateway(provider.url) as served, caller(served.url) as client:
        client.ask("POST", CHAT, [(b"transfer-encoding", b"chunked")], chunk(b"one") + chunk(b"two") + LAST)
        seen = await provider.next()
        assert (seen.body, seen.header(b"content-length")) == (b"onetwo", b"6")
        assert seen.header(b"transfer-encoding") is None
        seen.write(OK)
        assert (await client.answer()).status == 200


async def test_end_to_end_headers_pass_and_those_of_the_connection_stay() -> None:
    """Upwards; ours are taken off, and the callers' credentials pass."""
    sent = [
        (b"authorization", b"Bearer caller"),
        (b"x-api-key", b"caller"),
        (b"x-twice", b"1"),
        (b"x-twice", b"2"),
        (b"anthropic-beta", b"a,b"),
        (b"accept-encoding", b"gzip, br"),
        (b"user-agent", b"me/1"),
        (b"x-empty", b""),
    ]
    dropped = [
        (b"connection", b"keep-alive, x-of-this-hop"),
        (b"x-of-this-hop", b"1"),
        (b"keep-alive", b"timeout=5"),
        (b"te", b"trailers"),
        (b"x-interlock-conversation", b"c"),
        (b"x-interlock-priority", b"1"),
        (b"x-interlock-timeout-ms", b"9000"),
        (b"x-interlock-prompt-started-at", b"1"),
        (b"x-interlock-unheard-of", b"1"),
        (b"x-forwarded-for", b"10.0.0.1"),
        (b"forwarded", b"for=10.0.0.1"),
    ]
    async with upstream() as provider, gateway(provider.url) as served:
        provider.will_answer(OK)
        await call(served.url, "POST", CHAT, sent + dropped, b"{}")
        seen = await provider.next()
    host = provider.url.removeprefix("http://").encode()
    expected = [(b"host", host), *sent, (b"content-length", b"2")]
    assert sorted((name.lower(), value) for name, value in seen.headers) == sorted(expected)
    assert [value for name, value in seen.headers if name == b"x-twice"] == [b"1", b"2"]


@pytest.mark.parametrize("status", [200, 201, 202, 400, 401, 404, 409, 422, 500, 502, 599])
async def test_an_answer_passes_byte_for_byte(status: int) -> None:
    """Status, header fields in their order and as often as they came, and the body undecoded."""
    body = gzip.compress(b"hello " * 100)
    fields = [
        (b"content-encoding", b"gzip"),
        (b"x-request-id", b"req_1"),
        (b"x-ratelimit-remaining-requests", b"7"),
        (b"x-twice", b"1"),
        (b"x-twice", b"2"),
        (b"retry-after", b"3"),
    ]
    async with upstream() as provider, gateway(provider.url) as served:
        provider.will_answer(answer(status, body, *fields))
        got = await call(served.url, "POST", CHAT, [], chat())
    assert (got.status, got.body) == (status, body)
    assert theirs(got.headers) == [*fields, (b"content-length", b"%d" % len(body))]


@pytest.mark.parametrize("status", [204, 304])
async def test_an_answer_without_a_body_passes(status: int) -> None:
    async with upstream() as provider, gateway(provider.url) as served, caller(served.url) as client:
        provider.will_answer(b"HTTP/1.1 %d Nothing\r\nx-a: 1\r\n\r\n" % status)
        client.ask("POST", CHAT, [], b"{}")
        got, headers = await client.head()
        assert (got, theirs(headers)) == (status, [(b"x-a", b"1")])
        provider.will_answer(OK)
        client.ask("POST", CHAT, [], b"{}")
        assert (await client.answer()).status == 200, "nothing of a body may follow on the connection"


async def test_an_answer_that_ends_with_its_connection_passes() -> None:
    """As servers of HTTP/1.0 do it."""
    async with upstream() as provider, gateway(provider.url) as served, caller(served.url) as client:
        client.ask("POST", CHAT, [], b"{}")
        exchange = await provider.next()
        exchange.write(b"HTTP/1.0 200 OK\r\n\r\nsome")
        exchange.writer.write_eof()
        assert (await client.answer()).body == b"some"


async def test_a_large_error_passes_whole() -> None:
    """Only its beginning is looked at."""
    body = b"x" * 300_000
    async with upstream() as provider, gateway(provider.url) as served:
        provider.will_answer(answer(500, body))
        assert (await call(served.url, "POST", CHAT, [], b"{}")).body == body


async def test_each_piece_passes_as_soon_as_it_is_there() -> None:
    """The provider sends the next one only after the caller has read the one before."""
    async with upstream() as provider, gateway(provider.url) as served, caller(served.url) as client:
        client.ask("POST", CHAT, [], chat(stream=True))
        exchange = await provider.next()
        exchange.write(EVENTS)
        status, _ = await client.head()
        assert status == 200
        for number in range(3):
            exchange.write(event({"n": number}))
            assert await client.chunk() == b'data: {"n": %d}\n\n' % number
        exchange.write(LAST)
        assert await client.chunk() == b""


async def test_two_clients_at_once_keep_apart() -> None:
    """Forty calls at once over ten connections each get the answer to their own question."""

    async def talk(served_url: str, number: int) -> list[tuple[Any, Any]]:
        async with caller(served_url) as client:
            pairs = []
            for turn in range(4):
                client.ask("POST", CHAT, [], chat(f"{number}-{turn}", model=f"m-{number}-{turn}"))
                pairs.append((f"m-{number}-{turn}", (await client.answer()).json["model"]))
            return pairs

    mock = MockProvider(limit=3, hard_cap=3, lag=0, latency=0.002)
    async with running(mock) as base, gateway(base, limit=3) as served:
        async with asyncio.TaskGroup() as group:
            talks = [group.create_task(talk(served.url, number)) for number in range(10)]
        pairs = [pair for one in talks for pair in one.result()]
        assert len(pairs) == 40
        assert [asked for asked, _ in pairs] == [got for _, got in pairs]
        assert (mock.account.stats.peak_running, mock.account.stats.refused) == (3, 0)


# -- the slot ------------------------------------------------------------------------------------------------


async def test_reading_takes_no_permit() -> None:
    """GET, HEAD and OPTIONS pass while every slot is taken, and a paused provider answers them."""
    async with upstream() as provider, gateway(provider.url, limit=1) as served, caller(served.url) as busy:
        busy.ask()
        working = await provider.next()
        served.gate.pause("p", 60)
        for method in ("GET", "OPTIONS", "HEAD"):
            provider.will_answer(answer(200, b"") if method == "HEAD" else OK)
            assert (await call(served.url, method, "/gateway/p/v1/models")).status == 200
        assert served.used() == 1
        working.write(OK)
        await busy.answer()


async def test_a_permit_is_held_until_the_upstream_body_has_ended() -> None:
    """Over the provider, the streams and the whole; the next one starts with its end, not before."""
    async with (
        upstream() as provider,
        gateway(provider.url, limit=1) as served,
        caller(served.url) as first,
        caller(served.url) as second,
    ):
        first.ask()
        streaming = await provider.next()
        second.ask()
        await served.waits(1)
        streaming.write(EVENTS + event({"n": 1}))
        await first.head()
        await first.chunk()
        used = {name: reading.used for name, reading in served.admission.limits().items()}
        assert used == {"provider:p": 1, "streams": 1, "global": 1}
        assert served.waiting() == 1
        streaming.write(LAST)
        (await provider.next()).write(OK)
        assert (await second.answer()).status == 200


@pytest.mark.parametrize("sizes", [(200_000,), (100_000, 50_000)])
async def test_a_permit_is_given_back_while_the_client_has_not_read(sizes: tuple[int, ...]) -> None:
    """The provider is done with it: who reads slowly, or not at all, keeps nobody else waiting."""
    async with (
        upstream() as provider,
        gateway(provider.url, limit=1, send_buffer=4096) as served,
        caller(served.url, receive_buffer=4096) as lazy,
    ):
        lazy.ask()
        exchange = await provider.next()
        exchange.write(EVENTS)
        for size in sizes:
            exchange.write(chunk(b"x" * size))
            await turns(20)
        exchange.write(LAST)
        await until(lambda: served.used() == 0)


# -- what is added -------------------------------------------------------------------------------------------


async def test_the_limit_and_the_wait_are_told() -> None:
    """In the words of the IETF draft; a provider without a limit has nothing to tell but the wait."""
    async with upstream() as provider, gateway(provider.url, provider.url) as served:
        await served.gate.set_limit("p", 3)
        provider.will_answer(OK, OK)
        limited = await call(served.url)
        assert limited.header(b"ratelimit-policy") == b'"concurrency";q=3;qu="concurrent-requests"'
        assert limited.header(b"ratelimit") == b'"concurrency";r=2'
        assert int(limited.header(b"x-interlock-wait-ms") or b"-1") in range(100)
        free = await call(served.url, "POST", "/gateway/q/v1/chat/completions")
        assert (free.header(b"ratelimit"), free.header(b"ratelimit-policy")) == (None, None)
        assert free.header(b"x-interlock-wait-ms") is not None


async def test_the_wait_is_measured() -> None:
    """From the question to the slot."""
    async with upstream() as provider, gateway(provider.url, limit=1) as served, caller(served.url) as busy:
        busy.ask()
        working = await provider.next()
        waiting = asyncio.create_task(call(served.url))
        await served.waits(1)
        began = served.gate.clock.now()
        await until(lambda: served.gate.clock.now() > began + 0.05)
        working.write(OK)
        (await provider.next()).write(OK)
        assert int((await waiting).header(b"x-interlock-wait-ms") or b"0") >= 50


# -- the state -----------------------------------------------------------------------------------------------


async def test_the_status_has_the_shape_of_the_original() -> None:
    """camelCase, milliseconds, absent keys absent; ours follow."""
    async with upstream() as provider, gateway(provider.url, provider.url, provider.url) as served:
        await served.gate.set_limit("p", 4)
        served.gate.pause("q", 30)
        async with caller(served.url) as busy:
            busy.ask()
            working = await provider.next()
            got = await call(served.url, "GET", "/concurrency/status")
            working.write(OK)
            await busy.answer()
    assert got.status == 200
    first, second = got.json["providers"]
    assert first == {
        "providerId": "p",
        "limit": 4,
        "inFlight": 1,
        "queued": 0,
        "paused": False,
        "cooldownMs": 0,
        "autoReduced": False,
        "configuredLimit": 4,
        "cooling": 0,
    }
    assert (second["providerId"], second["paused"], "limit" in second) == ("q", True, False)
    assert isinstance(second["pausedUntil"], int)


async def test_a_reduced_limit_says_from_what_and_why() -> None:
    async with upstream() as provider, gateway(provider.url, limit=2) as served:
        body = json.dumps({"error": {"code": "concurrency_limit_exceeded"}}).encode()
        provider.will_answer(answer(429, body, (b"retry-after", b"60")))
        await call(served.url, headers=[(b"x-interlock-timeout-ms", b"1000")])
        (status,) = (await call(served.url, "GET", "/concurrency/status")).json["providers"]
        told = {
            name: status[name]
            for name in ("limit", "configuredLimit", "autoReduced", "autoReducedFrom", "reason")
        }
        assert told == {
            "limit": 1,
            "configuredLimit": 2,
            "autoReduced": True,
            "autoReducedFrom": 2,
            "reason": "concurrency",
        }
        assert status["notice"].startswith("Concurrency limit auto-reduced to 1 after a 429")


async def test_a_provider_with_a_key_of_its_own_hides_the_callers() -> None:
    """Whatever the caller sends, in whichever field."""
    async with upstream() as provider, gateway(GatewayProvider("p", provider.url, "sk-own")) as served:
        provider.will_answer(OK, OK)
        for field in (b"authorization", b"x-api-key"):
            value = b"Bearer caller" if field == b"authorization" else b"caller"
            await call(served.url, headers=[(field, value)], body=b"{}")
            seen = await provider.next()
            assert b"caller" not in seen.head
            assert b"sk-own" in (seen.header(field) or b"")
