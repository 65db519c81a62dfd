"""What a 429 does at the provider gate: a pause that only grows, one cut an episode, a way back."""

from __future__ import annotations

import math

import pytest

from interlock import LimitExceeded, ValidationError
from interlock.testing.virtual_time import idle
from provider.conftest import Open
from provider.gates import START, P

REDUCED = "Concurrency limit auto-reduced to {} after a 429 — restore manually when ready."

# -- the pause -----------------------------------------------------------------------------------


async def test_a_429_pauses(scene: Open) -> None:
    """In-flight work goes on, newcomers wait even under the limit, at the end the queue is tried."""
    here = await scene(4, default_cooldown=0)
    held = await here.hold("h")
    here.gate.report_rate_limit(P, 12)
    status = here.status()
    assert (status.paused, status.paused_until, status.limit) == (True, START + 12, 3)
    waiters = [await here.queue(name) for name in "abc"]
    assert not held.released
    await here.clock.advance(11.999)
    assert all(waiter.waits for waiter in waiters)
    await here.clock.advance(0.001)
    assert here.let_in == ["h", "a", "b"], "three fit under the limit in force"
    assert not here.status().paused


@pytest.mark.parametrize(
    ("retry_after", "seconds"),
    [
        (None, 30.0),
        (0, 0.0),
        (0.25, 0.25),
        (7, 7.0),
        (86_400, 86_400.0),
        (86_401, 30.0),
        (99_999_999_999, 30.0),
        (-5, 30.0),
        (math.nan, 30.0),
        (math.inf, 30.0),
        (-math.inf, 30.0),
    ],
)
async def test_retry_after(scene: Open, retry_after: float | None, seconds: float) -> None:
    """0 to a day is believed, anything else is the default pause."""
    here = await scene(4)
    here.gate.report_rate_limit(P, retry_after)
    status = here.status()
    assert status.paused_until == (START + seconds if seconds else None)
    assert here.told[0] == ("on_pause", P, seconds)
    assert status.limit == 3


async def test_a_pause_is_a_maximum(scene: Open) -> None:
    """Of several reports the one that ends last counts, in whatever order they come."""
    here = await scene(9)
    for retry_after, until in ((10, 10), (60, 60), (1, 60), (0, 60), (None, 60), (-1, 60), (61, 61)):
        here.gate.report_rate_limit(P, retry_after)
        assert here.status().paused_until == START + until
    await here.clock.advance(60.5)
    here.gate.report_rate_limit(P, 5)
    assert here.status().paused_until == START + 65.5


async def test_a_report_after_resume_pauses_again(scene: Open) -> None:
    """Lifting a pause is the operator's word about that pause only."""
    here = await scene(4)
    here.gate.report_rate_limit(P, 60)
    here.gate.resume(P)
    here.gate.report_rate_limit(P, 5)
    assert here.status().paused_until == START + 5


async def test_a_provider_without_a_limit_is_paused(scene: Open) -> None:
    """There is nothing to cut; its status is there while the pause lasts."""
    here = await scene()
    here.gate.report_rate_limit(P, 5)
    status = here.status()
    assert (status.limit, status.paused, status.auto_reduced, status.notice) == (None, True, False, None)
    assert status.reason == "concurrency"
    assert here.told == [("on_pause", P, 5)]
    waiter = await here.queue()
    await here.clock.advance(5)
    assert not waiter.waits
    assert here.gate.status(P) is None


# -- the cut -------------------------------------------------------------------------------------


async def test_a_report_without_a_permit_always_cuts(scene: Open) -> None:
    """Each by one, down to 1 and never below; ``auto_reduced_from`` is what it was at first."""
    here = await scene(4)
    for limit in (3, 2, 1, 1, 1):
        here.gate.report_rate_limit(P, 0)
        status = here.status()
        assert (status.limit, status.configured_limit) == (limit, 4)
        assert (status.auto_reduced, status.auto_reduced_from) == (True, 4)
        assert status.notice == REDUCED.format(limit)
    assert here.gate.get_limit(P) == 1
    assert here.gate.limits() == {P: 1}
    assert [told[1:] for told in here.told if told[0] == "on_limit_reduced"] == [
        (P, 3, 4),
        (P, 2, 3),
        (P, 1, 2),
    ]


