"""Logs to subscribe to, and stores that hide what a real one may do: wait, fail, give no hints."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

from interlock.core.sessions import Event, NewEvent, Session
from interlock.ports import Store
from interlock.session.subscription import Subscription, subscribe
from interlock.stores.memory import MemoryStore

SESSION = "s"
_ids = count()


def said(*texts: object, type_: str = "message_sent", run_id: str | None = None) -> list[NewEvent]:
    """An event for each of *texts*."""
    return [NewEvent(f"e{next(_ids)}", type_, 1.0, run_id, {"text": str(text)}) for text in texts]


async def opened(store: Any, *events: NewEvent) -> Any:
    """*store* with a session that has these events."""
    await store.create_session(Session(SESSION, "active"), events)
    return store


async def complete(store: Any, verb: Any = "complete") -> None:
    """End the session."""
    kind = {"complete": "session_completed", "fail": "session_failed", "cancel": "session_cancelled"}[verb]
    await store.change_session(SESSION, verb, 2.0, said("", type_=kind))


async def taken(subscription: Subscription, most: int | None = None) -> list[int]:
    """The numbers of the next *most* events, or of all to the end."""
    numbers: list[int] = []
    if most == 0:
        return numbers
    async for event in subscription:
        numbers.append(event.sequence)
        if len(numbers) == most:
            break
    return numbers


async def everything(store: Store, **asked: Any) -> list[int]:
    """The numbers of what a subscription gives to its end."""
    async with subscribe(store, SESSION, **asked) as events:
        return await taken(events)


class Watched(MemoryStore):
    """A store in memory that waits a turn before and after each read, and shows what was read.

    It can be told to give no hints, and to fail.
    """

    def __init__(self, *, hints: bool = True, turns: int = 1) -> None:
        super().__init__()
        self.hints = hints
        self.turns = turns
        self.failing: Exception | None = None
        self.fail_once: list[Exception] = []
        self.reads: list[dict[str, Any]] = []
        self.failed_at: list[float] = []
        self.now: Callable[[], float] = lambda: 0.0

    async def get_events(self, session_id: str, **asked: Any) -> list[Event]:
        await self._turn()
        self.reads.append(asked)
        found = await super().get_events(session_id, **asked)
        await self._turn()
        return found

    async def get_session(self, session_id: str) -> Session:
        await self._turn()
        found = await super().get_session(session_id)
        await self._turn()
        return found

    async def _turn(self) -> None:
        for _ in range(self.turns):
            await asyncio.sleep(0)
        error = self.fail_once.pop() if self.fail_once else self.failing
        if error is not None:
            self.failed_at.append(self.now())
            raise error

    def watch(self, session_id: str, callback: Callable[[], None]) -> Callable[[], None]:
        return super().watch(session_id, callback if self.hints else lambda: None)

    @property
    def watchers(self) -> int:
        return sum(map(len, self._watches.values()))


def at_once(step: Any) -> Any:
    """What a coroutine returns that never waits."""
    try:
        step.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waits")


def numbers(events: Sequence[Event]) -> list[int]:
    return [event.sequence for event in events]
