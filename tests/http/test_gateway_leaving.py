"""Clients that leave: at every point of a call the slot is free again at once, and the provider knows."""

from __future__ import annotations

import asyncio
import random

import pytest

from gateways import (
    EVENTS,
    LAST,
    OK,
    Exchange,
    Served,
    Upstream,
    answer,
    call,
    caller,
    chat,
    chunk,
    event,
    gateway,
    turns,
    turns_until,
    until,
    upstream,
)
from interlock.testing.provider import MockProvider, running

CHAT = "/gateway/p/v1/chat/completions"
TURNS = 20
"""So many turns of the loop, at most, pass between a client's leaving and its being felt."""


async def felt_by(exchange: Exchange, served: Served) -> None:
    """The provider sees the end, and the slot is free, within a few turns of the loop."""
    await turns_until(exchange.left.is_set, TURNS)
    await turns_until(lambda: served.used() == 0, TURNS)


async def test_leaving_the_queue_takes_nobody_elses_place() -> None:
    """The provider never hears of it; the next in line goes."""
    async with upstream() as provider, gateway(provider.url, limit=1) as served:
        async with caller(served.url) as busy, caller(served.url) as leaving, caller(served.url) as next_one:
            busy.ask()
            working = await provider.next()
            leaving.ask("POST", CHAT, [], chat("leaving"))
            await served.waits(1)
            next_one.ask("POST", CHAT, [], chat("next"))
            await served.waits(2)
            leaving.leave()
            await turns_until(lambda: served.waiting() == 1, TURNS)
            working.write(OK)
            exchange = await provider.next()
            assert b"next" in exchange.body
            exchange.write(OK)
            await next_one.answer()
        assert provider.seen == 2


async def test_leaving_before_the_first_byte() -> None:
    """The provider is at work on what nobody waits for any more."""
    async with (
        upstream() as provider,
        gateway(provider.url, limit=1) as served,
        caller(served.url) as client,
    ):
        client.ask()
        exchange = await provider.next()
        client.leave()
        await felt_by(exchange, served)


async def test_leaving_in_the_stream() -> None:
    """The provider stops to generate, and who waited starts no earlier than it knows."""
    async with (
        upstream() as provider,
        gateway(provider.url, limit=1) as served,
        caller(served.url) as client,
        caller(served.url) as waiting,
    ):
        client.ask("POST", CHAT, [], chat(stream=True))
        exchange = await provider.next()
        waiting.ask()
        await served.waits(1)
        exchange.write(EVENTS + event({"n": 1}))
        await client.head()
        await client.chunk()
        client.leave()
        await turns_until(exchange.left.is_set, TURNS)
        (await provider.next()).write(OK)
        assert (await waiting.answer()).status == 200


async def test_leaving_while_the_provider_sends_and_nobody_reads() -> None:
    """Both ways are full: what is left is thrown away, not waited for."""
    async with (
        upstream() as provider,
        gateway(provider.url, limit=1, send_buffer=4096) as served,
        caller(served.url, receive_buffer=4096) as client,
    ):
        client.ask()
        exchange = await provider.next()
        exchange.write(EVENTS)
        filled = exchange.writer.transport.get_write_buffer_size
        while not filled():
            exchange.write(chunk(b"x" * 500_000))
            await turns(1)
        client.leave()
        await until(exchange.left.is_set)
        await turns_until(lambda: served.used() == 0, TURNS)


async def test_leaving_in_the_upload_takes_no_slot() -> None:
    """Nothing is asked for before the request is there."""
    async with (
        upstream() as provider,
        gateway(provider.url, limit=1) as served,
        caller(served.url) as client,
    ):
        client.ask("POST", CHAT, [(b"content-length", b"100")], b"half")
        await turns_until(lambda: served.app.calls, TURNS)
        client.leave()
        await turns_until(lambda: not served.app.calls, TURNS)
        assert (served.used(), provider.seen) == (0, 0)


async def test_leaving_while_the_request_is_sent_on() -> None:
    """The provider has taken only the beginning of a large one."""
    async with upstream() as provider, gateway(provider.url, limit=1) as served, caller(served.url) as client:
        provider.takes_bodies.clear()
        client.ask("POST", CHAT, [], b"x" * 20_000_000)
        await until(lambda: provider.connections)
        client.leave()
        await until(lambda: served.used() == 0)
        provider.takes_bodies.set()
        await until(lambda: not provider.connections)
        assert provider.seen == 0


