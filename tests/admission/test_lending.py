"""`Permit.lend`: a tree of runs never stands still, and never works above its limit."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from random import Random

import pytest

from interlock import (
    AcquireTimeout,
    InvalidOperation,
    LocalAdmission,
    PermitLost,
    Unavailable,
    ValidationError,
)
from interlock.core.kernel import Kernel
from interlock.core.model import Permit, Waiter
from interlock.testing import VirtualClock
from interlock.testing.virtual_time import idle


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def admission(clock: VirtualClock) -> LocalAdmission:
    admission = LocalAdmission(clock=clock)
    admission.configure("runs", 1)
    return admission


# -- what lending does


async def test_while_lent_others_have_the_units(admission: LocalAdmission) -> None:
    """The units are anybody's inside; afterwards they are the holder's again, under a greater fence."""
    permit = await admission.acquire("runs")
    before, name = permit.fence, permit.id
    async with permit.lend():
        assert permit.lent
        assert not permit.released
        assert admission.holders("runs") == ()
        async with admission.acquire("runs", timeout=0) as other:
            assert other.fence > before
    assert not permit.lent
    assert permit.fence > other.fence
    assert permit.id == name
    assert [holder.id for holder in admission.holders("runs")] == [name]
    assert permit.release()


async def test_the_units_come_back_at_their_first_age(admission: LocalAdmission, clock: VirtualClock) -> None:
    """Whoever came after the holder had begun waits behind it, also when it wants its units back."""
    permit = await admission.acquire("runs", since=clock.now())
    await clock.advance(5)
    order: list[str] = []

    async def younger(name: str) -> None:
        async with admission.acquire("runs"):
            order.append(name)
            await clock.sleep(1)

    async def lender() -> None:
        async with permit.lend():
            await clock.sleep(0.5)
        order.append("lender")
        permit.release()

    async with asyncio.TaskGroup() as group:
        group.create_task(lender())
        await clock.advance(0)
        for name in ("first", "second"):
            group.create_task(younger(name))
        await clock.advance(10)
    assert order == ["first", "lender", "second"]


async def test_what_cools_cools(clock: VirtualClock) -> None:
    """Lending gives back as a release does: the cooldown of the limit holds."""
    admission = LocalAdmission(clock=clock)
    await admission.set_limit("runs", 1, cooldown=2)
    permit = await admission.acquire("runs")
    async with permit.lend():
        assert admission.limits()["runs"].cooling == 1
        back = asyncio.create_task(_leave_after(clock, 0))
        await clock.advance(1)
        await back
        task = asyncio.create_task(_hold(admission))
        await clock.advance(0.5)
        assert not task.done()
        await clock.advance(0.5)
        await task
        await clock.advance(2)
    assert permit.release()


async def _leave_after(clock: VirtualClock, seconds: float) -> None:
    await clock.sleep(seconds)


async def _hold(admission: LocalAdmission) -> None:
    async with admission.acquire("runs"):
        pass


async def test_lent_twice_or_after_its_end_is_refused(admission: LocalAdmission) -> None:
    """Only who holds units can lend them; the error says what is the case."""
    permit = await admission.acquire("runs", key="root")
    async with permit.lend():
        with pytest.raises(InvalidOperation, match="root is lent already"):
            async with permit.lend():
                pass
        with pytest.raises(InvalidOperation, match="lent until its holder has it back"):
            await admission.acquire("runs", key="root")
    permit.release()
    with pytest.raises(InvalidOperation, match="root has been released"):
        async with permit.lend():
            pass


async def test_shared_units_cannot_be_lent(admission: LocalAdmission) -> None:
    """What a nested permit holds as well is not one holder's to give; afterwards it is."""
    parent = await admission.acquire("runs")
    child = await admission.acquire("runs", parent=parent)
    for permit in (parent, child):
        with pytest.raises(InvalidOperation, match="shares its units"):
            async with permit.lend():
                pass
    child.release()
    async with parent.lend():
        assert admission.limits()["runs"].used == 0
    assert parent.release()


