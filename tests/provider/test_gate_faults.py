"""The sixteen faults of the original provider gate, one test or more for each: none of them is ours."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from interlock import AcquireTimeout, ProviderGate, ProviderUsage, SystemClock, Unavailable, ValidationError
from interlock.stores import MemoryStore
from interlock.testing.virtual_time import idle
from provider.conftest import Open
from provider.gates import START, Account, P, admitted


async def test_c4_01_newcomer_never_passes_a_waiter_at_the_gate(scene: Open) -> None:
    """A waiter is held back by a full upstream, 3 of 4 in flight here: who comes later waits behind it."""
    account = Account(4)
    here = await scene(4, fetch_usage=account, default_cooldown=0)
    await here.holds(3)
    (waiter,) = await here.line_up(1, timeout=None)
    newcomer = await here.queue("newcomer", prompt_started_at=START)
    assert here.status().in_flight == 3
    account.answer = 3
    await here.clock.advance(1)
    assert (waiter.waits, newcomer.waits) == (False, True)


async def test_c4_01_an_older_prompt_asks_at_the_gate_like_any_other(scene: Open) -> None:
    """While somebody waits for a poll there is no way past the gate, only past the waiter."""
    account = Account()
    here = await scene(4, fetch_usage=account, default_cooldown=0)
    reply = account.silent()
    (waiter,) = await here.line_up(1)
    older = await here.queue("older", prompt_started_at=1)
    urgent = await here.queue("urgent", priority=-1)
    reply.set_result(2)
    await idle()
    assert (urgent.waits, older.waits, waiter.waits) == (False, False, True)


async def test_c4_01_steady_arrivals_do_not_postpone_the_poll(scene: Open) -> None:
    """The other half of it: everybody queues, and nobody who does starts the 1 s timer anew."""
    account = Account(4)
    here = await scene(4, fetch_usage=account, default_cooldown=0)
    (waiter,) = await here.line_up(1, timeout=None)
    account.answer = 3
    for _ in range(2):
        await here.clock.advance(0.6)
        await here.ask("steady")
    assert account.polls >= 2
    assert not waiter.waits


async def test_c4_02_one_reading_admits_only_what_it_has_room_for(scene: Open) -> None:
    """One poll reads 3 of 4: one of three waiters goes, not all that fit locally."""
    account = Account(3)
    here = await scene(4, fetch_usage=account, default_cooldown=0)
    waiters = await here.line_up(3, timeout=None)
    assert (account.polls, admitted(waiters)) == (1, 1)


async def test_c4_02_polls_never_run_side_by_side(scene: Open) -> None:
    """Slots that come back during a poll start no second one, and one reading is not used three times."""
    account = Account()
    here = await scene(4, fetch_usage=account, default_cooldown=0)
    permits = await here.holds(4)
    waiters = [await here.queue(f"w{number}") for number in range(4)]
    reply = account.silent()
    for permit in permits[:3]:
        await here.release(permit)
    assert (account.polls, account.at_once) == (1, 1)
    account.silent()
    reply.set_result(3)
    await idle()
    assert admitted(waiters) == 1
    assert account.most_at_once == 1


async def test_c4_02_our_own_grants_count_before_they_are_visible(scene: Open) -> None:
    """The provider lags: what went since the question is taken off its answer."""
    replies: list[asyncio.Future[int]] = []

    async def fetch(_: str) -> ProviderUsage:
        replies.append(asyncio.get_running_loop().create_future())
        return ProviderUsage(await replies[-1])

    here = await scene(3, fetch_usage=fetch, default_cooldown=0)
    (gone,) = await here.line_up(1, timeout=None)
    gone.task.cancel()
    await idle()
    await here.hold()
    waiters = await here.line_up(2, timeout=None)
    replies[0].set_result(2)
    await idle()
    assert admitted(waiters) == 0, "2 of others and 1 of ours make 3"


async def test_c4_03_a_hanging_poll_does_not_freeze_the_provider(scene: Open) -> None:
    """After its timeout it counts as unknown, and the next slot that comes back is asked about afresh."""
    account = Account()
    here = await scene(1, fetch_usage=account, default_cooldown=0)
    account.silent()
    waiters = await here.line_up(2, timeout=None)
    account.answer = 0
    await here.clock.advance(2)
    assert admitted(waiters) == 1
    await here.release(waiters[0].permit)
    assert admitted(waiters) == 2


async def test_c4_04_a_throwing_poll_counts_as_unknown(scene: Open) -> None:
    """Its waiters go at once, as many as fit; nothing is left unhandled."""
    account = Account(RuntimeError("usage is down"))
    here = await scene(2, fetch_usage=account, default_cooldown=0)
    unhandled: list[object] = []
    loop = asyncio.get_running_loop()
    handler = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: unhandled.append(context))
    waiters = await here.line_up(3, timeout=None)
    loop.set_exception_handler(handler)
    assert admitted(waiters) == 2
    assert here.clock.now() == START
    assert unhandled == []


async def test_c4_05_the_wait_at_the_gate_is_bounded(scene: Open) -> None:
    """A counter that sticks, with nothing in flight here: the deadline ends the wait and names the gate."""
    account = Account(4)
    here = await scene(4, fetch_usage=account)
    here.gate.pause(P, 1)
    waiter = await here.queue()
    await here.clock.advance(300)
    assert isinstance(waiter.error, AcquireTimeout)
    assert "waits for its provider to report room (0/4 in use)" in waiter.error.message


async def test_c4_06_a_pause_ends_for_as_many_as_the_reading_allows(scene: Open) -> None:
    """8 free places, 8 who wait: all of them go on one poll, not one a second."""
    account = Account(0)
    here = await scene(8, fetch_usage=account)
    here.gate.pause(P, 30)
    waiters = [await here.queue(f"w{number}") for number in range(9)]
    await here.clock.advance(30)
    assert (account.polls, admitted(waiters)) == (1, 8)


async def test_c4_07_one_burst_is_one_reduction(scene: Open) -> None:
    """Five reports of one overshoot cut once; the operator's own limit is known, and regained after quiet."""
    here = await scene(4, recovery="probe", recovery_window=30)
    permits = await here.holds(4)
    await here.gate.set_limit(P, 5)
    permits.append(await here.hold("fifth"))
    for permit in permits:
        here.gate.report_rate_limit(P, 1, permit=permit)
    status = here.status()
    assert (status.limit, status.configured_limit, status.auto_reduced_from) == (4, 5, 5)
    await here.clock.advance(30)
    assert (here.status().limit, here.status().auto_reduced) == (5, False)


