"""The provider gate's limits and cooldowns, and what its arguments may be."""

from __future__ import annotations

import asyncio
import math

import pytest

from interlock import ProviderGate, ProviderStatus, ValidationError
from interlock.provider.policy import ProviderPolicy
from interlock.testing.virtual_time import idle
from provider.conftest import Open
from provider.gates import START, P

# -- cooldown ------------------------------------------------------------------------------------


async def test_a_cooling_slot_is_in_flight(scene: Open) -> None:
    """A slot stays taken for the cooldown after its release; then the queue is tried."""
    here = await scene(1)
    held = await here.hold()
    waiter = await here.queue()
    await here.release(held)
    status = here.status()
    assert (status.in_flight, status.cooling, status.queued, status.cooldown) == (1, 1, 1, 0.35)
    await here.clock.advance(0.349)
    assert waiter.waits
    await here.clock.advance(0.001)
    assert not waiter.waits
    assert (here.status().in_flight, here.status().cooling) == (1, 0)


async def test_it_cools_with_nobody_waiting(scene: Open) -> None:
    """Who comes while a slot cools has to wait for it."""
    here = await scene(1)
    await here.release(await here.hold())
    await here.clock.advance(0.2)
    waiter = await here.queue()
    await here.clock.advance(0.15)
    assert not waiter.waits


@pytest.mark.parametrize(("outcome", "seconds"), [("success", 0.2), ("cancelled", 0.5), ("failed", 2.0)])
async def test_cooldown_by_outcome(scene: Open, outcome: str, seconds: float) -> None:
    """Each way in which a call ends may cool for its own time."""
    here = await scene(1)
    await here.gate.set_cooldown(P, 0.2, cancelled=0.5, failed=2.0)
    await here.release(await here.hold(), outcome=outcome)
    await here.clock.advance(seconds - 0.001)
    assert here.in_flight() == 1
    await here.clock.advance(0.001)
    assert here.in_flight() == 0


@pytest.mark.parametrize("outcome", ["success", "cancelled", "failed"])
async def test_without_times_of_their_own_all_outcomes_cool_alike(scene: Open, outcome: str) -> None:
    """``cancelled`` and ``failed`` not given: as after success."""
    here = await scene(1)
    await here.gate.set_cooldown(P, 0.7)
    await here.release(await here.hold(), outcome=outcome)
    await here.clock.advance(0.699)
    assert here.in_flight() == 1
    await here.clock.advance(0.001)
    assert here.in_flight() == 0


async def test_the_exit_shows_the_outcome(scene: Open) -> None:
    """Leaving the context with an exception cools as failed, by cancellation as cancelled."""
    here = await scene(3)
    await here.gate.set_cooldown(P, 0, cancelled=1, failed=2)
    with pytest.raises(RuntimeError, match="upstream"):
        async with here.gate.acquire(P):
            raise RuntimeError("upstream")
    started = asyncio.Event()

    async def call() -> None:
        async with here.gate.acquire(P):
            started.set()
            await asyncio.get_running_loop().create_future()

    task = asyncio.create_task(call())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with here.gate.acquire(P):
        pass
    assert here.in_flight() == 2
    await here.clock.advance(1)
    assert here.in_flight() == 1
    await here.clock.advance(1)
    assert here.in_flight() == 0


async def test_no_cooldown_frees_at_once(scene: Open) -> None:
    """Cooldown 0: the next one goes in the same step."""
    here = await scene(1)
    await here.gate.set_cooldown(P, 0)
    held = await here.hold()
    waiter = await here.queue()
    assert held.release()
    assert here.status().queued == 0
    await idle()
    assert not waiter.waits


async def test_a_new_cooldown_holds_for_later_releases(scene: Open) -> None:
    """What cools already keeps its own time."""
    here = await scene(2, default_cooldown=1)
    early, late = await here.holds(2)
    await here.release(early)
    await here.gate.set_cooldown(P, 3)
    await here.release(late)
    await here.clock.advance(1)
    assert here.status().cooling == 1
    await here.clock.advance(2)
    assert here.status().cooling == 0


@pytest.mark.parametrize("wrong", [-0.001, math.nan, math.inf, 86_401])
@pytest.mark.parametrize("which", ["cooldown", "cancelled", "failed"])
async def test_a_cooldown_is_checked(scene: Open, which: str, wrong: float) -> None:
    """0 to a day; a refused one changes nothing."""
    here = await scene(1)
    with pytest.raises(ValidationError, match=which):
        await here.gate.set_cooldown(P, **({"cooldown": 1.0} | {which: wrong}))
    assert here.gate.get_cooldown(P) == 0.35


async def test_cooldown_needs_no_limit(scene: Open) -> None:
    """It is remembered without one, holds for a limit that comes later, and survives its removal."""
    here = await scene(default_cooldown=0.1)
    assert here.gate.get_cooldown(P) is None
    await here.gate.set_cooldown(P, 0.5)
    assert here.gate.get_cooldown(P) == 0.5
    assert here.gate.status(P) is None
    await here.gate.set_limit(P, 1)
    assert here.status().cooldown == 0.5
    await here.gate.remove_limit(P)
    await here.gate.set_limit("b", 1)
    assert here.gate.cooldowns() == {"b": 0.1, P: 0.5}
    await here.gate.remove_limit("b")
    assert here.gate.cooldowns() == {P: 0.5}
    assert here.gate.get_cooldown("b") is None


# -- the limit -----------------------------------------------------------------------------------


