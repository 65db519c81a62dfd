"""Our errors in the providers' shapes; the providers' own SDKs are the judges."""

from __future__ import annotations

import gzip
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anthropic
import openai
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from interlock.http.gateway.dialects import (
    PING,
    Dialect,
    dialect_of,
    error_body,
    error_event,
    refusal_headers,
    upstream_error_event,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

DIALECTS: list[Dialect] = ["openai", "responses", "anthropic"]


@asynccontextmanager
async def answering(
    status: int,
    body: bytes,
    headers: Sequence[tuple[bytes, bytes]] = (),
    calls: list[str] | None = None,
) -> AsyncIterator[str]:
    """A provider that gives every call this one answer and notes it in *calls*."""
    kind = "application/json" if body.startswith(b"{") else "text/event-stream"
    fields = {name.decode(): value.decode() for name, value in headers} | {"content-type": kind}

    async def handler(request: web.Request) -> web.Response:
        if calls is not None:
            calls.append(request.path)
        return web.Response(status=status, body=body, headers=fields)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def call(dialect: Dialect, url: str, *, stream: bool = False) -> list[Any]:
    """Call the provider as its users do, and read the stream to its end."""
    if dialect == "anthropic":
        async with anthropic.AsyncAnthropic(api_key="k", base_url=url, max_retries=0) as claude:
            answer: Any = await claude.messages.create(
                model="m", max_tokens=9, messages=[{"role": "user", "content": "q"}], stream=stream
            )
            return [item async for item in answer] if stream else []
    async with openai.AsyncOpenAI(api_key="k", base_url=url, max_retries=0) as gpt:
        if dialect == "responses":
            answer = await gpt.responses.create(model="m", input="q", stream=stream)
        else:
            answer = await gpt.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "q"}], stream=stream
            )
        return [item async for item in answer] if stream else []


@pytest.mark.parametrize(
    ("path", "headers", "dialect"),
    [
        ("/v1/chat/completions", {}, "openai"),
        ("/v1/embeddings", {}, "openai"),
        ("/v1/responses", {}, "responses"),
        ("/v1/responses/", {}, "responses"),
        ("/v1/messages", {}, "anthropic"),
        ("/v1/messages?beta=true", {}, "anthropic"),
        ("/v1/messages/count_tokens", {}, "anthropic"),
        ("/v1/complete", {}, "anthropic"),
        ("/v1/models", {"anthropic-version": "2023-06-01"}, "anthropic"),
        ("", {}, "openai"),
    ],
)
def test_the_dialect_is_that_of_path_and_version(
    path: str, headers: dict[str, str], dialect: Dialect
) -> None:
    """Anthropic's paths, or its version header; all else speaks like OpenAI."""
    assert dialect_of(path, headers) == dialect


@pytest.mark.parametrize(
    ("status", "code", "theirs", "kind"),
    [
        (400, "validation_error", openai.BadRequestError, "invalid_request_error"),
        (429, "queue_full", openai.RateLimitError, "rate_limit_error"),
        (429, "quota", openai.RateLimitError, "insufficient_quota"),
        (503, "draining", openai.InternalServerError, "server_error"),
        (504, "timeout", openai.InternalServerError, "server_error"),
    ],
)
async def test_openais_sdk_raises_its_own_error(
    status: int, code: str, theirs: type[openai.APIStatusError], kind: str
) -> None:
    """With our code, our message and the type that it would have from OpenAI."""
    async with answering(status, error_body("openai", status, code, "come later")) as url:
        with pytest.raises(theirs, match="come later") as caught:
            await call("openai", url)
    assert (caught.value.code, caught.value.type, caught.value.param) == (code, kind, None)


@pytest.mark.parametrize(
    ("status", "code", "theirs", "kind"),
    [
        (400, "validation_error", anthropic.BadRequestError, "invalid_request_error"),
        (429, "queue_full", anthropic.RateLimitError, "rate_limit_error"),
        (502, "upstream_error", anthropic.InternalServerError, "api_error"),
        (503, "draining", anthropic.InternalServerError, "overloaded_error"),
        (504, "timeout", anthropic.InternalServerError, "timeout_error"),
        (529, "overloaded", anthropic.InternalServerError, "overloaded_error"),
    ],
)
async def test_anthropics_sdk_raises_its_own_error(
    status: int, code: str, theirs: type[anthropic.APIStatusError], kind: str
) -> None:
    """With our message, the type that it would have from Anthropic, and our code as a detail."""
    async with answering(status, error_body("anthropic", status, code, "come later")) as url:
        with pytest.raises(theirs, match="come later") as caught:
            await call("anthropic", url)
    assert caught.value.api_message == "come later"
    assert (caught.value.type, caught.value.error_code) == (kind, code)


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_an_error_event_ends_the_stream_with_the_sdks_own_error(dialect: Dialect) -> None:
    """After the status line an event must do; the comments before it are skipped."""
    body = PING + PING + error_event(dialect, 504, "timeout", "come later")
    async with answering(200, body) as url:
        if dialect == "anthropic":
            with pytest.raises(anthropic.APIStatusError, match="come later") as ant:
                await call(dialect, url, stream=True)
            assert (ant.value.type, ant.value.error_code) == ("timeout_error", "timeout")
        else:
            with pytest.raises(openai.APIError, match="come later") as oai:
                await call(dialect, url, stream=True)
            assert (oai.value.type, oai.value.code) == ("server_error", "timeout")


