"""The gate inside of httpx2 and httpx clients, before a provider whose every byte the test decides."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import httpx
import httpx2
import pytest

import interlock
from gateways import EVENTS, LAST, OK, Exchange, Upstream, answer, chunk, until, upstream
from interlock import AcquireTimeout, LimitExceeded, ProviderGate, Unavailable, ValidationError, sync
from interlock.admission.local import LocalAdmission
from interlock.testing import VirtualClock
from interlock.transports import httpx as for_httpx
from schedules import Loop, World, explore

P = "p"
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
TOOL_RESULT = [*CHAT["messages"], {"role": "assistant"}, {"role": "tool", "content": "3"}]
SOON = (b"retry-after-ms", b"20")


def refusal(status: int, code: str | None, *headers: tuple[bytes, bytes], encode: Any = bytes) -> bytes:
    """What a provider answers that has too much to do."""
    body = encode(json.dumps({"error": {"message": "No.", "code": code}}).encode())
    return answer(status, body, (b"content-type", b"application/json"), *headers)


class Scene:
    """A gate, a provider, and a client of one library whose transport is gated."""

    def __init__(self, library: Any, gate: ProviderGate, provider: Upstream, client: Any) -> None:
        self.library = library
        self.gate = gate
        self.provider = provider
        self.client = client

    @property
    def used(self) -> int:
        return self.gate.reading(P).used

    def post(self, **more: Any) -> asyncio.Task[Any]:
        """Begin a call."""
        asked = {"json": CHAT} | more
        return asyncio.ensure_future(self.client.post(f"{self.provider.url}/v1/chat/completions", **asked))

    def stream(self, **more: Any) -> Any:
        return self.client.stream("POST", f"{self.provider.url}/v1/messages", **({"json": CHAT} | more))


Open = Callable[..., Any]


@pytest.fixture(params=[httpx2, httpx], ids=["httpx2", "httpx"])
def scene(request: pytest.FixtureRequest) -> Open:
    """``async with scene(limit, **of the transport)``; every slot is free at its end."""
    library = request.param

    @asynccontextmanager
    async def open_(
        limit: int | None = 1, *, clock: VirtualClock | None = None, **terms: Any
    ) -> AsyncIterator[Scene]:
        async with upstream() as provider, ProviderGate(default_cooldown=0, clock=clock) as gate:
            await gate.set_limit(P, limit)
            transport = interlock.InterlockTransport(gate, P, **terms)
            async with library.AsyncClient(transport=transport, timeout=5) as client:
                opened = Scene(library, gate, provider, client)
                yield opened
                assert opened.used == 0
                gate.admission.kernel.check()

    return open_


def test_each_library_has_its_class() -> None:
    assert issubclass(interlock.InterlockTransport, httpx2.AsyncBaseTransport)
    assert issubclass(interlock.InterlockSyncTransport, httpx2.BaseTransport)
    assert issubclass(for_httpx.InterlockTransport, httpx.AsyncBaseTransport)
    assert issubclass(for_httpx.InterlockSyncTransport, httpx.BaseTransport)


# -- the permit ----------------------------------------------------------------------------------------------


async def test_a_call_holds_its_permit_while_it_is_under_way(scene: Open) -> None:
    """The second waits for the first; what they get is their library's response."""
    async with scene() as here:
        first, second = here.post(), here.post()
        one = await here.provider.next()
        await until(lambda: here.gate.reading(P).waiting == 1)
        assert (here.used, here.provider.idle()) == (1, True)
        one.write(OK)
        response = await first
        assert (type(response), response.json()) == (here.library.Response, {})
        (await here.provider.next()).write(OK)
        assert (await second).status_code == 200


async def test_a_stream_holds_it_until_its_last_byte(scene: Open) -> None:
    async with scene() as here:
        here.provider.will_answer(EVENTS + chunk(b"one"))
        async with here.stream() as response:
            exchange = await here.provider.next()
            pieces = response.aiter_bytes()
            assert (await anext(pieces), here.used) == (b"one", 1)
            exchange.write(chunk(b"two"))
            assert (await anext(pieces), here.used) == (b"two", 1)
            exchange.write(LAST)
            assert [piece async for piece in pieces] == []
            assert here.used == 0


