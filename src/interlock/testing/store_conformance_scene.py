"""What a case of the stores' conformance suite works with: an empty store, and records to write."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from interlock.core.sessions import NewEvent, Run, RunChange, Session

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from interlock.core.runs import RunStatus, RunVerb
    from interlock.core.sessions import Event
    from interlock.ports import Store

E = TypeVar("E", bound=BaseException)

NO_JSON: Any = object()
"""What no store can keep, for the refusal of a batch."""
WAYS: dict[RunStatus, tuple[RunVerb, ...]] = {
    "pending": (),
    "running": ("start",),
    "paused": ("start", "pause"),
    "completed": ("start", "complete"),
    "failed": ("start", "fail"),
    "cancelled": ("start", "cancel"),
    "interrupted": ("start", "interrupt"),
    "timeout": ("start", "time_out"),
}
"""The verbs that lead a new run to each status."""


@dataclass(frozen=True)
class Case:
    """One rule as a scene; its docstring says the rule."""

    name: str
    rule: str
    play: Callable[[Scene], Awaitable[None]]


CASES: list[Case] = []


def case(play: Callable[[Scene], Awaitable[None]]) -> Callable[[Scene], Awaitable[None]]:
    """Make *play* a case of the suite."""
    CASES.append(Case(play.__name__, play.__doc__ or "", play))
    return play


class Scene:
    """One empty store, with short ways to write to it. All that it writes happens at second 1.0."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._serial = itertools.count(1)

    def event(self, type_: str = "message_sent", **fields: Any) -> NewEvent:
        """An event with an id that no other has."""
        return NewEvent(**{"id": f"event-{next(self._serial)}", "type": type_, "timestamp": 1.0, **fields})

    async def session(self, id_: str = "s", status: Any = "active", **fields: Any) -> Session:
        """A session in the store, without an event."""
        return await self.store.create_session(Session(id_, status, **{"created_at": 1.0, **fields}))

    async def run(self, id_: str = "r", session_id: str = "s", **fields: Any) -> Run:
        """A pending run of a session that is there."""
        run, new = await self.store.submit_run(Run(id_, session_id, **{"submitted_at": 1.0, **fields}))
        assert new, f"run {id_} is known already"
        return run

    async def run_in(self, status: RunStatus, id_: str, session_id: str = "s") -> Run:
        """A run that was led to *status*."""
        run = await self.run(id_, session_id)
        for verb in WAYS[status]:
            run = await self.changed(id_, verb)
        assert run.status == status
        return run

    async def changed(self, run_id: str, verb: Any, at: float = 1.0, **fields: Any) -> Run:
        """The run after a change that must be possible."""
        run = await self.store.change_run(run_id, RunChange(verb, at, **fields))
        assert run is not None, f"{verb} was refused"
        return run

    async def append(self, count: int, session_id: str = "s", type_: str = "message_sent") -> list[NewEvent]:
        """*count* events at the end of a log, written at once."""
        events = [self.event(type_) for _ in range(count)]
        await self.store.append(session_id, events)
        return events

    async def events(self, session_id: str = "s", **filters: Any) -> list[Event]:
        """The log, or what the filters leave of it."""
        return await self.store.get_events(session_id, **filters)

    async def sequences(self, session_id: str = "s", **filters: Any) -> list[int]:
        """The numbers of the events in the log."""
        return [event.sequence for event in await self.events(session_id, **filters)]

    async def settled(self, session_id: str = "s") -> None:
        """Return once nothing is on its way any more to those who watch the session."""
        bell = Bell()
        leave = self.store.watch(session_id, bell)
        await self.store.append(session_id, [self.event()])
        await bell.rung()
        leave()

    async def refused(self, awaitable: Awaitable[Any], kind: type[E]) -> E:
        """The error with which *awaitable* ends; AssertionError for any other end."""
        try:
            result = await awaitable
        except kind as error:
            return error
        raise AssertionError(f"{kind.__name__} was expected, not {result!r}")


class Bell:
    """A callback that counts, and can be waited for."""

    def __init__(self) -> None:
        self.rings = 0
        self._waiting: asyncio.Future[None] | None = None

    def __call__(self) -> None:
        self.rings += 1
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def rung(self, seconds: float = 10.0) -> None:
        """Return once it has rung at least once; TimeoutError if it does not."""
        async with asyncio.timeout(seconds):
            while not self.rings:
                self._waiting = asyncio.get_running_loop().create_future()
                await self._waiting
