"""The usage gate: waiters go as the provider itself reports room, and no answer of it can do harm."""

from __future__ import annotations

import pytest

from interlock import LimitExceeded, ProviderUsage
from interlock.provider.policy import ProviderPolicy
from interlock.testing.virtual_time import idle
from provider.conftest import Open
from provider.gates import START, Account, P, admitted

# -- how many a reading admits -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "local", "reported", "count"),
    [
        (4, 0, 0, 4),
        (4, 0, 3, 1),
        (4, 3, 3, 1),
        (4, 3, 0, 1),
        (4, 1, 2, 2),
        (4, 2, 4, 0),
        (4, 0, 9, 0),
        (4, 0, 10**30, 0),
        (4, 1, None, 3),
        (1, 0, 0, 1),
        (8, 0, 0, 8),
    ],
)
async def test_one_poll_admits_as_many_as_it_shows_room_for(
    gated: Open, account: Account, limit: int, local: int, reported: int | None, count: int
) -> None:
    """``limit - max(local, reported)`` go at once, the oldest first; without a reading what fits locally."""
    here = await gated(limit)
    account.answer = reported
    held = [permit.owner for permit in await here.holds(local)]
    waiters = await here.line_up(9)
    assert (account.polls, admitted(waiters)) == (1, count)
    assert here.let_in == [*held, *(f"w{number}" for number in range(count))]


async def test_grants_since_the_poll_began_count(gated: Open, account: Account) -> None:
    """The answer may be older than they are: one poll admits what is left after them."""
    here = await gated(4)
    reply = account.silent()
    (gone,) = await here.line_up(1)
    gone.task.cancel()
    await idle()
    await here.holds(2)
    waiters = await here.line_up(3)
    assert account.polls == 1
    account.silent()
    reply.set_result(1)
    await idle()
    assert admitted(waiters) == 1, "4 - max(2 of ours, 1 reported + 2 granted since)"


async def test_grants_that_are_released_meanwhile_count_too(gated: Open, account: Account) -> None:
    """The provider may count them still when it answers: better one too few."""
    here = await gated(3)
    reply = account.silent()
    (gone,) = await here.line_up(1)
    gone.task.cancel()
    await idle()
    await here.release(*await here.holds(2))
    waiters = await here.line_up(3)
    account.silent()
    reply.set_result(0)
    await idle()
    assert admitted(waiters) == 1


async def test_grants_without_a_limit_count_too(gated: Open, account: Account) -> None:
    """The limit may be removed and set again during one poll: then its answer is too old to mean more."""
    here = await gated(1)
    reply = account.silent()
    await here.line_up(3)
    await here.gate.remove_limit(P)
    assert here.in_flight() == 3
    await here.gate.set_limit(P, 6)
    waiters = await here.line_up(3)
    account.silent()
    reply.set_result(2)
    await idle()
    assert admitted(waiters) <= 1, "2 of others and 3 of ours make 5"


async def test_calls_that_are_on_their_way_count_besides(scene: Open) -> None:
    """``usage_settle``: what was granted that shortly before the question is not in the answer yet."""
    account = Account(1)
    policy = ProviderPolicy(default_cooldown=0, usage_settle=2)
    here = await scene(4, fetch_usage=account, policies={P: policy})
    await here.hold()
    await here.clock.advance(1)
    waiters = await here.line_up(4)
    assert admitted(waiters) == 2, "1 reported, 1 on its way"


# -- when a newcomer need not ask ----------------------------------------------------------------


async def test_room_and_nobody_waiting_needs_no_poll(gated: Open, account: Account) -> None:
    """Up to the limit nobody asks the provider; a full limit is no reason to ask either."""
    here = await gated(3)
    await here.holds(3)
    await here.queue()
    await here.clock.advance(60)
    assert account.polls == 0


async def test_without_a_limit_nobody_asks(gated: Open, account: Account) -> None:
    """There is nothing that an answer could be held against."""
    here = await gated(None)
    await here.holds(9)
    await here.line_up(3)
    assert account.polls == 0


async def test_a_fresh_adverse_reading_holds_newcomers_back(gated: Open, account: Account) -> None:
    """Although there is room and nobody waits; it holds until a poll says otherwise, or for 5 seconds."""
    here = await gated(4)
    account.answer = 4
    (waiter,) = await here.line_up(1)
    waiter.task.cancel()
    await here.clock.advance(2)
    with pytest.raises(LimitExceeded, match="waits for its provider to report room"):
        await here.gate.acquire(P, timeout=0)
    newcomer = await here.queue("n")
    assert account.asked_at == [START, START + 2], "it is worth a question at once"
    account.answer = 3
    await here.clock.advance(1)
    assert not newcomer.waits


