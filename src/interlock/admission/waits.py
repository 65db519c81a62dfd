"""Who is told of waits: when one begins, by the task that waits, and again when it has ended."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from interlock.admission.callback import call_back

if TYPE_CHECKING:
    from collections.abc import Iterable


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


def begin(watchers: Iterable[WaitWatcher], wait: Wait) -> WaitEnded:
    """Tell all *watchers* of *wait*; what is given tells them of its end. What one raises harms nothing."""
    ends: list[WaitEnded] = []
    for watcher in watchers:
        call_back(partial(_begin, watcher, wait, ends))

    def ended(how: str, seconds: float) -> None:
        for end in ends:
            call_back(end, how, seconds)

    return ended


def _begin(watcher: WaitWatcher, wait: Wait, ends: list[WaitEnded]) -> None:
    ends.append(watcher(wait))