async def test_c4_08_a_shorter_retry_after_does_not_shorten_the_pause(scene: Open) -> None:
    """60 s, then 1 s: the later end stands."""
    here = await scene(4)
    here.gate.report_rate_limit(P, 60)
    here.gate.report_rate_limit(P, 1)
    await here.clock.advance(59)
    assert here.status().paused
    await here.clock.advance(1)
    assert not here.status().paused


async def test_c4_09_retry_after_is_heard_and_other_429s_cost_no_concurrency(scene: Open) -> None:
    """What the provider asks for is waited, and only what concerns concurrency cuts."""
    here = await scene(4)
    for reason in ("rate", "overload", "quota"):
        here.gate.report_rate_limit(P, 3, reason=reason)  # type: ignore[arg-type]
    assert (here.status().limit, here.status().paused_until) == (4, START + 3)
    here.gate.report_rate_limit(P, 4)
    assert (here.status().limit, here.status().paused_until) == (3, START + 4)


async def test_c4_10_a_queued_acquire_can_be_cancelled(scene: Open) -> None:
    """An aborted turn gets no slot, and a wait has a deadline of its own."""
    here = await scene(1, default_cooldown=0)
    held = await here.hold()
    aborted, hasty, last = await here.queue("a"), await here.queue("h", timeout=1), await here.queue("l")
    aborted.task.cancel()
    await here.clock.advance(1)
    assert aborted.task.cancelled()
    assert isinstance(hasty.error, AcquireTimeout)
    assert here.status().queued == 1
    await here.release(held)
    assert not last.waits
    assert here.status().in_flight == 1


async def test_c4_11_the_watchdog_spares_live_streams_and_tells_the_holder(scene: Open) -> None:
    """Age is no proof of death: `touch` keeps a slot. Who lost one can see it, and the slot cools first."""
    here = await scene(2, default_cooldown=5)
    live, dead = await here.holds(2)
    waiter = await here.queue(timeout=None)
    for _ in range(11):
        await here.clock.advance(30)
        live.touch()
    assert (live.lost, dead.lost) == (False, True)
    assert here.told == [("on_reclaim", P, "h1", 330.0)]
    assert (here.status().in_flight, here.status().cooling) == (2, 1)
    assert waiter.waits
    await here.clock.advance(5)
    assert not waiter.waits
    assert here.status().in_flight == 2


async def test_c4_12_calls_are_counted_with_a_limit_or_without(scene: Open) -> None:
    """Removing a limit and setting it again forgets nothing; a first limit finds a busy provider."""
    here = await scene(3)
    await here.holds(3)
    await here.gate.remove_limit(P)
    await here.gate.set_limit(P, 3)
    assert here.status().in_flight == 3
    await here.queue()
    for number in range(5):
        await here.hold(f"o{number}", "other")
    await here.gate.set_limit("other", 5)
    await here.queue("late", "other")


