"""`ConcurrencyLimiter`: the original's answers, and none of its faults (the rows C0.1 to C0.7)."""

from __future__ import annotations

import asyncio
import gc
import inspect
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest

import interlock.limiter
from admission.scenarios import Fleet, now
from admission.test_schedules import awaits
from elsewhere import Elsewhere
from interlock.admission.local import LocalAdmission
from interlock.errors import (
    AcquireTimeout,
    InterlockError,
    InvalidOperation,
    LimitExceeded,
    SessionNotFound,
    Unavailable,
    ValidationError,
)
from interlock.limiter import ConcurrencyLimiter, LimiterLimits, LimiterStatus
from interlock.ports import Admission
from interlock.testing import VirtualClock, idle
from schedules import Loop, World, explore


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock(100.0)


@pytest.fixture(params=["in process", "elsewhere"])
def make(request: pytest.FixtureRequest, clock: VirtualClock) -> Callable[..., ConcurrencyLimiter]:
    """A limiter with an admission of its own, or one that is reached over a connection."""

    def make(*numbers: int | None, **options: Any) -> ConcurrencyLimiter:
        if request.param == "elsewhere":
            options["admission"] = Elsewhere(LocalAdmission(clock=clock))
        return ConcurrencyLimiter(*numbers, clock=clock, **options)

    return make


def waiting(request: Awaitable[Any]) -> asyncio.Task[Any]:
    """A task that awaits *request*."""

    async def wait() -> Any:
        return await request

    return asyncio.create_task(wait())


def active(limiter: ConcurrencyLimiter) -> tuple[int, int]:
    status = limiter.status()
    return status.active_sessions, status.active_runs


# -- the contract ----------------------------------------------------------------------------------


def test_the_defaults_are_the_original_s() -> None:
    limiter = ConcurrencyLimiter()
    assert limiter.limits == LimiterLimits(100, 50)
    assert limiter.status() == LimiterStatus(0, 0, 100, 50, 100, 50)
    assert repr(limiter) == "<ConcurrencyLimiter sessions 0/100, runs 0/50>"
    signature = inspect.signature(ConcurrencyLimiter)
    assert str(signature.parameters["max_parallel_runs"].default) == "50"


async def test_a_full_limiter_refuses_at_once(make: Any) -> None:
    """In the original's words, with its codes."""
    limiter = make(1, 2)
    await limiter.acquire_session_slot("s1")
    await limiter.acquire_run_slot("s1", "r1")
    await limiter.acquire_run_slot("s1", "r2")
    with pytest.raises(LimitExceeded) as sessions:
        await limiter.acquire_session_slot("s2")
    assert sessions.value.code == "max_sessions_exceeded"
    assert str(sessions.value) == "Maximum parallel sessions limit (1) exceeded. Currently active: 1"
    assert sessions.value.details == {"limit": "sessions", "capacity": 1, "active": 1}
    assert sessions.value.retryable
    with pytest.raises(LimitExceeded) as runs:
        await limiter.acquire_run_slot("s1", "r3")
    assert runs.value.code == "max_runs_exceeded"
    assert str(runs.value) == "Maximum parallel runs limit (2) exceeded. Currently active: 2"
    assert active(limiter) == (1, 2)


async def test_the_same_id_is_the_same_slot(make: Any) -> None:
    """Counted once, also when full."""
    limiter = make(1, 1)
    session = await limiter.acquire_session_slot("s1")
    run = await limiter.acquire_run_slot("s1", "r1")
    assert await limiter.acquire_session_slot("s1") is session
    assert await limiter.acquire_run_slot("s1", "r1") is run
    assert active(limiter) == (1, 1)


async def test_a_session_and_a_run_may_have_one_name(make: Any) -> None:
    """Their ids are two spaces, as the original's maps are."""
    limiter = make(1, 1)
    await limiter.acquire_session_slot("x")
    await limiter.acquire_run_slot("x", "x")
    assert active(limiter) == (1, 1)
    await limiter.release_run_slot("x")
    assert active(limiter) == (1, 0)


