"""Every event of a session from a number on, each once and in order, for as long as the session lives.

One cursor and one way to read: what is there already and what comes later are both read from the store,
behind the cursor. Hints that something was logged only say when to look; a poll looks as well. So nothing
depends on what is said at which moment, and a slow reader simply reads later: one page is all that is kept
for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from functools import partial
from typing import TYPE_CHECKING, Self

from interlock.clock import SystemClock
from interlock.core.runs import EVENT_TYPES
from interlock.errors import InvalidOperation, StoreError, ValidationError
from interlock.session.feed import Asked, Feed, join, leave
from interlock.session.values import check_id

if TYPE_CHECKING:
    from interlock.core.sessions import Event
    from interlock.ports import Clock, Store
    from interlock.session.feed import Page, Waiting

log = logging.getLogger(__name__)

_FIRST_RETRY_SECONDS = 0.1
_LAST_RETRY_SECONDS = 5.0
_WHOLE = 2**53
_CLOCK = SystemClock()
"""One for all that name none, so that they share what they read."""


def subscribe(
    store: Store,
    session_id: str,
    *,
    from_sequence: int = 0,
    run_id: str | None = None,
    types: Collection[str] | None = None,
    clock: Clock | None = None,
) -> Subscription:
    """The events of a session with numbers from *from_sequence* on; 0 and 1 mean all.

    With *run_id* only those of that run, with *types* only those of these types. To be entered with ``async
    with``. Raises `ValidationError` for what is no such number, run or type.
    """
    return Subscription(
        store,
        session_id,
        after=max(0, sequence_number(from_sequence) - 1),
        run_id=None if run_id is None else check_id("run_id", run_id),
        types=event_types(types),
        clock=_CLOCK if clock is None else clock,
    )


def sequence_number(value: object) -> int:
    """*value*; `ValidationError` unless it is a whole number that may be one of an event, or 0."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _WHOLE:
        raise ValidationError(f"from_sequence is {value!r:.80}; allowed are whole numbers from 0 to {_WHOLE}")
    return value


def event_types(types: object) -> frozenset[str] | None:
    """*types*; `ValidationError` where there is none in it, or one that no event has."""
    if types is None:
        return None
    if isinstance(types, str) or not isinstance(types, Collection) or not types:
        raise ValidationError(f"types is {types!r:.80}; give a collection of types, or None for all")
    unknown = [one for one in types if not isinstance(one, str) or one not in EVENT_TYPES]
    if unknown:
        allowed = ", ".join(sorted(EVENT_TYPES))
        raise ValidationError(f"types has {unknown[0]!r:.80}; allowed are {allowed}")
    return frozenset(types)


