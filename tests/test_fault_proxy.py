"""Each fault of the proxy does what it says, and nothing else, to real connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from random import Random

import pytest

from fault_proxy import FAULTS, Proxy, proxy

SOON = 5.0
NOT_YET = 0.05
"""For so long nothing is allowed to come; where a fault leaks, something comes at once."""


class Far:
    """A server that repeats what it hears, and says how it was left."""

    def __init__(self) -> None:
        self.heard = b""
        self.ends: list[str] = []
        self.url = ""
        self.writers: list[asyncio.StreamWriter] = []

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        try:
            while data := await reader.read(65536):
                self.heard += data
                writer.write(data)
            self.ends.append("ended")
            writer.write(b"bye")
            await writer.drain()
        except ConnectionError:
            self.ends.append("reset")
        finally:
            writer.close()


class Near:
    """A client of it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def reads(self, count: int) -> bytes:
        async with asyncio.timeout(SOON):
            return await self.reader.readexactly(count)

    async def says(self, data: bytes) -> bytes:
        """What comes back."""
        self.writer.write(data)
        return await self.reads(len(data))

    async def hears_nothing(self) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(NOT_YET):
                raise AssertionError(f"heard {await self.reader.read(100)!r}")

    async def is_reset(self) -> bytes:
        """What came before it was."""
        came = b""
        try:
            async with asyncio.timeout(SOON):
                while data := await self.reader.read(1):
                    came += data
        except ConnectionResetError:
            return came
        raise AssertionError(f"it ended after {came!r}")


@asynccontextmanager
async def near(wire: Proxy) -> AsyncIterator[Near]:
    host, _, port = wire.url.rpartition("//")[2].partition(":")
    here = Near(*await asyncio.open_connection(host, int(port)))
    try:
        yield here
    finally:
        here.writer.close()
        with suppress(ConnectionError):
            await here.writer.wait_closed()


@asynccontextmanager
async def far() -> AsyncIterator[Far]:
    there = Far()
    server = await asyncio.start_server(there.connected, "127.0.0.1", 0)
    there.url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield there
    finally:
        server.close()
        for writer in there.writers:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


@asynccontextmanager
async def wired() -> AsyncIterator[tuple[Far, Proxy, Near]]:
    async with far() as there, proxy(there.url) as wire, near(wire) as here:
        assert await here.says(b"hello") == b"hello"
        yield there, wire, here


async def ends(there: Far, *how: str) -> None:
    async with asyncio.timeout(SOON):
        while there.ends != list(how):  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_without_a_fault_all_of_it_comes_through() -> None:
    """Also what is large, an end in one direction only, and the scheme of the URL."""
    async with wired() as (there, wire, here):
        assert wire.url.startswith("redis://127.0.0.1:")
        large = Random(1).randbytes(1_000_000)
        assert await here.says(large) == large
        here.writer.write_eof()
        assert await here.reads(3) == b"bye"
        assert there.heard == b"hello" + large
        assert wire.requests.carried == wire.answers.carried - 3 == len(there.heard)
        assert there.ends == ["ended"]


async def test_delayed_and_sliced() -> None:
    """Later by what was asked for, in order, and in pieces of one byte."""
    async with wired() as (there, wire, here):
        loop = asyncio.get_running_loop()
        wire.answers.delay = 0.03
        began = loop.time()
        assert await here.says(b"one") == b"one"
        assert loop.time() - began >= 0.03
        wire.heal()
        wire.answers.jitter = 0.01
        for n in range(20):
            here.writer.write(b"%02d" % n)
        assert await here.reads(40) == b"".join(b"%02d" % n for n in range(20))
        wire.heal()
        wire.answers.sliced = True
        here.writer.write(b"x" * 100)
        pieces = []
        async with asyncio.timeout(SOON):
            while sum(pieces) < 100:
                pieces.append(len(await here.reader.read(100)))
        assert len(pieces) > 20
        assert there.heard.endswith(b"x" * 100)