async def test_releasing_is_always_fine(make: Any) -> None:
    """Twice, or what nobody holds; it answers None."""
    limiter = make(1, 1)
    await limiter.acquire_run_slot("s1", "r1")
    for _ in range(2):
        assert await limiter.release_run_slot("r1") is None
        assert await limiter.release_session_slot("s1") is None
    assert await limiter.release_run_slot("nobody") is None
    assert active(limiter) == (0, 0)


async def test_none_is_unlimited_but_counted(make: Any) -> None:
    limiter = make(None, None)
    for number in range(200):
        await limiter.acquire_session_slot(f"s{number}")
        await limiter.acquire_run_slot("s1", f"r{number}")
    assert limiter.limits == LimiterLimits(None, None)
    assert limiter.status() == LimiterStatus(200, 200, None, None, None, None)
    assert repr(limiter) == "<ConcurrencyLimiter sessions 200/∞, runs 200/∞>"


async def test_slots_are_held_by_id(make: Any) -> None:
    """Dropping the permit frees nothing."""
    limiter = make(1, 1)
    await limiter.acquire_run_slot("s1", "r1")
    gc.collect()
    await idle()
    assert active(limiter) == (0, 1)


async def test_leaving_releases_the_slot(make: Any) -> None:
    """A session's with its runs; entered twice, the last exit does."""
    limiter = make(1, 3)
    async with limiter.acquire_session_slot("s1") as session:
        async with limiter.acquire_run_slot("s1", "r1") as run:
            assert (session.limits, run.limits, run.owner) == (("sessions",), ("runs",), "s1")
            async with limiter.acquire_run_slot("s1", "r1") as again:
                assert again is run
            assert active(limiter) == (1, 1)
        assert active(limiter) == (1, 0)
        await limiter.acquire_run_slot("s1", "r2")
        async with limiter.acquire_session_slot("s1"):
            pass
        assert active(limiter) == (1, 1)
    assert active(limiter) == (0, 0)


async def test_leaving_an_earlier_slot_leaves_the_next_alone(make: Any) -> None:
    """Who was released by id inside its `async with` takes nothing from whoever has the id by then."""
    limiter = make(1, 1)
    async with limiter.acquire_session_slot("s1"):
        await limiter.release_session_slot("s1")
        await limiter.acquire_session_slot("s1")
        await limiter.acquire_run_slot("s1", "r1")
    assert active(limiter) == (1, 1)


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf")])
async def test_a_timeout_has_to_be_one(make: Any, timeout: float) -> None:
    with pytest.raises(ValidationError, match="timeout is"):
        await make().acquire_run_slot("s1", "r1", timeout=timeout)


async def test_an_id_has_to_be_one(make: Any) -> None:
    limiter = make()
    for request in (limiter.acquire_session_slot(""), limiter.acquire_run_slot("s1", "")):
        with pytest.raises(ValidationError, match="an id is empty"):
            await request


async def test_a_pause_is_not_called_full(clock: VirtualClock) -> None:
    """The words are the original's only where its reason is the reason."""
    admission = LocalAdmission(clock=clock)
    limiter = ConcurrencyLimiter(1, 1, admission=admission)
    admission.pause("runs", clock.now() + 5)
    with pytest.raises(LimitExceeded, match="'runs' is paused") as refused:
        await limiter.acquire_run_slot("s1", "r1")
    assert refused.value.code == "max_runs_exceeded"


# -- the admission ---------------------------------------------------------------------------------


async def test_a_shared_admission_s_numbers_are_the_fleet_s(clock: VirtualClock) -> None:
    """Defaults give way to what it has; numbers that are given count for everybody."""
    admission = LocalAdmission(clock=clock)
    admission.configure("runs", 7)
    first = ConcurrencyLimiter(admission=admission)
    assert first.limits == LimiterLimits(100, 7)
    second = ConcurrencyLimiter(5, admission=admission)
    assert first.limits == second.limits == LimiterLimits(5, 7)
    await first.acquire_run_slot("s1", "r1")
    await second.release_session_slot("s1")
    assert active(first) == (0, 0)


