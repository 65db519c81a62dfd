"""Models as agents: what is asked and logged, tools, pausing, and that nothing is held longer than needed."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest

from agents.chats import KEY, delta, events, mock, said, scripted
from agents.runs import Recorder
from gateways import until
from interlock.agents import ChatAgent, tool
from interlock.errors import AcquireTimeout, RunCancelled, ValidationError
from interlock.governor import ConcurrencyGovernor
from interlock.secret import Secret

DIALECTS = ("openai", "anthropic")


async def ended(*tasks: asyncio.Task[Any]) -> None:
    async with asyncio.timeout(20):
        await asyncio.wait(tasks)


def asked(provider: Any) -> Any:
    """The body of what reached the provider."""
    return json.loads(provider.body)


# -- answers


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_it_answers_and_logs(dialect: str) -> None:
    async with mock() as scene:
        run = scene.run()
        output = await scene.agent(dialect, system="Be brief.").run(run)
        messages = 3 if dialect == "openai" else 2  # Anthropic's system prompt is none
        assert output == {"content": run.streamed, "messages": messages, "stop_reason": "stop"}
        assert len(run.streamed.split()) >= 6
        kinds = [kind for kind in run.types if kind != "message_streamed"]
        assert kinds == ["message_sent", "message_received", "token_usage_updated", "turn_completed"]
        assert run.of("message_sent") == [{"role": "user", "content": "hello"}]
        (received,) = run.of("message_received")
        assert received == {"role": "assistant", "content": run.streamed, "stop_reason": "stop"}
        used = {"input_tokens": 20, "output_tokens": len(run.streamed.split())}
        assert (run.used, run.of("token_usage_updated")) == (used, [used])
        assert run.of("turn_completed") == [{"turn": 1, "stop_reason": "stop", "tool_calls": 0}]


async def test_what_is_asked() -> None:
    """In the words of either API, with the key where it belongs and nowhere else."""
    whole = said(events(delta("hi", "stop"), "[DONE]"))
    async with scripted(whole) as (scene, provider):
        agent = scene.agent(system="Be brief.", options={"temperature": 0}, headers={"X-Team": "a"})
        parts = [{"type": "text", "text": "a"}]
        await agent.run(scene.run({"messages": [{"role": "user", "content": parts}]}))
        first = await provider.next()
        assert first.target == b"/v1/chat/completions"
        assert first.header(b"authorization") == f"Bearer {KEY}".encode()
        assert (first.header(b"x-team"), first.header(b"accept-encoding")) == (b"a", b"identity")
        body = asked(first)
        assert body["messages"][0] == {"role": "system", "content": "Be brief."}
        assert body["messages"][1]["content"] == parts
        assert (body["model"], body["stream"], body["temperature"]) == ("mock", True, 0)
        assert body["stream_options"] == {"include_usage": True}
        assert "tools" not in body
    stream = [
        {"type": "message_start", "message": {"usage": {"input_tokens": 2, "cache_read_input_tokens": 5}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hi"}},
        {"type": "message_delta", "delta": {"stop_reason": "max_tokens"}, "usage": {"output_tokens": 1}},
        {"type": "message_stop"},
    ]
    async with scripted(said(events(*stream))) as (scene, provider):
        messages = [{"role": "system", "content": "In verse."}, {"role": "user", "content": "a"}]
        run = scene.run({"messages": messages})
        output = await scene.agent("anthropic", system="Be brief.").run(run)
        assert output == {"content": "hi", "messages": 3, "stop_reason": "length"}
        assert run.used == {"input_tokens": 7, "output_tokens": 1}
        second = await provider.next()
        assert second.target == b"/v1/messages"
        assert (second.header(b"x-api-key"), second.header(b"authorization")) == (KEY.encode(), None)
        assert second.header(b"anthropic-version") == b"2023-06-01"
        body = asked(second)
        assert body["system"] == "Be brief.\n\nIn verse."
        assert body["messages"] == [{"role": "user", "content": "a"}]
        assert body["max_tokens"] > 0


async def test_without_gate_and_governor() -> None:
    async with mock() as scene:
        run = Recorder({"prompt": "hello, use 1 tool"})
        output = await scene.agent(tools=[look_up]).run(run)
        assert output["stop_reason"] == "stop"
        assert run.types.count("tool_call_completed") == 1


async def test_an_answer_in_one_piece() -> None:
    """From a server that does not know how to stream."""
    message = {"role": "assistant", "content": "whole"}
    body = {"choices": [{"message": message, "finish_reason": "stop"}], "usage": {"prompt_tokens": 3}}
    async with scripted(said(json.dumps(body).encode(), "application/json")) as (scene, _):
        run = scene.run()
        assert (await scene.agent().run(run))["content"] == "whole"
        assert (run.streamed, run.used["input_tokens"]) == ("whole", 3)
    body = {
        "type": "message",
        "content": [{"type": "text", "text": "who"}, {"type": "text", "text": "le"}],
        "stop_reason": "end_turn",
    }
    async with scripted(said(json.dumps(body).encode(), "application/json")) as (scene, _):
        assert (await scene.agent("anthropic").run(scene.run()))["content"] == "whole"


async def test_deltas_are_put_together() -> None:
    """A store is not asked to keep every token: 1000 of them, at once, are a few events."""
    tokens = [f"{number} " for number in range(1000)]
    async with scripted(said(events(*map(delta, tokens), delta(finish="stop"), "[DONE]"))) as (scene, _):
        run = scene.run()
        await scene.agent().run(run)
        assert run.streamed == "".join(tokens)
        assert len(run.of("message_streamed")) <= 6


async def test_a_delta_is_shown_soon() -> None:
    """Also where the next one is long in coming."""
    async with scripted() as (scene, provider):
        run = scene.run()
        working = asyncio.create_task(scene.agent().run(run))
        exchange = await provider.next()
        exchange.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + events(delta("first "))
        )
        await until(lambda: run.streamed == "first ")
        assert scene.used == 1
        exchange.write(events(delta("last", "stop"), "[DONE]"))
        exchange.writer.close()
        assert (await working)["content"] == "first last"


@pytest.mark.parametrize("given", [None, "text", [], {}, {"prompt": 7}, {"prompt": "a", "messages": []}])
async def test_an_input_that_is_none(given: Any) -> None:
    async with mock() as scene:
        run = Recorder(given)
        with pytest.raises(ValidationError, match="the input does not fit"):
            await scene.agent().run(run)
        assert run.events == []
        with pytest.raises(ValidationError, match=r"messages\[1\]"):
            await scene.agent().run(Recorder({"messages": [{"role": "user"}, given]}))


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"dialect": "latin"}, "openai, anthropic"),
        ({"base_url": "ftp://x"}, "base_url"),
        ({"base_url": "http://user:pass@host"}, "base_url"),
        ({"base_url": None}, "base_url"),
        ({"model": ""}, "model"),
        ({"max_turns": 0}, "max_turns"),
        ({"timeout": -1}, "timeout"),
        ({"read_timeout": None}, "read_timeout"),
        ({"api_key": "a\r\nb: c"}, "authorization cannot be sent"),
        ({"headers": {"a b": "c"}}, "name of a header"),
        ({"tools": [7]}, "cannot be called"),
    ],
)
def test_what_is_no_chat_agent(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named) as refused:
        ChatAgent("p", **{"model": "m", "base_url": "http://host/v1", **wrong})
    assert "pass" not in str(refused.value)


def test_the_key_is_not_shown() -> None:
    agent = ChatAgent("p", "m", base_url="http://host/v1", api_key=Secret(KEY))
    assert KEY not in repr(agent)
    assert agent._terms.headers["authorization"] == f"Bearer {KEY}"


# -- tools


async def look_up(path: str, lines: int = 5) -> dict[str, Any]:
    """Look something up."""
    return {"path": path, "lines": lines}


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_tools_are_used(dialect: str) -> None:
    seen: list[tuple[str, str, int]] = []

    async with mock() as scene:

        def read(path: str) -> str:
            tools = scene.gate.admission.limits()["tools"].used
            seen.append((path, threading.current_thread().name, tools))
            return f"content of {path}"

        run = scene.run("please use 2 tools")
        output = await scene.agent(dialect, tools=[read]).run(run)
        assert output["stop_reason"] == "stop"
        assert seen == [("notes.txt", "tool read", 1)] * 2
        kinds = [kind for kind in run.types if kind != "message_streamed"]
        turn = ["message_received", "token_usage_updated"]
        use = ["tool_call_started", "tool_call_completed", "turn_completed"]
        assert kinds == ["message_sent", *turn, *use, *turn, *use, *turn, "turn_completed"]
        started, completed = run.of("tool_call_started")[0], run.of("tool_call_completed")[0]
        assert started["tool_call_id"] == completed["tool_call_id"] != ""
        assert (started["tool_name"], started["arguments"]) == ("read", {"path": "notes.txt"})
        assert completed["result"] == "content of notes.txt"
        assert output["messages"] == 6
        assert run.used["input_tokens"] == 60


def calls(*named: tuple[str, str], text: str = "") -> bytes:
    """An answer that calls tools, each by name and with arguments as they are."""
    parts = [
        {"index": number, "id": f"c{number}", "function": {"name": name, "arguments": arguments}}
        for number, (name, arguments) in enumerate(named)
    ]
    return said(events(delta(text, tool_calls=parts), delta(finish="tool_calls"), "[DONE]"))


DONE = said(events(delta("done", "stop"), "[DONE]"))


async def test_a_tool_that_fails_is_the_models_to_mend() -> None:
    """So is one that does not exist, and arguments that do not fit; the run goes on."""

    def fails() -> None:
        raise RuntimeError("no such luck")

    async def leaves() -> None:
        raise SystemExit(3)

    async def gives_up() -> None:
        raise asyncio.CancelledError

    async def takes_long() -> None:
        await asyncio.Event().wait()

    def waits() -> Any:
        return takes_long()

    wrong = [("fails", "{}"), ("leaves", ""), ("gives_up", "{}"), ("takes_long", "{}"), ("waits", "{}")]
    wrong += [("nobody", "{}"), ("look_up", '{"path": 7}'), ("look_up", '{"pa')]
    wrong += [("look_up", '{"p": "", "path": ""}')]
    async with scripted(calls(*wrong, text="let me see"), DONE) as (scene, provider):
        run = scene.run()
        tools = [fails, leaves, gives_up, takes_long, waits, look_up]
        output = await scene.agent(tools=tools, tool_timeout=0.2).run(run)
        assert output["content"] == "done"
        told = {data["tool_call_id"]: data["error"] for data in run.of("tool_call_failed")}
        assert told == {
            "c0": "RuntimeError: no such luck",
            "c1": "SystemExit: 3",
            "c2": "it was cancelled",
            "c3": "it took longer than 0.2 s",
            "c4": "TypeError: waits returned something to await; it should be an async def",
            "c5": "there is no tool 'nobody'; there are: " + ", ".join(one.__name__ for one in tools),
            "c6": "ValidationError: Expected `str`, got `int` - at `$.path`",
            "c7": "the arguments are no JSON object: '{\"pa'",
            "c8": "ValidationError: Object contains unknown field `p`",
        }
        await provider.next()
        messages = asked(await provider.next())["messages"]
        assert [one["role"] for one in messages] == ["user", "assistant", *["tool"] * 9]
        assert {one["tool_call_id"]: one["content"] for one in messages[2:]} == told
        answered = [one["function"]["arguments"] for one in messages[1]["tool_calls"]]
        assert all(isinstance(json.loads(one), dict) for one in answered)


async def test_tools_of_one_answer_run_together_as_far_as_there_is_room() -> None:
    most = now = 0

    async def work(number: int) -> int:
        nonlocal most, now
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.02)
        now -= 1
        return number * number

    many = [("work", json.dumps({"number": number})) for number in range(6)]
    async with scripted(calls(*many), DONE) as (scene, provider):
        await scene.governor.set_limits(max_tools=3)
        await scene.agent(tools=[work]).run(scene.run())
        assert most == 3
        await provider.next()
        messages = asked(await provider.next())["messages"]
        assert [one["content"] for one in messages[2:]] == [str(number**2) for number in range(6)]


async def test_turns_are_limited() -> None:
    async with mock() as scene:
        run = scene.run("use 9 tools")
        output = await scene.agent(tools=[look_up], max_turns=3).run(run)
        assert output["stop_reason"] == "max_turns"
        assert run.types.count("tool_call_completed") == 2
        assert [data["turn"] for data in run.of("turn_completed")] == [1, 2, 3]


async def test_a_stream_is_one_claim_with_the_governors() -> None:
    """A model's call counts as a stream of the fleet, as it does through the gateway."""
    async with scripted() as (scene, provider):
        working = asyncio.create_task(scene.agent().run(scene.run()))
        exchange = await provider.next()
        assert scene.gate.admission.limits()["streams"].used == 1
        exchange.write(DONE)
        await working
        held = await scene.governor.acquire_stream()
        await scene.governor.set_limits(max_streams=1)
        with pytest.raises(AcquireTimeout):
            await scene.agent(timeout=0.05).run(scene.run())
        held.release()
        alone = ConcurrencyGovernor(max_streams=1)
        async with alone.acquire_stream():
            with pytest.raises(AcquireTimeout):
                await scene.agent(timeout=0.05).run(scene.run(gate=None, governor=alone))


