"""What a pool promises beyond not having the faults of the original."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import pytest

from interlock.admission.local import LocalAdmission
from interlock.errors import (
    AcquireTimeout,
    AgentStartFailed,
    InvalidOperation,
    PoolClosed,
    PoolExhausted,
    ValidationError,
)
from interlock.pool import AgentPool, PoolStats
from interlock.testing import VirtualClock
from interlock.testing.virtual_time import idle
from pool.pools import Agent, Factory, User, Watched, check, pool_of, user

# -- what it is made of


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_overflow": -1}, "max_overflow is -1; allowed are whole numbers from 0"),
        ({"max_overflow": True}, "max_overflow is True"),
        ({"max_overflow": 0.5}, "max_overflow is 0.5"),
        ({"strategy": "random"}, "strategy is 'random'; allowed are 'lifo' and 'fifo'"),
        ({"max_idle": 0}, "max_idle is 0; allowed are None and seconds above 0"),
        ({"max_lifetime": -1.0}, "max_lifetime is -1.0"),
        ({"leak_after": float("nan")}, "leak_after is nan"),
        ({"start_timeout": None}, "start_timeout is None; allowed are seconds above 0"),
        ({"close_timeout": 0}, "close_timeout is 0"),
        ({"name": "x" * 300}, "name"),
    ],
)
def test_what_is_wrong_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AgentPool(object, **options)


async def test_a_timeout_that_is_none_is_refused() -> None:
    async with pool_of(Factory()) as (pool, _), pool.checkout():
        with pytest.raises(ValidationError, match="timeout is -1"):
            await pool.checkout(timeout=-1)


@pytest.mark.parametrize("make", ["plain", "async", "class"])
async def test_a_factory_may_be_plain_or_async(make: str) -> None:
    """Agents that take no time are there as soon as the pool is."""

    async def later() -> object:
        return object()

    factory: Callable[[], Any] = {"plain": lambda: object(), "async": later, "class": object}[make]
    async with AgentPool(factory, 3) as pool:
        assert pool.stats() == PoolStats(3, 3, 0, 0, 5, 0)


async def test_any_object_is_an_agent() -> None:
    """Unhashable ones, equal ones, small integers, strings: identity counts."""
    made = iter([[], [], {}, 1, "one"])
    async with AgentPool(lambda: next(made), 5, 0) as pool:
        agents = [await pool.checkout() for _ in range(5)]
        assert len({id(agent) for agent in agents}) == 5
        assert [await pool.checkin(agent) for agent in agents] == [True] * 5
        assert pool.stats().available == 5


async def test_the_same_agent_twice_is_a_failed_start() -> None:
    one = object()
    async with AgentPool(lambda: one, 1, 1) as pool, pool.checkout():
        with pytest.raises(AgentStartFailed, match="is in the pool already"):
            await pool.checkout()


async def test_a_factory_that_returns_nothing_has_failed() -> None:
    async with AgentPool(lambda: None, 1) as pool:
        with pytest.raises(AgentStartFailed, match="the factory returned None"):
            await pool.checkout()


async def test_the_readings() -> None:
    """Statistics compare by the six numbers that the original had; the rest is for whoever looks."""
    factory = Factory()
    async with pool_of(factory, 1, 2, name="coders") as (pool, _):
        assert repr(pool) == "<AgentPool coders: 0 out and 1 idle of 1 + 2>"
        users = [await user(pool) for _ in range(4)]
        assert pool.stats() == PoolStats(size=1, available=0, in_use=3, overflow=2, max_overflow=2, waiting=1)
        assert repr(pool) == "<AgentPool coders: 3 out and 0 idle of 1 + 2, 1 waiting>"
        assert repr(pool.admission) == "<LocalAdmission pool:coders 3/3 (1 waiting)>"
        assert [out.agent.number for out in pool.out()] == [0, 1, 2]
        assert {(out.seconds, out.user) for out in pool.out()} == {(None, None)}
        for one in users:
            await one.leave()
    assert repr(pool) == "<AgentPool coders: 0 out and 0 idle of 1 + 2, closed>"


async def test_it_starts_by_itself() -> None:
    """The first checkout starts the pool, if nobody has."""
    factory = Factory()
    pool = AgentPool(factory, 2, close=factory.close)
    async with pool.checkout() as agent:
        assert agent in factory.made
    assert factory.starts == 2
    assert await pool.stop()
    assert [agent.closed for agent in factory.made] == [True, True]


async def test_one_that_was_never_started_can_be_stopped() -> None:
    pool = AgentPool(Factory())
    assert not await pool.checkin(Agent(1))
    assert await pool.stop()
    with pytest.raises(PoolClosed):
        await pool.start()


# -- handing out


async def test_a_checkin_has_happened_when_it_returns() -> None:
    """Awaiting it is good style and changes nothing."""
    async with pool_of(Factory()) as (pool, _):
        agent = await pool.checkout()
        pool.checkin(agent)
        assert pool.stats().available == 1


async def test_waiters_are_served_in_their_order() -> None:
    async with pool_of(Factory(), 2) as (pool, _):
        users = [await user(pool) for _ in range(7)]
        for number, one in enumerate(users):
            assert [other.waits for other in users] == [False] * min(7, number + 2) + [True] * max(
                0, 5 - number
            )
            await one.leave()
            check(pool)


async def test_a_newcomer_does_not_take_what_is_anothers() -> None:
    """One agent goes and one comes back in an instant; a newcomer runs before the waiter has noticed."""
    factory = Factory()
    async with pool_of(factory, 2, 1) as (pool, _):
        users = [await user(pool) for _ in range(3)]
        waiter = await user(pool)
        factory.slow = True
        newcomer = User(pool)  # its first step comes before the next of the waiter
        pool.discard(users[0].agent)  # the waiter has a permit
        pool.checkin(users[1].agent)  # there are an agent and a permit more
        await idle()
        assert (waiter.waits, newcomer.waits) == (False, True)
        await factory.let()
        assert not newcomer.waits
        for one in (*users, waiter, newcomer):
            await one.leave()


async def test_an_overflow_agent_that_was_kept_for_somebody_who_left() -> None:
    """It came back while somebody waited, who was cancelled before taking it: it ends after all."""
    async with pool_of(Factory(), 1, 1) as (pool, _):
        kept, overflow, waiter = await user(pool), await user(pool), await user(pool)
        pool.checkin(overflow.agent)
        assert pool.stats().available == 1
        waiter.task.cancel()
        await idle()
        assert overflow.agent.closed
        assert pool.stats() == PoolStats(1, 0, 1, 0, 1, 0)
        await kept.leave()
        await overflow.leave()


async def test_the_time_covers_permit_and_start() -> None:
    """Both waits together take as long as was said."""
    factory = Factory()
    async with pool_of(factory, 1) as (pool, clock):
        holder = await user(pool)
        late = await user(pool, timeout=5.0)
        await clock.advance(3.0)
        factory.slow = True
        await pool.discard(holder.agent)
        await clock.advance(1.9)
        assert late.waits
        await clock.advance(0.1)
        assert isinstance(late.error, AcquireTimeout)
        assert "waited 5 s for an agent of pool" in str(late.error)
        assert "1 being started" in str(late.error)
        await factory.let()
        assert pool.stats().available == 1
        await holder.leave()


async def test_no_time_at_all() -> None:
    """timeout=0 takes an idle agent or none; without blocking, an overflow agent may still be started."""
    factory = Factory()
    async with pool_of(factory, 1, 1) as (pool, _):
        first = await user(pool, timeout=0)
        assert first.agent is not None
        second = await user(pool, block=False)
        assert second.agent.number == 1
        with pytest.raises(AcquireTimeout):
            await pool.checkout(timeout=0)
        with pytest.raises(PoolExhausted):
            await pool.checkout(block=False)
        await first.leave()
        await second.leave()


# -- transactions


async def test_a_transaction_returns_what_its_function_does() -> None:
    async def work(agent: Agent) -> int:
        return agent.number + 1

    async with pool_of(Factory()) as (pool, _):
        assert await pool.transaction(lambda agent: agent.number) == 0
        assert await pool.transaction(work, timeout=None) == 1
        assert pool.stats().available == 1


@pytest.mark.parametrize("resets", [True, False])
@pytest.mark.parametrize("error", [ValueError("mine"), asyncio.CancelledError()])
async def test_what_it_raises_arrives_unchanged(error: BaseException, resets: bool) -> None:
    """The agent, in whatever state it was left, is reset; without a ``reset`` it is replaced."""

    def fail(agent: Agent) -> None:
        agent.memory.append("half a thought")
        raise error

    options = {"reset": lambda agent: agent.memory.clear()} if resets else {}
    async with pool_of(Factory(), 1, **options) as (pool, _):
        with pytest.raises(type(error)) as caught:
            await pool.transaction(fail)
        assert caught.value is error
        async with pool.checkout() as agent:
            assert agent.memory == []
            assert agent.number == (0 if resets else 1)


async def test_a_transaction_whose_agent_died_raises_its_own_error() -> None:
    async with pool_of(Factory(Watched)) as (pool, _):

        async def work(agent: Watched) -> None:
            agent.die()
            await idle()
            raise ConnectionResetError

        with pytest.raises(ConnectionResetError):
            await pool.transaction(work)
        await idle()
        assert pool.stats() == PoolStats(1, 1, 0, 0, 0, 0)


# -- starting


async def test_a_start_that_fails_reaches_one_caller() -> None:
    """Of several who wait the youngest is told, once; those who are left get what comes."""
    factory = Factory()
    factory.slow = True
    async with pool_of(factory, 1, 1) as (pool, clock):
        elder, younger = await user(pool), await user(pool)
        await factory.let(0, OSError("no memory"))
        assert elder.waits
        assert isinstance(younger.error, AgentStartFailed)
        assert str(younger.error).endswith("could not start an agent: OSError('no memory')")
        await factory.let(0)
        assert not elder.waits
        await elder.leave()
        factory.slow = False
        await clock.advance(1.0)
        assert pool.stats().available == 1


async def test_a_start_that_fails_for_nobody_is_silent_to_callers() -> None:
    """Whoever comes later gets an attempt of its own, before the pool tries again by itself."""
    factory = Factory()
    factory.fail = [OSError("once")]
    async with pool_of(factory, 1) as (pool, _):
        assert pool.stats().failures == 1
        one = await user(pool)
        assert not one.waits
        assert pool.stats().failures == 0
        await one.leave()


async def test_who_waits_for_a_start_takes_what_comes_first() -> None:
    """Also if its start fails afterwards: nobody waits for that one any more."""
    factory = Factory()
    async with pool_of(factory, 1, 1) as (pool, clock):
        holder = await user(pool)
        factory.slow = True
        waiter = await user(pool)
        await holder.leave()
        assert not waiter.waits
        await factory.let(0, OSError("too late to matter"))
        assert not waiter.task.done()
        await waiter.leave()
        assert waiter.error is None
        await clock.advance(1)
        assert pool.stats().available == 1


async def test_a_factory_that_hangs() -> None:
    """It is given up after its time, and what it still gives is closed."""
    factory = Factory()
    ended: list[str] = []

    async def hang() -> Agent:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("it was told")
        return await factory()

    async with pool_of(hang, 1, start_timeout=10, close=factory.close) as (pool, clock):
        waiter = await user(pool)
        await clock.advance(10)
        assert isinstance(waiter.error, AgentStartFailed)
        assert isinstance(waiter.error.__cause__, TimeoutError)
        assert ended == ["it was told"]
        assert [agent.closed for agent in factory.made] == [True]
        assert pool.stats().available == 0


async def test_agents_that_die_at_birth_are_not_started_in_a_hurry() -> None:
    """One that dies before anybody used it counts as a failed start: no loop, but longer pauses."""
    factory = Factory(Watched)
    async with pool_of(factory, 1) as (_, clock):
        for delay in (0.5, 1, 2, 4, 8, 16, 30, 30):
            factory.made[-1].die()
            await clock.advance(delay - 0.01)
            assert len(factory.living) == 0
            await clock.advance(0.01)
            assert len(factory.living) == 1


async def test_ready() -> None:
    """It returns once the agents are there, and raises what kept one from coming."""
    factory = Factory()
    factory.slow = True
    async with pool_of(factory, 2) as (pool, clock):
        waiting = asyncio.create_task(pool.ready())
        await factory.let()
        assert not waiting.done()
        await factory.let()
        assert waiting.done()
        await waiting
        await pool.ready()
    factory = Factory()
    factory.fail = [OSError("no memory")] * 2
    async with pool_of(factory, 2) as (pool, clock):
        with pytest.raises(AgentStartFailed, match="no memory"):
            await pool.ready()
        await clock.advance(1)
        await pool.ready()
    with pytest.raises(PoolClosed):
        await pool.ready()


async def test_an_agent_is_not_born_in_its_callers_context() -> None:
    """What a caller has set for itself (a trace, a conversation) does not stick to the agent."""
    conversation = ContextVar("conversation", default="none")
    seen: list[str] = []

    async def factory() -> object:
        seen.append(conversation.get())
        return object()

    async with AgentPool(factory, 1, 1) as pool:
        conversation.set("mine")
        async with pool.checkout(), pool.checkout():
            assert seen == ["none", "none"]


# -- resetting, checking, closing


async def test_resetting_holds_up_nobody_but_the_agent() -> None:
    """Checking in does not wait for the reset; with room for another, the next caller waits for this one."""
    gates: list[asyncio.Future[None]] = []

    async def reset(agent: Agent) -> None:
        gates.append(asyncio.get_running_loop().create_future())
        await gates[-1]

    factory = Factory()
    async with pool_of(factory, 1, 1, reset=reset) as (pool, _):
        agent = await pool.checkout()
        await pool.checkin(agent)
        waiter = await user(pool)
        assert (pool.stats().preparing, waiter.waits, factory.starts) == (1, True, 1)
        gates.pop().set_result(None)
        await idle()
        assert waiter.agent is agent
        await waiter.leave()
        gates.pop().set_result(None)


@pytest.mark.parametrize("what", ["reset", "check"])
async def test_one_that_hangs_is_replaced(what: str, caplog: pytest.LogCaptureFixture) -> None:
    """After its time the reset or check is given up, also if it ignores that."""
    hang = False

    async def call(agent: Agent) -> None:
        while hang:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if agent.closed:
                    raise

    factory = Factory()
    async with pool_of(factory, 1, **{what: call, f"{what}_timeout": 3}) as (pool, clock):
        async with pool.checkout() as agent:
            hang = True
        waiter = await user(pool)
        await clock.advance(3)
        hang = False
        await idle()
        assert agent.closed
        assert waiter.agent is not agent
        assert "it took longer than 3 s" in caplog.text
        await waiter.leave()
        for task in asyncio.all_tasks():
            if "Errand.run" in repr(task):
                task.cancel()  # the one that ignored it


async def test_a_check_that_says_nothing_has_nothing_against_it() -> None:
    async with pool_of(Factory(), 1, check=lambda agent: None) as (pool, _), pool.checkout() as agent:
        assert agent.number == 0


async def test_an_agent_that_is_unfit_from_the_start_is_a_failed_start() -> None:
    """No endless circle of starting and refusing."""
    factory = Factory()
    async with pool_of(factory, 1, check=lambda agent: False) as (pool, _):
        with pytest.raises(AgentStartFailed, match="the check refused agent"):
            await pool.checkout()
        assert factory.starts == 2


@pytest.mark.parametrize("name", ["close", "aclose"])
async def test_an_agent_closes_itself_unless_told_otherwise(name: str) -> None:
    closed: list[object] = []

    class Closing:
        pass

    setattr(Closing, name, lambda self: closed.append(self))
    async with AgentPool(Closing, 2) as pool:
        agent = await pool.checkout()
        pool.discard(agent)
        await idle()
        assert closed == [agent]
    assert len(closed) == 3


async def test_a_close_that_hangs_keeps_its_place_for_its_time(caplog: pytest.LogCaptureFixture) -> None:
    """What cannot be known to be gone counts: so there are never more agents than may be."""

    async def close(agent: Agent) -> None:
        agent.closed = True
        await asyncio.Event().wait()

    async with pool_of(Factory(), 1, close=close, close_timeout=4) as (pool, clock):
        one = await user(pool)
        await pool.discard(one.agent)
        waiter = await user(pool)
        await clock.advance(3.9)
        assert (waiter.waits, pool.stats().closing) == (True, 1)
        await clock.advance(0.1)
        assert not waiter.waits
        assert "could not close agent 0: TimeoutError" in caplog.text
        await waiter.leave()
        await one.leave()


async def test_a_dead_agent_makes_room_at_once() -> None:
    """Its close may take its time: it is not alive any more."""

    async def close(agent: Agent) -> None:
        agent.closed = True
        await asyncio.Event().wait()

    async with pool_of(Factory(Watched), 1, close=close) as (pool, _):
        one = await user(pool)
        one.agent.die()
        waiter = await user(pool)
        assert not waiter.waits
        await waiter.leave()
        await one.leave()


async def test_who_cannot_say_whether_it_lives_is_taken_for_dead() -> None:
    class Broken:
        gone = False

        @property
        def alive(self) -> bool:
            if self.gone:
                raise ConnectionError
            return True

    async with AgentPool(Broken, 1) as pool:
        async with pool.checkout() as agent:
            agent.gone = True
        async with pool.checkout() as another:
            assert another is not agent


async def test_one_that_cannot_even_be_looked_at_is_dead_at_birth() -> None:
    class Hopeless:
        def __getattr__(self, name: str) -> object:
            raise ConnectionError

    async with AgentPool(Hopeless, 1) as pool:
        with pytest.raises(AgentStartFailed, match="died before its first use"):
            await pool.checkout()
        assert pool.stats().in_use == 0


async def test_alive_may_be_a_method() -> None:
    class Methodical:
        dead = False

        def alive(self) -> bool:
            return not self.dead

    async with AgentPool(Methodical, 1) as pool:
        async with pool.checkout() as agent:
            agent.dead = True
        async with pool.checkout() as another:
            assert another is not agent


# -- ages


async def test_agents_are_replaced_when_they_are_old() -> None:
    """Idle ones when their time comes, those that are out when they are back."""
    factory = Factory()
    async with pool_of(factory, 2, max_lifetime=100) as (pool, clock):
        one = await user(pool)
        await clock.advance(99)
        assert factory.starts == 2
        await clock.advance(1)
        assert (factory.starts, len(factory.living)) == (3, 2)
        await one.leave()
        assert one.agent.closed
        assert (factory.starts, pool.stats().available) == (4, 2)
    assert factory.most_alive == 2


async def test_a_leak_is_reported_once_a_checkout(caplog: pytest.LogCaptureFixture) -> None:
    """With the name of the task and where it stands."""
    async with pool_of(Factory(), 2, leak_after=10) as (pool, clock):
        one = await user(pool)
        await clock.advance(5)
        two = await user(pool)
        two.task.set_name("second")
        await clock.advance(6)
        assert len(caplog.records) == 1
        await clock.advance(100)
        assert len(caplog.records) == 2
        assert "with task 'second' at pools.py:" in caplog.text
        assert [out.seconds for out in pool.out()] == [111, 106]
        await one.leave()
        await two.leave()
        again = await user(pool)
        await clock.advance(10)
        assert len(caplog.records) == 3
        await again.leave()


# -- stopping


async def test_what_is_under_way_is_awaited() -> None:
    """A start, a reset: the pool waits for them, closes what they give, and gives up on those that hang."""
    factory = Factory()
    async with pool_of(factory, 2) as (pool, clock):
        one = await user(pool)
        factory.slow = True
        await pool.discard(one.agent)
        await idle()
        assert pool.stats().starting == 1
        stopping = asyncio.create_task(pool.stop(5))
        await idle()
        assert not stopping.done()
        await factory.let()
        assert stopping.done()
        assert await stopping
        assert factory.living == []
        await one.leave()
    factory = Factory()
    factory.slow = True
    async with pool_of(factory, 1) as (pool, clock):
        stopping = asyncio.create_task(pool.stop(5))
        await clock.advance(5)
        assert stopping.done()
        factory.gates.clear()


async def test_stopping_goes_on_when_whoever_asked_for_it_has_gone() -> None:
    async with pool_of(Factory(), 1) as (pool, clock):
        one = await user(pool)
        impatient = asyncio.create_task(pool.stop(5))
        await idle()
        impatient.cancel()
        await idle()
        assert impatient.cancelled()
        second = asyncio.create_task(pool.stop(100))
        await clock.advance(5)
        assert second.done()
        assert one.agent.closed
        await one.leave()


async def test_one_that_waits_for_an_agent_is_told() -> None:
    """Both kinds of waiting end: for a permit, and for a start."""
    factory = Factory()
    async with pool_of(factory, 1) as (pool, clock):
        one = await user(pool)
        factory.slow = True
        starting = await user(pool)
        await pool.discard(one.agent)
        await idle()
        queued = await user(pool)
        stopping = asyncio.create_task(pool.stop(0))
        await idle()
        assert isinstance(starting.error, PoolClosed)
        assert isinstance(queued.error, PoolClosed)
        await clock.advance(0)
        assert stopping.done()
        factory.gates.clear()
        await one.leave()


async def test_one_that_is_granted_in_the_instant_of_the_stop() -> None:
    """It was granted a permit and has not run yet when the pool stops: it is told, and nothing is left."""
    async with pool_of(Factory(), 1) as (pool, _):
        one, two = await user(pool), await user(pool)
        stopping = asyncio.create_task(pool.stop(5))
        pool.checkin(one.agent)  # so two is woken right after the pool has stopped
        await idle()
        assert isinstance(two.error, PoolClosed)
        await one.leave()
        assert stopping.done()


# -- admission


async def test_pools_may_share_an_admission() -> None:
    """Each has a limit of its own, which goes with it; two of one name are refused."""
    admission = LocalAdmission(clock=VirtualClock())
    async with (
        AgentPool(object, 2, 1, name="coders", admission=admission) as coders,
        AgentPool(object, 1, 0, name="writers", admission=admission) as writers,
    ):
        async with coders.checkout(), coders.checkout(), writers.checkout():
            used = {name: (one.used, one.capacity) for name, one in admission.limits().items()}
            assert used == {"pool:coders": (2, 3), "pool:writers": (1, 1)}
        with pytest.raises(InvalidOperation, match="'pool:coders' exists already"):
            await AgentPool(object, name="coders", admission=admission).start()
    assert admission.limits() == {}
    async with AgentPool(object, name="coders", admission=admission) as again, again.checkout():
        assert admission.limits()["pool:coders"].used == 1
    await admission.aclose()


class Elsewhere:
    """An admission that is not in this process: what the protocol says, and answers that take a moment."""

    def __init__(self) -> None:
        self.inner = LocalAdmission()
        self.refuse = False

    async def set_limit(self, name: str, capacity: int | None, **options: Any) -> None:
        await asyncio.sleep(0)
        await self.inner.set_limit(name, capacity, **options)

    def acquire(self, *names: str, **asked: Any) -> Any:
        outer = self

        class Asking:
            def __await__(self) -> Any:
                yield from asyncio.sleep(0).__await__()
                return (yield from outer.inner.acquire(*names, **asked).__await__())

        return Asking()


async def test_any_admission_will_do() -> None:
    """The same pool over the bare protocol: order, overflow, timeouts, cancelling, stopping."""
    admission: Any = Elsewhere()
    factory = Factory()
    async with pool_of(factory, 1, 1, admission=admission, name="far") as (pool, clock):
        users = [await user(pool) for _ in range(5)]
        assert [one.waits for one in users] == [False, False, True, True, True]
        assert admission.inner.limits()["pool:far"].used == 2
        with pytest.raises(PoolExhausted):
            await pool.checkout(block=False)
        users[2].task.cancel()
        await users[0].leave()
        assert [one.waits for one in users[3:]] == [False, True]
        await pool.discard(users[1].agent)
        await idle()
        assert not users[4].waits
        last = await user(pool)
        stopping = asyncio.create_task(pool.stop(60))
        await idle()
        assert isinstance(last.error, PoolClosed)
        for one in users:
            await one.leave()
        assert stopping.done()
        assert admission.inner.limits()["pool:far"].used == 0
        del clock
    await admission.inner.aclose()


async def test_a_lowered_limit_holds(caplog: pytest.LogCaptureFixture) -> None:
    """An operator may lower the limit of a pool: idle agents stay where they are until there is room."""
    caplog.set_level(logging.INFO)
    async with pool_of(Factory(), 2) as (pool, _):
        admission: Any = pool.admission
        await admission.set_limit(pool.limit_name, 1)
        one, two = await user(pool), await user(pool)
        assert [one.waits, two.waits] == [False, True]
        await one.leave()
        assert not two.waits
        await two.leave()
