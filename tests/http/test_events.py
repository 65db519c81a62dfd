"""The log of a session over HTTP: pages, and streams of server-sent events that lose nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from gateways import Caller, call, caller, hosting, open_to_all, until
from interlock.core.sessions import Event
from interlock.errors import StoreError
from interlock.http.access.caller import ANYBODY, CALLER
from interlock.http.endpoints import routes_of
from interlock.http.events import EventRoutes, EventStreams, frame
from interlock.http.streaming import wants_stream
from interlock.session import feed
from interlock.stores import MemoryStore
from interlock.testing import VirtualClock
from interlock.testing.virtual_time import idle
from session.logs import SESSION, Watched, complete, opened, said

STREAM = (b"accept", b"text/event-stream")
PATH = f"/sessions/{SESSION}/events"


@dataclass
class Served:
    """A session without events, at a URL."""

    store: Watched
    clock: VirtualClock
    streams: EventStreams
    url: str = ""

    async def page(self, query: str = "") -> Any:
        got = await call(self.url, "GET", PATH + query)
        assert (got.status, got.header(b"content-type")) == (200, b"application/json")
        return got.json

    async def closed(self) -> None:
        """Return once no stream is open; nothing of it is left."""
        await until(lambda: not self.streams)
        await idle()
        assert (self.store.watchers, feed._feeds) == (0, {})
        assert [timer for *_, timer in self.clock._timers if timer.callback is not None] == []


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving() as served:
        yield served


@asynccontextmanager
async def serving(*, send_buffer: int | None = None, most: int = 256) -> AsyncIterator[Served]:
    store, clock = await opened(Watched(turns=0)), VirtualClock()
    streams = EventStreams(store, clock=clock, most=most)
    app = open_to_all(EventRoutes(streams))
    async with hosting(app, send_buffer=send_buffer) as url:
        yield Served(store, clock, streams, url)
    await idle()
    assert feed._feeds == {}


@dataclass
class Reader:
    """A client that parses its stream as a browser does."""

    caller: Caller
    text: str = ""
    last_id: str = ""
    fields: list[tuple[str, str]] = field(default_factory=list)

    async def next(self) -> tuple[str, Any]:
        """The next event's name and data, or ``(":", comment)``."""
        while "\n\n" not in self.text:
            piece = await self.caller.chunk()
            assert piece, "the stream has ended"
            self.text += piece.decode()
        block, _, self.text = self.text.partition("\n\n")
        if block.startswith(":"):
            return ":", block[1:].strip()
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        self.last_id = fields.pop("id", self.last_id)
        assert set(fields) == {"event", "data"}
        return fields["event"], json.loads(fields["data"])

    async def sequences(self, count: int) -> list[int]:
        """Of the next *count* events of the log."""
        return [(await self.next())[1]["sequence"] for _ in range(count)]

    async def to_end(self) -> list[int]:
        """All numbers until ``end``, behind which the stream closes."""
        found = []
        while (got := await self.next())[0] != "end":
            if "sequence" in got[1]:
                found.append(got[1]["sequence"])
        assert self.text == ""
        assert await self.caller.chunk() == b""
        return found


@asynccontextmanager
async def reading(
    served: Served, query: str = "", *headers: tuple[bytes, bytes], receive_buffer: int | None = None
) -> AsyncIterator[Reader]:
    async with caller(served.url, receive_buffer=receive_buffer) as one:
        one.writer.transport.resume_reading()  # type: ignore[attr-defined]
        one.ask("GET", PATH + query, [STREAM, *headers])
        status, fields = await one.head()
        assert (status, dict(fields)[b"content-type"]) == (200, b"text/event-stream")
        assert dict(fields)[b"cache-control"] == b"no-store"
        yield Reader(one)


# -- pages


async def test_a_page_has_events_and_where_to_go_on(served: Served) -> None:
    """In camelCase, times in milliseconds; null for an event that is of no run."""
    [one] = said("hello", run_id="r1")
    await served.store.append(SESSION, [one, *said("x")])
    page = await served.page()
    assert page["nextFrom"] == 3
    assert page["events"][0] == {
        "id": one.id,
        "sessionId": SESSION,
        "runId": "r1",
        "sequence": 1,
        "type": "message_sent",
        "timestamp": 1000,
        "data": {"text": "hello"},
        "metadata": {},
    }
    assert page["events"][1]["runId"] is None


async def test_pages_follow_each_other(served: Served) -> None:
    """From ``nextFrom`` to ``nextFrom``, every event comes once; 500 at a time unless it says otherwise."""
    await served.store.append(SESSION, said(*range(1_203)))
    for query, sizes in (("", [500, 500, 203, 0]), ("&limit=1000", [1000, 203, 0])):
        got, start, seen = [], 0, []
        while not seen or seen[-1]:
            page = await served.page(f"?from={start}{query}")
            start = page["nextFrom"]
            seen.append(len(page["events"]))
            got += [event["sequence"] for event in page["events"]]
        assert (got, seen) == (list(range(1, 1_204)), sizes)


