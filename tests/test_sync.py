"""The facade for threads: it blocks, it can be interrupted, and nothing is left behind."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from interlock import (
    AcquireTimeout,
    InvalidOperation,
    LimitExceeded,
    LocalAdmission,
    ProviderGate,
    Unavailable,
    ValidationError,
    sync,
)
from interlock.testing import VirtualClock

PATIENCE = 5.0


@pytest.fixture
def gate() -> Iterator[sync.Gate]:
    """A gate for threads with one slot for ``p``, which frees it at once."""
    with sync.start(lambda: ProviderGate(default_cooldown=0)) as gate:
        gate.set_limit("p", 1)
        yield gate
        gate.run(lambda inner: inner.admission.kernel.check())


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def in_flight(gate: sync.Gate) -> int:
    return gate.run(lambda inner: inner.reading("p").used)


def ask(gate: sync.Gate, threads: ThreadPoolExecutor) -> Future[Any]:
    """Have another thread ask for the slot; returns when it waits."""
    queued = threading.Event()
    asking = threads.submit(lambda: gate.acquire("p", "other", on_queued=queued.set).wait())
    assert queued.wait(PATIENCE)
    return asking


# -- blocking ------------------------------------------------------------------------------------------------


def test_with_holds_a_permit_and_gives_it_back(gate: sync.Gate) -> None:
    with gate.acquire("p", "conv") as permit:
        assert (in_flight(gate), permit.owner, permit.released) == (1, "conv", False)
    assert (in_flight(gate), permit.released) == (0, True)


def test_nothing_is_asked_for_before(gate: sync.Gate) -> None:
    waiting = gate.acquire("p")
    assert in_flight(gate) == 0
    permit = waiting.wait()
    assert in_flight(gate) == 1
    assert permit.release()
    assert in_flight(gate) == 0


def test_who_finds_no_room_blocks_until_there_is(gate: sync.Gate, threads: ThreadPoolExecutor) -> None:
    """Released in one thread, granted in another, released in a third."""
    permit = gate.acquire("p").wait()
    asking = ask(gate, threads)
    assert not asking.done()
    assert threads.submit(permit.release).result(PATIENCE)
    assert asking.result(PATIENCE).release()
    assert not permit.release()
    assert in_flight(gate) == 0


def test_the_outcome_is_that_of_the_block(gate: sync.Gate) -> None:
    gate.set_cooldown("p", 0, failed=60)
    with pytest.raises(OSError, match="no"), gate.acquire("p"):
        raise OSError("no")
    assert gate.status("p").cooling == 1  # type: ignore[union-attr]


def test_a_timeout_is_the_acquires_own() -> None:
    clock = VirtualClock(100)
    with sync.start(lambda: ProviderGate(clock=clock)) as gate:
        gate.set_limit("p", 1)
        permit = gate.acquire("p").wait()
        with pytest.raises(LimitExceeded):
            gate.acquire("p", timeout=0).wait()
        with ThreadPoolExecutor(1) as threads:
            asking = ask(gate, threads)
            gate.run(lambda _: clock.advance(300))
            with pytest.raises(AcquireTimeout, match="'provider:p'"):
                asking.result(PATIENCE)
        permit.release()


def test_readings_and_errors_come_back(gate: sync.Gate) -> None:
    assert gate.limits() == {"p": 1}
    assert gate.status("unknown") is None
    assert isinstance(gate.clock.now(), float)
    gate.report_rate_limit("p", 60)
    assert gate.status("p").paused  # type: ignore[union-attr]
    with pytest.raises(ValidationError):
        gate.set_limit("p", 0)
    with pytest.raises(AttributeError):
        gate.nothing  # noqa: B018
    assert not hasattr(gate, "__copy__")
    assert "ProviderGate" in repr(gate)


def test_an_admission(threads: ThreadPoolExecutor) -> None:
    """Several limits at once, and never more holders than there are places."""
    inside, most = [], []
    with sync.start(LocalAdmission) as admission:
        admission.set_limit("tools", 3)
        admission.set_limit("global", 2)
        permit = admission.try_acquire("tools")
        assert permit is not None
        assert admission.try_acquire("tools", "tools", "tools") is None
        assert permit.release()

        def work(number: int) -> None:
            with admission.acquire("tools", "global", owner=f"w{number}"):
                inside.append(number)
                most.append(len(inside))
                inside.remove(number)

        list(threads.map(work, range(200)))
        assert max(most) <= 2
        assert {name: limit.used for name, limit in admission.limits().items()} == {"global": 0, "tools": 0}


# -- anything else -------------------------------------------------------------------------------------------


class Agents:
    """As the pool is: entered and left, with something to check out that is no permit."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.name = "agents"

    async def __aenter__(self) -> Agents:
        self.seen.append("entered")
        return self

    async def __aexit__(self, *exit_: object) -> None:
        self.seen.append("left")

    def checkout(self) -> Any:
        return Checkout(self)

    async def checkin(self, agent: str) -> bool:
        self.seen.append(f"in {agent}")
        return True


