"""The gate inside of aiohttp clients, before a provider whose every byte the test decides."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from gateways import EVENTS, LAST, OK, Upstream, answer, chunk, until, upstream
from interlock import AcquireTimeout, ProviderGate, ValidationError
from interlock.testing import VirtualClock
from interlock.transports.aiohttp import interlock_middleware

P = "p"
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
SOON = (b"retry-after-ms", b"20")
NO = json.dumps({"error": {"message": "No.", "code": "rate_limit_exceeded"}}).encode()


class Scene:
    """A gate, a provider, and a session whose middleware is the gate's."""

    def __init__(self, gate: ProviderGate, provider: Upstream, session: aiohttp.ClientSession) -> None:
        self.gate = gate
        self.provider = provider
        self.session = session

    @property
    def used(self) -> int:
        return self.gate.reading(P).used

    def post(self, **more: Any) -> Any:
        return self.session.post(f"{self.provider.url}/v1/messages", **({"json": CHAT} | more))

    async def text(self, **more: Any) -> tuple[int, str]:
        async with self.post(**more) as response:
            return response.status, await response.text()


@asynccontextmanager
async def scene(*, clock: VirtualClock | None = None, **terms: Any) -> AsyncIterator[Scene]:
    """One slot; it is free at the end."""
    async with upstream() as provider, ProviderGate(default_cooldown=0, clock=clock) as gate:
        await gate.set_limit(P, 1)
        middleware = interlock_middleware(gate, P, **terms)
        async with aiohttp.ClientSession(middlewares=[middleware]) as session:
            here = Scene(gate, provider, session)
            yield here
            assert here.used == 0


async def test_a_call_holds_its_permit_until_its_last_byte() -> None:
    """The second waits for it; a stream keeps it between its pieces."""
    async with scene() as here:
        here.provider.will_answer(EVENTS + chunk(b"one"))
        async with here.post() as response:
            exchange = await here.provider.next()
            second = asyncio.ensure_future(here.text())
            await until(lambda: here.gate.reading(P).waiting == 1)
            assert (await response.content.readany(), here.used) == (b"one", 1)
            here.provider.will_answer(OK)
            exchange.write(chunk(b"two") + LAST)
            assert await response.content.read() == b"two"
            assert await second == (200, "{}")


END: dict[str, Callable[[Any], Any]] = {
    "release": lambda response: response.release(),
    "close": lambda response: response.close(),
}


@pytest.mark.parametrize("way", END)
async def test_released_or_closed_early_it_is_free(way: str) -> None:
    """Cooling as after a cancellation; the provider is left."""
    clock = VirtualClock(100)
    async with scene(clock=clock) as here:
        await here.gate.set_cooldown(P, 0, cancelled=60)
        here.provider.will_answer(EVENTS + chunk(b"one"))
        response = await here.post()
        exchange = await here.provider.next()
        assert await response.content.readany() == b"one"
        END[way](response)
        assert here.gate.reading(P).cooling == 1
        await exchange.left.wait()
        await clock.advance(60)


async def test_cancelled_or_torn_it_is_free() -> None:
    async with scene() as here:
        async with here.gate.acquire(P):
            waiting = asyncio.ensure_future(here.text())
            await until(lambda: here.gate.reading(P).waiting == 1)
            waiting.cancel()
            await asyncio.wait([waiting])
        for said in (b"", EVENTS + chunk(b"one")):
            asking = asyncio.ensure_future(here.text())
            exchange = await here.provider.next()
            exchange.write(said)
            asking.cancel()
            await asyncio.wait([asking])
            assert here.used == 0
            await exchange.left.wait()
        asking = asyncio.ensure_future(here.text())
        exchange = await here.provider.next()
        exchange.write(EVENTS + chunk(b"one"))
        exchange.writer.close()
        with pytest.raises(aiohttp.ClientPayloadError):
            await asking


async def test_reading_takes_no_permit() -> None:
    async with scene() as here, here.gate.acquire(P):
        here.provider.will_answer(OK)
        async with here.session.get(here.provider.url) as response:
            assert response.status == 200


async def test_too_much_is_asked_again_off_the_slot() -> None:
    async with scene() as here:
        here.provider.will_answer(answer(429, NO, (b"retry-after", b"100")))
        asking = asyncio.ensure_future(here.text())
        first = await here.provider.next()
        await until(lambda: (state := here.gate.status(P)) and state.paused)
        assert (here.used, here.gate.status(P).reason) == (0, "rate")  # type: ignore[union-attr]
        here.provider.will_answer(OK)
        here.gate.resume(P)
        assert await asking == (200, "{}")
        assert (await here.provider.next()).body == first.body


@pytest.mark.parametrize("way", ["read", "content"])
@pytest.mark.parametrize("terms", [{"retry": False}, {"timeout": 50.0}])
async def test_the_last_refusal_passes_unchanged(way: str, terms: Any) -> None:
    """Whichever way it is read."""
    async with scene(**terms) as here:
        here.provider.will_answer(answer(429, NO, (b"retry-after", b"100")))
        async with here.post() as response:
            body = await (response.read() if way == "read" else response.content.read())
            assert (response.status, response.headers["retry-after"], body) == (429, "100", NO)
        assert here.provider.seen == 1


async def test_a_long_refusal_passes_whole() -> None:
    async with scene() as here:
        here.provider.will_answer(answer(429, b"x" * 100_000, SOON))
        assert await here.text() == (429, "x" * 100_000)
        assert here.gate.status(P).reason == "concurrency"  # type: ignore[union-attr]


async def test_a_refusal_that_nobody_could_ask_again_for_passes() -> None:
    async with scene(timeout=0.3) as here:
        here.provider.will_answer(answer(429, NO, SOON))
        asking = asyncio.ensure_future(here.text())
        await until(lambda: here.gate.reading(P).paused_until is not None)
        here.gate.pause(P, 100)
        assert await asking == (429, NO.decode())


async def test_a_long_stream_shows_signs_of_life() -> None:
    """The watchdog leaves it alone while it goes on, though nobody sees its pieces."""
    clock = VirtualClock(100)
    async with scene(clock=clock) as here:
        here.provider.will_answer(EVENTS + chunk(b"one"))
        async with here.post() as response:
            exchange = await here.provider.next()
            for _ in range(4):
                await response.content.readany()
                await clock.advance(200)
                assert here.used == 1
                exchange.write(chunk(b"more"))
            await response.content.readany()
            await clock.advance(700)
            assert here.used == 0


async def test_whose_it_is_and_how_long_it_waits() -> None:
    async with scene(
        conversation=lambda request: request.headers["x-who"], prompt_started_at=lambda request: 5.0
    ) as here:
        asking = asyncio.ensure_future(here.text(headers={"x-who": "me"}))
        exchange = await here.provider.next()
        assert here.gate.admission.holders(f"provider:{P}")[0].owner == "me"
        exchange.write(OK)
        await asking
    async with scene(timeout=0.01) as here, here.gate.acquire(P):
        with pytest.raises(AcquireTimeout):
            await here.text()
    async with scene() as here:
        body = CHAT | {"metadata": {"session_id": "s-1"}}
        asking = asyncio.ensure_future(here.text(json=body))
        exchange = await here.provider.next()
        assert here.gate.admission.holders(f"provider:{P}")[0].owner == "s-1"
        exchange.write(OK)
        await asking
    with pytest.raises(ValidationError):
        interlock_middleware("gate", P)  # type: ignore[arg-type]
