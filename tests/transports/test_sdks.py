"""The official SDKs with the gate inside of their HTTP clients, before a provider that counts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from gateways import until
from interlock import InterlockSyncTransport, InterlockTransport, ProviderGate, sync
from interlock.provider.gated import gated
from interlock.testing.provider import MockProvider, running

PROMPT = [{"role": "user", "content": "Say something."}]
OPENAI: dict[str, Any] = {"model": "mock", "messages": PROMPT}
CLAUDE: dict[str, Any] = {**OPENAI, "max_tokens": 99}
TOO_MUCH = {"status": 429, "headers": {"retry-after-ms": "20"}, "body": {"error": {"message": "slow"}}}
SDKS = pytest.mark.parametrize("sdk", ["openai", "anthropic"])


@pytest.fixture
def provider() -> MockProvider:
    """It refuses whoever comes as the third at once."""
    return MockProvider(limit=2, hard_cap=2, lag=0.0, latency=0.01)


def options(sdk: str, base: str) -> dict[str, Any]:
    url = f"{base}/v1" if sdk == "openai" else base
    return {"base_url": url, "api_key": "key", "max_retries": 0}


@asynccontextmanager
async def asking(sdk: str, gate: ProviderGate, base: str) -> AsyncIterator[Callable[..., Any]]:
    """``await ask(stream=…)`` of the SDK's client."""
    http = httpx2.AsyncClient(transport=InterlockTransport(gate, "p"))
    if sdk == "openai":
        async with openai.AsyncOpenAI(http_client=http, **options(sdk, base)) as client:
            yield lambda **more: client.chat.completions.create(**OPENAI, **more)
    else:
        async with anthropic.AsyncAnthropic(http_client=http, **options(sdk, base)) as claude:
            yield lambda **more: claude.messages.create(**CLAUDE, **more)


def text_of(answer: Any) -> str:
    return answer.choices[0].message.content if hasattr(answer, "choices") else answer.content[0].text


@SDKS
async def test_a_crowd_never_exceeds_the_limit(sdk: str, provider: MockProvider) -> None:
    """Streaming or not, twelve at once are two at a time, and nobody is refused."""
    async with (
        running(provider) as base,
        ProviderGate(default_cooldown=0) as gate,
        asking(sdk, gate, base) as ask,
    ):
        await gate.set_limit("p", 2)

        async def streamed() -> int:
            return len([event async for event in await ask(stream=True)])

        async def whole() -> int:
            return len(text_of(await ask()))

        ended = await asyncio.gather(*(streamed() if n % 2 else whole() for n in range(12)))
        assert all(ended)
        stats = provider.account.stats
        assert (stats.served, stats.refused, stats.peak_running) == (12, 0, 2)
        assert gate.reading("p").used == 0


@SDKS
async def test_a_stream_left_early_frees_its_slot(sdk: str, provider: MockProvider) -> None:
    async with (
        running(provider) as base,
        ProviderGate(default_cooldown=0) as gate,
        asking(sdk, gate, base) as ask,
    ):
        await gate.set_limit("p", 1)
        provider.cue("stall", after=3)
        async with await ask(stream=True) as stream:
            async for _ in stream:
                assert gate.reading("p").used == 1
                break
        assert gate.reading("p").used == 0


@SDKS
async def test_a_refusal_is_asked_again_inside(sdk: str, provider: MockProvider) -> None:
    """The SDK, which does not retry, sees one answer."""
    async with (
        running(provider) as base,
        ProviderGate(default_cooldown=0) as gate,
        asking(sdk, gate, base) as ask,
    ):
        await gate.set_limit("p", 2)
        provider.cue("status", times=2, **TOO_MUCH)
        assert text_of(await ask())
        assert provider.account.stats.requests == 3
        assert gate.status("p").limit == 1  # type: ignore[union-attr]


@SDKS
async def test_cancelling_the_sdks_call_frees_its_slot(sdk: str, provider: MockProvider) -> None:
    async with (
        running(provider) as base,
        ProviderGate(default_cooldown=0) as gate,
        asking(sdk, gate, base) as ask,
    ):
        await gate.set_limit("p", 1)
        provider.cue("hang")
        call = asyncio.ensure_future(ask())
        await until(lambda: provider.account.running == 1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert gate.reading("p").used == 0
        assert text_of(await ask())


@SDKS
async def test_in_threads(sdk: str, provider: MockProvider) -> None:
    """The synchronous clients, eight threads and two slots."""
    async with running(provider) as base:
        gate = await asyncio.to_thread(sync.start, lambda: ProviderGate(default_cooldown=0))
        await asyncio.to_thread(gate.set_limit, "p", 2)
        http = httpx2.Client(transport=InterlockSyncTransport(gate, "p"))
        client: Any = (openai.OpenAI if sdk == "openai" else anthropic.Anthropic)(
            http_client=http, **options(sdk, base)
        )

        def ask(stream: bool) -> int:
            if sdk == "openai":
                answer = client.chat.completions.create(**OPENAI, stream=stream)
            else:
                answer = client.messages.create(**CLAUDE, stream=stream)
            return len(list(answer)) if stream else len(text_of(answer))

        ended = await asyncio.gather(*(asyncio.to_thread(ask, n % 2 == 0) for n in range(8)))
        assert all(ended)
        stats = provider.account.stats
        assert (stats.served, stats.refused, stats.peak_running) == (8, 0, 2)
        provider.cue("status", **TOO_MUCH)
        assert await asyncio.to_thread(ask, False)
        assert stats.requests == 10
        assert await asyncio.to_thread(gate.run, lambda inner: inner.reading("p").used) == 0
        client.close()
        await asyncio.to_thread(gate.close)


@SDKS
async def test_an_sdks_stream_through_gated(sdk: str, provider: MockProvider) -> None:
    """Without a transport: the stream is awaited under the permit, and its 429 is understood."""
    async with running(provider) as base, ProviderGate(default_cooldown=0) as gate:
        await gate.set_limit("p", 2)
        kind = openai.AsyncOpenAI if sdk == "openai" else anthropic.AsyncAnthropic
        async with kind(**options(sdk, base)) as client:

            def source() -> Any:
                create: Any = client.chat.completions if sdk == "openai" else client.messages  # type: ignore[union-attr]
                return create.create(**CLAUDE, stream=True)

            assert [event async for event in gated(source, gate, "p", "conv")]
            assert gate.reading("p").used == 0
            provider.cue("status", status=429, headers={"retry-after": "7"}, body=TOO_MUCH["body"])
            errors = (openai.RateLimitError, anthropic.RateLimitError)
            before = gate.clock.now()
            with pytest.raises(errors):
                await anext(gated(source, gate, "p", "conv"))  # type: ignore[arg-type]
            status = gate.status("p")
            assert status is not None
            assert status.limit == 1
            assert 7 <= (status.paused_until or 0) - before < 9
