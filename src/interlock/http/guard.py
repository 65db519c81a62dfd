"""Who may speak to the server at all: the right host name, no foreign web page, the token if there is one.

A loopback address is no protection against the user's own browser: any page may send requests there,
and by rebinding its name even read the answers. So the Host must be ours, and what a browser marks as
coming from another site is refused. Authorisation looks at the raw routed path only, never at a URL
rebuilt from the Host.
"""

from __future__ import annotations

import hmac
import re
from hashlib import sha256
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from interlock.secret import Secret

    Scope = dict[str, Any]
    App = Callable[[Scope, Any, Any], Awaitable[None]]

_LOOPBACK = frozenset(("localhost", "127.0.0.1", "::1"))
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::[0-9]{1,5})?")
_OPEN = frozenset(("/healthz", "/readyz"))
_LOOKED_AT = frozenset(
    (b"host", b"origin", b"sec-fetch-site", b"authorization", b"x-api-key", b"x-interlock-token")
)


class Guard:
    """An ASGI application around another one."""

    def __init__(
        self, app: App, *, hosts: Iterable[str], token: Secret | None = None, any_host: bool = False
    ) -> None:
        self._app = app
        self._hosts = frozenset(host.lower() for host in hosts) | _LOOPBACK
        self._any_host = any_host
        self._token = None if token is None else sha256(token.reveal().encode()).digest()

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] in ("http", "websocket"):
            refusal = self._refusal(scope)
            if refusal is not None:
                # An upgrade, too, is refused by a plain answer: nothing is accepted first.
                await _answer(send, "" if scope["type"] == "http" else "websocket.", *refusal)
                return
            if self._token is not None:
                # Our own token is for us: it must not travel on to a provider.
                headers = [(name, value) for name, value in scope["headers"] if not self._is_token(value)]
                scope = {**scope, "headers": headers}
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[int, str, str] | None:
        fields: dict[bytes, list[str]] = {}
        for name, value in scope["headers"]:
            if (lower := name.lower()) in _LOOKED_AT:
                fields.setdefault(lower, []).append(value.decode("latin-1"))
        hosts = fields.get(b"host", [])
        if len(hosts) != 1:
            return 400, "bad_host", "send exactly one Host header"
        if not self._known(hosts[0]):
            return 421, "unknown_host", f"this server does not answer for {hosts[0]!r:.80}"
        if fields.get(b"sec-fetch-site", ["none"])[0] in ("cross-site", "same-site"):
            return 403, "cross_site", "requests from other sites' pages are refused"
        for origin in fields.get(b"origin", []):
            if not self._same_site(origin, hosts[0]):
                return 403, "cross_site", f"requests from pages of {origin!r:.80} are refused"
        if self._token is not None and scope["path"] not in _OPEN and not self._authorised(scope, fields):
            return 401, "unauthorized", "send the server's token as 'Authorization: Bearer …'"
        return None

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

    def _is_token(self, value: bytes) -> bool:
        given = b"".join(value.split()[-1:])
        return hmac.compare_digest(sha256(given).digest(), self._token or b"")

    def _authorised(self, scope: Scope, fields: dict[bytes, list[str]]) -> bool:
        given = fields.get(b"x-interlock-token", [])
        given += [text.partition(" ")[2].strip() for text in fields.get(b"authorization", [])]
        given += fields.get(b"x-api-key", []) if scope["path"].startswith("/gateway/") else []
        digests = [sha256(text.encode("latin-1")).digest() for text in given]
        # Every candidate is compared, each in constant time.
        assert self._token is not None
        return sum(hmac.compare_digest(digest, self._token) for digest in digests) > 0


async def _answer(send: Any, prefix: str, status: int, code: str, detail: str) -> None:
    body = msgspec.json.encode({"type": "about:blank", "status": status, "code": code, "detail": detail})
    headers = [(b"content-type", b"application/problem+json"), (b"content-length", b"%d" % len(body))]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": f"{prefix}http.response.start", "status": status, "headers": headers})
    await send({"type": f"{prefix}http.response.body", "body": body, "more_body": False})
