"""How all subscribers of one session read its log: one watch, one poll, and each page once.

A log only grows, so a page that was read stays right for everybody who asks for what follows the same event.
Whether there is more behind it is what hints and polls are for: each of them begins a new generation, in
which an empty page of an older one says nothing any more.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from interlock.core.runs import SESSION_ENDED

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from interlock.core.sessions import Event
    from interlock.ports import Clock, Store

    Waiting = dict[asyncio.Future[bool], None]

PAGE = 500
"""Events that are read at once, and that one subscriber keeps at most."""
POLL_SECONDS = 1.0
"""After so long it is looked for events that no hint told of."""
_MOST_KEPT = 8

_ENDS = frozenset(f"session_{status}" for status in SESSION_ENDED)


class Asked(NamedTuple):
    """Which events: behind the number *after*, of one run or all, of some types or all."""

    after: int
    run_id: str | None = None
    types: frozenset[str] | None = None


class Page(NamedTuple):
    """What was found. Of all events up to *upto*, those that were asked for are among *events*."""

    events: tuple[Event, ...]
    upto: int
    more: bool = False
    """Whether to look again at once: there may be more already."""
    ended: bool = False
    """Whether the session has ended, and nothing comes behind *upto*."""


async def read_page(store: Store, session_id: str, asked: Asked, limit: int = PAGE) -> Page:
    """At most *limit* events, as they are in *store* now. Raises what its ``get_events`` does."""
    after, run_id, types = asked
    if run_id is None and types is None:
        events = await store.get_events(session_id, after=after, limit=limit)
        if events:
            more = len(events) == limit or any(event.type in _ENDS for event in events)
            return Page(tuple(events), events[-1].sequence, more)
    # Where the log ends is asked first: what does not match up to there needs no second look.
    session = await store.get_session(session_id)
    upto = max(after, session.last_sequence)
    events = []
    if upto > after:
        events = await store.get_events(
            session_id, after=after, before=upto + 1, run_id=run_id, types=types, limit=limit
        )
        if len(events) == limit:
            return Page(tuple(events), events[-1].sequence, more=True)
    return Page(tuple(events), upto, ended=session.status in SESSION_ENDED)


class Feed:
    """The log of one session, as long as anybody subscribes to it."""

    def __init__(self, store: Store, session_id: str, clock: Clock) -> None:
        self.store = store
        self.session_id = session_id
        self.clock = clock
        self.loop = asyncio.get_running_loop()
        self.subscribers: set[object] = set()
        self.generation = 0
        """Counts the reasons to look for more."""
        self.waiting: Waiting = {}
        """Who waits for the next generation."""
        self._reading: dict[Asked, Waiting] = {}
        self._kept: dict[Asked, tuple[Page, int]] = {}
        self._unwatch = store.watch(session_id, self._look)
        self._timer = clock.call_at(clock.now() + POLL_SECONDS, self._poll)

    def close(self) -> None:
        """End the watch and the poll; nobody subscribes any more."""
        self._unwatch()
        self._timer.cancel()
        self._kept.clear()

    def _poll(self) -> None:
        self._timer = self.clock.call_at(self.clock.now() + POLL_SECONDS, self._poll)
        self._look()

    def _look(self) -> None:
        self.generation += 1
        waiting, self.waiting = self.waiting, {}
        _wake(waiting)

    async def page(
        self, asked: Asked, follow: Callable[[Waiting], Awaitable[None]]
    ) -> tuple[Page, int] | None:
        """What was asked for, and the generation in which it was read. Raises what the store does.

        While somebody else reads the same, *follow* is awaited, which puts a future among those that are
        woken afterwards; None then: ask again.
        """
        known = self._kept.get(asked)
        if known is not None:
            page, generation = known
            if page.upto > asked.after or page.ended or generation == self.generation:
                return known
        if asked in self._reading:
            await follow(self._reading[asked])
            return None
        generation = self.generation
        followers: Waiting = {}
        self._reading[asked] = followers
        try:
            page = await read_page(self.store, self.session_id, asked)
            self._keep(asked, page, generation)
        finally:
            del self._reading[asked]
            _wake(followers)
        return page, generation

    def _keep(self, asked: Asked, page: Page, generation: int) -> None:
        self._kept.pop(asked, None)
        self._kept[asked] = page, generation
        if len(self._kept) > _MOST_KEPT:
            del self._kept[next(iter(self._kept))]


def _wake(futures: Iterable[asyncio.Future[bool]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(False)


# -- one feed for all that can share it

_Key = tuple[int, str, int, int]
_feeds: dict[_Key, Feed] = {}
"""By the identities of store, clock and loop, which the feed keeps alive."""


def join(store: Store, session_id: str, clock: Clock, subscriber: object) -> Feed:
    """The feed of that session, which *subscriber* is one of until it leaves."""
    key = _key(store, session_id, clock)
    feed = _feeds.get(key)
    if feed is None:
        feed = _feeds[key] = Feed(store, session_id, clock)
    feed.subscribers.add(subscriber)
    return feed


def leave(feed: Feed, subscriber: object) -> None:
    """One subscriber of *feed* has gone; with the last one it ends."""
    feed.subscribers.discard(subscriber)
    if not feed.subscribers:
        del _feeds[id(feed.store), feed.session_id, id(feed.clock), id(feed.loop)]
        feed.close()


def subscribers(store: Store, session_id: str) -> int:
    """How many subscribe to that session in this process."""
    return sum(
        len(feed.subscribers) for key, feed in _feeds.items() if key[0] == id(store) and key[1] == session_id
    )


def _key(store: Store, session_id: str, clock: Clock) -> _Key:
    return id(store), session_id, id(clock), id(asyncio.get_running_loop())
