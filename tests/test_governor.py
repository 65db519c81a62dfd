"""`ConcurrencyGovernor`: layers taken together, and none of the original's faults (the rows C2.1 to C2.6)."""

from __future__ import annotations

import asyncio
import gc
import inspect
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest

import interlock.governor
from admission.scenarios import Fleet
from admission.test_schedules import awaits
from elsewhere import Elsewhere
from interlock.admission.local import LocalAdmission
from interlock.errors import (
    AcquireTimeout,
    DeadlockDetected,
    InvalidOperation,
    LimitExceeded,
    Unavailable,
    ValidationError,
)
from interlock.governor import ConcurrencyGovernor, GovernorStats
from interlock.testing import VirtualClock, idle
from schedules import Loop, World, explore


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock(100.0)


@pytest.fixture(params=["in process", "elsewhere"])
def make(request: pytest.FixtureRequest, clock: VirtualClock) -> Callable[..., ConcurrencyGovernor]:
    """A governor with an admission of its own, or one that is reached over a connection."""

    def make(*numbers: int | None, **options: Any) -> ConcurrencyGovernor:
        if request.param == "elsewhere":
            options["admission"] = Elsewhere(LocalAdmission(clock=clock))
        return ConcurrencyGovernor(*numbers, clock=clock, **options)

    return make


@pytest.fixture
def governor(clock: VirtualClock) -> ConcurrencyGovernor:
    """4 streams, 8 tools, 16 of both."""
    return ConcurrencyGovernor(4, 8, 16, clock=clock)


def waiting(request: Awaitable[Any]) -> asyncio.Task[Any]:
    """A task that awaits *request*."""

    async def wait() -> Any:
        return await request

    return asyncio.create_task(wait())


def free(governor: ConcurrencyGovernor) -> tuple[int | None, int | None, int | None]:
    stats = governor.stats()
    return stats.streams_available, stats.tools_available, stats.global_available


async def holding(acquire: Callable[..., Any], count: int) -> list[Any]:
    return [await acquire(timeout=0) for _ in range(count)]


def release(permits: list[Any]) -> None:
    for permit in permits:
        permit.release()


# -- the contract ----------------------------------------------------------------------------------


def test_the_defaults_are_the_original_s() -> None:
    everything_free = GovernorStats(4, 4, 8, 8, 16, 16)
    assert ConcurrencyGovernor().stats() == everything_free
    assert ConcurrencyGovernor.with_defaults().stats() == everything_free
    shown = "<ConcurrencyGovernor free: streams 4 of 4, tools 8 of 8, global 16 of 16>"
    assert repr(ConcurrencyGovernor()) == shown
    numbers = [str(one.default) for one in inspect.signature(ConcurrencyGovernor).parameters.values()]
    assert numbers[:3] == ["4", "8", "16"]


async def test_each_category_takes_a_unit_of_the_ceiling(make: Any) -> None:
    """Together, and gives both back."""
    governor = make(2, 2, 3)
    async with governor.acquire_stream() as stream, governor.acquire_tool() as tool:
        assert (set(stream.limits), set(tool.limits)) == ({"streams", "global"}, {"tools", "global"})
        assert governor.stats() == GovernorStats(1, 2, 1, 2, 1, 3)
        async with governor.acquire_tool():
            with pytest.raises(LimitExceeded, match="'global' is full"):
                await governor.acquire_stream(timeout=0)
    assert free(governor) == (2, 2, 3)


async def test_none_is_unlimited(make: Any) -> None:
    governor = make(None, 1, None)
    async with governor.acquire_stream(), governor.acquire_tool():
        assert governor.stats() == GovernorStats(None, None, 0, 1, None, None)
        assert "streams ∞" in repr(governor)


