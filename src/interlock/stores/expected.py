"""What somebody who examines a store has to know beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection


class Expected(NamedTuple):
    """What the configuration says of a store: its agents, and how many events a session may keep."""

    agents: Collection[str] = ()
    max_events: int | None = None
