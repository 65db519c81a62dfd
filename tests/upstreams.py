"""For the tests of the gateway's client: servers that are as odd as they like, and what becomes of a call."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from interlock.http.gateway.upstream import HttpUpstream, UpstreamError, UpstreamResponse

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

SECRET = "sk-canary-0123456789"
QUERY = f"/v1/x?key={SECRET}"
KEY = [("Authorization", f"Bearer {SECRET}")]


@asynccontextmanager
async def provider(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """A server that runs *script* for every connection, and then closes it."""
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await script(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client left first, which is what most of these tests are about
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{port}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()


@asynccontextmanager
async def opened(**times: float) -> AsyncIterator[HttpUpstream]:
    upstream = HttpUpstream(**times)
    try:
        yield upstream
    finally:
        await upstream.aclose()


async def request_in(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """The header and the body of the next request."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = 0
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    return head, await reader.readexactly(length)


def answering(answer: bytes) -> Script:
    """Read one request, answer it and close."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_in(reader)
        writer.write(answer)
        await writer.drain()

    return script


async def whole(response: UpstreamResponse) -> bytes:
    return b"".join([chunk async for chunk in response.chunks()])


async def failure(upstream: HttpUpstream, url: str, **options: float) -> UpstreamError:
    """The error of a call that must fail, checked to hold nothing secret."""
    with pytest.raises(UpstreamError) as caught:
        await whole(await upstream.send("POST", url + QUERY, KEY, b"{}", **options))
    error = caught.value
    assert url.split("//")[1] in error.message
    assert SECRET not in f"{error!r} {error.__cause__!r} {error.__context__!r}"
    assert error.__cause__ is None
    assert error.__context__ is None
    return error


OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


def serving_tls(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """What a server of 127.0.0.1 needs for TLS, and the certificate that vouches for itself."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    made = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -batch"
    named = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(
        [*made.split(), *named, "-keyout", key, "-out", certificate], check=True, capture_output=True
    )
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    return tls, certificate
