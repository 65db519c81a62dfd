"""Who may speak to the server at all: the right host name, no foreign web page, a token if there is one.

A loopback address is no protection against the user's own browser: any page may send requests there,
and by rebinding its name even read the answers. So the Host must be ours, and what a browser marks as
coming from another site is refused. Authorisation looks at the raw routed path only, never at a URL
rebuilt from the Host.
"""

from __future__ import annotations

import re
from hashlib import sha256
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from interlock.http.access.caller import ANYBODY, CALLER, Caller
from interlock.http.access.ending import CHALLENGE, while_valid
from interlock.http.access.failures import Failures
from interlock.http.access.refusals import is_gateway, refuse
from interlock.http.retrying import CHANCE, retry_fields, spread_after
from interlock.http.table import OPEN_PATHS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from interlock.http.access.book import TokenBook

    Scope = dict[str, Any]
    App = Callable[[Scope, Any, Any], Awaitable[None]]

_LOOPBACK = frozenset(("localhost", "127.0.0.1", "::1"))
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::[0-9]{1,5})?")
_MOST_SHOWN = 8
"""Tokens in one request; nobody has more fields for them than this."""
_LOOKED_AT = frozenset(
    (
        b"host",
        b"origin",
        b"sec-fetch-site",
        b"sec-fetch-mode",
        b"sec-fetch-dest",
        b"authorization",
        b"x-api-key",
        b"x-interlock-token",
        b"content-encoding",
    )
)


class _Refusal(NamedTuple):
    status: int
    code: str
    detail: str
    headers: tuple[tuple[bytes, bytes], ...] = ()


class Guard:
    """An ASGI application around another one, which finds the `Caller` in its scope.

    Without a *book*, or while that has no token, everybody on this machine may do everything. *chance* keeps
    those apart who are told to come again.
    """

    def __init__(
        self,
        app: App,
        *,
        hosts: Iterable[str],
        book: TokenBook | None = None,
        any_host: bool = False,
        chance: Random | None = None,
    ) -> None:
        self._app = app
        self._hosts = frozenset(host.lower() for host in hosts) | _LOOPBACK
        self._any_host = any_host
        self._book = book
        self._chance = Random() if chance is None else chance  # noqa: S311 - it keeps the refused apart
        self._failures = None if book is None else Failures(book.clock)

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        seen = self._look_at(scope)
        if isinstance(seen, _Refusal):
            await refuse(scope, send, *seen)
            return
        scope = {**scope, CALLER: seen, CHANCE: self._chance}
        book = self._book
        if book is None or not book.required:
            await self._app(scope, receive, send)
            return
        # Our own tokens are for us: they must not travel on to a provider.
        scope["headers"] = [(name, value) for name, value in scope["headers"] if not _is_token(book, value)]
        lasts = scope["type"] == "websocket" or (scope["method"] == "GET" and not is_gateway(scope))
        if seen.names and lasts:
            await while_valid(book, seen, self._app, scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _look_at(self, scope: Scope) -> Caller | _Refusal:
        fields: dict[bytes, list[str]] = {}
        for name, value in scope["headers"]:
            if (lower := name.lower()) in _LOOKED_AT:
                fields.setdefault(lower, []).append(value.decode("latin-1"))
        hosts = fields.get(b"host", [])
        if len(hosts) != 1:
            return _Refusal(400, "bad_host", "send exactly one Host header")
        if not self._known(hosts[0]):
            return _Refusal(421, "unknown_host", f"this server does not answer for {hosts[0]!r:.80}")
        foreign = fields.get(b"sec-fetch-site", ["none"])[0] in ("cross-site", "same-site")
        if foreign and not _follows_link(scope, fields):
            return _Refusal(403, "cross_site", "requests from other sites' pages are refused")
        for origin in fields.get(b"origin", []):
            if not self._same_site(origin, hosts[0]):
                return _Refusal(403, "cross_site", f"requests from pages of {origin!r:.80} are refused")
        for coding in fields.get(b"content-encoding", []):
            if coding.strip().lower() not in ("", "identity"):
                told = f"content-encoding is {coding!r:.80}; send the body as it is"
                return _Refusal(415, "content_encoding", told)
        if self._book is None or not self._book.required or scope["path"] in OPEN_PATHS:
            return ANYBODY
        return self._authenticated(self._book, scope, fields)

    def _authenticated(
        self, book: TokenBook, scope: Scope, fields: dict[bytes, list[str]]
    ) -> Caller | _Refusal:
        assert self._failures is not None
        address = (scope.get("client") or ("",))[0]
        wait = self._failures.blocked_for(address)
        shown = _shown(scope, fields)
        # What nobody can guess need not wait: who guesses from this machine does not stop its fleet.
        caller = book.caller(shown, unguessable=wait > 0)
        if caller is not None:
            return caller
        if wait > 0:
            after = retry_fields(spread_after({CHANCE: self._chance}, wait))
            said = "too many wrong tokens came from this address"
            return _Refusal(429, "too_many_failures", said, tuple(after))
        if shown:
            self._failures.note(address)
        return _Refusal(
            401, "unauthorized", "send the server's token as 'Authorization: Bearer …'", (CHALLENGE,)
        )

    def _same_site(self, origin: str, host: str) -> bool:
        try:
            netloc = urlsplit(origin).netloc
        except ValueError:
            return False
        # A server for every address has no names of its own: then only the very host that was asked is it.
        return netloc.lower() == host.lower() if self._any_host else self._known(netloc)

    def _known(self, host: str) -> bool:
        match = _HOST.fullmatch(host)
        return match is not None and (self._any_host or (match[1] or match[2]).lower() in self._hosts)


def _follows_link(scope: Scope, fields: dict[bytes, list[str]]) -> bool:
    """Whether somebody comes to the dashboard from another page: its shell has no data, no frame."""
    how = fields.get(b"sec-fetch-mode"), fields.get(b"sec-fetch-dest")
    asked = scope.get("method"), scope["path"]
    return asked == ("GET", "/") and how == (["navigate"], ["document"])


def _is_token(book: TokenBook, value: bytes) -> bool:
    return book.is_token(sha256(b"".join(value.split()[-1:])).digest())


def _shown(scope: Scope, fields: dict[bytes, list[str]]) -> list[bytes]:
    """The digests of all that may be meant as a token of ours."""
    given = [*fields.get(b"x-interlock-token", [])]
    given += [text.partition(" ")[2].strip() for text in fields.get(b"authorization", [])]
    given += fields.get(b"x-api-key", []) if is_gateway(scope) else []
    return [sha256(text.encode("latin-1")).digest() for text in given[:_MOST_SHOWN]]