async def test_a_page_of_some_types_and_a_run(served: Served) -> None:
    """``nextFrom`` is behind everything that was looked at, whether it matched or not."""
    for run in ("r1", "r2"):
        await served.store.append(
            SESSION, said("", type_="turn_completed", run_id=run) + said("", run_id=run)
        )
    for query, found, following in (
        ("?type=turn_completed", [1, 3], 5),
        ("?type=turn_completed&type=message_sent&run=r2", [3, 4], 5),
        ("?type=turn_completed&limit=1", [1], 2),
        ("?run=nobody", [], 5),
        ("?from=9", [], 9),
    ):
        page = await served.page(query)
        assert [event["sequence"] for event in page["events"]] == found
        assert page["nextFrom"] == following


@pytest.mark.parametrize("headers", [(), (STREAM,)])
@pytest.mark.parametrize(
    ("query", "said_"),
    [
        ("from=-1", "from is '-1'; allowed are whole numbers from 0"),
        ("from=1e3", "from is '1e3'"),
        ("from=", "from is ''"),
        ("from=%D9%A3", "allowed are whole numbers"),
        ("from=" + "9" * 5000, "allowed are whole numbers"),
        ("from=9999999999999999", "allowed are whole numbers from 0 to 9007199254740992"),
        ("limit=0", "limit is '0'; allowed are whole numbers from 1 to 1000"),
        ("limit=1001", "limit is '1001'"),
        ("type=nonsense", "types has 'nonsense'; allowed are error_occurred, "),
        ("type=", "types has ''"),
        ("run=", "run is ''"),
        ("run=" + "x" * 500, "run is 'xxx"),
        ("form=3", "unknown query parameter 'form'; known are: from, run, type, limit"),
    ],
)
async def test_a_bad_question_is_refused(served: Served, query: str, said_: str, headers: Any) -> None:
    """As a problem that says what is allowed, also where a stream was asked for."""
    got = await call(served.url, "GET", f"{PATH}?{query}", headers)
    assert (got.status, got.json["code"]) == (400, "validation_error")
    assert said_ in got.json["detail"]


@pytest.mark.parametrize("headers", [(), (STREAM,)])
async def test_an_unknown_session_is_a_problem(served: Served, headers: Any) -> None:
    got = await call(served.url, "GET", "/sessions/nobody/events", headers)
    assert (got.status, got.json["code"]) == (404, "session_not_found")
    served.store.failing = StoreError("the disk is full")
    got = await call(served.url, "GET", PATH, headers)
    assert (got.status, got.json["code"]) == (507, "storage_error")
    await served.closed()


@pytest.mark.parametrize(
    ("accept", "stream"),
    [
        (["text/event-stream"], True),
        (["TEXT/Event-Stream ; q=0.5, */*"], True),
        (["application/json", "text/event-stream"], True),
        (["*/*"], False),
        (["application/json"], False),
        (["text/event-stream;q=0, application/json"], False),
        (["text/*", "", ",,;;=;", "text/event-streams"], False),
        ([], False),
    ],
)
def test_a_stream_is_for_those_who_name_it(accept: list[str], stream: bool) -> None:
    assert wants_stream(accept) is stream


async def test_a_head_request_is_not_kept_waiting(served: Served) -> None:
    """It names what it would get, but a stream has no end to wait for."""
    got = await call(served.url, "HEAD", PATH, (STREAM,))
    assert got.status == 200
    await served.closed()


# -- streams


async def test_a_stream_gives_the_backlog_then_says_so_then_goes_on(served: Served) -> None:
    """The same objects as a page; ``id`` is the number; with the session ends the stream."""
    await served.store.append(SESSION, said(1, 2))
    page = await served.page()
    async with reading(served) as stream:
        assert [await stream.next(), await stream.next()] == [
            ("message_sent", event) for event in page["events"]
        ]
        assert stream.last_id == "2"
        assert await stream.next() == ("end-of-backfill", {"nextFrom": 3})
        assert stream.last_id == "2"
        await served.store.append(SESSION, said(3))
        assert await stream.sequences(1) == [3]
        await complete(served.store)
        assert (await stream.next())[0] == "session_completed"
        assert await stream.next() == ("end", {"nextFrom": 5})
        assert await stream.caller.chunk() == b""
    await served.closed()


