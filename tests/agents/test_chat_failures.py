"""Providers that refuse, fail, break off or talk nonsense: what the run is told, and what the gate is."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any

import pytest

from agents.chats import KEY, delta, events, mock, said, scene, scripted
from agents.runs import Recorder
from gateways import until
from interlock.agents import ChatAgent
from interlock.agents.chat_call import Terms
from interlock.errors import PermitLost, ProviderFailed

DIALECTS = ("openai", "anthropic")


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever fails is asked again soon."""
    monkeypatch.setattr("interlock.agents.chat_call._FAULT_PAUSE", 0.01)


def refusal(retry_after: str | None = None, code: str = "concurrency_limit_exceeded") -> dict[str, Any]:
    headers = {} if retry_after is None else {"retry-after-ms": retry_after}
    body = {"error": {"message": "too much of it", "type": "rate_limit_error", "code": code}}
    return {"status": 429, "headers": headers, "body": body}


# -- too much


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_429_is_asked_again_off_the_slot(dialect: str) -> None:
    async with mock() as scene:
        scene.provider.cue("status", 2, **refusal("150"))
        run = scene.run()
        working = asyncio.create_task(scene.agent(dialect).run(run))
        await until(lambda: scene.provider.account.stats.faults.get("status") == 1 and not scene.used)
        assert scene.gate.reading("p").paused_until is not None
        assert run.types == ["message_sent"]
        began = run.clock.now()
        output = await working
        assert run.clock.now() - began > 0.25
        assert output["content"] == run.streamed != ""
        assert scene.gate.get_limit("p") == 1  # two, and cut once by an episode


async def test_a_real_overshoot_is_lived_through() -> None:
    """Ten runs on a gate that allows more than the provider does: all of them end well."""
    async with mock(latency=0.03, limit=2, hard_cap=2) as scene:
        await scene.gate.set_limit("p", 6)
        runs = [scene.run(f"hello {number}") for number in range(10)]

        async def impatient() -> None:
            await until(lambda: scene.gate.reading("p").paused_until is not None)
            while not all("turn_completed" in run.types for run in runs):
                scene.gate.resume("p")  # the provider's second is too long for a test
                await asyncio.sleep(0.02)

        helping = asyncio.create_task(impatient())
        outputs = await asyncio.gather(*(scene.agent().run(run) for run in runs))
        await helping
        assert [output["content"] for output in outputs] == [run.streamed for run in runs]
        assert scene.gate.get_limit("p") < 6


@pytest.mark.parametrize("gated", [True, False])
async def test_a_429_that_outlasts_the_patience(gated: bool) -> None:
    async with mock() as scene:
        scene.provider.cue("status", 9, **refusal("30000"))
        run = scene.run() if gated else Recorder({"prompt": "hello"})
        with pytest.raises(ProviderFailed, match=r"^p answered 429: too much of it$") as failed:
            await scene.agent(timeout=5.0).run(run)
        assert failed.value.code == "provider_rate_limited"
        assert failed.value.details["reason"] == "concurrency"
        assert scene.provider.account.stats.faults["status"] == 1


@pytest.mark.parametrize("gated", [True, False])
async def test_a_quota_is_not_asked_again(gated: bool) -> None:
    async with mock() as scene:
        scene.provider.cue("status", 9, **refusal("1", code="insufficient_quota"))
        run = scene.run() if gated else Recorder({"prompt": "hello"})
        with pytest.raises(ProviderFailed) as failed:
            await scene.agent().run(run)
        assert (failed.value.code, failed.value.details["reason"]) == ("provider_rate_limited", "quota")
        assert scene.provider.account.stats.faults["status"] == 1


async def test_without_a_gate_it_waits_as_told() -> None:
    async with mock() as scene:
        scene.provider.cue("status", 2, **refusal("100"))
        run = Recorder({"prompt": "hello"})
        await scene.agent().run(run)
        assert run.clock.now() - run.submitted_at > 0.2


