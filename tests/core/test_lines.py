"""Bounded lines, limits that go, and why something waits."""

from __future__ import annotations

from typing import Any

import pytest

from core.differential import Pair
from core.scenes import ask, copy_of, hold, queue, told, world
from interlock.core.explain import Block, blocks, position
from interlock.core.kernel import Kernel
from interlock.core.model import (
    Cooldown,
    Refused,
    Waiter,
)
from interlock.testing.walk import random_steps

# -- bounded lines, removal


def test_a_bounded_line_refuses_the_next() -> None:
    """`queue_max` bounds who waits for a limit, over all lanes; who need not wait is not refused."""
    kernel = world(a={"capacity": 1, "queue_max": 1}, b={"capacity": 1, "queue_max": 0})
    permit = hold(kernel, "a")
    waiter = queue(kernel, "a")
    hold(kernel, "b")
    assert ask(kernel, "a", priority=-1) == Refused("queue_full", "a")
    assert ask(kernel, "b") == Refused("queue_full", "b")
    assert kernel.limit("a").waiters == {waiter}
    assert set() == kernel.limit("b").waiters
    kernel.release(permit, 1)
    queue(kernel, "a", at=1)


def test_a_removed_limit_drops_who_waits_for_it() -> None:
    """Who waits for a limit that is removed is dropped; others that they kept back go on."""
    kernel = world(a=2, b=1)
    hold(kernel, "a")
    hold(kernel, "b")
    kernel.pause("b", 50, 0)
    elder = queue(kernel, "a", "b", at=1)
    also = queue(kernel, "b", at=2)
    kernel.remove("b", 3)
    assert told(kernel) == [("dropped", elder), ("dropped", also)]
    assert kernel.next_deadline() is None
    with pytest.raises(KeyError, match="b"):
        kernel.pause("b", 9, 4)
    assert set() == kernel.limit("a").waiters
    hold(kernel, "a", at=5)


# -- why something waits


def test_a_refusal_names_the_limit_that_kept_it_out() -> None:
    """A gate that stands open for newcomers is not why one of them is refused: the full limit is."""
    kernel = world(a={"capacity": 5, "gated": True}, b=1)
    hold(kernel, "b")
    hold(kernel, "a")
    assert ask(kernel, "a", "b", wait=False) == Refused("would_block", "b")


def test_a_refusal_behind_others_names_the_limit_that_keeps_them_out() -> None:
    """Who would only stand behind others is refused for the limit that they all lack."""
    kernel = world(a=5, b=1)
    hold(kernel, "b")
    queue(kernel, "a", "b")
    assert ask(kernel, "a", "b", wait=False) == Refused("would_block", "b")


@pytest.mark.parametrize("seed", range(4))
def test_whoever_waits_is_told_why(seed: int) -> None:
    """In every state, something keeps every waiter out; and room where only room was missing lets it in."""
    pair, admitted = Pair(), 0
    for step in random_steps(f"why {seed}", 300):
        pair.carry_out(step)
        for waiter, _ in pair.waiters:
            found = blocks(pair.kernel, waiter.charged, waiter.rank)
            assert found, f"nothing keeps {waiter.claims.names} out of {pair.kernel}"
            at_front = waiter.charged.lanes[waiter.priority].head is waiter
            if at_front and [(block.why, block.ahead) for block in found] == [("full", ())]:
                admitted += lets_in(*copy_of(pair.kernel, waiter, found[0]), step.now_ms)
    assert admitted > 5


def lets_in(kernel: Kernel, waiter: Waiter, block: Block, now_ms: int) -> bool:
    """Whether as much more capacity as *block* says is missing is what the waiter waited for."""
    limit = block.limit
    if limit.gated:
        return False
    settings = {"cooldown": limit.cooldown, "queue_max": limit.queue_max}
    enough = limit.capacity + block.missing
    kernel.configure(limit.name, now_ms, capacity=enough - 1, **settings)
    assert waiter.waiting
    kernel.configure(limit.name, now_ms, capacity=enough, **settings)
    assert not waiter.waiting
    return True


def test_every_reason_has_its_scene() -> None:
    """What keeps a request out is named for each of its limits, with how many units are missing."""
    kernel = world(full=2, gate={"capacity": 2, "gated": True}, giant=1, paused=1, reserved=2, room=1)
    hold(kernel, "full", "reserved")
    kernel.admit("gate", 0, 0, fresh_until_ms=99)
    kernel.pause("paused", 99, 0)
    elder = queue(kernel, "reserved", "reserved", at=1)
    names = ("full", "full", "gate", "giant", "giant", "paused", "room")
    waiter = queue(kernel, *names, at=2)
    found = [(block.limit.name, block.why, block.missing) for block in why(kernel, waiter)]
    assert found == [
        ("full", "full", 1),
        ("gate", "gate", 1),
        ("giant", "never_fits", 1),
        ("paused", "paused", 0),
    ]
    younger = queue(kernel, "reserved", at=3)
    (block,) = why(kernel, younger)
    assert (block.limit.name, block.why, block.ahead) == ("reserved", "reserved", (elder,))
    assert block.missing > 0


def why(kernel: Kernel, waiter: Waiter) -> Any:
    return blocks(kernel, waiter.charged, waiter.rank)


def test_who_goes_first_is_listed() -> None:
    """`ahead` are the older waiters at a limit, oldest first; `position` counts them over all limits."""
    kernel = world(a=1, b=1)
    hold(kernel, "a", "b")
    third = queue(kernel, "a", "b", at=3)
    second = queue(kernel, "b", at=2)
    first = queue(kernel, "a", at=3, priority=-1)
    fourth = queue(kernel, "a", at=4)
    ahead = {block.limit.name: block.ahead for block in why(kernel, third)}
    assert ahead == {"a": (first,), "b": (second,)}
    places = [position(one.charged, one.rank) for one in (first, second, third, fourth)]
    assert places == [0, 0, 2, 2]


def test_the_kernel_reads_well() -> None:
    """One line says who holds what, for an operator and for a failing test."""
    cooling, gate = {"capacity": 3, "cooldown": Cooldown(9)}, {"capacity": 1, "gated": True}
    kernel = world(a=cooling, b=1, c=None, d=gate)
    assert repr(Kernel()) == "no limits"
    hold(kernel, "a")
    kernel.release(hold(kernel, "a"), 0)
    hold(kernel, "b")
    queue(kernel, "b")
    kernel.pause("b", 5, 0)
    readings = "a 2/3 (1 cooling)", "b 1/1 (1 waiting, paused)", "c 0/unlimited", "d 0/1 (gated, 0 credits)"
    assert repr(kernel) == " | ".join(readings)