async def test_another_admission_is_told_before_the_first_request(clock: VirtualClock) -> None:
    """Until then the readings are what will be; nobody's later wish is undone."""
    inside = LocalAdmission(clock=clock)
    inside.configure("runs", 7)
    limiter = ConcurrencyLimiter(5, admission=Elsewhere(inside))
    assert limiter.limits == LimiterLimits(5, 7)
    both = [waiting(limiter.acquire_run_slot("s1", f"r{number}")) for number in range(2)]
    await limiter.set_limits(max_parallel_sessions=3)
    await asyncio.gather(*both)
    assert limiter.limits == LimiterLimits(3, 7)


async def test_closing_ends_the_waits_of_its_own_admission_only(clock: VirtualClock) -> None:
    own = ConcurrencyLimiter(1, 1, clock=clock)
    await own.acquire_run_slot("s1", "r1")
    waits = waiting(own.acquire_run_slot("s1", "r2", timeout=None))
    await idle()
    await own.aclose()
    with pytest.raises(Unavailable):
        await waits
    admission = LocalAdmission(clock=clock)
    await ConcurrencyLimiter(admission=admission).aclose()
    await ConcurrencyLimiter(admission=admission).acquire_run_slot("s1", "r1")


def test_the_fake_is_an_admission() -> None:
    assert isinstance(Elsewhere(LocalAdmission()), Admission)


# -- the faults of the original --------------------------------------------------------------------


async def test_c0_1_the_order_of_taking_means_nothing(make: Any) -> None:
    """C0.1: a run that was taken before its session is freed with it; the original kept it for ever."""
    limiter = make(2, 2)
    await limiter.acquire_run_slot("s1", "before")
    await limiter.acquire_session_slot("s1")
    await limiter.acquire_run_slot("s1", "after")
    await limiter.release_session_slot("s1")
    assert active(limiter) == (0, 0)


async def test_c0_2_a_dead_holder_s_slots_return(make: Any, clock: VirtualClock) -> None:
    """C0.2: who stops beating loses its slots after the lease, and hears of it."""
    limiter = make(2, 2)
    dead, alive = limiter.holder("dead", lease=30.0), limiter.holder("alive", lease=30.0)
    lost = [await dead.acquire_session_slot("s1"), await dead.acquire_run_slot("s1", "r1")]
    await alive.acquire_session_slot("s2")
    await alive.acquire_run_slot("s2", "r2")
    for _ in range(3):
        await clock.advance(29.0)
        assert alive.heartbeat() == ()
    assert active(limiter) == (1, 1)
    assert all(permit.lost for permit in lost)
    assert dead.heartbeat() == tuple(lost)
    assert dead.heartbeat() == ()


async def test_c0_2_a_crashed_task_s_slots_return(make: Any) -> None:
    """C0.2: what a block took is given back however it ends."""
    limiter = make(2, 2)
    with pytest.raises(ZeroDivisionError):
        async with limiter.acquire_session_slot("s1"), limiter.acquire_run_slot("s1", "r1"):
            raise ZeroDivisionError
    assert active(limiter) == (0, 0)


async def test_c0_3_callers_may_wait(make: Any, clock: VirtualClock) -> None:
    """C0.3: under contention they queue, first come first served, for as long as they want."""
    limiter = make(2, 1)
    await limiter.acquire_run_slot("s1", "r1")
    impatient = waiting(limiter.acquire_run_slot("s1", "r2", timeout=5.0))
    first = waiting(limiter.acquire_run_slot("s1", "r3", timeout=None))
    second = waiting(limiter.acquire_run_slot("s1", "r4", timeout=None))
    await clock.advance(5.0)
    with pytest.raises(AcquireTimeout, match="'runs' is full"):
        await impatient
    await limiter.release_run_slot("r1")
    await idle()
    assert (first.done(), second.done()) == (True, False)
    await limiter.release_run_slot("r3")
    assert (await second).key == "run:r4"
    assert active(limiter) == (0, 1)


