"""What a store's sessions did in this process: how many runs started and how they ended, and who is told."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, TypeAlias
from weakref import WeakKeyDictionary

from interlock.core.runs import ENDED

if TYPE_CHECKING:
    from collections.abc import Callable

    from interlock.core.runs import RunStatus
    from interlock.core.sessions import Run
    from interlock.ports import Store

AttemptEnded: TypeAlias = "Callable[[Run | None], object]"
"""Called with the run as its attempt left it; None where that could not be written."""
AttemptWatcher: TypeAlias = "Callable[[Run], AttemptEnded]"
"""Called when an agent is about to work, by the task that calls it; what it gives is called at the end."""


class RunTally:
    """Two kinds of numbers that only grow, and who is told of runs and attempts."""

    def __init__(self) -> None:
        self.started = 0
        """Also a run that is started again counts again."""
        self.ended: Counter[RunStatus] = Counter()
        self.on_submit: list[Callable[[Run], object]] = []
        """Called with every new run before it can start, in the context of whoever submitted it."""
        self.on_attempt: list[AttemptWatcher] = []


_tallies: WeakKeyDictionary[Store, RunTally] = WeakKeyDictionary()


def tally_of(store: Store) -> RunTally:
    """The numbers of *store*, in this process."""
    tally = _tallies.get(store)
    if tally is None:
        tally = _tallies[store] = RunTally()
    return tally


def note_start(store: Store) -> None:
    """A run was started."""
    tally_of(store).started += 1


def note_end(store: Store, run: Run | None) -> None:
    """A run is *run* after a change that should end it; None, or one that has not ended, is no end."""
    if run is not None and run.status in ENDED:
        tally_of(store).ended[run.status] += 1
