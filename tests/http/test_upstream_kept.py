"""Connections that are kept for the next call: when they are used again, and when they must not be."""

from __future__ import annotations

import asyncio
import socket

import pytest

from gateways import until
from interlock.http.gateway.upstream import HttpUpstream, UpstreamError
from upstreams import CHUNKED, OK, Script, failure, opened, provider, request_in, whole


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"], scope="module")
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Both loops: they differ in when a connection is told what."""
    return "asyncio", {"use_uvloop": request.param}


async def ask(upstream: HttpUpstream, url: str, method: str = "POST") -> bytes:
    return await whole(await upstream.send(method, url + "/", [], b""))


def none_left(upstream: HttpUpstream) -> bool:
    return repr(upstream) == "<HttpUpstream: 0 connections, 0 of them free>"


def none_used(upstream: HttpUpstream) -> bool:
    return none_left(upstream) or repr(upstream) == "<HttpUpstream: 1 connections, 1 of them free>"


class Answers:
    """A script that gives each connection its answers, in order, and counts the requests."""

    def __init__(self, *answers: bytes, stays: bool = True) -> None:
        self.answers = answers
        self.stays = stays
        self.left = asyncio.Event()
        self.requests: list[int] = []
        """How many came on each connection."""

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.requests.append(0)
        mine = len(self.requests) - 1
        try:
            for answer in self.answers:
                await request_in(reader)
                self.requests[mine] += 1
                writer.write(answer)
            if self.stays:
                await request_in(reader)
        finally:
            self.left.set()


async def test_calls_at_once_have_a_connection_each_and_later_ones_share_them() -> None:
    """The one that was used last goes first, so that those that are too many can expire."""
    script = Answers(OK, OK, OK)
    async with provider(script) as url, opened() as upstream:
        await asyncio.gather(*(ask(upstream, url) for _ in range(3)))
        assert repr(upstream) == "<HttpUpstream: 3 connections, 3 of them free>"
        for _ in range(2):
            await ask(upstream, url)
        assert sorted(script.requests) == [1, 1, 3]


async def test_a_connection_that_nobody_uses_closes_after_a_while() -> None:
    """Before the provider's own patience ends, if possible; the next call opens another."""
    script = Answers(OK, OK)
    async with provider(script) as url, opened(keep_alive=0.01) as upstream:
        await ask(upstream, url)
        await script.left.wait()
        await until(lambda: none_left(upstream))
        await ask(upstream, url)
        assert script.requests == [1, 1]


async def test_a_connection_that_is_used_does_not_expire() -> None:
    """Its time begins anew with each answer, and does not count while it is used."""
    answered = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_in(reader)
        writer.write(OK)
        await request_in(reader)
        await answered.wait()
        writer.write(OK)
        await reader.read()

    async with provider(script) as url, opened(keep_alive=0.02) as upstream:
        await ask(upstream, url)
        asking = asyncio.create_task(ask(upstream, url))
        loop = asyncio.get_running_loop()
        began = loop.time()
        await until(lambda: loop.time() > began + 0.05)
        answered.set()
        assert await asking == b"ok"


async def test_a_connection_that_the_provider_closed_is_not_used() -> None:
    """Also where it may not be sent again: the call does not even begin on it."""
    script = Answers(OK, stays=False)
    async with provider(script) as url, opened() as upstream:
        for _ in range(3):
            assert await ask(upstream, url) == b"ok"
            await until(lambda: none_left(upstream))
    assert script.requests == [1, 1, 1]


async def test_a_connection_that_was_closed_a_moment_ago_is_not_used() -> None:
    """Before the loop had a turn to notice."""

    def answer_once() -> socket.socket:
        connection, _ = listener.accept()
        connection.recv(1 << 16)
        connection.sendall(OK)
        return connection

    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        async with opened() as upstream:
            for _ in range(3):
                answering = asyncio.create_task(asyncio.to_thread(answer_once))
                assert await ask(upstream, url) == b"ok"
                (await answering).close()


@pytest.mark.parametrize(
    "said", [b"timeout=0", b"max=7, Timeout=0", b"timeout=0;max=7", b"timeout=9, timeout=0"]
)
async def test_a_provider_says_for_how_long_it_keeps_a_connection(said: bytes) -> None:
    """It is left alone well before that: a request that meets the closing is not sent again."""
    script = Answers(OK.replace(b"\r\n", b"\r\nKeep-Alive: " + said + b"\r\n", 1))
    async with provider(script) as url, opened() as upstream:
        await ask(upstream, url)
        await script.left.wait()
        await until(lambda: none_left(upstream))


@pytest.mark.parametrize("said", [b"", b"max=0", b"timeout=", b"timeout=-1", b"xtimeout=0", b"timeout=60"])
async def test_what_says_nothing_of_time_changes_nothing(said: bytes) -> None:
    """Nor does a provider that is more patient than we are."""
    script = Answers(OK.replace(b"\r\n", b"\r\nKeep-Alive: " + said + b"\r\n", 1), OK)
    async with provider(script) as url, opened() as upstream:
        for _ in range(2):
            await ask(upstream, url)
            await asyncio.sleep(0)
        assert script.requests == [2]


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"x",
        OK + OK,
        OK.replace(b"\r\n", b"\r\nconnection: close\r\n", 1),
        OK.replace(b"1.1", b"1.0"),
    ],
)
async def test_a_connection_whose_answer_spoilt_it_is_not_used(answer: bytes) -> None:
    """It said that it would close, or more than was asked, which the next call would take for its answer."""
    script = Answers(answer)
    async with provider(script) as url, opened() as upstream:
        for _ in range(2):
            assert await ask(upstream, url) == b"ok"
        await script.left.wait()
    assert script.requests == [1, 1]