async def test_a_reading_lapses(gated: Open, account: Account) -> None:
    """After ``usage_stale`` it means nothing any more."""
    here = await gated(4)
    account.answer = 4
    (waiter,) = await here.line_up(1)
    waiter.task.cancel()
    await here.clock.advance(4.999)
    with pytest.raises(LimitExceeded):
        await here.gate.acquire(P, timeout=0)
    assert here.status().upstream_in_flight == 4
    await here.clock.advance(0.002)
    await here.hold()
    assert here.status().upstream_in_flight is None
    assert account.polls == 1


async def test_a_favourable_reading_is_spent(gated: Open, account: Account) -> None:
    """Newcomers go without a poll for as many as it showed room for; the next one asks."""
    here = await gated(4)
    account.answer = 1
    (waiter,) = await here.line_up(1)
    assert not waiter.waits
    await here.hold("n1")
    await here.hold("n2")
    assert account.polls == 1
    await here.release(waiter.permit)
    account.answer = 4
    await here.queue("n3")
    assert account.polls == 2


async def test_an_unknown_usage_is_not_adverse(gated: Open, account: Account) -> None:
    """Newcomers with room go on without a poll."""
    here = await gated(4)
    account.answer = None
    (waiter,) = await here.line_up(1)
    assert not waiter.waits
    await here.holds(3)
    assert account.polls == 1


@pytest.mark.parametrize("later", ["paused", "lowered"])
async def test_an_unknown_usage_is_used_up_at_once(gated: Open, account: Account, later: str) -> None:
    """What it would have admitted is no room for those who come to wait an hour later."""
    here = await gated(4)
    account.answer = None
    (first,) = await here.line_up(1)
    await here.release(first.permit)
    await here.clock.advance(3600)
    account.answer = 4
    if later == "paused":
        waiters = await here.line_up(3)
    else:
        permit, _ = await here.holds(2)
        await here.gate.set_limit(P, 2)
        waiters = [await here.queue()]
        await here.release(permit)
    assert (account.polls, admitted(waiters)) == (2, 0)


@pytest.mark.parametrize("way", ["set_limit", "429"])
async def test_a_lower_limit_lowers_what_a_reading_left_over(gated: Open, account: Account, way: str) -> None:
    """One reading never brings what others and we have in flight past the limit in force."""
    here = await gated(4)
    account.answer = 2
    (waiter,) = await here.line_up(1)
    assert not waiter.waits
    account.answer = 3
    if way == "set_limit":
        await here.gate.set_limit(P, 3)
    else:
        here.gate.report_rate_limit(P, 0)
    await here.queue("n")


# -- when it asks --------------------------------------------------------------------------------


async def test_a_recycled_slot_asks_at_once(gated: Open, account: Account) -> None:
    """Not only at the next turn of the cadence."""
    here = await gated(4)
    account.answer = 4
    permits = await here.holds(4)
    waiter = await here.queue("w")
    await here.release(permits[0])
    await here.clock.advance(0.3)
    await here.release(permits[1])
    await here.clock.advance(0.2)
    account.answer = 3
    await here.release(permits[2])
    assert account.asked_at == [START, START + 0.3, START + 0.5]
    assert not waiter.waits


async def test_a_slot_is_recycled_when_it_has_cooled(gated: Open, account: Account) -> None:
    """Before that there is no room to ask about."""
    here = await gated(1, default_cooldown=2)
    held = await here.hold()
    waiter = await here.queue("w")
    await here.release(held)
    await here.clock.advance(1.999)
    assert account.polls == 0
    await here.clock.advance(0.001)
    assert (account.asked_at, waiter.waits) == ([START + 2], False)


@pytest.mark.parametrize("way", ["pause ends", "resume", "set_limit", "cut is undone"])
async def test_whatever_makes_room_asks_at_once(gated: Open, account: Account, way: str) -> None:
    """The end of a pause, however it comes, and a raised limit."""
    here = await gated(2, recovery="probe", recovery_window=10)
    if way in ("pause ends", "resume"):
        here.gate.pause(P, 10)
    elif way == "cut is undone":
        await here.hold()
        here.gate.report_rate_limit(P, 0)
    else:
        await here.holds(2)
    waiter = await here.queue("w")
    assert account.polls == 0
    if way == "resume":
        here.gate.resume(P)
        await idle()
    elif way == "set_limit":
        await here.gate.set_limit(P, 3)
        await idle()
    else:
        await here.clock.advance(10)
    assert (account.polls, waiter.waits) == (1, False)


async def test_it_asks_again_while_somebody_waits(gated: Open, account: Account) -> None:
    """Every ``usage_repoll``, until nobody waits any more."""
    here = await gated(4, usage_repoll=1.5)
    account.answer = 4
    (waiter,) = await here.line_up(1)
    await here.clock.advance(5)
    assert account.asked_at == [START, START + 1.5, START + 3, START + 4.5]
    waiter.task.cancel()
    await here.clock.advance(60)
    assert account.polls == 4


async def test_steady_arrivals_do_not_push_the_next_poll_back(gated: Open, account: Account) -> None:
    """However often somebody joins the queue, the cadence stands."""
    here = await gated(4)
    account.answer = 4
    await here.line_up(1)
    for number in range(11):
        await here.clock.advance(0.9)
        await here.queue(f"n{number}")
    assert account.asked_at == [START + second for second in range(10)]


