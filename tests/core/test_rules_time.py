"""R15 and R16: time, and those who leave; leases.

`docs/semantics.md` says the same in prose and links here. All scenes play on the kernel itself: time is an
argument in milliseconds, and what the kernel has to tell is read from its outbox.
"""

from __future__ import annotations

from typing import Any

import pytest

from core.differential import Pair
from core.scenes import ask, copy_of, hold, let_in, permit_of, queue, told, used, world
from interlock.core.kernel import Kernel
from interlock.core.model import (
    Cooldown,
    Ended,
    Granted,
    Refused,
    Waiter,
)
from interlock.testing.walk import random_steps

# -- R15


def test_r15_nothing_happens_before_the_next_deadline() -> None:
    """R15: a tick before `next_deadline` changes nothing; at it, all happens that is due."""
    kernel = world(a={"capacity": 1, "cooldown": Cooldown(failed_ms=5)}, b=1)
    assert kernel.next_deadline() is None
    leased = hold(kernel, "a", lease_ms=10)
    late = queue(kernel, "a", deadline_ms=12)
    patient = queue(kernel, "a", deadline_ms=99)
    kernel.pause("b", 20, 0)
    paused = queue(kernel, "b")
    happened = []
    while (due := kernel.next_deadline()) is not None and due < 99:
        kernel.tick(due - 1)
        assert kernel.outbox == []
        kernel.tick(due)
        happened += [(due, effect[0], effect[1]) for effect in kernel.outbox]
        kernel.outbox.clear()
    assert [
        (10, "expired", leased),
        (12, "timed_out", late),
        (15, patient, patient.permit),
        (20, paused, paused.permit),
    ] == happened
    assert kernel.next_deadline() is None


def test_r15_what_is_called_off_is_no_deadline() -> None:
    """R15: the next deadline is that of something that will happen, not of what was withdrawn or released."""
    kernel = world(a=1)
    permit = hold(kernel, "a", lease_ms=5)
    waiter = queue(kernel, "a", deadline_ms=3)
    queue(kernel, "a", deadline_ms=9)
    assert kernel.next_deadline() == 3
    kernel.withdraw(waiter, 1)
    assert kernel.next_deadline() == 5
    kernel.release(permit, 2)
    assert kernel.next_deadline() is None


def test_r15_a_late_tick_lets_it_all_happen_in_order() -> None:
    """R15: however late the tick, what was due happens in its order and as of its own time."""
    kernel = world(a=1)
    hold(kernel, "a", lease_ms=10)
    second = queue(kernel, "a", at=1, lease_ms=10)
    third = queue(kernel, "a", at=2, deadline_ms=20)
    fourth = queue(kernel, "a", at=3, deadline_ms=19)
    kernel.tick(1_000)
    assert (permit_of(second).granted_ms, permit_of(third).granted_ms) == (10, 20)
    assert fourth.gone
    assert [type(effect) for effect in kernel.outbox] == [Ended, Granted, Ended, Ended, Granted]


@pytest.mark.parametrize("seed", range(3))
def test_r15_in_every_state(seed: int) -> None:
    """R15: wherever a walk has got to, a tick one millisecond early changes nothing."""
    pair = Pair()
    for step in random_steps(f"deadlines {seed}", 500):
        pair.carry_out(step)
        due = pair.kernel.next_deadline()
        if due is not None:
            before = repr(pair.kernel), pair.kernel.fence
            pair.kernel.tick(due - 1)
            assert pair.kernel.outbox == []
            assert before == (repr(pair.kernel), pair.kernel.fence)


# -- R16


def traces(kernel: Kernel) -> dict[str, Any]:
    """All that a request could leave behind."""
    limits = kernel.limits.values()
    lanes = {lane for claims in kernel.claims_by_names.values() for lane in claims.lanes.values()}
    filed = {lane for limit in limits for lane in (*limit.line.filed, *limit.watchers.filed, *limit.aside)}
    assert filed <= lanes, "a lane in which nobody waits is still filed"
    return {
        "limits": repr(kernel),
        "keys": {*kernel.permits, *kernel.waiters},
        "owners": {owner: set(owned) for owner, owned in kernel.owners.items()},
        "live": set(kernel.live),
        "nested": {waiter for permit in kernel.live for waiter in permit.nested or ()},
        "waiting": {limit.name: set(limit.waiters) for limit in limits},
        "front": {(lane, lane.head) for lane in lanes},
        "short way": {limit.name: (limit.open_capacity, limit.busy) for limit in limits},
        "deadline": kernel.next_deadline(),
    }


