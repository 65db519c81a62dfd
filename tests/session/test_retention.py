"""Retention on a schedule."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from interlock.core.sessions import Pruned, Retention
from interlock.errors import StoreError
from interlock.session.retention import Pruner
from interlock.stores.memory import MemoryStore
from interlock.testing import VirtualClock, idle

if TYPE_CHECKING:
    import pytest


class Watched(MemoryStore):
    def __init__(self) -> None:
        super().__init__()
        self.at: list[float] = []
        self.full = False

    async def prune(self, retention: Retention, now: float) -> Pruned:
        self.at.append(now)
        if self.full:
            raise StoreError("the disk is full")
        return await super().prune(retention, now)


async def test_it_is_done_at_the_start_and_then_at_times(caplog: pytest.LogCaptureFixture) -> None:
    """Also after a time that failed; and no more after the end."""
    store, clock = Watched(), VirtualClock(10.0)
    pruner = Pruner(store, Retention(), every=5, clock=clock)
    pruner.start()
    await idle()
    assert store.at == [10.0]
    store.full = True
    with caplog.at_level(logging.WARNING):
        await clock.advance(5)
    assert "the store could not be pruned: the disk is full" in caplog.text
    store.full = False
    await clock.advance(5)
    assert store.at == [10.0, 15.0, 20.0]
    await pruner.aclose()
    await clock.advance(50)
    assert len(store.at) == 3


async def test_it_ends_with_its_store() -> None:
    store, clock = Watched(), VirtualClock(10.0)
    pruner: Any = Pruner(store, Retention(), every=5, clock=clock)
    pruner.start()
    await idle()
    await store.aclose()
    await clock.advance(5)
    assert pruner._task.done()
    assert pruner._task.exception() is None
    await pruner.aclose()
    await Pruner(store, Retention(), every=5, clock=clock).aclose()
