"""The call to the provider: bytes out, bytes back as they come, and a close that is felt at once.

aiohttp, because it carries many times what the alternatives do. It is kept from everything clever:
no decompression, redirects, cookies, proxies from the environment or headers of its own.
"""

from __future__ import annotations

import asyncio
import io
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError
from multidict import CIMultiDict
from yarl import URL

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from aiohttp.client_proto import ResponseHandler

FailureKind = Literal["connect", "timeout", "reset", "redirect", "protocol"]

_HEADERS_MAX: Final = 64 * 1024
_FIELDS_MAX: Final = 256
_BYTES_SENT_AT_ONCE: Final = 1024 * 1024
_READ_AHEAD: Final = 256 * 1024
"""Of an answer whose reader is slow; so the provider is done with most of them when it is done."""
_FAILURES: Final = (aiohttp.ClientError, HttpProcessingError, OSError, ValueError)


class UpstreamError(Exception):
    """The provider gave no proper answer, or not all of it.

    The message names its host, and never the query, a header or a key. ``connect`` means that
    nothing of the request was sent.
    """

    def __init__(self, kind: FailureKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message

    @property
    def status(self) -> int:
        """The status to answer with."""
        return 504 if self.kind == "timeout" else 502


class UpstreamResponse(Protocol):
    """An answer whose body is still to come."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """As they came, in order, duplicates and all."""
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes, undecoded. Raises ``UpstreamError`` where it breaks off."""
        ...

    def when_ended(self, callback: Callable[[], object]) -> None:
        """Have *callback* called as soon as the whole body is here, read by us or not."""
        ...

    def close(self) -> None:
        """Drop the connection now, unless the body has been read to its end. Twice is no error."""
        ...


class Upstream(Protocol):
    """Where a request goes."""

    async def send(
        self,
        method: str,
        url: str,
        headers: Iterable[tuple[str, str]],
        body: bytes | None,
        *,
        timeout: float | None = None,
    ) -> UpstreamResponse:
        """Send a request and return as soon as the header of the answer is there.

        *url* goes out byte for byte. *timeout* is how long to wait for that, in seconds; ``None``
        waits as long as is usual here. Raises ``UpstreamError``. A cancelled call leaves no
        connection behind; who gets a response must read it to the end or close it.
        """
        ...

    async def aclose(self) -> None:
        """Close every connection; nothing can be sent afterwards."""
        ...


class AiohttpUpstream:
    """``Upstream`` over one aiohttp session, opened by the first call.

    All times are in seconds. *first_byte* bounds the wait for the header of an answer, and again
    the wait for the first piece of its body; *idle* the wait for each later piece; *total* all of
    it. The number of connections is not limited here: that is what permits are for.
    """

    def __init__(
        self,
        *,
        connect: float = 5.0,
        first_byte: float = 120.0,
        idle: float = 120.0,
        total: float = 3600.0,
    ) -> None:
        self._connect = connect
        self._first_byte = first_byte
        self._idle = idle
        self._total = total
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    async def send(
        self,
        method: str,
        url: str,
        headers: Iterable[tuple[str, str]],
        body: bytes | None,
        *,
        timeout: float | None = None,
    ) -> UpstreamResponse:
        """See ``Upstream.send``."""
        target = URL(url, encoded=True)
        host = f"{target.host}:{target.port}"
        if self._closed:
            raise UpstreamError("connect", f"cannot reach {host}: the gateway is closing")
        first_byte = self._first_byte if timeout is None else timeout
        try:
            async with asyncio.timeout(first_byte):
                response = await self._opened().request(
                    method,
                    target,
                    # In one spelling: aiohttp takes the last of two that differ in case.
                    headers=CIMultiDict((name.lower(), value) for name, value in headers),
                    data=_payload(body),
                    allow_redirects=False,
                    timeout=aiohttp.ClientTimeout(
                        total=self._total, connect=self._connect, sock_read=first_byte
                    ),
                )
        except _FAILURES as exc:
            failure = _failure(exc, host)
        else:
            return _checked(response, host, self._idle)
        # Outside of the handler: aiohttp's error holds the URL and all headers, so it must not
        # travel along as the context of ours.
        raise failure

    async def aclose(self) -> None:
        """See ``Upstream.aclose``."""
        self._closed = True
        if self._session is not None:
            await self._session.close()

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
                auto_decompress=False,
                trust_env=False,
                requote_redirect_url=False,
                max_line_size=_HEADERS_MAX,
                max_field_size=_HEADERS_MAX,
                max_headers=_FIELDS_MAX,
                read_bufsize=_READ_AHEAD,
            )
        return self._session