@pytest.mark.parametrize("values", [("0",), ("-5",), ("nan",), ("1e400",), ("soon", "0"), ("0", "x" * 5000)])
async def test_a_retry_after_that_makes_no_sense(values: tuple[str, ...]) -> None:
    async with mock() as scene:
        scene.provider.cue("bad_retry_after", values=values)
        working = asyncio.create_task(scene.agent().run(scene.run()))
        await until(lambda: "bad_retry_after" in scene.provider.account.stats.faults and not scene.used)
        scene.gate.resume("p")
        assert (await working)["stop_reason"] == "stop"


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_429_inside_of_a_stream(dialect: str) -> None:
    """Before anything was said it is asked again; after that it is the end. Both times the gate is told."""
    error = {
        "type": "rate_limit_error",
        "code": "rate_limit_exceeded",
        "message": "rate limit: try again in 0.05s",
    }
    late = {"type": "error", "error": error} if dialect == "anthropic" else {"error": error}
    text = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "so"}}
    begun = events(text if dialect == "anthropic" else delta("so"))
    async with scripted(said(events(late)), said(begun + events(late))) as (scene, provider):
        run = scene.run()
        with pytest.raises(ProviderFailed, match="answered 429: rate limit") as failed:
            await scene.agent(dialect).run(run)
        assert failed.value.code == "provider_rate_limited"
        assert provider.seen == 2
        assert run.streamed == "so"
        status = scene.gate.status("p")
        assert status is not None
        assert (status.reason, status.limit) == ("rate", 2)


async def test_after_a_429_inside_of_a_stream_all_is_well() -> None:
    late = {"error": {"code": 429, "message": "rate limit: try again in 0.05s"}, "choices": []}
    cut = {"choices": [{"delta": {}, "finish_reason": "stop"}]}
    well = events(delta("so"), delta("", "length"), "[DONE]")
    async with scripted(said(events(cut, late)), said(well)) as (scene, _):
        output = await scene.agent().run(scene.run())
        assert (output["content"], output["stop_reason"]) == ("so", "length")


# -- failures


@pytest.mark.parametrize(
    ("fault", "params"),
    [
        ("status", {"status": 500}),
        ("status", {"status": 502, "body": "<html>Bad gateway</html>"}),
        ("status", {"status": 408}),
        ("garbage", {}),
        ("wrong_length", {}),
        ("reset", {"after": 0}),
    ],
)
@pytest.mark.parametrize("dialect", DIALECTS)
async def test_what_fails_before_it_says_anything_is_asked_again(
    fault: str, params: dict[str, Any], dialect: str
) -> None:
    async with mock() as scene:
        scene.provider.cue(fault, 2, **params)
        assert (await scene.agent(dialect).run(scene.run()))["stop_reason"] == "stop"
        scene.provider.cue(fault, 3, **params)
        run = scene.run()
        with pytest.raises(ProviderFailed, match=r"^p ") as failed:
            await scene.agent(dialect).run(run)
        assert failed.value.code == "provider_error"
        assert run.types == ["message_sent"]
        assert scene.provider.account.stats.faults[fault] == 5
        assert scene.used == 0


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 302, 307])
async def test_what_is_refused_is_not_asked_again(status: int) -> None:
    async with mock() as scene:
        body = {"error": {"message": f"no such thing\r\n\x1b[31m for {KEY}"}}
        headers = {"location": "http://169.254.169.254/latest"}
        scene.provider.cue("status", status=status, body=body, headers=headers)
        with pytest.raises(ProviderFailed) as failed:
            await scene.agent().run(scene.run())
        assert str(failed.value) == f"p answered {status}: no such thing [31m for ***"
        assert failed.value.details["status"] == status
        assert scene.provider.account.stats.faults["status"] == 1


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("after", [4, 5, 6])
async def test_a_stream_that_is_cut(dialect: str, after: int) -> None:
    """What was said of it stays in the log; the run fails rather than say it twice."""
    async with mock() as scene:
        scene.provider.cue("reset", after=after)
        run = scene.run()
        with pytest.raises(ProviderFailed, match="gave no proper answer"):
            await scene.agent(dialect).run(run)
        assert len(run.streamed.split()) >= 1
        assert "message_received" not in run.types
        assert run.used["input_tokens"] == (20 if dialect == "anthropic" else 0)  # as far as it was said
        assert scene.provider.account.stats.faults == {"reset": 1}


async def test_a_stream_that_just_ends() -> None:
    """With neither a reason nor a last word it is taken for broken off."""
    async with scripted(said(events(delta("so")))) as (scene, _):
        with pytest.raises(ProviderFailed, match="it broke off"):
            await scene.agent().run(scene.run())
    async with scripted(said(events(delta("so", "stop")))) as (scene, _):
        assert (await scene.agent().run(scene.run()))["content"] == "so"


async def test_a_provider_that_falls_silent() -> None:
    async with mock() as scene:
        scene.provider.cue("hang", 3)
        with pytest.raises(ProviderFailed, match="took too long") as failed:
            await scene.agent(read_timeout=0.1).run(scene.run())
        assert failed.value.code == "provider_timeout"
        scene.provider.cue("stall", after=3)
        run = scene.run()
        with pytest.raises(ProviderFailed, match="took too long"):
            await scene.agent(read_timeout=0.1).run(run)
        assert run.streamed != ""


