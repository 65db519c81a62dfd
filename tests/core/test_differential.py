"""The kernel held against the plain walk of its rules: the same operations, the same answers and state.

Five kinds of walk. The *open* one does everything that can be done. In the *crowded* one nothing empties
the lines, so that patience runs out all the time, which it hardly ever does in the open one, and keyed
requests come twice, as from a client that lost the answer. The *short* one takes the short way in and out
wherever there is one. In the *nested* one families wait for each other. The *flood* makes lines so long
that the dead are cleared out of them. `SideBySide` makes up its own operations: it finds less, but what it
finds it shrinks to a few lines.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from core.differential import EVERYTHING, Pair
from interlock.testing.walk import Step, random_steps

EMPTYING = {"admit", "pause", "release_owner", "remove", "resume", "revoke"}
PLAIN = {"since_ms": None, "deadline_ms": None, "lease_ms": None}


def crowded_steps(seed: int | str, count: int) -> Iterator[Step]:
    """`random_steps` without what empties a line, and with every keyed request sent twice."""
    for step in random_steps(seed, count):
        rare = step.pick % 8 == 0
        if step.operation in EMPTYING or (step.operation == "withdraw" and not rare):
            continue
        if step.operation == "configure":
            capacity = step.arguments["capacity"] or 2
            changed = {"capacity": capacity, "gated": False, "cooldown_ms": (0, 0, 0)}
            step = step._replace(arguments=step.arguments | changed)
        if step.operation == "acquire":
            priority = step.arguments["priority"] if rare else 0
            step = step._replace(arguments=step.arguments | PLAIN | {"priority": priority})
            if step.arguments["key"] is not None:
                yield step
        yield step


def nested_steps(seed: int | str, count: int) -> Iterator[Step]:
    """`crowded_steps` in families: most ask below a permit, and nobody leaves before he must."""
    for step in crowded_steps(seed, count):
        if step.operation == "adopt" or (step.operation == "release" and step.pick % 3 == 0):
            continue
        if step.operation == "acquire":
            nested = {"nested": step.pick % 5 > 0, "wait": True, "key": None}
            step = step._replace(arguments=step.arguments | nested)
        yield step


def flood_steps(seed: int | str, count: int) -> Iterator[Step]:
    """Long lines, most of which is withdrawn again before the rest is let in."""
    random = Random(seed)
    for name in "ab":
        limit = {"cooldown_ms": (0, 0, 0), "queue_max": None, "gated": False}
        yield Step("configure", 0, 0, {"name": name, "capacity": 1, **limit})
    unkeyed = {"key": None, "owner": None, "nested": False, "priority": 0, "lease_ms": None, "wait": True}
    for number in range(count // 2):
        names = random.choice((("a",), ("a",), ("a", "b")))
        times = {"since_ms": number - random.randrange(60), "deadline_ms": 10_000 + random.randrange(9)}
        yield Step("acquire", number, 0, {"names": names, **unkeyed, **times})
    ends = random.choice(("oldest", "newest", "any"))
    for _ in range(count * 2 // 5):
        pick = {"oldest": 0, "newest": -1, "any": random.randrange(count)}[ends]
        yield Step("withdraw", count, pick, {})
    for _ in range(count // 5):
        yield Step("release", count, random.randrange(count), {"outcome": 0, "again": False})
    yield Step("tick", 20_000, 0, {})


class ShortWay(Pair):
    """Takes and gives back without the queue where the kernel lets it; the reference knows no short way."""

    def _acquire(self, now: int, pick: int, *, names: tuple[str, ...], nested: bool, **rest: Any) -> None:
        plain = not (nested or rest["key"] or rest["owner"] or rest["lease_ms"])
        if plain and all(map(self._known, names)):
            permit = self.kernel.take(self.kernel.claims(names), now)
            if permit is not None:
                unasked = {"key": None, "owner": None, "parent": None, "priority": 0, "since": None}
                unasked |= {"deadline": None, "lease": None, "wait": True}
                self.permits.append((permit, self.reference.acquire(names, now, **unasked)))
                assert permit.fence == self.permits[-1][1].fence
                self.reached["taken"] += 1
                return
        super()._acquire(now, pick, names=names, nested=nested, **rest)

    def _release(self, now: int, pick: int, *, outcome: int, again: bool) -> None:
        among = self.ended if again else self.permits
        if among:
            mine, theirs = among[pick % len(among)]
            if self.kernel.give_back(mine):
                assert self.reference.release(theirs, now, outcome)
                self.reached["given back"] += 1
                return
        super()._release(now, pick, outcome=outcome, again=again)


WALKS: dict[str, tuple[Callable[..., Iterator[Step]], type[Pair]]] = {
    "open": (random_steps, Pair),
    "crowded": (crowded_steps, Pair),
    "short": (random_steps, ShortWay),
    "nested": (nested_steps, Pair),
    "flood": (flood_steps, Pair),
}
REACHED = EVERYTHING | {"taken", "given back"}


def hunt(kind: str, seed: int, steps: int) -> tuple[int, Counter[str]]:
    """Walk one world: how many operations, what was reached. A difference says how to see it again."""
    walk, machines = WALKS[kind]
    pair, number = machines(), 0
    for number, step in enumerate(walk(seed, steps), start=1):
        try:
            pair.carry_out(step)
        except Exception as difference:
            raise AssertionError(
                f"seed {seed} of the {kind} walk differs at step {number}, {step.operation}: {difference!r}\n"
                f"kernel: {pair.kernel!r}\n"
                f"replay: PYTHONPATH=tests python -m core.test_differential {kind} {seed} {steps}"
            ) from difference
    return number, pair.reached


def hunt_all(worlds: list[tuple[str, int, int]]) -> tuple[int, Counter[str]]:
    walked, reached = 0, Counter[str]()
    for kind, seed, steps in worlds:
        count, found = hunt(kind, seed, steps)
        walked += count
        reached += found
    return walked, reached


@pytest.mark.parametrize("part", [0, 1, 2])
def test_the_kernel_agrees_with_the_plain_walk(part: int) -> None:
    """Whatever is done, the fast kernel and the plain walk of the rules say and keep the same."""
    seeds = range(1000 * part, 1000 * part + 100)
    worlds = [("open", seed, 800 if seed % 10 == 0 else 100) for seed in seeds]
    worlds += [("crowded", seed, 400) for seed in seeds[:16]]
    worlds += [("short", seed, 200) for seed in seeds[:20]]
    worlds += [("nested", seed, 300) for seed in seeds[:20]]
    worlds += [("flood", seed, 440) for seed in seeds[:2]]
    walked, reached = hunt_all(worlds)
    assert walked >= 20_000
    assert REACHED - set(reached) == set()


@pytest.mark.deep
@pytest.mark.parametrize("part", range(8))
def test_the_kernel_agrees_with_the_plain_walk_for_long(part: int) -> None:
    """The same over a million operations and more, in worlds small and large."""
    first = 1_000_000 * (part + 1)
    worlds = [("open", seed, 100) for seed in range(first, first + 400)]
    worlds += [("open", seed, 4_000) for seed in range(first, first + 12)]
    worlds += [("crowded", seed, 400) for seed in range(first, first + 120)]
    worlds += [("short", seed, 500) for seed in range(first, first + 60)]
    worlds += [("nested", seed, 500) for seed in range(first, first + 60)]
    worlds += [("flood", seed, 1_000) for seed in range(first, first + 3)]
    walked, reached = hunt_all(worlds)
    assert walked >= 125_000
    assert REACHED - set(reached) == set()


def test_the_same_seed_is_the_same_walk() -> None:
    """A failing seed can be replayed: its walk depends on nothing but the seed."""
    for steps, _ in WALKS.values():
        assert list(steps(7, 300)) == list(steps(7, 300))
        assert list(steps(7, 300)) != list(steps(8, 300))


SHORT = st.integers(min_value=0, max_value=4)
NAME = st.sampled_from("ab")
NAMES = st.lists(NAME, min_size=1, max_size=3).map(tuple)
OWNER = st.sampled_from("op")
SELDOM = st.sampled_from((False, False, False, True))
LIMIT = st.fixed_dictionaries(
    {
        "capacity": st.sampled_from((1, 2, 3, None)),
        "cooldown_ms": st.sampled_from(((0, 0, 0), (0, 0, 0), (2, 0, 3))),
        "queue_max": st.sampled_from((None, None, None, 1, 0)),
        "gated": SELDOM,
    }
)


class SideBySide(RuleBasedStateMachine):
    """Both machines under operations that Hypothesis makes up, and shrinks.

    Every rule is equally likely, so what matters most has rules of its own and the rest shares some.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair()
        self.now_ms = 0

    def both(self, operation: str, pick: int = 0, **arguments: Any) -> None:
        self.pair.carry_out(Step(operation, self.now_ms, pick, arguments))

    def ask(self, pick: int = 0, **asked: Any) -> None:
        unasked = {"key": None, "owner": None, "nested": False, "priority": 0, "wait": True, **PLAIN}
        self.both("acquire", pick, **(unasked | asked))

    @initialize(a=LIMIT, b=LIMIT)
    def begin(self, **limits: dict[str, Any]) -> None:
        for name, limit in limits.items():
            self.both("configure", name=name, **limit)

    @rule(names=NAMES)
    def acquire(self, names: tuple[str, ...]) -> None:
        self.ask(names=names)

    @rule(names=NAMES, before_ms=SHORT, priority=st.integers(min_value=-1, max_value=1), wait=st.booleans())
    def acquire_in_order(self, before_ms: int, **asked: Any) -> None:
        self.ask(since_ms=self.now_ms + 1 - before_ms, **asked)

    @rule(
        names=NAMES, key=st.none() | st.sampled_from("kl"), owner=st.none() | OWNER, pick=SHORT, nested=SELDOM
    )
    def acquire_as_somebody(self, **asked: Any) -> None:
        self.ask(**asked)

    @rule(names=NAMES, timeout_ms=st.none() | SHORT, lease_ms=st.none() | SHORT)
    def acquire_for_a_time(self, timeout_ms: int | None, **asked: Any) -> None:
        deadline_ms = None if timeout_ms is None else self.now_ms + timeout_ms
        self.ask(deadline_ms=deadline_ms, **asked)

    @precondition(lambda self: self.pair.permits)
    @rule(pick=SHORT)
    def release(self, pick: int) -> None:
        self.both("release", pick, outcome=0, again=False)

    @precondition(lambda self: self.pair.permits)
    @rule(pick=SHORT, outcome=st.integers(min_value=0, max_value=2), again=st.booleans())
    def release_by_outcome(self, pick: int, **arguments: Any) -> None:
        self.both("release", pick, **arguments)

    @precondition(lambda self: self.pair.permits)
    @rule(pick=SHORT, stale=st.booleans(), lease_ms=st.none() | SHORT)
    def renew_or_revoke(self, pick: int, stale: bool, lease_ms: int | None) -> None:
        if lease_ms is None:
            self.both("revoke", pick)
        else:
            self.both("renew", pick, stale=stale, lease_ms=lease_ms)

    @precondition(lambda self: self.pair.waiters)
    @rule(pick=SHORT)
    def withdraw(self, pick: int) -> None:
        self.both("withdraw", pick)

    @rule(passed_ms=SHORT)
    def tick(self, passed_ms: int) -> None:
        self.now_ms += passed_ms
        self.both("tick")

    @rule(name=NAME, limit=LIMIT)
    def configure(self, name: str, limit: dict[str, Any]) -> None:
        self.both("configure", name=name, **limit)

    @rule(name=NAME, ahead_ms=st.none() | SHORT)
    def pause_or_resume(self, name: str, ahead_ms: int | None) -> None:
        if ahead_ms is None:
            self.both("resume", name=name)
        else:
            self.both("pause", name=name, until_ms=self.now_ms + ahead_ms)

    @rule(name=NAME, count=SHORT, fresh_ms=st.none() | SHORT)
    def admit(self, name: str, count: int, fresh_ms: int | None) -> None:
        fresh_until_ms = None if fresh_ms is None else self.now_ms + fresh_ms
        self.both("admit", name=name, count=count, fresh_until_ms=fresh_until_ms)

    @rule(name=st.none() | NAME, owner=OWNER)
    def remove_or_end_an_owner(self, name: str | None, owner: str) -> None:
        if name is None:
            self.both("release_owner", owner=owner)
        else:
            self.both("remove", name=name)


UNTIMED = settings(
    deadline=None,
    derandomize=True,
    phases=(Phase.generate, Phase.shrink),
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow],
)


def test_made_up_operations_agree() -> None:
    """The same, over operations that shrink: a difference is shown as the few that it takes."""
    modest = settings(UNTIMED, max_examples=150, stateful_step_count=40)
    run_state_machine_as_test(SideBySide, settings=modest)


@pytest.mark.deep
def test_made_up_operations_agree_for_long() -> None:
    """The same with many and longer ones."""
    large = settings(UNTIMED, max_examples=3_000, stateful_step_count=100)
    run_state_machine_as_test(SideBySide, settings=large)


if __name__ == "__main__":
    _, kind, seed, steps = sys.argv
    print(f"{hunt(kind, int(seed), int(steps))[0]} operations agree")
