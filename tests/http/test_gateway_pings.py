"""A streaming call that waits long: its line is kept alive, and what follows is a stream whatever comes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anthropic
import openai
import pytest

from gateways import (
    EVENTS,
    LAST,
    OK,
    Caller,
    Exchange,
    Served,
    Upstream,
    answer,
    call,
    caller,
    chat,
    event,
    gateway,
    until,
    upstream,
)

CHAT = "/gateway/p/v1/chat/completions"
PING = b": ping\n\n"


@asynccontextmanager
async def waiting(
    path: str = CHAT, ping_after: float = 0.005, timeout: bytes = b"4000"
) -> AsyncIterator[tuple[Upstream, Served, Caller, Exchange]]:
    """A streaming call that waits for the only slot; the exchange is the one that holds it."""
    async with (
        upstream() as provider,
        gateway(provider.url, limit=1, ping_after=ping_after) as served,
        caller(served.url) as busy,
        caller(served.url) as client,
    ):
        busy.ask()
        working = await provider.next()
        client.ask("POST", path, [(b"x-interlock-timeout-ms", timeout)], chat(stream=True))
        await served.waits(1)
        yield provider, served, client, working
        if not working.left.is_set():
            working.write(OK)


async def test_pings_come_first_and_then_the_stream_as_it_is() -> None:
    """The status is 200 and the type that of events; nothing but comments stands before the first event."""
    async with waiting() as (provider, _, client, working):
        status, headers = await client.head()
        assert status == 200
        assert (b"content-type", b"text/event-stream; charset=utf-8") in headers
        assert (b"cache-control", b"no-cache") in headers
        assert await client.chunk() == PING
        working.write(OK)
        exchange = await provider.next()
        exchange.write(EVENTS + event({"n": 1}) + event(b"[DONE]") + LAST)
        assert await client.body() == b'data: {"n": 1}\n\ndata: [DONE]\n\n'


async def test_after_a_ping_the_provider_is_asked_for_plain_bytes() -> None:
    """The header has gone out: a compressed body could no longer be announced."""
    async with upstream() as provider, gateway(provider.url, limit=1, ping_after=0.005) as served:
        for pinged in (False, True):
            async with caller(served.url) as busy, caller(served.url) as client:
                if pinged:
                    busy.ask()
                    working = await provider.next()
                client.ask("POST", CHAT, [(b"Accept-Encoding", b"gzip, br")], chat(stream=True))
                if pinged:
                    await client.head()
                    working.write(OK)
                exchange = await provider.next()
                encodings = [value for name, value in exchange.headers if name.lower() == b"accept-encoding"]
                assert encodings == [b"identity" if pinged else b"gzip, br"]
                exchange.write(EVENTS + LAST)
                if not pinged:
                    await client.head()
                await client.body()


async def test_pings_go_on_until_the_provider_answers() -> None:
    """One a second or slower; also while the provider thinks."""
    async with waiting() as (provider, _, client, working):
        await client.head()
        assert await client.chunk() == PING
        working.write(OK)
        exchange = await provider.next()
        assert await client.chunk() == PING
        exchange.write(EVENTS + event({"n": 1}) + LAST)
        assert await client.body() == b'data: {"n": 1}\n\n'


async def test_who_waits_less_gets_no_ping() -> None:
    """The answer's own header is the first thing that the caller sees."""
    async with waiting(ping_after=3600) as (provider, _, client, working):
        working.write(OK)
        exchange = await provider.next()
        exchange.write(EVENTS.replace(b"200 OK", b"201 Made") + event({"n": 1}) + LAST)
        got = await client.answer()
        assert (got.status, got.body) == (201, b'data: {"n": 1}\n\n')


@pytest.mark.parametrize("body", [chat(), chat(stream=False), chat(stream="true"), b"no json"])
async def test_a_call_that_does_not_stream_gets_no_ping(body: bytes) -> None:
    """However long it waits: its answer has a status and a length."""
    async with (
        upstream() as provider,
        gateway(provider.url, limit=1, ping_after=0) as served,
        caller(served.url) as busy,
    ):
        busy.ask()
        working = await provider.next()
        asking = asyncio.create_task(call(served.url, "POST", CHAT, [], body))
        await served.waits(1)
        began = served.gate.clock.now()
        await until(lambda: served.gate.clock.now() > began + 0.03)
        working.write(OK)
        (await provider.next()).write(answer(404, b"[]"))
        got = await asking
        assert (got.status, got.body) == (404, b"[]")


async def test_a_wait_between_two_attempts_is_kept_alive_too() -> None:
    """The provider has refused for now; the caller's patience is not over."""
    async with (
        upstream() as provider,
        gateway(provider.url, limit=1, ping_after=0.005) as served,
        caller(served.url) as client,
    ):
        provider.will_answer(answer(429, b"{}", (b"retry-after-ms", b"60")))
        client.ask("POST", CHAT, [], chat(stream=True))
        await provider.next()
        assert (await client.head())[0] == 200
        assert await client.chunk() == PING
        (await provider.next()).write(EVENTS + event({"n": 1}) + LAST)
        assert await client.body() == b'data: {"n": 1}\n\n'


ERROR = {"type": "invalid_request_error", "message": "Too long!", "param": "messages", "code": "too_long"}


