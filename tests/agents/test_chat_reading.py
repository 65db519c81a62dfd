"""Reading what a provider says: any bytes, cut anywhere, give an answer or a clear error."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.chats import delta, events
from interlock.agents.chat_answer import Answer, EventStream
from interlock.agents.chat_anthropic import Anthropic
from interlock.agents.chat_openai import OpenAI
from interlock.errors import ProviderFailed
from interlock.testing import VirtualClock
from interlock.testing.virtual_time import idle

DIALECTS = (OpenAI, Anthropic)


def data_of(body: bytes, *cuts: int) -> list[bytes]:
    """The events of *body*, fed in pieces that end at *cuts*."""
    stream, found, start = EventStream(), [], 0
    for cut in [*sorted(cuts), len(body)]:
        found += stream.feed(body[start:cut])
        start = max(start, cut)
    return [*found, *stream.rest()]


def read(dialect: type[Any], *values: Any) -> Answer:
    answer = Answer()
    for data in data_of(events(*values)):
        dialect().read(data, answer)
    return answer


# -- events


def test_events_are_what_the_standard_says() -> None:
    body = b": ping\nevent: x\ndata: a\ndata:b\r\n\r\nid: 7\n\ndata\n\ndata:  two spaces\n\ndata: no end"
    assert data_of(body) == [b"a\nb", b" two spaces", b"no end"]


@given(st.binary(max_size=300) | st.text("data: \r\n{}\"':[]x", max_size=200).map(str.encode), st.data())
@settings(max_examples=60, deadline=None)
def test_it_makes_no_difference_where_they_are_cut(body: bytes, data: Any) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(body)), max_size=8))
    assert data_of(body, *cuts) == data_of(body)


def test_an_event_has_a_size() -> None:
    for endless in (b"data: " + b"x" * 100_000 + b"\n", b"y" * 100_000):
        with pytest.raises(ProviderFailed, match="an event of more than"):
            data_of(endless * 100)


# -- dialects

_LEAVES = (
    st.none() | st.booleans() | st.integers(-3, 10**20) | st.floats(allow_nan=False) | st.text(max_size=8)
)
_WORDS = [
    *("choices", "delta", "message", "content", "tool_calls", "index", "id", "function", "name"),
    *(
        "finish_reason",
        "usage",
        "error",
        "code",
        "prompt_tokens",
        "completion_tokens",
        "type",
        "content_block",
    ),
    *("text", "partial_json", "thinking", "signature", "stop_reason", "input", "message_start", "arguments"),
    *(
        "content_block_start",
        "content_block_delta",
        "message_delta",
        "message_stop",
        "text_delta",
        "tool_use",
    ),
    *("input_json_delta", "thinking_delta", "redacted_thinking", "input_tokens", "output_tokens"),
    *("text_delta", "tool_use"),
]
_ANYTHING = st.recursive(
    _LEAVES | st.sampled_from(_WORDS),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(_WORDS), inner, max_size=6),
    max_leaves=25,
)


@pytest.mark.parametrize("dialect", DIALECTS)
@given(st.lists(_ANYTHING, max_size=6), st.binary(max_size=40))
@settings(max_examples=60, deadline=None)
def test_any_json_and_any_bytes_are_read(dialect: type[Any], values: list[Any], noise: bytes) -> None:
    """And whatever came of it can be said again in the conversation."""
    answer = Answer()
    for value in values:
        dialect().read(json.dumps(value).encode(), answer)
        dialect().read_whole(json.dumps(value).encode(), answer)
    dialect().read(noise, answer)
    dialect().read_whole(noise, answer)
    json.dumps(dialect().answered(answer, [{} for _ in answer.calls]))
    assert isinstance(answer.text + answer.stop_reason, str)
    assert min(answer.input_tokens, answer.output_tokens) >= 0


@pytest.mark.parametrize("dialect", DIALECTS)
@given(st.lists(_ANYTHING, min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_any_members_where_they_matter(dialect: type[Any], values: list[Any]) -> None:
    one, two, *_ = [*values, None]
    shapes = [
        {
            "choices": [
                {"delta": {"content": one, "tool_calls": [{"index": two, "id": one, "function": two}]}}
            ]
        },
        {
            "choices": [{"delta": {"tool_calls": [{"function": {"name": one, "arguments": two}}]}}],
            "usage": one,
        },
        {"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use", "input": one}},
        {"type": "content_block_start", "index": 1, "content_block": {"type": "thinking", "thinking": two}},
        {"type": "content_block_delta", "index": one, "delta": {"type": "text_delta", "text": two}},
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "input_json_delta", "partial_json": two},
        },
        {"type": "message_delta", "delta": {"stop_reason": one}, "usage": {"output_tokens": two}},
        {"error": one, "type": "error"},
    ]
    answer = read(dialect, *shapes)
    json.dumps(dialect().answered(answer, [{} for _ in answer.calls]))


def part(index: Any, id_: str | None = None, name: str | None = None, arguments: str = "") -> dict[str, Any]:
    one = {"index": index, "id": id_, "function": {"name": name, "arguments": arguments}}
    return delta(tool_calls=[{key: value for key, value in one.items() if value is not None}])


@pytest.mark.parametrize(
    "parts",
    [
        [part(0, "a", "f", "{"), part(0, arguments="}"), part(1, "b", "g", "[]")],
        [part(0, "a", "f", "{}"), part(0, "b", "g", "["), part(0, arguments="]")],  # each numbered 0
        [
            part(None, "a", "f", "{"),
            part(None, arguments="}"),
            part(None, "b", "g"),
            part(None, arguments="[]"),
        ],
        [part(0, "a", "f"), part(1, "b", "g"), part(0, "a", arguments="{}"), part(1, "b", arguments="[]")],
    ],
)
def test_tool_calls_in_pieces(parts: list[Any]) -> None:
    """As OpenAI sends them, and as those do who follow it from afar."""
    answer = read(OpenAI, *parts)
    assert [(one.id, one.name, one.arguments) for one in answer.calls] == [("a", "f", "{}"), ("b", "g", "[]")]


def test_thinking_goes_back_as_it_came() -> None:
    """The API asks for it, with its signature, when a tool's result follows."""

    def start(number: int, **block: Any) -> dict[str, Any]:
        return {"type": "content_block_start", "index": number, "content_block": block}

    def more(number: int, kind: str, **what: Any) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": number, "delta": {"type": kind, **what}}

    answer = read(
        Anthropic,
        start(0, type="thinking", thinking=""),
        more(0, "thinking_delta", thinking="let me "),
        more(0, "thinking_delta", thinking="see"),
        more(0, "signature_delta", signature="abc"),
        start(1, type="redacted_thinking", data="xyz"),
        start(2, type="text", text=""),
        start(3, type="tool_use", id="t", name="f", input={}),
        more(3, "input_json_delta", partial_json='{"a": 1}'),
    )
    assert answer.text == ""
    (message,) = Anthropic().answered(answer, [{"a": 1}])
    assert message["content"] == [
        {"type": "thinking", "thinking": "let me see", "signature": "abc"},
        {"type": "redacted_thinking", "data": "xyz"},
        {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}},
    ]


# -- showing


async def test_it_is_shown_after_a_while_or_as_soon_as_it_is_enough() -> None:
    clock, answer = VirtualClock(), Answer()
    shown: list[list[str]] = []

    async def show() -> None:
        while pieces := await answer.fresh(clock):
            shown.append(pieces)

    showing = asyncio.create_task(show())
    await idle()
    answer.add("a")
    await clock.advance(0.04)
    answer.add("b")
    await idle()
    assert shown == []
    await clock.advance(0.01)
    assert shown == [["ab"]]
    answer.add("x" * 1023)
    await idle()
    assert len(shown) == 1
    answer.add("y")
    await idle()
    assert shown[1:] == [["x" * 1023 + "y"]]
    answer.add("z" * 150_000)
    answer.close()
    await showing
    assert [len(piece) for piece in shown[2]] == [65536, 65536, 150_000 - 2 * 65536]
