"""How waiting at the provider gate ends: told, timed out, cancelled, closed; and how holding ends unasked."""

from __future__ import annotations

import asyncio
import math

import pytest

from interlock import AcquireTimeout, InvalidOperation, LimitExceeded, Unavailable, ValidationError
from interlock.admission.local import LocalAdmission
from interlock.provider.policy import ProviderPolicy
from interlock.testing import VirtualClock
from interlock.testing.virtual_time import idle
from provider.conftest import Open
from provider.gates import START, P, at_once

# -- waiting -------------------------------------------------------------------------------------


async def test_on_queued_is_called_once_and_in_the_same_step(scene: Open) -> None:
    """Before the task is suspended, and only if it has to wait; what it raises harms nothing."""
    here = await scene(1, default_cooldown=0)
    held = await here.hold()
    called: list[int] = []
    waiting = here.gate.acquire(P, on_queued=lambda: called.append(here.status().queued)).__await__()
    next(waiting)
    assert called == [1], "it was told before anything else ran, and was in the queue by then"
    waiting.close()
    assert here.status().queued == 0
    waiter = await here.queue("w")
    await here.release(held)
    assert (waiter.queued, waiter.waits) == (1, False)


async def test_a_raising_on_queued_harms_nothing(scene: Open, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and its caller waits and is let in like any other."""
    here = await scene(1, default_cooldown=0)
    held = await here.hold()
    waiter = await here.queue("w", on_queued=lambda: 1 / 0)
    assert "ZeroDivisionError" in caplog.text
    caplog.clear()
    await here.release(held)
    assert not waiter.waits


async def test_timeout_0_never_waits(scene: Open) -> None:
    """No room is a LimitExceeded at once, and nobody is told that it waits."""
    here = await scene(1)
    await here.hold("holder")
    called: list[int] = []
    with pytest.raises(LimitExceeded, match="held by holder") as refused:
        at_once(here.gate.acquire(P, timeout=0, on_queued=lambda: called.append(1)))
    assert (refused.value.code, called, here.status().queued) == ("limit_exceeded", [], 0)
    here.gate.pause("other", 5)
    with pytest.raises(LimitExceeded, match="is paused"):
        await here.gate.acquire("other", timeout=0)


async def test_a_wait_ends_at_its_deadline(scene: Open) -> None:
    """AcquireTimeout names the limit and who holds it; the waiter leaves no trace."""
    here = await scene(1, default_cooldown=0)
    held = await here.hold("holder")
    waiter = await here.queue("w", timeout=5)
    await here.clock.advance(4.999)
    assert waiter.waits
    await here.clock.advance(0.001)
    assert isinstance(waiter.error, AcquireTimeout)
    assert isinstance(waiter.error, TimeoutError)
    assert f"provider:{P}" in waiter.error.message
    assert "held by holder" in waiter.error.message
    assert here.status().queued == 0
    await here.release(held)
    assert here.in_flight() == 0


async def test_the_default_deadline_is_300_seconds(scene: Open) -> None:
    """``None`` waits for ever."""
    here = await scene(1)
    holder = await here.hold()
    default, patient = await here.queue("d"), await here.queue("p", timeout=None)
    for _ in range(3):
        await here.clock.advance(100)
        holder.touch()
    assert isinstance(default.error, AcquireTimeout)
    for _ in range(100):
        await here.clock.advance(250)
        holder.touch()
    assert patient.waits


async def test_a_negative_timeout_is_refused(scene: Open) -> None:
    """A bad argument is a ValidationError."""
    here = await scene(1)
    with pytest.raises(ValidationError, match="timeout"):
        await here.gate.acquire(P, timeout=-1)


@pytest.mark.parametrize("which", ["prompt_started_at", "timeout"])
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
async def test_a_time_that_is_no_number_is_refused(scene: Open, which: str, wrong: float) -> None:
    """NaN and the infinities are bad arguments like any other."""
    here = await scene(1)
    await here.hold()
    with pytest.raises(ValidationError, match=r"timeout|since"):
        await here.gate.acquire(P, **({"timeout": 0} | {which: wrong}))


async def test_a_cancelled_waiter_leaves_no_trace(scene: Open) -> None:
    """Cancelled in the queue: those behind it move up, nothing is taken."""
    here = await scene(1, default_cooldown=0)
    held = await here.hold()
    first, second = await here.queue("first"), await here.queue("second")
    first.task.cancel()
    await idle()
    assert here.status().queued == 1
    await here.release(held)
    assert here.let_in == ["c", "second"]
    await here.release(second.permit)
    assert here.in_flight() == 0


async def test_cancelled_in_the_instant_of_the_grant(scene: Open) -> None:
    """The slot goes on to the next at once: nothing was sent with it, so there is nothing to cool."""
    here = await scene(1)
    await here.gate.set_cooldown(P, 0, cancelled=2)
    held = await here.hold()
    first, second = await here.queue("first"), await here.queue("second")
    held.release()
    first.task.cancel()
    await idle()
    assert here.let_in == ["c", "second"]
    assert (here.status().in_flight, here.status().cooling) == (1, 0)
    await here.release(second.permit)
    assert here.in_flight() == 0


async def test_releasing_the_owner_ends_its_waits(scene: Open) -> None:
    """A conversation that is given up holds and waits for nothing any more."""
    here = await scene(1, default_cooldown=0)
    await here.hold("conv")
    waiter = await here.queue("conv")
    assert await here.gate.admission.release_owner("conv") == 1
    await idle()
    assert isinstance(waiter.error, InvalidOperation)
    assert here.in_flight() == 0


# -- closing -------------------------------------------------------------------------------------


async def test_closing_ends_every_wait(scene: Open) -> None:
    """Queued acquires end with Unavailable, later ones too; permits may still be released. Twice is fine."""
    here = await scene(1, recovery="probe")
    held = await here.hold()
    here.gate.report_rate_limit(P)
    waiters = [await here.queue(timeout=None) for _ in range(3)]
    await here.gate.aclose()
    await idle()
    assert all(isinstance(waiter.error, Unavailable) for waiter in waiters)
    with pytest.raises(Unavailable):
        await here.gate.acquire(P)
    with pytest.raises(Unavailable):
        await here.gate.acquire("another", timeout=0)
    assert held.release()
    await here.gate.aclose()
    await here.clock.advance(3600)


async def test_closing_leaves_a_shared_admission_open(scene: Open) -> None:
    """Only what waits for a provider ends with its gate; the rest of the fleet goes on."""
    clock = VirtualClock(START)
    admission = LocalAdmission(clock=clock)
    admission.configure("tools", 1)
    here = await scene(1, clock=clock, admission=admission)
    assert here.gate.clock is clock
    held = await here.hold("h", also=("tools",))
    at_provider = await here.queue("p")
    tool = asyncio.ensure_future(admission.acquire("tools"))
    await idle()
    await here.gate.aclose()
    await idle()
    assert isinstance(at_provider.error, Unavailable)
    assert not tool.done()
    await here.release(held)
    assert tool.result().release()


async def test_a_gate_is_a_context(scene: Open) -> None:
    """Leaving it closes the gate."""
    here = await scene(1)
    async with here.gate as gate:
        await here.hold()
        waiter = await here.queue()
    await idle()
    assert gate is here.gate
    assert isinstance(waiter.error, Unavailable)


# -- the watchdog --------------------------------------------------------------------------------


async def test_an_idle_slot_is_taken_back(scene: Open) -> None:
    """Strictly longer than the timeout without progress: it is taken, its holder told, its slot cools."""
    here = await scene(1)
    held = await here.hold("conv-1")
    waiter = await here.queue("conv-2", timeout=None)
    await here.clock.advance(300)
    assert not held.lost, "exactly the timeout is not longer"
    await here.clock.advance(30)
    assert (held.lost, held.released) == (True, True)
    assert here.told == [("on_reclaim", P, "conv-1", 330.0)]
    assert (here.status().in_flight, here.status().cooling) == (1, 1)
    assert waiter.waits
    await here.clock.advance(0.35)
    assert not waiter.waits
    assert held.release() is False
    assert here.status().in_flight == 1


async def test_progress_keeps_a_slot(scene: Open) -> None:
    """The watchdog is by idleness: `touch` starts the time anew, the age does not matter."""
    here = await scene(1)
    held = await here.hold("long")
    for _ in range(50):
        await here.clock.advance(200)
        held.touch()
    assert not held.lost
    await here.clock.advance(331)
    assert held.lost
    assert here.told == [("on_reclaim", P, "long", pytest.approx(10_000 + 330, abs=30))]


async def test_a_reclaimed_slot_cools_as_failed(scene: Open) -> None:
    """The upstream may be at work for it still."""
    here = await scene(1)
    await here.gate.set_cooldown(P, 0, failed=20)
    await here.hold()
    await here.clock.advance(330)
    assert here.status().cooling == 1
    await here.clock.advance(20)
    assert here.status().in_flight == 0


async def test_the_watchdog_needs_neither_limit_nor_conversation(scene: Open) -> None:
    """What is counted is watched; without a conversation the callback gets None."""
    here = await scene()
    permit = await here.gate.acquire(P)
    await here.clock.advance(330)
    assert permit.lost
    assert here.told == [("on_reclaim", P, None, 330.0)]


async def test_on_reclaim_comes_after_the_state_has_changed(
    scene: Open, caplog: pytest.LogCaptureFixture
) -> None:
    """And what it raises is logged and keeps the watchdog from nothing."""
    seen: list[tuple[object, ...]] = []

    def on_reclaim(*told: object) -> None:
        seen.append((*told, here.status().cooling))
        raise RuntimeError("of no concern")

    here = await scene(3, on_reclaim=on_reclaim)
    await here.holds(2)
    await here.clock.advance(330)
    assert seen == [(P, "h0", 330.0, 1), (P, "h1", 330.0, 2)]
    assert len(caplog.records) == 2
    assert "of no concern" in caplog.text
    caplog.clear()
    last = await here.hold("later")
    await here.clock.advance(330)
    assert last.lost
    caplog.clear()


async def test_on_reclaim_may_use_the_gate(scene: Open) -> None:
    """Also for a provider that the gate has not heard of."""
    here = await scene(2, on_reclaim=lambda provider_id, *_: here.gate.pause(f"{provider_id}-2", 60))
    permits = await here.holds(2)
    await here.clock.advance(330)
    assert all(permit.lost for permit in permits)
    assert here.status(f"{P}-2").paused


async def test_each_provider_has_its_own_patience(scene: Open) -> None:
    """``slot_timeout`` of a policy holds for its provider."""
    here = await scene(policies={"slow": ProviderPolicy(slot_timeout=3600)})
    quick, slow = await here.hold("q", P), await here.hold("s", "slow")
    await here.clock.advance(3600)
    assert (quick.lost, slow.lost) == (True, False)
    await here.clock.advance(60)
    assert slow.lost


async def test_who_holds_after_a_while_of_rest_is_watched(scene: Open) -> None:
    """The watchdog rests while nobody holds or waits, and wakes with the next acquire."""
    here = await scene(1)
    await here.release(await here.hold())
    await here.clock.advance(10_000)
    held = await here.hold()
    await here.clock.advance(331)
    assert held.lost


async def test_who_waited_for_a_dead_holder_is_watched(scene: Open) -> None:
    """One whose wait ended with the sweep itself."""
    here = await scene(1)
    await here.hold("dead")
    heir = await here.queue("heir", timeout=None)
    await here.clock.advance(331)
    assert not heir.waits
    await here.clock.advance(331)
    assert heir.permit.lost


async def test_who_waited_for_a_dead_holder_is_watched_without_cooldown(scene: Open) -> None:
    """The same where the slot goes from hand to hand in the sweep."""
    here = await scene(1, default_cooldown=0)
    await here.hold("dead")
    heir = await here.queue("heir", timeout=None)
    await here.clock.advance(331)
    assert not heir.waits
    await here.clock.advance(3600)
    assert heir.permit.lost


async def test_the_sweep_takes_the_whole_permit(scene: Open) -> None:
    """With the slot go the other limits that were claimed with it."""
    here = await scene(1)
    await here.gate.admission.set_limit("global", 1)
    await here.hold("dead", also=("global",))
    await here.clock.advance(330)
    assert here.gate.admission.limits()["global"].used == 0
