"""``interlock limits history``: what became of a limit, by whom, and why."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from interlock.cli.client import default_url, fetch, in_path
from interlock.cli.output import Json, console, plain
from interlock.cli.status import table


async def history(
    name: str,
    /,
    *,
    limit: int = 20,
    before: int | None = None,
    url: str | None = None,
    as_json: Json = False,
) -> int:
    """Show the changes of a limit, newest first: who or what made each, and on what evidence.

    Example: interlock limits history openai

    Args:
        name: of a limit, such as tools, or of a provider.
        limit: how many to show, at most 1000.
        before: show those before the change of this number.
        url: the server (default: INTERLOCK_URL, else as the configuration here says).
        as_json: print what the server answered.
    """
    query = f"limit={limit}" + ("" if before is None else f"&before={before}")
    answer = await fetch(url or default_url(), f"/limits/{in_path(name)}/history?{query}")
    if as_json:
        print(json.dumps(answer))
        return 0
    if not answer["changes"]:
        print(f"{name}: no change was noted")
        return 0
    shown = table("#", "when", "change", "by", "evidence")
    for one in answer["changes"]:
        shown.add_row(*_row(one))
    console().print(shown)
    if answer["next"] is not None:
        print(f"older: interlock limits history {name} --before {answer['next']}")
    return 0


def _row(one: dict[str, Any]) -> tuple[str, ...]:
    at = datetime.fromtimestamp(one["at"] / 1000).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    change = f"{_capacity(one['old'])} → {_capacity(one['new'])}"
    return str(one["number"]), at, change, one["by"], plain(one["evidence"])


def _capacity(capacity: int | None) -> str:
    return "∞" if capacity is None else str(capacity)