class Subscription:
    """An iterator over events, for one task at a time; made by `subscribe`.

    It ends when the session has ended and all was given, or when it is closed. A store that fails is asked
    again until it answers; `Unavailable` (it was closed) and `SessionNotFound` (the session was removed) end
    the iteration. Events are shared between all subscribers of a process: read them, do not change them.
    """

    def __init__(
        self,
        store: Store,
        session_id: str,
        *,
        after: int,
        run_id: str | None,
        types: frozenset[str] | None,
        clock: Clock,
    ) -> None:
        self._store = store
        self._session_id = session_id
        self._cursor = after
        self._run_id = run_id
        self._types = types
        self._clock = clock
        self._feed: Feed | None = None
        self._entered = False
        self._read_by: asyncio.Task[object] | None = None
        self._woken: asyncio.Future[bool] | None = None
        self._events: tuple[Event, ...] = ()
        self._given = 0  # of `_events`
        self._all_read = False
        self._last: int | None = None
        """The number after which it is over, although the session may go on."""
        self._exhausted: int | None = None
        """The generation of the feed in which there was nothing behind the cursor."""
        self._failures = 0
        self._retry_at: float | None = None
        self.backlog_end = 0
        """The number of the last event that there was when this was entered; 0 if there was none."""

    async def __aenter__(self) -> Self:
        """Raises `SessionNotFound`, `StoreError`, and `Unavailable` where the store is closed."""
        if self._entered:
            raise InvalidOperation("a subscription is entered once; make another one")
        self._entered = True
        self._feed = join(self._store, self._session_id, self._clock, self)  # first of all: no hint is missed
        try:
            self.backlog_end = (await self._store.get_session(self._session_id)).last_sequence
        except BaseException:
            self.close()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """End it at once, also for the task that waits in it. Closing again does nothing."""
        feed, self._feed = self._feed, None
        if feed is not None:
            self._cursor, self._all_read = self.next_from - 1, self.ended
            self._events, self._given = (), 0
            self._wake()
            leave(feed, self)

    def finish(self, sequence: int) -> None:
        """End it once everything up to number *sequence* was given."""
        self._last = sequence
        self._all_read = self._all_read or self._cursor >= sequence
        self._wake()

    @property
    def closed(self) -> bool:
        """Whether it was closed, or ended by an error."""
        return self._entered and self._feed is None

    @property
    def ended(self) -> bool:
        """Whether everything was given, and the session has ended or the subscription is finished."""
        return self._all_read and self._given == len(self._events)

    @property
    def over(self) -> bool:
        """Whether nothing more will be given: `ended`, or `closed`."""
        return self.closed or self.ended

    @property
    def next_from(self) -> int:
        """The ``from_sequence`` with which another subscription goes on where this one is."""
        left = self._given < len(self._events)
        return self._events[self._given].sequence if left else self._cursor + 1

    # -- reading

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while self._given == len(self._events):
            await self._move(None)
            if self.over:
                raise StopAsyncIteration
        self._given += 1
        return self._events[self._given - 1]

    async def batch(self, *, until: float | None = None) -> tuple[Event, ...]:
        """The next events, at most a page of them: what iterating gives, faster.

        Empty where it moved on over events that were not asked for, at the moment *until* of its clock, and
        when all is `over`.
        """
        if self._given == len(self._events):
            await self._move(until)
        events = self._events[self._given :]
        self._given = len(self._events)
        return events

    async def _move(self, until: float | None) -> None:
        """Return once the cursor has moved, it is *until*, or all is over."""
        task = asyncio.current_task()
        if not self._entered:
            raise InvalidOperation("a subscription is entered with 'async with' first")
        if self._read_by is not None:
            raise InvalidOperation("another task reads this subscription; each needs one of its own")
        self._read_by = task
        try:
            while self._feed is not None and not self.over:
                if await self._step(self._feed, until):
                    return
        finally:
            self._read_by = None

    async def _step(self, feed: Feed, until: float | None) -> bool:
        """One read or one wait; whether to return."""
        if self._retry_at is not None:
            return await self._pause({}, until)
        if self._exhausted == feed.generation:
            return await self._pause(feed.waiting, until)
        try:
            found = await feed.page(Asked(self._cursor, self._run_id, self._types), self._follow)
        except StoreError as error:
            self._failed(error)
            return False
        except BaseException as error:
            if isinstance(error, Exception):
                self.close()
            raise
        self._failures = 0
        if found is None or self._feed is None:
            return False
        return await self._take(*found)

    async def _take(self, page: Page, generation: int) -> bool:
        moved = page.upto > self._cursor
        self._events, self._given, self._cursor = page.events, 0, page.upto
        self._all_read = page.ended or (self._last is not None and self._cursor >= self._last)
        self._exhausted = None if page.more else generation
        if page.more:
            await asyncio.sleep(0)  # a store in memory never waits, and others want to run as well
        return moved

    def _failed(self, error: StoreError) -> None:
        if not self._failures:
            log.warning("session %s cannot be read, trying again: %s", self._session_id, error)
        delay = min(_FIRST_RETRY_SECONDS * 2**self._failures, _LAST_RETRY_SECONDS)
        self._failures = min(self._failures + 1, 10)
        self._retry_at = self._clock.now() + delay

    # -- waiting

    async def _follow(self, others: Waiting) -> None:
        await self._pause(others, None)

    async def _pause(self, among: Waiting, until: float | None) -> bool:
        """Wait with the others *among*, to the next try if one is due, at most to *until*; whether it is."""
        if until is not None and self._clock.now() >= until:
            return True
        woken = self._woken = asyncio.get_running_loop().create_future()
        timers = []
        if until is not None:
            timers.append(self._clock.call_at(until, partial(self._wake, True)))
        if self._retry_at is not None:
            timers.append(self._clock.call_at(self._retry_at, self._retry))
        among[woken] = None
        try:
            return bool(await woken)
        finally:
            self._woken = None
            among.pop(woken, None)
            for timer in timers:
                timer.cancel()

    def _retry(self) -> None:
        self._retry_at = None
        self._wake()

    def _wake(self, late: bool = False) -> None:
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(late)
