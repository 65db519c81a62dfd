"""Providers that fail: the caller is told in its dialect or cut off, and the slot is free again."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from contextlib import suppress
from typing import Any

import anthropic
import openai
import pytest

from gateways import (
    EVENTS,
    OK,
    Upstream,
    answer,
    call,
    caller,
    chat,
    chunk,
    event,
    gateway,
    turns_until,
    until,
    upstream,
)
from interlock.testing.provider import MockProvider, running

CHAT = "/gateway/p/v1/chat/completions"
PATHS = ["chat/completions", "responses", "messages"]
JSON = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{"
STREAMING = chat(stream=True)


def dead_url() -> str:
    """Where nobody listens."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{closed.getsockname()[1]}"


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_a_provider_that_does_not_listen(method: str, path: str) -> None:
    """502, naming its host and nothing of the request."""
    url = dead_url()
    async with gateway(url, limit=1) as served:
        got = await call(served.url, method, f"/gateway/p/v1/{path}?key=canary", [], b"")
        assert got.status == 502
        error = got.json["error"]
        assert url.removeprefix("http://") in error["message"]
        assert b"canary" not in got.body
        code = error["details"]["error_code"] if path == "messages" else error["code"]
        assert code == "upstream_connect"


async def test_a_provider_that_never_answers() -> None:
    """504 after the time for the first byte, and the connection is closed."""
    async with upstream() as provider, gateway(provider.url, limit=1, first_byte=0.03) as served:
        got = await call(served.url, "POST", CHAT, [], STREAMING)
        assert (got.status, got.json["error"]["code"]) == (504, "upstream_timeout")
        exchange = await provider.next()
        await until(exchange.left.is_set)


async def test_a_plain_answer_may_take_as_long_as_its_caller_waits() -> None:
    """Its first byte is its last: the time for the first byte of a stream is not for it."""
    async with upstream() as provider, gateway(provider.url, limit=1, first_byte=0.02) as served:
        asking = asyncio.create_task(call(served.url, "POST", CHAT, [], chat()))
        exchange = await provider.next()
        began = served.gate.clock.now()
        await until(lambda: served.gate.clock.now() > began + 0.05)
        exchange.write(OK)
        assert (await asking).status == 200


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (b"", "upstream_reset"),
        (b"HTTP/1.1 200 OK\r\ncontent-le", "upstream_reset"),
        (b"SSH-2.0-canary\r\n\r\n", "upstream_protocol"),
        (b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 20_000 + b"\r\n", "upstream_protocol"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", "upstream_protocol"),
        (b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n", "upstream_protocol"),
        (b"HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/canary\r\n\r\n", "upstream_redirect"),
        (b"HTTP/1.1 500 No\r\ncontent-length: 9\r\n\r\nhalf", "upstream_reset"),
        (b"HTTP/1.1 429 No\r\ncontent-length: 9\r\n\r\nhalf", "upstream_reset"),
        (b"HTTP/1.1 999 Odd\r\ncontent-length: 9\r\n\r\nhalf", "upstream_protocol"),
    ],
)
@pytest.mark.parametrize("body", [chat(), STREAMING])
async def test_no_answer_is_a_bad_gateway(said: bytes, code: str, body: bytes) -> None:
    """Whatever came instead is not shown, not followed, and the connection is closed."""
    async with upstream() as provider, gateway(provider.url, limit=1) as served:
        asking = asyncio.create_task(call(served.url, "POST", CHAT, [], body))
        exchange = await provider.next()
        exchange.write(said)
        if code == "upstream_reset":
            exchange.writer.write_eof()
        got = await asking
        assert (got.status, got.json["error"]["code"]) == (502, code)
        assert b"canary" not in got.body
        await until(exchange.left.is_set)
        state = served.gate.status("p")
        assert state is not None
        assert (state.paused, state.limit) == (False, 1)


