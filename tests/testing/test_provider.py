"""The mock provider, which users rehearse against: its books, its answers, its faults and its command."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import anthropic
import openai
import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from interlock.testing.account import Account, Stats
from interlock.testing.provider import FAULTS, MockProvider, running
from processes import command, mock_provider

# -- the account: what is counted, for how long, and what it costs to go over


class Time:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


def test_a_call_is_counted_while_it_runs_and_while_it_lags(time: Time) -> None:
    """From its begin until between half the lag and the lag after its end."""
    account = Account(limit=4, lag=1.0, now=time)
    unit = account.begin()
    assert unit is not None
    assert (account.running, account.counted) == (1, 1)
    time.now += 5.0
    account.end(unit)
    assert (account.running, account.counted) == (0, 1)
    time.now += 0.499
    assert account.counted == 1
    time.now += 0.502
    assert account.counted == 0


def test_the_lag_of_a_seed_is_always_the_same(time: Time) -> None:
    """Of another seed another; always from half of the lag on."""

    def lags(seed: int) -> list[float]:
        account = Account(limit=99, hard_cap=99, lag=2.0, seed=seed, now=time)
        units = [account.begin() for _ in range(50)]
        for unit in units:
            assert unit is not None
            account.end(unit)
        return [(unit.counted_until or 0) - time.now for unit in units if unit is not None]

    assert lags(1) == lags(1) != lags(2)
    assert min(lags(1)) >= 1.0
    assert max(lags(1)) <= 2.0
    assert len(set(lags(1))) == 50


def test_without_lag_the_end_is_the_end(time: Time) -> None:
    """A unit is free at once."""
    account = Account(limit=1, hard_cap=1, lag=0.0, now=time)
    unit = account.begin()
    assert unit is not None
    account.end(unit)
    assert account.counted == 0
    assert account.begin() is not None


def test_above_the_hard_cap_is_refused_and_above_the_limit_is_not(time: Time) -> None:
    """The limit is what is advertised, the hard cap what is enforced."""
    account = Account(limit=2, hard_cap=3, lag=1.0, now=time)
    units = [account.begin() for _ in range(3)]
    assert None not in units
    assert account.begin() is None
    assert account.counted == 3
    assert account.stats == Stats(requests=4, refused=1, peak=3, peak_running=3)


def test_what_lags_takes_room_like_what_runs(time: Time) -> None:
    """Whoever counts on a release at its end is refused."""
    account = Account(limit=1, hard_cap=1, lag=1.0, now=time)
    unit = account.begin()
    assert unit is not None
    account.end(unit)
    assert account.begin() is None
    time.now += 1.0
    account.penalty = 0.0
    assert account.begin() is not None


def test_a_refusal_is_punished_for_a_while(time: Time) -> None:
    """Only up to the limit then, and every further refusal begins the time anew."""
    account = Account(limit=2, hard_cap=3, lag=0.0, penalty=2.0, now=time)
    units = [account.begin() for _ in range(3)]
    assert not account.punished
    assert account.begin() is None
    assert account.punished
    assert units[0] is not None
    account.end(units[0])
    time.now += 1.5
    assert account.begin() is None, "two are counted, which is the limit"
    time.now += 1.9
    assert account.punished
    time.now += 0.1
    assert not account.punished
    assert account.begin() is not None


def test_somebody_elses_calls_are_counted_too(time: Time) -> None:
    """They may exceed what is left; fewer than none is none."""
    account = Account(limit=2, hard_cap=2, lag=0.0, now=time)
    assert account.begin() is not None
    account.set_foreign(3)
    assert (account.foreign, account.running, account.counted) == (3, 1, 4)
    assert account.begin() is None
    account.set_foreign(1)
    account.penalty = 0.0
    assert account.begin() is None
    account.set_foreign(-5)
    assert (account.foreign, account.counted) == (0, 1)


def test_the_peaks_are_the_most_that_was_counted_and_the_most_that_ran(time: Time) -> None:
    """Lagging and foreign calls are in the one and not in the other."""
    account = Account(limit=9, hard_cap=9, lag=1.0, now=time)
    first = account.begin()
    assert first is not None
    account.end(first)
    account.set_foreign(2)
    assert account.begin() is not None
    time.now += 1.0
    account.set_foreign(0)
    assert account.counted == 1
    assert (account.stats.peak, account.stats.peak_running) == (4, 1)


def test_how_calls_ended_is_counted_and_how_long_they_ran(time: Time) -> None:
    """Served or abandoned, the lag is not in it, and a second end changes nothing."""
    account = Account(limit=4, lag=1.0, now=time)
    first, second = account.begin(), account.begin()
    assert first is not None
    assert second is not None
    time.now += 2.0
    account.end(first)
    time.now += 1.0
    account.end(second, served=False)
    account.end(second)
    account.end(first, served=False)
    assert (account.stats.served, account.stats.abandoned, account.stats.busy_seconds) == (1, 1, 5.0)


def test_a_reset_forgets_the_past_only(time: Time) -> None:
    """What is in flight stays in flight."""
    account = Account(limit=1, hard_cap=1, lag=1.0, now=time)
    assert account.begin() is not None
    assert account.begin() is None
    account.reset()
    assert account.stats == Stats()
    assert (account.counted, account.punished) == (1, True)


def test_the_report_has_everything(time: Time) -> None:
    """In the names of ``GET /stats``."""
    account = Account(limit=2, hard_cap=3, lag=1.0, now=time)
    unit = account.begin()
    assert unit is not None
    time.now += 0.25
    account.end(unit)
    account.set_foreign(1)
    assert account.report() == {
        "requests": 1,
        "served": 1,
        "refused": 0,
        "abandoned": 0,
        "peak": 1,
        "peakRunning": 1,
        "busySeconds": 0.25,
        "inFlight": 2,
        "running": 0,
        "foreign": 1,
        "limit": 2,
        "hardCap": 3,
        "punished": False,
        "faults": {},
    }


def test_the_books_are_right_after_any_walk(time: Time) -> None:
    """Against a plain list of intervals, over 2,000 random steps: what is counted, and who is refused."""
    dice = Random(1)
    account = Account(limit=3, hard_cap=4, lag=1.0, penalty=0.5, seed=2, now=time)
    held: list[Any] = []
    ended: list[Any] = []
    punished_until = 0.0
    refused = 0
    for _ in range(2000):
        time.now += dice.choice((0.0, 0.1, 0.7))
        counted = len(held) + sum((unit.counted_until or 0) > time.now for unit in ended) + account.foreign
        assert account.counted == counted
        match dice.randrange(4):
            case 0 | 1:
                unit = account.begin()
                assert (unit is None) == (counted + 1 > (3 if time.now < punished_until else 4))
                if unit is None:
                    refused += 1
                    punished_until = time.now + 0.5
                else:
                    held.append(unit)
            case 2 if held:
                unit = held.pop(dice.randrange(len(held)))
                account.end(unit, served=dice.random() < 0.5)
                ended.append(unit)
            case 3:
                account.set_foreign(dice.randrange(2))
    stats = account.stats
    assert stats.refused == refused > 100
    assert stats.served + stats.abandoned + len(held) + refused == stats.requests
    assert stats.peak <= 4


# -- over HTTP


class Serving:
    """A provider that runs in this loop, and a client that says how it answers."""

    def __init__(self, provider: MockProvider, url: str, client: aiohttp.ClientSession) -> None:
        self.provider = provider
        self.url = url
        self.client = client

    async def get(self, path: str) -> Any:
        async with self.client.get(self.url + path) as response:
            assert response.status == 200
            return await response.json()

    async def post(self, path: str, body: Any, **options: Any) -> tuple[int, dict[str, str], bytes]:
        """The status, the headers and the whole body of the answer."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.client.post(self.url + path, data=data, **options) as response:
            headers = {name.lower(): value for name, value in response.headers.items()}
            return response.status, headers, await response.read()

    async def idle(self) -> None:
        """Return when nothing runs any more."""
        async with asyncio.timeout(5):
            while self.provider.account.running:  # noqa: ASYNC110 - it is told over the network
                await asyncio.sleep(0.005)


@asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[Serving]:
    provider = MockProvider(**{"lag": 0.0, "latency": 0.01, "seed": 1, **options})
    async with running(provider) as url, aiohttp.ClientSession() as client:
        yield Serving(provider, url, client)


CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
ASKED: list[Any] = [{"role": "user", "content": "Say something."}]
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"model": "mock", "messages": ASKED},
    RESPONSES: {"model": "mock", "input": "Say something."},
    MESSAGES: {"model": "mock", "max_tokens": 64, "messages": ASKED},
}
KINDS = sorted(BODIES)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", KINDS)
async def test_the_same_body_gets_the_same_bytes(path: str, stream: bool) -> None:
    """From another provider of the same seed too; another body or seed gets others."""
    body = {**BODIES[path], "stream": stream}
    async with serving() as one, serving() as twin, serving(seed=2) as other:
        answers = [await one.post(path, body) for _ in range(2)]
        answers.append(await twin.post(path, body))
        assert {answer[0] for answer in answers} == {200}
        assert len({answer[2] for answer in answers}) == 1
        assert (await one.post(path, {**body, "model": "mock-2"}))[2] != answers[0][2]
        assert (await other.post(path, body))[2] != answers[0][2]
        kind = "text/event-stream" if stream else "application/json"
        assert answers[0][1]["content-type"].startswith(kind)


