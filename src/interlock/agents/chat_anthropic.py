"""The messages API of Anthropic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from interlock.agents.chat_answer import Answer, Problem, ToolCall, at, objects_at, text_at
from interlock.provider.signals import count, json_value

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from interlock.agents.chat_tools import Tool

_VERSION: Final = "2023-06-01"
_MAX_TOKENS: Final = 8192
"""Of an answer, unless ``options`` say otherwise: this API has no default."""
_STOPS: Final = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_STATUSES: Final = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "rate_limit_error": 429,
    "overloaded_error": 529,
}
_INPUT: Final = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
_GROWING: Final = {
    "text_delta": "text",
    "input_json_delta": "partial_json",
    "thinking_delta": "thinking",
    "signature_delta": "signature",
}


class Anthropic:
    """How it is asked, and how its answers are read."""

    def url(self, base_url: str) -> str:
        """Where to ask; *base_url* may end with the version, as the SDK's does not."""
        return f"{base_url.removesuffix('/v1')}/v1/messages"

    def headers(self, api_key: str | None) -> dict[str, str]:
        return {"anthropic-version": _VERSION, **({} if api_key is None else {"x-api-key": api_key})}

    def opening(self, system: str | None, messages: Sequence[Any]) -> list[Any]:
        """The conversation's messages before the first answer."""
        return list(messages)

    def body(
        self, model: str, system: str | None, messages: Sequence[Any], tools: Sequence[Tool]
    ) -> dict[str, Any]:
        """What is asked. Messages of the role ``system`` go where this API wants them."""
        told = [_plain(message.get("content")) for message in messages if message["role"] == "system"]
        words = [one for one in (system, *told) if one]
        talk = [message for message in messages if message["role"] != "system"]
        body: dict[str, Any] = {"model": model, "messages": talk, "stream": True, "max_tokens": _MAX_TOKENS}
        if words:
            body["system"] = "\n\n".join(words)
        if tools:
            body["tools"] = [
                {"name": one.name, "description": one.description, "input_schema": one.parameters}
                for one in tools
            ]
        return body

    # -- reading

    def read(self, data: bytes, answer: Answer) -> None:
        """Take what one event of the stream says into *answer*."""
        event = json_value(data)
        match text_at(event, "type"):
            case "message_start":
                _count(at(event, "message", "usage"), answer)
            case "content_block_start":
                self._block(event.get("index"), event.get("content_block"), answer)
            case "content_block_delta":
                self._delta(event.get("index"), event.get("delta"), answer)
            case "message_delta":
                _stopped(at(event, "delta"), answer)
                _count(at(event, "usage"), answer)
            case "message_stop":
                answer.whole = True
            case "error":
                _failed(event, answer, data)

    def read_whole(self, body: bytes, answer: Answer) -> None:
        """Take an answer that came in one piece, from a server that does not stream."""
        document = json_value(body)
        if text_at(document, "type") == "error":
            _failed(document, answer, body)
        elif text_at(document, "type") == "message":
            for number, block in enumerate(objects_at(document, "content")):
                self._block(number, block, answer)
            _stopped(document, answer)
            _count(at(document, "usage"), answer)
            answer.whole = True

    def _block(self, number: Any, block: Any, answer: Answer) -> None:
        kind = text_at(block, "type")
        if not isinstance(number, int) or isinstance(number, bool) or number in answer.blocks:
            return
        match kind:
            case "text":
                answer.block(number, {"type": kind, "text": []})
                self._grow(answer, number, "text", text_at(block, "text"))
            case "tool_use":
                one = answer.call()
                one.id, one.name = text_at(block, "id")[:256], text_at(block, "name")[:256]
                answer.block(number, {"type": kind, "call": one})
                if isinstance(given := block.get("input"), dict) and given:  # in a stream it comes in pieces
                    self._grow(answer, number, "partial_json", msgspec.json.encode(given).decode())
            case "thinking":
                answer.block(number, {"type": kind, "thinking": [], "signature": []})
                for name in ("thinking", "signature"):
                    self._grow(answer, number, name, text_at(block, name))
            case "redacted_thinking":
                data = text_at(block, "data")
                answer.grow(len(data))
                answer.block(number, {"type": kind, "data": data})

    def _delta(self, number: Any, delta: Any, answer: Answer) -> None:
        name = _GROWING.get(text_at(delta, "type"), "")
        if isinstance(number, int) and number not in answer.blocks and name == "text":
            self._block(number, {"type": "text"}, answer)
        self._grow(answer, number, name, text_at(delta, name))

    def _grow(self, answer: Answer, number: Any, name: str, text: str) -> None:
        block = answer.blocks.get(number) if isinstance(number, int) else None
        if block is None or not text:
            return
        if name == "text" and block["type"] == "text":
            answer.add(text)
            block["text"].append(text)
        elif name == "partial_json" and block["type"] == "tool_use":
            answer.grow(len(text))
            block["call"].pieces.append(text)
        elif isinstance(block.get(name), list):
            answer.grow(len(text))
            block[name].append(text)

    # -- going on

    def answered(self, answer: Answer, arguments: Sequence[Mapping[str, Any] | None]) -> list[Any]:
        """The messages that *answer* adds to the conversation; *arguments* are those of its calls, read."""
        given = {id(one): read for one, read in zip(answer.calls, arguments, strict=True)}
        content: list[Any] = []
        for _, block in sorted(answer.blocks.items()):
            if block["type"] == "tool_use":
                one = block["call"]
                if id(one) in given:
                    use = {"type": "tool_use", "id": one.id, "name": one.name, "input": given[id(one)] or {}}
                    content.append(use)
                continue
            whole = {name: "".join(value) for name, value in block.items()}
            if whole.get("text", "-").strip():  # an empty text is refused
                content.append(whole)
        return [{"role": "assistant", "content": content}] if content else []

    def results(self, calls: Sequence[ToolCall], told: Sequence[tuple[str, bool]]) -> list[Any]:
        """The message that tells what the tools gave, and whether they failed."""
        content = [
            {"type": "tool_result", "tool_use_id": one.id, "content": text, "is_error": failed}
            for one, (text, failed) in zip(calls, told, strict=True)
        ]
        return [{"role": "user", "content": content}]


def _plain(content: Any) -> str:
    """The text of a message's content, which may come in parts."""
    if isinstance(content, str):
        return content
    return "".join(text_at(part, "text") for part in objects_at({"parts": content}, "parts"))


def _stopped(delta: Any, answer: Answer) -> None:
    reason = text_at(delta, "stop_reason")
    answer.stop_reason = _STOPS.get(reason, reason[:64]) or answer.stop_reason


def _failed(event: Any, answer: Answer, data: bytes) -> None:
    answer.problem = Problem(_STATUSES.get(text_at(event, "error", "type"), 500), data)


def _count(usage: Any, answer: Answer) -> None:
    found = [number for name in _INPUT if (number := count(at(usage, name), at_most=10**12)) is not None]
    if found:
        answer.input_tokens = max(answer.input_tokens, sum(found))
    output = count(at(usage, "output_tokens"), at_most=10**12)
    if output is not None:
        answer.output_tokens = output
