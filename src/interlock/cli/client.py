"""A running server's control plane, as the commands ask it."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import quote

import httpx2

from interlock.config import load_config
from interlock.errors import InterlockError, Unavailable, ValidationError


def default_url() -> str:
    """Where the server of this directory's configuration listens."""
    if url := os.environ.get("INTERLOCK_URL"):
        return url.rstrip("/")
    server = load_config().server
    return f"http://{server.host}:{server.port}"


async def fetch(url: str, path: str, method: str = "GET", body: Any = None) -> dict[str, Any]:
    """The JSON document that *path* answers; *body* goes as JSON.

    Raises `Unavailable`, saying what to do, where there is no server or it wants a token; `ValidationError`
    for what it finds wrong with the request, `InterlockError` for the rest, both in the server's words.
    """
    token = os.environ.get("INTERLOCK_TOKEN")
    headers = {"authorization": f"Bearer {token}"} if token else {}
    try:
        async with httpx2.AsyncClient(trust_env=False, timeout=5.0) as client:
            response = await client.request(method, url + path, headers=headers, json=body)
            document = response.json()
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
        raise Unavailable(f"no answer from {url} ({error}); is `interlock serve` running?") from None
    if response.is_success and isinstance(document, dict):
        return document
    status = response.status_code
    if status in (401, 403):
        raise Unavailable(f"{url} answered {status}; set INTERLOCK_TOKEN to the server's token")
    said = document if isinstance(document, dict) else {}
    detail = said.get("detail") or said.get("error")
    if not isinstance(detail, str):
        raise Unavailable(f"{url} answered {status}")
    raise (ValidationError if status == 400 else InterlockError)(" ".join(detail.split()))


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
    return quote(name, safe="")
