"""A subscriber gets every event from its cursor on exactly once, in order, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest

from gateways import until
from interlock.core.runs import EVENT_TYPES
from interlock.core.sessions import Event, Session
from interlock.errors import (
    InterlockError,
    InvalidOperation,
    SessionNotFound,
    StoreError,
    Unavailable,
    ValidationError,
)
from interlock.session import feed
from interlock.session.feed import PAGE, subscribers
from interlock.session.subscription import subscribe
from interlock.stores import MemoryStore, open_store
from interlock.testing import VirtualClock
from interlock.testing.virtual_time import idle
from session.logs import SESSION, Watched, complete, everything, numbers, opened, said, taken

HERE = (SESSION, "s")


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Whatever a test does, no feed outlives its subscribers."""
    yield
    assert feed._feeds == {}


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    """A session without events in each of the real stores."""
    url = "memory:" if request.param == "memory" else f"sqlite:///{tmp_path}/log.db"
    async with await open_store(url) as store:
        yield await opened(store)


@pytest.fixture
async def watched() -> Watched:
    return await opened(Watched())


# -- each event once and in order


async def test_the_backlog_and_what_comes_later_are_one_sequence(store: Any) -> None:
    """Nobody can tell from what it gets which of them were there before."""
    await store.append(SESSION, said(*range(3)))
    async with subscribe(store, SESSION) as events:
        assert await taken(events, 3) == [1, 2, 3]
        await store.append(SESSION, said(*range(2)))
        assert await taken(events, 2) == [4, 5]
        await complete(store)
        assert await taken(events) == [6]


async def test_a_backfill_of_10000_while_1000_more_are_appended(store: Any) -> None:
    """Each once, in order, though the log grows under the reader's hands."""
    for _ in range(20):
        await store.append(SESSION, said(*range(500)))
    assert await store.get_latest_sequence(SESSION) == 10_000

    async def grow() -> None:
        for n in range(500):
            await store.append(SESSION, said(n, n))
            await asyncio.sleep(0)
        await complete(store)

    growing = asyncio.create_task(grow())
    got = await everything(store)
    await growing
    assert got == list(range(1, 11_002))


async def test_an_event_is_given_as_the_store_has_it(store: Any) -> None:
    [said_] = said("hello", run_id="r1")
    await store.append(SESSION, [said_])
    async with subscribe(store, SESSION) as events:
        event = await anext(events)
    assert event == Event(said_.id, SESSION, "r1", 1, "message_sent", 1.0, {"text": "hello"})


@pytest.mark.parametrize("from_sequence", [0, 1])
async def test_from_0_and_from_1_are_all(from_sequence: int) -> None:
    store = await opened(MemoryStore(), *said(*range(3)))
    await complete(store)
    assert await everything(store, from_sequence=from_sequence) == [1, 2, 3, 4]


async def test_from_a_number_in_the_middle_and_from_one_in_the_future() -> None:
    """Numbers from it on: a future one is waited for."""
    store = await opened(MemoryStore(), *said(*range(3)))
    middle, future = (subscribe(store, SESSION, from_sequence=number) for number in (3, 5))
    async with middle, future:
        await store.append(SESSION, said(*range(3)))
        await complete(store)
        assert await taken(middle) == [3, 4, 5, 6, 7]
        assert await taken(future) == [5, 6, 7]


