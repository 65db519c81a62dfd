"""R12 to R14: what cools, pauses and gates.

`docs/semantics.md` says the same in prose and links here. All scenes play on the kernel itself: time is an
argument in milliseconds, and what the kernel has to tell is read from its outbox.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from core.scenes import ask, hold, let_in, permit_of, queue, used, world
from interlock.core.kernel import Kernel
from interlock.core.model import (
    PATIENCE,
    Cooldown,
    GateWaiting,
    Refused,
    Waiter,
)

# -- R12


def test_r12_a_cooling_unit_is_not_free_until_its_time() -> None:
    """R12: a unit that cools is used until its time, and goes to who waits in that very millisecond."""
    kernel = world(a={"capacity": 1, "cooldown": Cooldown(success_ms=10)})
    kernel.release(hold(kernel, "a"), 5)
    waiter = queue(kernel, "a", at=6, deadline_ms=15)
    kernel.tick(14)
    assert used(kernel) == {"a": 1}
    assert let_in(kernel) == []
    kernel.tick(15)
    assert let_in(kernel) == [waiter]
    assert permit_of(waiter).granted_ms == 15


@pytest.mark.parametrize(
    ("end", "free_at"), [("success", 11), ("cancelled", 21), ("failed", 31), ("revoke", 31), ("expire", 31)]
)
def test_r12_by_how_the_work_ended(end: str, free_at: int) -> None:
    """R12: how long a unit cools depends on how the work ended; what was taken away cools as failed."""
    kernel = world(a={"capacity": 1, "cooldown": Cooldown(10, 20, 30)})
    permit = hold(kernel, "a", lease_ms=1 if end == "expire" else None)
    if end == "expire":
        kernel.tick(1)
    elif end == "revoke":
        kernel.revoke(permit, 1)
    else:
        kernel.release(permit, 1, end)  # type: ignore[arg-type]
    assert free_at == kernel.next_deadline()
    kernel.tick(free_at)
    assert used(kernel) == {"a": 0}


def test_r12_what_nobody_used_does_not_cool() -> None:
    """R12: a permit that never reached anybody gives its units back at once."""
    kernel = world(a={"capacity": 1, "cooldown": Cooldown(10, 20, 30)})
    kernel.release(hold(kernel, "a"), 1, "unused")
    assert used(kernel) == {"a": 0}


def test_r12_only_the_limits_with_a_cooldown_cool() -> None:
    """R12: of several limits each cools by its own setting, and cooled units outlive a removal."""
    kernel = world(a={"capacity": 1, "cooldown": Cooldown(success_ms=10)}, b=1)
    kernel.release(hold(kernel, "a", "b"), 0)
    assert used(kernel) == {"a": 1, "b": 0}
    kernel.remove("a", 1)
    kernel.configure("a", 2, capacity=1)
    assert ask(kernel, "a", at=3, wait=False) == Refused("would_block", "a")
    kernel.tick(10)
    hold(kernel, "a", at=10)


# -- R13


def test_r13_nobody_passes_a_pause() -> None:
    """R13: while a limit is paused, neither waiters nor newcomers are admitted over it."""
    kernel = world(a=2, b=1)
    permit = hold(kernel, "a")
    kernel.pause("a", 10, 1)
    assert ask(kernel, "a", at=2, wait=False) == Refused("would_block", "a")
    assert kernel.take(kernel.claims(("a",)), 2) is None
    waiter = queue(kernel, "a", "b", at=2)
    kernel.release(permit, 3)
    kernel.configure("a", 4, capacity=9)
    kernel.tick(9)
    assert let_in(kernel) == []
    kernel.tick(10)
    assert let_in(kernel) == [waiter]


def test_r13_a_pause_shuts_an_open_gate_too() -> None:
    """R13: a gate that would let newcomers by does not while its limit is paused."""
    kernel = world(a={"capacity": 1, "gated": True})
    kernel.pause("a", 10, 0)
    assert ask(kernel, "a", at=1, wait=False) == Refused("would_block", "a")
    kernel.tick(10)
    hold(kernel, "a", at=10)


def test_r13_a_pause_only_grows() -> None:
    """R13: a shorter pause does not shorten a longer one; only `resume` ends it early."""
    kernel = world(a=1)
    kernel.pause("a", 10, 0)
    kernel.pause("a", 5, 1)
    assert kernel.limit("a").paused_until_ms == kernel.next_deadline() == 10
    kernel.pause("a", 20, 2)
    assert kernel.limit("a").paused_until_ms == kernel.next_deadline() == 20
    waiter = queue(kernel, "a", at=3)
    kernel.resume("a", 4)
    assert let_in(kernel) == [waiter]
    kernel.pause("a", 4, 4)
    assert kernel.limit("a").paused_until_ms is None


def test_r13_a_gate_is_open_to_newcomers_while_nobody_waits() -> None:
    """R13: with nobody waiting and no fresh reading a gate is open, and shut as soon as anyone waits."""
    kernel = world(a={"capacity": 2, "gated": True}, b=1)
    first, _second = hold(kernel, "a"), hold(kernel, "a")
    waiter = queue(kernel, "a", at=1)
    kernel.release(first, 2)
    assert let_in(kernel) == []
    assert ask(kernel, "a", at=3, wait=False) == Refused("would_block", "a")
    assert ask(kernel, "a", "b", at=3, priority=-1, wait=False) == Refused("would_block", "a")
    kernel.admit("a", 1, 4)
    assert let_in(kernel) == [waiter]


def test_r13_a_fresh_reading_binds_newcomers_too() -> None:
    """R13: while the last reading is fresh, a newcomer needs what is left of it."""
    kernel = world(a={"capacity": 9, "gated": True})
    kernel.admit("a", 1, 0, fresh_until_ms=10)
    hold(kernel, "a", at=1)
    assert ask(kernel, "a", at=2, wait=False) == Refused("would_block", "a")
    kernel.tick(10)
    hold(kernel, "a", at=10)


def kept_by_a_pause(kernel: Kernel) -> Waiter:
    kernel.pause("provider", 1_000, 0)
    return queue(kernel, "provider", "ceiling")


def kept_by_a_gate(kernel: Kernel) -> Waiter:
    kernel.configure("provider", 0, capacity=1, gated=True)
    kernel.admit("provider", 0, 0, fresh_until_ms=1_000)
    return queue(kernel, "provider", "ceiling")


def kept_by_the_capacity(kernel: Kernel) -> Waiter:
    return queue(kernel, "provider", "provider", "ceiling")


ASIDE = [kept_by_a_pause, kept_by_a_gate, kept_by_the_capacity]


@pytest.mark.parametrize("kept", ASIDE)
def test_r13_one_kept_out_stands_aside(kept: Callable[[Kernel], Waiter]) -> None:
    """R13: whom a pause, a gate or the capacity keeps out reserves nothing, and is not passed."""
    kernel = world(provider=1, ceiling=1)
    waiter = kept(kernel)
    for turn in range(2 * PATIENCE):
        kernel.release(hold(kernel, "ceiling", at=turn + 1), turn + 1)
    assert waiter.waiting
    assert waiter.passed == 0
    kernel.configure("provider", 50, capacity=2)
    kernel.resume("provider", 50)
    assert let_in(kernel) == [waiter]


@pytest.mark.parametrize("kept", ASIDE[:2])
def test_r13_standing_aside_gives_up_what_was_reserved(kept: Callable[[Kernel], Waiter]) -> None:
    """R13: one who stood in line and is kept out from now on keeps nothing from the younger."""
    kernel = world(provider=1, ceiling=2)
    hold(kernel, "ceiling")
    queue(kernel, "provider", "ceiling", "ceiling", at=1)
    younger = queue(kernel, "ceiling", at=2)
    assert let_in(kernel) == []
    kept(kernel)
    assert let_in(kernel) == [younger]


# -- R14


def test_r14_one_reading_of_n_admits_at_most_n() -> None:
    """R14: an answer of n admits n units, waiting or new, and then the gate is shut."""
    kernel = world(a={"capacity": 9, "gated": True})
    kernel.admit("a", 0, 0, fresh_until_ms=10)
    waiters = [queue(kernel, "a", at=1) for _ in range(4)]
    kernel.admit("a", 3, 2, fresh_until_ms=12)
    assert waiters[:3] == let_in(kernel)
    assert ask(kernel, "a", at=3, wait=False) == Refused("would_block", "a")
    kernel.release(permit_of(waiters[0]), 4)
    assert let_in(kernel) == []


def test_r14_units_count_not_requests() -> None:
    """R14: a request for two units spends two, and the last one is no room for it."""
    kernel = world(a={"capacity": 9, "gated": True})
    kernel.admit("a", 3, 0, fresh_until_ms=10)
    hold(kernel, "a", "a", at=1)
    assert kernel.limit("a").credits == 1
    large = queue(kernel, "a", "a", at=2)
    assert ask(kernel, "a", at=3, wait=False) == Refused("would_block", "a")
    kernel.admit("a", 2, 4, fresh_until_ms=14)
    assert let_in(kernel) == [large]
    assert kernel.limit("a").credits == 0


def test_r14_a_new_reading_replaces_the_last_and_an_old_one_lapses() -> None:
    """R14: readings are not added up, and what is left of one lapses when it is no longer fresh."""
    kernel = world(a={"capacity": 9, "gated": True})
    kernel.admit("a", 5, 0, fresh_until_ms=10)
    kernel.admit("a", 1, 1, fresh_until_ms=11)
    hold(kernel, "a", at=2)
    waiter = queue(kernel, "a", at=3)
    kernel.admit("a", -7, 4, fresh_until_ms=14)
    assert kernel.limit("a").credits == 0
    kernel.configure("a", 5, capacity=1, gated=True)
    kernel.admit("a", 2, 6, fresh_until_ms=16)
    assert kernel.limit("a").credits == 2
    kernel.tick(16)
    assert kernel.limit("a").credits == 0
    kernel.configure("a", 17, capacity=9, gated=True)
    assert let_in(kernel) == []
    kernel.admit("a", 1, 18)
    assert let_in(kernel) == [waiter]


def test_r14_a_lowered_capacity_takes_its_part_of_the_answer() -> None:
    """R14: lowered by two units, a limit has two credits less; raised again, it gets none back."""
    kernel = world(a={"capacity": 5, "gated": True})
    kernel.admit("a", 3, 0, fresh_until_ms=10)
    kernel.configure("a", 1, capacity=3, gated=True)
    assert kernel.limit("a").credits == 1
    kernel.configure("a", 2, capacity=9, gated=True)
    hold(kernel, "a", at=3)
    assert ask(kernel, "a", at=3, wait=False) == Refused("would_block", "a")


def test_r14_the_capacity_holds_whatever_a_reading_says() -> None:
    """R14: a reading never admits past the capacity, and an ungated limit takes none."""
    kernel = world(a={"capacity": 1, "gated": True}, b=1)
    kernel.admit("a", 5, 0)
    hold(kernel, "a")
    waiter = queue(kernel, "a", at=1)
    kernel.admit("a", 5, 2)
    kernel.admit("b", 5, 2)
    assert waiter.waiting
    assert kernel.limit("b").credits == 0


def test_r14_who_has_to_ask_is_told_so() -> None:
    """R14: `GateWaiting` says that somebody waits where there is room, and whether room appeared since."""
    kernel = world(a={"capacity": 1, "gated": True})

    def to_ask() -> list[GateWaiting]:
        asked = [effect for effect in kernel.outbox if isinstance(effect, GateWaiting)]
        kernel.outbox.clear()
        return asked

    first = hold(kernel, "a")
    queue(kernel, "a", at=1)
    assert to_ask() == []
    kernel.release(first, 2)
    assert to_ask() == [GateWaiting("a", recycled=True)]
    queue(kernel, "a", at=3)
    assert to_ask() == [GateWaiting("a", recycled=False)]
    kernel.pause("a", 9, 4)
    queue(kernel, "a", at=5)
    assert to_ask() == []
    kernel.tick(9)
    assert to_ask() == [GateWaiting("a", recycled=True)]
    kernel.configure("a", 10, capacity=2, gated=True)
    assert to_ask() == [GateWaiting("a", recycled=True)]
    kernel.admit("a", 0, 11, fresh_until_ms=12)
    assert to_ask() == []
    kernel.tick(12)
    assert to_ask() == [GateWaiting("a", recycled=False)]
