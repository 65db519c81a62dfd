"""Until when leased permits may live, as a restarted server will still know.

The kernel forgets everything with its process, but those who hold a permit of it do not: until their leases
have ended, a new server must not give their units to anybody else. So before a grant or a renewal is
acknowledged, the end of its lease is durable, for each of its limits; and at its start a server pauses those
limits until then. A holder that is still there says so, and is counted again at once; for one that is not,
the pause is what its lease would have cost.

One more lease period is written ahead, so that it is one write for each limit and period, not for each grant.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from interlock.ports import Settings

log = logging.getLogger(__name__)

_PREFIX = "lease:"
_UNREADABLE = 60.0
"""Seconds of lease assumed where an entry cannot be read."""


class LeaseRecord:
    """The ends of leases by limit, in *store*; *now* gives seconds since the epoch."""

    def __init__(self, store: Settings, now: Callable[[], float]) -> None:
        self._store = store
        self._now = now
        self._ends: dict[str, float] = {}
        self._leases: dict[str, float] = {}
        self._writing: dict[str, asyncio.Task[None]] = {}

    async def load(self) -> dict[str, float]:
        """Until when each limit may still be held by somebody who does not say so.

        No lease that was given before this start ends later than its length from now: that bounds the wait
        also if the clock was set back meanwhile.
        """
        now = self._now()
        ends = {}
        for key, value in (await self._store.items(_PREFIX)).items():
            name = key.removeprefix(_PREFIX)
            end, lease = _read(value, now)
            # What is written stays so: a shorter lease of today must not make it less.
            self._ends[name], self._leases[name] = end, lease
            if end > now:
                ends[name] = min(end, now + lease)
        return ends

    def covers(self, names: Iterable[str], end: float, lease: float) -> bool:
        """Whether it is durable that *names* may be held until *end*, by a lease of *lease* seconds."""
        ends, leases = self._ends, self._leases
        return all(ends.get(name, 0.0) >= end and leases[name] >= lease for name in names)

    async def cover(self, names: Iterable[str], end: float, lease: float) -> None:
        """Return once `covers` is so. `StoreError` if it cannot be made so."""
        for name in names:
            while not self.covers((name,), end, lease):
                writing = self._writing.get(name)
                if writing is None:
                    writing = asyncio.get_running_loop().create_task(self._write(name, end, lease))
                    self._writing[name] = writing
                    writing.add_done_callback(_look_at)
                # Others wait for the same write: who is cancelled here leaves it alone.
                await asyncio.wait((writing,))
                if (error := writing.exception()) is not None:
                    raise error

    async def _write(self, name: str, end: float, lease: float) -> None:
        try:
            longest = max(lease, self._leases.get(name, 0.0))
            ahead = max(end + lease, self._ends.get(name, 0.0))
            await self._store.set(_PREFIX + name, json.dumps({"until": ahead, "lease": longest}))
            self._ends[name] = ahead
            self._leases[name] = longest
        finally:
            del self._writing[name]

    async def settle(self, live: Mapping[str, float]) -> None:
        """At a clean end: only what is in *live* is held on, until the time given."""
        now = self._now()
        if self._writing:
            await asyncio.wait(tuple(self._writing.values()))
        self._ends.clear()
        for key in await self._store.items(_PREFIX):
            if key.removeprefix(_PREFIX) not in live:
                await self._store.delete(key)
        for name, end in live.items():
            entry = {"until": end, "lease": max(0.0, end - now)}
            await self._store.set(_PREFIX + name, json.dumps(entry))


def _read(value: str, now: float) -> tuple[float, float]:
    """End and length as they were written; the careful reading of anything else."""
    try:
        entry = json.loads(value)
        end, lease = float(entry["until"]), float(entry["lease"])
    except (ValueError, TypeError, KeyError, RecursionError):
        log.warning("an entry of the store about leases cannot be read: %.80r", value)
        return now + _UNREADABLE, _UNREADABLE
    return (end, lease) if end == end and lease >= 0 else (now + _UNREADABLE, _UNREADABLE)


def _look_at(task: asyncio.Task[None]) -> None:
    """Whoever waits for the write raises its error; nobody may be left to do so."""
    if not task.cancelled():
        task.exception()
