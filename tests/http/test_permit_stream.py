"""The WebSocket of `RemoteAdmission`, as strangers may use it: who is let in, and what is no message."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from random import Random
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from admission.harnesses import Hosted, hosted
from gateways import until
from interlock.admission.local import LocalAdmission
from interlock.admission.wire import PATH, VERSION
from interlock.http.connections.places import Places

HELLO = ["hello", VERSION, 30.0, "me"]


def opening(server: Hosted, path: str = PATH, **headers: str) -> Any:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    url = server.url.replace("http", "ws") + path
    return connect(url, additional_headers=fields, proxy=None, compression=None, open_timeout=5)


async def say(connection: ClientConnection, *operations: Any) -> None:
    await connection.send(json.dumps(operations).encode())


async def answers(connection: ClientConnection, count: int) -> list[Any]:
    """The next *count* answers."""
    found: list[Any] = []
    async with asyncio.timeout(5):
        while len(found) < count:
            found += json.loads(await connection.recv())[1]
    return found


def limited(capacity: int = 1) -> LocalAdmission:
    admission = LocalAdmission()
    admission.configure("a", capacity)
    return admission


async def test_the_guard_stands_before_it() -> None:
    """Token, Host and Origin, as for every other route; and there is no other WebSocket."""
    async with hosted(limited(), token="right") as server:
        for headers, status in (
            ({}, 401),
            ({"authorization": "Bearer wrong"}, 401),
            ({"authorization": "Bearer right", "origin": "http://evil.example"}, 403),
            ({"authorization": "Bearer right", "sec_fetch_site": "cross-site"}, 403),
        ):
            with pytest.raises(InvalidStatus) as refused:
                await opening(server, **headers)
            assert refused.value.response.status_code == status
        with pytest.raises(InvalidStatus) as refused:
            await opening(server, "/permits", authorization="Bearer right")
        assert refused.value.response.status_code == 403
        async with opening(server, authorization="Bearer right") as connection:
            await say(connection, HELLO)
            assert await answers(connection, 1) == [["hello", server.desk.epoch]]


async def test_a_foreign_host_is_refused() -> None:
    """A rebound name is how a web page would come in."""
    async with hosted(limited()) as server:
        port = server.url.rpartition(":")[2]
        with pytest.raises(InvalidStatus) as refused:
            await connect(
                f"ws://evil.example:{port}{PATH}",
                host="127.0.0.1",
                port=int(port),
                proxy=None,
                open_timeout=5,
            )
        assert refused.value.response.status_code == 421


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"{}",
        b"\xff",
        b'["acquire"]',
        b'[["acquire", 1, "x", ["a"], {}]]',  # before hello
        b'[["hello", 99, 30.0, "me"]]',
        b'[["hello", 1, 0, "me"]]',
        b'[["hello", 1, NaN, "me"]]',
        b'[["hello", 1, 30.0, "me", "more"]]',
        b'[["hello", 1, 30.0, "me"], ["nonsense", 1]]',
        b'[["hello", 1, 30.0, "me"], ["acquire", 1, "x", "a", {}]]',
        b'[["hello", 1, 30.0, "me"], ["acquire", 1, "x", ["a"], {"hurry": true}]]',
        b'[["hello", 1, 30.0, "me"], ["release", "x", "y", "success"]]',
        b"[" * 100_000,
    ],
)
async def test_what_is_no_message_ends_the_connection(message: bytes) -> None:
    """With a reason; what waited on it is withdrawn."""
    async with hosted(limited()) as server, opening(server) as connection:
        await connection.send(message)
        async with asyncio.timeout(5):
            await connection.wait_closed()
        assert connection.close_code == 1008
        assert connection.close_reason


async def test_a_message_is_carried_out_in_its_order() -> None:
    """What is asked first has come before what follows, in the same message."""
    async with hosted(limited()) as server, opening(server) as connection:
        await say(connection, HELLO, ["acquire", 9, "first", ["a"], {}], ["release", "first", 0, "success"])
        await answers(connection, 2)  # from now on, that leases may live is in the store
        ask = [["acquire", number, f"k{number}", ["a"], {"timeout": 5}] for number in range(3)]
        await say(connection, *ask, ["release", "k0", 0, "success"], ["acquire", 3, "k3", ["a"], {}])
        said = await answers(connection, 5)
        assert [one[:2] for one in said] == [
            ["granted", 0],
            ["queued", 1],
            ["queued", 2],
            ["queued", 3],
            ["granted", 1],
        ]


async def test_a_connection_that_ends_waits_no_more_and_holds_on() -> None:
    """Its permit lives until the lease ends; its waits are gone, none of them granted on the way."""
    async with hosted(limited()) as server:
        async with opening(server) as connection:
            ask = [["acquire", number, f"k{number}", ["a"], {"timeout": 60}] for number in range(5)]
            await say(connection, HELLO, *ask)
            await answers(connection, 6)
            connection.transport.abort()
            await until(lambda: server.admission.waiting() == ())
        assert [one.id for one in server.admission.holders("a")] == ["k0"]


async def test_any_bytes_are_survived() -> None:
    """Messages that once were good: each is carried out or ends its connection, and the server goes on."""
    dice = Random(11)
    good = json.dumps(
        [
            HELLO,
            ["acquire", 1, "k", ["a"], {"timeout": 0, "owner": "o", "since": 5.0}],
            ["hold", "k", 5, ["a"], None, None, 1.0, True],
            ["lend", "k", 5],
            ["reclaim", 2, "k", 5, 0.1],
            ["touch", "k", 5],
            ["set_limit", 3, "b", {"capacity": 4}],
            ["release_owner", 4, "o"],
            ["view", 5, True, 0],
            ["withdraw", 1, "k"],
            ["release", "k", 0, "unused"],
            ["remove_limit", 6, "b"],
        ]
    ).encode()
    async with hosted(limited(3)) as server:
        for _ in range(200):
            body = bytearray(good)
            for _ in range(dice.randrange(4)):
                place = dice.randrange(len(body))
                body[place : place + dice.randrange(3)] = dice.randbytes(dice.randrange(3))
            async with opening(server) as connection:
                await connection.send(bytes(body))
                with suppress(ConnectionClosed):
                    async with asyncio.timeout(5):
                        await connection.recv()
            assert connection.close_code in (1000, 1008), bytes(body)
        server.admission.kernel.check()
        async with opening(server) as connection:
            await say(connection, HELLO)
            assert await answers(connection, 1) == [["hello", server.desk.epoch]]


async def test_a_connection_keeps_its_place_until_it_ends() -> None:
    """It counts as long as it lasts, also after it has become a WebSocket."""
    places = Places(1, None)
    async with hosted(limited(), places=places) as server:
        async with opening(server) as connection:
            await say(connection, HELLO)
            await answers(connection, 1)
            assert len(places) == 1
            with pytest.raises(InvalidStatus) as refused:
                async with opening(server):
                    raise AssertionError("there was no room")
            assert refused.value.response.status_code == 503
        await until(lambda: not places)
        async with opening(server):
            pass
