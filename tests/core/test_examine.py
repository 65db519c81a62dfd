"""What an examination says of a kernel: nothing while it is right, and what is wrong where it is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from core.differential import Pair
from interlock.core.examine import LATE_MS, examine
from interlock.core.kernel import Kernel
from interlock.core.model import Permit, Waiter
from interlock.testing.walk import random_steps


def kernel_with_a_queue() -> tuple[Kernel, Permit, Waiter]:
    kernel = Kernel()
    kernel.configure("a", 0, capacity=1)
    kernel.configure("b", 0, capacity=None)
    held = kernel.acquire(kernel.claims(("a", "b")), 0, key="h", lease_ms=1000)
    waits = kernel.acquire(kernel.claims(("a",)), 0, key="w", deadline_ms=500)
    assert isinstance(held, Permit)
    assert isinstance(waits, Waiter)
    return kernel, held, waits


def miscount(kernel: Kernel, held: Permit, waits: Waiter) -> int:
    kernel.limits["b"].used += 1
    return 0


def forget_the_holder(kernel: Kernel, held: Permit, waits: Waiter) -> int:
    kernel.live.discard(held)
    return 0


def keep_the_dead(kernel: Kernel, held: Permit, waits: Waiter) -> int:
    held.ended = "released"
    return 0


def forget_the_waiter(kernel: Kernel, held: Permit, waits: Waiter) -> int:
    kernel.limits["a"].capacity = 2
    return 0


def forget_the_time(kernel: Kernel, held: Permit, waits: Waiter) -> int:
    return 1001 + LATE_MS


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (miscount, ["b counts 2 units that are taken, but 1 are"]),
        (forget_the_holder, ["a counts 1 units that are taken, but 0 are", "b counts 1 units"]),
        (keep_the_dead, ["1 permits have ended and are held"]),
        (forget_the_waiter, ["1 waiters could go, and were not let in"]),
        (forget_the_time, ["1 leases have run out and are held", "1 waiters are past their deadline"]),
    ],
)
def test_what_is_wrong_is_named(harm: Callable[[Kernel, Permit, Waiter], int], said: list[str]) -> None:
    kernel, held, waits = kernel_with_a_queue()
    assert [one.severity for one in examine(kernel, 0)] == ["ok"]
    found = examine(kernel, harm(kernel, held, waits))
    assert [one.severity for one in found] == ["error"] * len(said)
    for finding, words in zip(found, said, strict=True):
        assert words in finding.what
        assert finding.remedy


@pytest.mark.parametrize("seed", range(6))
def test_nothing_is_found_where_nothing_is_wrong(seed: int) -> None:
    """After each step of a walk over everything that a kernel can do."""
    pair = Pair()
    for step in random_steps(f"examined {seed}", 500):
        pair.carry_out(step)
        found = examine(pair.kernel, step.now_ms)
        assert [one.severity for one in found] == ["ok"], (step, found)
