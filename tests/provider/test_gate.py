"""Who is let in at the provider gate and in which order, and what it tells; all on virtual time."""

from __future__ import annotations

import math

import pytest

from interlock import ProviderStatus, ValidationError
from interlock.testing.virtual_time import idle
from provider.conftest import Open
from provider.gates import START, P, at_once

# -- who is let in, and in which order -----------------------------------------------------------


async def test_room_is_granted_at_once(scene: Open) -> None:
    """With room and nobody waiting, awaiting does not even suspend, and on_queued is not called."""
    here = await scene(2)
    called: list[str] = []
    first = at_once(here.gate.acquire(P, "a", on_queued=lambda: called.append("a")))
    second = at_once(here.gate.acquire(P, "b", prompt_started_at=5.0))
    assert called == []
    assert (first.owner, first.limits, first.granted_at) == ("a", (f"provider:{P}",), START)
    assert second.fence > first.fence
    await here.release(first, second)


async def test_without_a_limit_everybody_goes_and_is_counted(scene: Open) -> None:
    """Usage is counted with or without a limit; a slot cools without one, too."""
    here = await scene()
    permits = await here.holds(20)
    assert here.in_flight() == 20
    await here.release(*permits)
    assert here.gate.reading(P).cooling == 20
    await here.clock.advance(0.35)
    assert here.in_flight() == 0


async def test_the_oldest_prompt_goes_first(scene: Open) -> None:
    """The queue is ordered by when each prompt began; who does not say began on arrival."""
    here = await scene(1, default_cooldown=0)
    held = await here.hold()
    await here.queue("unsaid")
    await here.queue("young", prompt_started_at=900)
    await here.clock.advance(1)
    await here.queue("old", prompt_started_at=100)
    await here.queue("late")
    await here.release(held)
    for name in ("old", "young", "unsaid"):
        await here.release(next(caller for caller in here.callers if caller.name == name).permit)
    assert here.let_in == ["c", "old", "young", "unsaid", "late"]


async def test_arrival_breaks_a_tie(scene: Open) -> None:
    """Of prompts that began in one moment, who asked first goes first."""
    here = await scene(1, default_cooldown=0)
    held = await here.hold()
    for name in "abcdefgh":
        await here.queue(name, prompt_started_at=500)
    while held is not None:
        await here.release(held)
        held = next((c.permit for c in here.callers if not c.waits and not c.permit.released), None)
    assert here.let_in == ["c", *"abcdefgh"]


async def test_a_start_in_the_future_counts_as_now(scene: Open) -> None:
    """Nobody loses its place by a clock that runs ahead, nor gains one."""
    here = await scene(1, default_cooldown=0)
    held = await here.hold()
    ahead = await here.queue("ahead", prompt_started_at=START + 3600)
    await here.clock.advance(1)
    behind = await here.queue("behind", prompt_started_at=START + 1)
    await here.release(held)
    assert not ahead.waits
    assert behind.waits


async def test_priority_comes_before_age(scene: Open) -> None:
    """A smaller priority goes first, whatever the age of the prompt."""
    here = await scene(1, default_cooldown=0)
    held = await here.hold()
    old = await here.queue("old", prompt_started_at=1)
    urgent = await here.queue("urgent", priority=-1)
    await here.release(held)
    assert (old.waits, urgent.waits) == (True, False)


async def test_providers_do_not_wait_for_each_other(scene: Open) -> None:
    """Limits, queues and pauses are each provider's own."""
    here = await scene(1)
    await here.gate.set_limit("other", 1)
    await here.hold()
    await here.queue()
    here.gate.pause(P, 60)
    await here.hold("x", "other")
    await here.hold("y", "a third, unlimited")


async def test_leaving_the_context_releases(scene: Open) -> None:
    """``async with`` holds a slot for its body; the second release answers False."""
    here = await scene(1, default_cooldown=0)
    async with here.gate.acquire(P, "a") as permit:
        assert here.in_flight() == 1
    assert permit.released
    assert not permit.lost
    assert permit.release() is False
    assert here.in_flight() == 0


async def test_one_conversation_may_hold_several_slots(scene: Open) -> None:
    """The conversation names the holder; it is no key."""
    here = await scene(2)
    first, second = await here.hold("same"), await here.hold("same")
    assert first.id != second.id
    assert here.status().in_flight == 2


async def test_a_nested_call_is_not_charged_again(scene: Open) -> None:
    """What a parent holds at this provider is enough for its child."""
    here = await scene(1)
    parent = await here.hold("parent")
    await here.hold("child", parent=parent)
    assert here.status().in_flight == 1


# -- several limits at once ----------------------------------------------------------------------


async def test_also_is_taken_together_with_the_slot(scene: Open) -> None:
    """All or nothing: while one limit is full, nothing of the others is taken."""
    here = await scene(1, default_cooldown=0)
    admission = here.gate.admission
    await admission.set_limit("global", 1)
    blocker = await admission.acquire("global")
    both = await here.queue("both", also=("global",))
    assert here.status().in_flight == 0
    await here.release(blocker)
    assert set(both.permit.limits) == {f"provider:{P}", "global"}
    assert (here.in_flight(), admission.limits()["global"].used) == (1, 1)
    await here.release(both.permit)
    assert (here.in_flight(), admission.limits()["global"].used) == (0, 0)


