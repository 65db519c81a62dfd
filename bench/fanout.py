"""One session's events to many subscribers, beside a queue for each of them, which remembers nothing."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

from bench.measure import Table, Timed, pin, spread, take_turns
from interlock.core.sessions import NewEvent, Session
from interlock.session.subscription import subscribe
from interlock.stores import open_store

MANY = 1_000
BURST = 100
"""Events that are logged at once."""
STORES = {"Interlock, memory": "memory:", "Interlock, SQLite (FULL)": "sqlite:///{}/log.db"}


def run(*, quick: bool = False) -> list[Table]:
    """What reaches the subscribers in a second, and how long one event takes to reach them all."""
    pin()
    rounds = 3 if quick else 7
    return [_rates(rounds, quick), _delays(rounds)]


def _rates(rounds: int, quick: bool) -> Table:
    candidates: dict[str, Callable[[], float]] = {}
    events_of = {}
    for count, events in ((1, 20_000), (MANY, 1_000 if quick else 2_000)):
        readers = "1 subscriber" if count == 1 else f"{count:,} subscribers"
        for name, way in (("queue", None), *STORES.items()):
            label = f"{name}, {readers}"
            candidates[label] = partial(_rate, way, count, events)
            events_of[label] = count
    taken = take_turns(candidates, rounds=rounds)
    rows = []
    for name, figures in taken.items():
        rate = statistics.median(figures)
        rows.append((name, f"{rate:,.0f}", f"{rate / events_of[name]:,.0f}", spread(figures)))
    note = (
        f"Events logged {BURST} at a time and read one by one, until the last subscriber has the last. "
        "A delivery is one event at one subscriber. The queues, one for each, are unbounded, give no backlog "
        "and are gone with their process."
    )
    return Table(
        "Fan-out of one session's events",
        ("", "deliveries/s", "events/s", "spread"),
        rows,
        note,
        taken,
    )


def _delays(rounds: int) -> Table:
    candidates = {
        f"{name}, {MANY:,} subscribers": partial(_delay, way)
        for name, way in (("queue", None), *STORES.items())
    }
    taken = take_turns(candidates, rounds=rounds)
    rows = [(name, f"{statistics.median(figures):.1f}", spread(figures)) for name, figures in taken.items()]
    note = (
        "From the call that logs one event until the last of all waiting subscribers has it, in milliseconds."
    )
    return Table("One event to all who wait", ("", "ms", "spread"), rows, note, taken)


# -- ways


def _new(number: int, many: int) -> list[NewEvent]:
    content = {"content": "a few words, as a model says them at once", "role": "assistant"}
    return [
        NewEvent(f"event-{n}", "message_streamed", 1.0, "run", content) for n in range(number, number + many)
    ]


class _Arrivals:
    """Tells when an event has come to all of them."""

    def __init__(self) -> None:
        self.missing = 0
        self.complete = asyncio.Event()

    def expect(self, count: int) -> None:
        self.missing = count
        self.complete.clear()

    def one(self, sequence: int) -> None:
        self.missing -= 1
        if not self.missing:
            self.complete.set()


class _Queues:
    """A list of queues."""

    def __init__(self, count: int) -> None:
        self.queues: list[asyncio.Queue[NewEvent]] = [asyncio.Queue() for _ in range(count)]

    async def log(self, events: list[NewEvent]) -> None:
        for queue in self.queues:
            for event in events:
                queue.put_nowait(event)

    async def read(self, number: int, last: int, each: Callable[[int], None]) -> None:
        queue = self.queues[number]
        for sequence in range(1, last + 1):
            await queue.get()
            each(sequence)


class _Session:
    """A session in a store."""

    def __init__(self, store: Any) -> None:
        self.store = store

    async def log(self, events: list[NewEvent]) -> None:
        await self.store.append("s", events)

    async def read(self, number: int, last: int, each: Callable[[int], None]) -> None:
        async with subscribe(self.store, "s") as events:
            async for event in events:
                each(event.sequence)
                if event.sequence == last:
                    return


def _with(url: str | None, count: int, timed: Callable[[Any], Awaitable[float]]) -> float:
    async def there() -> float:
        if url is None:
            return await timed(_Queues(count))
        with tempfile.TemporaryDirectory() as directory:
            store = await open_store(url.format(Path(directory)))
            try:
                await store.create_session(Session("s", "active"))
                return await timed(_Session(store))
            finally:
                await store.aclose()

    return asyncio.run(there())


def _rate(url: str | None, count: int, events: int) -> float:
    async def timed(way: Any) -> float:
        bursts = [_new(number, BURST) for number in range(0, events, BURST)]
        tasks = [asyncio.create_task(way.read(n, events, lambda _: None)) for n in range(count)]
        await asyncio.sleep(0.05)
        with Timed() as time_:
            for burst in bursts:
                await way.log(burst)
                await asyncio.sleep(0)
            await asyncio.gather(*tasks)
        return events * count / time_.ns * 1e9

    return _with(url, count, timed)


def _delay(url: str | None, events: int = 20) -> float:
    async def timed(way: Any) -> float:
        arrivals = _Arrivals()
        tasks = [asyncio.create_task(way.read(n, events, arrivals.one)) for n in range(MANY)]
        await asyncio.sleep(0.05)
        delays = []
        for number in range(events):
            arrivals.expect(MANY)
            began = time.perf_counter()
            await way.log(_new(number, 1))
            await arrivals.complete.wait()
            delays.append(time.perf_counter() - began)
        await asyncio.gather(*tasks)
        return statistics.median(delays) * 1e3

    return _with(url, MANY, timed)
