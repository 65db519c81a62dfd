"""``interlock status``: every gate of a running server."""

from __future__ import annotations

import json
import time
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from interlock.cli.client import NoAnswer, default_url, fetch
from interlock.cli.output import Json, plain
from interlock.errors import InterlockError

_WORDS = {
    "provider",
    "limit",
    "state",
    "waiter",
    "owner",
    "for",
    "session",
    "agent",
    "run",
    "status",
    "note",
} | {"change", "by", "evidence", "worker", "agents"}
_WHOLE = {"run", "status", "age", "waited", "took"}


async def status(*, url: str | None = None, as_json: Json = False) -> int:
    """Show each gate: slots, cooling, queue, pause; and the fleet's other limits where anything happens.

    Example: interlock status --url http://127.0.0.1:7411

    Args:
        url: the server (default: INTERLOCK_URL, else as the configuration here says).
        as_json: print what the server answered.
    """
    url = url or default_url()
    providers = (await fetch(url, "/concurrency/status"))["providers"]
    limits = (await fetch(url, "/limits"))["limits"]
    workers = await _workers(url)
    if as_json:
        print(json.dumps({"providers": providers, "limits": limits, "workers": workers}))
        return 0
    known = {f"provider:{one['providerId']}" for one in providers}
    for limit in limits:
        name = limit["name"]
        if name.startswith("provider:") and name not in known:
            providers.append(_unlimited(limit))
    console = Console()
    console.print(gates(providers))
    busy = [one for one in limits if not one["name"].startswith("provider:") and _matters(one)]
    if busy:
        console.print()
        console.print(others(busy))
    if workers:
        console.print()
        console.print(crew(workers))
    return 0


def gates(providers: list[dict[str, Any]]) -> Table:
    """The provider gates as a table for people."""
    shown = table("provider", "in flight", "cooling", "queued", "upstream", "state")
    for one in providers:
        shown.add_row(
            one["providerId"],
            f"{one['inFlight']}/{one.get('limit', '∞')}",
            str(one.get("cooling", 0)),
            str(one["queued"]),
            str(one.get("upstreamInFlight", "-")),
            _state(one),
        )
    return shown


def others(limits: list[dict[str, Any]]) -> Table:
    """Further limits as a table for people."""
    shown = table("limit", "in use", "waiting")
    for one in limits:
        capacity = "∞" if one["capacity"] is None else one["capacity"]
        shown.add_row(one["name"], f"{one['used']}/{capacity}", str(one["waiting"]))
    return shown


def crew(workers: list[dict[str, Any]]) -> Table:
    """The workers as a table for people."""
    shown = table("worker", "agents", "sessions", "seen", "state")
    for one in workers:
        seen = max(0.0, time.time() - one["seenAt"] / 1000)
        where = f"{plain(one['host'])}:{one['pid']}"
        agents = plain(", ".join(one["agents"]))
        shown.add_row(where, agents, str(one["sessions"]), f"{seen:.0f} s ago", one["state"])
    return shown


async def _workers(url: str) -> list[dict[str, Any]]:
    """Those of a server that keeps sessions, and is of this version."""
    try:
        found: list[dict[str, Any]] = (await fetch(url, "/workers"))["workers"]
    except NoAnswer:
        raise
    except InterlockError:
        return []
    return found


def table(*columns: str) -> Table:
    """An empty table for people; columns of numbers are set to the right, and what is short stays whole."""
    shown = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        justify: Literal["left", "right"] = "left" if column in _WORDS else "right"
        shown.add_column(column, justify=justify, overflow="fold", no_wrap=column in _WHOLE)
    return shown


def _unlimited(limit: dict[str, Any]) -> dict[str, Any]:
    """A provider that has neither limit nor pause, as its gate would be shown."""
    return {
        "providerId": limit["name"].removeprefix("provider:"),
        "inFlight": limit["used"],
        "cooling": limit["cooling"],
        "queued": limit["waiting"],
        "paused": False,
    }


def _matters(limit: dict[str, Any]) -> bool:
    return limit["capacity"] is not None or limit["used"] > 0


def _state(one: dict[str, Any]) -> str:
    notes = []
    if one["paused"]:
        left = max(0.0, one["pausedUntil"] / 1000 - time.time())
        notes.append(f"paused for {left:.0f} s ({one.get('reason', 'by the operator')})")
    if "notice" in one:
        notes.append(one["notice"])
    return "; ".join(notes) or "open"