class _AiohttpResponse:
    """``UpstreamResponse`` over aiohttp's."""

    def __init__(self, response: aiohttp.ClientResponse, host: str) -> None:
        self._response = response
        self._host = host
        self.status = response.status
        self.headers = list(response.raw_headers)

    async def chunks(self) -> AsyncIterator[bytes]:
        read = self._response.content.readany
        try:
            while chunk := await read():
                yield chunk
        except _FAILURES as exc:
            failure = _failure(exc, self._host)
        else:
            return
        self.close()
        raise failure

    def when_ended(self, callback: Callable[[], object]) -> None:
        def ended() -> None:
            callback()

        self._response.content.on_eof(ended)

    def close(self) -> None:
        # Closing waits until what is written has been taken, and for TLS until the peer agrees;
        # aborting does neither.
        connection = self._response.connection
        if connection is not None and connection.transport is not None:
            connection.transport.abort()
        self._response.close()


def _checked(response: aiohttp.ClientResponse, host: str, idle: float) -> UpstreamResponse:
    answer = _AiohttpResponse(response, host)
    refusal = _refusal(answer, host)
    if refusal is not None:
        answer.close()
        raise refusal
    if response.connection is not None and response.connection.protocol is not None:
        response.connection.protocol.read_timeout = idle
        _tell_of_loss(response, response.connection.protocol)
    return answer


def _tell_of_loss(response: aiohttp.ClientResponse, protocol: ResponseHandler) -> None:
    """Whoever reads the body learns that the connection is gone: aiohttp does not say so where its
    parser gave
    up in the middle of one."""
    content, closed = response.content, protocol.closed
    if closed is None or content.is_eof():
        return

    def lost(gone: asyncio.Future[None]) -> None:
        error = None if gone.cancelled() else gone.exception()
        if not content.is_eof():
            content.set_exception(error or aiohttp.ClientPayloadError())

    closed.add_done_callback(lost)
    content.on_eof(lambda: _forget(closed, lost))


def _forget(closed: asyncio.Future[None], lost: Callable[[asyncio.Future[None]], None]) -> None:
    closed.remove_done_callback(lost)


def _refusal(answer: UpstreamResponse, host: str) -> UpstreamError | None:
    if 300 <= answer.status < 400 and answer.status != 304:
        message = (
            f"{host} answered with a redirect ({answer.status}), which is not followed; "
            "set base_url to where the provider really is"
        )
        return UpstreamError("redirect", message)
    if answer.status < 200:
        message = f"{host} wants to switch protocols, which was not asked for"
        return UpstreamError("protocol", message)
    if answer.status > 599:
        return UpstreamError("protocol", f"{host} answered with {answer.status}, which is no HTTP status")
    size = sum(len(name) + len(value) + 4 for name, value in answer.headers)
    if size > _HEADERS_MAX:
        message = f"the header of the answer of {host} has {size} bytes, over {_HEADERS_MAX}"
        return UpstreamError("protocol", message)
    return None


def _payload(body: bytes | None) -> Any:
    """A large body is written in pieces, so that one upload does not hold up everyone else."""
    if body is not None and len(body) > _BYTES_SENT_AT_ONCE:
        return io.BytesIO(body)
    return body


def _failure(exc: Exception, host: str) -> UpstreamError:
    """*exc* in our words. Its own may quote a URL, a header or the answer."""
    if isinstance(exc, aiohttp.ClientSSLError):
        message = f"cannot connect to {host}: no TLS with a certificate that can be trusted"
        return UpstreamError("connect", message)
    if isinstance(exc, aiohttp.ClientConnectorError):
        reason = exc.strerror or "no connection"
        return UpstreamError("connect", f"cannot connect to {host}: {reason}")
    if isinstance(exc, aiohttp.ConnectionTimeoutError):
        return UpstreamError("connect", f"cannot connect to {host}: no answer in time")
    if isinstance(exc, TimeoutError):
        return UpstreamError("timeout", f"{host} took too long to answer")
    if isinstance(exc, OSError | aiohttp.ClientConnectionError | aiohttp.ClientPayloadError):
        return UpstreamError("reset", f"{host} closed the connection before the answer was whole")
    return UpstreamError("protocol", f"the answer of {host} is not proper HTTP")