async def test_a_limit_of_1_is_only_paused(scene: Open) -> None:
    """No cut, no notice, no callback about one."""
    here = await scene(1)
    here.gate.report_rate_limit(P, 3)
    status = here.status()
    assert (status.limit, status.auto_reduced, status.notice, status.paused) == (1, False, None, True)
    assert here.told == [("on_pause", P, 3)]


async def test_one_burst_is_one_episode(scene: Open) -> None:
    """A permit granted before the last cut does not cut again, one granted after it does; all pause."""
    here = await scene(4, default_cooldown=0)
    burst = await here.holds(4)
    for number, permit in enumerate(burst):
        here.gate.report_rate_limit(P, number, permit=permit)
        assert here.gate.get_limit(P) == 3
    assert here.status().paused_until == START + 3
    await here.release(*burst)
    await here.clock.advance(3)
    later = await here.hold("later")
    here.gate.report_rate_limit(P, 0, permit=burst[0])
    assert here.gate.get_limit(P) == 3, "an old permit is old news, released or not"
    here.gate.report_rate_limit(P, 0, permit=later)
    assert here.gate.get_limit(P) == 2
    assert here.status().auto_reduced_from == 4
    here.gate.report_rate_limit(P, 0, permit=later)
    assert here.gate.get_limit(P) == 2


async def test_a_cut_without_a_permit_ends_the_episode_too(scene: Open) -> None:
    """Whoever was in flight at that cut does not cut again."""
    here = await scene(4)
    permits = await here.holds(2)
    here.gate.report_rate_limit(P, 0)
    for permit in permits:
        here.gate.report_rate_limit(P, 0, permit=permit)
    assert here.gate.get_limit(P) == 3


@pytest.mark.parametrize("way", ["set_limit", "recovery"])
async def test_an_episode_outlives_the_reduction(scene: Open, way: str) -> None:
    """A permit granted before the last cut does not cut again, also once the limit is back."""
    here = await scene(4, recovery="probe", recovery_window=10)
    first, second = await here.holds(2)
    here.gate.report_rate_limit(P, 0, permit=first)
    if way == "set_limit":
        await here.gate.set_limit(P, 4)
    else:
        await here.clock.advance(10)
    assert here.gate.get_limit(P) == 4
    here.gate.report_rate_limit(P, 0, permit=second)
    assert here.gate.get_limit(P) == 4


async def test_a_cut_evicts_nobody(scene: Open) -> None:
    """The next one goes when the count is below the limit in force."""
    here = await scene(2, default_cooldown=0)
    first, second = await here.holds(2)
    here.gate.report_rate_limit(P, 0)
    assert (here.status().limit, here.status().in_flight) == (1, 2)
    waiter = await here.queue()
    await here.release(first)
    assert waiter.waits
    await here.release(second)
    assert not waiter.waits


async def test_the_operator_has_the_last_word(scene: Open) -> None:
    """``set_limit`` forgets the reduction, with the same number too; the pause stays."""
    here = await scene(4)
    here.gate.report_rate_limit(P, 60)
    await here.gate.set_limit(P, 3)
    status = here.status()
    assert (status.limit, status.configured_limit) == (3, 3)
    assert (status.auto_reduced, status.auto_reduced_from, status.notice) == (False, None, None)
    assert status.paused
    here.gate.report_rate_limit(P, 0)
    assert here.status().auto_reduced_from == 3


async def test_removing_the_limit_forgets_pause_and_reduction(scene: Open) -> None:
    """Nothing of them comes back with the next limit."""
    here = await scene(4)
    here.gate.report_rate_limit(P, 60)
    await here.gate.remove_limit(P)
    await here.gate.set_limit(P, 4)
    status = here.status()
    assert (status.paused, status.auto_reduced, status.notice, status.reason) == (False, False, None, None)