async def test_one_poll_at_a_time(gated: Open, account: Account) -> None:
    """Slots that come back during a poll are asked about at its end, once."""
    here = await gated(4)
    permits = await here.holds(4)
    waiters = [await here.queue(f"w{number}") for number in range(8)]
    reply = account.silent()
    await here.release(*permits)
    await here.clock.advance(1.5)
    assert account.polls == 1
    account.answer = 4
    reply.set_result(4)
    await idle()
    assert (account.polls, account.most_at_once) == (2, 1)
    assert admitted(waiters) == 0
    await here.clock.advance(0.999)
    assert account.polls == 2


async def test_asking_again_is_forgotten_with_the_queue(gated: Open, account: Account) -> None:
    """What came back during one poll is no reason for another one after the next."""
    here = await gated(2)
    permits = await here.holds(2)
    waiter = await here.queue("w")
    reply = account.silent()
    await here.release(*permits)
    reply.set_result(0)
    await idle()
    assert (account.polls, waiter.waits) == (1, False)
    account.answer = 2
    last = await here.hold("last")
    await here.queue("next")
    await here.release(last)
    assert account.polls == 2


@pytest.mark.parametrize("why", ["paused", "full"])
async def test_it_does_not_ask_in_vain(gated: Open, account: Account, why: str) -> None:
    """During a pause, or without room of our own, no answer would let anybody in."""
    here = await gated(2)
    account.answer = 2
    await here.hold()
    (waiter,) = await here.line_up(1)
    assert account.polls == 1
    if why == "paused":
        here.gate.pause(P, 10)
    else:
        await here.gate.set_limit(P, 1)
    await here.clock.advance(9)
    assert account.polls == 1
    assert waiter.waits


async def test_a_long_cadence_is_kept(gated: Open, account: Account) -> None:
    """``usage_repoll`` may be longer than ``usage_stale``."""
    here = await gated(4, usage_repoll=60)
    account.answer = 4
    await here.line_up(1)
    await here.clock.advance(59)
    assert account.polls == 1


# -- the rest ------------------------------------------------------------------------------------


async def test_a_provider_may_have_a_source_of_its_own(scene: Open) -> None:
    """In place of the gate's."""
    common, own = Account(0), Account(0)
    here = await scene(1, fetch_usage=common, usage_sources={P: own}, default_cooldown=0)
    common.clock = own.clock = here.clock
    await here.gate.set_limit("other", 1)
    for provider_id in (P, "other"):
        held = await here.hold("h", provider_id)
        await here.queue("w", provider_id)
        await here.release(held)
    assert (own.asked_about, common.asked_about) == ([P], ["other"])


async def test_the_status_shows_what_was_reported(gated: Open, account: Account) -> None:
    """While it is fresh."""
    here = await gated(4)
    assert here.status().upstream_in_flight is None
    account.answer = 7
    (waiter,) = await here.line_up(1)
    assert here.status().upstream_in_flight == 7
    account.answer = None
    await here.clock.advance(5)
    assert not waiter.waits
    await here.clock.advance(0.001)
    assert here.status().upstream_in_flight is None


async def test_the_provider_s_own_limit_changes_nothing(gated: Open, account: Account) -> None:
    """It is for people to see; what counts is the operator's."""
    here = await gated(4)
    account.answer = ProviderUsage(0, limit=1)
    waiters = await here.line_up(6)
    assert admitted(waiters) == 4
    assert (here.status().limit, here.status().configured_limit) == (4, 4)


async def test_a_limit_above_the_provider_s_own_is_warned_about(
    gated: Open, account: Account, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, naming both."""
    here = await gated(4)
    account.answer = ProviderUsage(4, limit=3)
    await here.line_up(1)
    await here.clock.advance(3)
    warnings = [record.getMessage() for record in caplog.records if P in record.getMessage()]
    assert len(warnings) == 1
    assert {"4", "3"} <= set(warnings[0].replace(",", " ").split())


async def test_removing_the_limit_ends_the_questions(gated: Open, account: Account) -> None:
    """All who wait go, also while a poll hangs, and its answer means nothing any more."""
    here = await gated(1)
    reply = account.silent()
    waiters = await here.line_up(3)
    await here.gate.remove_limit(P)
    await idle()
    assert admitted(waiters) == 3
    reply.set_result(9)
    await here.clock.advance(60)
    assert account.polls == 1
    await here.hold("n")


async def test_closing_the_gate_ends_the_questions(gated: Open, account: Account) -> None:
    """A poll on its way is cancelled, none follows."""
    here = await gated(1)
    account.silent()
    await here.line_up(1)
    assert account.at_once == 1
    await here.gate.aclose()
    await idle()
    assert account.at_once == 0
    await here.clock.advance(60)
    assert account.polls == 1