async def test_a_raised_limit_lets_in_what_fits(scene: Open) -> None:
    """It is in force at once: the oldest go, as many as there is room for."""
    here = await scene(1)
    await here.hold("h")
    for name in "abcd":
        await here.queue(name)
    await here.gate.set_limit(P, 3)
    assert here.status().in_flight == 3
    await idle()
    assert here.let_in == ["h", "a", "b"]


async def test_a_lowered_limit_takes_nothing_back(scene: Open) -> None:
    """Whoever is in stays; nobody goes until the count is below the new limit."""
    here = await scene(4, default_cooldown=0)
    permits = await here.holds(4)
    waiter = await here.queue()
    await here.gate.set_limit(P, 2)
    assert (here.status().in_flight, here.status().limit) == (4, 2)
    await here.release(*permits[:2])
    assert waiter.waits
    await here.release(permits[2])
    assert not waiter.waits
    assert not permits[3].released


@pytest.mark.parametrize("wrong", [0, -1, 1.0, 2.5, math.nan, True, "3"], ids=repr)
async def test_a_limit_is_a_whole_number_from_1(scene: Open, wrong: object) -> None:
    """Anything else is refused and changes nothing."""
    here = await scene(4)
    with pytest.raises(ValidationError, match="whole numbers from 1"):
        await here.gate.set_limit(P, wrong)  # type: ignore[arg-type]
    assert here.gate.get_limit(P) == 4


@pytest.mark.parametrize("way", ["remove", "none"])
async def test_a_removed_limit_lets_everybody_go(scene: Open, way: str) -> None:
    """Its pause ends, all who wait go, and what is in flight stays counted."""
    here = await scene(1)
    held = await here.hold()
    waiters = [await here.queue() for _ in range(5)]
    here.gate.pause(P, 60)
    if way == "remove":
        assert await here.gate.remove_limit(P) is True
        assert await here.gate.remove_limit(P) is False
    else:
        await here.gate.set_limit(P, None)
    await idle()
    assert not any(waiter.waits for waiter in waiters)
    assert here.gate.status(P) is None
    assert here.gate.get_limit(P) is None
    assert here.in_flight() == 6
    await here.release(held)
    await here.clock.advance(0.35)
    assert here.in_flight() == 5


async def test_a_limit_set_again_sees_what_is_in_flight(scene: Open) -> None:
    """Removing a limit and setting it again forgets nobody, neither holders nor slots that cool."""
    here = await scene(2, default_cooldown=1)
    first, _ = await here.holds(2)
    await here.gate.remove_limit(P)
    await here.release(first)
    await here.gate.set_limit(P, 2)
    assert (here.status().in_flight, here.status().cooling) == (2, 1)
    waiter = await here.queue()
    await here.clock.advance(1)
    assert not waiter.waits


async def test_a_limit_set_on_a_busy_provider(scene: Open) -> None:
    """It counts the calls that began without one."""
    here = await scene(default_cooldown=0)
    permits = await here.holds(5)
    await here.gate.set_limit(P, 2)
    assert here.status().in_flight == 5
    waiter = await here.queue()
    await here.release(*permits[:3])
    assert waiter.waits
    await here.release(permits[3])
    assert not waiter.waits


# -- what may be asked for -----------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["", "x" * 129])
async def test_a_provider_has_an_id(scene: Open, wrong: str) -> None:
    """1 to 128 characters, wherever it is named."""
    here = await scene()
    with pytest.raises(ValidationError, match="provider's id"):
        await here.gate.acquire(wrong)
    with pytest.raises(ValidationError, match="provider's id"):
        here.gate.pause(wrong, 1)
    with pytest.raises(ValidationError, match="provider's id"):
        await here.gate.set_limit(wrong, 1)
    assert here.gate.status(wrong) is None


@pytest.mark.parametrize(
    ("option", "wrong"),
    [
        ("default_cooldown", -1),
        ("default_pause", math.nan),
        ("slot_timeout", 0),
        ("watchdog_interval", 0),
        ("watchdog_interval", math.nan),
        ("usage_repoll", 0),
        ("usage_timeout", -2),
        ("usage_stale", math.inf),
        ("recovery_window", 0),
        ("recovery", "slowly"),
    ],
)
def test_the_options_are_checked(option: str, wrong: object) -> None:
    """A ValidationError names the option and what it was."""
    with pytest.raises(ValidationError, match=option) as refused:
        ProviderGate(**{option: wrong})  # type: ignore[arg-type]
    assert repr(wrong) in refused.value.message


async def test_a_provider_may_have_a_policy_of_its_own(scene: Open) -> None:
    """In place of the gate's times."""
    here = await scene(1, policies={P: ProviderPolicy(default_cooldown=2, default_pause=7)})
    await here.gate.set_limit("other", 1)
    for provider_id, cooldown, pause in ((P, 2, 7), ("other", 0.35, 30)):
        here.gate.report_rate_limit(provider_id)
        status = here.status(provider_id)
        assert (status.cooldown, status.paused_until) == (cooldown, START + pause)


def test_a_gate_needs_no_loop_until_somebody_waits() -> None:
    """It can be made, preset, asked about and told of a 429 outside of an event loop."""
    gate = ProviderGate()
    gate.preset(P, 4, cooldown=0.5, failed=2.0)
    assert (gate.limits(), gate.cooldowns()) == ({P: 4}, {P: 0.5})
    gate.report_rate_limit(P, 5)
    gate.pause("other", 5)

    async def use() -> tuple[ProviderStatus, ...]:
        async with gate:
            return gate.statuses()

    assert [(status.limit, status.paused) for status in asyncio.run(use())] == [(None, True), (3, True)]
