"""A seeded random walk over the operations of the kernel: the same seed, the same walk.

Steps name permits and waiters by a random number that whoever carries them out takes modulo what is live,
so that one walk drives any implementation. The worlds are small on purpose (few limits, capacities of one to
four, times of a few milliseconds): there, everything meets everything.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

OPERATIONS: dict[str, int] = {
    "acquire": 34,
    "release": 22,
    "tick": 16,
    "withdraw": 5,
    "admit": 6,
    "configure": 4,
    "pause": 2,
    "resume": 2,
    "renew": 2,
    "lend": 3,
    "reclaim": 4,
    "adopt": 1,
    "release_owner": 2,
    "revoke": 1,
    "remove": 1,
}
"""How often each operation comes, relative to the others."""


class Step(NamedTuple):
    """One operation: ``pick`` chooses its subject among what is live, ``arguments`` say the rest."""

    operation: str
    now_ms: int
    pick: int
    arguments: dict[str, Any]


def random_steps(seed: int | str, count: int, *, names: str = "abcd") -> Iterator[Step]:
    """*count* steps of the walk that *seed* stands for, over limits called by the letters of *names*."""
    random = Random(seed)  # noqa: S311 - repeatable on purpose
    weighted = bool(random.randrange(2))
    calm = random.choice((1, 3, 10))
    now_ms = 0
    for name in names:
        yield Step("configure", now_ms, 0, _limit(random, name))
    operations = random.choices(list(OPERATIONS), list(OPERATIONS.values()), k=count - len(names))
    for operation in operations:
        if operation == "tick":
            now_ms += random.choice((0, 1, 1, 2, 3, 5, 8, 40))
        rare = operation in ("remove", "configure", "pause") and random.randrange(calm)
        operation = "acquire" if rare else operation
        arguments = _ARGUMENTS[operation](random, names, now_ms, weighted)
        yield Step(operation, now_ms, random.randrange(1 << 30), arguments)


def _limit(random: Random, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "capacity": random.choice((None, 1, 1, 2, 2, 3, 4)),
        "cooldown_ms": random.choice(((0, 0, 0), (0, 0, 0), (3, 0, 9), (2, 2, 2))),
        "queue_max": random.choice((None, None, None, 3, 6)),
        "gated": random.randrange(5) == 0,
    }


def _configure(random: Random, names: str, now_ms: int, weighted: bool) -> dict[str, Any]:
    return _limit(random, random.choice(names))


def _acquire(random: Random, names: str, now_ms: int, weighted: bool) -> dict[str, Any]:
    claimed = random.sample(names, random.choice((1, 1, 2, 2, 3)))
    if weighted and not random.randrange(4):
        claimed.append(random.choice(claimed))
    return {
        "names": tuple(claimed),
        "key": random.choice((None, None, f"k{random.randrange(40)}")),
        "owner": random.choice((None, None, f"o{random.randrange(5)}")),
        "nested": random.randrange(6) == 0,
        "priority": random.choice((0, 0, 0, 0, 1, -1)),
        "since_ms": random.choice((None, None, now_ms - random.randrange(20), now_ms + 5)),
        "deadline_ms": random.choice((None, now_ms + random.randrange(1, 60))),
        "lease_ms": random.choice((None, None, None, random.randrange(1, 30))),
        "wait": random.randrange(6) != 0,
    }


def _release(random: Random, names: str, now_ms: int, weighted: bool) -> dict[str, Any]:
    return {"outcome": random.randrange(3), "again": random.randrange(10) == 0}


def _named(random: Random, names: str, now_ms: int, weighted: bool) -> dict[str, Any]:
    return {"name": random.choice(names)}


def _pause(random: Random, names: str, now_ms: int, weighted: bool) -> dict[str, Any]:
    return {"name": random.choice(names), "until_ms": now_ms + random.randrange(-2, 15)}


def _admit(random: Random, names: str, now_ms: int, weighted: bool) -> dict[str, Any]:
    fresh_until_ms = random.choice((None, now_ms + random.randrange(1, 20)))
    return {
        "name": random.choice(names),
        "count": random.choice((-1, 0, 1, 1, 2, 3)),
        "fresh_until_ms": fresh_until_ms,
    }


def _renew(random: Random, names: str, now_ms: int, weighted: bool) -> dict[str, Any]:
    return {"stale": random.randrange(3) == 0, "lease_ms": random.randrange(1, 30)}


def _reclaim(random: Random, names: str, now_ms: int, weighted: bool) -> dict[str, Any]:
    return {"deadline_ms": random.choice((None, now_ms + random.randrange(1, 60)))}


def _adopt(random: Random, names: str, now_ms: int, weighted: bool) -> dict[str, Any]:
    return {
        "names": tuple(random.sample(names, random.choice((1, 2)))),
        "key": f"k{random.randrange(40)}",
        "ahead": random.choice((0, 1, 7)),
        "owner": random.choice((None, f"o{random.randrange(5)}")),
        "nested": random.randrange(4) == 0,
        "lease_ms": random.choice((None, random.randrange(1, 30))),
    }


def _owner(random: Random, names: str, now_ms: int, weighted: bool) -> dict[str, Any]:
    return {"owner": f"o{random.randrange(5)}"}


def _nothing(random: Random, names: str, now_ms: int, weighted: bool) -> dict[str, Any]:
    return {}


_ARGUMENTS = {
    "acquire": _acquire,
    "release": _release,
    "tick": _nothing,
    "withdraw": _nothing,
    "admit": _admit,
    "configure": _configure,
    "pause": _pause,
    "resume": _named,
    "renew": _renew,
    "lend": _nothing,
    "reclaim": _reclaim,
    "adopt": _adopt,
    "release_owner": _owner,
    "revoke": _nothing,
    "remove": _named,
}
