"""Why somebody waits, as a tree: the waiter, the limits in its way, who has those, and what would help."""

from __future__ import annotations

from typing import Any

from rich.tree import Tree

from interlock.cli.output import plain, seconds

MOST = 10
"""Holders, and those ahead, that are named of each limit."""


def tree(waiter: dict[str, Any], now_ms: float) -> Tree:
    """The answer of ``GET /waiting/{id}``, for a console without markup; *now_ms* is the time."""
    top = Tree(plain(_waits(waiter, now_ms)), guide_style="dim", highlight=False)
    for block in waiter["blocks"]:
        branch = top.add(plain(block["text"]))
        for holder in block["holders"][:MOST]:
            branch.add(plain(_holds(holder, now_ms)))
        if len(block["holders"]) > MOST:
            branch.add(f"and {len(block['holders']) - MOST} more")
        branch.add(plain(f"→ {_help(block, now_ms)}"))
    if not waiter["blocks"]:
        top.add("nothing is in its way: it goes at once")
    return top


def _waits(waiter: dict[str, Any], now_ms: float) -> str:
    owner = f" ({waiter['owner']})" if "owner" in waiter else ""
    line = (
        f"{waiter['id']}{owner} waits for {', '.join(waiter['limits'])} "
        f"since {seconds(max(0.0, now_ms - waiter['arrivedAt']))}, {waiter['position']} ahead"
    )
    if "deadline" in waiter:
        line += f", gives up in {seconds(max(0.0, waiter['deadline'] - now_ms))}"
    return line


def _holds(holder: dict[str, Any], now_ms: float) -> str:
    line = f"{holder.get('owner') or holder['id']} since {seconds(max(0.0, now_ms - holder['grantedAt']))}"
    if "touchedAt" in holder:
        line += f", last sign of life {seconds(max(0.0, now_ms - holder['touchedAt']))} ago"
    return line


def _help(block: dict[str, Any], now_ms: float) -> str:
    """What would take this limit out of the way."""
    limit, missing = block["limit"], block["missing"]
    name = limit.removeprefix("provider:")
    more = f"interlock limits set {name}"
    match block["why"]:
        case "never_fits":
            return f"never goes, unless by: {more} {(block['capacity'] or 0) + missing}"
        case "paused":
            left = max(0.0, (block.get("until") or now_ms) - now_ms)
            resume = f", or by: interlock resume {name}" if name != limit else ""
            return f"opens in {seconds(left)}{resume}"
        case "gate":
            return "goes when the provider reports room"
        case "reserved" | "behind":
            ahead = block["ahead"]
            shown = ", ".join(ahead[:MOST]) + (f" and {len(ahead) - MOST} more" if len(ahead) > MOST else "")
            return f"goes after {shown}"
    units = "1 slot comes" if missing == 1 else f"{missing} slots come"
    if block["ahead"]:
        return f"goes when the {len(block['ahead'])} ahead have gone and {units} back"
    return f"goes when {units} back, or by: {more} {(block['capacity'] or 0) + missing}"