@pytest.mark.parametrize("number", [0, -1, True, 1.5, "3", float("inf")])
async def test_c0_4_limits_are_checked(make: Any, number: Any) -> None:
    """C0.4: the original took -1 and then refused everything, at "limit (-1) exceeded"."""
    for wrong in ({"max_parallel_sessions": number}, {"max_parallel_runs": number}):
        (name,) = wrong
        with pytest.raises(ValidationError, match=f"{name} is .*; allowed are whole numbers from 1, or None"):
            make(**wrong)
        limiter = make(3, 3)
        with pytest.raises(ValidationError, match=f"{name} is "):
            await limiter.set_limits(**({"max_parallel_sessions": 1, "max_parallel_runs": 1} | wrong))
        assert limiter.limits == LimiterLimits(3, 3)


async def test_c0_4_limits_change_while_it_runs(make: Any) -> None:
    """C0.4: raising lets in who waits, lowering takes nothing away; what is not given stays."""
    limiter = make(1, 1)
    await limiter.acquire_run_slot("s1", "r1")
    waits = waiting(limiter.acquire_run_slot("s1", "r2", timeout=None))
    await idle()
    await limiter.set_limits(max_parallel_runs=2)
    await waits
    await limiter.set_limits(max_parallel_runs=1)
    assert limiter.status() == LimiterStatus(0, 2, 1, 1, 1, 0)
    await limiter.release_run_slot("r1")
    with pytest.raises(
        LimitExceeded, match=r"Maximum parallel runs limit \(1\) exceeded. Currently active: 1"
    ):
        await limiter.acquire_run_slot("s1", "r3")
    await limiter.set_limits(max_parallel_sessions=None, max_parallel_runs=None)
    assert limiter.limits == LimiterLimits(None, None)


async def test_c0_5_a_run_belongs_to_one_session(make: Any) -> None:
    """C0.5: the original said ok and kept the first owner, so that the second's release freed nothing."""
    limiter = make(2, 2)
    await limiter.acquire_run_slot("s1", "r1")
    with pytest.raises(InvalidOperation, match="run 'r1' belongs to session 's1', not to 's2'"):
        await limiter.acquire_run_slot("s2", "r1")
    await limiter.release_session_slot("s2")
    assert active(limiter) == (0, 1)
    await limiter.release_session_slot("s1")
    assert active(limiter) == (0, 0)
    await limiter.acquire_run_slot("s2", "r1")


async def test_c0_6_runs_may_be_tied_to_sessions_with_a_slot(make: Any) -> None:
    """C0.6: else the limit of sessions is passed by taking runs only."""
    limiter = make(1, 2, require_session=True)
    with pytest.raises(SessionNotFound, match="session 's1' holds no slot"):
        await limiter.acquire_run_slot("s1", "r1")
    await limiter.acquire_session_slot("s1")
    async with limiter.acquire_run_slot("s1", "r1"):
        assert active(limiter) == (1, 1)
    await limiter.release_session_slot("s1")
    with pytest.raises(SessionNotFound):
        await limiter.acquire_run_slot("s1", "r1")


async def test_c0_6_a_session_may_be_lost_while_its_run_waits(make: Any, clock: VirtualClock) -> None:
    """C0.6: released, the wait ends; expired, the run is not let in."""
    limiter = make(2, 1, require_session=True)
    await limiter.acquire_session_slot("s1")
    await limiter.holder("dies", lease=5.0).acquire_session_slot("s2")
    await limiter.acquire_run_slot("s1", "r1")
    released = waiting(limiter.acquire_run_slot("s1", "r2", timeout=None))
    expired = waiting(limiter.acquire_run_slot("s2", "r3", timeout=None))
    await clock.advance(5.0)
    await limiter.release_session_slot("s1")
    with pytest.raises(InvalidOperation, match="released while this waited"):
        await released
    with pytest.raises(SessionNotFound, match="'s2'"):
        await expired
    assert active(limiter) == (0, 0)


