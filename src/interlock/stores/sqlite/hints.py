"""Who wants to be told when something of a session was committed."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from interlock.stores.sqlite.group import Job


class _Watch:
    __slots__ = ("callback", "loop")

    def __init__(self, callback: Callable[[], None]) -> None:
        self.loop = asyncio.get_running_loop()
        self.callback: Callable[[], None] | None = callback

    def tell(self) -> None:
        if self.callback is not None:
            self.callback()


class Hints:
    """Watchers by session: they come and go in their event loops, the writer tells them in its thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watches: dict[str, set[_Watch]] = {}
        self._noted: set[str] = set()  # the writer's own

    def watch(self, session_id: str, callback: Callable[[], None]) -> Callable[[], None]:
        """Call *callback* in the running loop after commits of the session; what ends that."""
        watch = _Watch(callback)
        with self._lock:
            self._watches.setdefault(session_id, set()).add(watch)

        def unwatch() -> None:
            watch.callback = None
            with self._lock:
                others = self._watches.get(session_id, set())
                others.discard(watch)
                if not others:
                    self._watches.pop(session_id, None)

        return unwatch

    def note(self, session_id: str) -> None:
        """The transaction in hand writes something of the session."""
        self._noted.add(session_id)

    def tell(self, jobs: list[Job]) -> None:
        """The transaction of *jobs* is committed, or given up: a hint more does no harm."""
        if not self._watches:
            self._noted.clear()
            return
        touched = self._noted.union([job.session_id for job in jobs if job.session_id is not None])
        self._noted.clear()
        with self._lock:
            told = [watch for id_ in touched for watch in self._watches.get(id_, ())]
        _tell(told)

    def tell_all(self) -> None:
        """There is nothing more to come: whoever waits should see for himself."""
        with self._lock:
            told = [watch for watches in self._watches.values() for watch in watches]
        _tell(told)


def _tell(told: list[_Watch]) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[_Watch]] = {}
    for watch in told:
        by_loop.setdefault(watch.loop, []).append(watch)
    for loop, watches in by_loop.items():
        with suppress(RuntimeError):  # the loop was closed: nobody is left to be told
            loop.call_soon_threadsafe(_spread, loop, watches)


def _spread(loop: asyncio.AbstractEventLoop, watches: list[_Watch]) -> None:
    """Each in a step of its own, so that one that raises takes no other with it."""
    for watch in watches:
        loop.call_soon(watch.tell)
