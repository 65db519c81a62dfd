"""What connects a process to the kernel that it shares, and who hears of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import asyncio


class Listener(Protocol):
    """Who uses a link."""

    def greeted(self, epoch: str) -> None:
        """The other end is there: say what it has to know, before anything else."""

    def heard(self, answers: list[list[Any]], asked: float) -> None:
        """The other end said *answers*, having heard what was sent at *asked* (on the clock of leases)."""

    def silent(self) -> None:
        """The connection is gone; what was asked for on it will not be answered."""

    def beat(self) -> None:
        """It is time to say something, if only to show that this end is alive."""


class Link(Protocol):
    """A connection that is kept up from `start` until `stop`."""

    up: bool
    """Whether the other end has answered the greeting and nothing has gone wrong since."""
    trouble: str
    """What went wrong last, while it is not up."""

    def start(self) -> asyncio.AbstractEventLoop:
        """Keep a connection up from the running loop, which is returned."""

    def say(self, operation: tuple[Any, ...], again: tuple[Any, ...] | None = None) -> None:
        """Send *operation* with this step's others; *again* is what to say should it get lost on the way.

        Without a connection only *again* is kept.
        """

    async def stop(self, within: float) -> None:
        """Let the other end hear what was said, for *within* seconds, and hang up."""
