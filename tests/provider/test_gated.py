"""A stream behind the gate: its permit, what it says about 429, and every way in which it can end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any

import pytest

from interlock import AcquireTimeout
from interlock.admission.local import LocalAdmission
from interlock.provider.gate import ProviderGate
from interlock.provider.gated import gated
from interlock.testing.virtual_time import idle
from provider.conftest import Open
from provider.gates import P, Scene
from schedules import Loop, World, explore


class Source:
    """A provider's stream that notes what is done with it; an item that is an exception is raised."""

    def __init__(self, *items: Any) -> None:
        self.items = list(items)
        self.seen: list[str] = []

    async def stream(self) -> AsyncIterator[Any]:
        self.seen.append("opened")
        try:
            for item in self.items:
                await asyncio.sleep(0)
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            self.seen.append("closed")

    def __call__(self) -> AsyncIterator[Any]:
        return self.stream()


class Refusal(Exception):
    """A client's exception with whatever attributes a test gives it."""

    def __init__(self, message: str = "Too Many Requests", **attributes: Any) -> None:
        super().__init__(message)
        for name, value in attributes.items():
            setattr(self, name, value)


def in_flight(here: Scene) -> int:
    return here.in_flight()


# -- the permit ----------------------------------------------------------------------------------------------


async def test_the_permit_is_taken_before_the_source_is_called(scene: Open) -> None:
    """Queued, then acquired, then called; the oldest prompt first."""
    here = await scene(1, default_cooldown=0)
    permit = await here.hold()
    source, told = Source(1), []
    items = gated(
        source,
        here.gate,
        P,
        "conv",
        prompt_started_at=7.0,
        on_queued=lambda: told.append("queued"),
        on_acquired=lambda: told.append("acquired"),
    )
    first = asyncio.ensure_future(anext(items))
    await idle()
    assert (told, source.seen) == (["queued"], [])
    (waiting,) = here.gate.admission.waiting()
    assert (waiting.owner, waiting.since) == ("conv", 7.0)
    permit.release()
    assert await first == 1
    assert (told, source.seen) == (["queued", "acquired"], ["opened"])
    (holder,) = here.gate.admission.holders(f"provider:{P}")
    assert holder.owner == "conv"
    await items.aclose()  # type: ignore[attr-defined]


async def test_at_the_end_the_slot_is_free(scene: Open) -> None:
    here = await scene(1, default_cooldown=0)
    source = Source("a", "b")
    seen = [(item, in_flight(here)) async for item in gated(source, here.gate, P, "c")]
    assert seen == [("a", 1), ("b", 1)]
    assert (in_flight(here), source.seen) == (0, ["opened", "closed"])


@pytest.mark.parametrize("items", [(ValueError("no"),), ("a", ValueError("no"))])
async def test_an_exception_reaches_the_consumer_and_frees_the_slot(scene: Open, items: Any) -> None:
    here = await scene(1, default_cooldown=0)
    source = Source(*items)
    with pytest.raises(ValueError, match="no") as caught:
        async for _ in gated(source, here.gate, P, "c"):
            pass
    assert caught.value is items[-1]
    assert (in_flight(here), source.seen) == (0, ["opened", "closed"])


async def test_a_source_that_cannot_be_called_frees_the_slot(scene: Open) -> None:
    here = await scene(1, default_cooldown=0)

    def broken() -> Any:
        raise OSError("no route")

    for source in (broken, lambda: asyncio.sleep(0, result=3)):
        with pytest.raises((OSError, TypeError)):
            await anext(gated(source, here.gate, P, "c"))
        assert in_flight(here) == 0