async def test_a_waiter_at_the_provider_takes_nothing_of_the_others(scene: Open) -> None:
    """The other way round: who waits for the provider leaves the rest of the fleet alone."""
    here = await scene(1)
    await here.gate.admission.set_limit("global", 2)
    await here.hold("a", also=("global",))
    await here.queue("b", also=("global",))
    assert here.gate.admission.limits()["global"].used == 1
    await here.hold("elsewhere", "unlimited", also=("global",))


async def test_also_names_a_known_limit(scene: Open) -> None:
    """An unknown name is refused with the list of the known ones."""
    here = await scene(1)
    with pytest.raises(ValidationError, match=f"unknown limit 'globul'; known are: provider:{P}"):
        await here.gate.acquire(P, also=("globul",))


# -- pauses --------------------------------------------------------------------------------------


async def test_nobody_is_admitted_during_a_pause(scene: Open) -> None:
    """Not even with room; what is in flight goes on; at its end the queue is tried."""
    here = await scene(3)
    held = await here.hold("h")
    here.gate.pause(P, 10)
    status = here.status()
    assert (status.paused, status.paused_until, status.reason) == (True, START + 10, None)
    waiters = [await here.queue(name) for name in "ab"]
    assert not held.released
    await here.clock.advance(9.999)
    assert all(waiter.waits for waiter in waiters)
    await here.clock.advance(0.001)
    assert here.let_in == ["h", "a", "b"]
    assert (here.status().paused, here.status().paused_until) == (False, None)


async def test_a_pause_only_grows(scene: Open) -> None:
    """A shorter one changes nothing, a longer one counts from now."""
    here = await scene(1)
    here.gate.pause(P, 60)
    here.gate.pause(P, 1)
    assert here.status().paused_until == START + 60
    await here.clock.advance(50)
    here.gate.pause(P, 20)
    assert here.status().paused_until == START + 70


async def test_resume_ends_a_pause(scene: Open) -> None:
    """At once, however long it had to go; a later pause may be shorter. Without a pause it does nothing."""
    here = await scene(1)
    here.gate.resume(P)
    here.gate.pause(P, 3600)
    waiter = await here.queue()
    here.gate.resume(P)
    await idle()
    assert not waiter.waits
    assert not here.status().paused
    here.gate.pause(P, 5)
    assert here.status().paused_until == START + 5


async def test_a_provider_without_a_limit_can_be_paused(scene: Open) -> None:
    """Its status is there for as long as the pause."""
    here = await scene()
    here.gate.pause(P, 5)
    waiter = await here.queue()
    assert (here.status().limit, here.status().queued) == (None, 1)
    await here.clock.advance(5)
    assert not waiter.waits
    assert here.gate.status(P) is None


@pytest.mark.parametrize("wrong", [-1, math.nan, math.inf, 86_401])
async def test_a_pause_is_checked(scene: Open, wrong: float) -> None:
    """0 to a day."""
    here = await scene(1)
    with pytest.raises(ValidationError, match="seconds"):
        here.gate.pause(P, wrong)
    assert not here.status().paused


async def test_a_pause_of_0_is_none(scene: Open) -> None:
    """It is over in the moment in which it begins."""
    here = await scene(1)
    here.gate.pause(P, 0)
    assert not here.status().paused
    await here.hold()


# -- readings ------------------------------------------------------------------------------------


async def test_status_is_none_without_limit_and_pause(scene: Open) -> None:
    """Also with calls in flight, with a cooldown, or after a refused acquire."""
    here = await scene()
    assert here.gate.status("never heard of") is None
    await here.hold()
    await here.gate.set_cooldown(P, 1)
    assert here.gate.status(P) is None
    assert here.gate.statuses() == ()


async def test_status_says_everything(scene: Open) -> None:
    """One consistent value of a provider."""
    here = await scene(2)
    held, _ = await here.holds(2)
    await here.queue()
    await here.release(held)
    assert here.status() == ProviderStatus(
        provider_id=P,
        limit=2,
        configured_limit=2,
        in_flight=2,
        cooling=1,
        queued=1,
        paused=False,
        paused_until=None,
        cooldown=0.35,
        auto_reduced=False,
        auto_reduced_from=None,
        notice=None,
        upstream_in_flight=None,
        reason=None,
    )


async def test_statuses_and_limits_are_by_name(scene: Open) -> None:
    """Every provider with a limit or a pause, in the order of their names."""
    here = await scene()
    await here.gate.set_limit("z", 3)
    await here.gate.set_limit("a", 1)
    await here.hold("c", "unlimited")
    here.gate.pause("paused", 1)
    assert [status.provider_id for status in here.gate.statuses()] == ["a", "paused", "z"]
    assert list(here.gate.limits().items()) == [("a", 1), ("z", 3)]
    assert (here.gate.get_limit("z"), here.gate.get_limit("unlimited"), here.gate.get_limit("?")) == (
        3,
        None,
        None,
    )
