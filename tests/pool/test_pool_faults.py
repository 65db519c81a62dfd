"""The eighteen faults of the original pool, each as a test that it would fail."""

from __future__ import annotations

import asyncio
import gc
import logging
from contextlib import suppress
from typing import Any

import pytest

from interlock.errors import (
    AcquireTimeout,
    AgentStartFailed,
    PoolClosed,
    PoolExhausted,
    ValidationError,
)
from interlock.pool import AgentPool
from interlock.testing.virtual_time import idle
from pool.pools import Agent, Factory, Watched, check, pool_of, user


async def test_lifo_and_fifo_are_what_they_are_called() -> None:
    """C3.1: lifo gives the last returned agent, fifo the longest returned."""
    for strategy, number in (("lifo", 1), ("fifo", 0)):
        async with pool_of(Factory(), 2, strategy=strategy) as (pool, _):
            agents = sorted([await pool.checkout(), await pool.checkout()], key=lambda agent: agent.number)
            for agent in agents:
                await pool.checkin(agent)
            async with pool.checkout() as agent:
                assert agent.number == number, strategy


@pytest.mark.parametrize("size", [0, -1, True, 1.5, "2", None])
def test_a_size_below_one_is_refused(size: Any) -> None:
    """C3.2: a pool of no agents cannot be made, instead of having two."""
    with pytest.raises(ValidationError, match="size"):
        AgentPool(object, size)


async def test_a_second_checkin_does_nothing() -> None:
    """C3.3: an agent that was checked in twice goes to one user, not to two."""
    async with pool_of(Factory(), 1) as (pool, _):
        agent = await pool.checkout()
        assert [await pool.checkin(agent), await pool.checkin(agent)] == [True, False]
        assert pool.stats().available == 1
        async with pool.checkout():
            with pytest.raises(PoolExhausted):
                await pool.checkout(block=False)


@pytest.mark.parametrize("fails", [False, True])
async def test_a_late_checkin_does_not_take_it_from_the_next(fails: bool) -> None:
    """C3.3: who checked in by hand and then leaves its block does not give back for another."""
    async with pool_of(Factory(), 1) as (pool, _):

        async def hasty(agent: Agent) -> None:
            await pool.checkin(agent)
            taken.append(await pool.checkout())
            if fails:
                raise ZeroDivisionError

        for way in ("transaction", "block"):
            taken: list[Agent] = []
            with suppress(ZeroDivisionError):
                if way == "transaction":
                    await pool.transaction(hasty)
                else:
                    async with pool.checkout() as agent:
                        await hasty(agent)
            assert pool.stats().in_use == 1, way
            await pool.checkin(taken[0])


async def test_a_stranger_is_not_taken_in() -> None:
    """C3.4: checking in what was never checked out does nothing, even if it equals an agent of ours."""
    async with pool_of(Factory(), 1) as (pool, _):
        stranger = Agent(99)
        agent = await pool.checkout()
        assert agent == stranger
        assert not await pool.checkin(stranger)
        assert not await pool.discard(stranger)
        await pool.checkin(agent)
        async with pool.checkout() as again:
            assert again is agent


async def test_a_cancelled_user_gives_its_agent_back() -> None:
    """C3.5: the agent of a user who is cancelled while it works is not in use for ever."""
    async with pool_of(Factory(), 1) as (pool, _):

        async def forever(agent: Agent) -> None:
            await asyncio.Event().wait()

        one = await user(pool)
        one.task.cancel()
        await idle()
        assert (pool.stats().available, pool.stats().in_use) == (1, 0)
        two = asyncio.create_task(pool.transaction(forever))
        await idle()
        assert pool.stats().in_use == 1
        two.cancel()
        await idle()
        assert (pool.stats().available, pool.stats().in_use) == (1, 0)


async def test_a_user_that_vanished_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """C3.5: one who never gives back is reported, with its name; the agent can be discarded."""
    async with pool_of(Factory(), 1, leak_after=600) as (pool, clock):

        async def forget() -> None:
            await pool.checkout()

        await asyncio.create_task(forget(), name="forgetful")
        await clock.advance(2000)
        (warning,) = [one.getMessage() for one in caplog.records if "out for" in one.getMessage()]
        assert "agent 0 is out for 600 s, with task 'forgetful', which has ended" in warning
        (out,) = pool.out()
        assert (out.seconds, out.user) == (2000, "task 'forgetful', which has ended")
        assert await pool.discard(out.agent)
        await idle()
        assert pool.stats().available == 1


async def test_a_waiter_that_left_gets_nothing() -> None:
    """C3.6: one that was cancelled or timed out while it waited is not handed an agent that is then lost."""
    async with pool_of(Factory(), 1) as (pool, clock):
        holder = await user(pool)
        cancelled, late, patient = await user(pool), await user(pool, timeout=1.0), await user(pool)
        cancelled.task.cancel()
        await clock.advance(1.0)
        assert isinstance(late.error, AcquireTimeout)
        assert pool.stats().waiting == 1
        await holder.leave()
        assert not patient.waits
        await patient.leave()
        assert (pool.stats().available, pool.stats().in_use, pool.stats().waiting) == (1, 0, 0)


