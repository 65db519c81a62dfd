"""``interlock token``: who may do what at a server, made and taken away by its operator."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from interlock.cli.client import NoAnswer, fetch, in_path, url_of
from interlock.cli.output import Json, console
from interlock.cli.status import table
from interlock.clock import SystemClock
from interlock.config import load_config, parse_duration
from interlock.errors import InterlockError, StoreError, ValidationError
from interlock.http.access.book import LONGEST_DAYS, TokenBook
from interlock.http.access.routes import shown
from interlock.http.access.terms import Terms
from interlock.stores import open_store

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from interlock.config import Config

token_app = App(name="token", help="Make, list and revoke the tokens that open a server.")

_NO_ADMIN = (
    "interlock: note: no token may change limits or make tokens; stop the server and run "
    "`interlock token create NAME --scope admin`"
)


@token_app.command(name="create")
async def create(
    name: str,
    /,
    *,
    scope: Annotated[list[str], Parameter(negative=())],
    expires: str | None = None,
    tenant: str | None = None,
    min_priority: int | None = None,
    requests_per_day: int | None = None,
    permit_seconds_per_day: int | None = None,
    url: str | None = None,
    config: Path | None = None,
    as_json: Json = False,
) -> int:
    """Make a token and print it, this once: what is kept is its hash.

    It counts at once. As soon as there is a token, every request needs one.

    Example: interlock token create ci --scope gateway --scope submit --expires 90d

    Args:
        name: what to call it, in lists and to revoke it.
        scope: gateway (calls to providers), submit (sessions, runs, permits), read, or admin (everything).
        expires: after how long it opens nothing any more, such as 12h or 90d (default: never).
        tenant: whose it is: it sees and changes this tenant's sessions, runs and permits only.
        min_priority: the smallest priority that it may ask for; smaller goes first (default: 0).
        requests_per_day: how many permits, runs and calls it may ask for in a day of UTC (default: any).
        permit_seconds_per_day: for how long its permits may last together in a day (default: any).
        url: the server (default: INTERLOCK_URL, else as the configuration says).
        config: the configuration file (default: interlock.toml here, if there is one).
        as_json: print what the server answered, with the token.
    """
    seconds = None if expires is None else parse_duration(expires, LONGEST_DAYS)
    if seconds == 0:
        raise ValidationError(f"expires: {expires!r} is not a duration above 0")

    async def offline(book: TokenBook) -> dict[str, Any]:
        terms = Terms(tenant, min_priority, requests_per_day, permit_seconds_per_day)
        token, secret = await book.create(name, scope, seconds, terms)
        return {**shown(token), "token": secret.reveal(), "adminLeft": book.has_admin}

    body: dict[str, Any] = {"name": name, "scopes": scope}
    more = {
        "tenant": tenant,
        "minPriority": min_priority,
        "requestsPerDay": requests_per_day,
        "permitSecondsPerDay": permit_seconds_per_day,
    }
    body |= {key: value for key, value in more.items() if value is not None}
    if seconds is not None:
        body["expiresInMs"] = round(seconds * 1000)
    answer = await _ask(url, config, ("/tokens", "POST", body), offline)
    return _say(answer, as_json, answer["token"])


@token_app.command(name="list")
async def list_tokens(*, url: str | None = None, config: Path | None = None, as_json: Json = False) -> int:
    """Show every token by its name: what it may do, since when and until when.

    Example: interlock token list

    Args:
        url: the server (default: INTERLOCK_URL, else as the configuration says).
        config: the configuration file (default: interlock.toml here, if there is one).
        as_json: print what the server answered.
    """

    async def offline(book: TokenBook) -> dict[str, Any]:
        return {"tokens": [shown(token) for token in book.tokens()]}

    answer = await _ask(url, config, ("/tokens", "GET", None), offline)
    if as_json:
        print(json.dumps(answer))
        return 0
    if not answer["tokens"]:
        print("there are no tokens")
        return 0
    rows = table("token", "scopes", "tenant", "created", "expires")
    for one in answer["tokens"]:
        scopes, created = ", ".join(one["scopes"]), _moment(one["createdAt"])
        rows.add_row(one["name"], scopes, one.get("tenant") or "", created, _expiry(one["expiresAt"]))
    console().print(rows)
    return 0


@token_app.command(name="revoke")
async def revoke(
    name: str, /, *, url: str | None = None, config: Path | None = None, as_json: Json = False
) -> int:
    """Have a token open nothing any more, from now on; the connections and streams that it opened end.

    Example: interlock token revoke ci

    Args:
        name: of the token, as the list shows it.
        url: the server (default: INTERLOCK_URL, else as the configuration says).
        config: the configuration file (default: interlock.toml here, if there is one).
        as_json: print what the server answered.
    """

    async def offline(book: TokenBook) -> dict[str, Any]:
        await book.revoke(name)
        return {"name": name, "revoked": True, "adminLeft": book.has_admin}

    answer = await _ask(url, config, (f"/tokens/{in_path(name)}", "DELETE", None), offline)
    return _say(answer, as_json, f"{name}: revoked")


# -- through the server, or without one


async def _ask(
    url: str | None,
    config: Path | None,
    request: tuple[str, str, Any],
    offline: Callable[[TokenBook], Awaitable[dict[str, Any]]],
) -> dict[str, Any]:
    """What the server answers to *request*; where none runs, what *offline* does with its store.

    A server that was named by its URL is meant, and nothing else.
    """
    named = url or os.environ.get("INTERLOCK_URL")
    if named:
        return await fetch(named.rstrip("/"), *request)
    settings = load_config(config)
    local = url_of(settings.server)
    try:
        return await fetch(local, *request)
    except NoAnswer as error:
        if "reason" not in error.details:  # somebody is there, and cannot answer now
            raise
        return await _offline(settings, config, offline, error)


async def _offline(
    settings: Config,
    config: Path | None,
    offline: Callable[[TokenBook], Awaitable[dict[str, Any]]],
    nobody: NoAnswer,
) -> dict[str, Any]:
    """As the server would, in the store that it will read. Raises *nobody* where that keeps nothing."""
    if settings.store.startswith("sqlite:///"):
        _check_place(settings.store, config, nobody)
    elif settings.store == "memory:":
        raise nobody
    try:
        store = await open_store(settings.store)
    except StoreError as error:
        tried = nobody.message.partition(" (")[0]
        raise StoreError(f"{error.message}; {tried}: is its server elsewhere? Name it with --url") from None
    try:
        book = TokenBook(store, SystemClock(), settings.server.token)
        await book.load()
        return await offline(book)
    finally:
        await store.aclose()


def _check_place(store: str, config: Path | None, nobody: NoAnswer) -> None:
    """Raise unless a server has run here or is meant to: a token made elsewhere would open nothing."""
    file = Path(store.removeprefix("sqlite:///"))
    if config is None and not file.exists() and not Path("interlock.toml").exists():
        tried = nobody.message.partition("; is `")[0]
        raise InterlockError(
            f"{tried}, and there is no {file}; run it where the server runs, or with --config"
        )


def _say(answer: dict[str, Any], as_json: bool, line: str) -> int:
    print(json.dumps(answer) if as_json else line)
    if not answer["adminLeft"]:
        print(_NO_ADMIN, file=sys.stderr)
    return 0


def _expiry(at_ms: int | None) -> str:
    if at_ms is None:
        return "never"
    return "expired" if at_ms <= time.time() * 1000 else _moment(at_ms)


def _moment(at_ms: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at_ms / 1000))
