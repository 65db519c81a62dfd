"""What a token allows of line and room: no place before others, and bounds of waiting and streaming."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any

import pytest

from admission.harnesses import hosted
from gateways import PATIENCE, Answer, Caller, call, caller, chat, until, upstream
from interlock.admission.local import LocalAdmission
from interlock.admission.remote import RemoteAdmission
from interlock.clock import SystemClock
from interlock.errors import InterlockError, QueueFull
from interlock.http.access.book import TokenBook
from interlock.http.access.caller import ANYBODY, OLDEST_START
from interlock.http.access.caller import Caller as Asker
from interlock.http.permits.room import WaitingRoom
from interlock.http.streaming import LONGEST_SECONDS, StreamRoom
from interlock.stores.memory import MemoryStore
from served_tokens import Door, bearer, door

SCOPES = ("submit", "read", "gateway")
STREAM = (b"accept", b"text/event-stream")


async def take(server: Door, token: str | None, **more: Any) -> Answer:
    return await server.ask("POST", "/permits", token, {"limits": ["a"], **more})


@contextmanager
def full(admission: LocalAdmission, *names: str) -> Iterator[None]:
    """The one unit of each of these limits is held meanwhile."""
    held = []
    for name in names:
        admission.configure(name, 1)
        held.append(admission.try_acquire(name))
    yield
    for permit in held:
        assert permit is not None
        permit.release()


def refused(answer: Answer, status: int, code: str) -> None:
    assert (answer.status, answer.json["code"]) == (status, code), answer
    assert (answer.header(b"retry-after") is not None) == (status == 429)


# -- places in a line ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("terms", "least"), [({}, 0), ({"min_priority": 5}, 5), ({"min_priority": -5}, -5)])
async def test_no_priority_before_what_the_token_allows(terms: dict[str, int], least: int) -> None:
    """Permits, runs and calls: 403 that names the bound, and nothing was asked; an admin goes anywhere."""
    async with upstream() as provider, door(provider=provider.url) as server:
        server.admission.configure("a", None)
        token, admin = await server.token(*SCOPES, **terms), await server.token("admin")
        await server.ask("POST", "/sessions", admin, {"id": "s", "agent": "worker"})

        async def asked(token: str, priority: int) -> list[Answer]:
            field = (b"x-interlock-priority", b"%d" % priority)
            return [
                await take(server, token, priority=priority),
                await server.ask("POST", "/sessions/s/runs", token, {"input": {}, "priority": priority}),
                await server.ask("GET", "/gateway/p/v1/models", token, None, field),
            ]

        permit, run, through = await asked(token, least - 1)
        for answer in (permit, run):
            refused(answer, 403, "priority_not_allowed")
            assert f"none before {least}" in answer.json["detail"]
        assert (through.status, through.json["error"]["code"]) == (403, "priority_not_allowed")
        assert provider.seen == 0
        assert server.admission.holders("a") == ()
        provider.will_answer(*[b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"] * 2)
        assert [answer.status for answer in await asked(token, least)] == [201, 202, 200]
        assert [answer.status for answer in await asked(admin, -1000)] == [201, 202, 200]


async def test_without_tokens_everybody_goes_anywhere() -> None:
    """On a loopback address, as an admin does."""
    async with door() as server:
        server.admission.configure("a", None)
        assert (await take(server, None, priority=-1000, since=1)).status == 201


async def test_no_start_before_yesterday_or_after_now() -> None:
    """A time to come counts as now, and for who is no admin one long ago as a day ago: on every way in."""
    async with (
        upstream() as provider,
        door(provider=provider.url, real_time=True) as server,
        AsyncExitStack() as stack,
    ):
        stack.enter_context(full(server.admission, "a", "provider:p"))
        token, admin = await server.token(*SCOPES), await server.token("admin")
        now = SystemClock().now()  # that of the admission
        said = {"old": 1.0, "day": now - 1000, "coming": now + 1e6}
        waiting = []
        for who, shown in (("token", token), ("admin", admin)):
            for name, since in said.items():
                body = {"owner": f"{who}.{name}", "since": round(since * 1000), "timeoutMs": 60_000}
                waiting.append(asyncio.ensure_future(take(server, shown, **body)))
                client = await stack.enter_async_context(caller(server.url))
                started = (b"x-interlock-prompt-started-at", b"%d" % round(since * 1000))
                called = (b"x-interlock-conversation", f"{who}-{name}".encode())
                client.ask(headers=[bearer(shown), started, called], body=chat())
        try:
            await until(lambda: len(server.admission.waiting()) == 12)
            since = {one.owner: one.since for one in server.admission.waiting()}
            later = SystemClock().now()
            for mark in (".", "-"):
                assert now - OLDEST_START - 1 <= since[f"token{mark}old"] <= later - OLDEST_START
                assert since[f"admin{mark}old"] == 1.0
                for who in ("token", "admin"):
                    assert abs(since[f"{who}{mark}day"] - (now - 1000)) < 0.01
                    assert now - 0.01 <= since[f"{who}{mark}coming"] <= later
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)


async def test_over_a_connection_of_permits_the_same_holds() -> None:
    admission, book = LocalAdmission(), TokenBook(MemoryStore(), SystemClock())
    admission.configure("a", None)
    _, secret = await book.create("it", ("submit",))
    async with hosted(admission, book=book) as server, AsyncExitStack() as stack:
        remote: Any = RemoteAdmission(server.url, token=secret.reveal())
        try:
            with pytest.raises(InterlockError) as caught:
                await remote.acquire("a", priority=-1)
            assert caught.value.code == "priority_not_allowed"
            (await remote.acquire("a", priority=0)).release()
            await until(lambda: not admission.holders("a"))
            stack.enter_context(full(admission, "a"))
            asked = [
                asyncio.ensure_future(_waits(remote, since)) for since in (1.0, admission.clock.now() + 1e6)
            ]
            await until(lambda: len(admission.waiting()) == 2)
            now = admission.clock.now()
            first, last = sorted(one.since for one in admission.waiting())
            assert abs(first - (now - OLDEST_START)) < 60
            assert last <= now
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        finally:
            await remote.aclose()


async def _waits(remote: RemoteAdmission, since: float) -> None:
    await remote.acquire("a", since=since, timeout=60)


# -- the waiting room ----------------------------------------------------------------------------------------


@asynccontextmanager
async def crowd(server: Door, count: int, limit: str = "a") -> AsyncIterator[list[asyncio.Future[Answer]]]:
    """*count* who wait for *limit* by long poll."""
    before = len(server.admission.waiting())
    body = {"limits": [limit], "timeoutMs": 60_000}
    polls = [asyncio.ensure_future(server.ask("POST", "/permits", None, body)) for _ in range(count)]
    try:
        await until(lambda: len(server.admission.waiting()) == before + count)
        yield polls
    finally:
        for poll in polls:
            poll.cancel()
        await asyncio.gather(*polls, return_exceptions=True)
        await until(lambda: len(server.admission.waiting()) == before)


async def test_no_more_wait_than_may() -> None:
    """For one limit and in all: 429 ``queue_full`` on every way in, while what need not wait is served."""
    bounds = {"max_waiting": 5, "max_waiting_per_limit": 3}
    async with (
        upstream() as provider,
        door(provider=provider.url, **bounds) as server,
        AsyncExitStack() as stack,
    ):
        stack.enter_context(full(server.admission, "a", "b", "provider:p"))
        server.admission.configure("free", 5)
        wait = {"timeoutMs": 60_000}
        async with crowd(server, 3):
            refused(await take(server, None, **wait), 429, "queue_full")
            assert (await take(server, None)).json["code"] == "limit_exceeded"  # it would not have waited
            async with crowd(server, 2, "b"):
                body = {"limits": ["b"], **wait}
                refused(await server.ask("POST", "/permits", None, body), 429, "queue_full")
                through = await server.ask("POST", "/gateway/p/v1/chat/completions", None, {})
                assert (through.status, through.json["error"]["code"]) == (429, "queue_full")
                assert through.header(b"retry-after")
                remote = RemoteAdmission(server.url)
                try:
                    with pytest.raises(QueueFull):
                        await remote.acquire("b", timeout=60)
                    async with await remote.acquire("free", timeout=60):
                        pass
                finally:
                    await remote.aclose()
                free = await server.ask("POST", "/permits", None, {"limits": ["free"], **wait})
                assert free.status == 201
        async with crowd(server, 1):
            pass
        inside = [server.admission.acquire("a", timeout=60) for _ in range(9)]
        tasks = [asyncio.ensure_future(one) for one in inside]  # who asks in the process is not counted out
        await until(lambda: len(server.admission.waiting()) == 9)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_who_is_known_is_not_turned_away() -> None:
    """The same key again is the same wait, also where no one else may come in."""
    async with door(max_waiting=1) as server:
        server.admission.configure("a", 1)
        held = server.admission.try_acquire("a")
        assert held is not None
        body = {"key": "mine", "timeoutMs": 60_000}
        first = asyncio.ensure_future(take(server, None, **body))
        await until(lambda: len(server.admission.waiting()) == 1)
        refused(await take(server, None, key="other", timeoutMs=60_000), 429, "queue_full")
        again = asyncio.ensure_future(take(server, None, **body))
        await asyncio.sleep(0)
        held.release()
        assert [one.status for one in await asyncio.gather(first, again)] == [201, 201]


async def test_a_token_s_waiting_calls_are_not_larger_than_may_be() -> None:
    """Together; another token's calls come in, and so does the next one when they have gone."""
    async with upstream() as provider, door(provider=provider.url, max_waiting_bytes=1500) as server:
        one, other, admin = [await server.token(*SCOPES, name=name) for name in ("one", "other")] + [
            await server.token("admin")
        ]
        async with AsyncExitStack() as stack:
            stack.enter_context(full(server.admission, "provider:p"))

            async def ask(token: str) -> Caller:
                client = await stack.enter_async_context(caller(server.url))
                client.ask(headers=[bearer(token)], body=chat("x" * 900))
                return client

            async def waits(count: int) -> None:
                await until(lambda: len(server.admission.waiting()) == count)

            first = await ask(one)
            await waits(1)
            answer = await (await ask(one)).answer()
            assert (answer.status, answer.json["error"]["code"]) == (429, "queue_full")
            assert answer.header(b"retry-after")
            await ask(other)
            await waits(2)
            for count in (3, 4):
                await ask(admin)
                await waits(count)
            first.leave()
            await waits(3)
            await ask(one)
            await waits(4)