async def test_a_consumer_that_has_enough_closes_the_source_before_the_slot_is_free(scene: Open) -> None:
    here = await scene(1, default_cooldown=0)
    held: list[int] = []

    class Noting(Source):
        async def stream(self) -> AsyncIterator[Any]:
            try:
                yield 1
                yield 2
            finally:
                await asyncio.sleep(0)
                held.append(in_flight(here))

    async with aclosing(gated(Noting(), here.gate, P, "c")) as items:  # type: ignore[type-var]
        async for _ in items:
            break
        assert in_flight(here) == 1
    assert (held, in_flight(here)) == ([1], 0)


async def test_what_the_consumer_throws_in_is_no_word_of_the_providers(scene: Open) -> None:
    """An exception thrown into the iterator frees the slot; a 429 among them is reported to nobody."""
    here = await scene(2, default_cooldown=0)
    items: Any = gated(Source(1, 2), here.gate, P, "c")
    await anext(items)
    with pytest.raises(Refusal):
        await items.athrow(Refusal(status_code=429))
    assert (in_flight(here), here.told) == (0, [])


async def test_the_outcome_decides_how_long_the_slot_cools(scene: Open) -> None:
    """After success, after a stop or a cancellation, and after a failure; a yielded 429 is one."""
    here = await scene(9)
    await here.gate.set_cooldown(P, 1.0, cancelled=2.0, failed=3.0)

    async def drain(source: Source, stop: bool = False) -> None:
        async with aclosing(gated(source, here.gate, P, "c")) as items:  # type: ignore[type-var]
            async for _ in items:
                if stop:
                    return

    refusal = {"type": "error", "code": "429", "retry_after": 0}
    for seconds, work in (
        (1, lambda: drain(Source(1))),
        (2, lambda: drain(Source(1, 2), stop=True)),
        (3, lambda: drain(Source(OSError()))),
        (3, lambda: drain(Source(refusal))),
    ):
        task = asyncio.ensure_future(work())
        await here.clock.advance(0)
        assert task.done()
        task.exception()
        await here.clock.advance(seconds - 0.001)
        assert in_flight(here) == 1
        await here.clock.advance(0.001)
        assert in_flight(here) == 0


async def test_every_item_is_a_sign_of_life(scene: Open) -> None:
    """A long stream outlives the watchdog while it moves, and not when it stalls."""
    here = await scene(1, default_cooldown=0, slot_timeout=10.0, watchdog_interval=1.0)
    goes_on = asyncio.Event()

    async def slow() -> AsyncIterator[int]:
        while True:
            await goes_on.wait()
            goes_on.clear()
            yield 1

    items: Any = gated(slow, here.gate, P, "c")
    for _ in range(4):
        goes_on.set()
        assert await anext(items) == 1
        await here.clock.advance(9)
    assert (in_flight(here), here.told) == (1, [])
    await here.clock.advance(9)
    assert here.told[0][:3] == ("on_reclaim", P, "c")
    await items.aclose()


async def test_a_wait_has_its_own_timeout(scene: Open) -> None:
    here = await scene(1)
    await here.hold()
    source = Source(1)
    waiting = asyncio.ensure_future(anext(gated(source, here.gate, P, "c", timeout=5.0)))  # type: ignore[arg-type]
    await here.clock.advance(5)
    assert isinstance(waiting.exception(), AcquireTimeout)
    assert source.seen == []


async def test_callbacks_that_raise_harm_nothing(scene: Open, caplog: pytest.LogCaptureFixture) -> None:
    here = await scene(1, default_cooldown=0)

    def broken(*_: Any) -> bool:
        raise ZeroDivisionError

    items = gated(Source(1), here.gate, P, "c", on_acquired=broken, is_rate_limit=broken)
    assert [item async for item in items] == [1]
    assert len([record for record in caplog.records if record.exc_info]) == 2
    caplog.clear()


# -- 429 -----------------------------------------------------------------------------------------------------


def response(status: int, **headers: str) -> Any:
    return SimpleNamespace(status_code=status, headers=headers)


class Hostile(Exception):
    """Every attribute of it raises."""

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__"):
            return super().__getattribute__(name)
        raise RuntimeError(name)

    def __str__(self) -> str:
        raise RuntimeError("str")


