"""What is told of a wait to whoever wants to know: when it begins, by the task that waits, and at its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeAlias


class Wait(NamedTuple):
    """A request that begins to wait. *position* tells how many go first, None where that is not known here;
    it takes a step for each who waits, so it is asked only by who wants to know."""

    limits: tuple[str, ...]
    owner: str | None
    priority: int
    position: Callable[[], int | None]


WaitEnded: TypeAlias = Callable[[str, float], object]
"""Called with how a wait ended (``granted``, ``cancelled``, or the code of the error) and its seconds."""
WaitWatcher: TypeAlias = Callable[[Wait], WaitEnded]
"""Called when a wait begins; what it gives is called once when that wait has ended."""


class TellsOfWaits(Protocol):
    """Every admission: whoever is in the list is told of each wait, by the task that waits."""

    on_wait: list[WaitWatcher]