async def test_an_agent_s_limit_appears_and_goes(make: Any) -> None:
    """With its first use, and when it is idle; agents without a name have none."""
    governor = make(4, 8, 16, max_tools_per_agent=1)
    limits = governor.admission.limits
    async with governor.acquire_tool(agent="ada"), governor.acquire_tool():
        assert limits()["tools:ada"].capacity == 1
        with pytest.raises(LimitExceeded, match="'tools:ada' is full"):
            await governor.acquire_tool(agent="ada", timeout=0)
        async with governor.acquire_tool(agent="ben", timeout=0):
            assert limits()["tools:ben"].used == 1
        assert free(governor) == (4, 6, 14)
    in_process = isinstance(governor.admission, LocalAdmission)
    assert [name for name in limits() if name.startswith("tools:")] == (
        [] if in_process else ["tools:ada", "tools:ben"]
    )


async def test_an_agent_s_limit_goes_with_whoever_gives_up(
    governor: ConcurrencyGovernor, clock: VirtualClock
) -> None:
    """A wait that ended leaves none behind; one that is waited for, held, lent or paused stays."""
    governor = ConcurrencyGovernor(4, 1, 16, max_tools_per_agent=1, clock=clock)
    admission = governor.admission
    assert isinstance(admission, LocalAdmission)
    async with governor.acquire_tool():
        with pytest.raises(LimitExceeded):
            await governor.acquire_tool(agent="ada", timeout=0)
        assert "tools:ada" not in admission.limits()
        waits = waiting(governor.acquire_tool(agent="ada"))
        await idle()
        assert "tools:ada" in admission.limits()
    permit = await waits
    async with permit.lend():
        governor._leave("tools:ada")
    admission.pause("tools:ada", clock.now() + 5)
    permit.release()
    governor._leave("tools:ada")
    assert "tools:ada" in admission.limits()


async def test_agents_that_were_released_by_hand_are_tidied_up(clock: VirtualClock) -> None:
    """However many come by: what is kept is in proportion to who is there."""
    governor = ConcurrencyGovernor(max_tools_per_agent=1, clock=clock)
    for number in range(1_000):
        (await governor.acquire_tool(agent=f"a{number}")).release()
        tried = governor.try_acquire_tool(agent=f"b{number}")
        assert tried is not None
        tried.release()
    assert len(governor.admission.limits()) < 30
    assert len(governor._agents) < 30


async def test_shared_is_one_for_each_endpoint() -> None:
    """Whoever asks first says the numbers; who says none takes what there is."""
    shared = ConcurrencyGovernor.shared
    one = shared("http://shared-1", 2, max_tools_per_agent=1)
    assert shared("http://shared-1") is one
    assert shared("http://shared-1", 2) is one
    assert shared("http://shared-2") is not one
    await one.set_limits(max_streams=3)
    assert shared("http://shared-1", 2).stats().streams_max == 3
    with pytest.raises(ValidationError, match="endpoint is empty"):
        shared("")


def test_shared_does_not_guess_whose_numbers_are_right() -> None:
    """Whichever won silently, somebody would run under a limit that it did not ask for."""
    shared = ConcurrencyGovernor.shared
    shared("http://shared-3", 2, None)
    with pytest.raises(InvalidOperation, match="has max_streams=2, 5 was asked for; leave it out"):
        shared("http://shared-3", 5)
    with pytest.raises(InvalidOperation, match="has max_tools=None, 8 was asked for"):
        shared("http://shared-3", max_tools=8)
    with pytest.raises(InvalidOperation, match="has max_tools_per_agent=None, 1 was asked for"):
        shared("http://shared-3", max_tools_per_agent=1)


def test_a_thread_has_governors_of_its_own() -> None:
    """It has an event loop of its own, too."""
    found: list[ConcurrencyGovernor] = []
    other = threading.Thread(target=lambda: found.append(ConcurrencyGovernor.shared("http://shared-4")))
    other.start()
    other.join()
    assert ConcurrencyGovernor.shared("http://shared-4") is not found[0]


