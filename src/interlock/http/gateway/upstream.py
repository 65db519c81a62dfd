"""The call to the provider: bytes out, bytes back as they come, and a close that is felt at once.

A client of our own, because a proxy needs little of what others do, and pays for all of it: nothing is
decompressed, followed, kept as a cookie, taken from the environment or added but ``Host`` and
``Content-Length``. The parser is llhttp, as on the side of the server.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol
from urllib.parse import urlsplit

import aiohappyeyeballs

from interlock.http.gateway.answer import UpstreamError
from interlock.http.gateway.connection import Connection, Times

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

__all__ = ["HttpUpstream", "Upstream", "UpstreamError", "UpstreamResponse"]

_URL: Final = re.compile(r"(https?://(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]+)?)([/?][!-\"$-~]*)?")
_NEXT_ADDRESS_AFTER: Final = 0.25
"""Seconds before another address of the host is tried beside the one that does not answer, as in RFC 8305."""
_METADATA: Final = IPv6Address("fd00:ec2::254")
"""The one address of a cloud's metadata that is not of the link."""
_SENT_AGAIN: Final = frozenset(("GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"))


class UpstreamResponse(Protocol):
    """An answer whose body is still to come."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """As they came, in order, duplicates and all."""
        ...

    @property
    def ended(self) -> bool:
        """Whether the body is whole, and ``chunks`` has given out all of it."""
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes, undecoded. Raises ``UpstreamError`` where it breaks off."""
        ...

    def when_ended(self, callback: Callable[[], object]) -> None:
        """Have *callback* called as soon as the whole body is here, read by us or not."""
        ...

    def close(self) -> None:
        """Drop the connection now, unless the whole body is here. Twice is no error."""
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


class _Origin(NamedTuple):
    """Where connections lead. *authority* is for the Host field, *shown* for errors."""

    secure: bool
    host: str
    port: int
    authority: str
    shown: str