def test_r16_a_withdrawn_waiter_leaves_no_trace() -> None:
    """R16: after a withdrawal all is as if the request had never been made."""
    kernel = world(a=2, b=1)
    parent = hold(kernel, "a", owner="o")
    before = traces(kernel)
    hold_b = hold(kernel, "b")
    waiter = queue(kernel, "a", "b", key="k", owner="o", parent=parent, deadline_ms=9)
    assert before != traces(kernel)
    assert kernel.withdraw(waiter, 1)
    assert not kernel.withdraw(waiter, 1)
    kernel.release(hold_b, 2)
    assert before == traces(kernel)
    assert kernel.outbox == []


@pytest.mark.parametrize("seed", range(3))
def test_r16_in_every_state(seed: int) -> None:
    """R16: wherever a walk has got to, to come, to wait and to go again changes nothing."""
    pair, waited = Pair(), 0
    for step in random_steps(f"come and go {seed}", 300):
        pair.carry_out(step)
        (kernel,), pick = copy_of(pair.kernel), step.pick
        names = [name for name, limit in kernel.limits.items() if not limit.removed]
        claims = kernel.claims(tuple(names[pick % 3 :] + names[: pick % 2]))
        before = traces(kernel)
        waiter = kernel.acquire(
            claims,
            step.now_ms,
            key="come and go",
            owner="o1",
            priority=pick % 5 - 3,
            since_ms=step.now_ms - pick % 9,
            deadline_ms=step.now_ms + pick % 7,
        )
        if isinstance(waiter, Waiter):
            waited += 1
            assert kernel.withdraw(waiter, step.now_ms)
            assert before == traces(kernel)
    assert waited > 50


def test_r16_cancelled_in_the_instant_of_being_granted() -> None:
    """R16: if the grant came first, the withdrawal says so, and the unit goes on to the next in line."""
    kernel = world(a=1)
    holder = hold(kernel, "a")
    cancelled, following = queue(kernel, "a", at=1, key="k", owner="o"), queue(kernel, "a", at=2)
    kernel.release(holder, 3)
    assert let_in(kernel) == [cancelled]
    assert not kernel.withdraw(cancelled, 3)
    assert kernel.release(permit_of(cancelled), 3)
    assert let_in(kernel) == [following]
    assert (kernel.permits, kernel.waiters, kernel.owners) == ({}, {}, {})
    assert used(kernel) == {"a": 1}


def test_r16_a_cancelled_waiter_stops_counting_at_once() -> None:
    """R16: its place in a bounded line is free in the same moment, and its deadline never comes."""
    kernel = world(a={"capacity": 1, "queue_max": 1})
    hold(kernel, "a")
    waiter = queue(kernel, "a", deadline_ms=5)
    assert ask(kernel, "a") == Refused("queue_full", "a")
    kernel.withdraw(waiter, 1)
    queue(kernel, "a", at=1)
    assert kernel.next_deadline() is None
    kernel.tick(5)
    assert told(kernel) == []


# -- leases


def test_a_lease_that_runs_out_passes_its_unit_on() -> None:
    """A leased permit ends at its time, is reported as expired, and its unit goes to the next."""
    kernel = world(a=1)
    lost = hold(kernel, "a", key="k", owner="o", lease_ms=10)
    waiter = queue(kernel, "a", at=1, lease_ms=10)
    kernel.tick(10)
    assert kernel.outbox == [Ended("expired", lost), Granted(waiter, permit_of(waiter))]
    assert lost.ended == "expired"
    assert permit_of(waiter).expires_ms == 20
    assert (kernel.permits, kernel.owners) == ({}, {})


def test_a_lease_may_be_renewed_shorter_or_longer_or_begun() -> None:
    """A renewal counts from its own moment, and makes a lease of a permit that had none."""
    kernel = world(a=1)
    permit = hold(kernel, "a")
    assert permit.expires_ms is None
    for lease_ms in (30, 5, 50):
        assert kernel.renew(permit, permit.fence, lease_ms, 10) == 10 + lease_ms
        assert permit.expires_ms == kernel.next_deadline() == 10 + lease_ms
    kernel.release(permit, 20)
    assert kernel.next_deadline() is None


def test_a_revoked_permit_is_reported() -> None:
    """A permit taken back from a silent holder is told of, and its unit passed on."""
    kernel = world(a=1)
    permit, waiter = hold(kernel, "a"), queue(kernel, "a")
    kernel.touch(permit, 7)
    assert permit.touched_ms == 7
    assert kernel.revoke(permit, 9)
    assert kernel.outbox == [Ended("revoked", permit), Granted(waiter, permit_of(waiter))]
    assert not kernel.revoke(permit, 9)
