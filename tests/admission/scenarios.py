"""What `schedules.py` explores of `LocalAdmission`: every public coroutine, cancelled wherever it can be.

One limit ``a`` of capacity 1 unless a scenario says otherwise; three tasks, two cancels. Only the standard
library and the package are needed.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from elsewhere import Elsewhere
from interlock.admission.declared import Asking, Declared
from interlock.admission.local import LocalAdmission
from interlock.core.model import Waiter
from interlock.errors import AcquireTimeout, InvalidOperation, Unavailable, ValidationError
from schedules import Loop, World


class LoopClock:
    """Time as the loop has it."""

    def __init__(self, loop: Loop) -> None:
        self.now = loop.time
        self.call_at = loop.call_at


class Fleet(World):
    """Tasks over one admission, and the rules that hold for all of them."""

    def __init__(self, loop: Loop, tasks: int, cancels: int) -> None:
        super().__init__(loop, cancels)
        self.size = tasks
        self.admission = LocalAdmission(clock=LoopClock(loop))
        self.errors: tuple[type[BaseException], ...] = ()
        """How a task may end, besides well or cancelled."""
        self.revoked = False
        """Whether the scenario takes permits from those who are inside."""
        self.overdrawn: dict[str, int] = {}
        """What a limit that was lowered may still have in use."""
        self.admission.configure("a", 1)

    # what tasks do

    async def enter(self, name: str, *limits: str, **asked: Any) -> None:
        async with self.admission.acquire(*limits, **{"timeout": None} | asked) as permit:
            await self.section(name, permit)

    async def take(self, name: str, *limits: str, **asked: Any) -> None:
        permit = await self.admission.acquire(*limits, **{"timeout": None} | asked)
        try:
            await self.section(name, permit)
        finally:
            assert permit.release() or self.revoked, f"{name}: its permit was released before"

    async def dash(self, *limits: str, **asked: Any) -> None:
        """In and out again without a pause."""
        async with self.admission.acquire(*limits, **{"timeout": None} | asked) as permit:
            assert not permit.released, "a dash with a permit that had been released"

    def all_do(self, way: Callable[..., Coroutine[Any, Any, None]], *args: Any, **asked: Any) -> None:
        self.todo += [partial(way, str(n), *args, **asked) for n in range(self.size)]

    # what must hold

    def check(self) -> None:
        admission, kernel = self.admission, self.admission.kernel
        kernel.check()
        assert not kernel.outbox, "an effect was not carried out"
        waiters: set[Waiter] = set()
        for name, limit in kernel.limits.items():
            waiters |= limit.waiters
            most = max(limit.capacity, self.overdrawn.get(name, 0))
            assert limit.used <= most, f"{limit.used} of {most} in use"
        assert waiters == admission._parked.keys(), "somebody waits and nobody awaits it, or inversely"
        for waiting in admission.waiting() if waiters else ():
            explanation = admission.explain(waiting.id)
            assert explanation is not None
            assert explanation.blocks, f"there is room, and still {waiting.id} waits"
        if not self.revoked:
            self._check_inside()
        for record in admission._keyed:
            assert record in kernel.live, "a permit that ended is kept under its key"

    def _check_inside(self) -> None:
        held: dict[str, set[object]] = {}
        for name, permit in self.inside.items():
            if permit is None:
                continue
            assert not permit.released, f"{name} works though its permit was released"
            for limit in permit.limits:
                held.setdefault(limit, set()).add(permit)
        for name, permits in held.items():
            limit = self.admission.kernel.limits[name]
            most = max(limit.capacity, self.overdrawn.get(name, 0))
            shared = max(sum(one._record.shares is None for one in permits), 1)
            assert shared <= most, f"{len(permits)} work where {most} may"

    def final(self) -> None:
        super().final()
        admission, kernel = self.admission, self.admission.kernel
        assert not kernel.live, f"{len(kernel.live)} permits leaked"
        assert not any(limit.used for limit in kernel.limits.values()), f"units leaked: {kernel}"
        left = (kernel.waiters, kernel.permits, kernel.owners, admission._parked, admission._keyed)
        assert not any(left), f"left behind: {left}"
        assert not any((admission._abandoned, admission._handed_over)), "a release was not done"
        assert kernel.next_deadline() is None, "a deadline is left"
        self._check_fresh()

    def _check_fresh(self) -> None:
        """Whoever comes now gets all there is at once, unless it was closed."""
        for name, limit in self.admission.limits().items():
            try:
                permits = [self.admission.try_acquire(name) for _ in range(limit.capacity or 1)]
            except Unavailable:
                assert Unavailable in self.errors, "it was closed"
                return
            assert all(permits), f"nobody holds {name!r} and yet nobody gets it"
            assert self.admission.try_acquire(name) is None, "more than there is"
            assert all(permit.release() for permit in permits if permit), "a permit was released before"

    def ended(self, number: int, error: BaseException | None) -> None:
        if not isinstance(error, self.errors):
            super().ended(number, error)


try:
    from admission.remote_scenarios import SCENARIOS
except ImportError:  # another Python, without the package's dependencies
    SCENARIOS: dict[str, Callable[..., World]] = {}  # type: ignore[no-redef]


def scenario(cancels: int = 2) -> Callable[[Callable[[Fleet], None]], Callable[[Fleet], None]]:
    """Enter it under its name; *cancels* unless the caller of the scenario wants another number of them."""

    def enter(prepare: Callable[[Fleet], None]) -> Callable[[Fleet], None]:
        def make(loop: Loop, tasks: int = 3, cancels: int | None = None) -> World:
            fleet = Fleet(loop, tasks, usual if cancels is None else cancels)
            prepare(fleet)
            return fleet

        SCENARIOS[prepare.__name__] = make
        return prepare

    usual = cancels
    return enter


def now(coroutine: Coroutine[Any, Any, object]) -> None:
    """Run a coroutine that never waits to its end, here and now."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    raise AssertionError(f"{coroutine!r} waited")