# -- the reason ----------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["rate", "overload", "quota"])
async def test_only_concurrency_cuts(scene: Open, reason: str) -> None:
    """The others pause, and the status says which one it was for as long as that lasts."""
    here = await scene(4)
    permit = await here.hold()
    here.gate.report_rate_limit(P, 5, permit=permit, reason=reason)  # type: ignore[arg-type]
    status = here.status()
    assert (status.limit, status.auto_reduced, status.paused_until) == (4, False, START + 5)
    assert status.reason == reason
    assert here.told == [("on_pause", P, 5)]
    await here.clock.advance(5)
    assert here.status().reason is None


async def test_the_reason_stays_while_it_reduces(scene: Open) -> None:
    """After the pause as well."""
    here = await scene(4)
    here.gate.report_rate_limit(P, 5)
    await here.clock.advance(60)
    assert (here.status().paused, here.status().reason) == (False, "concurrency")
    await here.gate.set_limit(P, 4)
    assert here.status().reason is None


@pytest.mark.parametrize("reason", ["", "tokens", None, 429])
async def test_an_unknown_reason_is_refused(scene: Open, reason: object) -> None:
    """The message lists those there are, and nothing has changed."""
    here = await scene(4)
    with pytest.raises(ValidationError, match="concurrency, rate, overload, quota"):
        here.gate.report_rate_limit(P, 5, reason=reason)  # type: ignore[arg-type]
    assert (here.status().paused, here.status().limit, here.told) == (False, 4, [])


async def test_the_operator_pauses_for_no_429(scene: Open) -> None:
    """A pause by hand has no reason, whatever happened before."""
    here = await scene(4)
    here.gate.report_rate_limit(P, 1, reason="quota")
    await here.clock.advance(3600)
    here.gate.pause(P, 10)
    assert here.status().reason is None


async def test_a_429_that_was_lifted_is_over(scene: Open) -> None:
    """Its reason, too: what the operator pauses next is for no 429."""
    here = await scene(4)
    here.gate.report_rate_limit(P, 60, reason="quota")
    here.gate.resume(P)
    here.gate.pause(P, 10)
    assert here.status().reason is None


async def test_the_reason_stays_while_it_pauses(scene: Open) -> None:
    """Changing the limit does not end the pause, nor what it is for."""
    here = await scene(4)
    here.gate.report_rate_limit(P, 60, reason="quota")
    await here.gate.set_limit(P, 3)
    assert (here.status().paused, here.status().reason) == (True, "quota")


# -- the way back --------------------------------------------------------------------------------


async def test_manual_never_recovers_by_itself(scene: Open) -> None:
    """That is the default: a cut stays until the operator speaks."""
    here = await scene(4)
    here.gate.report_rate_limit(P, 0)
    await here.clock.advance(86_400)
    assert (here.status().limit, here.status().auto_reduced) == (3, True)


async def test_probe_recovers_step_by_step(scene: Open) -> None:
    """One more after each quiet window, up to the configured limit, where the reduction is over."""
    here = await scene(4, recovery="probe")
    here.gate.report_rate_limit(P, 0)
    here.gate.report_rate_limit(P, 0)
    assert here.status().notice == ("Concurrency limit auto-reduced to 2 after a 429 — recovering towards 4.")
    await here.clock.advance(29.999)
    assert here.status().limit == 2
    await here.clock.advance(0.001)
    status = here.status()
    assert (status.limit, status.auto_reduced, status.auto_reduced_from) == (3, True, 4)
    await here.clock.advance(30)
    status = here.status()
    assert (status.limit, status.auto_reduced, status.auto_reduced_from) == (4, False, None)
    assert (status.notice, status.reason) == (None, None)
    await here.clock.advance(3600)
    assert here.status().limit == 4


async def test_a_step_up_lets_somebody_in(scene: Open) -> None:
    """The queue is tried."""
    here = await scene(3, recovery="probe", recovery_window=10)
    await here.holds(2)
    here.gate.report_rate_limit(P, 0)
    waiter = await here.queue()
    await here.clock.advance(10)
    assert not waiter.waits