async def test_latency_is_give_or_take_a_fifth_and_twice_that_in_punishment() -> None:
    """Told by the account's own busy seconds."""
    async with serving(limit=1, hard_cap=1, latency=0.2) as one:
        assert (await one.post(CHAT, BODIES[CHAT]))[0] == 200
        usual = one.provider.account.stats.busy_seconds
        assert 0.15 <= usual <= 2.0
        one.provider.account.set_foreign(1)
        assert (await one.post(CHAT, BODIES[CHAT]))[0] == 429
        one.provider.account.set_foreign(0)
        assert (await one.post(CHAT, BODIES[CHAT]))[0] == 200
        assert one.provider.account.stats.busy_seconds - usual >= 1.9 * 0.16


@asynccontextmanager
async def sdks(url: str) -> AsyncIterator[tuple[AsyncOpenAI, AsyncAnthropic]]:
    async with (
        AsyncOpenAI(base_url=f"{url}/v1", api_key="sk-canary", max_retries=0) as one,
        AsyncAnthropic(base_url=url, api_key="sk-canary", max_retries=0) as other,
    ):
        yield one, other


CHAT_TOOL: Any = {"type": "function", "function": {"name": "read", "parameters": {"type": "object"}}}
RESPONSES_TOOL: Any = {"type": "function", "name": "read", "parameters": {"type": "object"}, "strict": False}
MESSAGES_TOOL: Any = {"name": "read", "input_schema": {"type": "object"}}
TWICE: list[Any] = [{"role": "user", "content": "Please use 2 tools, then report."}]
ARGUMENTS = {"path": "notes.txt"}


