"""Units that are counted instead of being held one by one: the same to the ledger."""

from __future__ import annotations

from interlock.core.kernel import Kernel
from interlock.core.model import Granted, Permit, Waiter
from interlock.core.tally import Tally


def tallied(capacity: int) -> tuple[Kernel, Tally]:
    kernel = Kernel()
    kernel.configure("agents", 0, capacity=capacity)
    return kernel, Tally(kernel, "agents", "pool agents", 0)


def test_units_are_counted_as_used() -> None:
    kernel, tally = tallied(3)
    limit = kernel.limit("agents")
    assert [tally.take() for _ in range(4)] == [True, True, True, False]
    kernel.check()
    assert (limit.used, tally.units) == (3, 3)
    assert [(one.owner, one.claims.weight(limit)) for one in kernel.holders(limit)] == [("pool agents", 3)]
    assert [tally.give_back() for _ in range(3)] == [True] * 3
    kernel.check()
    assert (limit.used, tally.units, kernel.holders(limit)) == (0, 0, [])


def test_nobody_who_waits_is_passed() -> None:
    kernel, tally = tallied(1)
    assert tally.take()
    waiter = kernel.acquire(kernel.claims(("agents",)), 0)
    assert isinstance(waiter, Waiter)
    assert not tally.give_back(), "somebody has to be told"
    kernel.release(tally.part(0), 0)
    assert kernel.outbox == [Granted(waiter, waiter.permit)]  # type: ignore[arg-type]
    kernel.check()
    assert not tally.take()


def test_it_shares_the_limit_with_permits() -> None:
    kernel, tally = tallied(2)
    permit = kernel.acquire(kernel.claims(("agents",)), 0)
    assert isinstance(permit, Permit)
    assert [tally.take(), tally.take()] == [True, False]
    kernel.release(permit, 0)
    assert tally.take()
    kernel.check()


def test_units_outlive_the_removal_of_their_limit() -> None:
    """Who holds a removed limit stays counted; the last to give back takes it along."""
    kernel, tally = tallied(2)
    assert tally.take()
    kernel.remove("agents", 0)
    kernel.check()
    assert not tally.give_back()
    kernel.release(tally.part(0), 0)
    kernel.check()
    assert kernel.limits == {}


def test_a_pause_holds_it_back() -> None:
    kernel, tally = tallied(2)
    kernel.pause("agents", 100, 0)
    assert not tally.take()
    kernel.tick(100)
    assert tally.take()
