"""What `schedules.py` explores of subscriptions: events that are logged at any moment of a reader's way.

The store waits a turn before and after each read, so an event may come before, in and after every one of
them. Time passes only where nothing else can happen, so whatever needs no poll is seen to need none.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from interlock.errors import StoreError
from interlock.session import feed
from interlock.session.subscription import Subscription, subscribe
from schedules import Loop, World
from session.logs import SESSION, Watched, at_once, complete, opened, said, taken


class Timer:
    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback = callback
        self.over = False

    def cancel(self) -> None:
        self.over = True


class Patient:
    """A clock whose timers fire when the environment says that time passes."""

    def __init__(self) -> None:
        self.timers: list[Timer] = []
        self.time = 0.0

    def now(self) -> float:
        return self.time

    def call_at(self, when: float, callback: Callable[[], None]) -> Timer:
        self.timers.append(Timer(callback))
        return self.timers[-1]

    def pass_by(self) -> None:
        self.time += 100.0
        due, self.timers = self.timers, []
        for timer in due:
            if not timer.over:
                timer.callback()


class Reading(World):
    """Subscribers to one session, whose log grows to its end meanwhile."""

    def __init__(self, loop: Loop, tasks: int, cancels: int | None, *, hints: bool = True) -> None:
        super().__init__(loop, 1 if cancels is None else cancels)
        self.clock = Patient()
        self.store = at_once(opened(Watched(hints=hints), *said(1)))
        self.got: dict[str, list[int]] = {}
        self.expected = [1, 2, 3]
        self.open: dict[str, Subscription] = {}
        self.shut: str | None = None
        self.hints = hints
        self.polls = 0 if hints else 4
        """How often time may pass, where nothing else can happen any more."""
        self.tasks_wanted = tasks

    def all_read(self, **asked: Any) -> None:
        self.todo += [partial(self.read, str(n), **asked) for n in range(self.tasks_wanted)]

    def grows(self) -> None:
        self.once["append"] = lambda: at_once(self.store.append(SESSION, said(2)))
        self.once["complete"] = self.completed

    def completed(self) -> None:
        if "append" in self.once:  # a session gets nothing more once it has ended
            self.once.pop("append")()
        at_once(complete(self.store))

    async def read(self, name: str, **asked: Any) -> None:
        subscription = subscribe(self.store, SESSION, clock=self.clock, **asked)
        async with subscription as events:
            self.open[name] = subscription
            self.got[name] = got = []
            async for event in events:
                got.append(event.sequence)
        self.got[name].append(-1)

    def possible(self) -> list[str]:
        labels = super().possible()
        if not labels and self.polls and not all(task.done() for task in self.tasks):
            labels.append("poll")
        return labels

    def do(self, label: str) -> None:
        if label == "poll":
            self.polls -= 1
            self.clock.pass_by()
        else:
            super().do(label)

    def check(self) -> None:
        for got in self.got.values():
            assert got in [[*self.expected[:n], *end] for n in range(4) for end in ([], [-1])], f"got {got}"

    def final(self) -> None:
        super().final()
        for number, task in enumerate(self.tasks):
            if not task.cancelled():
                self.whole(str(number))
        assert feed._feeds == {}, "a feed is left"
        assert self.store.watchers == 0, "a watch is left"
        assert all(timer.over for timer in self.clock.timers), "a timer is left"

    def whole(self, name: str) -> None:
        assert self.got[name] == [*self.expected, -1], f"{name} got {self.got[name]}"


def switched_over(loop: Loop, tasks: int = 2, cancels: int | None = None) -> World:
    """An event and the end, at any moment: each reader gets all, and no time has to pass."""
    world = Reading(loop, tasks, cancels)
    world.all_read()
    world.grows()
    return world


def unhinted(loop: Loop, tasks: int = 2, cancels: int | None = None) -> World:
    """The same where nothing tells of it: polls find it."""
    world = Reading(loop, tasks, cancels, hints=False)
    world.all_read()
    world.grows()
    return world


def filtered(loop: Loop, tasks: int = 2, cancels: int | None = None) -> World:
    """Readers of what there is one of, who must hear of the end all the same."""
    world = Reading(loop, tasks, cancels)
    world.expected = [2]
    world.all_read(types={"turn_completed"})
    world.grows()
    world.once["append"] = lambda: at_once(world.store.append(SESSION, said(2, type_="turn_completed")))
    return world


def failing(loop: Loop, tasks: int = 2, cancels: int | None = None) -> World:
    """A read of the store fails, whichever it is; it may be the one on entering."""
    world = Reading(loop, tasks, cancels)
    world.all_read()
    world.grows()
    world.polls = 6
    world.once["fail"] = lambda: world.store.fail_once.append(StoreError("the disk is full"))

    def ended(number: int, error: BaseException | None) -> None:
        if error is not None:
            assert isinstance(error, StoreError), f"task {number} raised {error!r}"
            world.got[str(number)] = [*world.expected, -1]  # it never came in

    world.ended = ended  # type: ignore[method-assign]
    return world


class Closing(Reading):
    """One subscription is closed from outside at any moment: it ends with what it got; the others get all."""

    def whole(self, name: str) -> None:
        if name == self.shut:
            assert self.got[name][-1] == -1, f"{name} got {self.got[name]}"
        else:
            super().whole(name)

    def close(self) -> None:
        if self.open:
            self.shut = next(iter(self.open))
            self.open[self.shut].close()


def closing(loop: Loop, tasks: int = 2, cancels: int | None = None) -> World:
    """See `Closing`."""
    world = Closing(loop, tasks, cancels)
    world.all_read()
    world.grows()
    world.once["close"] = world.close
    return world


def resumed(loop: Loop, tasks: int = 1, cancels: int | None = None) -> World:
    """A reader that leaves after an event and comes back to where it was, as over HTTP."""
    world = Reading(loop, tasks, cancels)
    world.grows()

    async def read(name: str) -> None:
        got = world.got[name] = []
        async with subscribe(world.store, SESSION, clock=world.clock) as events:
            got += await taken(events, 1)
        async with subscribe(
            world.store, SESSION, from_sequence=events.next_from, clock=world.clock
        ) as events:
            got += await taken(events)
        got.append(-1)

    world.todo += [partial(read, str(n)) for n in range(tasks)]
    return world


SCENARIOS: dict[str, Callable[..., World]] = {
    scenario.__name__: scenario for scenario in (switched_over, unhinted, filtered, failing, closing, resumed)
}