@pytest.mark.parametrize("how", ["reset", "stall"])
@pytest.mark.parametrize("path", PATHS)
async def test_a_stream_that_breaks_off_ends_with_an_error_event(path: str, how: str) -> None:
    """What has come stays; then the dialect's own error, and a proper end."""
    async with (
        upstream() as provider,
        gateway(provider.url, limit=1, idle=0.03, first_byte=0.3) as served,
        caller(served.url) as client,
    ):
        client.ask("POST", f"/gateway/p/v1/{path}", [], STREAMING)
        exchange = await provider.next()
        exchange.write(EVENTS + event({"n": 1}))
        assert (await client.head())[0] == 200
        assert await client.chunk() == b'data: {"n": 1}\n\n'
        if how == "reset":
            exchange.writer.write_eof()
        last = (await client.body()).decode()
        assert last.endswith("\n\n")
        *name, data = last.splitlines()[:-1]
        assert name == ([] if path == "chat/completions" else ["event: error"])
        error = json.loads(data.removeprefix("data: "))["error"]
        code = error["details"]["error_code"] if path == "messages" else error["code"]
        assert code == ("upstream_reset" if how == "reset" else "upstream_timeout")
        await until(exchange.left.is_set)


async def test_a_stream_that_turns_to_garbage_ends_with_an_error_event() -> None:
    """What cannot be a chunk is the end: it is not waited on for an hour."""
    async with upstream() as provider, gateway(provider.url, limit=1) as served, caller(served.url) as client:
        client.ask("POST", CHAT, [], STREAMING)
        exchange = await provider.next()
        exchange.write(EVENTS + event({"n": 1}))
        await client.head()
        await client.chunk()
        exchange.write(b"zz\r\n")
        async with asyncio.timeout(0.5):
            assert b'"error"' in await client.body()
        assert served.used() == 0


@pytest.mark.parametrize(
    "header",
    [
        JSON,
        EVENTS.replace(b"text/event-stream", b"application/json") + chunk(b"{"),
        EVENTS.replace(b"\r\n\r\n", b"\r\ncontent-encoding: gzip\r\n\r\n") + chunk(b"\x1f\x8b"),
    ],
)
async def test_any_other_answer_that_breaks_off_is_cut_off(header: bytes) -> None:
    """Half a document must not look like a whole one."""
    async with upstream() as provider, gateway(provider.url, limit=1) as served, caller(served.url) as client:
        client.ask("POST", CHAT, [], chat())
        exchange = await provider.next()
        exchange.write(header)
        assert (await client.head())[0] == 200
        exchange.reset()
        with pytest.raises(asyncio.IncompleteReadError):
            await client.body()


async def test_garbage_passes() -> None:
    """What is proper HTTP is the caller's to read."""
    async with upstream() as provider, gateway(provider.url) as served:
        provider.will_answer(answer(200, b"\x00\xff{{{", (b"content-type", b"application/json")))
        assert (await call(served.url)).body == b"\x00\xff{{{"


async def test_a_huge_line_passes() -> None:
    """As it comes, without being kept."""
    mock = MockProvider(latency=0, lag=0)
    mock.cue("huge_line", size=4 << 20)
    async with running(mock) as base, gateway(base, limit=1) as served:
        got = await call(served.url, "POST", CHAT, [], STREAMING)
        assert (got.status, len(got.body)) == (200, (4 << 20) + 2)


@pytest.mark.parametrize(
    ("answered", "cooling"), [(200, "success"), (404, "success"), (500, "failed"), (429, "failed")]
)
async def test_a_slot_cools_by_how_its_call_ended(answered: int, cooling: str) -> None:
    """A failed call may still be at work over there; one that was answered is over."""
    async with upstream() as provider, gateway(provider.url, limit=4, cools=True) as served:
        await served.gate.set_cooldown("p", 0, cancelled=0, failed=3600)
        provider.will_answer(answer(answered, b"{}", (b"retry-after", b"9")))
        await call(served.url, headers=[(b"x-interlock-timeout-ms", b"100")])
        await until(lambda: not served.app.calls)
        reading = served.gate.reading("p")
        assert (reading.used, reading.cooling) == ((1, 1) if cooling == "failed" else (0, 0))