AFTER = {"retry-after": "7"}
CONCURRENT = {"error": {"code": "concurrency_limit_exceeded"}}


@pytest.mark.parametrize(
    ("error", "seconds", "limit", "reason"),
    [
        (Refusal(status_code=429), 30.0, 3, "concurrency"),
        (Refusal(status=429), 30.0, 3, "concurrency"),
        (Refusal(response=response(429, **AFTER)), 7.0, 3, "concurrency"),
        (Refusal(status=429, headers=AFTER), 7.0, 3, "concurrency"),
        (Refusal(status_code=429, response=response(429, **AFTER), retry_after=9), 7.0, 3, "concurrency"),
        (Refusal(status_code=429, retry_after=9), 9.0, 3, "concurrency"),
        (Refusal(status_code=429, retry_after=10**9), 900.0, 3, "concurrency"),
        (Refusal(status_code=429, retry_after=float("nan")), 30.0, 3, "concurrency"),
        (Refusal(status_code=429, retry_after="soon"), 30.0, 3, "concurrency"),
        (Refusal("rate limit reached", status_code=429), 30.0, 4, "rate"),
        (Refusal(status_code=429, body={"code": "insufficient_quota"}), 30.0, 4, "quota"),
        (Refusal("rate limit", status_code=429, body=CONCURRENT), 30.0, 3, "concurrency"),
        (Refusal(status_code=529), 5.0, 4, "overload"),
    ],
    ids=str,
)
async def test_a_raised_429_is_reported(
    scene: Open, error: Refusal, seconds: float, limit: int, reason: str
) -> None:
    """With its Retry-After, from wherever the client has it, and cut only for concurrency."""
    here = await scene(4, default_cooldown=0)
    with pytest.raises(Refusal) as caught:
        await anext(gated(Source(error), here.gate, P, "c"))
    assert caught.value is error
    assert here.told[0] == ("on_pause", P, seconds)
    assert (here.status().limit, here.status().reason) == (limit, reason)
    assert in_flight(here) == 0


@pytest.mark.parametrize("error", [Refusal(status_code=500), Refusal(), Refusal(code="429"), Hostile()])
async def test_other_exceptions_are_not(scene: Open, error: Exception) -> None:
    here = await scene(4, default_cooldown=0)
    with pytest.raises(type(error)):
        await anext(gated(Source(error), here.gate, P, "c"))
    assert (here.told, in_flight(here)) == ([], 0)


@pytest.mark.parametrize(
    ("item", "seconds"),
    [
        ({"type": "error", "code": "429"}, 30.0),
        ({"type": "error", "code": 429, "retry_after": 3}, 3.0),
        (SimpleNamespace(refused=True), 30.0),
        (SimpleNamespace(refused=True, retry_after=2.5), 2.5),
    ],
)
async def test_a_yielded_429_is_reported_and_passed_on(scene: Open, item: Any, seconds: float) -> None:
    here = await scene(4, default_cooldown=0)
    items = gated(
        Source("a", item), here.gate, P, "c", is_rate_limit=lambda item: getattr(item, "refused", False)
    )
    assert [item async for item in items] == ["a", item]
    assert here.told[0] == ("on_pause", P, seconds)
    assert (here.status().limit, in_flight(here)) == (3, 0)


@pytest.mark.parametrize("item", [{"type": "error", "code": "500"}, {"type": "text", "code": "429"}, "429"])
async def test_other_items_are_not(scene: Open, item: Any) -> None:
    here = await scene(4, default_cooldown=0)
    assert [one async for one in gated(Source(item), here.gate, P, "c")] == [item]
    assert here.told == []


async def test_one_call_reports_once(scene: Open) -> None:
    """Said in an item and raised afterwards, it is one refusal."""
    here = await scene(4, default_cooldown=0)
    said = {"type": "error", "code": "429"}
    with pytest.raises(Refusal):
        async for _ in gated(Source(said, said, Refusal(status_code=429)), here.gate, P, "c"):
            pass
    assert [name for name, *_ in here.told] == ["on_pause", "on_limit_reduced"]