async def test_a_shared_admission_s_numbers_are_the_fleet_s(clock: VirtualClock) -> None:
    """Defaults give way to what it has; numbers that are given count for everybody."""
    admission = LocalAdmission(clock=clock)
    admission.configure("tools", 7)
    first = ConcurrencyGovernor(admission=admission)
    assert first.stats() == GovernorStats(4, 4, 7, 7, 16, 16)
    ConcurrencyGovernor(5, admission=admission)
    assert first.stats().streams_max == 5
    await first.aclose()
    async with first.acquire_stream():
        pass


# -- the faults of the original --------------------------------------------------------------------


async def test_c2_1_parked_streams_leave_the_ceiling_alone(governor: ConcurrencyGovernor) -> None:
    """C2.1: 4 streams run, 12 are parked; the original's parked ones held all 12 units that were left."""
    streams = await holding(governor.acquire_stream, 4)
    parked = [waiting(governor.acquire_stream()) for _ in range(12)]
    await idle()
    tools = await holding(governor.acquire_tool, 8)
    assert free(governor) == (0, 0, 4)
    for task in parked:
        task.cancel()
    release(streams + tools)


async def test_c2_1_parked_tools_leave_the_ceiling_alone(governor: ConcurrencyGovernor) -> None:
    """C2.1: more tools wait than the ceiling has units, and a stream still goes within one step."""
    tools = await holding(governor.acquire_tool, 8)
    parked = [waiting(governor.acquire_tool()) for _ in range(30)]
    await idle()
    stream = waiting(governor.acquire_stream())
    await asyncio.sleep(0)
    assert stream.done()
    for task in parked:
        task.cancel()
    release([*tools, await stream])


async def test_c2_2_nested_work_is_not_charged_the_ceiling_again(make: Any) -> None:
    """C2.2: with a ceiling of 1, a stream that calls a tool would wait for itself."""
    governor = make(1, 1, 1)
    async with governor.acquire_stream() as stream:
        async with governor.acquire_tool(parent=stream, timeout=0):
            assert governor.stats() == GovernorStats(0, 1, 0, 1, 0, 1)
        with pytest.raises(LimitExceeded):
            await governor.acquire_tool(timeout=0)
    with pytest.raises(InvalidOperation, match="released"):
        await governor.acquire_tool(parent=stream, timeout=0)


async def test_c2_2_crossed_nesting_is_detected(make: Any) -> None:
    """C2.2: a stream wants a tool while a tool wants a stream, (1, 1, 2): neither order of the layers helps.

    The youngest is told at once; when it gives up what it holds, the other goes on.
    """
    governor = make(1, 1, 2)
    stream = await governor.acquire_stream()
    tool = await governor.acquire_tool()
    elder = waiting(governor.acquire_tool(parent=stream))
    await idle()
    with pytest.raises(DeadlockDetected, match="this would wait for ever"):
        await governor.acquire_stream(parent=tool)
    assert not elder.done()
    tool.release()
    await idle()
    release([await elder, stream])
    assert free(governor) == (1, 1, 2)


async def test_c2_2_every_wait_has_a_deadline(governor: ConcurrencyGovernor, clock: VirtualClock) -> None:
    """C2.2: five minutes, unless the caller says otherwise."""
    streams = await holding(governor.acquire_stream, 4)
    waits = waiting(governor.acquire_stream())
    await clock.advance(299.9)
    assert not waits.done()
    await clock.advance(0.1)
    with pytest.raises(AcquireTimeout, match="'streams' is full"):
        await waits
    release(streams)


async def test_c2_3_stats_are_one_snapshot_of_what_is_held(governor: ConcurrencyGovernor) -> None:
    """C2.3: the original read three numbers one after the other, and parked waiters lowered the last."""
    streams = await holding(governor.acquire_stream, 4)
    parked = [waiting(governor.acquire_stream()) for _ in range(5)]
    await idle()
    assert governor.stats() == GovernorStats(0, 4, 8, 8, 12, 16)
    assert not inspect.iscoroutinefunction(governor.stats)
    for task in parked:
        task.cancel()
    release(streams)