async def test_below_a_lent_permit_everything_is_charged(admission: LocalAdmission) -> None:
    """A lent permit covers nothing: its children take units of their own."""
    parent = await admission.acquire("runs")
    async with parent.lend():
        child = await admission.acquire("runs", parent=parent)
        assert admission.limits()["runs"].used == 1
        child.release()
    assert parent.release()


# -- how it may end


async def test_released_inside_it_is_over(admission: LocalAdmission) -> None:
    """Released while lent, nothing is asked for again."""
    permit = await admission.acquire("runs", key="k")
    async with permit.lend():
        assert permit.release()
    assert permit.released
    assert admission.limits()["runs"].used == 0
    assert admission.kernel.permits == {}


async def test_not_back_in_time_it_is_released(admission: LocalAdmission, clock: VirtualClock) -> None:
    """Its holder is told, and works on without a permit only if it wants to: nothing is held for it."""
    permit = await admission.acquire("runs", key="k")

    lending = permit.lend(timeout=3)
    await lending.__aenter__()
    other = await admission.acquire("runs")
    task = asyncio.create_task(_as_coroutine(lending.__aexit__(None, None, None)))
    await clock.advance(3)
    with pytest.raises(AcquireTimeout, match=r"waited 3 s for runs: 'runs' is full \(1/1 in use"):
        await task
    assert permit.released
    assert admission.waiting() == ()
    assert other.release()


async def test_lost_while_lent_it_says_so(admission: LocalAdmission, clock: VirtualClock) -> None:
    """A lease goes on running; who comes back after it hears that the permit is lost."""
    permit = await admission.acquire("runs", lease=2)
    lending = permit.lend()
    await lending.__aenter__()
    await clock.advance(2)
    with pytest.raises(PermitLost, match="its lease ran out"):
        await lending.__aexit__(None, None, None)
    assert permit.lost


async def test_lost_while_it_waits_to_have_its_units_back(
    admission: LocalAdmission, clock: VirtualClock
) -> None:
    """The lease may run out in line as well."""
    permit = await admission.acquire("runs", lease=2)
    lending = permit.lend()
    await lending.__aenter__()
    other = await admission.acquire("runs")
    task = asyncio.create_task(_as_coroutine(lending.__aexit__(None, None, None)))
    await clock.advance(2)
    with pytest.raises(PermitLost, match="its lease ran out"):
        await task
    other.release()
    assert admission.limits()["runs"].used == 0


async def _as_coroutine(awaitable: object) -> None:
    await awaitable  # type: ignore[misc]


async def test_a_limit_that_went_meanwhile(admission: LocalAdmission) -> None:
    """Units of a limit that was removed cannot be had again."""
    permit = await admission.acquire("runs")
    with pytest.raises(ValidationError, match="unknown limit 'runs'"):
        async with permit.lend():
            await admission.remove_limit("runs")
    assert permit.released


async def test_its_owner_may_be_released_while_it_waits(admission: LocalAdmission) -> None:
    """Releasing the owner ends the wait and the permit; it counts as one."""
    permit = await admission.acquire("runs", owner="o", key="k")
    lending = permit.lend()
    await lending.__aenter__()
    other = await admission.acquire("runs")
    task = asyncio.create_task(_as_coroutine(lending.__aexit__(None, None, None)))
    await asyncio.sleep(0)
    assert await admission.release_owner("o") == 1
    with pytest.raises(InvalidOperation, match="owner 'o' was released"):
        await task
    assert permit.released
    other.release()


async def test_closed_meanwhile(admission: LocalAdmission) -> None:
    """A closed admission gives nothing back, inside or in line."""
    permit = await admission.acquire("runs")
    with pytest.raises(Unavailable):
        async with permit.lend():
            await admission.aclose()
    assert permit.released