async def test_one_burst_is_one_cut(scene: Open) -> None:
    """Each report carries its own permit: those granted before the first cut do not cut again."""
    here = await scene(4, default_cooldown=0)
    calls = [gated(Source(Refusal(status_code=429)), here.gate, P, f"c{n}") for n in range(4)]
    ended = await asyncio.gather(*(anext(call) for call in calls), return_exceptions=True)  # type: ignore[arg-type]
    assert {type(error) for error in ended} == {Refusal}
    assert here.status().limit == 3


# -- what the SDKs give --------------------------------------------------------------------------------------


class Stream:
    """As the SDKs' streams are: ``close()`` and not ``aclose()``, and an iterator that is another object."""

    def __init__(self, source: Source) -> None:
        self._items = source.stream()

    async def __aiter__(self) -> AsyncIterator[Any]:
        async for item in self._items:
            yield item

    async def close(self) -> None:
        await self._items.aclose()  # type: ignore[attr-defined]


async def test_a_stream_that_has_to_be_awaited_and_closed(scene: Open) -> None:
    here = await scene(1, default_cooldown=0)
    source = Source(1, 2)

    async def create() -> Stream:
        await asyncio.sleep(0)
        return Stream(source)

    items: Any = gated(create, here.gate, P, "c")
    assert await anext(items) == 1
    await items.aclose()
    assert (source.seen, in_flight(here)) == (["opened", "closed"], 0)


async def test_a_stream_that_cannot_be_closed_frees_the_slot(
    scene: Open, caplog: pytest.LogCaptureFixture
) -> None:
    here = await scene(1, default_cooldown=0)

    class Stuck(Stream):
        async def close(self) -> None:
            raise OSError("already gone")

    assert [item async for item in gated(lambda: Stuck(Source(1)), here.gate, P, "c")] == [1]
    assert in_flight(here) == 0
    assert "already gone" in caplog.text


# -- every schedule ------------------------------------------------------------------------------------------


def no_timer(when: float, callback: Callable[[], None]) -> Any:
    """Nothing here takes time, and the watchdog never looks."""
    return SimpleNamespace(cancel=lambda: None)


class Streams(World):
    """Two streams over one slot, cancelled at every await that they have."""

    def __init__(self, loop: Loop) -> None:
        super().__init__(loop, cancels=2)
        clock = SimpleNamespace(now=loop.time, call_at=no_timer)
        self.gate = ProviderGate(admission=LocalAdmission(clock=clock), default_cooldown=0)
        self.gate.preset(P, 1, cooldown=0)
        self.open = 0
        self.todo += [lambda name=name: self.consume(name) for name in ("x", "y")]

    async def stream(self, name: str) -> AsyncIterator[int]:
        self.open += 1
        try:
            await self.section(name)
            yield 1
            await asyncio.sleep(0)
        finally:
            try:
                await asyncio.sleep(0)
            finally:
                self.open -= 1

    async def consume(self, name: str) -> None:
        source: Callable[[], Any] = lambda: self.stream(name)  # noqa: E731
        async with aclosing(gated(source, self.gate, P, name, timeout=None)) as items:  # type: ignore[type-var]
            async for _ in items:
                await asyncio.sleep(0)

    def check(self) -> None:
        self.gate.admission.kernel.check()
        used = self.gate.reading(P).used
        assert self.open <= used <= 1, f"{self.open} streams are open under {used} permits"

    def final(self) -> None:
        super().final()
        assert (self.open, self.gate.reading(P).used) == (0, 0)


def test_cancelled_at_every_await_it_leaks_nothing() -> None:
    """No stream is ever open without a permit, and at the end neither is left."""
    report = explore(Streams)
    assert report.failure is None, report
    assert report.complete