@pytest.mark.parametrize("status", [400, 401, 429, 500, 503])
@pytest.mark.parametrize("path", ["chat/completions", "responses", "messages"])
async def test_an_error_after_pings_is_an_event_of_the_dialect(path: str, status: int) -> None:
    """With the provider's own words in it, and the end of the stream after it."""
    async with waiting(f"/gateway/p/v1/{path}") as (provider, _, client, working):
        await client.head()
        working.write(OK)
        body = json.dumps({"error": ERROR} if path != "messages" else {"type": "error", "error": ERROR})
        (await provider.next()).write(answer(status, body.encode(), (b"retry-after", b"1000")))
        lines = (await client.body()).replace(PING, b"").decode().splitlines()
        data = json.loads(lines[-2].removeprefix("data: "))
        assert data["error"]["message"] == "Too long!"
        assert lines[:-2] == ([] if path == "chat/completions" else ["event: error"])
        assert lines[-1] == ""


async def test_a_refusal_of_ours_after_pings_is_an_event() -> None:
    """The deadline passes."""
    async with waiting(timeout=b"100") as (_, _, client, _):
        await client.head()
        lines = (await client.body()).replace(PING, b"").decode().splitlines()
        error = json.loads(lines[0].removeprefix("data: "))["error"]
        assert (error["code"], error["type"]) == ("timeout", "server_error")


async def test_a_broken_provider_after_pings_is_an_event() -> None:
    """Before its header or after it."""
    for sent in (b"", EVENTS + event({"n": 1})):
        async with waiting() as (provider, _, client, working):
            await client.head()
            working.write(OK)
            exchange = await provider.next()
            exchange.write(sent)
            if sent:
                while await client.chunk() == PING:
                    pass
            exchange.reset()
            lines = (await client.body()).replace(PING, b"").decode().splitlines()
            assert json.loads(lines[0].removeprefix("data: "))["error"]["code"] == "upstream_reset"


@pytest.mark.parametrize("form", ["json", "packed"])
async def test_what_is_no_stream_after_pings_is_an_error_event(form: str) -> None:
    """The caller reads events: anything else would be taken for nothing, or for rubbish."""
    field = (b"content-type", b"application/json")
    if form == "packed":
        field = (b"content-encoding", b"gzip")
    async with waiting() as (provider, _, client, working):
        await client.head()
        working.write(OK)
        (await provider.next()).write(answer(200, b'{"choices": []}', field))
        lines = (await client.body()).replace(PING, b"").decode().splitlines()
        assert "error" in json.loads(lines[0].removeprefix("data: "))


# -- through the SDKs ----------------------------------------------------------------------------------------


@asynccontextmanager
async def pinged(*answers: bytes) -> AsyncIterator[str]:
    """The URL of a gateway whose next call waits for pings before *answers* are given."""
    async with (
        upstream() as provider,
        gateway(provider.url, limit=1, ping_after=0.002) as served,
        caller(served.url) as busy,
    ):
        busy.ask()
        working = await provider.next()
        provider.will_answer(*answers)

        async def free_the_slot() -> None:
            await served.waits(1)
            began = served.gate.clock.now()
            await until(lambda: served.gate.clock.now() > began + 0.03)
            working.write(OK)

        freeing = asyncio.create_task(free_the_slot())
        yield f"{served.url}/gateway/p"
        await freeing


async def test_the_openai_sdk_reads_past_pings() -> None:
    chunks = [{"id": "1", "choices": [{"index": 0, "delta": {"content": word}}]} for word in ("a", "b")]
    stream = EVENTS + b"".join(map(event, chunks)) + event(b"[DONE]") + LAST
    async with pinged(stream) as url, openai.AsyncOpenAI(base_url=url, api_key="k", max_retries=0) as client:
        events = await client.chat.completions.create(model="m", messages=[], stream=True)
        assert [one.choices[0].delta.content async for one in events] == ["a", "b"]
        assert events.response.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("path", ["chat", "responses"])
async def test_the_openai_sdk_raises_an_error_after_pings(path: str) -> None:
    error = answer(400, json.dumps({"error": ERROR}).encode())
    async with pinged(error) as url, openai.AsyncOpenAI(base_url=url, api_key="k", max_retries=0) as client:
        with pytest.raises(openai.APIError, match="Too long!") as caught:  # noqa: PT012
            if path == "chat":
                async for _ in await client.chat.completions.create(model="m", messages=[], stream=True):
                    pass
            else:
                async for _ in await client.responses.create(model="m", input="hi", stream=True):
                    pass
        assert (caught.value.code, caught.value.param) == ("too_long", "messages")


async def test_the_anthropic_sdk_raises_an_error_after_pings() -> None:
    body = json.dumps({"type": "error", "error": ERROR, "request_id": "req_9"}).encode()
    async with (
        pinged(answer(400, body)) as url,
        anthropic.AsyncAnthropic(base_url=url, api_key="k", max_retries=0) as client,
    ):
        with pytest.raises(anthropic.APIStatusError, match="Too long!") as caught:
            async for _ in await client.messages.create(model="m", max_tokens=1, messages=[], stream=True):
                pass
        assert isinstance(caught.value.body, dict)
        assert caught.value.body["error"] == ERROR
