"""What this process holds of a server's permits, and the thread that keeps their leases alive.

The thread has a connection of its own and blocks on it, so that an event loop that is busy for a minute loses
nothing. And it is not trusted: whatever stops this process stops the thread as well. So a holder fences
itself: a permit counts as lost once nine tenths of its lease have passed since the server was last known to
have renewed it, by a clock that goes on while the machine sleeps. Counted is from before the question was
sent, so that the server, whose lease begins later, gives the units to nobody else before that.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from typing import TYPE_CHECKING, Literal, Protocol

from interlock.core import model

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

MARGIN = 0.9
"""The share of a lease after which its holder counts it as lost."""
_ROUNDS = 4
"""How often permits are renewed within one lease, so that two lost rounds cost nothing."""
_MOST = 2000
_BOOTTIME = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

Ending = Literal["released", "expired", "revoked"]


def now() -> float:
    """Seconds of a clock that only goes forward, also while the machine sleeps."""
    return time.clock_gettime(_BOOTTIME)


class Held(model.Permit):
    """A permit of the server's, as its holder knows it. It ends by itself at ``until`` on the clock `now`."""

    _ended: Ending | None = None
    over: Held | None = None
    """The permit that it is nested in."""

    def __init__(
        self,
        permit_id: str,
        names: tuple[str, ...],
        fence: int,
        granted_ms: int,
        *,
        lease: float,
        kept: bool,
    ) -> None:
        super().__init__(model.Claims(tuple(sorted(names)), ()), fence, granted_ms)
        self.id = permit_id
        self.lease_seconds = lease
        self.kept = kept
        """Whether it is renewed here; a lease that its holder chose ends, or is renewed, as he likes."""
        self.epoch = ""
        self.until = float("inf")
        self.renewed = 0.0
        self.claimants = 0
        """Tasks that were granted it and have not come to run yet."""

    @property
    def ended(self) -> Ending | None:
        if self._ended is None and now() >= self.until:
            self._ended = "expired"
        return self._ended

    @ended.setter
    def ended(self, how: Ending | None) -> None:
        self._ended = how

    def lose(self, how: Ending) -> None:
        """It has ended, by *how* unless that is known better already."""
        self._ended = self._ended or how

    def confirm(self, asked: float, left: float) -> None:
        """The server said, to what was sent at *asked*, that *left* seconds of the lease are left."""
        self.renewed = max(self.renewed, asked)
        self.until = max(self.until if self.until != float("inf") else 0.0, asked + MARGIN * left)


class Renewals(Protocol):
    """How leases are renewed: calls that block, on a connection that nobody else uses."""

    def renew(self, held: list[Held], lease: float, within: float, *, adopt: bool) -> tuple[set[str], str]:
        """Renew *held* for *lease* seconds; to *adopt* them is to count again what was forgotten.

        The ids of those that are gone, and the epoch. `OSError` if there is no answer *within* seconds.
        """

    def close(self) -> None:
        """Hang up; the next call connects again."""


class LeaseKeeper:
    """The thread. It looks at *held* and calls *lost* for what is gone; both may happen at any moment."""

    def __init__(
        self,
        renewals: Renewals,
        lease: float,
        held: dict[Held, None],
        lost: Callable[[Held], None],
    ) -> None:
        self._renewals = renewals
        self._lease = lease
        self._held = held
        self._lost = lost
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, if it does not run yet."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="interlock-leases", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End it soon; what is held is renewed no more."""
        self._stopped.set()

    def _run(self) -> None:
        pause = self._lease / _ROUNDS
        while not self._stopped.wait(pause):
            try:
                self._round()
            except OSError as error:
                log.debug("leases could not be renewed: %s", error)
                self._renewals.close()
                # Not all at once, when a server comes back that many have waited for.
                pause = min(1.0, self._lease / 20) * random.uniform(0.5, 1.5)  # noqa: S311 - no secret
            else:
                pause = self._lease / _ROUNDS
        self._renewals.close()

    def _round(self) -> None:
        fresh = now() - self._lease / (2 * _ROUNDS)
        due = []
        for held in list(self._held):
            if held.ended is not None:
                self._lost(held)
            elif held.kept and held.renewed < fresh:
                due.append(held)
        for start in range(0, len(due), _MOST):
            forgotten = self._renew(due[start : start + _MOST], again=False)
            forgotten = [held for held in forgotten if held.ended is None]
            if forgotten:
                # The server has started anew, and the loop has not said yet what is held.
                self._renew(forgotten, again=True)

    def _renew(self, due: list[Held], *, again: bool) -> list[Held]:
        """Renew *due*; who are of another epoch. *again* says all that it takes to count them again."""
        asked = now()
        within = max(0.2, min(5.0, self._lease / _ROUNDS))
        lost, epoch = self._renewals.renew(due, self._lease, within, adopt=again)
        forgotten = []
        for held in due:
            if held.id not in lost:
                held.confirm(asked, self._lease)
                held.epoch = epoch
            elif held.epoch != epoch and not again:
                forgotten.append(held)
            else:
                held.lose("expired")
                self._lost(held)
        return forgotten