@pytest.mark.parametrize("reason", ["concurrency", "rate", "overload", "quota"])
async def test_every_429_begins_the_window_anew(scene: Open, reason: str) -> None:
    """Whatever its reason, and whether it cuts or not."""
    here = await scene(4, recovery="probe")
    permit = await here.hold()
    here.gate.report_rate_limit(P, 0, permit=permit)
    for _ in range(5):
        await here.clock.advance(29)
        here.gate.report_rate_limit(P, 0, permit=permit, reason=reason)  # type: ignore[arg-type]
        permit.touch()
    assert here.status().limit == 3
    await here.clock.advance(30)
    assert here.status().limit == 4


async def test_a_cut_on_the_way_back(scene: Open) -> None:
    """It goes on from where it is; what it was at first is still known."""
    here = await scene(4, recovery="probe")
    for _ in range(3):
        here.gate.report_rate_limit(P, 0)
    await here.clock.advance(30)
    here.gate.report_rate_limit(P, 0)
    assert (here.status().limit, here.status().auto_reduced_from) == (1, 4)
    await here.clock.advance(90)
    assert (here.status().limit, here.status().auto_reduced) == (4, False)


async def test_recovery_stops_where_the_operator_says(scene: Open) -> None:
    """A limit that was set meanwhile is not raised past, a removed one does not come back."""
    here = await scene(8, recovery="probe")
    for _ in range(4):
        here.gate.report_rate_limit(P, 0)
    await here.gate.set_limit(P, 5)
    await here.clock.advance(600)
    assert here.status().limit == 5
    here.gate.report_rate_limit(P, 0)
    await here.gate.remove_limit(P)
    await here.clock.advance(600)
    assert here.gate.get_limit(P) is None


async def test_recovery_ends_with_the_gate(scene: Open) -> None:
    """A closed gate changes no limit any more."""
    here = await scene(4, recovery="probe")
    here.gate.report_rate_limit(P, 0)
    await here.gate.aclose()
    await here.clock.advance(600)
    assert here.gate.get_limit(P) == 3


# -- who is told ---------------------------------------------------------------------------------


async def test_the_callbacks_come_after_the_state_has_changed(scene: Open) -> None:
    """on_pause(provider, seconds), then on_limit_reduced(provider, new, old)."""
    seen: list[object] = []

    def look(*told: object) -> None:
        status = here.status()
        seen.append((told, status.limit, status.paused, status.auto_reduced_from))

    here = await scene(4, on_pause=look, on_limit_reduced=look)
    here.gate.report_rate_limit(P, 5)
    assert seen == [((P, 5), 3, True, 4), ((P, 3, 4), 3, True, 4)]


async def test_callbacks_that_raise_harm_nothing(scene: Open, caplog: pytest.LogCaptureFixture) -> None:
    """Each is logged; the next one is called all the same."""

    def fail(*told: object) -> None:
        raise RuntimeError(f"told {told}")

    here = await scene(4, on_pause=fail, on_limit_reduced=fail)
    here.gate.report_rate_limit(P, 5)
    assert (here.status().limit, here.status().paused) == (3, True)
    assert "told ('umans', 5)" in caplog.text
    assert "told ('umans', 3, 4)" in caplog.text
    caplog.clear()


async def test_a_callback_may_use_the_gate(scene: Open) -> None:
    """What it does holds."""
    here = await scene(4, on_pause=lambda provider_id, _: here.gate.resume(provider_id))
    waiter = await here.ask()
    here.gate.report_rate_limit(P, 5)
    await idle()
    assert not waiter.waits
    assert (here.status().paused, here.status().limit) == (False, 3)


async def test_a_pause_by_hand_is_no_429(scene: Open) -> None:
    """It cuts nothing and tells nobody."""
    here = await scene(4)
    here.gate.pause(P, 5)
    assert (here.status().limit, here.told) == (4, [])
    with pytest.raises(LimitExceeded):
        await here.gate.acquire(P, timeout=0)