async def test_overflow_is_counted_once() -> None:
    """C3.7: overflow agents that end, by themselves or not, leave room for just as many others."""
    factory = Factory(Watched)
    async with pool_of(factory, 1, 2) as (pool, _):
        for _ in range(5):
            users = [await user(pool) for _ in range(4)]
            assert [one.waits for one in users] == [False, False, False, True]
            assert pool.stats().overflow == 2
            for one in users[1:3]:
                one.agent.die()
            await idle()
            assert pool.stats().in_use == 2  # the one that waited has another now
            for one in users:
                await one.leave()
            check(pool)
            assert (pool.stats().available, pool.stats().overflow) == (1, 0)
    assert factory.most_alive == 3


@pytest.mark.parametrize("how", ["dies", "is discarded"])
async def test_a_waiter_is_served_when_an_overflow_agent_goes(how: str) -> None:
    """C3.8: room that an overflow agent leaves goes to who waits, and not to a newcomer."""
    async with pool_of(Factory(Watched), 1, 1) as (pool, _):
        holder, second = await user(pool), await user(pool)
        waiter = await user(pool)
        if how == "dies":
            second.agent.die()
        else:
            await pool.discard(second.agent)
        newcomer = await user(pool)
        assert (waiter.waits, newcomer.waits) == (False, True)
        for one in (holder, second, waiter, newcomer):
            await one.leave()


@pytest.mark.parametrize("options", [{}, {"leak_after": 9}, {"check": id}, {"reset": id}], ids=str)
@pytest.mark.parametrize("kind", [Agent, Watched])
async def test_a_dead_agent_is_not_handed_out(kind: type[Agent], options: dict[str, Any]) -> None:
    """C3.9: one that died on the shelf is replaced: at once if it is watched, else when it is its turn."""
    factory = Factory(kind)
    async with pool_of(factory, 2, **options) as (pool, clock):
        await clock.advance(3600)
        dead = factory.made[1]
        dead.alive = False
        if isinstance(dead, Watched):
            dead.die()
            await idle()
            assert pool.stats().available == 2
            assert len(factory.living) == 2
        users = [await user(pool), await user(pool)]
        assert all(one.agent.alive for one in users)
        assert dead.closed
        for one in users:
            await one.leave()


async def test_there_is_one_who_replaces() -> None:
    """C3.10: crashes leave exactly ``size`` agents alive, however many there are in however short a time."""
    factory = Factory(Watched)
    async with pool_of(factory, 2) as (pool, clock):
        for _ in range(20):
            await clock.advance(60)
            for agent in factory.living:
                agent.die()
            await idle()
            assert len(factory.living) == 2
        assert factory.most_alive == 2
        assert pool.stats().available == 2


async def test_nothing_is_kept_of_a_checkout() -> None:
    """C3.11: ten thousand checkouts leave no more tasks, timers and objects behind than one."""
    async with pool_of(Factory(Watched), 2, leak_after=600, reset=lambda agent: None) as (pool, clock):

        async def some(count: int) -> tuple[int, int, int]:
            for _ in range(count):
                async with pool.checkout():
                    pass
                await idle()
            await clock.advance(1000)
            gc.collect()
            return len(asyncio.all_tasks()), len(clock._timers), len(gc.get_objects())

        few = await some(100)
        many = await some(2_000)
        assert many[:2] == few[:2]
        assert many[2] - few[2] < 200


async def test_a_replacement_is_watched_as_well() -> None:
    """C3.12: an agent that came for one that had died is noticed in its turn when it dies."""
    factory = Factory(Watched)
    async with pool_of(factory, 1) as (pool, _):
        for number in range(4):
            one = await user(pool)
            assert one.agent.number == number
            one.agent.die()
            await idle()
            assert pool.stats().in_use == 0
            await one.leave()
            assert pool.stats().available == 1


async def test_a_failed_start_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    """C3.13: starts that fail are seen and repeated, more and more slowly, until the pool has its size."""
    factory = Factory()
    factory.fail = [OSError("no memory")] * 6
    async with pool_of(factory, 2) as (pool, clock):
        assert (factory.starts, pool.stats().failures) == (2, 2)
        assert pool.stats().last_failure == "OSError('no memory')"
        assert "could not start an agent (1 in a row), next attempt in 0.5 s: OSError" in caplog.text
        for delay in (0.5, 2.0, 4.0, 8.0):  # after the first two failures, one at a time
            starts = factory.starts
            await clock.advance(delay - 0.01)
            assert factory.starts == starts
            await clock.advance(0.01)
            assert factory.starts == starts + 1
        await clock.advance(16.0)
        assert (pool.stats().available, pool.stats().failures, pool.stats().last_failure) == (2, 0, None)