async def test_a_stream_that_is_closed_early_frees_it(scene: Open) -> None:
    """The provider is left, and the slot cools as after a cancellation."""
    clock = VirtualClock(100)
    async with scene(clock=clock) as here:
        await here.gate.set_cooldown(P, 0, cancelled=60, failed=0)
        here.provider.will_answer(EVENTS + chunk(b"one"))
        async with here.stream() as response:
            exchange = await here.provider.next()
            async for _ in response.aiter_bytes():
                break
        await exchange.left.wait()
        assert here.gate.reading(P).cooling == 1
        await clock.advance(60)


async def test_after_the_models_last_word_closing_is_an_end(scene: Open) -> None:
    """Some SDKs close a stream behind its last event: that is no cancellation."""
    async with scene() as here:
        await here.gate.set_cooldown(P, 0, cancelled=60, failed=60)
        here.provider.will_answer(EVENTS + chunk(b'data: {"finish_reason": "stop"}\n\n'))
        async with here.stream() as response:
            async for _ in response.aiter_bytes():
                break


async def test_reading_takes_no_permit(scene: Open) -> None:
    async with scene() as here, here.gate.acquire(P):
        for method in ("GET", "HEAD", "OPTIONS"):
            here.provider.will_answer(answer(200, b""))
            response = await here.client.request(method, here.provider.url)
            assert response.status_code == 200
        here.provider.will_answer(answer(429, b"{}"))
        assert (await here.client.get(here.provider.url)).status_code == 429
        assert not here.gate.reading(P).paused_until


async def test_cancelled_wherever_it_stands(scene: Open) -> None:
    """In line, before the answer and within it: the slot comes back, and the provider is left."""
    async with scene() as here:
        async with here.gate.acquire(P):
            waiting = here.post()
            await until(lambda: here.gate.reading(P).waiting == 1)
            await cancel(waiting)
            assert here.gate.reading(P).waiting == 0
        for said in (b"", EVENTS, EVENTS + chunk(b"one")):
            asking = here.post()
            exchange = await here.provider.next()
            exchange.write(said)
            assert here.used == 1
            await cancel(asking)
            assert here.used == 0
            await exchange.left.wait()


async def cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_provider_that_breaks_frees_it(scene: Open) -> None:
    """Out of reach, gone before the answer, gone within it: the client raises what it raises."""
    async with scene() as here:
        await here.gate.set_cooldown(P, 0)
        with pytest.raises(here.library.ConnectError):
            await here.client.post("http://127.0.0.1:9", json={})
        assert here.used == 0
        for said in (b"", EVENTS + chunk(b"one")):
            asking = here.post()
            exchange = await here.provider.next()
            exchange.write(said)
            await asyncio.sleep(0)
            exchange.writer.close()
            with pytest.raises(here.library.HTTPError):
                await asking
            assert here.used == 0


async def test_a_transport_that_is_no_network(scene: Open) -> None:
    """Its answers are whole from the start: nobody reads their streams."""
    async with ProviderGate(default_cooldown=0) as gate:
        await gate.set_limit(P, 1)
        for library in (httpx2, httpx):
            said = library.Response(200, json={"a": 1})
            inner = library.MockTransport(lambda request, said=said: said)
            transport = interlock.InterlockTransport(gate, P, transport=inner)
            async with library.AsyncClient(transport=transport) as client:
                assert (await client.post("http://x/v1/messages", json={})).json() == {"a": 1}
            assert gate.reading(P).used == 0


async def test_no_room_in_time_raises(scene: Open) -> None:
    for timeout, error in ((0, LimitExceeded), (0.01, AcquireTimeout)):
        async with scene(timeout=timeout) as here, here.gate.acquire(P):
            with pytest.raises(error):
                await here.post()
    async with scene() as here:
        await here.gate.aclose()
        with pytest.raises(Unavailable):
            await here.post()


