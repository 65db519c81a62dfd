"""What the mock provider says: the dialects' own shapes, and for one request always the same bytes."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator

_SENTENCE = "the quick agent reads a file then writes another one and waits its turn at the gate"
_WORDS = tuple(_SENTENCE.split())
_STEPS = re.compile(r"use (\d) tools?")
_CREATED = 1_750_000_000


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, told in full or in pieces. *call_id* is set when it is a tool call."""

    kind: str
    id: str
    model: str
    words: tuple[str, ...]
    call_id: str | None
    tool: str | None

    @property
    def text(self) -> str:
        return " ".join(self.words)


def seeded(seed: int, body: bytes) -> Random:
    """The dice of one request: the same request, the same throws."""
    return Random(hashlib.sha256(b"%d:" % seed + body).digest())  # noqa: S311 - repeatable on purpose


def compose(kind: str, request: dict[str, Any], dice: Random) -> Answer:
    """The answer to *request*; a tool call while it offers tools and wants more steps than it has results."""
    tools = request.get("tools") or []
    turns = request.get("messages") or request.get("input") or []
    turns = turns if isinstance(turns, list) else [{"role": "user", "content": turns}]
    calls_tool = bool(tools) and _results(turns) < _wanted(turns)
    return Answer(
        kind=kind,
        id=f"{dice.getrandbits(64):016x}",
        model=str(request.get("model", "mock")),
        words=tuple(dice.choices(_WORDS, k=dice.randrange(6, 14))),
        call_id=f"call_{dice.getrandbits(48):012x}" if calls_tool else None,
        tool=_tool_name(tools[0]) if calls_tool else None,
    )


def whole(answer: Answer, request: dict[str, Any]) -> dict[str, Any]:
    """The answer as one document."""
    return _WHOLE[answer.kind](answer)


def pieces(answer: Answer, request: dict[str, Any]) -> Iterator[bytes]:
    """The answer as the events of a stream."""
    return _PIECES[answer.kind](answer, request)


def refusal(kind: str, message: str) -> dict[str, Any]:
    """A 429 in the dialect's shape, worded so that it says what it counts."""
    if kind == "messages":
        return {"type": "error", "error": {"type": "rate_limit_error", "message": message}}
    error: dict[str, Any] = {"message": message, "type": "rate_limit_error", "param": None}
    return {"error": {**error, "code": "concurrency_limit_exceeded"}}


# -- chat completions


def _chat(answer: Answer) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": answer.text}
    if answer.call_id is not None:
        message = {"role": "assistant", "content": None, "tool_calls": [_chat_call(answer)]}
    finish = "stop" if answer.call_id is None else "tool_calls"
    return {
        "id": f"chatcmpl-{answer.id}",
        "object": "chat.completion",
        "created": _CREATED,
        "model": answer.model,
        "choices": [{"index": 0, "message": message, "finish_reason": finish, "logprobs": None}],
        "usage": _chat_usage(answer),
    }


def _chat_call(answer: Answer) -> dict[str, Any]:
    return {
        "id": answer.call_id,
        "type": "function",
        "function": {"name": answer.tool, "arguments": '{"path": "notes.txt"}'},
    }


def _chat_pieces(answer: Answer, request: dict[str, Any]) -> Iterator[bytes]:
    def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
        choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
        return _data(_chat_chunk(answer, choices=choices))

    yield chunk({"role": "assistant", "content": ""})
    if answer.call_id is None:
        for index, word in enumerate(answer.words):
            yield chunk({"content": word if index == 0 else " " + word})
    else:
        call = _chat_call(answer)
        arguments = call["function"].pop("arguments")
        yield chunk({"tool_calls": [{"index": 0, **call}]})
        yield chunk({"tool_calls": [{"index": 0, "function": {"arguments": arguments}}]})
    yield chunk({}, "stop" if answer.call_id is None else "tool_calls")
    if (request.get("stream_options") or {}).get("include_usage"):
        yield _data(_chat_chunk(answer, choices=[], usage=_chat_usage(answer)))
    yield b"data: [DONE]\n\n"


def _chat_chunk(answer: Answer, **more: Any) -> dict[str, Any]:
    head = {"id": f"chatcmpl-{answer.id}", "object": "chat.completion.chunk"}
    return {**head, "created": _CREATED, "model": answer.model, **more}


def _chat_usage(answer: Answer) -> dict[str, int]:
    count = len(answer.words)
    return {"prompt_tokens": 20, "completion_tokens": count, "total_tokens": 20 + count}


# -- responses


def _response(answer: Answer, *, done: bool = True) -> dict[str, Any]:
    return {
        "id": f"resp_{answer.id}",
        "object": "response",
        "created_at": _CREATED,
        "status": "completed" if done else "in_progress",
        "model": answer.model,
        "output": [_response_item(answer)] if done else [],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "temperature": 1.0,
        "top_p": 1.0,
        "usage": _response_usage(answer) if done else None,
    }


def _response_usage(answer: Answer) -> dict[str, Any]:
    count = len(answer.words)
    return {
        "input_tokens": 20,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": count,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 20 + count,
    }