async def test_a_backlog_of_nothing_ends_at_once(served: Served) -> None:
    """Also one in which nothing matches, and one that begins in the future."""
    async with reading(served) as stream:
        assert await stream.next() == ("end-of-backfill", {"nextFrom": 1})
    await served.store.append(SESSION, said(*range(3)))
    async with reading(served, "?type=turn_completed") as stream:
        assert await stream.next() == ("end-of-backfill", {"nextFrom": 4})
    async with reading(served, "?from=10") as stream:
        assert await stream.next() == ("end-of-backfill", {"nextFrom": 10})
    await served.closed()


async def test_a_client_that_comes_back_goes_on_behind_what_it_has(served: Served) -> None:
    """``Last-Event-ID`` wins over ``from``: a browser asks the same address again."""
    await served.store.append(SESSION, said(*range(5)))
    async with reading(served, "?from=2") as stream:
        assert await stream.sequences(2) == [2, 3]
        last = stream.last_id.encode()
    await served.store.append(SESSION, said(*range(5)))
    async with reading(served, "?from=2", (b"last-event-id", last)) as stream:
        await complete(served.store)
        assert await stream.to_end() == [4, 5, 6, 7, 8, 9, 10, 11]
    async with reading(served, "", (b"last-event-id", b"11")) as stream:
        assert await stream.to_end() == []
    await served.closed()


@pytest.mark.parametrize("last", [b"x", b"-1", b"1.5", b"\xff", b"9" * 400])
async def test_an_id_that_no_event_has_is_refused(served: Served, last: bytes) -> None:
    got = await call(served.url, "GET", PATH, (STREAM, (b"last-event-id", last)))
    assert got.status == 400
    assert "Last-Event-ID is" in got.json["detail"]


async def test_10000_events_while_1000_more_come_and_the_client_comes_back(served: Served) -> None:
    """S12 over HTTP: ten connections one after the other, each event once, in order."""
    for _ in range(10):
        await served.store.append(SESSION, said(*range(1_000)))

    async def grow() -> None:
        for n in range(500):
            await served.store.append(SESSION, said(n, n))
            await asyncio.sleep(0.0005)
        await complete(served.store)

    growing = asyncio.create_task(grow())
    got: list[int] = []
    last = b"0"
    for turn in range(10):
        async with reading(served, "", (b"last-event-id", last)) as stream:
            while len(got) < (turn + 1) * 1_000:
                name, data = await stream.next()
                if name != "end-of-backfill":
                    got.append(data["sequence"])
            last = stream.last_id.encode()
    async with reading(served, "", (b"last-event-id", last)) as stream:
        got += await stream.to_end()
    await growing
    assert got == list(range(1, 11_002))
    await served.closed()


async def test_filters_hold_for_streams_as_well(served: Served) -> None:
    async with reading(served, "?type=turn_completed&type=error_occurred&run=r1") as stream:
        assert (await stream.next())[0] == "end-of-backfill"
        for run in ("r1", "r2"):
            for kind in ("turn_completed", "message_sent", "error_occurred"):
                await served.store.append(SESSION, said("", type_=kind, run_id=run))
        await complete(served.store, "cancel")
        assert await stream.to_end() == [1, 3]
    await served.closed()


async def test_a_silent_stream_shows_that_it_lives(served: Served) -> None:
    """A comment every 15 seconds without an event; an event begins them anew."""
    async with reading(served) as stream:
        assert (await stream.next())[0] == "end-of-backfill"
        await idle()
        await served.clock.advance(14.0)
        await served.store.append(SESSION, said(1))
        assert await stream.sequences(1) == [1]
        await served.clock.advance(14.9)
        await served.store.append(SESSION, said(2))
        assert await stream.sequences(1) == [2]
        for _ in range(3):
            await served.clock.advance(15.0)
            assert await stream.next() == (":", "ping")
        served.store.failing = StoreError("locked")  # the client need not know
        await served.clock.advance(15.0)
        assert await stream.next() == (":", "ping")
        served.store.failing = None
        await served.store.append(SESSION, said(3))
        await served.clock.advance(5.0)
        assert await stream.sequences(1) == [3]
    await served.closed()


async def test_a_client_that_leaves_ends_its_subscription(served: Served) -> None:
    """At once, whether it waited for events or for the wire."""
    async with reading(served) as stream:
        assert (await stream.next())[0] == "end-of-backfill"
        assert len(served.streams) == 1
    await served.closed()
    await served.store.append(SESSION, said(*range(1_000)))
    async with reading(served) as stream:
        await stream.sequences(1)
    await served.closed()


async def fill(served: Served) -> None:
    """Log some 3 MB: more than the buffers between server and reader take."""
    for _ in range(6):
        await served.store.append(SESSION, said(*["x" * 5_000] * 100))
        await asyncio.sleep(0)


