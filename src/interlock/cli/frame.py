"""What ``interlock top`` shows: lines of text that follow from the state, the moment and the size alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from interlock.cli.output import plain, seconds

if TYPE_CHECKING:
    from collections.abc import Callable

    from interlock.cli.watch import Rows

PROVIDER: Final = "provider:"
SORTS: Final = ("name", "queue", "use")
KEYS: Final = "q quit   s sort   ↑↓ select   p pause/resume   r restore"
NARROW: Final = 40
"""Columns below which nothing is drawn any smaller."""
_HELD, _COOLING, _FREE = "█", "▒", "·"
_MOST_GATES: Final = 500
_PAUSED_BY: Final = {"operator": "by the operator", "restart": "in quarantine after a restart"}
"""So many rows of one kind are shown; on a screen the rest would be far out of sight."""


@dataclass
class View:
    """How somebody looks at the fleet."""

    url: str
    sort: str = "name"
    selected: str | None = None
    """The name of a limit."""
    lost: str | None = None
    """What is wrong with the connection."""
    said: str = ""
    """What became of the last key."""
    keys: bool = True
    """Whether there are keys to press."""


def gates(rows: dict[str, Rows], sort: str) -> list[str]:
    """The limits that are shown, as they are: the providers' first, then the fleet's that matter."""
    limits = rows["limits"]

    def order(name: str) -> tuple[Any, ...]:
        row = limits[name]
        most = row["capacity"] or math.inf
        worth = {"name": 0, "queue": -row["waiting"], "use": -row["used"] / most}[sort]
        return not name.startswith(PROVIDER), worth, -row["used"] if sort == "use" else 0, name

    matter = (
        name
        for name, row in limits.items()
        if name.startswith(PROVIDER) or row["capacity"] is not None or row["used"] or row["waiting"]
    )
    return sorted(matter, key=order)


def frame(
    rows: dict[str, Rows], view: View, now_ms: float, width: int, height: int | None = None
) -> list[Text]:
    """The lines, none wider than *width*, no more than *height* of them, with what is selected among them."""
    width = max(NARROW, width)
    body, selected = _body(rows, view, now_ms, width)
    head, foot = _head(rows, view), _foot(view)
    if height is not None:
        room = max(1, height - len(head) - len(foot))
        start = max(0, min(selected - room // 2, len(body) - room))
        body = body[start : start + room]
        if view.keys:
            body += [Text()] * (room - len(body))  # the keys stay at the bottom
    lines = [*head, *body, *foot]
    for line in lines:
        line.truncate(width, overflow="ellipsis")
        line.no_wrap, line.overflow = True, "crop"  # also where the screen is narrower than that
    return lines


def slots(held: int, cooling: int, capacity: int | None, width: int) -> str:
    """A gate as a row of slots; as a share of *width* where it has more slots than that."""
    if capacity is None:
        held = min(held, width)
        return _HELD * held + _COOLING * min(cooling, width - held)
    total = max(capacity, held + cooling)
    if total > width:
        free = total - held - cooling
        room = width - (held > 0)
        cooling = min(_share(cooling, total, width), room)
        free = min(_share(free, total, width), room - cooling)
        return _HELD * (width - cooling - free) + _COOLING * cooling + _FREE * free
    return _HELD * held + _COOLING * cooling + _FREE * (total - held - cooling)


def _share(number: int, total: int, width: int) -> int:
    """What *number* of *total* is of *width*: something, if it is something."""
    return max(1, round(number * width / total)) if number else 0


# -- parts ---------------------------------------------------------------------------------------------------


def _head(rows: dict[str, Rows], view: View) -> list[Text]:
    calls = [row for name, row in rows["limits"].items() if name.startswith(PROVIDER)]
    flying = sum(row["used"] - row["cooling"] for row in calls)
    waiting = sum(row["waiting"] for row in calls)
    line = Text.assemble(
        (plain(view.url), "bold"),
        f"   {flying} in flight   ",
        (f"{waiting} waiting", "yellow" if waiting else ""),
        f"   by {view.sort}",
    )
    return [line] if view.lost is None else [line, Text(plain(view.lost), style="bold red")]


def _foot(view: View) -> list[Text]:
    if not view.keys:
        return []
    return [Text(plain(view.said) or KEYS, style="" if view.said else "dim")]


def _body(rows: dict[str, Rows], view: View, now_ms: float, width: int) -> tuple[list[Text], int]:
    """All lines between head and foot, and where what is selected stands among them."""
    lines: list[Text] = []
    found = 0
    shown = gates(rows, view.sort)[:_MOST_GATES]
    columns = _Columns(width, [_title(name) for name in shown] + [*rows["pools"], *rows["sessions"]])
    for heading, names in (
        ("providers", [name for name in shown if name.startswith(PROVIDER)]),
        ("limits", [name for name in shown if not name.startswith(PROVIDER)]),
    ):
        _heading(lines, heading, names)
        for name in names:
            chosen = view.keys and name == view.selected
            if chosen:
                found = len(lines)
            provider = rows["providers"].get(_title(name)) if name.startswith(PROVIDER) else None
            lines += columns.gate(_title(name), rows["limits"][name], provider or {}, now_ms, chosen=chosen)
    _heading(lines, "pools", rows["pools"])
    for name, row in sorted(rows["pools"].items()):
        lines += columns.pool(name, row)
    _heading(lines, "sessions", rows["sessions"])
    ordered = sorted(rows["sessions"].values(), key=_by(view.sort))
    for row in ordered[:_MOST_GATES]:
        lines += columns.session(row)
    if len(ordered) > _MOST_GATES:
        lines.append(Text(f"  and {len(ordered) - _MOST_GATES} more", style="dim"))
    return lines, found


def _by(sort: str) -> Callable[[dict[str, Any]], tuple[int, str]]:
    worth = {"queue": "queued", "use": "running"}.get(sort)
    return lambda row: (0 if worth is None else -row[worth], row["id"])


def _heading(lines: list[Text], heading: str, names: Any) -> None:
    if names:
        lines.append(Text(heading, style="bold dim"))


def _title(name: str) -> str:
    return name.removeprefix(PROVIDER)


class _Columns:
    """A line is a name, a row of slots, how many of them are taken, and notes; more notes take more lines."""

    def __init__(self, width: int, names: list[str]) -> None:
        self._width = width
        self._name = min(max((cell_len(plain(name)) for name in names), default=0), width // 5, 24)
        self._name = max(self._name, 8)
        self._slots = (width - self._name) // 3

    def gate(
        self, name: str, row: dict[str, Any], provider: dict[str, Any], now_ms: float, *, chosen: bool
    ) -> list[Text]:
        held, capacity = row["used"] - row["cooling"], row["capacity"]
        notes: list[tuple[str, str]] = []
        if row["pausedUntil"] is not None:
            left = max(0, math.ceil((row["pausedUntil"] - now_ms) / 1000))
            by = _PAUSED_BY.get(row["pausedBy"], row["pausedBy"])
            notes.append((f"paused for {left} s ({by})", "magenta"))
        if row["waiting"]:
            since = row.get("waitingSince")
            longest = "" if since is None else f", longest {seconds(max(0.0, now_ms - since))}"
            notes.append((f"{row['waiting']} waiting{longest}", "yellow"))
        if provider.get("autoReduced"):
            before = provider.get("configuredLimit", provider.get("autoReducedFrom"))
            notes.append((f"reduced from {before} to {capacity} after a 429", "red"))
        if "upstreamInFlight" in provider:
            most = provider.get("upstreamLimit")
            notes.append((f"{provider['upstreamInFlight']}{'' if most is None else f'/{most}'} upstream", ""))
        bar = slots(held, row["cooling"], capacity, self._slots)
        style = "magenta" if row["pausedUntil"] is not None else "green"
        return self._lines(name, bar, style, row["used"], capacity, notes, chosen)

    def pool(self, name: str, row: dict[str, Any]) -> list[Text]:
        notes = [(f"{row['waiting']} waiting", "yellow")] if row["waiting"] else []
        if row["overflow"]:
            notes.append((f"{row['overflow']}/{row['maxOverflow']} overflow", ""))
        notes += [(f"{row[what]} {what}", "") for what in ("starting", "preparing", "closing") if row[what]]
        if row["failures"]:
            notes.append((f"{row['failures']} failed starts", "red"))
        busy = row["starting"] + row["preparing"]
        bar = slots(row["inUse"], busy, row["size"], self._slots)
        return self._lines(name, bar, "green", row["inUse"], row["size"], notes)

    def session(self, row: dict[str, Any]) -> list[Text]:
        most = row["maxConcurrentRuns"]
        notes = [(f"{row['queued']} queued", "yellow")] if row["queued"] else []
        bar = slots(row["running"], 0, most, self._slots)
        return self._lines(row["id"], bar, "green", row["running"], most, notes)

    def _lines(
        self,
        name: str,
        bar: str,
        style: str,
        used: int,
        capacity: int | None,
        notes: list[tuple[str, str]],
        chosen: bool = False,
    ) -> list[Text]:
        name = plain(name)
        if cell_len(name) > self._name:
            name = set_cell_size(name, self._name - 1).rstrip() + "…"
        line = Text.assemble(
            "▸ " if chosen else "  ",
            (set_cell_size(name, self._name), "reverse" if chosen else ""),
            "  ",
            (bar.ljust(self._slots), style),
            f" {used}/{'∞' if capacity is None else capacity}".ljust(8),
        )
        lines, joint = [line], "  "
        for text, how in notes:
            if lines[-1].cell_len + len(joint) + cell_len(text) > self._width:
                lines.append(Text(" " * (self._name + 4)))
                joint = ""
            lines[-1].append(joint).append(text, how)
            joint = " · "
        return lines
