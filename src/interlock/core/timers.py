"""One heap of deadlines. Expiry is an operation (`Kernel.tick`), never something that happens."""

from __future__ import annotations

from enum import IntEnum
from heapq import heapify, heappop, heappush
from typing import Any


class Kind(IntEnum):
    """What falls due; at one instant in this order.

    What brings room back stands before deadlines: a waiter whose room comes in the very
    millisecond of its deadline still gets it.
    """

    HOLD = 0
    LEASE = 1
    PAUSE = 2
    READING = 3
    DEADLINE = 4


class Timer:
    """Something that falls due at ``due_ms``; called off by dropping its subject."""

    __slots__ = ("due_ms", "fired", "kind", "subject")

    def __init__(self, due_ms: int, kind: Kind, subject: Any) -> None:
        self.due_ms = due_ms
        self.kind = kind
        self.subject = subject
        self.fired = False


class Timers:
    """A heap with O(log n) arming and O(1) cancelling; called-off entries go when half are dead."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, Kind, int, Timer]] = []
        self._serial = 0
        self._dead = 0
        self.moved = False
        """Set when something became the earliest; whoever keeps the alarm clock clears it."""

    def __len__(self) -> int:
        return len(self._heap) - self._dead

    def arm(self, due_ms: int, kind: Kind, subject: Any) -> Timer:
        self._serial += 1
        timer = Timer(due_ms, kind, subject)
        entry = (due_ms, kind, self._serial, timer)
        heappush(self._heap, entry)
        if self._heap[0] is entry:
            self.moved = True
        return timer

    def cancel(self, timer: Timer | None) -> None:
        if timer is None or timer.fired or timer.subject is None:
            return
        timer.subject = None
        self._dead += 1
        if self._dead > 64 and self._dead * 2 > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[3].subject is not None]
            heapify(self._heap)
            self._dead = 0

    def next_ms(self) -> int | None:
        """When the earliest of them falls due."""
        self._bury()
        return self._heap[0][0] if self._heap else None

    def pop_due(self, now_ms: int) -> Timer | None:
        """The earliest that is due at *now_ms*, taken out; to cancel it means nothing any more."""
        self._bury()
        if not self._heap or self._heap[0][0] > now_ms:
            return None
        timer = heappop(self._heap)[3]
        timer.fired = True
        return timer

    def _bury(self) -> None:
        while self._heap and self._heap[0][3].subject is None:
            heappop(self._heap)
            self._dead -= 1