async def test_the_wrong_gate_is_refused() -> None:
    with pytest.raises(ValidationError, match="ProviderGate"):
        interlock.InterlockTransport("gate", P)  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match=r"interlock\.sync"):
        interlock.InterlockSyncTransport(ProviderGate(), P)  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="timeout"):
        interlock.InterlockTransport(ProviderGate(), P, timeout=-1)


# -- whose it is ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "sent", "owner"),
    [
        (None, {"json": CHAT | {"metadata": {"session_id": "s-1"}}}, "s-1"),
        (None, {"json": CHAT, "headers": {"X-Session-Id": "s-2"}}, "s-2"),
        (None, {"content": b"no JSON"}, None),
        ("mine", {"json": CHAT}, "mine"),
        (lambda request: request.headers["x-mine"], {"headers": {"x-mine": "s-3"}}, "s-3"),
        (lambda request: None, {"json": CHAT | {"metadata": {"session_id": "s-4"}}}, "s-4"),
    ],
)
async def test_the_conversation(scene: Open, said: Any, sent: Any, owner: str | None) -> None:
    """As it is told, else as the gateway reads it from the request."""
    async with scene(conversation=said) as here:
        asking = here.post(**sent)
        exchange = await here.provider.next()
        (holder,) = here.gate.admission.holders(f"provider:{P}")
        assert holder.owner == owner
        exchange.write(OK)
        await asking


async def test_a_long_request_is_read_beside_the_loop(scene: Open) -> None:
    long = {"metadata": {"session_id": "s-1"}, "messages": [{"role": "user", "content": "x" * 300_000}]}
    async with scene() as here:
        asking = here.post(json=long)
        exchange = await here.provider.next()
        assert here.gate.admission.holders(f"provider:{P}")[0].owner == "s-1"
        exchange.write(OK)
        await asking


@pytest.mark.parametrize("began", [5.0, lambda request: 5.0])
async def test_the_oldest_prompt_goes_first(scene: Open, began: Any) -> None:
    async with scene(prompt_started_at=began) as here, here.gate.acquire(P):
        asking = here.post()
        await until(lambda: here.gate.reading(P).waiting == 1)
        assert here.gate.admission.waiting()[0].since == 5.0
        await cancel(asking)


async def test_a_turn_keeps_its_age(scene: Open) -> None:
    """What follows a tool call waits in the place of its prompt, as at the gateway."""
    async with scene() as here:
        tools = b'{"choices": [{"finish_reason": "tool_calls"}]}'
        here.provider.will_answer(answer(200, tools), OK)
        await here.post()
        async with here.gate.acquire(P) as permit:
            asking = here.post(json={"messages": TOOL_RESULT})
            await until(lambda: here.gate.reading(P).waiting == 1)
            assert here.gate.admission.waiting()[0].since < permit.granted_at
        assert (await asking).status_code == 200


# -- "too much" ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code", "limit", "reason"),
    [
        (429, "concurrency_limit_exceeded", 1, "concurrency"),
        (429, "rate_limit_exceeded", 2, "rate"),
        (529, "overloaded_error", 2, "overload"),
    ],
)
async def test_too_much_is_asked_again_off_the_slot(
    scene: Open, status: int, code: str, limit: int, reason: str
) -> None:
    """The caller sees only the answer; meanwhile the slot is somebody else's."""
    async with scene(2, prompt_started_at=lambda request: float(request.headers["x-began"])) as here:
        here.provider.will_answer(refusal(status, code, (b"retry-after", b"100")))
        asking = here.post(headers={"x-began": "2", "x-who": "young"})
        first = await here.provider.next()
        await until(lambda: (state := here.gate.status(P)) and state.paused)
        state = here.gate.status(P)
        assert (state.reason, state.limit, state.in_flight) == (reason, limit, 0)
        await here.gate.set_limit(P, 1)
        other = here.post(headers={"x-began": "1", "x-who": "old"})
        await until(lambda: here.gate.reading(P).waiting == 2)
        here.gate.resume(P)
        second = await here.provider.next()
        assert second.header(b"x-who") == b"old"
        assert not asking.done()
        second.write(OK)
        third = await here.provider.next()
        assert (third.header(b"x-who"), third.body) == (b"young", first.body)
        third.write(OK)
        assert (await asking).status_code == (await other).status_code == 200