@pytest.mark.parametrize("requests", [True, False])
async def test_a_stalled_direction_holds_back(requests: bool) -> None:
    """Only that one, with the end of the connection; healed, it delivers everything."""
    async with wired() as (there, wire, here):
        (wire.requests if requests else wire.answers).stall()
        here.writer.write(b"late")
        await here.hears_nothing()
        assert there.heard == (b"hello" if requests else b"hellolate")
        here.writer.write_eof()
        await here.hears_nothing()
        assert there.ends == ([] if requests else ["ended"])
        wire.heal()
        assert await here.reads(7) == b"latebye"


async def test_a_reset_is_one_for_both_sides() -> None:
    """No end, an error; the next connection is served."""
    async with wired() as (there, wire, here):
        wire.reset()
        assert await here.is_reset() == b""
        await ends(there, "reset")
        async with near(wire) as other:
            assert await other.says(b"again") == b"again"


async def test_a_half_closed_direction_has_ended_for_its_receiver() -> None:
    """The other one goes on."""
    async with wired() as (there, wire, here):
        wire.half_close(wire.requests)
        assert await here.reads(3) == b"bye"
        await ends(there, "ended")
    async with wired() as (there, wire, here):
        wire.half_close(wire.answers)
        async with asyncio.timeout(SOON):
            assert await here.reader.read() == b""
        here.writer.write(b"still")
        async with asyncio.timeout(SOON):
            while there.heard != b"hellostill":  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        assert there.ends == []


@pytest.mark.parametrize("count", [0, 1, 5, 9])
async def test_it_is_cut_at_the_byte(count: int) -> None:
    """In either direction, once: exactly so many bytes come through before the reset."""
    async with wired() as (there, wire, here):
        wire.requests.cut_after(count)
        here.writer.write(b"0123456789")
        await here.is_reset()
        await ends(there, "reset")
        assert there.heard == b"hello" + b"0123456789"[:count]
        async with near(wire) as other:
            assert await other.says(b"x" * 20) == b"x" * 20
    async with wired() as (there, wire, here):
        wire.answers.cut_after(count)
        here.writer.write(b"0123456789")
        assert await here.is_reset() == b"0123456789"[:count]
        assert there.heard == b"hello0123456789"


async def test_refused_and_left_in_silence() -> None:
    """A new connection is reset, or there and never answered; what is connected stays so."""
    async with wired() as (there, wire, here):
        wire.refuse = True
        async with near(wire) as refused:
            assert await refused.is_reset() == b""
        wire.heal()
        wire.silence()
        async with near(wire) as late:
            late.writer.write(b"late")
            await late.hears_nothing()
            assert await here.says(b"still") == b"still"
            assert there.heard == b"hellostill"
            wire.heal()
            assert await late.reads(4) == b"late"
        assert wire.connections == 3


async def test_a_partition_and_its_end() -> None:
    """Nothing comes through, for old connections and new ones, and nobody is told; then all of it does."""
    async with wired() as (there, wire, here):
        wire.partition()
        async with near(wire) as late:
            here.writer.write(b"old")
            late.writer.write(b"new")
            await here.hears_nothing()
            await late.hears_nothing()
            assert there.heard == b"hello"
            wire.heal()
            assert await here.reads(3) == b"old"
            assert await late.reads(3) == b"new"


async def test_what_is_swallowed_is_gone() -> None:
    """And that it happened is known."""
    async with wired() as (there, wire, here):
        wire.answers.swallow = True
        here.writer.write(b"gone")
        async with asyncio.timeout(SOON):
            await wire.answers.swallowed.wait()
        assert not wire.requests.swallowed.is_set()
        wire.heal()
        assert await here.says(b"here") == b"here"
        assert there.heard == b"hellogonehere"


@pytest.mark.parametrize("fault", FAULTS)
async def test_healed_from_every_fault(fault: str) -> None:
    """Whatever has happened to the wire, a new connection works once it has been healed."""
    async with wired() as (_, wire, here):
        FAULTS[fault](wire, Random(1))
        here.writer.write(b"x" * 1000)
        with suppress(TimeoutError, ConnectionError, asyncio.IncompleteReadError):
            async with asyncio.timeout(NOT_YET):
                await here.reader.readexactly(1000)
        wire.heal()
        async with near(wire) as other:
            assert await other.says(b"again") == b"again"
