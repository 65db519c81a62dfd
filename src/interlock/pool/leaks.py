"""Agents that are out for suspiciously long, and who has them."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interlock.admission.validation import to_ms

if TYPE_CHECKING:
    from interlock.core.shelf import Member, Shelf
    from interlock.ports import Clock, TimerHandle

log = logging.getLogger(__name__)


class LeakReport:
    """Warns of every agent of *shelf* that is out for more than *seconds*, once a checkout."""

    def __init__(self, name: str, shelf: Shelf, clock: Clock, seconds: float) -> None:
        self._name = name
        self._shelf = shelf
        self._clock = clock
        self._after_ms = to_ms(seconds)
        self._timer: TimerHandle | None = None

    def note(self, member: Member) -> None:
        """*member* has just been handed to the task that runs now."""
        member.since_ms = to_ms(self._clock.now())
        member.user = asyncio.current_task()
        member.warned = False
        if self._timer is None:
            self._look_at(member.since_ms)

    def close(self) -> None:
        """Report nothing any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _look_at(self, since_ms: int) -> None:
        """Look again when what is out since then is out for too long."""
        self._timer = self._clock.call_at((since_ms + self._after_ms) / 1000, self._look)

    def _look(self) -> None:
        self._timer = None
        now_ms = to_ms(self._clock.now())
        young = []
        for member in self._shelf.out():
            if member.warned or member.user is None:
                continue
            out_ms = now_ms - member.since_ms
            if out_ms < self._after_ms:
                young.append(member.since_ms)
                continue
            member.warned = True
            user, seconds = named(member.user), out_ms / 1000
            log.warning("pool %r: %r is out for %g s, with %s", self._name, member.agent, seconds, user)
        if young:
            self._look_at(min(young))


def named(task: asyncio.Task[Any] | None) -> str:
    """*task* for a reader who looks for it: its name, and where it stands."""
    if task is None:
        return "no task"
    if task.done():
        return f"task {task.get_name()!r}, which has ended"
    stack = task.get_stack(limit=1)
    if not stack:
        return f"task {task.get_name()!r}"
    code = stack[0].f_code
    return f"task {task.get_name()!r} at {Path(code.co_filename).name}:{stack[0].f_lineno} in {code.co_name}"