@pytest.mark.parametrize("seed", range(12))
async def test_any_history_gives_every_reader_its_events_exactly_once(seed: int) -> None:
    """S12 against a list: random writers, filters, paces, reconnects, lost hints, failures of the store."""
    random = Random(seed)
    clock = VirtualClock()
    store = await opened(Watched(hints=seed % 3 > 0, turns=seed % 2))
    types = ("message_sent", "message_streamed", "turn_completed")

    async def write() -> None:
        for _ in range(30):
            for _ in range(random.choice((0, 1, 1, 2))):
                size = random.choice((1, 1, 2, 20, 20, PAGE + 3))
                await store.append(SESSION, said(*range(size), type_=random.choice(types)))
                await store.append(SESSION, said("", run_id=random.choice((None, "r1", "r2"))))
            if not random.randrange(6):
                store.fail_once.append(StoreError("the disk is full"))
            await clock.sleep(random.choice((0.01, 0.01, 0.5)))
        await complete(store)

    async def read(from_sequence: int, **asked: Any) -> list[int]:
        got: list[int] = []
        while True:
            with suppress(StoreError):  # where it failed on entering
                async with subscribe(store, SESSION, from_sequence=from_sequence, **asked) as events:
                    for _ in range(random.choice((1, 5, 50))):
                        if random.randrange(2):
                            got += numbers(await events.batch(until=clock.now() + 0.3))
                        else:
                            got += await taken(events, random.choice((1, 10, 100)))
                        from_sequence = events.next_from
                        if events.ended:
                            return got
                        if not random.randrange(4):
                            await clock.sleep(0.2)
            await clock.sleep(0.05)

    asked = [
        (
            random.choice((0, 0, random.randrange(2_000))),
            random.choice((None, None, "r1")),
            random.choice((None, None, frozenset(random.sample(types, 2)))),
        )
        for _ in range(8)
    ]
    readers = [
        asyncio.create_task(read(from_sequence, run_id=run_id, types=wanted, clock=clock))
        for from_sequence, run_id, wanted in asked
    ]
    writing = asyncio.create_task(write())
    for _ in range(500):
        await clock.advance(1.0)
        if writing.done() and all(reader.done() for reader in readers):
            break
    await writing
    store.fail_once.clear()
    log = await MemoryStore.get_events(store, SESSION)
    assert numbers(log) == list(range(1, len(log) + 1))
    for reader, (from_sequence, run_id, wanted) in zip(readers, asked, strict=True):
        assert await reader == [
            event.sequence
            for event in log
            if event.sequence >= from_sequence
            and (run_id is None or event.run_id == run_id)
            and (wanted is None or event.type in wanted)
        ]
    assert store.watchers == 0


async def test_1000_subscribers_of_one_session_get_all_each() -> None:
    """Also those that come late, and each page is read once for all who stand at the same place."""
    store = await opened(Watched())
    readers = [asyncio.create_task(everything(store, from_sequence=1 + n % 3)) for n in range(999)]
    await idle()
    assert subscribers(store, SESSION) == 999
    for n in range(5):
        await store.append(SESSION, said(*range(n + 1)))
        await asyncio.sleep(0)
    readers.append(asyncio.create_task(everything(store)))
    await idle()
    await complete(store)
    for n, got in enumerate(await asyncio.gather(*readers)):
        assert got == list(range(1 + (n % 3 if n < 999 else 0), 17))
    assert len(store.reads) < 60
    assert subscribers(store, SESSION) == store.watchers == 0


# -- the original's faults


async def test_c1_1_a_late_subscriber_gets_no_event_twice() -> None:
    """C1.1: the shared cursor stood still while nobody subscribed, and gave again what backfill had given."""
    store = await opened(MemoryStore(), *said(*range(5)))
    async with subscribe(store, SESSION) as first:
        assert await taken(first, 5) == [1, 2, 3, 4, 5]
        await store.append(SESSION, said(*range(3)))
        async with subscribe(store, SESSION) as second:  # while the first one lags
            assert await taken(second, 8) == [1, 2, 3, 4, 5, 6, 7, 8]
            assert await taken(first, 3) == [6, 7, 8]
            await complete(store)
            assert (await taken(first), await taken(second)) == ([9], [9])


async def test_c1_2_a_long_backlog_has_no_gap(store: Any) -> None:
    """C1.2: of 1,303 events the 1,000th was followed by the 1,304th."""
    await store.append(SESSION, said(*range(1_303)))
    async with subscribe(store, SESSION) as events:
        await store.append(SESSION, said("live"))
        await complete(store)
        assert await taken(events) == list(range(1, 1_306))