# -- pausing and cancelling


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_cancelled_in_the_middle_it_frees_the_slot_at_once(dialect: str) -> None:
    async with mock() as scene:
        scene.provider.cue("stall", after=4)
        run = scene.run()
        working = asyncio.create_task(scene.agent(dialect).run(run))
        await until(lambda: run.streamed)
        assert scene.used == 1
        working.cancel()
        await ended(working)
        assert working.cancelled()
        assert scene.used == 0
        await until(lambda: scene.provider.account.counted == 0)


async def test_cancelled_in_line_it_leaves_the_line() -> None:
    async with mock() as scene, scene.gate.acquire("p"), scene.gate.acquire("p"):
        working = asyncio.create_task(scene.agent().run(scene.run()))
        await until(lambda: scene.gate.reading("p").waiting == 1)
        working.cancel()
        await ended(working)
        assert scene.gate.reading("p").waiting == 0


async def test_wherever_it_is_cancelled_nothing_is_held() -> None:
    async with mock(latency=0.01) as scene:
        for steps in range(60):
            run = scene.run("use 1 tool")
            working = asyncio.create_task(scene.agent(tools=[look_up]).run(run))
            for _ in range(steps):
                await asyncio.sleep(0.0005)
            working.cancel()
            await ended(working)
            await until(scene.idle)


