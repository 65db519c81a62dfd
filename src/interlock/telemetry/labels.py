"""What numbers are told apart by, in every kind of telemetry: a bounded number of names, and no id.

Every value of a label is a time series that somebody has to store.
"""

from __future__ import annotations

from typing import Final

MOST_VALUES: Final = 1000
"""Different values of one label; whatever comes after them is `OTHER`."""
OTHER: Final = "other"
PER_ID: Final = frozenset(("tools", "session", "run", "agent"))
"""Families of limits with one for each agent or session: ``tools:coder`` is counted as ``tools:*``."""
BUCKETS: Final = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Seconds of waiting."""


class Bounded:
    """The values of one label: the first *most* are themselves for good, all others `OTHER`."""

    def __init__(self, most: int = MOST_VALUES) -> None:
        self._most = most - 1  # `OTHER` is one of them
        self._known: set[str] = set()

    def value(self, text: str) -> str:
        if text not in self._known:
            if len(self._known) >= self._most:
                return OTHER
            self._known.add(text)
        return text


class LimitLabels(Bounded):
    """The names of limits as values of a label."""

    def value(self, text: str) -> str:
        family, colon, _ = text.partition(":")
        return f"{family}:*" if colon and family in PER_ID else super().value(text)