@scenario()
def awaited(fleet: Fleet) -> None:
    """``permit = await acquire()``, released by hand."""
    fleet.all_do(fleet.take, "a")


@scenario()
def entered(fleet: Fleet) -> None:
    """``async with acquire()``."""
    fleet.all_do(fleet.enter, "a")


@scenario()
def cancelled_twice(fleet: Fleet) -> None:
    """The second cancel may come before the first was noticed."""
    fleet.cancel_twice = True
    fleet.all_do(fleet.enter, "a")


@scenario()
def after_a_step(fleet: Fleet) -> None:
    """Something is awaited before anything is asked for (`Acquisition.first`)."""

    async def enter(name: str) -> None:
        acquisition = fleet.admission.acquire("a", timeout=None)
        acquisition.first(partial(fleet.section, f"step {name}"))
        async with acquisition as permit:
            await fleet.section(name, permit)

    fleet.all_do(fleet.enter, "a")
    fleet.todo[1] = partial(enter, "1")


@scenario()
def keyed(fleet: Fleet) -> None:
    """Two tasks with one key are one permit with two who await it; one without a key competes."""
    fleet.all_do(fleet.enter, "a", key="k")
    fleet.todo[0] = partial(fleet.enter, "0", "a")


@scenario()
def keyed_dash(fleet: Fleet) -> None:
    """Of two with one key the first is gone before the second has noticed that it was let in; one waits."""
    holder = fleet.admission.try_acquire("a")
    assert holder is not None
    fleet.once["let go"] = holder.release
    fleet.all_do(fleet.enter, "a", key="k")
    fleet.todo[0] = partial(fleet.dash, "a", key="k")
    fleet.todo[-1] = partial(fleet.enter, "other", "a")


@scenario()
def lent(fleet: Fleet) -> None:
    """One lends what another takes meanwhile; both are cancelled at any moment, also on the way back."""

    async def lend(name: str) -> None:
        async with fleet.admission.acquire("a", timeout=None) as permit:
            async with permit.lend(timeout=None):
                await fleet.section(f"{name}, lending")
            if fleet.tasks[0] not in fleet.cancelled:
                await fleet.section(name, permit)

    fleet.all_do(fleet.enter, "a")
    fleet.todo[0] = partial(lend, "0")


@scenario()
def lent_for_a_time(fleet: Fleet) -> None:
    """The units come back, or the deadline does, or a cancel."""
    fleet.errors = (AcquireTimeout,)

    async def lend() -> None:
        acquisition = fleet.admission.acquire("a", timeout=None, key="k")
        async with acquisition as permit, permit.lend(timeout=1):
            await fleet.section("lending")

    fleet.all_do(fleet.enter, "a")
    fleet.todo[0] = lend


@scenario(cancels=1)
def tree(fleet: Fleet) -> None:
    """A run that waits for two others at a limit of one."""
    fleet.outranked = True
    fleet.errors = (BaseExceptionGroup,)

    async def root() -> None:
        async with fleet.admission.acquire("a", timeout=None) as permit:
            async with permit.lend(timeout=None), asyncio.TaskGroup() as group:
                for child in ("left", "right"):
                    group.create_task(fleet.enter(child, "a"))
            assert not permit.lent

    fleet.todo.append(root)


