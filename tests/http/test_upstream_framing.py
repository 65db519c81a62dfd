"""Where an answer ends, whatever the bytes: the connection fed by hand, without a network between."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

import pytest

from interlock.http.gateway.answer import Answer, UpstreamError
from interlock.http.gateway.connection import Connection, Times
from upstreams import CHUNKED, OK, opened, provider, request_in, whole

LENGTH = b"HTTP/1.1 200 OK\r\nx-empty:\r\ncontent-length: 5\r\n\r\nhello"
TRAILED = CHUNKED + b"3;ext=1\r\none\r\n4 \r\ntwo!\r\n0\r\nx-sum: 12\r\nx-more: y\r\n\r\n"
BARE = b"HTTP/1.1 200 OK\r\ncontent-type: a/b\r\n\r\n"
INFORMED = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"


class Wire(asyncio.Transport):
    """A transport that leads nowhere and takes everything."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.paused = False
        self.aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.aborted


@dataclass
class Fed:
    """A call whose answer is fed by hand."""

    connection: Connection
    wire: Wire
    answer: Answer
    freed: list[Connection]

    def feed(self, *pieces: bytes) -> Fed:
        for piece in pieces:
            if not self.wire.aborted:
                self.connection.data_received(piece)
        return self

    def end(self) -> Fed:
        if not self.wire.aborted:
            self.connection.eof_received()
        self.connection.connection_lost(None)
        return self

    async def outcome(self) -> tuple[int, bytes, str]:
        """The status, the body as far as it came, and how it ended: the kind of the error or "whole"."""
        body = b""
        try:
            await self.answer.head()
            async for chunk in self.answer.chunks():
                body += chunk
        except UpstreamError as error:
            return self.answer.status, body, error.kind
        assert self.answer.ended
        return self.answer.status, body, "whole"


def fed(*pieces: bytes, method: str = "POST") -> Fed:
    freed: list[Connection] = []
    connection = Connection("host:1", keep_alive=60, freed=freed.append, lost=lambda _: None)
    wire = Wire()
    connection.connection_made(wire)
    now = asyncio.get_running_loop().time()
    answer = connection.ask(method, b"", b"", Times(60, 60, 600), now)
    return Fed(connection, wire, answer, freed).feed(*pieces)


@pytest.mark.parametrize(
    ("said", "body"),
    [
        (LENGTH, b"hello"),
        (TRAILED, b"onetwo!"),
        (INFORMED + LENGTH, b"hello"),
        (LENGTH.replace(b"\r\n", b"\n"), b"hello"),
        (b"HTTP/1.1 204 None\r\n\r\n", b""),
        (b"HTTP/1.1 304 Same\r\ncontent-length: 5\r\n\r\n", b""),
        (OK.replace(b"2\r\n\r\nok", b"0\r\n\r\n"), b""),
    ],
)
async def test_an_answer_is_the_same_however_it_is_cut(said: bytes, body: bytes) -> None:
    """In one piece, in two at every place, byte by byte. It ends where it ends, and nowhere before."""
    ways = [[said[:place], said[place:]] for place in range(1, len(said))]
    for pieces in [[said], *ways, [said[place : place + 1] for place in range(len(said))]]:
        call = fed(*pieces)
        assert not call.wire.aborted
        assert call.freed == [call.connection]
        status, got, how = await call.outcome()
        assert (status, got, how) == (call.answer.status, body, "whole")
        assert not any(name in (b"x-sum", b"x-more", b"link") for name, _ in call.answer.headers)
        call.end()


@pytest.mark.parametrize("said", [LENGTH, TRAILED, INFORMED + LENGTH])
async def test_an_answer_that_is_cut_off_anywhere_is_not_whole(said: bytes) -> None:
    """The provider closes after each byte of it."""
    sound = (await fed(said).end().outcome())[1]
    for place in range(len(said)):
        _, body, how = await fed(said[:place]).end().outcome()
        assert how == "reset"
        assert sound.startswith(body)


async def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    """Only where the end was said: a reset may have lost some of it."""
    assert await fed(BARE, b"a", b"b").end().outcome() == (200, b"ab", "whole")
    assert await fed(BARE).end().outcome() == (200, b"", "whole")
    reset = fed(BARE, b"ab")
    reset.connection.connection_lost(ConnectionResetError())
    assert await reset.outcome() == (200, b"ab", "reset")


@pytest.mark.parametrize(
    "said",
    [LENGTH.removesuffix(b"hello"), CHUNKED, BARE, b"HTTP/1.1 404 No\r\ncontent-length: 9\r\n\r\n", LENGTH],
)
async def test_an_answer_to_head_has_no_body(said: bytes) -> None:
    """Whatever its header says of one, and even if one comes."""
    call = fed(said, method="HEAD")
    assert (await call.outcome())[1:] == (b"", "whole")
    assert call.wire.aborted
    call.end()


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\na: b\r\n folded\r\n\r\n",
        b"HTTP/1.1 200 OK\r\na: b\x00c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\na : b\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/3.0 200 OK\r\n\r\n",
        CHUNKED + b"fffffffffffffffff\r\n",
        CHUNKED + b"3\r\nonetwo",
        b"HTTP/1.1 101 Switching\r\n\r\n",
        INFORMED * 2000,
        b"HTTP/1.1 200 " + b"y" * 70_000,
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 258,
        CHUNKED + b"1;" + b"y" * 70_000,
        CHUNKED + b"1\r\na\r\n0\r\n" + b"x: y\r\n" * 20_000,
        CHUNKED + b"1\r\na\r\n0\r\nx: " + b"y" * 70_000,
    ],
)
async def test_what_is_no_proper_answer_is_refused_while_it_comes(said: bytes) -> None:
    """At once and not at its end, which may never come; and nothing of it is kept for longer."""
    call = fed(*(said[place : place + 1000] for place in range(0, len(said), 1000)))
    assert call.wire.aborted
    assert (await call.outcome())[2] == "protocol"
    call.end()


