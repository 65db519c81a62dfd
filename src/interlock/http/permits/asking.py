"""An acquisition stepped by hand: its first step in the moment of asking, the next when its future is done.

A task would take its first step a turn of the loop later, and whatever the same message says next would come
before it: a newcomer could pass somebody who had asked already. It also costs nothing to ask for what is
free, which is most of it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from interlock.errors import InterlockError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator

T = TypeVar("T")


class Asking:
    """*steps* is what an awaitable's ``__await__`` gives; *settled* is called once, with its result or error.

    *settled* may be replaced as long as this waits: somebody else takes the answer then.
    """

    __slots__ = ("_future", "_steps", "settled")

    def __init__(
        self, steps: Generator[Any, None, Any], settled: Callable[[Any, InterlockError | None], None]
    ) -> None:
        self._steps: Generator[Any, None, Any] | None = steps
        self._future: asyncio.Future[Any] | None = None
        self.settled = settled

    @property
    def waiting(self) -> bool:
        return self._steps is not None

    def begin(self) -> None:
        """Ask. `settled` may have been called when this returns."""
        self._step(None)

    def leave(self) -> bool:
        """Want it no more, as a cancelled task would; False if it was settled already."""
        if self._steps is None:
            return False
        self._step(asyncio.CancelledError())
        return True

    def _step(self, cancelled: asyncio.CancelledError | None) -> None:
        steps = self._steps
        assert steps is not None
        self._future = None
        try:
            future = steps.send(None) if cancelled is None else steps.throw(cancelled)
        except StopIteration as done:
            self._settle(done.value, None)
        except InterlockError as error:
            self._settle(None, error)
        except asyncio.CancelledError:
            self._steps = None
        else:
            future._asyncio_future_blocking = False  # as a task does that has been handed a future
            self._future = future
            future.add_done_callback(self._go_on)

    def _go_on(self, future: asyncio.Future[Any]) -> None:
        # Left after the future was done, but before this was called: the leaving has seen to everything.
        if future is self._future:
            self._step(None)

    def _settle(self, result: Any, error: InterlockError | None) -> None:
        self._steps = None
        self.settled(result, error)


def at_once(work: Coroutine[Any, Any, T]) -> T:
    """The result of *work*, which is a coroutine for the sake of others and never waits."""
    try:
        work.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    work.close()
    raise RuntimeError(f"{work!r} waits for something")
