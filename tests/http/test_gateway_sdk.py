"""The official SDKs through a real server in front of a real provider: as without it, byte for byte."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from gateways import OK, Upstream, answer, upstream
from processes import mock_provider, serve

CONFIG = """\
store = "memory:"

[providers.openai]
base_url = "{mock}/v1"
limit = 3
cooldown = "0s"
default_pause = "1ms"

[providers.anthropic]
base_url = "{mock}"
limit = 3
cooldown = "0s"
default_pause = "1ms"
"""
OURS = {"x-interlock-wait-ms", "ratelimit", "ratelimit-policy"}
OF_THE_HOP = {"date", "server", "connection", "transfer-encoding", "keep-alive"}
ANYTHING = {"type": "object", "properties": {}}
TOOL = {"type": "function", "function": {"name": "read", "parameters": ANYTHING}}
FLAT_TOOL = {"type": "function", "name": "read", "parameters": ANYTHING, "strict": False}
CLAUDE_TOOL = {"name": "read", "input_schema": ANYTHING}
CHAT = {"model": "mock", "messages": [{"role": "user", "content": "Say something."}]}
CLAUDE = {**CHAT, "max_tokens": 99}
RESPONSES = {"model": "mock", "input": "Say something."}
ASKS_FOR_TOOLS = [{"role": "user", "content": "Use 1 tools, then report: use 1 tools."}]
CHAT_TOOLS = {**CHAT, "messages": ASKS_FOR_TOOLS, "tools": [TOOL]}
CLAUDE_TOOLS = {**CLAUDE, "messages": ASKS_FOR_TOOLS, "tools": [CLAUDE_TOOL]}
RESPONSES_TOOLS = {"model": "mock", "input": ASKS_FOR_TOOLS, "tools": [FLAT_TOOL]}
STREAM = {"stream": True}
USAGE = {"stream_options": {"include_usage": True}}
EMBEDDINGS = {"model": "mock", "input": ["a", "b"], "encoding_format": "float"}

CALLS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "chat": ("openai", "chat.completions.create", CHAT),
    "chat, streamed": ("openai", "chat.completions.create", CHAT | STREAM),
    "chat, streamed, with usage": ("openai", "chat.completions.create", CHAT | STREAM | USAGE),
    "chat, tool": ("openai", "chat.completions.create", CHAT_TOOLS),
    "chat, tool, streamed": ("openai", "chat.completions.create", CHAT_TOOLS | STREAM),
    "responses": ("openai", "responses.create", RESPONSES),
    "responses, streamed": ("openai", "responses.create", RESPONSES | STREAM),
    "responses, tool": (
        "openai",
        "responses.create",
        {**RESPONSES, "input": ASKS_FOR_TOOLS, "tools": [FLAT_TOOL]},
    ),
    "models": ("openai", "models.list", {}),
    "embeddings": ("openai", "embeddings.create", EMBEDDINGS),
    "messages": ("anthropic", "messages.create", CLAUDE),
    "messages, streamed": ("anthropic", "messages.create", CLAUDE | STREAM),
    "messages, tool": ("anthropic", "messages.create", CLAUDE_TOOLS),
    "messages, tool, streamed": ("anthropic", "messages.create", CLAUDE_TOOLS | STREAM),
    "tokens": ("anthropic", "messages.count_tokens", CHAT),
    "claude models": ("anthropic", "models.list", {}),
}


@dataclass(frozen=True)
class Ways:
    """The base URLs of each SDK: straight to the provider, and through the gateway."""

    mock: str
    server: str

    @property
    def straight(self) -> dict[str, str]:
        return {"openai": f"{self.mock}/v1", "anthropic": self.mock}

    @property
    def gated(self) -> dict[str, str]:
        return {name: f"{self.server}/gateway/{name}" for name in ("openai", "anthropic")}

    async def cue(self, **fault: Any) -> None:
        """Have the provider misbehave in the next call."""
        async with httpx2.AsyncClient() as client:
            assert (await client.post(f"{self.mock}/cue", json={"faults": [fault]})).status_code == 200


@pytest.fixture(scope="module")
async def ways(tmp_path_factory: pytest.TempPathFactory, anyio_backend: str) -> AsyncIterator[Ways]:
    directory: Path = tmp_path_factory.mktemp("serve")
    async with mock_provider(latency="2ms") as mock, serve(directory, CONFIG.format(mock=mock)) as server:
        yield Ways(mock, server.url)
        assert server.stderr() == ""


CLIENTS: dict[tuple[str, bool], Callable[..., Any]] = {
    ("openai", False): openai.OpenAI,
    ("openai", True): openai.AsyncOpenAI,
    ("anthropic", False): anthropic.Anthropic,
    ("anthropic", True): anthropic.AsyncAnthropic,
}
KINDS = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])


@asynccontextmanager
async def client_of(sdk: str, is_async: bool, **options: Any) -> AsyncIterator[Any]:
    options = {"api_key": "sk-caller", "max_retries": 0, **options}
    client = CLIENTS[sdk, is_async](**options)
    try:
        yield client
    finally:
        closing = client.close()
        if closing is not None:
            await closing


def end_to_end(headers: Any) -> list[tuple[str, str]]:
    """The header fields that a provider sends, in their order, without its time and its connection's."""
    return [(name, value) for name, value in headers.multi_items() if name not in OURS | OF_THE_HOP]