async def test_it_asks_as_often_as_it_takes(scene: Open) -> None:
    async with scene() as here:
        here.provider.will_answer(*[refusal(429, None, SOON)] * 3, OK)
        assert (await here.post()).status_code == 200
        assert here.provider.seen == 4


BIG = b"x" * 100_000


@pytest.mark.parametrize(
    ("said", "terms", "sent"),
    [
        (refusal(429, "insufficient_quota", SOON), {}, {}),
        (refusal(503, None, SOON), {}, {}),
        (refusal(429, None, (b"retry-after", b"100")), {"timeout": 50}, {}),
        (refusal(429, None, SOON), {"retry": False}, {}),
        (refusal(429, None, SOON), {}, {"json": None, "headers": {"content-length": "2"}}),
        (answer(429, BIG, SOON), {}, {}),
    ],
    ids=["quota", "503", "too late", "retry=False", "not replayable", "too long"],
)
async def test_what_cannot_help_passes_unchanged(
    scene: Open, said: bytes, terms: Any, sent: dict[str, Any]
) -> None:
    """At once, whole and as it came; and the gate has heard of it."""

    async def pieces() -> AsyncIterator[bytes]:
        yield b"{}"

    async with scene(**terms) as here:
        here.provider.will_answer(said)
        response = await here.post(**({**sent, "content": pieces()} if sent else sent))
        head, _, body = said.partition(b"\r\n\r\n")
        assert response.status_code == int(head.split(b" ")[1])
        assert response.content == body
        fields = [line.split(b": ", 1) for line in head.split(b"\r\n")[1:]]
        assert [(name.lower(), value) for name, value in response.headers.raw] == [
            (name.lower(), value) for name, value in fields
        ]
        assert here.provider.seen == 1
        assert here.gate.reading(P).paused_until is not None


async def test_a_refusal_that_nobody_could_ask_again_for_passes(scene: Open) -> None:
    """It was worth waiting, and then the gate stayed shut: the caller gets the provider's own answer."""
    async with scene(timeout=0.3) as here:
        asking = here.post()
        exchange = await here.provider.next()
        said = refusal(429, "rate_limit_exceeded", SOON)
        exchange.write(said)
        await until(lambda: here.gate.reading(P).paused_until is not None)
        here.gate.pause(P, 100)
        response = await asking
        assert (response.status_code, response.content) == (429, said.partition(b"\r\n\r\n")[2])


async def test_a_compressed_refusal_is_understood(scene: Open) -> None:
    async with scene(2, retry=False) as here:
        said = refusal(
            429,
            "rate_limit_exceeded",
            (b"content-encoding", b"gzip"),
            encode=lambda body: gzip.compress(body),
        )
        here.provider.will_answer(said)
        assert (await here.post()).json()["error"]["code"] == "rate_limit_exceeded"
        assert here.gate.status(P).reason == "rate"


async def test_other_errors_are_answers(scene: Open) -> None:
    """They pass, and a server's error cools as a failure."""
    async with scene() as here:
        await here.gate.set_cooldown(P, 0, failed=0.001)
        for status in (400, 404, 500):
            here.provider.will_answer(answer(status, b"{}"))
            assert (await here.post()).status_code == status
        assert here.gate.reading(P).paused_until is None
        await until(lambda: here.used == 0)