async def test_chat_completions_through_the_sdk() -> None:
    """Whole and streamed say the same; the usage comes with a stream that asks for it."""
    async with serving() as one, sdks(one.url) as (client, _):
        whole = await client.chat.completions.create(model="mock", messages=ASKED)
        assert whole.choices[0].finish_reason == "stop"
        assert whole.choices[0].message.content
        assert whole.usage is not None
        assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
        stream = await client.chat.completions.create(
            model="mock", messages=ASKED, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        words = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
        assert len(words) >= 8
        assert len("".join(words).split()) == chunks[-1].usage.completion_tokens  # type: ignore[union-attr]
        assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
        assert len({chunk.id for chunk in chunks}) == 1


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_chat_turn_with_tools_through_the_sdk(streamed: bool) -> None:
    """As many calls as the prompt asks for, one an answer, until their results are there."""
    messages, called = list(TWICE), []
    async with serving() as one, sdks(one.url) as (client, _):
        while True:
            if streamed:
                async with client.chat.completions.stream(
                    model="mock", messages=messages, tools=[CHAT_TOOL]
                ) as stream:
                    choice: Any = (await stream.get_final_completion()).choices[0]
            else:
                choice = (
                    await client.chat.completions.create(model="mock", messages=messages, tools=[CHAT_TOOL])
                ).choices[0]
            if choice.finish_reason == "stop":
                break
            assert choice.finish_reason == "tool_calls"
            assert not choice.message.content
            (call,) = choice.message.tool_calls
            called.append(call)
            answer = choice.message.to_dict()
            messages += [answer, {"role": "tool", "tool_call_id": call.id, "content": "as expected"}]
    assert [(call.function.name, json.loads(call.function.arguments)) for call in called] == [
        ("read", ARGUMENTS)
    ] * 2
    assert len({call.id for call in called}) == 2
    assert choice.message.content


async def test_responses_through_the_sdk() -> None:
    """Whole and streamed; the events add up to the final response."""
    async with serving() as one, sdks(one.url) as (client, _):
        whole = await client.responses.create(model="mock", input="Say something.")
        assert whole.status == "completed"
        assert whole.output_text
        async with client.responses.stream(model="mock", input="Say something.") as stream:
            events = [event async for event in stream]
            final = await stream.get_final_response()
        assert [event.sequence_number for event in events] == list(range(len(events)))
        deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
        assert "".join(deltas) == final.output_text
        assert final.usage is not None
        assert final.usage.output_tokens == len(final.output_text.split())


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_responses_turn_with_tools_through_the_sdk(streamed: bool) -> None:
    """As many calls as the prompt asks for, one an answer, until their outputs are there."""
    items, called = list(TWICE), []
    async with serving() as one, sdks(one.url) as (client, _):
        while True:
            if streamed:
                async with client.responses.stream(
                    model="mock", input=items, tools=[RESPONSES_TOOL]
                ) as stream:
                    answer: Any = await stream.get_final_response()
            else:
                answer = await client.responses.create(model="mock", input=items, tools=[RESPONSES_TOOL])
            (item,) = answer.output
            if item.type == "message":
                break
            called.append((item.type, item.name, json.loads(item.arguments)))
            items += [
                item.to_dict(),
                {"type": "function_call_output", "call_id": item.call_id, "output": "x"},
            ]
    assert called == [("function_call", "read", ARGUMENTS)] * 2
    assert answer.output_text


async def test_messages_through_the_sdk() -> None:
    """Whole and streamed; the tokens can be counted before."""
    async with serving() as one, sdks(one.url) as (_, client):
        whole = await client.messages.create(model="mock", max_tokens=64, messages=ASKED)
        assert (whole.stop_reason, whole.content[0].type) == ("end_turn", "text")
        async with client.messages.stream(model="mock", max_tokens=64, messages=ASKED) as stream:
            text = "".join([text async for text in stream.text_stream])
            final = await stream.get_final_message()
        assert final.content[0].text == text  # type: ignore[union-attr]
        assert final.usage.output_tokens == len(text.split())
        assert (await client.messages.count_tokens(model="mock", messages=ASKED)).input_tokens > 0
        assert one.provider.account.stats.requests == 2, "counting takes no unit"


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_messages_turn_with_tools_through_the_sdk(streamed: bool) -> None:
    """As many calls as the prompt asks for, one an answer, until their results are there."""
    messages, called = list(TWICE), []
    async with serving() as one, sdks(one.url) as (_, client):
        while True:
            request: Any = {
                "model": "mock",
                "max_tokens": 64,
                "messages": messages,
                "tools": [MESSAGES_TOOL],
            }
            if streamed:
                async with client.messages.stream(**request) as stream:
                    answer: Any = await stream.get_final_message()
            else:
                answer = await client.messages.create(**request)
            (block,) = answer.content
            if answer.stop_reason == "end_turn":
                break
            called.append((answer.stop_reason, block.type, block.name, block.input))
            result = {"type": "tool_result", "tool_use_id": block.id, "content": "as expected"}
            messages += [
                {"role": "assistant", "content": [block.to_dict()]},
                {"role": "user", "content": [result]},
            ]
    assert called == [("tool_use", "tool_use", "read", ARGUMENTS)] * 2
    assert block.text


async def test_embeddings_and_models_through_the_sdk() -> None:
    """One vector for each text; embeddings take a unit, the list of models none."""
    async with serving() as one, sdks(one.url) as (client, _):
        answer = await client.embeddings.create(model="mock", input=["a", "b", "c"])
        assert [item.index for item in answer.data] == [0, 1, 2]
        assert all(len(item.embedding) == 2 for item in answer.data)
        assert len((await client.embeddings.create(model="mock", input="a")).data) == 1
        assert [model.id async for model in client.models.list()] == ["mock", "gpt-mock", "claude-mock"]
        assert one.provider.account.stats.requests == 2


async def test_a_refusal_has_the_dialects_own_shape() -> None:
    """429 with the wait in the headers, and words that say that it is about concurrency."""
    async with serving(limit=1, hard_cap=1) as one, sdks(one.url) as (client, other):
        one.provider.account.set_foreign(1)
        for path in (CHAT, RESPONSES, MESSAGES, "/v1/embeddings"):
            status, headers, body = await one.post(path, BODIES.get(path, {"input": "a"}))
            assert (status, headers["retry-after"], headers["retry-after-ms"]) == (429, "1", "1000")
            error = json.loads(body)["error"]
            assert error["type"] == "rate_limit_error"
            assert "Concurrency limit" in error["message"]
            assert error.get("code") == (None if path == MESSAGES else "concurrency_limit_exceeded")
        with pytest.raises(openai.RateLimitError) as said:
            await client.chat.completions.create(model="mock", messages=ASKED, stream=True)
        assert said.value.code == "concurrency_limit_exceeded"
        with pytest.raises(anthropic.RateLimitError, match="Concurrency limit"):
            await other.messages.create(model="mock", max_tokens=64, messages=ASKED)
        assert (await one.get("/stats"))["refused"] == 6


async def test_usage_says_what_is_counted_and_what_is_allowed() -> None:
    """In the shape that ``usage = "/usage"`` reads; with ``/v1`` before it and without."""
    async with serving(limit=3, hard_cap=5) as one:
        one.provider.account.set_foreign(2)
        expected = {
            "usage": {"concurrent_sessions": 2},
            "limits": {"concurrency": {"limit": 3, "hard_cap": 5}},
        }
        assert await one.get("/usage") == expected
        assert await one.get("/v1/usage") == expected


async def test_the_hard_cap_is_one_above_the_limit_unless_told() -> None:
    """What is advertised is not quite what is enforced."""
    assert MockProvider(limit=7).account.hard_cap == 8
    assert MockProvider(limit=7, hard_cap=7).account.hard_cap == 7


async def test_statistics_and_foreign_calls_over_http() -> None:
    """Read, reset and set from outside, without taking a unit."""
    async with serving() as one:
        assert (await one.post(CHAT, BODIES[CHAT]))[0] == 200
        status, _, body = await one.post("/foreign", {"count": 2})
        assert (status, json.loads(body)) == (200, {"foreign": 2})
        assert await one.get("/stats") == one.provider.account.report()
        assert (await one.get("/stats"))["inFlight"] == 2
        assert (await one.post("/stats/reset", {}))[0] == 200
        assert (await one.get("/stats"))["requests"] == 0
        assert (await one.get("/stats"))["foreign"] == 2


@pytest.mark.parametrize("body", [b"", b"[]", {}, {"count": -1}, {"count": "2"}, {"count": True}])
async def test_foreign_calls_that_are_no_number_change_nothing(body: Any) -> None:
    """400, and what is allowed."""
    async with serving() as one:
        one.provider.account.set_foreign(1)
        status, _, said = await one.post("/foreign", body)
        assert (status, one.provider.account.foreign) == (400, 1)
        assert "non-negative integer" in json.loads(said)["error"]


@pytest.mark.parametrize("path", KINDS)
async def test_a_client_that_leaves_frees_its_unit(path: str) -> None:
    """Before the first byte and in the middle of a stream; such a call is abandoned, not served."""
    async with serving(latency=30.0) as one:
        body = json.dumps({**BODIES[path], "stream": False}).encode()
        asking = asyncio.create_task(one.post(path, body))
        while not one.provider.account.running:  # noqa: ASYNC110 - it is told over the network
            await asyncio.sleep(0.005)
        asking.cancel()
        await one.idle()
        assert one.provider.account.stats.abandoned == 1
    async with serving(latency=2.0) as one:
        body = json.dumps({**BODIES[path], "stream": True}).encode()
        async with one.client.post(one.url + path, data=body) as response:
            assert await response.content.readany()
            assert one.provider.account.running == 1
            response.close()
        await one.idle()
        stats = one.provider.account.stats
        assert (stats.abandoned, stats.served) == (1, 0)
        assert stats.busy_seconds < 1.5


async def test_what_it_does_not_know_it_describes_but_for_credentials() -> None:
    """Method, path and query as they came, headers in order, the hash of the body: passing through can be
    checked, and a log of it may be kept."""
    secret = "sk-canary-0123456789"
    headers = {
        "Authorization": f"Bearer {secret}",
        "X-Api-Key": secret,
        "Api-Key": secret,
        "Cookie": f"session={secret}",
        "X-One": "1",
    }
    async with serving() as one:
        status, _, body = await one.post("/v1/odd%7Epath/?a=%2F&b", b"hello", headers=headers)
        assert status == 200
        said = json.loads(body)
        assert (said["method"], said["path"], said["query"]) == ("POST", "/v1/odd~path/", "a=/&b")
        assert said["bodySha256"] == "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
        names = [name for name, _ in said["headers"]]
        assert "x-one" in names
        assert "host" in names
        assert secret.encode() not in body
        assert one.provider.account.stats.requests == 0


# -- faults


async def cue(one: Serving, kind: str, **params: Any) -> None:
    status, _, body = await one.post("/cue", {"faults": [{"kind": kind, **params}]})
    assert status == 200, body


@pytest.mark.parametrize("path", [*KINDS, "/v1/embeddings"])
async def test_status_answers_as_told(path: str) -> None:
    """Any status, headers and body, once, and then all is well again."""
    async with serving() as one:
        body = {"error": {"message": "no", "code": "1302"}}
        await cue(one, "status", status=429, headers={"retry-after": "7"}, body=body)
        status, headers, said = await one.post(path, BODIES.get(path, {"input": "a"}))
        assert (status, headers["retry-after"], json.loads(said)) == (429, "7", body)
        assert (await one.post(path, BODIES.get(path, {"input": "a"})))[0] == 200
        assert (await one.get("/stats"))["faults"] == {"status": 1}


async def test_faults_come_in_the_order_of_their_cues() -> None:
    """Each as often as told; what takes no unit takes no fault."""
    async with serving() as one:
        await cue(one, "status", times=2, status=500)
        await cue(one, "status", status=503)
        await one.get("/usage")
        await one.get("/v1/models")
        statuses = [(await one.post(CHAT, BODIES[CHAT]))[0] for _ in range(4)]
        assert statuses == [500, 500, 503, 200]


async def test_hang_never_answers() -> None:
    """The unit is taken until the client leaves."""
    async with serving() as one:
        await cue(one, "hang")
        with pytest.raises(TimeoutError):
            await one.post(CHAT, BODIES[CHAT], timeout=aiohttp.ClientTimeout(total=0.5))
        await one.idle()
        assert one.provider.account.stats.abandoned == 1


@pytest.mark.parametrize("path", KINDS)
async def test_stall_stops_in_the_middle_of_a_stream(path: str) -> None:
    """After so many pieces, with the connection open."""
    async with serving() as one:
        whole = (await one.post(path, {**BODIES[path], "stream": True}))[2]
        await cue(one, "stall", after=3)
        body = json.dumps({**BODIES[path], "stream": True}).encode()
        async with one.client.post(one.url + path, data=body) as response:
            came = b""
            while came.count(b"\n\n") < 3:
                came += await response.content.readany()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    came += await response.content.readany()
        assert whole.startswith(came)
        assert came.count(b"\n\n") == 3
        await one.idle()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", KINDS)
async def test_reset_cuts_the_connection(path: str, stream: bool) -> None:
    """In the middle of a stream or of a plain answer: the client is never given a whole one."""
    async with serving() as one:
        await cue(one, "reset", after=2)
        with pytest.raises(aiohttp.ClientError):
            await one.post(path, {**BODIES[path], "stream": stream})
        await one.idle()
        assert (await one.post(path, BODIES[path]))[0] == 200


async def test_slow_takes_longer() -> None:
    """By its factor."""
    async with serving(latency=0.02) as one:
        await cue(one, "slow", factor=10)
        assert (await one.post(CHAT, BODIES[CHAT]))[0] == 200
        assert one.provider.account.stats.busy_seconds >= 0.15


async def test_garbage_is_no_json() -> None:
    """With the status and the type of a proper answer."""
    async with serving() as one:
        await cue(one, "garbage")
        status, headers, body = await one.post(CHAT, BODIES[CHAT])
        assert (status, headers["content-type"]) == (200, "application/json")
        with pytest.raises(ValueError):
            json.loads(body)


async def test_huge_line_is_one_line() -> None:
    """Of the size told, plus at most a piece."""
    async with serving() as one:
        await cue(one, "huge_line", size=3_000_000)
        status, headers, body = await one.post(CHAT, {**BODIES[CHAT], "stream": True})
        assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        assert body == b"x" * 3_000_000 + b"\n\n"


async def test_redirect_points_where_no_client_may_go() -> None:
    """To the address at which clouds tell secrets."""
    async with serving() as one:
        await cue(one, "redirect")
        status, headers, _ = await one.post(CHAT, BODIES[CHAT], allow_redirects=False)
        assert status == 302
        assert headers["location"].startswith("http://169.254.169.254/")


async def test_bad_retry_after_says_nonsense() -> None:
    """A 429 with the values told, one header each; without any, one that is no number."""
    async with serving() as one:
        await cue(one, "bad_retry_after", values=["-5", "1e400"])
        await cue(one, "bad_retry_after")
        async with one.client.post(one.url + CHAT, json=BODIES[CHAT]) as response:
            assert (response.status, response.headers.getall("retry-after")) == (429, ["-5", "1e400"])
        status, headers, _ = await one.post(CHAT, BODIES[CHAT])
        assert (status, headers["retry-after"]) == (429, "nan")


async def test_wrong_length_promises_more_than_it_sends() -> None:
    """And closes."""
    async with serving() as one:
        await cue(one, "wrong_length")
        with pytest.raises(aiohttp.ClientPayloadError):
            await one.post(CHAT, BODIES[CHAT])


async def test_every_fault_leaves_the_account_in_order() -> None:
    """Whatever happened, the unit comes back and the next call is served."""
    async with serving() as one:
        for kind in FAULTS:
            await cue(one, kind)
            try:
                patience = aiohttp.ClientTimeout(total=1.0)
                await one.post(CHAT, BODIES[CHAT], timeout=patience, allow_redirects=False)
            except (aiohttp.ClientError, TimeoutError):
                pass
            await one.idle()
            assert (await one.post(CHAT, BODIES[CHAT]))[0] == 200
        assert (await one.get("/stats"))["faults"] == dict.fromkeys(FAULTS, 1)


@pytest.mark.parametrize(
    "request_body",
    [
        {"faults": [{"kind": "nonsense"}]},
        {"faults": [{"status": 500}]},
        {"faults": [{"kind": "status", "times": "often"}]},
        {"faults": 7},
        {"faults": ["status"]},
    ],
)
async def test_a_cue_that_makes_no_sense_is_refused(request_body: Any) -> None:
    """400 with the reason, and nothing is cued."""
    async with serving() as one:
        status, _, body = await one.post("/cue", request_body)
        assert status == 400
        assert json.loads(body)["error"]
        assert (await one.post(CHAT, BODIES[CHAT]))[0] == 200
        with pytest.raises(ValueError, match="known are: status, hang"):
            one.provider.cue("nonsense")


# -- running


async def test_a_port_that_is_taken_is_an_error() -> None:
    """It does not take the next one."""
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        async with running(MockProvider(), taken.getsockname()[1]):
            pass


async def test_it_ends_while_calls_run() -> None:
    """And takes them with it: nobody waits for a provider that hangs."""
    provider = MockProvider(latency=60.0)
    async with aiohttp.ClientSession() as client:
        async with running(provider) as url:
            asking = asyncio.create_task(client.post(f"{url}{CHAT}", json=BODIES[CHAT]))
            while not provider.account.running:  # noqa: ASYNC110 - it is told over the network
                await asyncio.sleep(0.005)
        async with asyncio.timeout(5):
            (ended,) = await asyncio.gather(asking, return_exceptions=True)
        if isinstance(ended, aiohttp.ClientResponse):
            assert ended.status == 500
            ended.release()
        else:
            assert isinstance(ended, aiohttp.ClientError)


# -- the command


async def test_the_command_says_where_it_is_and_does_as_told() -> None:
    """Its options are those of the account."""
    async with (
        mock_provider(limit=3, hard_cap=7, lag="1s", latency="5ms", seed=5) as url,
        aiohttp.ClientSession() as client,
    ):
        async with client.post(f"{url}{CHAT}", json=BODIES[CHAT]) as response:
            assert response.status == 200
            said = await response.read()
        async with client.get(f"{url}/stats") as response:
            stats = await response.json()
    assert (stats["limit"], stats["hardCap"], stats["served"], stats["inFlight"]) == (3, 7, 1, 1)
    async with serving(seed=5) as one:
        body = json.dumps(BODIES[CHAT]).encode()
        assert (await one.post(CHAT, body))[2] == said


async def test_the_command_refuses_a_port_that_is_taken(tmp_path: Path) -> None:
    """Exit 1, in one line that names it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = await command("mock-provider", "--port", f"{port}", cwd=tmp_path)
    assert (ended.code, ended.stdout) == (1, "")
    assert ended.stderr.startswith(f"interlock: cannot listen on 127.0.0.1:{port}: ")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("--limit", "0"),
        ("--limit", "4", "--hard-cap", "3"),
        ("--limit", "many"),
        ("--lag", "5"),
        ("--latency", "fast"),
        ("--penalty", "2d"),
        ("--port", "70000"),
        ("--seed", "x"),
        ("--colour", "blue"),
    ],
)
async def test_the_command_refuses_what_makes_no_sense(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """Exit 2, with the reason on standard error and no traceback."""
    ended = await command("mock-provider", *arguments, cwd=tmp_path)
    assert (ended.code, ended.stdout) == (2, "")
    assert ended.stderr
    assert "Traceback" not in ended.stderr
