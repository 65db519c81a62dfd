"""What the fleet looks like at one moment, as rows by name, and what has changed from one moment to another.

Every row is a value of the state alone: times are moments, not durations, so a row that stays is equal.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from interlock.admission.readings import read_limit
from interlock.http.concurrency import provider_status
from interlock.http.control import PROVIDER, camel, limit_body
from interlock.telemetry.longest import Longest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from interlock.http.control import Fleet
    from interlock.provider.gate import ProviderGate
    from interlock.session.sessions import Sessions

    Row = dict[str, Any]
    Rows = dict[str, Row]
    State = dict[str, Rows]

RESTART = "restart"
"""Why a limit is paused that may be held from before this server began."""
SECTIONS = ("limits", "providers", "pools", "sessions")
_IN_LIMITS = ("inFlight", "cooling", "queued", "paused", "pausedUntil")
"""Of a provider's status what its limit's row says already."""


class Overview:
    """Reads the state of a fleet: its limits, providers, pools, and the sessions that have runs."""

    def __init__(
        self,
        gate: ProviderGate,
        fleet: Fleet | None,
        sessions: Sessions | None,
        quarantined: Callable[[str], bool] = lambda _: False,
    ) -> None:
        self._gate = gate
        self._fleet = fleet
        self._sessions = sessions
        self._quarantined = quarantined
        self._longest = Longest()

    def read(self) -> State:
        """The state now. It costs what there are limits, however many wait for them."""
        providers = {status.provider_id: provider_status(status) for status in self._gate.statuses()}
        limits = self._limits(providers)
        for row in providers.values():
            for name in _IN_LIMITS:
                row.pop(name, None)
        pools = {} if self._fleet is None else self._fleet.pools
        return {
            "limits": limits,
            "providers": providers,
            "pools": {name: {"name": name} | camel(asdict(pool.stats())) for name, pool in pools.items()},
            "sessions": {} if self._sessions is None else _sessions(self._sessions),
        }

    def _limits(self, providers: Rows) -> Rows:
        rows = {}
        for name, limit in sorted(self._gate.admission.kernel.limits.items()):
            if limit.removed:
                continue
            row: Row = {**limit_body(read_limit(limit))}
            row["waitingSince"] = self._longest.since_ms(limit)
            said = providers.get(name.removeprefix(PROVIDER), {}) if name.startswith(PROVIDER) else {}
            why = RESTART if self._quarantined(name) else said.get("reason", "operator")
            row["pausedBy"] = None if row["pausedUntil"] is None else why
            rows[name] = row
        return rows


def _sessions(sessions: Sessions) -> Rows:
    """Those that have a run; a session that rests is asked for where it is wanted."""
    rows = {}
    for session_id, server in sessions.running.items():
        status = server.status()
        if status.in_flight_count or status.queued_count:
            rows[session_id] = {
                "id": session_id,
                "agent": server.session.agent_id,
                "running": status.in_flight_count,
                "queued": status.queued_count,
                "maxConcurrentRuns": status.max_concurrent_runs,
            }
    return rows


def changes(before: State, now: State) -> dict[str, Mapping[str, Row | None]]:
    """The rows of *now* that are not as *before*, by section and name; None for one that is gone."""
    found: dict[str, Mapping[str, Row | None]] = {}
    for section, rows in now.items():
        old = before.get(section, {})
        new: dict[str, Row | None] = {name: row for name, row in rows.items() if old.get(name) != row}
        new |= {name: None for name in old if name not in rows}
        if new:
            found[section] = new
    return found