async def test_c2_4_both_categories_can_be_tried(governor: ConcurrencyGovernor) -> None:
    """C2.4: the original's seed had no `try_acquire_stream`."""
    for attempt, most in ((governor.try_acquire_stream, 4), (governor.try_acquire_tool, 8)):
        permits = [attempt() for _ in range(most)]
        assert all(permits)
        assert attempt() is None
        nested = attempt(parent=permits[0])
        assert nested is not None, "its parent has both units already"
        release([*permits, nested])


async def test_c2_4_a_wait_ends_when_it_shall(governor: ConcurrencyGovernor, clock: VirtualClock) -> None:
    """C2.4: by its timeout, saying what was in the way and who held it, or at once with a timeout of 0."""
    tools = await holding(partial(governor.acquire_tool, owner="ada"), 8)
    waits = waiting(governor.acquire_tool(timeout=2.5))
    await clock.advance(2.5)
    with pytest.raises(AcquireTimeout, match=r"'tools' is full \(8/8 in use, held by ada"):
        await waits
    with pytest.raises(LimitExceeded, match=r"'tools' is full"):
        await governor.acquire_tool(timeout=0)
    release(tools)


async def test_c2_4_there_are_priorities(governor: ConcurrencyGovernor) -> None:
    """C2.4: the smaller number goes first, and among equals the older work."""
    streams = await holding(governor.acquire_stream, 4)
    went: list[str] = []

    async def one(name: str, **asked: Any) -> None:
        async with governor.acquire_stream(**asked):
            went.append(name)

    tasks = [
        asyncio.create_task(one("late")),
        asyncio.create_task(one("older", since=50.0)),
        asyncio.create_task(one("urgent", priority=-1)),
    ]
    await idle()
    release(streams[:1])
    await asyncio.gather(*tasks)
    assert went == ["urgent", "older", "late"]
    release(streams[1:])


async def test_c2_4_it_can_be_closed(clock: VirtualClock) -> None:
    """C2.4: who waits is told so; nothing in the original ever closed."""
    governor = ConcurrencyGovernor(1, 1, 1, clock=clock)
    stream = await governor.acquire_stream()
    waits = waiting(governor.acquire_tool())
    await idle()
    await governor.aclose()
    for request in (waits, governor.acquire_stream(parent=stream)):
        with pytest.raises(Unavailable):
            await request
    assert stream.release()


async def test_c2_4_limits_change_while_it_runs(make: Any) -> None:
    """C2.4: raising lets in who waits, lowering takes nothing away; what is not given stays."""
    governor = make(1, 1, 2)
    stream = await governor.acquire_stream()
    waits = waiting(governor.acquire_stream())
    await idle()
    await governor.set_limits(max_streams=2)
    second = await waits
    await governor.set_limits(max_streams=1, max_global=None)
    assert governor.stats() == GovernorStats(0, 1, 1, 1, None, None)
    release([stream, second])
    assert free(governor) == (1, 1, None)


@pytest.mark.parametrize("number", [0, -1, True, 2.0, "4", 2**70 + 0.5])
async def test_c2_4_numbers_are_checked(make: Any, number: Any) -> None:
    """C2.4: 0 waited for ever, and a huge one panicked."""
    for name in ("max_streams", "max_tools", "max_global", "max_tools_per_agent"):
        with pytest.raises(ValidationError, match=f"{name} is .*; allowed are whole numbers from 1, or None"):
            make(**{name: number})
    governor = make(2**70)
    with pytest.raises(ValidationError, match="max_tools is"):
        await governor.set_limits(max_streams=1, max_tools=number)
    assert governor.stats().streams_max == 2**70


async def test_c2_5_a_permit_is_given_back_once(governor: ConcurrencyGovernor) -> None:
    """C2.5: by its block, by hand, twice, or from another thread."""
    async with governor.acquire_stream() as permit:
        assert permit.release()
        assert not permit.release()
    assert free(governor) == (4, 8, 16)
    permit = await governor.acquire_tool()
    other = threading.Thread(target=permit.release)
    other.start()
    other.join()
    await idle()
    assert free(governor) == (4, 8, 16)
    assert not permit.release()