@scenario()
def timeout(fleet: Fleet) -> None:
    """The deadline, the grant and the cancel, in every order."""
    fleet.errors = (AcquireTimeout,)
    fleet.all_do(fleet.enter, "a")
    fleet.todo[1] = partial(fleet.enter, "1", "a", timeout=1)


@scenario(cancels=1)
def timeouts(fleet: Fleet) -> None:
    """Two deadlines, the later one armed first."""
    fleet.errors = (AcquireTimeout,)
    fleet.all_do(fleet.enter, "a", timeout=1)
    fleet.todo[0] = partial(fleet.enter, "0", "a")
    fleet.todo[1] = partial(fleet.enter, "1", "a", timeout=2)


@scenario()
def timeout_around(fleet: Fleet) -> None:
    """`asyncio.timeout` around the acquire, instead of the acquire's own."""

    async def take(name: str) -> None:
        async with asyncio.timeout(1):
            permit = await fleet.admission.acquire("a", timeout=None)
        try:
            await fleet.section(name, permit)
        finally:
            assert permit.release()

    fleet.errors = (TimeoutError,)
    fleet.all_do(fleet.enter, "a")
    fleet.todo[1] = partial(take, "1")


@scenario()
def over_two(fleet: Fleet) -> None:
    """Over two limits at once, beside those over one of them."""
    fleet.admission.configure("b", 1)
    wishes = (("a",), ("b", "a"), ("b",), ("a", "b"))
    fleet.todo = [partial(fleet.enter, str(n), *wishes[n % 4]) for n in range(fleet.size)]


@scenario()
def weighted(fleet: Fleet) -> None:
    """One that needs two units reserves them against a younger one that needs one."""
    fleet.admission.configure("a", 2)
    fleet.all_do(fleet.enter, "a")
    fleet.todo[1] = partial(fleet.enter, "1", "a", "a")


@scenario(cancels=1)
def cooldown(fleet: Fleet) -> None:
    """What is released cools before the next one gets it, by a timer; longer after a cancel."""
    fleet.admission.configure("a", 1, cooldown=1.0, cooldown_cancelled=2.0)
    fleet.all_do(fleet.enter, "a")


@scenario(cancels=1)
def nested(fleet: Fleet) -> None:
    """A parent's units are not charged again; the parent may be released while its child waits."""

    async def family() -> None:
        async with fleet.admission.acquire("a", timeout=None) as parent:
            fleet.once["release parent"] = parent.release
            await fleet.enter("child", "a", "b", parent=parent)

    fleet.admission.configure("b", 1)
    fleet.errors = (InvalidOperation,)
    fleet.all_do(fleet.enter, "a")
    fleet.todo[:2] = [partial(fleet.enter, "0", "b"), family]


@scenario(cancels=1)
def release_owner(fleet: Fleet) -> None:
    """An owner's permits and waits end while it and others use them."""
    fleet.errors = (InvalidOperation,)
    fleet.revoked = True
    fleet.all_do(fleet.take, "a", owner="o")
    fleet.todo[0] = partial(fleet.take, "0", "a")
    fleet.todo[1] = partial(fleet.take, "1", "a", owner="o", key="k")
    fleet.once["release owner"] = lambda: now(fleet.admission.release_owner("o"))


@scenario(cancels=1)
def remove_limit(fleet: Fleet) -> None:
    """The limit goes while it is held and waited for, and comes again."""

    def remove() -> None:
        now(fleet.admission.remove_limit("a"))
        fleet.once["set"] = lambda: now(fleet.admission.set_limit("a", 1))

    fleet.errors = (InvalidOperation, ValidationError)
    fleet.all_do(fleet.enter, "a")
    fleet.once["remove"] = remove


@scenario(cancels=1)
def aclose(fleet: Fleet) -> None:
    """Everybody who waits when it is closed, or comes later, is told so."""
    fleet.errors = (Unavailable,)
    fleet.all_do(fleet.enter, "a")
    fleet.once["close"] = lambda: now(fleet.admission.aclose())


@scenario(cancels=1)
def aclose_weighted(fleet: Fleet) -> None:
    """Closing takes a reservation away: who stood behind it is told the same, and gets nothing."""
    weighted(fleet)
    fleet.errors = (Unavailable,)
    fleet.once["close"] = lambda: now(fleet.admission.aclose())


@scenario(cancels=1)
def turn_away(fleet: Fleet) -> None:
    """Those who wait are sent away; those who come later may wait again."""
    weighted(fleet)
    fleet.errors = (Unavailable,)
    fleet.once["turn away"] = lambda: fleet.admission.turn_away("a", Unavailable("go away"))


