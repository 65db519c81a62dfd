"""A running server's control plane, as the commands ask it."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx2

from interlock import __version__
from interlock.config import load_config
from interlock.errors import InterlockError, Unavailable, ValidationError

if TYPE_CHECKING:
    from interlock.config import ServerConfig

AGENT = f"interlock-cli/{__version__}"
"""What a server notes of who changed something."""
UNIX = "unix:"
TIMEOUT = 5.0
"""Seconds for a connection, and for an answer unless the command asks for something that takes longer."""


class NoAnswer(Unavailable):
    """Nobody answered, or only that it cannot now; it may be otherwise in a moment."""


def default_url() -> str:
    """Where the server of this directory's configuration listens."""
    if url := os.environ.get("INTERLOCK_URL"):
        return url.rstrip("/")
    return url_of(load_config().server)


def url_of(server: ServerConfig) -> str:
    """Where a server of this configuration is reached from this machine; ``unix:/path`` is a Unix socket."""
    if server.socket is not None:
        return UNIX + str(Path(server.socket).absolute())
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(server.host, server.host)  # noqa: S104 - not bound to
    return f"http://{f'[{host}]' if ':' in host else host}:{server.port}"


def target(url: str, path: str) -> str:
    """The URL of *path* at the server *url*, for its `client`."""
    return ("http://localhost" if url.startswith(UNIX) else url) + path


def client(url: str, *, timeout: float = TIMEOUT) -> httpx2.AsyncClient:
    """Connections to *url* that show the token and wait *timeout* seconds for every piece of an answer."""
    token = os.environ.get("INTERLOCK_TOKEN")
    return httpx2.AsyncClient(
        headers={"user-agent": AGENT} | ({"authorization": f"Bearer {token}"} if token else {}),
        trust_env=False,
        transport=httpx2.AsyncHTTPTransport(uds=url.removeprefix(UNIX)) if url.startswith(UNIX) else None,
        verify=url.startswith("https://"),  # certificates take long to load, and are not looked at elsewhere
        timeout=httpx2.Timeout(TIMEOUT, read=timeout),
    )


async def fetch(
    url: str,
    path: str,
    method: str = "GET",
    body: Any = None,
    *,
    headers: dict[str, str] | None = None,
    timeout: float = TIMEOUT,
    over: httpx2.AsyncClient | None = None,
) -> dict[str, Any]:
    """The JSON document that *path* answers; *body* goes as JSON. *over* is a client for several calls.

    Raises `NoAnswer`, saying what to do, where there is no server, and `Unavailable` where it wants a token;
    `ValidationError` for what it finds wrong with the request, `InterlockError` for the rest, both in the
    server's words and with its code.
    """
    async with AsyncExitStack() as stack:
        if over is None:
            over = await stack.enter_async_context(client(url, timeout=timeout))
        try:
            response = await over.request(method, target(url, path), headers=headers, json=body)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise nobody(url, error) from None
    if not response.is_success:
        raise refusal(url, response)
    try:
        document = response.json()
    except ValueError as error:
        raise nobody(url, error) from None
    if not isinstance(document, dict):
        raise nobody(url, ValueError("no Interlock server says this"))
    return document


def refusal(url: str, response: httpx2.Response) -> InterlockError:
    """What a read *response* that is no success says, as an error of one line."""
    status = response.status_code
    try:
        said = response.json()
    except ValueError:
        said = None
    said = said if isinstance(said, dict) else {}
    if status == 403 and said.get("code") == "insufficient_scope":
        return Unavailable(f"{url} refuses: {said.get('detail')}, and set INTERLOCK_TOKEN to it")
    if status in (401, 403):
        return Unavailable(f"{url} answered {status}; set INTERLOCK_TOKEN to the server's token")
    detail, code = said.get("detail") or said.get("error"), said.get("code")
    detail = " ".join(detail.split()) if isinstance(detail, str) else f"{url} answered {status}"
    code = code if isinstance(code, str) else None
    after = response.headers.get("retry-after", "")
    if status in (429, 503) and after.isdecimal():
        detail += f"; try again in {after} s"
    if status == 400:
        return ValidationError(detail, code=code)
    # Full, stopping, or a proxy before a server that is not there; a failure of its own comes with a code.
    away = status in (429, 503) or (status in (500, 502, 504) and code is None)
    return (NoAnswer if away else InterlockError)(detail, code=code)


def reason(error: Exception) -> str:
    """Why a connection failed, in words also where the error has none."""
    return " ".join(str(error).split()) or type(error).__name__


def nobody(url: str, error: Exception) -> NoAnswer:
    """The error of one line for a server that is not there; ``details`` has the reason alone."""
    why = reason(error)
    return NoAnswer(f"no answer from {url} ({why}); is `interlock serve` running?", reason=why)


async def named(url: str, name: str) -> str:
    """The limit that the user means by *name*: its own name, or a provider's id.

    Raises `ValidationError` that lists the known ones.
    """
    names = [one["name"] for one in (await fetch(url, "/limits"))["limits"]]
    for candidate in (name, f"provider:{name}"):
        if candidate in names:
            return candidate
    known = ", ".join(one.removeprefix("provider:") for one in names) or "none"
    raise ValidationError(f"unknown limit {name!r}; known are: {known}")


def in_path(name: str) -> str:
    """*name* as one segment of a path."""
    return quote(name, safe="", errors="surrogateescape")