async def test_c1_3_the_last_of_many_need_no_later_event(store: Any) -> None:
    """C1.3: of 1,803 events the last 801 stayed behind until something else was logged."""
    async with subscribe(store, SESSION) as events:
        reading = asyncio.create_task(taken(events, 1_803))
        await asyncio.sleep(0)
        await store.append(SESSION, said(*range(1_803)))
        assert await reading == list(range(1, 1_804))


async def test_c1_17_several_types_and_a_run_at_once(store: Any) -> None:
    """C1.17: one type and one run were all that a filter could say."""
    for kind in ("message_sent", "turn_completed", "message_streamed"):
        await store.append(SESSION, said(1, type_=kind, run_id="r1") + said(1, type_=kind, run_id="r2"))
    await complete(store)
    two = {"message_sent", "turn_completed"}
    assert await everything(store, types=two) == [1, 2, 3, 4]
    assert await everything(store, types=two, run_id="r2") == [2, 4]
    assert await everything(store, run_id="r1") == [1, 3, 5]
    assert await everything(store, types=["session_completed"]) == [7]


async def test_c1_17_a_slow_reader_keeps_one_page_and_misses_nothing(watched: Watched) -> None:
    """C1.17: its mailbox grew without a bound. Here it reads from the store, when it comes to it."""
    async with subscribe(watched, SESSION) as slow:
        for n in range(40):
            await watched.append(SESSION, said(*range(100)))
            assert await taken(slow, 1) == [n + 1]
            assert len(slow._events) <= PAGE
        assert len(watched.reads) < 10
        await complete(watched)
        assert await taken(slow) == list(range(41, 4_002))


# -- hints and polls


async def test_without_any_hint_a_poll_finds_everything() -> None:
    """Within a second of virtual time; and a hint makes it at once."""
    clock = VirtualClock()
    store = await opened(Watched(hints=False))
    got: list[int] = []

    async def read() -> None:
        async with subscribe(store, SESSION, clock=clock) as events:
            async for event in events:
                got.append(event.sequence)

    reading = asyncio.create_task(read())
    await clock.advance(0.5)
    for n in range(5):
        await store.append(SESSION, said(*range(300)))
        await idle()
        assert len(got) == 300 * n
        await clock.advance(1.0)
        assert got == list(range(1, 300 * n + 301))
    await complete(store)
    await clock.advance(1.0)
    await reading
    assert got[-1] == 1_501


async def test_a_hint_is_enough(watched: Watched) -> None:
    """No time has to pass."""
    async with subscribe(watched, SESSION, clock=VirtualClock()) as events:
        reading = asyncio.create_task(taken(events, 2))
        await idle()
        for _ in range(2):
            await watched.append(SESSION, said("x"))
            await idle()
        assert reading.done()
        assert await reading == [1, 2]


async def test_a_filter_passes_what_does_not_match_once(watched: Watched) -> None:
    """The cursor moves over it: nothing is looked at again."""
    clock = VirtualClock()
    async with subscribe(watched, SESSION, types={"turn_completed"}, clock=clock) as events:
        reading = asyncio.create_task(taken(events, 1))
        for _ in range(3):
            await watched.append(SESSION, said(*range(700)))
            await idle()
        assert [asked["after"] for asked in watched.reads] == [0, 700, 1_400]
        assert events.next_from == 2_101
        await clock.advance(3.0)
        assert len(watched.reads) == 3  # a poll asks where the log ends, and reads no event
        await watched.append(SESSION, said("", type_="turn_completed"))
        assert await reading == [2_101]


# -- its end


@pytest.mark.parametrize("verb", ["complete", "fail", "cancel"])
@pytest.mark.parametrize("types", [None, {"turn_completed"}])
async def test_it_ends_with_its_session(store: Any, verb: str, types: Any) -> None:
    """Also where a filter hides the event that says so, and without a poll."""
    reading = asyncio.create_task(everything(store, types=types, clock=VirtualClock()))
    await store.append(SESSION, said(1, 2))
    await complete(store, verb)
    assert await asyncio.wait_for(reading, 5) == ([] if types else [1, 2, 3])