async def test_an_error_inside_still_brings_the_units_back(admission: LocalAdmission) -> None:
    """What is raised inside goes on outside, where the holder holds again and may handle it."""
    async with admission.acquire("runs") as permit:
        with pytest.raises(ZeroDivisionError):
            async with permit.lend():
                _ = 1 / 0
        assert not permit.lent
        assert admission.limits()["runs"].used == 1
    assert admission.limits()["runs"].used == 0


async def test_cancelled_inside_it_still_comes_back(admission: LocalAdmission, clock: VirtualClock) -> None:
    """The cancellation may be a deadline's that is handled under the permit: so it holds by then."""
    other_may_go = asyncio.Event()

    async def other() -> None:
        async with admission.acquire("runs"):
            await other_may_go.wait()

    async def work() -> str:
        async with admission.acquire("runs") as permit:
            try:
                async with permit.lend():
                    task = asyncio.create_task(other())
                    await asyncio.Event().wait()
            except asyncio.CancelledError:
                assert task.done()
                assert admission.holders("runs")[0].id == permit.id
                return "handled"
            return "not cancelled"

    task = asyncio.create_task(work())
    await clock.advance(0)
    task.cancel()
    await clock.advance(0)
    assert not task.done()
    other_may_go.set()
    assert await task == "handled"
    assert admission.limits()["runs"].used == 0


async def test_forgotten_while_lent(admission: LocalAdmission) -> None:
    """A lent permit that nobody keeps is released and reported like any other."""
    permit = await admission.acquire("runs")
    lending = permit.lend()
    await lending.__aenter__()
    with pytest.warns(ResourceWarning, match="was never released"):
        del permit
    await idle()
    assert admission.kernel.live == set()


# -- trees


class Grove:
    """Random trees of runs over one limit; ``working`` are those that have a unit in hand."""

    def __init__(self, random: Random, clock: VirtualClock) -> None:
        self.random = random
        self.clock = clock
        self.limit = random.choice((1, 1, 2, 3))
        self.admission = LocalAdmission(clock=clock)
        self.admission.configure("runs", self.limit)
        self.working: set[int] = set()
        self.begun = self.done = 0

    async def run(self, depth: int) -> None:
        number = self.begun = self.begun + 1
        async with self.admission.acquire("runs", timeout=None) as permit:
            for _ in range(self.random.choice((0, 1, 1, 2))):
                await self.work(number)
                children = self.random.choice((0, 1, 2, 3)) if depth else 0
                async with permit.lend(timeout=None):
                    await asyncio.gather(*(self.run(depth - 1) for _ in range(children)))
            await self.work(number)
        self.done += 1

    async def work(self, number: int) -> None:
        self.working.add(number)
        assert len(self.working) <= self.limit
        await self.clock.sleep(self.random.choice((0, 0.1, 0.3)))
        self.working.discard(number)


async def test_random_trees_finish(clock: VirtualClock) -> None:
    """Runs that start runs and wait for them, at a limit of one to three: all finish, none above it."""
    seed = int(os.environ.get("SEED") or Random().randrange(1 << 32))
    print(f"seed: {seed}")
    for number in range(60):
        random = Random(f"{seed} {number}")
        grove = Grove(random, clock)
        depths = random.choices((1, 2, 3), k=random.choice((1, 2, 4)))
        roots = [asyncio.create_task(grove.run(depth)) for depth in depths]
        await clock.advance(10_000)
        assert all(root.done() and root.exception() is None for root in roots)
        assert grove.done == grove.begun
        assert grove.admission.limits()["runs"].used == 0
        assert grove.admission.kernel.live == set()


Tree = tuple["Tree", ...]


def trees(nodes: int) -> Iterator[Tree]:
    """Every tree of so many nodes, told apart by the order of children as well."""
    yield from forests(nodes - 1)


def forests(nodes: int) -> Iterator[tuple[Tree, ...]]:
    if nodes == 0:
        yield ()
    for first in range(1, nodes + 1):
        for tree in trees(first):
            for rest in forests(nodes - first):
                yield (tree, *rest)


