"""`GET /events`: the fleet's state as one stream, told by snapshots and by what has changed since."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from gateways import call, caller, gateway, hosting, open_to_all, until
from interlock.admission.local import LocalAdmission
from interlock.http.access.caller import ANYBODY, CALLER
from interlock.http.changes import FleetRoutes, FleetStreams
from interlock.http.control import Fleet
from interlock.http.endpoints import routes_of
from interlock.http.overview import Overview, changes
from interlock.http.permits.desk import PermitDesk
from interlock.http.permits.leases import LeaseRecord
from interlock.pool import AgentPool
from interlock.provider.gate import ProviderGate
from interlock.stores.memory import MemoryStore
from interlock.testing import VirtualClock
from interlock.testing.virtual_time import idle
from served_sessions import HOLD
from served_sessions import serving as serving_sessions

STREAM = (b"accept", b"text/event-stream")


@dataclass
class Served:
    """A fleet under a clock that stands still, and its stream at a URL."""

    clock: VirtualClock
    admission: LocalAdmission
    gate: ProviderGate
    streams: FleetStreams
    looks: list[float]
    url: str = ""

    async def closed(self) -> None:
        """Return once no stream is open; nothing of it is left, and nobody looks at the state."""
        await until(lambda: not self.streams)
        await idle()
        assert (self.streams._timer, self.streams._waiting, self.streams.state) == (None, {}, {})
        looks = len(self.looks)
        await self.clock.advance(5.0)
        assert len(self.looks) == looks


@asynccontextmanager
async def serving(*, send_buffer: int | None = None, most: int = 256) -> AsyncIterator[Served]:
    clock = VirtualClock(1000.0)
    admission = LocalAdmission(clock=clock)
    for name, capacity in {"tools": 2, "global": None}.items():
        admission.configure(name, capacity)
    async with ProviderGate(admission=admission, default_cooldown=2.0) as gate:
        overview, looks = Overview(gate, None, None), []

        def read() -> Any:
            looks.append(clock.now())
            return overview.read()

        streams = FleetStreams(read, clock=clock, most=most)
        async with hosting(open_to_all(FleetRoutes(streams)), send_buffer=send_buffer) as url:
            yield Served(clock, admission, gate, streams, looks, url)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving() as served:
        yield served


@dataclass
class Reader:
    """A client that keeps the state as a dashboard would."""

    caller: Any
    text: str = ""
    ids: list[int] = field(default_factory=list)
    state: dict[str, dict[str, Any]] = field(default_factory=dict)

    async def next(self) -> tuple[str, Any]:
        while "\n\n" not in self.text:
            piece = await self.caller.chunk()
            assert piece, "the stream has ended"
            self.text += piece.decode()
        block, _, self.text = self.text.partition("\n\n")
        if block.startswith(":"):
            return ":", block[1:].strip()
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        self.ids.append(int(fields["id"]))
        event, data = fields["event"], json.loads(fields["data"])
        if event == "snapshot":
            self.state = {}
        for section, rows in data.items():
            if section != "at":
                kept = self.state.setdefault(section, {})
                kept.update(rows)
                self.state[section] = {name: row for name, row in kept.items() if row is not None}
        return event, data


@asynccontextmanager
async def reading(url: str, *headers: Any, receive_buffer: int | None = None) -> AsyncIterator[Reader]:
    async with caller(url, receive_buffer=receive_buffer) as one:
        one.writer.transport.resume_reading()
        one.ask("GET", "/events", [STREAM, *headers])
        status, fields = await one.head()
        assert (status, dict(fields)[b"content-type"]) == (200, b"text/event-stream")
        yield Reader(one)


async def test_first_everything_then_what_has_changed(served: Served) -> None:
    """A row is sent whole, once; a limit that is gone is null."""
    await served.gate.set_limit("p", 3)
    async with reading(served.url) as stream:
        name, whole = await stream.next()
        assert (name, whole["at"]) == ("snapshot", 1_000_000)
        assert set(whole) == {"at", "limits", "providers", "pools", "sessions"}
        assert whole["limits"]["tools"] == {
            "name": "tools",
            "capacity": 2,
            "used": 0,
            "cooling": 0,
            "waiting": 0,
            "waitingSince": None,
            "pausedUntil": None,
            "pausedBy": None,
            "gated": False,
        }
        assert set(whole["limits"]) == {"tools", "global", "provider:p"}
        assert whole["providers"]["p"] == {
            "providerId": "p",
            "limit": 3,
            "configuredLimit": 3,
            "cooldownMs": 2000,
            "autoReduced": False,
        }
        permit = await served.admission.acquire("tools")
        await served.clock.advance(0.25)
        name, told = await stream.next()
        assert (name, told["at"], set(told)) == ("changes", 1_000_250, {"at", "limits"})
        assert {name: row["used"] for name, row in told["limits"].items()} == {"tools": 1}
        permit.release()
        await served.admission.remove_limit("tools")
        await served.clock.advance(0.25)
        assert (await stream.next())[1]["limits"] == {"tools": None}
        assert stream.ids == sorted(set(stream.ids))
    await served.closed()


async def test_a_provider_is_told_with_its_429(served: Served) -> None:
    """Pause and reason in the limit's row; the notice, and both limits, in the provider's."""
    await served.gate.set_limit("p", 3)
    async with reading(served.url) as stream:
        await stream.next()
        served.gate.report_rate_limit("p", 5.0)
        await served.clock.advance(0.25)
        await stream.next()
        limit, provider = stream.state["limits"]["provider:p"], stream.state["providers"]["p"]
        assert (limit["pausedUntil"], limit["pausedBy"], limit["capacity"]) == (1_005_000, "concurrency", 2)
        assert (provider["limit"], provider["configuredLimit"], provider["autoReduced"]) == (2, 3, True)
        assert "auto-reduced to 2" in provider["notice"]
        served.gate.resume("p")
        served.gate.pause("p", 60.0)
        await served.gate.set_limit("p", 3)
        await served.clock.advance(0.25)
        await stream.next()
        limit, provider = stream.state["limits"]["provider:p"], stream.state["providers"]["p"]
        assert (limit["pausedUntil"], limit["pausedBy"]) == (1_060_250, "operator")
        assert (provider["limit"], provider["autoReduced"], "notice" in provider) == (3, False, False)


async def test_many_changes_of_a_moment_are_one(served: Served) -> None:
    """And what was undone before anybody looked is none."""
    async with reading(served.url) as stream:
        await stream.next()
        for _ in range(50):
            (await served.admission.acquire("tools")).release()
        await served.clock.advance(1.0)
        held = [await served.admission.acquire("global") for _ in range(50)]
        await served.clock.advance(0.25)
        _, told = await stream.next()
        assert told["limits"]["global"]["used"] == 50
        for number in range(20):
            held[number].release()
            await served.clock.advance(0.05)  # a second of changes
        assert [(await stream.next())[1]["at"] for _ in range(4)] == [
            1_001_500,
            1_001_750,
            1_002_000,
            1_002_250,
        ]
        assert stream.state["limits"]["global"]["used"] == 30
        for permit in held[20:]:
            permit.release()


async def test_a_silent_stream_pings_every_15_seconds(served: Served) -> None:
    """An event begins them anew."""
    async with reading(served.url) as stream:
        await stream.next()
        await idle()
        await served.clock.advance(14.0)
        served.admission.configure("tools", 5)
        await served.clock.advance(0.25)
        assert (await stream.next())[0] == "changes"
        await idle()
        await served.clock.advance(14.5)
        served.admission.configure("tools", 6)
        await served.clock.advance(0.25)
        assert (await stream.next())[0] == "changes"
        for _ in range(3):
            await idle()
            await served.clock.advance(15.0)
            assert await stream.next() == (":", "ping")
        await idle()
        await served.clock.advance(14.5)
        served.admission.configure("tools", 7)
        await served.clock.advance(0.25)
        assert (await stream.next())[0] == "changes"


async def test_who_waits_longest_is_known(served: Served) -> None:
    """Not the first in line, but the first to have come, and the next once that one is gone."""
    tools = [await served.admission.acquire("tools") for _ in range(2)]

    async def ask(**more: Any) -> asyncio.Task[Any]:
        task = asyncio.ensure_future(served.admission.acquire("tools", **more))
        await served.clock.advance(1.0)
        return task

    async with reading(served.url) as stream:
        first, urgent, third = await ask(), await ask(priority=-1), await ask()
        while stream.state.get("limits", {}).get("tools", {}).get("waiting") != 3:
            await stream.next()
        assert stream.state["limits"]["tools"]["waitingSince"] == 1_000_000
        fourth = await ask()
        first.cancel()
        third.cancel()
        await served.clock.advance(0.25)
        while stream.state["limits"]["tools"]["waiting"] != 2:
            await stream.next()
        assert stream.state["limits"]["tools"]["waitingSince"] == 1_001_000
        for permit in tools:
            permit.release()
        for task in (urgent, fourth):
            (await task).release()
        await served.clock.advance(0.25)
        while stream.state["limits"]["tools"]["waiting"]:
            await stream.next()
        assert stream.state["limits"]["tools"]["waitingSince"] is None
    await served.closed()


async def test_who_comes_back_gets_a_snapshot(served: Served) -> None:
    """Of the state now, whatever was seen last."""
    async with reading(served.url) as stream:
        await stream.next()
        last = b"%d" % stream.ids[-1]
    await served.closed()
    served.admission.configure("tools", 7)
    async with reading(served.url, (b"last-event-id", last)) as stream:
        assert (await stream.next())[0] == "snapshot"
        assert stream.state["limits"]["tools"]["capacity"] == 7
        served.admission.configure("tools", 8)
        async with reading(served.url) as another:  # is told of what the next tick brings already
            await another.next()
            assert another.state["limits"]["tools"]["capacity"] == 8
        await served.clock.advance(0.25)
        assert (await stream.next())[1]["limits"]["tools"]["capacity"] == 8
    await served.closed()


async def test_all_are_told_the_same_by_one_look(served: Served) -> None:
    """Ten who listen cost one reading of the state a tick."""
    async with asyncio.timeout(10):
        connections = [reading(served.url) for _ in range(10)]
        streams = [await one.__aenter__() for one in connections]
        for stream in streams:
            await stream.next()
        served.looks.clear()
        for capacity in range(5, 9):
            served.admission.configure("tools", capacity)
            await served.clock.advance(0.25)
        for stream in streams:
            while stream.state["limits"]["tools"]["capacity"] != 8:
                await stream.next()
        assert len(served.looks) == 4
        for one in connections:
            await one.__aexit__(None, None, None)
    await served.closed()


async def test_a_client_that_does_not_read_keeps_nothing() -> None:
    """It misses what came and went, and reads the latest state next; or is cut off."""
    async with serving(send_buffer=8192) as served:
        for number in range(300):
            served.admission.configure(f"x{number}", 1)
        async with reading(served.url, receive_buffer=4096) as stream:
            await stream.next()
            stream.caller.writer.transport.pause_reading()
            [open_] = served.streams._open

            async def change(capacity: int) -> None:
                for number in range(300):
                    served.admission.configure(f"x{number}", capacity)
                await served.clock.advance(0.25)

            for capacity in range(2, 60):
                await change(capacity)
                if open_._sending:
                    break
            else:
                raise AssertionError("the wire takes everything")
            before = stream.ids[-1]
            await change(100)
            await change(101)
            assert len(served.streams._rows) == 0  # nobody has room: no change was worked out
            stream.caller.writer.transport.resume_reading()
            while stream.state["limits"]["x299"]["capacity"] != 101:
                name, _ = await stream.next()
                assert name == "changes"
            assert set(range(before, stream.ids[-1])) - set(stream.ids)  # some were never told
            stream.caller.writer.transport.pause_reading()
            for capacity in range(200, 300):
                await change(capacity)
            await served.clock.advance(30.0)
            await served.closed()


async def test_streams_end_when_the_server_stops(served: Served) -> None:
    async with reading(served.url) as stream:
        await stream.next()
        served.streams.close()
        assert await stream.caller.chunk() == b""
    got = await call(served.url, "GET", "/events", (STREAM,))
    assert (got.status, got.json["code"]) == (503, "draining")
    await served.closed()


async def test_only_so_many_streams_are_open() -> None:
    async with serving(most=2) as served:
        async with reading(served.url), reading(served.url):
            got = await call(served.url, "GET", "/events", (STREAM,))
            assert (got.status, got.json["code"]) == (429, "limit_exceeded")
            assert got.header(b"retry-after") in (b"1", b"2")
        await served.closed()
        async with reading(served.url) as stream:
            assert (await stream.next())[0] == "snapshot"


async def test_who_wants_json_only_gets_the_state_once(served: Served) -> None:
    """Everybody else gets the stream, which is what this address is; HEAD waits for no end."""
    got = await call(served.url, "GET", "/events", ((b"accept", b"application/json"),))
    assert (got.header(b"content-type"), got.json["limits"]["tools"]["capacity"]) == (b"application/json", 2)
    got = await call(served.url, "HEAD", "/events", (STREAM,))
    assert got.status == 200
    got = await call(served.url, "GET", "/events?from=3", (STREAM,))
    assert (got.status, got.json["code"]) == (400, "validation_error")
    async with caller(served.url) as one:
        one.ask("GET", "/events", [(b"accept", b"*/*")])
        assert dict((await one.head())[1])[b"content-type"] == b"text/event-stream"
    await served.closed()


async def test_a_stream_that_is_cancelled_leaves_nothing(served: Served) -> None:
    """Wherever it stands: at its head, at a write, or waiting."""
    [route] = routes_of(FleetRoutes(served.streams))
    before = asyncio.all_tasks()
    for stop_at in range(4):
        sent: list[Any] = []
        stuck = asyncio.Event()

        async def send(message: Any, at: int = stop_at, sent: Any = sent, stuck: Any = stuck) -> None:
            sent.append(message)
            if len(sent) > at:
                await stuck.wait()

        async def receive(stuck: Any = stuck) -> dict[str, Any]:
            await stuck.wait()
            return {"type": "http.request"}

        scope: Any = {"type": "http", "method": "GET", "path": "/events", "query_string": b""}
        stream = route.app(scope | {"headers": [STREAM], CALLER: ANYBODY}, receive, send)
        task: asyncio.Task[Any] = asyncio.create_task(stream)  # type: ignore[arg-type]
        await idle()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        await served.closed()
        assert asyncio.all_tasks() == before


async def test_with_10000_waiters_a_look_costs_what_the_limits_do() -> None:
    """As much as with a hundred, whoever comes and goes meanwhile."""

    async def took(count: int) -> float:
        async with serving() as served:
            held = [await served.admission.acquire("tools") for _ in range(2)]
            waiting = [asyncio.ensure_future(served.admission.acquire("tools")) for _ in range(count)]
            await asyncio.sleep(0)
            served.streams.read()
            times = []
            for number in range(50):
                waiting[number].cancel()
                await asyncio.sleep(0)
                began = time.perf_counter()
                served.streams.read()
                times.append(time.perf_counter() - began)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            for permit in held:
                permit.release()
            return sorted(times)[25]

    few, many = await took(100), await took(10_000)
    assert many < 5 * few + 0.0005


async def test_a_limit_that_may_be_held_from_before_is_in_quarantine() -> None:
    """Until the leases of before and a cooldown are over; then it is as any other."""
    clock, store = VirtualClock(1000.0), MemoryStore()
    await LeaseRecord(store, clock.now).cover(("a",), clock.now() + 10, 10)
    async with ProviderGate(admission=LocalAdmission(clock=clock)) as gate:
        gate.admission.configure("a", 3, cooldown=2.0)
        gate.admission.configure("b", 3)
        desk = PermitDesk(gate.admission, store)
        await desk.load()
        overview = Overview(gate, None, None, desk.quarantined)
        row = overview.read()["limits"]["a"]
        assert (row["pausedBy"], row["pausedUntil"]) == ("restart", 1_012_000)
        assert overview.read()["limits"]["b"]["pausedBy"] is None
        await clock.advance(12.0)
        assert overview.read()["limits"]["a"]["pausedBy"] is None


async def test_pools_are_told() -> None:
    clock = VirtualClock()
    gate = ProviderGate(admission=LocalAdmission(clock=clock))
    async with gate, AgentPool(object, 2, 1, admission=gate.admission) as pool:
        fleet = Fleet(None, None, None, {"coders": pool})  # type: ignore[arg-type]
        overview = Overview(gate, fleet, None)
        before = overview.read()
        assert (
            before["pools"]["coders"] | {"size": 2, "inUse": 0, "maxOverflow": 1} == before["pools"]["coders"]
        )
        async with pool.checkout():
            assert changes(before, overview.read())["pools"]["coders"]["inUse"] == 1  # type: ignore[index]
        assert changes(before, overview.read()) == {}


async def test_the_whole_server_tells_of_its_sessions_and_ends_with_its_drain() -> None:
    """Sessions that have a run; the route is the application's."""
    async with serving_sessions() as server, reading(server.url) as stream:
        await stream.next()
        assert stream.state["sessions"] == {}
        await server.session("s1")
        run_ids = [await server.submit(HOLD) for _ in range(2)]
        while stream.state["sessions"].get("s1", {}).get("queued") != 1:
            await stream.next()
        row = {"id": "s1", "agent": "worker", "running": 1, "queued": 1, "maxConcurrentRuns": 1}
        assert stream.state["sessions"] == {"s1": row}
        for run_id in run_ids:
            await server.worker.finish(run_id)
        while stream.state["sessions"]:
            await stream.next()
        server.desk.drain()
        while await stream.caller.chunk():
            pass


async def test_a_gateway_s_call_is_seen() -> None:
    """Also where there is nothing but a gate."""
    async with gateway("http://127.0.0.1:9", limit=1) as server, reading(server.url) as stream:
        await stream.next()
        assert stream.state["limits"]["provider:p"]["used"] == 0
        permit = await server.admission.acquire("provider:p")
        while stream.state["limits"]["provider:p"]["used"] != 1:
            await stream.next()
        permit.release()
