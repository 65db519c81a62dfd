"""``interlock prune``: remove from a store what need not be kept."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from pathlib import Path

from interlock.app import retention_of
from interlock.cli.output import Json
from interlock.cli.progress import progress
from interlock.clock import SystemClock
from interlock.config import load_config, shown_url
from interlock.core.sessions import Pruned, Retention
from interlock.errors import InterlockError, ValidationError
from interlock.stores import open_store


def prune(*, config: Path | None = None, as_json: Json = False) -> int:
    """Remove what is older than is kept from the configuration's store; a file no server may have open.

    A server does the same by itself. What is kept, and for how long, is in [retention] of the configuration:
    sessions that ended 90 days ago are hidden, and removed with all that they had 30 days later.

    Example: interlock prune --config interlock.toml

    Args:
        config: the configuration file (default: interlock.toml here, if there is one).
        as_json: print the numbers as JSON.
    """
    settings = load_config(config)
    store_url = settings.store
    if store_url == "memory:":
        raise ValidationError("store is memory:, which ends with its server; nothing is there to prune")
    file = Path(store_url.removeprefix("sqlite:///"))
    if store_url.startswith("sqlite:///") and not file.exists():
        raise InterlockError(f"{file} does not exist; run this where the server runs, or with its --config")
    with progress("pruning"):
        pruned = asyncio.run(_prune(store_url, retention_of(settings)))
    if as_json:
        print(json.dumps({_camel(name): number for name, number in asdict(pruned).items()}))
        return 0
    print(
        f"{shown_url(store_url)}: {pruned.hidden_sessions} sessions hidden, "
        f"{pruned.removed_sessions} removed, {pruned.removed_events} events removed"
    )
    return 0


async def _prune(store_url: str, retention: Retention) -> Pruned:
    store = await open_store(store_url)
    try:
        return await store.prune(retention, SystemClock().now())
    finally:
        await store.aclose()


def _camel(name: str) -> str:
    first, *more = name.split("_")
    return first + "".join(word.title() for word in more)