@scenario(cancels=1)
def raised(fleet: Fleet) -> None:
    """The limit is raised from 1 to 2."""
    fleet.all_do(fleet.enter, "a")
    fleet.once["raise"] = lambda: now(fleet.admission.set_limit("a", 2))


@scenario(cancels=1)
def lowered(fleet: Fleet) -> None:
    """The limit is lowered from 2 to 1: nobody is thrown out, nobody is let in."""

    def lower() -> None:
        fleet.overdrawn["a"] = fleet.admission.limits()["a"].used
        now(fleet.admission.set_limit("a", 1))

    fleet.admission.configure("a", 2)
    fleet.all_do(fleet.enter, "a")
    fleet.once["lower"] = lower


@scenario(cancels=1)
def paused(fleet: Fleet) -> None:
    """The limit is paused for a while, or until somebody resumes it."""

    def pause() -> None:
        fleet.admission.pause("a", fleet.loop.now + 1)
        fleet.once["resume"] = lambda: fleet.admission.resume("a")

    fleet.all_do(fleet.enter, "a")
    fleet.once["pause"] = pause


@scenario(cancels=1)
def gated(fleet: Fleet) -> None:
    """Whoever finds the gate shut waits for its answer, which comes when it comes."""

    def listen(recycled: bool) -> None:
        fleet.once["answer"] = lambda: fleet.admission.admit("a", 1)

    fleet.admission.configure("a", 2, gated=True)
    fleet.admission.listen_at_gate("a", listen)
    fleet.admission.admit("a", 0, fresh_until=1.0)
    fleet.all_do(fleet.enter, "a")


@scenario(cancels=1)
def gated_at_once(fleet: Fleet) -> None:
    """The gate answers in the very call that asks, while the one who asks has yet to lie down."""

    def listen(recycled: bool) -> None:
        fleet.admission.admit("a", 1)

    fleet.admission.configure("a", 2, gated=True)
    fleet.admission.listen_at_gate("a", listen)
    fleet.admission.admit("a", 0, fresh_until=1.0)
    fleet.all_do(fleet.enter, "a")


@scenario(cancels=1)
def tried(fleet: Fleet) -> None:
    """`try_acquire` in between passes nobody who waits."""

    def attempt() -> None:
        waiting = fleet.admission.waiting()
        permit = fleet.admission.try_acquire("a")
        if permit is not None:
            assert not waiting, "try_acquire went past somebody who waits"
            fleet.inside["try"] = permit
            fleet.once["finish try"] = lambda: fleet.inside.pop("try").release()

    fleet.all_do(fleet.enter, "a")
    fleet.once["try"] = attempt


@scenario(cancels=1)
def lease(fleet: Fleet) -> None:
    """The first holder's lease runs out at any moment."""
    fleet.revoked = True
    fleet.all_do(fleet.enter, "a")
    fleet.todo[0] = partial(fleet.enter, "0", "a", lease=1.0)


@scenario()
def declared(fleet: Fleet) -> None:
    """Over a connection: the limit is declared before the first request, by whoever comes first."""
    limits = Declared({"b": 1}, Elsewhere(fleet.admission), None)

    async def enter(name: str) -> None:
        async with Asking(limits, limits.admission.acquire("a", timeout=None)) as permit:
            await fleet.section(name, permit)

    async def take() -> None:
        permit = await Asking(limits, limits.admission.acquire("a", timeout=None))
        try:
            await fleet.section("taken", permit)
        finally:
            assert permit.release()

    async def change() -> None:
        await limits.set({"b": 1})

    fleet.all_do(enter)
    fleet.todo[-1] = take
    fleet.once["change"] = lambda: fleet.tasks.append(fleet.loop.create_task(change()))


@scenario()
def forgotten(fleet: Fleet) -> None:
    """A permit that is dropped without a release is released by whoever notices."""

    async def forget() -> None:
        permit = await fleet.admission.acquire("a", timeout=None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            del permit

    fleet.all_do(fleet.enter, "a")
    fleet.todo[1] = forget


@scenario()
def task_group(fleet: Fleet) -> None:
    """A group whose tasks wait, hold, or are cancelled because one of them failed."""

    async def fail() -> None:
        await fleet.section("failing")
        raise ZeroDivisionError

    async def group() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fleet.enter("in group", "a"))
            tasks.create_task(fail())

    fleet.errors = (ExceptionGroup,)
    fleet.outranked = True
    fleet.todo = [partial(fleet.enter, str(n), "a") for n in range(fleet.size - 2)]
    fleet.todo.append(group)
