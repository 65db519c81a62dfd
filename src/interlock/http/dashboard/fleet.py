"""The first page: every gate as a row of slots, the layers below, the pools, and who is at work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

from interlock import __version__
from interlock.http.control import PROVIDER
from interlock.http.dashboard.parts import Part, place, shown
from interlock.http.dashboard.queue import queue
from interlock.http.dashboard.slots import pool_slots, slots
from interlock.http.overview import RESTART

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from interlock.core.kernel import Kernel
    from interlock.http.overview import Row, Rows, State
    from interlock.ports import Clock

MOST_ROWS: Final = 100
"""Rows of one kind; the rest would be far out of sight."""
PAGE: Final = 50
MOST_QUEUE: Final = 500
_LONG: Final = 200
"""A queue with more than so many is looked at once a second, not at every change."""
_LAYERS: Final[tuple[str, ...]] = ("global", "streams", "tools", "runs", "sessions")
_UNCHANGEABLE: Final = ("pool:", "session:", "tools:")


class View(Protocol):
    """What one reader looks at."""

    name: str
    every: float
    """After so many seconds it is looked at again, also if no row of the fleet has changed."""

    async def parts(self, state: State) -> Sequence[Part]:
        """All of it, as the fleet is in *state*."""
        ...


class FleetView:
    """The fleet; of the gate *opened*, also the *most* first who wait and who hold."""

    name = "fleet"

    def __init__(
        self,
        kernel: Kernel,
        clock: Clock,
        may: Collection[str],
        opened: str | None = None,
        most: int = PAGE,
    ) -> None:
        self._kernel = kernel
        self._clock = clock
        self._may = sorted(may)
        self._opened = opened
        self._most = min(most, MOST_QUEUE)
        self._queue: dict[str, Any] = {}
        self._looked = float("-inf")
        self.every = 2.0 if opened is None else 1.0

    async def parts(self, state: State) -> Sequence[Part]:
        """One list of rows for each kind of thing."""
        limits, providers = state["limits"], state["providers"]
        gates = [name for name in limits if name.startswith(PROVIDER)]
        layers = [name for name in _LAYERS if name in limits]
        layers += [name for name in limits if ":" not in name and name not in _LAYERS]
        layers += [
            name for name in limits if ":" in name and not name.startswith((PROVIDER, "session:", "pool:"))
        ]
        return [
            _list("gates", gates, lambda name: self._gate(name, limits, providers)),
            _list("layers", layers, lambda name: self._gate(name, limits, providers)),
            _list("pools", sorted(state["pools"]), lambda name: [_pool(state["pools"][name])]),
            busy_list(state["sessions"]),
        ]

    def _gate(self, name: str, limits: Rows, providers: Rows) -> list[Part]:
        row, title = limits[name], name.removeprefix(PROVIDER)
        provider = providers.get(title, {}) if name.startswith(PROVIDER) else {}
        opened = name == self._opened
        values = _limit(name, row, provider, self._may)
        parts = [Part(place("gate", name), "gate", values | {"opened": opened})]
        if opened:
            found = self._read_queue(name, row) | {"cooldown": provider.get("cooldownMs")}
            parts.append(Part(place("queue", name), "queue", found))
        return parts

    def _read_queue(self, name: str, row: Row) -> dict[str, Any]:
        now = self._clock.now()
        if row["waiting"] <= _LONG or now - self._looked >= self.every * 0.9:
            self._looked = now
            limit = self._kernel.limits[name]
            self._queue = queue(self._kernel, limit, self._most) | {
                "name": name,
                "more": min(self._most + PAGE, MOST_QUEUE),
                "most": self._most,
            }
        return self._queue


def busy_list(rows: Rows) -> Part:
    """The sessions that have a run."""
    return _list("busy", _by_work(rows), lambda name: [_busy(rows[name])])


def pulse(state: State, ready: bool) -> Part:
    """The fleet in one line, for the head of every page."""
    limits = state["limits"]
    gates = {name: row for name, row in limits.items() if name.startswith(PROVIDER)}
    since = [row["waitingSince"] for row in limits.values() if row["waitingSince"] is not None]
    values = {
        "flying": sum(row["used"] - row["cooling"] for row in gates.values()),
        "waiting": sum(row["waiting"] for row in gates.values())
        or max((row["waiting"] for row in limits.values()), default=0),
        "since": min(since, default=None),
        "paused": sum(row["pausedUntil"] is not None for row in gates.values()),
        "reduced": sum(bool(row["autoReduced"]) for row in state["providers"].values()),
        "runs": sum(row["running"] for row in state["sessions"].values()),
        "ready": ready,
        "version": __version__,
    }
    return Part("pulse", "pulse", values)


def _list(kind: str, names: Sequence[str], part: Callable[[str], list[Part]]) -> Part:
    inside = [one for name in names[:MOST_ROWS] for one in part(name)]
    values = {"more": max(0, len(names) - MOST_ROWS), "count": len(names)}
    return Part(kind, kind, values, tuple(inside))


def _limit(name: str, row: Row, provider: Row, may: list[str]) -> dict[str, Any]:
    cooling, used, capacity = row["cooling"], row["used"], row["capacity"]
    upstream = provider.get("upstreamInFlight")
    return {
        "name": name,
        "title": shown(name.removeprefix(PROVIDER)),
        "provider": name.startswith(PROVIDER),
        "slots": slots(used - cooling, cooling, capacity, quarantined=row["pausedBy"] == RESTART),
        "used": used,
        "cooling": cooling,
        "capacity": capacity,
        "waiting": row["waiting"],
        "since": row["waitingSince"],
        "until": row["pausedUntil"],
        "by": row["pausedBy"],
        "upstream": upstream,
        "upstreamLimit": provider.get("upstreamLimit"),
        "elsewhere": 0 if upstream is None else max(0, upstream - used),
        "configured": provider.get("configuredLimit"),
        "reduced": bool(provider.get("autoReduced")),
        "notice": provider.get("notice"),
        "cooldown": provider.get("cooldownMs"),
        "may": "admin" in may and not name.startswith(_UNCHANGEABLE),
    }


def _pool(row: Row) -> Part:
    busy = row["starting"] + row["preparing"] + row["closing"]
    values = row | {
        "title": shown(row["name"]),
        "slots": pool_slots(row["inUse"], busy, row["available"], row["size"]),
        "lastFailure": None if row["lastFailure"] is None else shown(row["lastFailure"], 160),
    }
    return Part(place("pool", row["name"]), "pool", values)


def _busy(row: Row) -> Part:
    values = row | {
        "title": shown(row["id"]),
        "agent": shown(row["agent"] or ""),
        "slots": slots(row["running"], 0, row["maxConcurrentRuns"]),
    }
    return Part(place("busy", row["id"]), "busy_session", values)


def _by_work(rows: Rows) -> list[str]:
    """By name: those that change places are hard to hit with a finger."""
    if len(rows) <= MOST_ROWS:
        return sorted(rows)
    return sorted(rows, key=lambda name: (-rows[name]["queued"], name))
