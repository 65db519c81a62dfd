"""A gateway in the running loop between a caller and a provider whose every byte the test decides.

`gateway` is the real application under uvicorn; `Upstream` a raw server that hands each request to the test
as an `Exchange`; `Caller` one connection of a client. All three wait for events, so no test has to sleep.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from uvicorn.server import ServerState

from interlock.admission.local import LocalAdmission
from interlock.config import ServerConfig
from interlock.http.app import create_app
from interlock.http.connections.places import Places
from interlock.http.connections.protocol import Patience
from interlock.http.connections.server import uvicorn_config
from interlock.http.endpoints import routes_of
from interlock.http.gateway.call import GatewayProvider
from interlock.http.gateway.proxy import Gateway
from interlock.http.gateway.upstream import HttpUpstream
from interlock.http.guard import Guard
from interlock.provider.gate import ProviderGate
from interlock.secret import Secret

PATIENCE = 5.0
"""Seconds after which something that should have happened has not."""

Header = tuple[bytes, bytes]

OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
EVENTS = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
LAST = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """*data* as one chunk of a body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(value: Any) -> bytes:
    """*value* as an event of a stream, in a chunk of its own."""
    return chunk(b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n")


def answer(status: int, body: bytes = b"{}", *headers: Header) -> bytes:
    """A whole answer as bytes."""
    fields = b"".join(b"%b: %b\r\n" % header for header in headers)
    return b"HTTP/1.1 %d Said\r\n%bcontent-length: %d\r\n\r\n%b" % (status, fields, len(body), body)


def chat(content: str = "hi", **more: Any) -> bytes:
    """The body of a chat completion request."""
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": content}], **more}).encode()


async def turns_until(condition: Callable[[], object], most: int) -> int:
    """How many turns of the loop it takes until *condition* holds; fails after *most*."""
    for turn in range(most):
        if condition():
            return turn
        await asyncio.sleep(0)
    raise AssertionError(f"still not so after {most} turns of the loop")


async def turns(count: int) -> None:
    """Let the loop turn *count* times."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition: Callable[[], object]) -> None:
    """Wait until *condition* holds, which something in this loop or in another process brings about."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - it may depend on time alone
            await asyncio.sleep(0.001)


# -- the provider --------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Exchange:
    """One request that has reached the provider."""

    head: bytes
    body: bytes
    writer: asyncio.StreamWriter
    left: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the gateway has closed or reset the connection."""

    @property
    def target(self) -> bytes:
        return self.head.split(b" ")[1]

    @property
    def headers(self) -> list[Header]:
        lines = self.head.split(b"\r\n")[1:-2]
        return [(name, value.strip()) for name, _, value in (line.partition(b":") for line in lines)]

    def header(self, name: bytes) -> bytes | None:
        return next((value for key, value in self.headers if key.lower() == name), None)

    def write(self, data: bytes) -> None:
        self.writer.write(data)

    def reset(self) -> None:
        """Drop the connection without another word."""
        self.writer.transport.abort()


class Upstream:
    """A provider: `await upstream.next()` is the next request, which the test answers as it likes."""

    def __init__(self) -> None:
        self.url = ""
        self._arrived: asyncio.Queue[Exchange] = asyncio.Queue()
        self._script: list[bytes] = []
        self.seen = 0
        self.connections = 0
        self.takes_bodies = asyncio.Event()
        """Cleared, it reads no further than to the body of a request."""
        self.takes_bodies.set()

    async def next(self) -> Exchange:
        async with asyncio.timeout(PATIENCE):
            return await self._arrived.get()

    def idle(self) -> bool:
        """No request waits to be looked at."""
        return self._arrived.empty()

    def will_answer(self, *answers: bytes) -> None:
        """Answer the next requests at once with these."""
        self._script.extend(answers)

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        exchange: Exchange | None = None
        self.connections += 1
        try:
            while head := await _head(reader):
                await self.takes_bodies.wait()
                exchange = Exchange(head, await _sized(reader, head), writer)
                self.seen += 1
                if self._script:
                    writer.write(self._script.pop(0))
                self._arrived.put_nowait(exchange)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the gateway left: that is what is looked for
        finally:
            self.connections -= 1
            if exchange is not None:
                exchange.left.set()
            writer.close()


@asynccontextmanager
async def upstream() -> AsyncIterator[Upstream]:
    """A raw provider on a free port."""
    provider = Upstream()
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with suppress(asyncio.CancelledError):  # only at the end of the test
            await provider.connected(reader, writer)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    provider.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield provider
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


# -- the gateway ---------------------------------------------------------------------------------------------


@dataclass
class Served:
    """A gateway that listens, and what stands behind it."""

    url: str
    gate: ProviderGate
    app: Gateway

    @property
    def admission(self) -> LocalAdmission:
        return self.gate.admission

    def used(self, provider: str = "p") -> int:
        return self.gate.reading(provider).used

    def waiting(self, provider: str = "p") -> int:
        return self.gate.reading(provider).waiting

    async def waits(self, count: int) -> None:
        """Return once *count* callers wait."""
        await until(lambda: self.waiting() == count)

    async def idle(self) -> None:
        """Return once no call is under way, nobody waits, and every slot is free."""
        await until(lambda: not self.app.calls)
        readings = self.admission.limits().values()
        assert [reading for reading in readings if reading.used or reading.waiting] == []


@asynccontextmanager
async def gateway(
    *providers: str | GatewayProvider,
    limit: int | None = None,
    cooldown: float = 0.0,
    first_byte: float = 30.0,
    idle: float = 30.0,
    send_buffer: int | None = None,
    token: str | None = None,
    cools: bool = False,
    **options: Any,
) -> AsyncIterator[Served]:
    """The whole application in front of *providers*: base URLs (the first is called ``p``) or all of it.

    Fails unless every slot is free again at the end, or *cools* longer than the test takes.
    """
    known = [
        one if isinstance(one, GatewayProvider) else GatewayProvider("pqrst"[place], one)
        for place, one in enumerate(providers)
    ]
    admission = LocalAdmission()
    for layer in ("streams", "global"):
        admission.configure(layer, None)
    async with AsyncExitStack() as stack:
        gate = await stack.enter_async_context(ProviderGate(admission=admission, default_cooldown=cooldown))
        for provider in known:
            if limit is not None:
                await gate.set_limit(provider.id, limit)
        client = HttpUpstream(first_byte=first_byte, idle=idle)
        stack.push_async_callback(client.aclose)
        byname = {provider.id: provider for provider in known}
        app = Gateway(gate, client, byname, also=("streams", "global"), **options)
        server = ServerConfig(token=None if token is None else Secret(token))
        whole = create_app(gate, app, server)
        url = await stack.enter_async_context(hosting(whole, send_buffer=send_buffer))
        served = Served(url, gate, app)
        yield served
        if not cools:
            await served.idle()


def open_to_all(*holders: Any) -> Guard:
    """The endpoints of *holders* on a server without tokens."""
    return Guard(Starlette(routes=routes_of(*holders)), hosts=())


@asynccontextmanager
async def hosting(
    app: Any,
    *,
    send_buffer: int | None = None,
    places: Places | None = None,
    patience: Patience | None = None,
    port: int = 0,
    state: ServerState | None = None,
) -> AsyncIterator[str]:
    """*app* on a free port, on the protocol of ``interlock serve``; its URL."""
    loop = asyncio.get_running_loop()
    config = uvicorn_config(app, places=places, patience=patience)
    config.load()
    state = state or ServerState()
    # Named, so that asyncio sets TCP_NODELAY on what is accepted, as it does for `interlock serve`.
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", port))
    listening.listen(2048)
    if send_buffer is not None:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    server = await loop.create_server(
        lambda: config.http_protocol_class(config=config, server_state=state, app_state={}),  # type: ignore[call-arg]
        sock=listening,
    )
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for connection in list(state.connections):
            if connection.transport is not None:
                connection.transport.abort()
        if state.tasks:
            await asyncio.wait(state.tasks)


# -- the client ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What came back, as it came; the body without its framing."""

    status: int
    headers: list[Header]
    body: bytes

    def header(self, name: bytes) -> bytes | None:
        return next((value for key, value in self.headers if key.lower() == name), None)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Caller:
    """One connection to the gateway."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._sizes: Header | None = None

    def ask(
        self,
        method: str = "POST",
        target: str | bytes = "/gateway/p/v1/chat/completions",
        headers: Sequence[Header] = (),
        body: bytes = b"",
    ) -> None:
        target = target.encode() if isinstance(target, str) else target
        fields = [(b"host", b"127.0.0.1"), *headers]
        framed = any(name in (b"transfer-encoding", b"content-length") for name, _ in fields)
        if (body or method == "POST") and not framed:
            fields.append((b"content-length", b"%d" % len(body)))
        head = b"".join(b"%b: %b\r\n" % one for one in fields)
        self.writer.write(b"%b %b HTTP/1.1\r\n%b\r\n%b" % (method.encode(), target, head, body))

    async def head(self) -> tuple[int, list[Header]]:
        """Status and header fields of the answer."""
        async with asyncio.timeout(PATIENCE):
            raw = await self.reader.readuntil(b"\r\n\r\n")
        first, *lines = raw.removesuffix(b"\r\n\r\n").split(b"\r\n")
        headers = [(name, value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
        framing = [one for one in headers if one[0] in (b"content-length", b"transfer-encoding")]
        self._sizes = framing[0] if framing else None
        return int(first.split(b" ")[1]), headers

    async def chunk(self) -> bytes:
        """The next chunk of a chunked body; empty at its end. IncompleteReadError where it is cut."""
        async with asyncio.timeout(PATIENCE):
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            return (await self.reader.readexactly(size + 2))[:-2]

    async def body(self) -> bytes:
        if self._sizes is None:
            return b""
        if self._sizes[0] == b"content-length":
            async with asyncio.timeout(PATIENCE):
                return await self.reader.readexactly(int(self._sizes[1]))
        pieces = []
        while piece := await self.chunk():
            pieces.append(piece)
        return b"".join(pieces)

    async def answer(self) -> Answer:
        status, headers = await self.head()
        return Answer(status, headers, await self.body())

    def leave(self) -> None:
        """Drop the connection."""
        self.writer.transport.abort()


@asynccontextmanager
async def caller(url: str, *, receive_buffer: int | None = None) -> AsyncIterator[Caller]:
    """A connection to *url*; one with a *receive_buffer* takes little more than that before it is read."""
    host, _, port = url.removeprefix("http://").partition(":")
    connection = socket.socket()
    connection.setblocking(False)
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    await asyncio.get_running_loop().sock_connect(connection, (host, int(port)))
    reader, writer = await asyncio.open_connection(sock=connection)
    if receive_buffer is not None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
    try:
        yield Caller(reader, writer)
    finally:
        writer.transport.abort()


async def call(
    url: str,
    method: str = "POST",
    target: str | bytes = "/gateway/p/v1/chat/completions",
    headers: Sequence[Header] = (),
    body: bytes = b"",
) -> Answer:
    """One call on a connection of its own."""
    async with caller(url) as one:
        one.ask(method, target, headers, body)
        if method != "HEAD":
            return await one.answer()
        return Answer(*await one.head(), b"")


# -- reading -------------------------------------------------------------------------------------------------


async def _head(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as cut:
        if cut.partial:
            raise
        return b""


async def _sized(reader: asyncio.StreamReader, head: bytes) -> bytes:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return await reader.readexactly(int(line.partition(b":")[2]))
    return b""
