"""The third page: who or what changed which limit, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from interlock.http.control import PROVIDER
from interlock.http.dashboard.parts import Part, place, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from interlock.http.overview import State
    from interlock.ledger import Change, Ledger

PAGE: Final = 100
_MOST_LIMITS: Final = 200


class LedgerView:
    """The latest changes of every limit, or those of *limit* with numbers below *before*."""

    name = "ledger"
    every = 5.0

    def __init__(self, ledger: Ledger | None, limit: str | None = None, before: int | None = None) -> None:
        self._ledger = ledger
        self._limit = limit
        self._before = before
        self._noted = -1
        self._changes: list[tuple[str, Change]] = []

    async def parts(self, state: State) -> Sequence[Part]:
        """The limits to choose from, and the changes."""
        if self._ledger is None:
            return [Part("missing", "missing", {"text": "This server keeps no ledger of its limits."})]
        names = sorted(self._ledger.known())[:_MOST_LIMITS]
        if self._ledger.noted != self._noted:
            self._noted = self._ledger.noted
            self._changes = await self._read(self._ledger, names)
        rows = [_row(name, change) for name, change in self._changes[:PAGE]]
        more = len(self._changes) > PAGE and self._limit is not None
        values: dict[str, Any] = {
            "names": [(name, shown(name.removeprefix(PROVIDER))) for name in names],
            "limit": self._limit,
            "first": self._before is None,
            "next": self._changes[PAGE - 1][1].number if more else None,
            "all": self._limit is None,
        }
        return [Part("changes", "ledger", values, tuple(rows))]

    async def _read(self, ledger: Ledger, names: list[str]) -> list[tuple[str, Change]]:
        if self._limit is not None:
            found = await ledger.history(self._limit, before=self._before, limit=PAGE + 1)
            return [(self._limit, change) for change in found]
        changes = [(name, one) for name in names for one in await ledger.history(name, limit=PAGE)]
        return sorted(changes, key=lambda pair: (-pair[1].at, pair[0], -pair[1].number))


def _row(name: str, change: Change) -> Part:
    values = {
        "name": name,
        "title": shown(name.removeprefix(PROVIDER)),
        "at": round(change.at * 1000),
        "old": change.old,
        "new": change.new,
        "by": shown(change.by),
        "evidence": shown(change.evidence, 200),
        "less": change.new is not None and (change.old is None or change.new < change.old),
    }
    return Part(place("change", f"{name} {change.number}"), "change", values)