class HttpUpstream:
    """``Upstream`` over HTTP/1.1 connections that are kept for the next call.

    All times are in seconds. *connect* bounds the way to a connection; *first_byte* the wait for the header
    of an answer, and again the wait for the first piece of its body; *idle* the wait for each later piece;
    *total* all of it. A connection that is not used closes after *keep_alive*. The number of connections is
    not limited here: that is what permits are for.
    """

    def __init__(
        self,
        *,
        connect: float = 5.0,
        first_byte: float = 120.0,
        idle: float = 120.0,
        total: float = 3600.0,
        keep_alive: float = 15.0,
    ) -> None:
        self._connect = connect
        self._times = Times(first_byte, idle, total)
        self._keep_alive = keep_alive
        self._free: dict[_Origin, dict[Connection, None]] = {}
        """By last use: the connections that can carry a call."""
        self._connections: set[Connection] = set()
        self._tls: ssl.SSLContext | None = None
        self._closed = False

    def __repr__(self) -> str:
        free = sum(map(len, self._free.values()))
        return f"<HttpUpstream: {len(self._connections)} connections, {free} of them free>"

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
        began = asyncio.get_running_loop().time()
        parts = _URL.fullmatch(url)
        if parts is None:
            raise UpstreamError("connect", "the provider's base_url is no URL that a request can be sent to")
        origin, target = _origin(parts[1]), parts[2] or "/"
        if self._closed:
            raise UpstreamError("connect", f"cannot connect to {origin.shown}: the gateway is closing")
        head = _head(method, target, origin, headers, body)
        times = self._times if timeout is None else self._times._replace(first_byte=timeout)
        connection = self._kept(origin)
        while True:
            kept = connection is not None
            if connection is None:
                connection = await self._connected(origin, min(self._connect, times.first_byte))
            answer = connection.ask(method, head, body or b"", times, began)
            try:
                await answer.head()
            except UpstreamError as error:
                # Kept too long: the peer closed it while the request was on its way. Only what may happen
                # twice is sent again. Of a POST nobody knows whether it was taken: it might be paid twice.
                if not kept or answer.begun or error.kind != "reset" or method not in _SENT_AGAIN:
                    raise
                connection = None
            except BaseException:
                answer.close()
                raise
            else:
                return answer

    async def aclose(self) -> None:
        """See ``Upstream.aclose``."""
        self._closed = True
        closing = [connection.closed for connection in self._connections]
        for connection in list(self._connections):
            connection.abort()
        if closing:
            await asyncio.wait(closing)

    def _kept(self, origin: _Origin) -> Connection | None:
        free = self._free.get(origin)
        while free:
            connection, _ = free.popitem()
            if connection.usable:
                return connection
        return None

    async def _connected(self, origin: _Origin, patience: float) -> Connection:
        """A new connection. What it raises has no context: the words of the error behind it are not ours."""
        try:
            async with asyncio.timeout(patience):
                connection = await self._connect_to(origin)
        except ssl.SSLError:
            reason = "no TLS with a certificate that can be trusted"
        except TimeoutError:
            reason = "no answer in time"
        except (OSError, RuntimeError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or "no connection"
        else:
            if connection.usable and not self._closed:
                self._connections.add(connection)
                return connection
            connection.abort()
            reason = "the gateway is closing" if self._closed else "no connection"
        raise UpstreamError("connect", f"cannot connect to {origin.shown}: {reason}")

    async def _connect_to(self, origin: _Origin) -> Connection:
        loop = asyncio.get_running_loop()

        def freed(connection: Connection) -> None:
            self._free.setdefault(origin, {})[connection] = None

        def lost(connection: Connection) -> None:
            self._connections.discard(connection)
            self._free.get(origin, {}).pop(connection, None)

        addresses = await loop.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)
        for *_, (address, *_) in addresses:
            if is_forbidden(str(address)):
                raise UpstreamError(
                    "connect",
                    f"cannot connect to {origin.shown}: its address {address} is never a provider's",
                )
        sock = await aiohappyeyeballs.start_connection(addresses, happy_eyeballs_delay=_NEXT_ADDRESS_AFTER)
        _, connection = await loop.create_connection(
            lambda: Connection(origin.shown, keep_alive=self._keep_alive, freed=freed, lost=lost),
            sock=sock,
            ssl=self._verifying() if origin.secure else None,
            server_hostname=origin.host if origin.secure else None,
        )
        return connection

    def _verifying(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
            self._tls.set_alpn_protocols(["http/1.1"])
        return self._tls


def is_forbidden(address: str) -> bool:
    """Whether *address* is one that a provider never has: of this link, of a cloud's metadata, of a group."""
    parsed = ip_address(address.partition("%")[0])
    parsed = getattr(parsed, "ipv4_mapped", None) or parsed
    return parsed.is_link_local or parsed.is_multicast or parsed.is_unspecified or parsed == _METADATA


@lru_cache(maxsize=256)
def _origin(url: str) -> _Origin:
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    usual = 443 if secure else 80
    host = parts.hostname or ""
    port = parts.port or usual
    shown = f"[{host}]" if ":" in host else host
    return _Origin(secure, host, port, shown if port == usual else f"{shown}:{port}", f"{shown}:{port}")


def _head(
    method: str, target: str, origin: _Origin, headers: Iterable[tuple[str, str]], body: bytes | None
) -> bytes:
    slash = "" if target.startswith("/") else "/"
    lines = [f"{method} {slash}{target} HTTP/1.1", f"Host: {origin.authority}"]
    lines += [f"{name}: {value}" for name, value in headers]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    text = "\n".join(lines)
    if text.count("\n") != len(lines) - 1 or "\r" in text or "\0" in text:
        message = f"the request for {origin.shown} has a line break in a header field; it was not sent"
        raise UpstreamError("protocol", message)
    return (text.replace("\n", "\r\n") + "\r\n\r\n").encode()