@pytest.mark.parametrize("asked", [{}, {"types": ["turn_completed"]}, {"from_sequence": 50}])
async def test_a_session_that_has_ended_is_read_to_its_end(store: Any, asked: Any) -> None:
    await store.append(SESSION, said(*range(PAGE - 1)))
    await complete(store)
    expected = [] if "types" in asked else list(range(asked.get("from_sequence", 1), PAGE + 1))
    assert await everything(store, **asked, clock=VirtualClock()) == expected
    assert await everything(store, from_sequence=PAGE + 1) == []
    assert await everything(store, from_sequence=10**15) == []


async def test_a_future_number_does_not_hide_the_end(watched: Watched) -> None:
    """Who waits for number 50 of a session that ends with 3 hears that it ended."""
    clock = VirtualClock()
    reading = asyncio.create_task(everything(watched, from_sequence=50, clock=clock))
    await idle()
    await watched.append(SESSION, said(1, 2))
    await complete(watched)
    await idle()
    assert await reading == []


async def test_what_was_logged_with_the_end_is_given(watched: Watched) -> None:
    """The event of the end need not be the last one."""
    reading = asyncio.create_task(everything(watched, clock=VirtualClock()))
    await idle()
    ends = said("", type_="session_cancelled") + said("", type_="run_cancelled")
    await watched.change_session(SESSION, "cancel", 1.0, ends)
    await idle()
    assert await reading == [1, 2]


async def test_close_ends_the_one_who_waits(watched: Watched) -> None:
    """At once; and closing again, or before it was entered, does nothing."""
    events = subscribe(watched, SESSION)
    events.close()
    async with events:
        reading = asyncio.create_task(taken(events))
        await watched.append(SESSION, said(1))
        await idle()
        events.close()
        events.close()
        assert events.closed
        await idle()
        assert reading.done()
        assert await reading == [1]
        assert await taken(events) == []
        assert events.next_from == 2
    assert watched.watchers == 0


async def test_close_drops_what_was_not_given_and_says_where_to_go_on(watched: Watched) -> None:
    await watched.append(SESSION, said(*range(5)))
    async with subscribe(watched, SESSION) as events:
        assert await taken(events, 2) == [1, 2]
        assert events.next_from == 3
        events.close()
        assert (events.next_from, await taken(events)) == (3, [])
    await complete(watched)
    async with subscribe(watched, SESSION) as events:
        assert await taken(events, 2) == [1, 2]
        events.close()
        assert (events.next_from, events.ended) == (3, False)
    assert await everything(watched, from_sequence=events.next_from) == [3, 4, 5, 6]


async def test_close_while_it_reads(watched: Watched) -> None:
    """What is read then is not given."""
    watched.turns = 3
    await watched.append(SESSION, said(1))
    async with subscribe(watched, SESSION) as events:
        reading = asyncio.create_task(taken(events))
        await asyncio.sleep(0)
        events.close()
        assert await reading == []


# -- a store that fails


async def test_a_store_that_fails_for_a_while_is_asked_again() -> None:
    """After 0.1, 0.2, 0.4 … 5 seconds; then it goes on, and what was logged meanwhile is there."""
    clock = VirtualClock()
    store = await opened(Watched(turns=0))
    store.now = clock.now
    async with subscribe(store, SESSION, clock=clock) as events:
        reading = asyncio.create_task(taken(events, 3))
        await idle()
        await store.append(SESSION, said(1))
        store.failing = StoreError("the disk is full")
        await clock.advance(20.0)
        waits = [round(b - a, 3) for a, b in zip(store.failed_at, store.failed_at[1:], strict=False)]
        assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
        store.failing = None
        await store.append(SESSION, said(2))
        await clock.advance(5.0)
        await store.append(SESSION, said(3))
        assert await reading == [1, 2, 3]