async def test_what_comes_unasked_closes_a_kept_connection() -> None:
    """It must not become the answer to the next call."""
    unasked, left = asyncio.Event(), asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_in(reader)
        writer.write(OK)
        await unasked.wait()
        writer.write(b"HTTP/1.1 408 Too Late\r\ncontent-length: 0\r\n\r\n")
        await reader.read()
        left.set()

    async with provider(script) as url, opened() as upstream:
        await ask(upstream, url)
        unasked.set()
        await left.wait()
        await until(lambda: none_left(upstream))


async def closes_on_the_second(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """As a provider does whose patience ended while the request was on its way."""
    await request_in(reader)
    writer.write(OK)
    await request_in(reader)


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"])
async def test_what_may_happen_twice_is_sent_again_on_a_fresh_connection(method: str) -> None:
    """Where the kept one was closed without a byte of an answer."""
    async with provider(closes_on_the_second) as url, opened() as upstream:
        assert await ask(upstream, url) == b"ok"
        assert await ask(upstream, url, method) == (b"" if method == "HEAD" else b"ok")


async def test_a_post_is_never_sent_twice() -> None:
    """It may have been taken, and paid for; who sent it decides."""
    async with provider(closes_on_the_second) as url, opened() as upstream:
        assert await ask(upstream, url) == b"ok"
        assert (await failure(upstream, url)).kind == "reset"


async def refused(script: Script) -> tuple[UpstreamError, int]:
    """The error of a GET on a connection of its own or a kept one, and how many requests there were."""
    requests = 0

    async def counted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def counting() -> None:
            nonlocal requests
            await request_in(reader)
            requests += 1
            if requests == 1:
                writer.write(OK)
                await counting()

        await counting()
        await script(reader, writer)

    async with provider(counted) as url, opened() as upstream:
        await ask(upstream, url)
        with pytest.raises(UpstreamError) as caught:
            await ask(upstream, url, "GET")
    return caught.value, requests


async def test_nothing_is_sent_a_third_time() -> None:
    """A fresh connection that is closed says something."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pass

    error, requests = await refused(silent)
    assert (error.kind, requests) == ("reset", 3)


@pytest.mark.parametrize("said", [b"H", b"HTTP/1.1 100 Continue\r\n\r\n", CHUNKED])
async def test_what_was_answered_in_part_is_not_sent_again(said: bytes) -> None:
    """One byte is enough: the provider was at work."""

    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)

    error, requests = await refused(cut)
    assert (error.kind, requests) == ("reset", 2)


async def test_an_answer_before_the_whole_upload_is_passed_and_ends_it() -> None:
    """Such as 413: the rest is not sent, and the connection not kept."""
    left = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK.replace(b"200", b"413"))
        try:
            while await reader.read(1 << 20):
                pass
        except ConnectionError:
            pass
        left.set()

    async with provider(script) as url, opened() as upstream:
        response = await upstream.send("POST", url + "/", [], bytes(50_000_000))
        assert (response.status, await whole(response)) == (413, b"ok")
        assert response.ended
        await left.wait()
        await until(lambda: none_left(upstream))


async def test_an_upload_goes_on_behind_the_header_of_an_early_answer() -> None:
    """The provider has begun to answer, and still takes all of it."""
    taken: list[int] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(CHUNKED + b"3\r\none\r\n")
        size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        taken.append(len(await reader.readexactly(size)))
        writer.write(b"0\r\n\r\n")
        await reader.read()

    async with provider(script) as url, opened() as upstream:
        response = await upstream.send("POST", url + "/", [], bytes(5_000_000))
        assert await whole(response) == b"one"
        assert repr(upstream) == "<HttpUpstream: 1 connections, 1 of them free>"
    assert taken == [5_000_000]


async def test_closing_breaks_off_what_is_under_way() -> None:
    """Answers and connections alike, and at once."""
    left = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_in(reader)
        writer.write(CHUNKED)
        await reader.read()
        left.set()

    async with provider(script) as url, opened() as upstream:
        response = await upstream.send("POST", url + "/", [], b"")
        await upstream.aclose()
        with pytest.raises(UpstreamError, match="closed"):
            await whole(response)
        await left.wait()
        assert none_left(upstream)


async def test_calls_that_are_cancelled_anywhere_leave_no_connection() -> None:
    """At every turn of the loop from the first step on; one whose answer was whole by then is free."""
    async with provider(Answers(OK)) as url:
        for turns in range(1000):
            async with opened() as upstream:
                task = asyncio.create_task(ask(upstream, url))
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                await until(lambda: none_used(upstream))
            if not task.cancelled():
                assert task.result() == b"ok"
                return
        raise AssertionError("the call never came to its end")
