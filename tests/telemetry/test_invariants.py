"""The cheap checks: silent over any walk of a sound kernel, and loud for each rule that is broken."""

from __future__ import annotations

import random
from typing import Any

import pytest

from interlock.core.kernel import Kernel
from interlock.core.model import Cooldown, Permit, Waiter
from interlock.telemetry import invariants
from interlock.telemetry.invariants import broken_rules, stuck_at

NAMES = ("a", "b", "c")


def kernel_with(**capacities: int | None) -> Kernel:
    kernel = Kernel()
    for name, capacity in capacities.items():
        kernel.configure(name, 0, capacity=capacity)
    return kernel


def complaints(kernel: Kernel) -> list[str]:
    return [*stuck_at(kernel), *broken_rules(kernel)]


def ask(kernel: Kernel, now: int, *names: str, **more: Any) -> Any:
    return kernel.acquire(kernel.claims(names), now, **more)


@pytest.mark.parametrize("seed", range(6))
def test_a_sound_kernel_gives_no_cause_for_complaint(seed: int) -> None:
    """Weights, priorities, nesting, lending, pauses, gates, cooldowns, resizing: after every step."""
    chance = random.Random(seed)
    kernel = Kernel()
    for name in NAMES:
        kernel.configure(name, 0, capacity=chance.randint(1, 3), cooldown=Cooldown(chance.choice((0, 5))))
    permits: list[Permit] = []
    waiters: list[Waiter] = []
    most_waiting = 0
    for now in range(600):
        name = chance.choice(NAMES)
        match chance.randrange(14):
            case 0 | 1 | 2 | 3 | 4:
                names = chance.choices(NAMES, k=chance.randint(1, 3))
                parent = chance.choice(permits) if permits and chance.random() < 0.2 else None
                answer = ask(kernel, now, *names, priority=chance.randint(0, 1), parent=parent)
                permits += [answer] if isinstance(answer, Permit) else []
                waiters += [answer] if isinstance(answer, Waiter) else []
            case 5 | 6 | 7 if permits:
                one = permits.pop(chance.randrange(len(permits)))
                kernel.release(one, now, chance.choice(("success", "failed", "unused")))
            case 8 if waiters:
                kernel.withdraw(waiters.pop(chance.randrange(len(waiters))), now)
            case 9:
                kernel.configure(
                    name, now, capacity=chance.choice((1, 2, 4, None)), gated=chance.random() < 0.2
                )
            case 10:
                kernel.pause(name, now + chance.randint(1, 9), now)
            case 11:
                kernel.admit(name, chance.randint(0, 2), now)
            case 12 if permits:
                kernel.lend(chance.choice(permits), now)
            case 13 if permits:
                one = chance.choice(permits)
                if one.lent and one.reclaiming is None:
                    kernel.reclaim(one, one.claims, now, now + 20)
        kernel.tick(now)
        kernel.outbox.clear()
        permits += [one.permit for one in waiters if one.permit is not None]
        waiters = [one for one in waiters if one.waiting]
        permits = [one for one in permits if one.ended is None]
        most_waiting = max(most_waiting, len(waiters))
        assert complaints(kernel) == [], now
    assert most_waiting > 3, "the walk was not one to be complained about"


def test_somebody_who_could_go_is_told() -> None:
    """Room appears and nobody is asked: what a lost wake-up looks like."""
    kernel = kernel_with(a=1)
    ask(kernel, 0, "a")
    ask(kernel, 0, "a")
    assert stuck_at(kernel) == []
    kernel.limit("a").used = 0
    assert stuck_at(kernel) == ["a"]


def test_somebody_whom_nothing_keeps_aside_is_told() -> None:
    kernel = kernel_with(a=1)
    ask(kernel, 0, "a", "a")
    assert stuck_at(kernel) == []
    kernel.limit("a").capacity = 2
    assert stuck_at(kernel) == ["a"]


def test_units_that_nobody_has_are_told() -> None:
    kernel = kernel_with(a=4, b=4)
    ask(kernel, 0, "a", "b")
    kernel.limit("b").used = 3
    assert list(broken_rules(kernel)) == ["b 3/4: 1 units are taken, 3 are counted"]


def test_a_way_past_those_who_wait_is_told() -> None:
    kernel = kernel_with(a=1)
    ask(kernel, 0, "a")
    ask(kernel, 0, "a")
    kernel.limit("a").open_capacity = 1
    assert list(broken_rules(kernel)) == ["a 1/1 (1 waiting): newcomers pass those who wait"]


def test_an_ended_permit_that_is_kept_is_told() -> None:
    kernel = kernel_with(a=1)
    ask(kernel, 0, "a").ended = "released"
    assert list(broken_rules(kernel)) == ["an ended permit is still live"]


def test_with_very_many_permits_the_books_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(invariants, "MOST_PERMITS", 2)
    kernel = kernel_with(a=None)
    for _ in range(3):
        ask(kernel, 0, "a")
    kernel.limit("a").used = 9
    assert list(broken_rules(kernel)) == []