async def test_c2_5_a_lost_permit_comes_back(governor: ConcurrencyGovernor) -> None:
    """C2.5: whoever drops one unreleased hears of it; Python has no destructor to rely on."""
    permit = await governor.acquire_stream()
    held = [permit]
    del permit
    with pytest.warns(ResourceWarning, match="was never released"):
        held.clear()
    gc.collect()
    await idle()
    assert free(governor) == (4, 8, 16)


async def test_c2_5_cancelled_in_the_instant_of_being_granted(make: Any) -> None:
    """C2.5: the unit goes on to the next; the schedules below look at every other instant."""
    governor = make(1, 8, 16, max_tools_per_agent=1)
    held = await governor.acquire_stream()
    first, second = waiting(governor.acquire_stream()), waiting(governor.acquire_stream())
    await idle()
    held.release()
    first.cancel()
    await idle()
    assert (first.cancelled(), second.done()) == (True, True)
    release([await second])
    assert free(governor) == (1, 8, 16)


async def test_c2_6_first_goes_the_oldest_whose_category_has_room(make: Any) -> None:
    """C2.6: a stream that cannot go does not hold up a tool; within a category it is first come, first
    served."""
    governor = make(1, 2, 2)
    stream, tool = await governor.acquire_stream(), await governor.acquire_tool()
    went: list[str] = []

    async def one(name: str, acquire: Any) -> None:
        async with acquire():
            went.append(name)

    tasks = [
        asyncio.create_task(one(name, acquire))
        for name, acquire in (
            ("stream 1", governor.acquire_stream),
            ("tool 1", governor.acquire_tool),
            ("stream 2", governor.acquire_stream),
            ("tool 2", governor.acquire_tool),
        )
    ]
    await idle()
    tool.release()
    await idle()
    assert went == ["tool 1", "tool 2"]
    stream.release()
    await asyncio.gather(*tasks)
    assert went[2:] == ["stream 1", "stream 2"]


async def test_c2_6_trying_passes_nobody_who_could_run(governor: ConcurrencyGovernor) -> None:
    """C2.6: a unit that came free belongs to whoever waits for it."""
    permits = [*await holding(governor.acquire_stream, 4), *await holding(governor.acquire_tool, 8)]
    waits = waiting(governor.acquire_tool())
    await idle()
    permits.pop().release()
    assert governor.try_acquire_tool() is None
    release([*permits, await waits])


# -- a walk ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
async def test_a_walk(seed: int, clock: VirtualClock) -> None:
    """What is left is what there is less what is held, whatever was done; refused is who has no room."""
    random, most = Random(seed), {"streams": 2, "tools": 3, "global": 4, "ada": 2, "ben": 2}
    print(f"seed {seed}")
    governor = ConcurrencyGovernor(2, 3, 4, max_tools_per_agent=2, clock=clock)
    held: list[tuple[Any, tuple[str, ...]]] = []

    def left(name: str) -> int:
        return most[name] - sum(name in names for _, names in held)

    for _ in range(400):
        if held and random.random() < 0.45:
            permit, _ = held.pop(random.randrange(len(held)))
            assert permit.release()
        else:
            agent = random.choice(["ada", "ben", None])
            stream = random.random() < 0.4
            names = ("streams", "global") if stream else ("tools", "global", *filter(None, [agent]))
            room = all(left(name) for name in names)
            try:
                request = (
                    governor.acquire_stream(timeout=0)
                    if stream
                    else governor.acquire_tool(agent=agent, timeout=0)
                )
                held.append((await request, names))
                assert room
            except LimitExceeded:
                assert not room
        assert free(governor) == (left("streams"), left("tools"), left("global")), f"seed {seed}"
    release([permit for permit, _ in held])


# -- every schedule --------------------------------------------------------------------------------


