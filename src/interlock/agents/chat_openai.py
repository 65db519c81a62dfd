"""The chat completions API of OpenAI, as many providers and engines speak it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from interlock.agents.chat_answer import Answer, Problem, ToolCall, at, objects_at, text_at
from interlock.provider.signals import count, json_value

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from interlock.agents.chat_tools import Tool

_STOP_MOST: Final = 64
_STATUSES: Final = {"rate_limit_exceeded": 429, "rate_limit_error": 429, "insufficient_quota": 429}


class OpenAI:
    """How it is asked, and how its answers are read."""

    def url(self, base_url: str) -> str:
        """Where to ask; *base_url* ends with the version, as in ``https://api.openai.com/v1``."""
        return f"{base_url}/chat/completions"

    def headers(self, api_key: str | None) -> dict[str, str]:
        return {} if api_key is None else {"authorization": f"Bearer {api_key}"}

    def opening(self, system: str | None, messages: Sequence[Any]) -> list[Any]:
        """The conversation's messages before the first answer."""
        return [*([] if system is None else [{"role": "system", "content": system}]), *messages]

    def body(
        self, model: str, system: str | None, messages: Sequence[Any], tools: Sequence[Tool]
    ) -> dict[str, Any]:
        """What is asked."""
        body: dict[str, Any] = {"model": model, "messages": messages, "stream": True}
        body["stream_options"] = {"include_usage": True}
        if tools:
            body["tools"] = [
                {
                    "type": "function",
                    "function": {
                        "name": one.name,
                        "description": one.description,
                        "parameters": one.parameters,
                    },
                }
                for one in tools
            ]
        return body

    # -- reading

    def read(self, data: bytes, answer: Answer) -> None:
        """Take what one event of the stream says into *answer*."""
        if data.strip() == b"[DONE]":
            answer.whole = True
            return
        event = json_value(data)
        if _is_error(event, answer, data):
            return
        for choice in objects_at(event, "choices")[:1]:
            self._said(choice.get("delta"), choice, answer)
        _count(at(event, "usage"), answer)

    def read_whole(self, body: bytes, answer: Answer) -> None:
        """Take an answer that came in one piece, from a server that does not stream."""
        document = json_value(body)
        if _is_error(document, answer, body):
            return
        for choice in objects_at(document, "choices")[:1]:
            self._said(choice.get("message"), choice, answer)
            answer.whole = True
        _count(at(document, "usage"), answer)

    def _said(self, message: Any, choice: dict[str, Any], answer: Answer) -> None:
        answer.add(text_at(message, "content") or text_at(message, "refusal"))
        for part in objects_at(message, "tool_calls"):
            self._part_of_call(part, answer)
        answer.stop_reason = text_at(choice, "finish_reason")[:_STOP_MOST] or answer.stop_reason

    def _part_of_call(self, part: dict[str, Any], answer: Answer) -> None:
        id_, name = text_at(part, "id"), text_at(part, "function", "name")
        number = part.get("index")
        one: ToolCall | None = None
        if isinstance(number, int):
            one = answer.numbered.get(number)
        elif not name and not id_ and answer.calls:  # some number nothing, and send the calls one by one
            one = answer.calls[-1]
        # Some number every call 0; a new id says that it is another one.
        if id_ and (one is None or one.id not in ("", id_)):
            one = next((known for known in answer.calls if known.id == id_), None)
        if one is None:
            one = answer.call()
        if isinstance(number, int) and len(answer.numbered) <= len(answer.calls):
            answer.numbered[number] = one
        one.id = one.id or id_[:256]
        one.name = one.name or name[:256]
        if arguments := text_at(part, "function", "arguments"):
            answer.grow(len(arguments))
            one.pieces.append(arguments)

    # -- going on

    def answered(self, answer: Answer, arguments: Sequence[Mapping[str, Any] | None]) -> list[Any]:
        """The messages that *answer* adds to the conversation; *arguments* are those of its calls, read."""
        message: dict[str, Any] = {"role": "assistant", "content": answer.text}
        if answer.calls:
            message["tool_calls"] = [
                {
                    "id": one.id,
                    "type": "function",
                    # An engine that reads them refuses what is no JSON.
                    "function": {"name": one.name, "arguments": msgspec.json.encode(given or {}).decode()},
                }
                for one, given in zip(answer.calls, arguments, strict=True)
            ]
        return [message]

    def results(self, calls: Sequence[ToolCall], told: Sequence[tuple[str, bool]]) -> list[Any]:
        """The messages that tell what the tools gave, and whether they failed."""
        return [
            {"role": "tool", "tool_call_id": one.id, "content": text}
            for one, (text, _) in zip(calls, told, strict=True)
        ]


def _is_error(event: Any, answer: Answer, data: bytes) -> bool:
    error = at(event, "error")
    if not error:
        return False
    code, kind = at(error, "code"), text_at(error, "type")
    status = count(code, at_most=599) or _STATUSES.get(text_at(error, "code")) or _STATUSES.get(kind)
    if isinstance(code, str) and code.isdecimal() and len(code) == 3:
        status = int(code)
    answer.problem = Problem(status or 500, data)
    return True


def _count(usage: Any, answer: Answer) -> None:
    for name, theirs in (("input_tokens", "prompt_tokens"), ("output_tokens", "completion_tokens")):
        found = count(at(usage, theirs), at_most=10**12)
        if found is not None:
            setattr(answer, name, found)