async def test_a_slot_cools_longer_after_its_caller_left() -> None:
    """The provider may not have noticed yet."""
    async with (
        upstream() as provider,
        gateway(provider.url, limit=4, cools=True) as served,
        caller(served.url) as client,
    ):
        await served.gate.set_cooldown("p", 0, cancelled=3600, failed=0)
        client.ask()
        await provider.next()
        client.leave()
        await turns_until(lambda: served.gate.reading("p").cooling == 1, 20)


async def test_after_every_failure_the_next_call_works() -> None:
    """One slot, one provider, a dozen mishaps in a row."""
    mock = MockProvider(limit=1, hard_cap=1, latency=0.002, lag=0, penalty=0)
    faults = ["reset", "stall", "garbage", "redirect", "wrong_length", "status"]
    # The faulty provider raises where it drops a connection.
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    async with running(mock) as base, gateway(base, limit=1, idle=0.03, first_byte=0.05) as served:
        for body in (chat(), STREAMING):
            for fault in faults:
                if fault == "stall" and body is not STREAMING:
                    continue  # a plain answer may take minutes
                mock.cue(fault)
                with suppress(asyncio.IncompleteReadError):
                    await call(served.url, "POST", CHAT, [], body)
                got = await call(served.url, "POST", CHAT, [], body)
                assert got.status == 200, fault
    assert (mock.account.stats.refused, mock.account.stats.peak) == (0, 1)


# -- what the SDKs make of it --------------------------------------------------------------------------------


async def breaks_off(provider: Upstream, first: bytes) -> None:
    """Send the beginning of a stream, and no more."""
    exchange = await provider.next()
    exchange.write(EVENTS + first)
    exchange.writer.write_eof()


async def read(events: Any, seen: list[Any]) -> None:
    async for one in await events:
        seen.append(one)


async def test_the_openai_sdk_raises_where_a_stream_breaks_off() -> None:
    """It does not take half an answer for a whole one."""
    first = event({"id": "1", "choices": [{"index": 0, "delta": {"content": "a"}}]})
    seen: list[Any] = []
    async with (
        upstream() as provider,
        gateway(provider.url) as served,
        openai.AsyncOpenAI(base_url=f"{served.url}/gateway/p", api_key="k") as client,
    ):
        breaking = asyncio.create_task(breaks_off(provider, first))
        with pytest.raises(openai.APIError, match="closed the connection"):
            await read(client.chat.completions.create(model="m", messages=[], stream=True), seen)
        await breaking
    assert [one.choices[0].delta.content for one in seen] == ["a"]


async def test_the_anthropic_sdk_raises_where_a_stream_breaks_off() -> None:
    """As for an error of the provider in the stream."""
    first = chunk(b'event: content_block_stop\ndata: {"type": "content_block_stop", "index": 0}\n\n')
    seen: list[Any] = []
    async with (
        upstream() as provider,
        gateway(provider.url) as served,
        anthropic.AsyncAnthropic(base_url=f"{served.url}/gateway/p", api_key="k") as client,
    ):
        breaking = asyncio.create_task(breaks_off(provider, first))
        creating = client.messages.create(model="m", max_tokens=1, messages=[], stream=True)
        with pytest.raises(anthropic.APIStatusError, match="closed the connection"):
            await read(creating, seen)
        await breaking
    assert [one.type for one in seen] == ["content_block_stop"]


async def test_the_sdks_try_again_after_a_bad_gateway() -> None:
    """As they would without us: it is an error of the server."""
    async with (
        upstream() as provider,
        gateway(provider.url) as served,
        openai.AsyncOpenAI(base_url=f"{served.url}/gateway/p", api_key="k", max_retries=1) as client,
    ):

        async def fail_once() -> None:
            (await provider.next()).reset()
            provider.will_answer(answer(200, b'{"data": []}', (b"content-type", b"application/json")))

        failing = asyncio.create_task(fail_once())
        assert (await client.models.list()).data == []
        await failing