OPENAI_429 = {"message": "Rate limit", "type": "requests", "param": None, "code": "rate_limited"}
ANTHROPIC_529 = {"type": "overloaded_error", "message": "Overloaded"}


def event_data(event: bytes) -> dict[str, Any]:
    """The one event that *event* is, as an SSE parser reads it."""
    lines = event.decode().removesuffix("\n\n").split("\n")
    fields = dict(line.split(": ", 1) for line in lines)
    assert set(fields) <= {"event", "data"}
    data: dict[str, Any] = json.loads(fields["data"])
    return data


@pytest.mark.parametrize("encoding", ["", "gzip"])
def test_what_the_provider_said_is_kept_member_by_member(encoding: str) -> None:
    """SDKs and users branch on type and code: they must be those of the provider."""

    def sent(whole: dict[str, Any]) -> bytes:
        body = json.dumps(whole, indent=2).encode()
        return gzip.compress(body) if encoding else body

    openai_body = sent({"error": OPENAI_429})
    assert event_data(upstream_error_event("openai", 429, openai_body, encoding)) == {"error": OPENAI_429}
    responses = event_data(upstream_error_event("responses", 429, openai_body, encoding))
    assert responses["error"] == OPENAI_429
    assert (responses["type"], responses["code"]) == ("error", "rate_limited")
    whole = {"type": "error", "error": ANTHROPIC_529, "request_id": "req_1"}
    assert event_data(upstream_error_event("anthropic", 529, sent(whole), encoding)) == whole


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"error": "model not found"}', "model not found"),
        (b'{"detail": "Not Found"}', "Not Found"),
        (b'{"message": "no\\nway"}', "no way"),
        (b"<html>\r\n<b>Bad gateway</b>\x00", "<html> <b>Bad gateway</b>"),
        (b"", "without saying why"),
        (b"[" * 100_000, "[" * 500),
        (b"\xff", "\ufffd"),
    ],
)
def test_any_other_answer_becomes_a_message(dialect: Dialect, body: bytes, said: str) -> None:
    """No shape is too odd: its text, or the beginning of it, is shown in one line."""
    error = event_data(upstream_error_event(dialect, 502, body))["error"]
    assert error["message"] == f"The provider answered 502: {said}"


@given(st.sampled_from(DIALECTS), st.integers(100, 999), st.binary(), st.sampled_from(["", "gzip"]))
def test_any_bytes_become_one_event(dialect: Dialect, status: int, body: bytes, encoding: str) -> None:
    """No body breaks out of its event."""
    assert event_data(upstream_error_event(dialect, status, body, encoding))["error"]["message"]


@pytest.mark.parametrize(
    ("retry_after", "quota", "headers"),
    [
        (2.5, False, [(b"retry-after", b"3"), (b"retry-after-ms", b"2500")]),
        (0.0, False, [(b"retry-after", b"0"), (b"retry-after-ms", b"0")]),
        (-1.0, False, [(b"retry-after", b"0"), (b"retry-after-ms", b"0")]),
        (1e9, False, [(b"retry-after", b"900"), (b"retry-after-ms", b"900000")]),
        (float("inf"), False, [(b"retry-after", b"900"), (b"retry-after-ms", b"900000")]),
        (float("nan"), False, []),
        (None, False, []),
        (None, True, [(b"x-should-retry", b"false")]),
    ],
)
def test_a_refusal_says_when_to_come_back(
    retry_after: float | None, quota: bool, headers: list[tuple[bytes, bytes]]
) -> None:
    """Whole seconds never too early, milliseconds exactly; nobody retries for a quota."""
    assert refusal_headers(retry_after, quota=quota) == headers


@pytest.mark.parametrize(("quota", "attempts"), [(False, 2), (True, 1)])
async def test_the_sdk_does_not_retry_a_quota(quota: bool, attempts: int) -> None:
    """``x-should-retry: false`` is obeyed; without it the SDK comes again."""
    body = error_body("openai", 429, "quota", "pay first")
    calls: list[str] = []
    async with (
        answering(429, body, refusal_headers(0.001, quota=quota), calls) as url,
        openai.AsyncOpenAI(api_key="k", base_url=url, max_retries=1) as client,
    ):
        with pytest.raises(openai.RateLimitError, match="pay first"):
            await client.embeddings.create(model="m", input="q")
    assert len(calls) == attempts