async def test_c0_6_nothing_is_kept_of_who_has_gone(clock: VirtualClock) -> None:
    """C0.6: the original kept an empty set for every session that it ever saw."""
    admission = LocalAdmission(clock=clock)
    limiter = ConcurrencyLimiter(admission=admission)
    holder = limiter.holder("worker", lease=30.0)
    for number in range(1_000):
        await limiter.acquire_run_slot(f"s{number}", f"r{number}")
        await limiter.release_run_slot(f"r{number}")
        await holder.acquire_run_slot(f"s{number}", f"r{number}")
        await limiter.release_session_slot(f"s{number}")
    kernel = admission.kernel
    assert (kernel.permits, kernel.owners, kernel.live) == ({}, {}, set())
    assert len(holder._slots) < 100


async def test_c0_7_reading_waits_for_nobody(make: Any) -> None:
    """C0.7: readings are plain calls, exact in the very step; the original queued them behind writes."""
    limiter = make(3, 3)
    assert not inspect.iscoroutinefunction(limiter.status)
    for number in range(3):
        await limiter.acquire_run_slot("s1", f"r{number}")
        assert limiter.status() == LimiterStatus(0, number + 1, 3, 3, 3, 2 - number)


# -- holders ---------------------------------------------------------------------------------------


async def test_a_holder_beats_while_it_is_entered(make: Any, clock: VirtualClock) -> None:
    """However long it takes; at the end all that it holds is released."""
    limiter = make(3, 3)
    async with limiter.holder("worker-1", lease=30.0) as holder:
        await holder.acquire_session_slot("s1")
        await holder.acquire_run_slot("s1", "r1")
        await limiter.acquire_run_slot("s1", "another's")
        async with holder.acquire_run_slot("s2", "r2"):
            await clock.advance(10_000.0)
            assert active(limiter) == (1, 3)
        assert active(limiter) == (1, 2)
        assert repr(holder) == "<SlotHolder 'worker-1': 2 slots, leased for 30 s>"
    assert active(limiter) == (0, 0)
    with pytest.raises(InvalidOperation, match="holder 'worker-1' has left"):
        await holder.acquire_run_slot("s1", "r1")
    with pytest.raises(InvalidOperation, match="has left"):
        async with holder:
            pass


async def test_a_holder_beats_by_a_timer_only(make: Any, clock: VirtualClock) -> None:
    """No task sits beside it, and its timer goes with it."""
    tasks = asyncio.all_tasks()
    async with make().holder("worker-1", lease=30.0):
        assert asyncio.all_tasks() == tasks
    await clock.advance(100.0)
    assert all(timer.callback is None for _, _, timer in clock._timers)


async def test_what_a_holder_takes_again_is_leased_then(make: Any, clock: VirtualClock) -> None:
    """A worker that starts anew takes over, by its id, what its predecessor left without a lease."""
    limiter = make(1, 1)
    left = await limiter.acquire_run_slot("s1", "r1")
    assert await limiter.holder("anew", lease=5.0).acquire_run_slot("s1", "r1") is left
    await clock.advance(5.0)
    assert left.lost


async def test_what_is_granted_to_a_holder_that_has_left_is_given_back(make: Any) -> None:
    """It had asked before, and nobody would ever renew it."""
    limiter = make(1, 1)
    await limiter.acquire_run_slot("s1", "r1")
    async with limiter.holder("worker-1") as holder:
        waits = waiting(holder.acquire_run_slot("s1", "r2", timeout=None))
        await idle()
    await limiter.release_run_slot("r1")
    with pytest.raises(InvalidOperation, match="has left"):
        await waits
    assert active(limiter) == (0, 0)


