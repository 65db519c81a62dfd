"""What need not be kept is removed, at the start and then at times."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from interlock.errors import StoreError, Unavailable
from interlock.session.patience import sleep

if TYPE_CHECKING:
    from interlock.core.sessions import Retention
    from interlock.ports import Clock, Store

log = logging.getLogger(__name__)


class Pruner:
    """Prunes *store* every so many seconds from `start` to `aclose`; one that fails is tried next time."""

    def __init__(self, store: Store, retention: Retention, *, every: float, clock: Clock) -> None:
        self._store = store
        self._retention = retention
        self._every = every
        self._clock = clock
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def aclose(self) -> None:
        """End."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    async def _run(self) -> None:
        while True:
            try:
                pruned = await self._store.prune(self._retention, self._clock.now())
                if pruned.removed_sessions or pruned.removed_events:
                    log.info(
                        "pruned %d sessions and %d events", pruned.removed_sessions, pruned.removed_events
                    )
            except Unavailable:
                return
            except StoreError as error:
                log.warning("the store could not be pruned: %s", error)
            await sleep(self._clock, self._every)