async def test_leaving_while_the_provider_is_paused() -> None:
    """Between two attempts the call holds no slot; leaving ends it there as well."""
    async with (
        upstream() as provider,
        gateway(provider.url, limit=2) as served,
        caller(served.url) as client,
    ):
        provider.will_answer(answer(429, b"{}", (b"retry-after", b"100")))
        client.ask()
        await provider.next()
        await served.waits(1)
        assert served.used() == 0
        client.leave()
        await turns_until(lambda: served.waiting() == 0, TURNS)
    assert provider.seen == 1


async def test_leaving_after_pings() -> None:
    """Keeping the line alive does not keep the call alive."""
    async with (
        upstream() as provider,
        gateway(provider.url, limit=1, ping_after=0.005) as served,
        caller(served.url) as busy,
        caller(served.url) as client,
    ):
        busy.ask()
        working = await provider.next()
        client.ask("POST", CHAT, [], chat(stream=True))
        await client.head()
        assert await client.chunk() == b": ping\n\n"
        client.leave()
        await turns_until(lambda: served.waiting() == 0, TURNS)
        working.write(OK)
        await busy.answer()
    assert provider.seen == 1


async def test_leaving_a_call_without_a_permit() -> None:
    """A download that nobody reads ends as well."""
    async with upstream() as provider, gateway(provider.url) as served, caller(served.url) as client:
        client.ask("GET", "/gateway/p/v1/files/1/content")
        exchange = await provider.next()
        exchange.write(EVENTS)
        await client.head()
        client.leave()
        await turns_until(exchange.left.is_set, TURNS)


async def test_leaving_after_the_end_harms_nothing() -> None:
    """Between the last chunk and the next request."""
    async with upstream() as provider, gateway(provider.url, limit=1) as served, caller(served.url) as client:
        client.ask()
        exchange = await provider.next()
        exchange.write(EVENTS + event({"n": 1}))
        await client.head()
        await client.chunk()
        exchange.write(LAST)
        client.leave()
        await until(lambda: served.used() == 0)
        provider.will_answer(OK)
        assert (await call(served.url)).status == 200


async def test_closing_only_the_sending_side_is_leaving() -> None:
    """Whoever wants the answer keeps the line open; half a connection looks the same as a dead client."""
    async with (
        upstream() as provider,
        gateway(provider.url, limit=1) as served,
        caller(served.url) as client,
    ):
        client.ask()
        exchange = await provider.next()
        client.writer.write_eof()
        await felt_by(exchange, served)


async def test_leaving_with_another_request_behind_it() -> None:
    """A client that pipelines leaves all its calls at once."""
    async with (
        upstream() as provider,
        gateway(provider.url, limit=1) as served,
        caller(served.url) as client,
    ):
        client.ask()
        client.ask()
        exchange = await provider.next()
        client.leave()
        try:
            await felt_by(exchange, served)
        finally:
            exchange.reset()


async def leaves_somewhere(served: Served, provider: Upstream, dice: random.Random) -> None:
    """One call whose client leaves at a random byte of request or answer."""
    request = chat(stream=dice.random() < 0.5, content="x" * dice.randrange(3000))
    async with caller(served.url) as client:
        if dice.random() < 0.3:
            client.ask("POST", CHAT, [(b"content-length", b"%d" % len(request))], request[:9])
            await turns(dice.randrange(9))
            return
        client.ask("POST", CHAT, [], request)
        if dice.random() < 0.3:
            await turns(1)
            return
        try:
            async with asyncio.timeout(dice.uniform(0, 0.02)):
                await client.reader.readexactly(dice.randrange(1, 4000))
        except (TimeoutError, asyncio.IncompleteReadError):
            pass


@pytest.mark.parametrize("seed", [1, 2, pytest.param(3, marks=pytest.mark.deep)])
async def test_clients_that_leave_anywhere_leak_nothing(seed: int) -> None:
    """Hundreds at once, over both dialects of leaving; afterwards everything is free and works."""
    dice = random.Random(seed)
    deep = seed == 3
    mock = MockProvider(limit=4, hard_cap=4, lag=0, latency=0.004, penalty=0, seed=seed)
    async with running(mock) as base, gateway(base, limit=4, cooldown=0.001) as served:
        async with asyncio.TaskGroup() as group:
            for _ in range(2000 if deep else 150):
                group.create_task(leaves_somewhere(served, Upstream(), dice))
        await until(lambda: not served.app.calls)
        await until(lambda: served.used() == 0)
        await until(lambda: mock.account.running == 0)
        assert served.waiting() == 0
        assert (await call(served.url, "POST", CHAT, [], chat())).status == 200
        await until(lambda: served.used() == 0)
        assert mock.account.stats.peak_running <= 4