async def test_a_stream_that_does_not_end_after_its_last_word() -> None:
    """The slot is free a second later."""
    async with scripted() as (scene, provider):
        working = asyncio.create_task(scene.agent().run(scene.run()))
        exchange = await provider.next()
        exchange.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
        exchange.write(events(delta("hi", "stop"), "[DONE]", delta("more")))
        assert (await working)["content"] == "hi"


async def test_a_provider_that_is_not_there() -> None:
    async with scene("http://127.0.0.1:1") as one:
        with pytest.raises(ProviderFailed, match="gave no proper answer: ClientConnector") as failed:
            await one.agent().run(one.run())
        assert KEY not in str(failed.value)


async def test_what_is_too_long() -> None:
    async with mock() as scene:
        scene.provider.cue("huge_line", size=10 << 20)
        with pytest.raises(ProviderFailed, match="more than 8388608 bytes"):
            await scene.agent().run(scene.run())
    many = events(*[delta("x" * 100_000) for _ in range(50)])
    async with scripted(said(many)) as (one, _):
        with pytest.raises(ProviderFailed, match="more than 4194304 characters"):
            await one.agent().run(one.run())
    async with scripted(said(b" " * (9 << 20), "application/json")) as (one, _):
        with pytest.raises(ProviderFailed, match="more than 8388608 bytes"):
            await one.agent().run(one.run())


async def test_an_answer_that_would_have_to_be_inflated() -> None:
    """It was not asked for, and a few bytes could become any number."""
    packed = gzip.compress(events(delta("hi", "stop")))
    answers = [said(packed, "text/event-stream", "200 OK", "content-encoding: gzip")] * 3
    async with scripted(*answers) as (one, _):
        with pytest.raises(ProviderFailed, match="it is compressed"):
            await one.agent().run(one.run())


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe\x00",
        b"data:\n\ndata: {\n\ndata: null\n\ndata: []\n\n: ping\n\nid: 7\nretry: x\n\n",
        events({"choices": 7}, {"choices": [7]}, {"choices": [{"delta": 7}]}, {"usage": [1]}),
        events(
            {"choices": [{"delta": {"content": 7, "tool_calls": [7, {}, {"index": "x", "function": 7}]}}]}
        ),
        events({"type": 7}, {"type": "content_block_delta"}, {"type": "message_start", "message": 7}),
        events({"type": "content_block_start", "index": [], "content_block": {"type": "text"}}),
        events({"type": "content_block_delta", "index": 5, "delta": {"type": "input_json_delta"}}),
        b"data: " + b"[" * 100_000 + b"\n\n",
    ],
)
async def test_nonsense(dialect: str, body: bytes) -> None:
    async with scripted(*[said(body)] * 3) as (one, provider):
        with pytest.raises(ProviderFailed, match="gave no proper answer"):
            await one.agent(dialect).run(one.run())
        assert provider.seen <= 3


async def test_a_slot_that_is_taken_back() -> None:
    """The watchdog gives it to another: whoever has lost it stops."""
    async with scripted(slot_timeout=0.05, watchdog_interval=0.02) as (one, provider):
        working = asyncio.create_task(one.agent().run(one.run()))
        exchange = await provider.next()
        exchange.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
        await until(lambda: one.used == 0)
        exchange.write(events(delta("hi")))
        with pytest.raises(PermitLost):
            await working


async def test_one_that_talks_keeps_its_slot() -> None:
    async with scripted(slot_timeout=0.2, watchdog_interval=0.02) as (one, provider):
        run = one.run()
        working = asyncio.create_task(one.agent().run(run))
        exchange = await provider.next()
        exchange.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
        for _ in range(6):
            exchange.write(events(delta("hi ")))
            await asyncio.sleep(0.1)
        assert one.used == 1
        exchange.write(events(delta("bye", "stop")))
        exchange.writer.close()
        assert (await working)["content"] == "hi " * 6 + "bye"


def test_what_is_sent_names_no_other_machine() -> None:
    agent = ChatAgent("p", "m", base_url="http://host:1/v1/", api_key=KEY)
    assert isinstance(agent._terms, Terms)
    assert agent._terms.url == "http://host:1/v1/chat/completions"
    assert json.dumps(agent._terms.headers).count(KEY) == 1