def test_a_room_without_bounds_takes_all() -> None:
    admission = LocalAdmission()
    room = WaitingRoom(admission.kernel, most=None, most_per_limit=None)
    with full(admission, "a"):
        for _ in range(3):
            room.check(("a", "unknown"))
    with room.holding(ANYBODY, 1 << 40), room.holding(ANYBODY, 1 << 40):
        pass


# -- streams -------------------------------------------------------------------------------------------------


async def test_streams_of_both_kinds_share_their_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many in all, and so many for a token: 429 with when to come back; an ended one makes room."""
    monkeypatch.setattr(StreamRoom.__init__, "__defaults__", (4, 2))
    async with door() as server, AsyncExitStack() as stack:
        one, other, admin = [await server.token(*SCOPES, name=name) for name in ("one", "other")] + [
            await server.token("admin")
        ]
        await server.ask("POST", "/sessions", admin, {"id": "s", "agent": "worker"})
        paths = ("/events", "/sessions/s/events")

        async def opened(token: str, path: str) -> Caller:
            client = await stack.enter_async_context(caller(server.url))
            client.ask("GET", path, [bearer(token), STREAM])
            assert (await client.head())[0] == 200
            return client

        async def crowded(token: str) -> None:
            for path in paths:
                refused(await call(server.url, "GET", path, [bearer(token), STREAM]), 429, "limit_exceeded")

        first, _ = [await opened(one, path) for path in paths]
        await crowded(one)
        for path in paths:
            await opened(other, path)
        await crowded(admin)
        first.leave()

        async with asyncio.timeout(PATIENCE):
            while True:  # until the server has noticed
                client = await stack.enter_async_context(caller(server.url))
                client.ask("GET", "/events", [bearer(one), STREAM])
                if (await client.head())[0] == 200:
                    break
        await crowded(admin)


async def test_a_stream_ends_after_an_hour_and_goes_on_where_it_was() -> None:
    """A client comes back with the id that it saw last, and misses nothing."""
    async with door() as server:
        await server.ask("POST", "/sessions", None, {"id": "s", "agent": "worker"})
        async with caller(server.url) as client:
            client.ask("GET", "/sessions/s/events", [STREAM])
            assert (await client.head())[0] == 200
            seen = await client.chunk()
            while b"end-of-backfill" not in seen:
                seen += await client.chunk()
            await server.clock.advance(LONGEST_SECONDS - 1)
            await server.ask("POST", "/sessions/s/runs", None, {"input": {"say": "x"}})
            while b"run.completed" not in seen and b"completed" not in seen:
                seen += await client.chunk()
            await server.clock.advance(1)
            rest = await client.body()
        assert b"event: end\n" not in seen + rest
        last = (seen + rest).rpartition(b"\nid: ")[2].partition(b"\n")[0]
        page = await server.ask("GET", f"/sessions/s/events?from={int(last) + 1}")
        assert page.json["events"] == []


def test_an_asker_without_a_token_has_no_share() -> None:
    """On a loopback address only the bound of all holds."""
    room = StreamRoom(3, 1)
    named = Asker(frozenset(("read",)), ("it",))
    room.take(named)
    with pytest.raises(InterlockError):
        room.check(named)
    for _ in range(2):
        room.check(ANYBODY)
        room.take(ANYBODY)
    with pytest.raises(InterlockError):
        room.check(ANYBODY)
    room.leave(named)
    room.check(named)