# -- in threads ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("library", [httpx2, httpx], ids=["httpx2", "httpx"])
async def test_in_threads(library: Any) -> None:
    """Held over the body, asked again off the slot, closed early: as in a loop, but blocking."""

    def used() -> int:
        return gate.run(lambda inner: inner.reading(P).used)

    def whole() -> Any:
        return client.post(f"{provider.url}/v1/messages", json=CHAT)

    def streamed() -> list[int]:
        seen = []
        with client.stream("POST", f"{provider.url}/v1/messages", json=CHAT) as response:
            for _ in response.iter_bytes():
                seen.append(used())
                break
        return [*seen, used()]

    async with upstream() as provider:
        gate = await asyncio.to_thread(sync.start, lambda: ProviderGate(default_cooldown=0))
        await asyncio.to_thread(gate.set_limit, P, 1)
        with library.Client(transport=interlock.InterlockSyncTransport(gate, P), timeout=5) as client:
            provider.will_answer(refusal(429, None, SOON), OK)
            response = await asyncio.to_thread(whole)
            assert (type(response), response.status_code, provider.seen) == (library.Response, 200, 2)
            assert await asyncio.to_thread(used) == 0
            provider.will_answer(EVENTS + chunk(b"one"))
            assert await asyncio.to_thread(streamed) == [1, 0]
            provider.will_answer(answer(200, b""))
            assert (await asyncio.to_thread(client.get, provider.url)).status_code == 200
            asking = [asyncio.ensure_future(asyncio.to_thread(whole)) for _ in range(2)]
            await until(lambda: provider.seen == 5)
            one: Exchange
            for _ in range(4):
                one = await provider.next()
            one = await provider.next()
            assert provider.idle()
            one.writer.close()
            (await provider.next()).write(OK)
            ended = await asyncio.gather(*asking, return_exceptions=True)
            assert sorted(type(one).__name__ for one in ended) == ["RemoteProtocolError", "Response"]
            assert await asyncio.to_thread(used) == 0
        await asyncio.to_thread(gate.close)


# -- every schedule ------------------------------------------------------------------------------------------


def no_timer(when: float, callback: Callable[[], None]) -> Any:
    """Nothing here takes time, and the watchdog never looks."""
    return SimpleNamespace(cancel=lambda: None)


class Calls(World):
    """Two calls over one slot, cancelled at every await that they have."""

    def __init__(self, loop: Loop) -> None:
        super().__init__(loop, cancels=2)

        class Clock:
            now = staticmethod(loop.time)
            call_at = staticmethod(no_timer)

        self.gate = ProviderGate(admission=LocalAdmission(clock=Clock()), default_cooldown=0)
        self.gate.preset(P, 1, cooldown=0)
        self.transport = interlock.InterlockTransport(self.gate, P, transport=self.Inner(self), timeout=None)
        self.open = 0
        self.todo += [lambda name=name: self.call(name) for name in ("x", "y")]

    class Inner(httpx2.AsyncBaseTransport):
        def __init__(self, world: Calls) -> None:
            self.world = world

        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            await self.world.section(request.headers["x-name"])
            self.world.open += 1
            return httpx2.Response(200, stream=Calls.Body(self.world))

    class Body(httpx2.AsyncByteStream):
        def __init__(self, world: Calls) -> None:
            self.world = world
            self.closed = False

        async def __aiter__(self) -> AsyncIterator[bytes]:
            for piece in (b"one", b"two"):
                await asyncio.sleep(0)
                yield piece

        async def aclose(self) -> None:
            try:
                await asyncio.sleep(0)
            finally:
                self.world.open -= not self.closed
                self.closed = True

    async def call(self, name: str) -> None:
        request = httpx2.Request("POST", "http://p/v1/messages", headers={"x-name": name}, content=b"{}")
        response = await self.transport.handle_async_request(request)
        try:
            async for _ in response.stream:  # type: ignore[union-attr]
                pass
        finally:
            await response.aclose()

    def check(self) -> None:
        self.gate.admission.kernel.check()
        assert self.gate.reading(P).used <= 1
        assert self.open <= 2

    def final(self) -> None:
        super().final()
        assert (self.open, self.gate.reading(P).used) == (0, 0)


def test_cancelled_at_every_await_it_leaks_nothing() -> None:
    report = explore(Calls)
    assert report.failure is None, report
    assert report.complete