async def test_a_thread_keeps_its_permit_until_it_has_ended() -> None:
    """It cannot be stopped, so it counts; the run does not wait for it."""
    going, may_end = threading.Event(), threading.Event()

    def works() -> None:
        going.set()
        may_end.wait(20)

    async with scripted(calls(("works", "{}"))) as (scene, _):
        working = asyncio.create_task(scene.agent(tools=[works]).run(scene.run()))
        await until(going.is_set)
        working.cancel()
        await ended(working)
        assert scene.gate.admission.limits()["tools"].used == 1
        may_end.set()
        await until(scene.idle)


async def test_an_async_tool_is_cancelled_with_its_run() -> None:
    tidied: list[str] = []

    async def works() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            tidied.append("yes")

    async with scripted(calls(("works", "{}"), ("works", "{}"))) as (scene, _):
        run = scene.run()
        working = asyncio.create_task(scene.agent(tools=[works]).run(run))
        await until(lambda: run.types.count("tool_call_started") == 2)
        working.cancel()
        await ended(working)
        assert (tidied, scene.idle()) == (["yes", "yes"], True)


async def test_a_paused_run_says_nothing_and_holds_no_slot() -> None:
    """Its answer is read to the end meanwhile, and shown when it goes on."""
    async with mock(latency=0.2) as scene:
        run = scene.run()
        working = asyncio.create_task(scene.agent().run(run))
        await until(lambda: scene.used)
        run.pause()
        await until(lambda: not scene.used)
        assert run.streamed == ""
        run.resume()
        assert (await working)["content"] == run.streamed != ""


async def test_a_slow_store_holds_no_slot() -> None:
    async with mock() as scene:
        run = scene.run()
        run.slowness = 0.15
        working = asyncio.create_task(scene.agent().run(run))
        await until(lambda: run.streamed)
        await until(lambda: not scene.used)
        assert not working.done()
        await working


async def test_a_run_that_should_end_asks_no_more() -> None:
    async with mock() as scene:
        run = scene.run("use 3 tools")

        async def stop(path: str) -> None:
            run.cancelled = True

        with pytest.raises(RunCancelled):
            await scene.agent(tools=[tool(stop, name="stop-it")]).run(run)
        assert run.types.count("message_received") == 1


async def test_a_log_that_cannot_be_written_ends_it() -> None:
    """Where the run has ended meanwhile, nothing of it goes on."""
    async with mock() as scene:
        run = scene.run("use 1 tool")
        emit = run.emit

        async def refusing(type_: str, data: Any = None) -> int:
            if type_ == "tool_call_started":
                raise RuntimeError("the log is closed")
            return await emit(type_, data)

        run.emit = refusing  # type: ignore[assignment, method-assign]
        with pytest.raises(RuntimeError, match="the log is closed"):
            await scene.agent(tools=[look_up]).run(run)