async def test_a_client_that_does_not_read_keeps_one_page() -> None:
    """Whatever is logged meanwhile stays in the store, and it gets all of it when it reads again."""
    async with serving(send_buffer=8192) as served, reading(served, receive_buffer=4096) as stream:
        await fill(served)
        [open_] = served.streams._open
        await until(lambda: open_._sending)
        await served.clock.advance(1.0)
        reads = len(served.store.reads)
        await fill(served)
        await served.clock.advance(10.0)
        assert len(served.store.reads) == reads <= 4
        await complete(served.store)
        assert await stream.to_end() == list(range(1, 1_202))
        await served.closed()


async def test_a_client_that_takes_nothing_is_cut_off() -> None:
    """After 30 seconds without any room on its wire."""
    async with serving(send_buffer=8192) as served, reading(served, receive_buffer=4096):
        await fill(served)
        [open_] = served.streams._open
        await until(lambda: open_._sending)
        await idle()
        await served.clock.advance(29.0)
        assert len(served.streams) == 1
        await served.clock.advance(1.0)
        await served.closed()


async def test_streams_end_when_the_server_stops(served: Served) -> None:
    """Without ``end``: the client comes back to the next server. What is asked for later is refused."""
    async with reading(served) as stream:
        assert (await stream.next())[0] == "end-of-backfill"
        served.streams.close()
        assert await stream.caller.chunk() == b""
    got = await call(served.url, "GET", PATH, (STREAM,))
    assert (got.status, got.json["code"], got.json["retryable"]) == (503, "draining", True)
    assert (await served.page())["nextFrom"] == 1
    await served.closed()


async def test_a_stalled_stream_does_not_hold_up_the_servers_end() -> None:
    async with serving(send_buffer=8192) as served, reading(served, receive_buffer=4096):
        await fill(served)
        [open_] = served.streams._open
        await until(lambda: open_._sending)
        served.streams.close()
        await idle()
        await served.closed()


@pytest.mark.parametrize("ends", ["removed", "closed"])
async def test_a_stream_whose_log_is_gone_ends(served: Served, ends: str) -> None:
    """Without ``end``; who comes back hears why."""
    async with reading(served) as stream:
        assert (await stream.next())[0] == "end-of-backfill"
        await (served.store.delete_session(SESSION) if ends == "removed" else served.store.aclose())
        assert await stream.caller.chunk() == b""
    got = await call(served.url, "GET", PATH, (STREAM,))
    assert got.status == (404 if ends == "removed" else 503)
    await served.closed()


async def test_only_so_many_streams_are_open() -> None:
    """One more is refused, and taken once another has left."""
    async with serving(most=2) as served:
        async with reading(served), reading(served):
            got = await call(served.url, "GET", PATH, (STREAM,))
            assert (got.status, got.json["code"]) == (429, "limit_exceeded")
        await served.closed()
        async with reading(served) as stream:
            assert (await stream.next())[0] == "end-of-backfill"


async def test_a_stream_that_is_cancelled_leaves_nothing() -> None:
    """A server that is stopped hard cancels it wherever it stands: at its head, waiting, or at a write."""
    before = asyncio.all_tasks()
    for stop_at in range(6):
        store, clock = await opened(MemoryStore(), *said(1)), VirtualClock()
        streams = EventStreams(store, clock=clock)
        [route] = routes_of(EventRoutes(streams))
        sent: list[dict[str, Any]] = []
        stuck = asyncio.Event()

        async def send(
            message: dict[str, Any], at: int = stop_at, sent: Any = sent, stuck: Any = stuck
        ) -> None:
            sent.append(message)
            if len(sent) > at:
                await stuck.wait()

        async def receive(stuck: Any = stuck) -> dict[str, Any]:
            await stuck.wait()
            return {"type": "http.request"}

        scope = {"type": "http", "method": "GET", "path": PATH, "path_params": {"id": SESSION}}
        scope |= {"query_string": b"", "headers": [STREAM], CALLER: ANYBODY}
        task = asyncio.create_task(route.app(scope, receive, send))  # type: ignore[arg-type]
        await idle()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert (len(streams), feed._feeds) == (0, {})
        await idle()
        assert asyncio.all_tasks() == before


# -- words


@pytest.mark.parametrize(
    "event",
    [
        Event("e", "s", None, 1, "message_sent", 1.0, {"a": "one\ntwo\r\nthree\rfour\u2028\x00"}),
        Event("e\n", "s\r", "r", 2**53, "what\never\n\ndata: x", -1.5, {"ключ": [None, 1e300]}, {"b": {}}),
    ],
)
def test_no_event_breaks_out_of_its_frame(event: Event) -> None:
    """Whatever a store holds: three lines, and an empty one."""
    text = frame(event).decode()
    lines = text.split("\n")
    assert "\r" not in text
    assert [line.partition(": ")[0] for line in lines] == ["id", "event", "data", "", ""]
    assert json.loads(lines[2].removeprefix("data: "))["data"] == event.data