@pytest.mark.parametrize("lease", [0, -1, float("nan"), 100_000])
def test_a_lease_has_to_be_one(lease: float) -> None:
    with pytest.raises(ValidationError, match="lease is"):
        ConcurrencyLimiter().holder("worker-1", lease=lease)


# -- beside the plain model ------------------------------------------------------------------------


class Model:
    """The original as its documentation says: three maps, two numbers; ``held`` are a run's session."""

    def __init__(self, most: dict[str, int | None]) -> None:
        self.most = most
        self.sessions: set[str] = set()
        self.runs: dict[str, str] = {}

    def acquire_session_slot(self, session: str) -> str | None:
        if session in self.sessions:
            return None
        if (refusal := self.full("sessions", len(self.sessions))) is None:
            self.sessions.add(session)
        return refusal

    def acquire_run_slot(self, session: str, run: str) -> str | None:
        if run in self.runs:
            return None if self.runs[run] == session else "invalid_operation"
        if (refusal := self.full("runs", len(self.runs))) is None:
            self.runs[run] = session
        return refusal

    def release_run_slot(self, run: str) -> None:
        self.runs.pop(run, None)

    def release_session_slot(self, session: str) -> None:
        self.sessions.discard(session)
        self.runs = {run: owner for run, owner in self.runs.items() if owner != session}

    def set_limits(self, **most: int | None) -> None:
        self.most |= most

    def full(self, what: str, count: int) -> str | None:
        most = self.most[f"max_parallel_{what}"]
        if most is None or count < most:
            return None
        return f"Maximum parallel {what} limit ({most}) exceeded. Currently active: {count}"


def step(random: Random) -> tuple[str, tuple[str, ...], dict[str, Any]]:
    """One call of the limiter; sessions and runs share a few names."""
    one, other = (random.choice("abcdefg") for _ in range(2))
    match random.randrange(9):
        case 0 | 1:
            return "acquire_session_slot", (one,), {}
        case 2 | 3 | 4:
            return "acquire_run_slot", (one, other), {}
        case 5 | 6:
            return "release_run_slot", (one,), {}
        case 7:
            return "release_session_slot", (one,), {}
    what = random.choice(["max_parallel_sessions", "max_parallel_runs"])
    return "set_limits", (), {what: random.choice([1, 2, 3, 4, None])}


@pytest.mark.parametrize("seed", range(20))
async def test_a_walk_beside_the_model(seed: int, make: Any) -> None:
    """Every answer and every number, whatever is called in whatever order."""
    random = Random(seed)
    print(f"seed {seed}")
    limiter, model = make(3, 3), Model({"max_parallel_sessions": 3, "max_parallel_runs": 3})
    for number in range(500):
        name, arguments, named = step(random)
        expected = getattr(model, name)(*arguments, **named)
        try:
            await getattr(limiter, name)(*arguments, **named)
            answer = None
        except InterlockError as error:
            answer = error.message if isinstance(error, LimitExceeded) else error.code
        assert answer == expected, f"seed {seed}, step {number}: {name}{arguments}"
        assert active(limiter) == (len(model.sessions), len(model.runs)), f"seed {seed}, step {number}"


# -- every schedule --------------------------------------------------------------------------------


class StillClock:
    """Beats that never come: the schedules are about everything else."""

    def __init__(self, loop: Loop) -> None:
        self.now = loop.time

    def call_at(self, when: float, callback: Callable[[], None]) -> StillClock:
        return self

    def cancel(self) -> None: ...