async def test_a_store_that_fails_does_not_hold_up_a_close(watched: Watched) -> None:
    async with subscribe(watched, SESSION, clock=VirtualClock()) as events:
        watched.failing = StoreError("locked")
        reading = asyncio.create_task(taken(events))
        await idle()
        events.close()
        assert await reading == []


async def test_a_store_that_was_closed_ends_it_with_an_error() -> None:
    """As does a session that was removed; the error comes once."""
    store = await opened(MemoryStore(), *said(1))
    async with subscribe(store, SESSION) as events:
        assert await taken(events, 1) == [1]
        reading = asyncio.create_task(taken(events))
        await idle()
        await store.aclose()
        with pytest.raises(Unavailable):
            await reading
        assert events.closed
        assert await taken(events) == []


async def test_a_session_that_is_removed_ends_it_with_an_error(store: Any) -> None:
    async with subscribe(store, SESSION) as events:
        reading = asyncio.create_task(taken(events))
        await asyncio.sleep(0)
        await store.delete_session(SESSION)
        with pytest.raises(SessionNotFound):
            await reading


@pytest.mark.parametrize("error", [StoreError("full"), Unavailable("closed")])
async def test_whoever_enters_hears_that_the_store_fails(watched: Watched, error: InterlockError) -> None:
    watched.failing = error
    with pytest.raises(type(error)):
        async with subscribe(watched, SESSION):
            pass
    assert watched.watchers == 0


async def test_who_follows_the_reader_reads_itself_when_that_one_is_cancelled(watched: Watched) -> None:
    """A page is read by one for all; that one may go at any time."""
    watched.turns = 3
    await watched.append(SESSION, said(1))
    await complete(watched)
    readers = [asyncio.create_task(everything(watched)) for _ in range(3)]
    await until(lambda: watched.reads)
    readers[0].cancel()
    assert await asyncio.gather(*readers[1:]) == [[1, 2]] * 2
    assert watched.watchers == 0


# -- misuse


@pytest.mark.parametrize("wrong", [-1, True, False, 1.0, "1", None, 2**53 + 1])
async def test_from_sequence_is_a_whole_number(wrong: Any) -> None:
    with pytest.raises(ValidationError, match=f"from_sequence is {wrong!r}.*from 0 to"):
        subscribe(MemoryStore(), SESSION, from_sequence=wrong)


@pytest.mark.parametrize(
    "wrong",
    [["message_sent", "nonsense"], ["MESSAGE_SENT"], [3], "message_sent", [], 7, {"message_sent", ""}],
)
async def test_types_are_those_that_there_are(wrong: Any) -> None:
    """The message names what is allowed."""
    with pytest.raises(ValidationError, match=r"^types .*(message_streamed|give a collection)"):
        subscribe(MemoryStore(), SESSION, types=wrong)
    assert subscribe(MemoryStore(), SESSION, types=EVENT_TYPES)


@pytest.mark.parametrize("wrong", ["", 5, "a/b", "x" * 500])
async def test_a_run_is_named_by_its_id(wrong: Any) -> None:
    with pytest.raises(ValidationError, match="run_id is"):
        subscribe(MemoryStore(), SESSION, run_id=wrong)


async def test_an_unknown_session_is_refused_on_entering(store: Any) -> None:
    with pytest.raises(SessionNotFound):
        async with subscribe(store, "nobody"):
            pass


async def test_two_tasks_cannot_share_one(watched: Watched) -> None:
    """Each would get some of the events: it is an error of the second one, and the first goes on."""
    async with subscribe(watched, SESSION) as events:
        reading = asyncio.create_task(taken(events, 1))
        await idle()
        with pytest.raises(InvalidOperation, match="another task"):
            await anext(events)
        await watched.append(SESSION, said(1))
        assert await reading == [1]


async def test_it_is_entered_before_it_is_read_and_once(watched: Watched) -> None:
    events = subscribe(watched, SESSION)
    with pytest.raises(InvalidOperation, match="async with"):
        await anext(events)
    async with events:
        with pytest.raises(InvalidOperation, match="once"):
            await events.__aenter__()