async def raw(client: Any, is_async: bool, method: str, arguments: dict[str, Any]) -> tuple[Any, ...]:
    """Status, header fields and bytes of a call."""
    resource, _, verb = method.rpartition(".")
    calling = attrgetter(f"{resource}.with_streaming_response.{verb}")(client)(**arguments)
    if is_async:
        async with calling as response:
            body = b"".join([piece async for piece in response.iter_bytes()])
    else:
        with calling as response:
            body = b"".join(response.iter_bytes())
    return response.status_code, end_to_end(response.headers), body


async def parsed(client: Any, is_async: bool, method: str, arguments: dict[str, Any]) -> Any:
    """What the caller gets to see: an object, or the list of those that were streamed or listed."""
    result = attrgetter(method)(client)(**arguments)
    several = arguments.get("stream") or method == "models.list"
    if is_async:
        result = result if method == "models.list" else await result
        return [one.model_dump() async for one in result] if several else result.model_dump()
    return [one.model_dump() for one in result] if several else result.model_dump()


# -- answers -------------------------------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize("name", CALLS)
async def test_an_answer_is_the_same_as_without_the_gateway(name: str, is_async: bool, ways: Ways) -> None:
    """Status, header fields, bytes, and what the SDK makes of them."""
    sdk, method, arguments = CALLS[name]
    async with (
        client_of(sdk, is_async, base_url=ways.straight[sdk]) as straight,
        client_of(sdk, is_async, base_url=ways.gated[sdk]) as gated,
    ):
        expected = await raw(straight, is_async, method, arguments)
        assert expected[0] == 200
        assert expected[2]
        assert await raw(gated, is_async, method, arguments) == expected
        objects = await parsed(straight, is_async, method, arguments)
        assert objects
        assert await parsed(gated, is_async, method, arguments) == objects


@KINDS
async def test_a_raw_response_says_how_long_it_waited(is_async: bool, ways: Ways) -> None:
    """Ours come besides the provider's header fields."""
    async with client_of("openai", is_async, base_url=ways.gated["openai"]) as client:
        response = client.chat.completions.with_raw_response.create(**CHAT)
        response = await response if is_async else response
        assert int(response.headers["x-interlock-wait-ms"]) < 1000
        assert response.headers["ratelimit-policy"] == '"concurrency";q=3;qu="concurrent-requests"'
        assert response.headers["ratelimit"] == '"concurrency";r=2'


