"""What a process counts of the runs of its stores."""

from __future__ import annotations

import pytest

from interlock.clock import SystemClock
from interlock.core.sessions import Retry, Run, RunChange, Session
from interlock.session.recovery import recover
from interlock.session.tally import tally_of
from interlock.stores.memory import MemoryStore


@pytest.mark.parametrize(("retry", "ended"), [(None, {"interrupted": 1}), ("on_crash", {})])
async def test_what_a_dead_server_left_in_flight_ends_once(
    retry: Retry | None, ended: dict[str, int]
) -> None:
    """It ended where it is not to be run again, and was not started by us; another store knows nothing."""
    store = MemoryStore()
    await store.create_session(Session("s", "active"))
    await store.submit_run(Run("r", "s", retry=retry))
    await store.change_run("r", RunChange("start", 1.0, 0))
    for _ in range(2):
        await recover(store, "s", SystemClock())
    assert (tally_of(store).started, tally_of(store).ended) == (0, ended)
    assert tally_of(MemoryStore()).ended == {}