async def test_what_came_before_garbage_is_read_first() -> None:
    """The caller has as much of a stream as there was."""
    assert await fed(CHUNKED + b"3\r\none\r\nzz\r\n").outcome() == (200, b"one", "protocol")


async def test_a_reader_that_is_slow_stops_the_provider() -> None:
    """Once a quarter of a megabyte waits for it, and until it has read that."""
    call = fed(CHUNKED)
    piece = b"10000\r\n" + bytes(65536) + b"\r\n"
    for _ in range(4):
        call.feed(piece)
        assert not call.wire.paused
    call.feed(piece)
    assert call.wire.paused
    chunks = call.answer.chunks()
    assert len(await anext(chunks)) == 5 * 65536
    assert not call.wire.paused
    assert not call.answer.ended
    call.feed(b"0\r\n\r\n")
    assert [chunk async for chunk in chunks] == []
    assert call.answer.ended
    call.end()


async def test_a_reader_that_is_slow_is_not_the_providers_fault() -> None:
    """The wait for the next piece begins when it is read on."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_in(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 20000000\r\n\r\n" + bytes(20_000_000))
        await reader.read()

    async with provider(script) as url, opened(idle=0.05) as upstream:
        response = await upstream.send("POST", url + "/", [], b"")
        loop = asyncio.get_running_loop()
        began = loop.time()
        while loop.time() < began + 0.2:  # noqa: ASYNC110 - time alone has to pass
            await asyncio.sleep(0.01)
        assert len(await whole(response)) == 20_000_000


async def test_ended_means_whole_and_read() -> None:
    """And the end is told of when it is here, read or not, or has been here before."""
    told: list[str] = []
    call = fed(CHUNKED + b"3\r\none\r\n")
    call.answer.when_ended(lambda: told.append("awaited"))
    chunks = call.answer.chunks()
    assert await anext(chunks) == b"one"
    assert (told, call.answer.ended) == ([], False)
    call.feed(b"3\r\ntwo\r\n0\r\n\r\n")
    assert (told, call.answer.ended) == (["awaited"], False)
    call.answer.when_ended(lambda: told.append("at once"))
    assert told == ["awaited", "at once"]
    assert await anext(chunks) == b"two"
    assert call.answer.ended
    broken = fed(CHUNKED).end()
    broken.answer.when_ended(lambda: told.append("never"))
    assert told == ["awaited", "at once"]
    call.end()


GOOD = [LENGTH, TRAILED, INFORMED + LENGTH, BARE + b"until the end", OK, b"HTTP/1.1 204 None\r\n\r\n"]
ODD = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b":",
    b"0\r\n\r\n",
    b"chunked",
    b"HTTP/1.1 ",
    b"\xff",
    b" ",
    b"-1",
    b"101",
]


def spoilt(said: bytes, dice: random.Random) -> bytes:
    """*said* with a few bytes changed, lost, doubled or put in."""
    data = bytearray(said)
    for _ in range(dice.choice((0, 1, 1, 2, 5))):
        place = dice.randrange(len(data) + 1)
        match dice.randrange(5):
            case 0:
                data[place : place + 1] = bytes([dice.randrange(256)])
            case 1:
                del data[place : place + dice.randrange(1, 9)]
            case 2:
                data[place:place] = data[dice.randrange(len(data) + 1) :][: dice.randrange(40)]
            case 3:
                data[place:place] = dice.choice(ODD)
            case _:
                data[place:place] = dice.randbytes(dice.randrange(9))
    return bytes(data)


@pytest.mark.parametrize("count", [3000, pytest.param(300_000, marks=pytest.mark.deep)])
async def test_any_bytes_are_an_answer_or_an_error(count: int) -> None:
    """Nothing else is raised, nobody is left waiting, and the pieces in which they come change nothing."""
    seed = random.randrange(1 << 32)
    print("seed", seed)
    dice = random.Random(seed)
    for _ in range(count):
        said = spoilt(dice.choice(GOOD), dice)
        method = dice.choice(("POST", "POST", "HEAD"))
        places = sorted(dice.randrange(len(said) + 1) for _ in range(dice.randrange(6)))
        pieces = [said[a:b] for a, b in zip([0, *places], [*places, len(said)], strict=True) if a < b]
        once = await fed(*[said] if said else [], method=method).end().outcome()
        cut = fed(*pieces, method=method).end()
        assert cut.wire.aborted
        assert await cut.outcome() == once, (said, pieces)