@KINDS
async def test_a_turn_with_a_tool_ends(is_async: bool, ways: Ways) -> None:
    """Call, result, answer: over the helper of one SDK that streams, and by hand over the other."""
    async with client_of("anthropic", is_async, base_url=ways.gated["anthropic"]) as client:
        messages: list[Any] = list(ASKS_FOR_TOOLS)
        asking = {"model": "mock", "max_tokens": 99, "messages": messages, "tools": [CLAUDE_TOOL]}
        stops = []
        for _ in range(2):
            if is_async:
                async with client.messages.stream(**asking) as stream:
                    final = await stream.get_final_message()
            else:
                with client.messages.stream(**asking) as stream:
                    final = stream.get_final_message()
            stops.append(final.stop_reason)
            if final.stop_reason == "tool_use":
                block = final.content[0]
                messages.append({"role": "assistant", "content": [block.model_dump(exclude_none=True)]})
                result = {"type": "tool_result", "tool_use_id": block.id, "content": "done"}
                messages.append({"role": "user", "content": [result]})
        assert stops == ["tool_use", "end_turn"]
    async with client_of("openai", is_async, base_url=ways.gated["openai"]) as client:
        messages = list(ASKS_FOR_TOOLS)
        finishes = []
        for _ in range(2):
            got = client.chat.completions.create(model="mock", messages=messages, tools=[TOOL])
            (choice,) = (await got if is_async else got).choices
            finishes.append(choice.finish_reason)
            if choice.message.tool_calls:
                messages.append(choice.message.model_dump(exclude_none=True))
                (asked,) = choice.message.tool_calls
                messages.append({"role": "tool", "tool_call_id": asked.id, "content": "done"})
        assert finishes == ["tool_calls", "stop"]


# -- errors --------------------------------------------------------------------------------------------------

OPENAI_ERROR = {"message": "So it is.", "type": "some_error", "param": "messages", "code": "some_code"}
QUOTA = {**OPENAI_ERROR, "code": "insufficient_quota"}
ERRORS: list[tuple[str, int, dict[str, Any], str]] = [
    ("openai", 400, {"error": OPENAI_ERROR}, "BadRequestError"),
    ("openai", 401, {"error": OPENAI_ERROR}, "AuthenticationError"),
    ("openai", 404, {"error": OPENAI_ERROR}, "NotFoundError"),
    ("openai", 422, {"detail": [{"loc": ["body"], "msg": "no"}]}, "UnprocessableEntityError"),
    ("openai", 429, {"error": QUOTA}, "RateLimitError"),
    ("openai", 500, {"error": OPENAI_ERROR}, "InternalServerError"),
    ("anthropic", 400, {"type": "invalid_request_error", "message": "No."}, "BadRequestError"),
    ("anthropic", 403, {"type": "permission_error", "message": "No."}, "PermissionDeniedError"),
    ("anthropic", 429, {"type": "quota_exceeded", "message": "No."}, "RateLimitError"),
    ("anthropic", 500, {"type": "api_error", "message": "No."}, "InternalServerError"),
]


async def failing(sdk: str, is_async: bool, url: str) -> Any:
    """The exception of a call."""
    method = {"openai": "chat.completions.create", "anthropic": "messages.create"}[sdk]
    async with client_of(sdk, is_async, base_url=url) as client:
        try:
            calling = attrgetter(method)(client)(**CLAUDE)
            _ = await calling if is_async else calling
        except (openai.APIStatusError, anthropic.APIStatusError) as error:
            return error
    raise AssertionError("no error")