class Layers(Fleet):
    """Tasks over one governor, in process or elsewhere."""

    def __init__(self, loop: Loop, *numbers: int, elsewhere: bool = False, **options: Any) -> None:
        super().__init__(loop, tasks=3, cancels=2)
        shared: Any = Elsewhere(self.admission) if elsewhere else self.admission
        self.governor = ConcurrencyGovernor(*numbers, admission=shared, **options)

    async def stream(self, name: str) -> None:
        async with self.governor.acquire_stream(timeout=None) as permit:
            await self.section(name, permit)

    async def tool(self, name: str, agent: str | None = None) -> None:
        async with self.governor.acquire_tool(agent=agent, timeout=None) as permit:
            await self.section(name, permit)

    async def taken(self, agent: str) -> None:
        permit = await self.governor.acquire_tool(agent=agent, timeout=None)
        try:
            await self.section(agent, permit)
        finally:
            assert permit.release()

    async def nested(self, name: str) -> None:
        async with self.governor.acquire_stream(timeout=None) as stream:
            await self.section(name)
            async with self.governor.acquire_tool(parent=stream, timeout=None):
                await self.section(f"tool of {name}")

    async def crossed(self, name: str) -> None:
        async with self.governor.acquire_tool(timeout=None) as tool:
            await self.section(name)
            async with self.governor.acquire_stream(parent=tool, timeout=None):
                await self.section(f"stream of {name}")

    async def resized(self) -> None:
        await self.governor.set_limits(max_global=2)


def categories(loop: Loop) -> World:
    """A stream and tools under a ceiling of one."""
    layers = Layers(loop, 1, 1, 1)
    layers.todo = [partial(layers.tool, "0"), partial(layers.stream, "1"), partial(layers.tool, "2")]
    return layers


def agents(loop: Loop) -> World:
    """The limit of an agent comes and goes while two ask for it."""
    layers = Layers(loop, 2, 2, 2, max_tools_per_agent=1)
    layers.todo = [
        partial(layers.tool, "0", "ada"),
        partial(layers.taken, "ada"),
        partial(layers.tool, "2", "ada"),
    ]
    return layers


def families(loop: Loop) -> World:
    """Nested work of both orders, crossed: whoever closes the circle is told, the other goes on."""
    layers = Layers(loop, 1, 1, 2)
    layers.errors = (DeadlockDetected, InvalidOperation)
    layers.todo = [partial(layers.nested, "n"), partial(layers.crossed, "c")]
    return layers


def elsewhere(loop: Loop) -> World:
    """Over a connection: limits are declared first, an agent's before its first use."""
    layers = Layers(loop, 1, 1, 2, elsewhere=True, max_tools_per_agent=1)
    layers.todo = [partial(layers.tool, "0", "ada"), partial(layers.taken, "ada"), layers.resized]
    return layers


def connected(loop: Loop) -> World:
    """Over a connection, where the first who comes is no request."""
    layers = Layers(loop, 1, 1, 2, elsewhere=True)
    layers.todo = [layers.resized, partial(layers.stream, "0")]
    return layers


SCENARIOS = [categories, agents, families, elsewhere, connected]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_no_schedule_breaks_it(scenario: Callable[[Loop], World]) -> None:
    """Whoever is cancelled wherever: nothing leaks, nobody hangs, and nobody is forgotten."""
    report = explore(scenario, limit=2_000)
    assert report.failure is None, report


PLAIN = ("permit.__aenter__()", "permit.__aexit__(*exit_)", "admission.aclose()")
"""What is awaited because it might be elsewhere, and never stops."""


def test_every_await_has_been_cancelled_at() -> None:
    """Where anything can stop, it has been stopped, and nothing was left."""
    path = Path(interlock.governor.__file__)
    reached = {
        line
        for scenario in SCENARIOS
        for file, line in explore(scenario, limit=3_000).cancelled_at
        if Path(file) == path
    }
    source = path.read_text()
    missed = [
        text.strip()
        for lines in awaits(source)
        if not reached.intersection(lines)
        and not any(one in (text := source.splitlines()[lines.start - 1]) for one in PLAIN)
    ]
    assert missed == [], f"no scenario of {path.name} cancels there"