# -- cancellation, time, and where it is


async def test_a_wait_that_is_cancelled_loses_nothing(watched: Watched) -> None:
    """The same subscription goes on after a timeout around it, wherever that struck."""
    got: list[int] = []
    watched.turns = 2
    async with subscribe(watched, SESSION) as events:
        for turn in range(30):
            await watched.append(SESSION, said(turn))
            reading = asyncio.create_task(taken(events, 1))
            for _ in range(turn % 7):
                await asyncio.sleep(0)
            reading.cancel()
            with suppress(asyncio.CancelledError):
                got += await reading
        got += await taken(events, 30 - len(got))
    assert got == list(range(1, 31))


async def test_a_batch_comes_back_at_its_time() -> None:
    """With nothing, at exactly that time; with what there is, at once; at the end, nothing."""
    clock = VirtualClock()
    store = await opened(Watched())
    async with subscribe(store, SESSION, clock=clock) as events:
        reading = asyncio.create_task(events.batch(until=15.0))
        await clock.advance(14.999)
        assert not reading.done()
        await clock.advance(0.001)
        assert (reading.done(), await reading) == (True, ())
        await store.append(SESSION, said(1, 2))
        assert numbers(await events.batch(until=30.0)) == [1, 2]
        await complete(store)
        assert numbers(await events.batch(until=30.0)) == [3]
        assert list(await events.batch(until=30.0)) == []
        assert events.ended
        assert not events.closed


async def test_waits_that_were_given_up_leave_nothing(watched: Watched) -> None:
    """Between two events there may be many, cancelled or at their time."""
    clock = VirtualClock()
    async with subscribe(watched, SESSION, clock=clock) as events:
        for _ in range(5):
            reading = asyncio.create_task(taken(events))
            await idle()
            reading.cancel()
            await asyncio.wait([reading])
            reading_on = asyncio.create_task(events.batch(until=clock.now() + 0.01))
            await clock.advance(0.01)
            assert await reading_on == ()
        [shared] = feed._feeds.values()
        assert shared.waiting == {}


async def test_a_batch_comes_back_at_its_time_from_a_failing_store() -> None:
    clock = VirtualClock()
    store = await opened(Watched())
    async with subscribe(store, SESSION, clock=clock) as events:
        store.failing = StoreError("full")
        reading = asyncio.create_task(events.batch(until=15.0))
        await clock.advance(15.0)
        assert (reading.done(), await reading) == (True, ())


async def test_a_batch_tells_that_a_backlog_without_matches_was_passed(watched: Watched) -> None:
    """So that whoever shows the difference need not wait for an event."""
    await watched.append(SESSION, said(*range(3)))
    async with subscribe(watched, SESSION, types={"turn_completed"}) as events:
        assert (events.backlog_end, events.next_from) == (3, 1)
        assert list(await events.batch()) == []
        assert events.next_from == 4


async def test_it_says_where_it_is(watched: Watched) -> None:
    """`next_from` is the number to subscribe from again, at any moment."""
    await watched.append(SESSION, said(*range(4)))
    async with subscribe(watched, SESSION, from_sequence=2) as events:
        assert (events.backlog_end, events.next_from) == (4, 2)
        for number in (2, 3, 4):
            assert (await anext(events)).sequence == number
            assert events.next_from == number + 1


async def test_no_timer_and_no_watch_is_left(watched: Watched) -> None:
    """After the last of several subscribers; sessions are apart."""
    clock = VirtualClock()
    await watched.create_session(Session("other", "active"))
    async with subscribe(watched, SESSION, clock=clock), subscribe(watched, SESSION, clock=clock):
        async with subscribe(watched, "other", clock=clock):
            assert subscribers(watched, SESSION) == 2
            assert subscribers(watched, "other") == 1
        assert watched.watchers == 1
    assert watched.watchers == 0
    assert [timer for *_, timer in clock._timers if timer.callback is not None] == []