class Checkout:
    def __init__(self, agents: Agents) -> None:
        self.agents = agents

    def __await__(self) -> Any:
        yield from asyncio.sleep(0).__await__()
        self.agents.seen.append("out")
        return "agent"

    async def __aenter__(self) -> str:
        return await self  # type: ignore[no-any-return]

    async def __aexit__(self, *exit_: object) -> None:
        await self.agents.checkin("agent")


def test_any_object_has_a_facade() -> None:
    """It is entered and left on its loop; coroutines block, acquisitions wait, attributes are read."""
    with sync.start(Agents) as agents:
        assert agents.name == "agents"
        with agents.checkout() as agent:
            assert agent == "agent"
        agent = agents.checkout().wait()
        assert agents.checkin(agent) is True
        seen = agents.seen
    assert seen == ["entered", "out", "in agent", "out", "in agent", "left"]


def test_what_takes_time_to_make() -> None:
    async def make() -> Agents:
        await asyncio.sleep(0)
        return Agents()

    facade = sync.start(make)
    seen = facade.seen
    facade.close()
    facade.close()
    assert seen == ["entered", "left"]
    with pytest.raises(Unavailable):
        facade.seen  # noqa: B018


def test_what_cannot_be_made_leaves_no_thread() -> None:
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        sync.start(lambda: 1 / 0)
    assert threading.active_count() == before


async def test_on_a_loop_that_runs_already() -> None:
    """Of an asynchronous program, whose own object stays when the facade is closed."""
    loop = asyncio.get_running_loop()
    async with ProviderGate(default_cooldown=0) as gate:
        await gate.set_limit("p", 1)

        def work() -> int:
            with sync.over(gate, loop) as facade, facade.acquire("p"):
                return gate.reading("p").used

        assert await asyncio.to_thread(work) == 1
        async with gate.acquire("p"):
            pass

        def several() -> list[str]:
            with (
                sync.start(lambda: LocalAdmission(), loop=loop) as admission,
                sync.start(lambda: ProviderGate(admission=admission._target), loop=admission.loop) as shared,
            ):
                shared.set_limit("q", 1)
                return list(admission.limits())

        assert await asyncio.to_thread(several) == ["provider:q"]


def test_a_loop_that_does_not_run_is_refused() -> None:
    loop = asyncio.new_event_loop()
    try:
        with pytest.raises(ValidationError, match="does not run"):
            sync.start(LocalAdmission, loop=loop)
    finally:
        loop.close()


async def test_it_never_blocks_a_running_loop() -> None:
    gate = await asyncio.to_thread(sync.start, ProviderGate)
    with pytest.raises(InvalidOperation, match="to_thread"):
        gate.limits()
    await asyncio.to_thread(gate.close)


def test_who_waits_when_it_is_closed_is_told(threads: ThreadPoolExecutor) -> None:
    """Those in line at the gate by the gate, everybody else by the loop."""
    gate = sync.start(ProviderGate)
    gate.set_limit("p", 1)
    gate.pause("p", 60)
    asking = ask(gate, threads)
    running = threading.Event()

    async def endless(_: object) -> None:
        running.set()
        await asyncio.Event().wait()

    errand = threads.submit(gate.run, endless)
    assert running.wait(PATIENCE)
    gate.close()
    for waiting in (asking, errand):
        with pytest.raises(Unavailable):
            waiting.result(PATIENCE)
    with pytest.raises(Unavailable):
        gate.limits()


# -- interrupted ---------------------------------------------------------------------------------------------


def test_ctrl_c_ends_the_wait_and_withdraws_it(gate: sync.Gate) -> None:
    me = threading.get_ident()

    def press() -> None:
        signal.pthread_kill(me, signal.SIGINT)

    with gate.acquire("p"):
        # Where the tests run in the background of a shell, the signal is ignored.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with pytest.raises(KeyboardInterrupt), gate.acquire("p", on_queued=press):
                raise AssertionError
        finally:
            signal.signal(signal.SIGINT, before)
        # Sent after the call-off, it comes back when that has been carried out.
        gate.run(lambda _: asyncio.sleep(0))
        assert gate.status("p").queued == 0  # type: ignore[union-attr]
    assert in_flight(gate) == 0


