"""The call to the provider, against servers that are as odd as they like."""

from __future__ import annotations

import asyncio
import gzip
from pathlib import Path

import pytest

from interlock.http.gateway.upstream import HttpUpstream, UpstreamError, UpstreamResponse
from upstreams import (
    CHUNKED,
    KEY,
    OK,
    QUERY,
    SECRET,
    answering,
    failure,
    opened,
    provider,
    request_in,
    serving_tls,
    whole,
)


async def test_the_request_goes_out_as_it_is() -> None:
    """Only ``Host`` and ``Content-Length`` are added; path, order and duplicates stay."""
    seen: list[tuple[bytes, bytes]] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await request_in(reader))
        writer.write(OK)

    fields = [("x-B", "1"), ("Authorization", "Bearer k"), ("x-a", "é"), ("X-b", "2")]
    async with provider(script) as url, opened() as upstream:
        target = url + "/v1/a%7Eb~c%20d:e?q=%2F+%41"
        response = await upstream.send("POST", target, fields, b'{"a": 1}')
        assert (response.status, await whole(response)) == (200, b"ok")
    ((head, body),) = seen
    assert body == b'{"a": 1}'
    lines = head.decode().removesuffix("\r\n\r\n").split("\r\n")
    assert lines.pop(0) == "POST /v1/a%7Eb~c%20d:e?q=%2F+%41 HTTP/1.1"
    assert lines.pop(0) == f"Host: {url.removeprefix('http://')}"
    assert lines.pop() == "Content-Length: 8"
    assert lines == [f"{name}: {value}" for name, value in fields]