def _response_item(answer: Answer) -> dict[str, Any]:
    if answer.call_id is not None:
        return {
            "id": f"fc_{answer.id}",
            "type": "function_call",
            "status": "completed",
            "call_id": answer.call_id,
            "name": answer.tool,
            "arguments": '{"path": "notes.txt"}',
        }
    content = [{"type": "output_text", "text": answer.text, "annotations": []}]
    return {
        "id": f"msg_{answer.id}",
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": content,
    }


def _response_pieces(answer: Answer, request: dict[str, Any]) -> Iterator[bytes]:
    number = iter(range(1000))

    def event(kind: str, **more: Any) -> bytes:
        return _event(kind, {"type": kind, "sequence_number": next(number), **more})

    item = _response_item(answer)
    place = {"output_index": 0, "item_id": item["id"]}
    yield event("response.created", response=_response(answer, done=False))
    if answer.call_id is None:
        empty = {"type": "output_text", "text": "", "annotations": []}
        part = {"content_index": 0, **place}
        begun = {**item, "status": "in_progress", "content": []}
        yield event("response.output_item.added", output_index=0, item=begun)
        yield event("response.content_part.added", part=empty, **part)
        for index, word in enumerate(answer.words):
            delta = word if index == 0 else " " + word
            yield event("response.output_text.delta", delta=delta, logprobs=[], **part)
        yield event("response.output_text.done", text=answer.text, logprobs=[], **part)
        yield event("response.content_part.done", part=item["content"][0], **part)
    else:
        begun = {**item, "status": "in_progress", "arguments": ""}
        yield event("response.output_item.added", output_index=0, item=begun)
        arguments = item["arguments"]
        yield event("response.function_call_arguments.delta", delta=arguments, **place)
        yield event("response.function_call_arguments.done", arguments=arguments, name=answer.tool, **place)
    yield event("response.output_item.done", output_index=0, item=item)
    yield event("response.completed", response=_response(answer))


# -- messages


def _message(answer: Answer, *, done: bool = True) -> dict[str, Any]:
    stop = "end_turn" if answer.call_id is None else "tool_use"
    content = [{"type": "text", "text": answer.text}] if answer.call_id is None else [_tool_use(answer)]
    return {
        "id": f"msg_{answer.id}",
        "type": "message",
        "role": "assistant",
        "model": answer.model,
        "content": content if done else [],
        "stop_reason": stop if done else None,
        "stop_sequence": None,
        "usage": {"input_tokens": 20, "output_tokens": len(answer.words) if done else 1},
    }


def _tool_use(answer: Answer) -> dict[str, Any]:
    return {
        "type": "tool_use",
        "id": answer.call_id,
        "name": answer.tool,
        "input": {"path": "notes.txt"},
    }


def _message_pieces(answer: Answer, request: dict[str, Any]) -> Iterator[bytes]:
    def event(kind: str, **more: Any) -> bytes:
        return _event(kind, {"type": kind, **more})

    final = _message(answer)
    yield event("message_start", message=_message(answer, done=False))
    if answer.call_id is None:
        yield event("content_block_start", index=0, content_block={"type": "text", "text": ""})
        for index, word in enumerate(answer.words):
            delta = {"type": "text_delta", "text": word if index == 0 else " " + word}
            yield event("content_block_delta", index=0, delta=delta)
    else:
        yield event("content_block_start", index=0, content_block={**_tool_use(answer), "input": {}})
        delta = {"type": "input_json_delta", "partial_json": '{"path": "notes.txt"}'}
        yield event("content_block_delta", index=0, delta=delta)
    yield event("content_block_stop", index=0)
    last = {"stop_reason": final["stop_reason"], "stop_sequence": None}
    yield event("message_delta", delta=last, usage={"output_tokens": len(answer.words)})
    yield event("message_stop")


# -- reading and writing


def _results(turns: list[Any]) -> int:
    """How many tool results the conversation holds since its last prompt."""
    count = 0
    for turn in turns:
        if not isinstance(turn, dict):
            continue
        content = turn.get("content")
        blocks = [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []
        found = sum(block.get("type") == "tool_result" for block in blocks)
        if found or turn.get("role") == "tool" or turn.get("type") == "function_call_output":
            count += found or 1
        elif turn.get("role") == "user":
            count = 0
    return count


def _wanted(turns: list[Any]) -> int:
    prompts = [str(turn.get("content")) for turn in turns if isinstance(turn, dict)]
    asked = [match[1] for prompt in prompts if (match := _STEPS.search(prompt)) is not None]
    return int(asked[-1]) if asked else 0


def _tool_name(tool: Any) -> str:
    if not isinstance(tool, dict):
        return "tool"
    function = tool.get("function")
    named = function if isinstance(function, dict) else tool
    return str(named.get("name", "tool"))


def _data(value: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def _event(kind: str, value: dict[str, Any]) -> bytes:
    return b"event: " + kind.encode() + b"\n" + _data(value)


_WHOLE = {"chat": _chat, "responses": _response, "messages": _message}
_PIECES = {"chat": _chat_pieces, "responses": _response_pieces, "messages": _message_pieces}