class Late(Future[Any]):
    """An answer that arrives, and in the same instant the user presses Ctrl-C."""

    pressed = False

    def result(self, timeout: float | None = None) -> Any:
        answer = super().result(timeout)
        if not self.pressed:
            self.pressed = True
            raise KeyboardInterrupt
        return answer


class Early(Late):
    """Ctrl-C before the answer is there."""

    def result(self, timeout: float | None = None) -> Any:
        if not self.pressed:
            self.pressed = True
            raise KeyboardInterrupt
        return super().result(timeout)


def enter(waiting: sync.Waiting[Any]) -> None:
    with waiting:
        raise AssertionError


@pytest.mark.parametrize("way", [lambda waiting: waiting.wait(), enter], ids=["wait", "with"])
@pytest.mark.parametrize("kind", [Late, Early])
def test_a_permit_that_comes_with_the_interrupt_is_given_back(
    gate: sync.Gate, way: Callable[[Any], Any], kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever comes first by a hair: there is no instant in which the permit belongs to nobody."""
    for _ in range(20):
        with monkeypatch.context() as patch:
            patch.setattr(sync, "Future", lambda: kind())
            with pytest.raises(KeyboardInterrupt):
                way(gate.acquire("p"))
        gate.run(lambda _: asyncio.sleep(0))
        assert in_flight(gate) == 0


def test_an_agent_that_comes_with_the_interrupt_is_checked_in(monkeypatch: pytest.MonkeyPatch) -> None:
    with sync.start(Agents) as agents:
        with monkeypatch.context() as patch:
            patch.setattr(sync, "Future", Late)
            with pytest.raises(KeyboardInterrupt):
                sync.Waiting(agents, agents._target.checkout).wait()
        agents.run(lambda _: asyncio.sleep(0))
        assert agents.seen == ["entered", "out", "in agent"]


def test_ctrl_c_while_leaving_still_releases(gate: sync.Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """The release is not called off with the waiting for it."""
    with pytest.raises(KeyboardInterrupt), gate.acquire("p"):
        monkeypatch.setattr(sync, "Future", Early)
    monkeypatch.undo()
    assert in_flight(gate) == 0


# -- forked --------------------------------------------------------------------------------------------------

FORK = """
import os
from interlock import InvalidOperation, ProviderGate, sync

with sync.start(ProviderGate) as gate:
    gate.set_limit("p", 1)
    with gate.acquire("p") as permit:
        child = os.fork()
        if child == 0:
            try:
                gate.limits()
            except InvalidOperation as error:
                print(error, flush=True)
            # What the parent holds stays the parent's, and leaving both blocks does not hang.
    if child != 0:
        print(os.waitpid(child, 0)[1], gate.run(lambda inner: inner.reading("p").cooling), flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_forked_child_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    said, parent = sorted(done.stdout.splitlines(), key=lambda line: "process" not in line)
    assert "start another one after the fork" in said
    assert parent == "0 1"


def test_it_names_what_it_stands_for() -> None:
    """The typed facades offer what the objects do, under the same names and with the same words."""
    for facade, target in ((sync.Gate, ProviderGate), (sync.Admission, LocalAdmission)):
        for name in vars(facade):
            if not name.startswith("_"):
                assert getattr(facade, name).__doc__ == getattr(target, name).__doc__


def test_limiter_governor_and_pool() -> None:
    """What is awaited or entered elsewhere, under the same names."""
    from interlock.governor import ConcurrencyGovernor
    from interlock.limiter import ConcurrencyLimiter
    from interlock.pool.pool import AgentPool

    with sync.start(lambda: ConcurrencyLimiter(2, 1)) as limiter:
        limiter.acquire_session_slot("s1").wait()
        with limiter.acquire_run_slot("s1", "r1"), pytest.raises(LimitExceeded):
            limiter.acquire_run_slot("s1", "r2").wait()
        limiter.release_session_slot("s1")
        assert (limiter.status().active_sessions, limiter.limits.max_parallel_runs) == (0, 1)
    with sync.start(ConcurrencyGovernor.with_defaults) as governor:
        with governor.acquire_tool():
            permit = governor.try_acquire_stream()
            assert (governor.stats().tools_available, governor.stats().streams_available) == (7, 3)
        assert permit.release()
        assert governor.stats().streams_available == 4
    with sync.start(lambda: AgentPool(object, size=1)) as pool:
        with pool.checkout(timeout=1.0):
            assert pool.stats().in_use == 1
        assert pool.checkin(pool.checkout().wait()) is True