async def test_a_slow_start_blocks_nobody() -> None:
    """C3.14: while an agent is being started, others check out, check in, and read the statistics."""
    factory = Factory()
    async with pool_of(factory, 1, 1) as (pool, _):
        holder = await user(pool)
        factory.slow = True
        waiter = await user(pool)
        assert (waiter.waits, pool.stats().starting) == (True, 1)
        await holder.leave()
        assert waiter.agent.number == 0, "what came back goes to who waits for a start"
        await waiter.leave()
        quick = await user(pool)
        assert not quick.waits
        await factory.let()
        assert (pool.stats().available, pool.stats().in_use) == (1, 1), "what was started is on the shelf"
        await quick.leave()


async def test_what_is_documented_is_raised() -> None:
    """C3.15: every error that `checkout` names comes as one of that class; unknown options are refused."""
    factory = Factory()
    async with pool_of(factory, 1) as (pool, clock):
        holder = await user(pool)
        with pytest.raises(PoolExhausted, match="1 are out of 1 and 0 overflow"):
            await pool.checkout(block=False)
        late, early = await user(pool, timeout=5.0), await user(pool)
        await clock.advance(5.0)
        assert isinstance(late.error, AcquireTimeout)
        assert "is full (1/1 in use, held by pool agents-" in str(late.error)
        factory.fail = [OSError("no memory")]
        await pool.discard(holder.agent)
        await idle()
        assert isinstance(early.error, AgentStartFailed)
        assert isinstance(early.error.__cause__, OSError)
    with pytest.raises(PoolClosed):
        await pool.checkout()
    with pytest.raises(TypeError, match="overflow"):
        AgentPool(factory, overflow=5)  # type: ignore[call-arg]


async def test_an_agent_is_reset_between_two_users() -> None:
    """C3.16: what one user told an agent the next does not find; one that cannot forget is replaced."""
    factory = Factory()

    async def reset(agent: Agent) -> None:
        if "stubborn" in agent.memory:
            raise RuntimeError("it cannot forget")
        agent.memory.clear()

    async with pool_of(factory, 1, reset=reset) as (pool, _):
        async with pool.checkout() as first:
            first.memory.append("a secret")
        async with pool.checkout() as second:
            assert second is first
            assert second.memory == []
            second.memory.append("stubborn")
        async with pool.checkout() as third:
            assert third is not first
        assert first.closed


async def test_an_agent_is_checked_before_it_is_handed_out() -> None:
    """C3.16: one whose check fails is replaced before its next user sees it."""
    factory = Factory()
    async with pool_of(factory, 1, check=lambda agent: "sick" not in agent.memory) as (pool, _):
        async with pool.checkout() as first:
            first.memory.append("sick")
        async with pool.checkout() as second:
            assert second is not first
        assert first.closed


async def test_overflow_agents_may_stay_for_a_while() -> None:
    """C3.17: with ``max_idle`` an overflow agent is there for the next moment, and ends after that time."""
    factory = Factory()
    async with pool_of(factory, 1, 1, max_idle=30) as (pool, clock):
        for _ in range(3):
            users = [await user(pool), await user(pool)]
            for one in users:
                await one.leave()
            await clock.advance(20)
        assert factory.starts == 2
        await clock.advance(9)
        assert pool.stats().available == 2
        await clock.advance(1)
        assert (pool.stats().available, pool.stats().overflow) == (1, 0)


async def test_an_overflow_agent_stays_for_who_waits() -> None:
    """C3.17: without ``max_idle`` it ends when it comes back, but not while somebody waits for one."""
    factory = Factory()
    async with pool_of(factory, 1, 1) as (pool, _):
        users = [await user(pool) for _ in range(3)]
        await users[1].leave()
        assert users[2].agent is users[1].agent
        await users[2].leave()
        assert (pool.stats().in_use, pool.stats().available, len(factory.living)) == (1, 0, 1)
        await users[0].leave()
    assert factory.starts == 2


async def test_stopping_waits_for_who_is_out(caplog: pytest.LogCaptureFixture) -> None:
    """C3.18: agents that are out may come back for a time; who waits is told; then all are closed."""
    factory = Factory()
    async with pool_of(factory, 2) as (pool, clock):
        quick, slow = await user(pool), await user(pool)
        waiter = await user(pool)
        stopping = asyncio.create_task(pool.stop(timeout=5.0))
        await idle()
        assert isinstance(waiter.error, PoolClosed)
        with pytest.raises(PoolClosed):
            await pool.checkout()
        await quick.leave()
        assert quick.agent.closed
        await clock.advance(4.9)
        assert not slow.agent.closed
        assert not stopping.done()
        with caplog.at_level(logging.WARNING):
            await clock.advance(0.1)
        assert "closes agent 0, which is still out" in caplog.text
        assert slow.agent.closed
        assert await stopping is False
        await slow.leave()
        assert slow.error is None
