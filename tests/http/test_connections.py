"""A connection has bounds: how large a head may be, how long anything may take, and how many there are."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest
from uvicorn.server import ServerState

from gateways import PATIENCE, Caller, caller, hosting, until
from interlock.http.connections.places import Places
from interlock.http.connections.protocol import Patience
from raw_http import Whole, all_that_came

HOST = b"host: localhost\r\n"
SHORT = Patience(idle=0.1, head=0.1, body=0.1, rate=1 << 20, linger=0.05)
LONG = 60.0


async def status(url: str, raw: bytes) -> tuple[bytes, bytes]:
    """Status and code of the one answer to *raw*, after which the server ends the connection."""
    said = await all_that_came(url, [raw])
    head, _, body = said.partition(b"\r\n\r\n")
    assert head.count(b"HTTP/1.1 ") == 1, said
    assert b"connection: close" in head
    return said.split(b" ")[1], body


# -- what it may say -----------------------------------------------------------------------------------------


def get(target: bytes = b"/", fields: bytes = b"") -> bytes:
    return b"GET " + target + b" HTTP/1.1\r\n" + HOST + fields + b"connection: close\r\n\r\n"


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (get(b"/" + b"x" * 8191), b"200"),
        (get(b"/" + b"x" * 8192), b"414"),
        (get(b"/" + b"x" * 100_000), b"414"),
        (b"GET /" + b"x" * 100_000, b"414"),
        (get(fields=b"x: y\r\n" * 98), b"200"),
        (get(fields=b"x: y\r\n" * 99), b"431"),
        (get(fields=b"x: " + b"y" * 16_000 + b"\r\n"), b"200"),
        (get(fields=b"x: " + b"y" * 16_384 + b"\r\n"), b"431"),
        (get(fields=b"x: " + b"y" * 100_000 + b"\r\n"), b"431"),
        (b"GET / HTTP/1.1\r\nx: " + b"y" * 100_000, b"431"),
        (b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 10_000, b"431"),
        (b"\x16\x03\x01\x02\x00\x01", b"400"),
    ],
)
async def test_a_head_has_its_size(raw: bytes, expected: bytes) -> None:
    """100 fields of 16 KiB in all, a target of 8 KiB; refused without waiting for the end of it."""
    app = Whole()
    async with hosting(app) as url:
        assert (await status(url, raw))[0] == expected
        assert len(app.seen) == (expected == b"200")


async def test_a_refusal_is_read_though_more_was_sent() -> None:
    """What comes behind it is thrown away for a while: a connection torn down would take the answer along."""
    async with hosting(Whole()) as url, caller(url) as client:
        client.writer.write(b"GET /" + b"x" * 30_000)
        head = await client.head()
        client.writer.write(b"x" * 20_000)
        assert head[0] == 414
        assert b"8192" in await client.body()
        async with asyncio.timeout(PATIENCE):
            assert await client.reader.read() == b""


# -- how long it may take ------------------------------------------------------------------------------------


async def dribble(client: Caller, piece: bytes) -> bytes:
    """All that is said to a client that sends *piece* again and again, faster than anything runs out."""
    reading = asyncio.ensure_future(client.reader.read())
    async with asyncio.timeout(PATIENCE):
        while not reading.done():
            client.writer.write(piece)
            await asyncio.wait((reading,), timeout=0.005)
    return reading.result()


@pytest.mark.parametrize(
    ("begin", "piece", "what"),
    [
        (b"GET / HTTP/1.1\r\n", b"x: y\r\n", b"headers"),
        (b"G", b"", b"headers"),
        (b"\r\n", b"", b"headers"),
        (b"\r\n", b"\r\n", b"headers"),
        (b"POST / HTTP/1.1\r\n" + HOST + b"content-length: 1000\r\n\r\n", b"x", b"body"),
        (b"POST / HTTP/1.1\r\n" + HOST + b"transfer-encoding: chunked\r\n\r\n", b"1\r\nx\r\n", b"body"),
    ],
)
async def test_a_byte_now_and_then_does_not_put_it_off(begin: bytes, piece: bytes, what: bytes) -> None:
    """The time of a head and of a body is absolute: 408, and the end. Nobody has been asked anything."""
    app, state = Whole(), ServerState()
    async with hosting(app, patience=SHORT, state=state) as url, caller(url) as client:
        client.writer.write(begin)
        said = await dribble(client, piece)
        assert said.startswith(b"HTTP/1.1 408")
        assert what in said
        assert app.seen == []
        await until(lambda: not state.tasks)


async def test_a_large_body_has_more_time() -> None:
    """A second more for so many bytes: what goes on well may take longer than a small one."""
    app = Whole()
    patience = Patience(body=0.05, rate=1, linger=0.05)
    async with hosting(app, patience=patience) as url, caller(url) as client:
        client.writer.write(b"POST / HTTP/1.1\r\n" + HOST + b"content-length: 20\r\n\r\n")
        for _ in range(20):
            client.writer.write(b"x")
            await asyncio.sleep(
                0.01
            )  # the clock is the loop's: longer in all than the smallest body may take
        assert (await client.head())[0] == 200
    assert app.seen[0][1] == b"x" * 20


async def test_the_time_in_which_we_do_not_read_is_not_the_clients() -> None:
    """An application that is slow to take a body costs its client nothing."""
    began, go_on = asyncio.Event(), asyncio.Event()
    whole = Whole()

    async def slow(scope: dict[str, Any], receive: Any, send: Any) -> None:
        began.set()
        await go_on.wait()
        await whole(scope, receive, send)

    patience = Patience(body=0.05, rate=1 << 30, linger=0.05)
    size = 400_000
    async with hosting(slow, patience=patience) as url, caller(url) as client:
        client.writer.write(b"POST / HTTP/1.1\r\n" + HOST + b"content-length: %d\r\n\r\n" % size)
        client.writer.write(b"x" * (size - 1))
        async with asyncio.timeout(PATIENCE):
            await began.wait()
        await asyncio.sleep(0.15)  # three times what the body may take
        client.writer.write(b"x")
        go_on.set()
        assert (await client.head())[0] == 200
    assert len(whole.seen[0][1]) == size


async def test_what_comes_behind_a_request_does_not_end_it() -> None:
    """Some clients send an empty line too many: the answer under way does not suffer for it."""
    go_on = asyncio.Event()

    async def slow(scope: dict[str, Any], receive: Any, send: Any) -> None:
        async with asyncio.timeout(PATIENCE):
            await go_on.wait()
        await Whole()(scope, receive, send)

    async with hosting(slow, patience=SHORT) as url:
        for stray in (b"\r\n", b"GET / HT"):
            go_on.clear()
            async with caller(url) as client:
                client.ask("GET", "/")
                client.writer.write(stray)
                asyncio.get_running_loop().call_later(3 * SHORT.head, go_on.set)
                assert (await client.head())[0] == 200
                async with asyncio.timeout(PATIENCE):
                    await client.reader.read()  # then it is the stray one's turn to be late


@pytest.mark.parametrize("asked", [0, 1])
async def test_a_connection_that_says_nothing_ends(asked: int) -> None:
    """Before its first request as well as after one."""
    state = ServerState()
    async with hosting(Whole(), patience=SHORT, state=state) as url, caller(url) as client:
        for _ in range(asked):
            client.ask("GET", "/")
            assert (await client.answer()).status == 200
        async with asyncio.timeout(PATIENCE):
            assert await client.reader.read() == b""
        await until(lambda: not state.connections)


async def test_a_body_of_a_request_that_has_its_answer_ends_quietly() -> None:
    """Whoever goes on sending what nobody reads gets no second answer."""

    async def refuses(scope: dict[str, Any], receive: Any, send: Any) -> None:
        fields = [(b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 403, "headers": fields})
        await send({"type": "http.response.body", "body": b""})

    async with hosting(refuses, patience=SHORT) as url, caller(url) as client:
        client.writer.write(b"POST / HTTP/1.1\r\n" + HOST + b"content-length: 1000\r\n\r\nx")
        assert (await client.head())[0] == 403
        async with asyncio.timeout(PATIENCE):
            assert await client.reader.read() == b""


# -- how many there may be -----------------------------------------------------------------------------------


async def test_so_many_and_no_more() -> None:
    """Who comes too late hears it, with when to come back; a place is free again when its connection ends."""
    places, app = Places(3, None), Whole()
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(hosting(app, places=places))
        clients = [await stack.enter_async_context(caller(url)) for _ in range(3)]
        for client in clients:
            client.ask("GET", "/")
            assert (await client.answer()).status == 200
        assert len(places) == 3
        for raw in (b"", get()):
            said = await all_that_came(url, [raw])
            assert said.startswith(b"HTTP/1.1 503")
            assert b"retry-after: 1\r\n" in said
            assert b"too_many_connections" in said
        assert len(app.seen) == 3
        clients[0].leave()
        await until(lambda: len(places) == 2)
        assert (await status(url, get()))[0] == b"200"
    await until(lambda: not places)


def test_one_address_does_not_take_all() -> None:
    """So many for each, and four times as many for this machine, which is where a fleet is."""
    places = Places(100, 2)
    taken = [places.take(address) for address in ("192.0.2.1", "192.0.2.1", "192.0.2.1", "192.0.2.2")]
    assert taken == ["192.0.2.1", "192.0.2.1", None, "192.0.2.2"]
    network = [places.take(f"2001:db8::{n}") for n in range(1, 4)]
    assert [place is None for place in network] == [False, False, True]
    for loopback in ("127.0.0.1", "::1", ""):
        assert [places.take(loopback) is None for _ in range(9)] == [False] * 8 + [True]
    assert len(places) == 2 + 1 + 2 + 24
    places.leave("192.0.2.1")
    assert places.take("192.0.2.1") is not None
    everything = Places(3, None)
    assert [everything.take(f"192.0.2.{n}") is None for n in range(4)] == [False, False, False, True]


async def test_whoever_is_turned_away_cannot_fill_the_server() -> None:
    """A flood of them is cut off without a word; when it has passed, all is as before."""
    state = ServerState()
    async with AsyncExitStack() as stack:
        patience = Patience(linger=LONG)
        hosted = hosting(Whole(), places=Places(0, None), patience=patience, state=state)
        url = await stack.enter_async_context(hosted)
        for _ in range(300):
            await stack.enter_async_context(caller(url))
        await until(lambda: len(state.connections) == 256)
    await until(lambda: not state.connections)