class Node:
    """One run of a tree: it works, lends while its children run, works again, and is done."""

    def __init__(self, shape: Tree, parent: Node | None = None) -> None:
        self.parent = parent
        self.children = [Node(child, self) for child in shape]
        self.state = "unborn" if parent else "born"
        self.permit: Permit | None = None
        self.waiter: Waiter | None = None

    def all(self) -> Iterator[Node]:
        yield self
        for child in self.children:
            yield from child.all()


class TreeModel:
    """A tree over one limit of the kernel; `moves` are all that can happen next."""

    def __init__(self, shape: Tree, capacity: int) -> None:
        self.kernel = Kernel()
        self.kernel.configure("runs", 0, capacity=capacity)
        self.claims = self.kernel.claims(("runs",))
        self.nodes = list(Node(shape).all())
        self.now = 0

    def moves(self) -> list[Callable[[], None]]:
        return [move for node in self.nodes if (move := self._move(node)) is not None]

    def _move(self, node: Node) -> Callable[[], None] | None:
        if node.state == "born":
            return lambda: self._acquire(node)
        if node.state == "works" and node.children:
            return lambda: self._lend(node)
        if node.state == "lent" and all(child.state == "done" for child in node.children):
            return lambda: self._reclaim(node)
        if node.state == "works again" or (node.state == "works" and not node.children):
            return lambda: self._release(node)
        return None

    def _acquire(self, node: Node) -> None:
        answer = self.kernel.acquire(self.claims, self.now)
        node.state = "waits"
        self._answered(node, answer, "works")

    def _lend(self, node: Node) -> None:
        assert node.permit is not None
        assert self.kernel.lend(node.permit, self.now) is None
        node.state = "lent"
        for child in node.children:
            child.state = "born"

    def _reclaim(self, node: Node) -> None:
        assert node.permit is not None
        node.state = "waits again"
        self._answered(node, self.kernel.reclaim(node.permit, self.claims, self.now), "works again")

    def _release(self, node: Node) -> None:
        assert node.permit is not None
        assert self.kernel.release(node.permit, self.now)
        node.state = "done"

    def _answered(self, node: Node, answer: object, works: str) -> None:
        if isinstance(answer, Waiter):
            node.waiter = answer
        else:
            assert isinstance(answer, Permit)
            node.permit, node.state = answer, works

    def after(self) -> None:
        self.now += 1
        for node in self.nodes:
            if node.state.startswith("waits") and node.waiter is not None and node.waiter.permit is not None:
                node.permit, node.waiter = node.waiter.permit, None
                node.state = node.state.replace("waits", "works")
        working = sum(node.state.startswith("works") for node in self.nodes)
        limit = self.kernel.limits["runs"]
        assert working == limit.used <= limit.capacity
        self.kernel.check()


def every_order(shape: Tree, capacity: int) -> int:
    """Walk every order of moves of one tree, each from a fresh start; how many there are."""
    walked, choices, widths = 0, list[int](), list[int]()
    while True:
        model = TreeModel(shape, capacity)
        depth = 0
        while moves := model.moves():
            if depth == len(choices):
                choices.append(0)
                widths.append(len(moves))
            assert widths[depth] == len(moves)
            moves[choices[depth]]()
            model.after()
            depth += 1
        assert all(node.state == "done" for node in model.nodes), "it stands still"
        assert model.kernel.live == set()
        walked += 1
        while choices and choices[-1] + 1 == widths[-1]:
            choices.pop()
            widths.pop()
        if not choices:
            return walked
        choices[-1] += 1


@pytest.mark.parametrize("capacity", [1, 2])
def test_every_small_tree_in_every_order(capacity: int) -> None:
    """All trees of up to five runs, all orders in which they can move: each comes to its end."""
    walked = sum(every_order(shape, capacity) for nodes in range(1, 6) for shape in trees(nodes))
    print(f"{walked} orders")
    assert walked > 1_000
