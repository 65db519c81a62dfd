"""What `schedules.py` explores of the session server: clients who submit, wait, cancel and close anytime.

The store waits a turn before and after each write, so that anything may come before, in and after it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from interlock.core.runs import ENDED
from interlock.core.sessions import Session
from interlock.errors import InvalidOperation, RunCancelled, RunInterrupted, Unavailable
from interlock.session.server import SessionServer
from interlock.stores.memory import MemoryStore
from schedules import Loop, World
from session.logs import at_once
from session.switchover import Patient

OPEN = Session("s", "active", created_at=0.0)


class Turning(MemoryStore):
    """Every write takes a turn of the loop to come in, and another to be answered."""

    async def submit_run(self, *args: Any, **kwargs: Any) -> Any:
        return await self._turn(super().submit_run(*args, **kwargs))

    async def change_run(self, *args: Any, **kwargs: Any) -> Any:
        return await self._turn(super().change_run(*args, **kwargs))

    async def _turn(self, write: Any) -> Any:
        try:
            await asyncio.sleep(0)
        except BaseException:
            write.close()
            raise
        answer = await write
        await asyncio.sleep(0)
        return answer


class Serving(World):
    """Clients of one session with one slot, whose agent works until the environment lets it go."""

    def __init__(self, loop: Loop, cancels: int) -> None:
        super().__init__(loop, cancels)
        self.store = Turning()
        at_once(self.store.create_session(OPEN))
        self.ids: dict[str, str] = {}
        self.flying: list[str] = []
        self.server = SessionServer(
            self.store,
            self.agent,
            OPEN,
            limiter=None,
            clock=Patient(),
            governor=None,
            gate=None,
            cancel_grace=1.0,
        )

    async def agent(self, run: Any) -> Any:
        self.flying.append(run.run_id)
        try:
            await self.section(run.input["name"])
        finally:
            self.flying.remove(run.run_id)
        return run.input["name"]

    async def execute(self, name: str) -> None:
        """Submit and wait: the result is that of the own run, or says what somebody did to it."""
        run_id = self.ids[name] = await self.server.submit_run({"name": name})
        try:
            result = await self.server.await_run(run_id, timeout=None)
        except (RunCancelled, RunInterrupted):
            assert (await self.store.get_run(run_id)).status in ("cancelled", "interrupted")
        else:
            assert result.output == name

    async def cancel(self, name: str) -> None:
        """Cancel a run, if it has been submitted by now."""
        if name in self.ids:
            await self.server.cancel_run(self.ids[name])

    def check(self) -> None:
        assert len(self.flying) <= 1, "two are in flight"

    def final(self) -> None:
        super().final()
        assert not self.server._writes._tasks, "a write is left"
        assert not self.server._endings._waiting, "somebody is still waited for"
        assert not self.server._scheduler.attempts, "an attempt is left"
        assert self.server._scheduler._starter is None, "a starter is left"
        runs = at_once(self.store.list_runs("s"))
        log = at_once(self.store.get_events("s"))
        assert [event.sequence for event in log] == list(range(1, len(log) + 1))
        for run in runs:
            ends = [one.type for one in log if one.run_id == run.id and one.type[4:] in ENDED]
            unfinished = self.server.closed and run.status == "pending"
            assert unfinished or ends == [f"run_{run.status}"], (
                f"run {run.input} is {run.status}, ended {ends}"
            )
        starts = [event.run_id for event in log if event.type == "run_started"]
        order = [run.id for run in runs if run.id in starts]
        assert starts == order, "they started in another order"

    def ended(self, number: int, error: BaseException | None) -> None:
        if not (self.server.closed and isinstance(error, Unavailable)):
            super().ended(number, error)


def executed(loop: Loop, cancels: int = 2) -> World:
    """Two runs, whose callers may be cancelled."""
    world = Serving(loop, cancels)
    world.todo += [partial(world.execute, name) for name in "ab"]
    return world


def cancelled(loop: Loop, cancels: int = 1) -> World:
    """A run is cancelled at any moment, twice, by callers who may be cancelled themselves."""
    world = Serving(loop, cancels)
    world.todo += [partial(world.execute, name) for name in "ab"]
    world.todo += [partial(world.cancel, name) for name in "ab"]
    return world


def drained(loop: Loop, cancels: int = 2) -> World:
    """Draining ends when all have ended."""
    world = Serving(loop, cancels)

    async def drain() -> None:
        await world.server.drain(timeout=None)
        assert world.server.status().in_flight_count == world.server.status().queued_count == 0

    world.todo += [partial(world.execute, "a"), drain]
    return world


def closed(loop: Loop, cancels: int = 1) -> World:
    """Closing at any moment, by two, one of whom may be cancelled: what was taken is whole."""
    world = Serving(loop, cancels)
    world.todo += [partial(world.execute, "a"), partial(world.execute, "b")]
    world.todo += [partial(world.server.close, timeout=0), partial(world.server.close, timeout=None)]
    return world


def completed(loop: Loop, cancels: int = 1) -> World:
    """Completing at any moment: refused, or nothing is left to do."""
    world = Serving(loop, cancels)

    async def complete() -> None:
        try:
            await world.server.close(complete=True, timeout=0)
        except InvalidOperation:
            assert at_once(world.store.get_session("s")).status == "active"
        else:
            assert at_once(world.store.get_session("s")).status == "completed"
            assert all(run.status in ENDED for run in at_once(world.store.list_runs("s")))

    world.todo += [partial(world.execute, "a"), complete]
    return world


SERVING: dict[str, Callable[..., World]] = {
    one.__name__: one for one in (executed, cancelled, drained, closed, completed)
}