@KINDS
@pytest.mark.parametrize(("sdk", "status", "body", "kind"), ERRORS, ids=lambda value: str(value)[:20])
async def test_an_error_is_the_same_as_without_the_gateway(
    sdk: str, status: int, body: dict[str, Any], kind: str, is_async: bool, ways: Ways
) -> None:
    """The same class, with the same body and the same header fields."""
    body = body if sdk == "openai" else {"type": "error", "error": body}
    seen = []
    for urls in (ways.straight, ways.gated):
        await ways.cue(kind="status", status=status, body=body, headers={"retry-after": "0", "x-odd": "1"})
        error = await failing(sdk, is_async, urls[sdk])
        headers = end_to_end(error.response.headers)
        seen.append((type(error).__name__, error.status_code, error.body, error.response.content, headers))
    assert seen[0] == seen[1]
    assert seen[0][:2] == (kind, status)


# -- how they find the way -----------------------------------------------------------------------------------


@KINDS
async def test_one_variable_is_enough(is_async: bool, ways: Ways, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the first screen of the README has it: no word of it in the code."""
    monkeypatch.setenv("OPENAI_BASE_URL", ways.gated["openai"])
    monkeypatch.setenv("ANTHROPIC_BASE_URL", ways.gated["anthropic"])
    for sdk, method, arguments in (CALLS["chat"], CALLS["messages"], CALLS["responses, streamed"]):
        async with client_of(sdk, is_async) as client:
            status, _, body = await raw(client, is_async, method, arguments)
            assert (status, b"mock" in body) == (200, True)


# -- credentials ---------------------------------------------------------------------------------------------

KEYS = """\
store = "memory:"

[providers.own]
base_url = "{url}"
api_key = "env:PROVIDERS_KEY"

[providers.passing]
base_url = "{url}"
"""


async def asked(provider: Upstream, sdk: str, url: str, body: bytes) -> list[tuple[bytes, bytes]]:
    """The credentials with which a call of *sdk* reached the provider."""
    provider.will_answer(answer(200, body, (b"content-type", b"application/json")))
    async with client_of(sdk, True, base_url=url) as client:
        method = {"openai": "chat.completions.create", "anthropic": "messages.create"}[sdk]
        await attrgetter(method)(client)(**CLAUDE)
    seen = await provider.next()
    assert b"sk-caller" not in seen.body
    return [(name.lower(), value) for name, value in seen.headers if b"sk-" in value]


async def test_the_providers_key_replaces_the_callers(tmp_path: Path) -> None:
    """Where the SDK put its own; without a key of the provider's the caller's passes."""
    bodies = {
        "openai": b'{"id": "1", "choices": []}',
        "anthropic": b'{"id": "1", "type": "message", "content": [], "role": "assistant"}',
    }
    async with upstream() as provider:
        config = KEYS.format(url=provider.url)
        async with serve(tmp_path, config, {"PROVIDERS_KEY": "sk-providers"}) as server:
            for sdk, body in bodies.items():
                straight = await asked(provider, sdk, provider.url, body)
                assert [value.removeprefix(b"Bearer ") for _, value in straight] == [b"sk-caller"]
                passing = await asked(provider, sdk, f"{server.url}/gateway/passing", body)
                assert passing == straight
                own = await asked(provider, sdk, f"{server.url}/gateway/own", body)
                assert own == [(n, v.replace(b"sk-caller", b"sk-providers")) for n, v in straight]


async def test_a_key_that_is_sent_twice_is_replaced_twice(tmp_path: Path) -> None:
    """No field of the caller's with a credential in it is left over."""
    async with upstream() as provider:
        config = KEYS.format(url=provider.url)
        async with (
            serve(tmp_path, config, {"PROVIDERS_KEY": "sk-providers"}) as server,
            httpx2.AsyncClient() as client,
        ):
            provider.will_answer(OK)
            fields = ("authorization", "x-api-key", "api-key", "x-goog-api-key")
            headers = dict.fromkeys(fields, "Bearer sk-caller")
            await client.post(f"{server.url}/gateway/own/v1/chat/completions", headers=headers, json={})
            seen = await provider.next()
            assert b"sk-caller" not in seen.head
            assert seen.header(b"authorization") == b"Bearer sk-providers"