async def test_c4_13_closing_settles_every_queued_acquire(scene: Open) -> None:
    """With Unavailable; nobody is left pending."""
    here = await scene(1)
    await here.hold()
    here.gate.pause("other", 60)
    waiters = [await here.queue(timeout=None), await here.queue("o", "other", timeout=None)]
    await here.gate.aclose()
    await idle()
    assert [type(waiter.error) for waiter in waiters] == [Unavailable, Unavailable]


async def test_c4_14_arrival_breaks_ties_among_many(scene: Open) -> None:
    """Sixty prompts of five ages in any order: by age, within an age by arrival."""
    here = await scene(1, default_cooldown=0)
    ages = [random.Random(14).choice([100, 200, 300, 400, 500]) for _ in range(60)]
    permit = await here.hold("first")
    callers = [await here.queue(str(number), prompt_started_at=age) for number, age in enumerate(ages)]
    for _ in callers:
        await here.release(permit)
        permit = callers[int(here.let_in[-1])].permit
    assert here.let_in[1:] == [str(number) for number in sorted(range(60), key=lambda one: ages[one])]


async def test_c4_14_a_jump_of_the_wall_clock_reclaims_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time is monotonic: the sweep after somebody set the clock a day ahead finds no idle slot."""
    clock = SystemClock()
    due: list[object] = []

    class Handle:
        def cancel(self) -> None: ...

    def call_at(when: float, callback: object) -> Handle:
        due.append(callback)
        return Handle()

    monkeypatch.setattr(clock, "call_at", call_at)
    gate = ProviderGate(clock=clock)
    permit = await gate.acquire(P, "conv")
    wall, wall_ns = time.time, time.time_ns
    monkeypatch.setattr(time, "time", lambda: wall() + 86_400)
    monkeypatch.setattr(time, "time_ns", lambda: wall_ns() + 86_400 * 10**9)
    assert due
    for callback in list(due):
        callback()  # type: ignore[operator]
    assert not permit.lost
    assert permit.release()
    await gate.aclose()


async def test_c4_15_writes_land_in_order_and_the_notice_survives(scene: Open) -> None:
    """4, 3, 2, and a slow first write: after a restart it is 2 from 4, with the notice."""

    class Slow(MemoryStore):
        """The first write takes longest."""

        delays = 3

        async def set(self, key: str, value: str) -> None:
            self.delays -= 1
            for _ in range(10 * max(0, self.delays)):
                await asyncio.sleep(0)
            await super().set(key, value)

    store = Slow()
    here = await scene(4, settings=store)
    for _ in range(2):
        here.gate.report_rate_limit(P, 60)
        await asyncio.sleep(0)
    notice = here.status().notice
    await here.gate.aclose()
    here = await scene(settings=store)
    await here.gate.load()
    status = here.status()
    assert (status.limit, status.auto_reduced_from) == (2, 4)
    assert status.notice == notice is not None


async def test_c4_15_an_id_that_begins_with_cooldown_is_an_id(scene: Open) -> None:
    """The limit of ``cooldown:x`` and the cooldown of ``x`` do not share a key."""
    store = MemoryStore()
    here = await scene(settings=store)
    await here.gate.set_limit("cooldown:x", 3)
    await here.gate.set_cooldown("x", 2)
    here = await scene(settings=store)
    await here.gate.load()
    assert here.gate.limits() == {"cooldown:x": 3}
    assert here.gate.cooldowns() == {"cooldown:x": 0.35, "x": 2}


async def test_c4_15_limits_are_guarded_and_a_pause_can_be_lifted(scene: Open) -> None:
    """0 and NaN are refused by the gate itself, and there is a way to end a pause."""
    here = await scene(4)
    for wrong in (0, float("nan"), -1):
        with pytest.raises(ValidationError):
            await here.gate.set_limit(P, wrong)  # type: ignore[arg-type]
    here.gate.report_rate_limit(P, 3600)
    here.gate.resume(P)
    await here.hold()


async def test_c4_16_each_outcome_cools_for_its_own_time(scene: Open) -> None:
    """A slot whose call ended well may be free at once, while one that failed cools."""
    here = await scene(2)
    await here.gate.set_cooldown(P, 0, cancelled=0.2, failed=2)
    well, badly = await here.holds(2)
    await here.release(badly, outcome="failed")
    await here.release(well)
    assert (here.status().in_flight, here.status().cooling) == (1, 1)
    await here.release(await here.hold(), outcome="cancelled")
    await here.clock.advance(0.2)
    assert here.status().cooling == 1
    await here.clock.advance(1.8)
    assert here.status().cooling == 0