class Slots(Fleet):
    """Tasks over one limiter of one session and one run, in process or elsewhere."""

    def __init__(self, loop: Loop, elsewhere: bool = False, **options: Any) -> None:
        super().__init__(loop, tasks=3, cancels=2)
        shared: Any = Elsewhere(self.admission) if elsewhere else self.admission
        self.limiter = ConcurrencyLimiter(1, 1, admission=shared, **options)
        self.limiter.clock = StillClock(loop)
        self.errors = (InvalidOperation, SessionNotFound)
        self.revoked = True

    async def run(self, name: str, session: str = "s") -> None:
        async with self.limiter.acquire_run_slot(session, name, timeout=None) as permit:
            await self.section(name, permit)

    async def session(self, name: str) -> None:
        async with self.limiter.acquire_session_slot(name, timeout=None):
            await self.section(name)
            async with self.limiter.acquire_run_slot(name, f"run of {name}", timeout=None):
                await self.section(f"run of {name}")

    async def held(self, name: str) -> None:
        async with self.limiter.holder(name) as holder:
            self.once[f"beat {name}"] = holder.heartbeat
            await holder.acquire_session_slot(name, timeout=None)
            await self.section(name)
            async with holder.acquire_run_slot(name, f"run of {name}", timeout=None):
                await self.section(f"run of {name}")
        self.once.pop(f"beat {name}", None)

    def possible(self) -> list[str]:
        """No lease runs out here: that is a time, and the tests above are about it."""
        return [label for label in super().possible() if label != "fire"]

    async def resized(self) -> None:
        await self.limiter.set_limits(max_parallel_runs=2)
        await self.limiter.set_limits(max_parallel_runs=1)


def runs(loop: Loop) -> World:
    """Three runs of one session, which may be released meanwhile."""
    slots = Slots(loop)
    slots.todo = [partial(slots.run, f"r{number}") for number in range(3)]
    slots.once["release"] = lambda: now(slots.limiter.release_session_slot("s"))
    return slots


def sessions(loop: Loop) -> World:
    """Two sessions with a run each; a third run comes in between."""
    slots = Slots(loop)
    slots.todo = [partial(slots.session, "s0"), partial(slots.session, "s1"), partial(slots.run, "r", "s2")]
    return slots


def required(loop: Loop) -> World:
    """Runs wait for their session's slot to be there."""
    slots = Slots(loop, require_session=True)
    slots.todo = [partial(slots.session, "s0"), partial(slots.session, "s1"), partial(slots.run, "r", "s1")]
    return slots


def holders(loop: Loop) -> World:
    """Two holders that beat, wait, and are cancelled anywhere."""
    slots = Slots(loop)
    slots.todo = [partial(slots.held, "s0"), partial(slots.held, "s1"), partial(slots.run, "r")]
    return slots


def elsewhere(loop: Loop) -> World:
    """The same over a connection: limits are declared first, and every message takes a turn."""
    slots = Slots(loop, elsewhere=True)
    slots.overdrawn["runs"] = 2
    slots.todo = [partial(slots.session, "s0"), partial(slots.held, "s1"), slots.resized]
    return slots


def leaving(loop: Loop) -> World:
    """A session goes, and with it the run that another task has under it."""
    slots = Slots(loop, elsewhere=True)
    slots.todo = [partial(slots.session, "s"), partial(slots.run, "r"), partial(slots.held, "s1")]
    slots.limiter._declared.due.clear()
    for name in ("sessions", "runs"):
        slots.admission.configure(name, 2)
    return slots


SCENARIOS = [runs, sessions, required, holders, elsewhere, leaving]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_no_schedule_breaks_it(scenario: Callable[[Loop], World]) -> None:
    """Whoever is cancelled wherever: nothing leaks, and nobody is forgotten."""
    report = explore(scenario, limit=2_000)
    assert report.failure is None, report


PLAIN = ("permit.__aenter__()", "permit.__aexit__(*exit_)", "admission.aclose()")
"""What is awaited because it might be elsewhere, and never stops."""


def test_every_await_has_been_cancelled_at() -> None:
    """Where anything can stop, it has been stopped, and nothing was left."""
    path = Path(interlock.limiter.__file__)
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
