"""A wire that fails on cue: a TCP proxy that can delay, slice, hold back, swallow, end, reset and cut.

    async with proxy(server.url) as wire:
        ...  # wire.url instead of server.url
        wire.partition()
        ...
        wire.heal()

The flags are looked at for every piece that arrives. What was held back is delivered when the wire heals, as
a network does once the packets get through again; what was swallowed is gone, which no network does in the
middle of a connection: break it afterwards.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from random import Random
from urllib.parse import urlsplit

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Way:
    """One direction of the wire, for all of its connections."""

    def __init__(self, dice: Random) -> None:
        self._dice = dice
        self.going = asyncio.Event()
        """Cleared by `stall`: nothing comes through, not even an end, until it is set again."""
        self.swallowed = asyncio.Event()
        """Set once something was swallowed."""
        self.carried = 0
        """Bytes delivered so far."""
        self.clear()

    def clear(self) -> None:
        """Let everything through again, what was held back first."""
        self.delay = self.jitter = 0.0
        """Seconds before a piece is delivered, and at most so many more."""
        self.sliced = False
        """Whether it is delivered in pieces of one byte."""
        self.swallow = False
        self.left: int | None = None
        """Bytes that still come through before the connection that wants more is reset."""
        self.going.set()

    def stall(self) -> None:
        """Hold everything back."""
        self.going.clear()

    def cut_after(self, count: int) -> None:
        """Let *count* more bytes through; the connection on which the next one comes is reset, once."""
        self.left = count

    def due(self, data: bytes) -> tuple[bytes, bool]:
        """What of *data* comes through, and whether the connection ends after it."""
        if self.left is None:
            return data, False
        passes, cut = data[: self.left], len(data) > self.left
        self.left = None if cut else self.left - len(data)
        return passes, cut

    async def carry(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        if self.delay or self.jitter:
            await asyncio.sleep(self.delay + self._dice.uniform(0, self.jitter))
        await self.going.wait()
        for piece in (data[n : n + 1] for n in range(len(data))) if self.sliced else (data,):
            writer.write(piece)
            await writer.drain()
            self.carried += len(piece)
            await asyncio.sleep(0)


class _Connection:
    """A client's connection and the one to the target that belongs to it."""

    def __init__(self, wire: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.wire = wire
        self.near = (reader, writer)
        self.far: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.ended: set[asyncio.StreamWriter] = set()

    async def run(self) -> None:
        try:
            if self.wire.refuse:
                return
            await self.wire.accepting.wait()
            target = urlsplit(self.wire.target)
            self.far = await asyncio.open_connection(target.hostname, target.port)
            await self._pump_both(self.far)
        except OSError:
            pass
        finally:
            self.reset()

    async def _pump_both(self, far: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
        pumps = (
            asyncio.ensure_future(self._pump(self.wire.requests, self.near[0], far[1])),
            asyncio.ensure_future(self._pump(self.wire.answers, far[0], self.near[1])),
        )
        try:
            # An end in one direction leaves the other open, an error does not.
            await asyncio.wait(pumps, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(self, way: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if way.swallow or writer in self.ended:
                way.swallowed.set()
                continue
            passes, cut = way.due(data)
            if passes:
                await way.carry(passes, writer)
            if cut:
                raise ConnectionResetError("cut")
        await way.going.wait()
        self.end(writer)

    def end(self, writer: asyncio.StreamWriter) -> None:
        """Say that nothing more comes on *writer*."""
        self.ended.add(writer)
        with suppress(OSError):  # it may be broken already
            writer.write_eof()

    def reset(self) -> None:
        """Break both sides; what they have not read yet may be lost to them."""
        for end in filter(None, (self.near, self.far)):
            transport = end[1].transport
            with suppress(OSError):
                transport.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE
                )
            transport.abort()


class Proxy:
    """Forwards to *target*, a URL of any scheme; what is random about its faults comes from *dice*."""

    def __init__(self, target: str, dice: Random | None = None) -> None:
        self.target = target
        self.url = ""
        dice = dice or Random(0)
        self.requests = Way(dice)
        """From the clients to the target."""
        self.answers = Way(dice)
        """From the target to the clients."""
        self.refuse = False
        """Whether a new connection is reset as soon as it is there."""
        self.accepting = asyncio.Event()
        """Cleared by `silence`: a new connection is there, but nobody serves it until this is set."""
        self.accepting.set()
        self.connections = 0
        self._live: set[_Connection] = set()

    def heal(self) -> None:
        """End every fault; what was held back is delivered, who was left waiting is served."""
        self.requests.clear()
        self.answers.clear()
        self.refuse = False
        self.accepting.set()

    def silence(self) -> None:
        """Take new connections, and leave them without an answer."""
        self.accepting.clear()

    def partition(self) -> None:
        """Nothing comes through in either direction, and nobody is told."""
        self.silence()
        self.requests.stall()
        self.answers.stall()

    def reset(self) -> None:
        """Break all connections."""
        for connection in tuple(self._live):
            connection.reset()

    def half_close(self, way: Way) -> None:
        """Tell the receivers of *way* that nothing more comes, while the other direction goes on."""
        for connection in tuple(self._live):
            if connection.far is not None:
                connection.end(connection.far[1] if way is self.requests else connection.near[1])

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        connection = _Connection(self, reader, writer)
        self._live.add(connection)
        try:
            await connection.run()
        finally:
            self._live.discard(connection)


FAULTS: dict[str, Callable[[Proxy, Random], None]] = {
    "partition": lambda wire, _: wire.partition(),
    "requests stalled": lambda wire, _: wire.requests.stall(),
    "answers stalled": lambda wire, _: wire.answers.stall(),
    "reset": lambda wire, _: wire.reset(),
    "refused": lambda wire, _: _refuse(wire),
    "silence": lambda wire, _: _silence(wire),
    "requests ended": lambda wire, _: wire.half_close(wire.requests),
    "answers ended": lambda wire, _: wire.half_close(wire.answers),
    "requests cut": lambda wire, dice: wire.requests.cut_after(dice.randrange(400)),
    "answers cut": lambda wire, dice: wire.answers.cut_after(dice.randrange(400)),
    "slow": lambda wire, dice: _slow(wire, dice),
    "sliced": lambda wire, _: _slice(wire),
}
"""What can happen to a wire, each until `Proxy.heal`."""


def _refuse(wire: Proxy) -> None:
    wire.refuse = True
    wire.reset()


def _silence(wire: Proxy) -> None:
    wire.silence()
    wire.reset()


def _slow(wire: Proxy, dice: Random) -> None:
    for way in (wire.requests, wire.answers):
        way.delay, way.jitter = dice.uniform(0, 0.05), dice.uniform(0, 0.1)


def _slice(wire: Proxy) -> None:
    wire.requests.sliced = wire.answers.sliced = True


@asynccontextmanager
async def proxy(target: str, dice: Random | None = None, host: str = "127.0.0.1") -> AsyncIterator[Proxy]:
    """A `Proxy` in front of *target*, on a free port of *host*."""
    wire = Proxy(target, dice)
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        with suppress(asyncio.CancelledError):  # only at the end of the test
            await wire.connected(reader, writer)

    server = await asyncio.start_server(connected, host, 0)
    wire.url = f"{urlsplit(target).scheme}://{host}:{server.sockets[0].getsockname()[1]}"
    try:
        yield wire
    finally:
        server.close()
        wire.reset()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
