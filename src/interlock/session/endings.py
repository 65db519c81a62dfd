"""Who waits for the end of a run; what it was, they read from the store."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from interlock.core.runs import ENDED
from interlock.errors import AcquireTimeout, Unavailable
from interlock.session.controls import own_run
from interlock.session.patience import settle, within

if TYPE_CHECKING:
    from collections.abc import Callable

    from interlock.core.sessions import Run
    from interlock.ports import Clock, Store


class Endings:
    """The callers who wait for runs of one session to end."""

    def __init__(self, store: Store, session_id: str, clock: Clock) -> None:
        self._store = store
        self._session_id = session_id
        self._clock = clock
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}

    async def wait(self, run_id: str, timeout: float | None, *, served: Callable[[], bool]) -> Run:
        """The run as it ended, as long as the session is *served*.

        Raises `AcquireTimeout` after *timeout* seconds (None: never), `RunNotFound`, `Unavailable`.
        """
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Registered first: it may end between the reading and the waiting.
        self._waiting.setdefault(run_id, set()).add(ended)
        try:
            run = await own_run(self._store, self._session_id, run_id)
            if run.status not in ENDED and served():
                async with within(self._clock, timeout):
                    await ended
                run = await own_run(self._store, self._session_id, run_id)
        except TimeoutError:
            message = f"run {run_id!r} has not ended within {timeout:g} s; it goes on"
            raise AcquireTimeout(message, run_id=run_id) from None
        finally:
            others = self._waiting.get(run_id, set())
            others.discard(ended)
            if not others:
                self._waiting.pop(run_id, None)
        if run.status not in ENDED:
            raise Unavailable(
                f"session {self._session_id!r} is not served any more; run {run_id!r} is as it was",
                run_id=run_id,
            )
        return run

    def tell(self, run_id: str) -> None:
        """The run has ended."""
        for waiting in self._waiting.get(run_id, ()):
            settle(waiting)

    def tell_all(self) -> None:
        """Nobody needs to wait any more."""
        for run_id in self._waiting:
            self.tell(run_id)