@pytest.mark.parametrize("size", [0, 1, 1024 * 1024, 1024 * 1024 + 1, 5_000_000])
async def test_a_body_of_any_size_arrives(size: int) -> None:
    """Also one that is written in pieces."""
    arrived: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived.append((await request_in(reader))[1])
        writer.write(OK)

    async with provider(script) as url, opened() as upstream:
        body = bytes(range(256)) * (size // 256 + 1)
        await whole(await upstream.send("POST", url + "/", [], body[:size]))
    assert arrived == [body[:size]]


async def test_the_answer_comes_back_as_it_is() -> None:
    """Header fields raw and in order, the body undecoded."""
    packed = gzip.compress(b"hello " * 100)
    fields = [
        (b"Content-Encoding", b"gzip"),
        (b"X-Twice", b"1"),
        (b"x-twice", b"2"),
        (b"content-length", b"%d" % len(packed)),
        (b"X-Utf8", "é".encode()),
    ]
    answer = b"HTTP/1.1 429 Too Many\r\n" + b"".join(b"%s: %s\r\n" % field for field in fields)
    async with provider(answering(answer + b"\r\n" + packed)) as url, opened() as upstream:
        response = await upstream.send("POST", url + "/", [], b"")
        assert response.status == 429
        assert response.headers == fields
        assert await whole(response) == packed


async def test_each_chunk_comes_as_soon_as_it_is_there() -> None:
    """The server sends the second only after the first has been read."""
    read = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_in(reader)
        writer.write(CHUNKED + b"3\r\none\r\n")
        await read.wait()
        writer.write(b"3\r\ntwo\r\n0\r\n\r\n")
        await reader.read()

    async with provider(script) as url, opened() as upstream:
        response = await upstream.send("POST", url + "/", [], b"")
        chunks = response.chunks()
        assert await anext(chunks) == b"one"
        read.set()
        assert [chunk async for chunk in chunks] == [b"two"]


async def test_a_connection_is_used_again_once_its_answer_was_read() -> None:
    """Closing after the end is no error and costs no connection; cookies are not kept."""
    heads: list[bytes] = []
    connections = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        for _ in range(3):
            heads.append((await request_in(reader))[0])
            writer.write(OK.replace(b"\r\n", b"\r\nset-cookie: c=1; path=/\r\n", 1))

    async with provider(script) as url, opened() as upstream:
        for _ in range(3):
            response = await upstream.send("POST", url + "/", [], b"")
            assert await whole(response) == b"ok"
            response.close()
            response.close()
    assert connections == 1
    assert not any(b"cookie" in head.lower() for head in heads)


async def test_a_close_in_the_stream_is_felt_by_the_provider_at_once() -> None:
    """It stops to generate what nobody reads."""
    left = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_in(reader)
        writer.write(CHUNKED + b"3\r\none\r\n")
        assert await reader.read() == b""
        left.set()

    async with provider(script) as url, opened() as upstream:
        response = await upstream.send("POST", url + "/", [], b"")
        chunks = response.chunks()
        assert await anext(chunks) == b"one"
        response.close()
        await left.wait()
        with pytest.raises(UpstreamError, match="closed"):
            await anext(chunks)
        response.close()


async def test_a_close_is_felt_while_the_provider_does_not_take_the_upload() -> None:
    """Nothing of what is left to send is waited for."""
    left = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(CHUNKED)
        try:
            while True:
                writer.write(b"3\r\none\r\n" * 10_000)
                await writer.drain()
        except ConnectionError:
            left.set()

    async with provider(script) as url, opened() as upstream:
        response = await upstream.send("POST", url + "/", [], bytes(50_000_000))
        transport = response._source._transport  # type: ignore[attr-defined]
        while not transport.get_write_buffer_size():  # noqa: ASYNC110 - nothing tells that it is full
            await asyncio.sleep(0)
        response.close()
        await left.wait()


async def test_a_reader_that_is_cancelled_can_close() -> None:
    """The usual end of a call: the caller leaves while the next chunk is awaited."""
    left, reading = asyncio.Event(), asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_in(reader)
        writer.write(CHUNKED + b"3\r\none\r\n")
        assert await reader.read() == b""
        left.set()

    async def relay(response: UpstreamResponse) -> None:
        try:
            async for _ in response.chunks():
                reading.set()
        finally:
            response.close()

    async with provider(script) as url, opened() as upstream:
        task = asyncio.create_task(relay(await upstream.send("POST", url + "/", [], b"")))
        await reading.wait()
        task.cancel()
        await left.wait()
        assert isinstance((await asyncio.gather(task, return_exceptions=True))[0], BaseException)


@pytest.mark.parametrize("size", [2, 50_000_000])
async def test_a_call_that_is_cancelled_before_the_answer_leaves_no_connection(size: int) -> None:
    """Neither while waiting nor in the middle of an upload that the provider does not take."""
    arrived, left = asyncio.Event(), asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        arrived.set()
        if size == 2:
            assert await reader.read() == b"ok"
        else:
            await cancelled.wait()
            while await reader.read(1 << 20):
                pass
        left.set()

    cancelled = asyncio.Event()
    async with provider(script) as url, opened() as upstream:
        body = b"ok" * (size // 2)
        task = asyncio.create_task(upstream.send("POST", url + "/", [], body))
        await arrived.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        cancelled.set()
        assert task.cancelled()
        await left.wait()


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
async def test_a_redirect_is_refused(status: int) -> None:
    """Whatever it leads to, the key must not go there; nor is the place shown."""
    answer = f"HTTP/1.1 {status} Go\r\nlocation: http://169.254.169.254/{SECRET}\r\n\r\n".encode()
    async with provider(answering(answer)) as url, opened() as upstream:
        error = await failure(upstream, url)
    assert (error.kind, error.status) == ("redirect", 502)
    assert "base_url" in error.message


@pytest.mark.parametrize("status", [204, 304])
async def test_an_answer_without_a_body_is_one(status: int) -> None:
    """Not modified is no redirect."""
    answer = f"HTTP/1.1 {status} Nothing\r\n\r\n".encode()
    async with provider(answering(answer)) as url, opened() as upstream:
        response = await upstream.send("GET", url + "/", [], None)
        assert (response.status, await whole(response)) == (status, b"")


FIELD = b"x-%d: " + b"y" * 1000 + b"\r\n"


@pytest.mark.parametrize(
    "fields",
    [
        b"x: " + b"y" * 70_000 + b"\r\n",
        b"".join(FIELD % n for n in range(70)),
        b"".join(b"x-%d: y\r\n" % n for n in range(1000)),
        b"x-y\r\n",
        b"content-length: 1\r\ncontent-length: 2\r\n",
    ],
)
async def test_a_header_that_is_too_large_or_wrong_is_refused(fields: bytes) -> None:
    """64 KiB in all, and proper HTTP."""
    answer = b"HTTP/1.1 200 OK\r\n" + fields + b"\r\nok"
    async with provider(answering(answer)) as url, opened() as upstream:
        assert (await failure(upstream, url)).kind == "protocol"


async def test_a_header_of_60_kib_passes() -> None:
    """Some providers say much."""
    fields = b"".join(FIELD % n for n in range(59))
    answer = OK.replace(b"\r\n", b"\r\n" + fields, 1)
    async with provider(answering(answer)) as url, opened() as upstream:
        assert await whole(await upstream.send("POST", url + "/", [], b"")) == b"ok"


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"", "reset"),
        (b"HTTP/1.1 200 OK\r\ncontent-le", "reset"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok", "reset"),
        (CHUNKED + b"3\r\none\r\n", "reset"),
        (CHUNKED + f"zz;{SECRET}\r\n".encode(), "protocol"),
        (b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", "protocol"),
        (f"SSH-2.0-{SECRET}\r\n\r\n".encode(), "protocol"),
        (f"HTTP/1.1 200 OK\r\n{SECRET}\r\n\r\n".encode(), "protocol"),
    ],
)
async def test_an_answer_that_is_cut_or_garbled_is_an_error(answer: bytes, kind: str) -> None:
    """Half an answer is never taken for a whole one; what came is not quoted."""
    async with provider(answering(answer)) as url, opened() as upstream:
        error = await failure(upstream, url)
    assert (error.kind, error.status) == (kind, 502)


async def test_a_provider_that_does_not_listen_is_an_error() -> None:
    """``connect``: nothing was sent, so another attempt does no harm."""
    async with provider(answering(OK)) as url:
        pass
    async with opened() as upstream:
        error = await failure(upstream, url)
    assert (error.kind, error.status) == ("connect", 502)


@pytest.mark.parametrize("own", [False, True])
async def test_the_wait_for_the_first_byte_is_bounded(own: bool) -> None:
    """By the usual time or that of the call; the provider sees the connection close."""
    left = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        left.set()

    async with provider(script) as url, opened(first_byte=60 if own else 0.2) as upstream:
        error = await failure(upstream, url, **({"timeout": 0.2} if own else {}))
        await left.wait()
    assert (error.kind, error.status) == ("timeout", 504)


@pytest.mark.parametrize("times", [{"idle": 0.2}, {"total": 1.0}])
async def test_the_wait_within_the_body_is_bounded(times: dict[str, float]) -> None:
    """Between two pieces, and over all of them; the provider sees the connection close."""
    read, left = asyncio.Event(), asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_in(reader)
        writer.write(CHUNKED)
        await read.wait()
        writer.write(b"3\r\none\r\n")
        assert await reader.read() == b""
        left.set()

    async with provider(script) as url, opened(**times) as upstream:
        response = await upstream.send("POST", url + QUERY, KEY, b"")
        read.set()
        chunks = response.chunks()
        assert await anext(chunks) == b"one"
        with pytest.raises(UpstreamError) as caught:
            await anext(chunks)
        await left.wait()
    assert caught.value.kind == "timeout"
    assert SECRET not in str(caught.value)


async def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would see every key."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with provider(answering(OK)) as url, opened() as upstream:
        assert await whole(await upstream.send("POST", url + "/", [], b"")) == b"ok"


async def test_a_certificate_that_nobody_vouches_for_is_refused(tmp_path: Path) -> None:
    """TLS is verified, always."""
    tls, _ = serving_tls(tmp_path)
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda *_: None)  # the server's side of the failed handshake
    async with provider(answering(OK), tls) as url, opened() as upstream:
        error = await failure(upstream, url)
    loop.set_exception_handler(None)
    assert error.kind == "connect"
    assert "certificate" in error.message


async def test_a_certificate_for_another_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that is trusted: it is for an address, and the call goes to a name."""
    tls, certificate = serving_tls(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda *_: None)
    async with provider(answering(OK), tls) as url, opened() as upstream:
        error = await failure(upstream, url.replace("127.0.0.1", "localhost"))
    loop.set_exception_handler(None)
    assert error.kind == "connect"
    assert "certificate" in error.message


async def test_calls_over_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large bodies both ways, and one handshake for all calls."""
    tls, certificate = serving_tls(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    connections = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        for _ in range(2):
            _, body = await request_in(reader)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        await reader.read()

    async with provider(script, tls) as url, opened() as upstream:
        for body in (b"x", bytes(range(256)) * 10_000):
            assert await whole(await upstream.send("POST", url + "/", [], body)) == body
    assert connections == 1


async def test_nothing_is_sent_after_closing() -> None:
    """Closing twice, or before the first call, is no error."""
    upstream = HttpUpstream()
    await upstream.aclose()
    await upstream.aclose()
    assert (await failure(upstream, "http://127.0.0.1:9")).kind == "connect"
