"""The library in Lua held against the kernel in Python: the same requests, the same answers and books.

Five kinds of walk. The *open* one does everything that can be said. In the *crowded* one nothing empties the
lines, so that patience runs out. In the *nested* one families wait for each other. In the *slow* one seconds
pass, so that clients fall silent. The *stormy* one loses the server, or all that it knew, now and then. In
all of them replies get lost, requests are overtaken, and the clock is set by an hour.
"""

from __future__ import annotations

import sys
from collections import Counter

import pytest

from admission.redis.differential import EVERYTHING, hunt
from admission.redis.servers import Namespace, valkey
from admission.redis.walks import STEPS


def hunt_all(namespace: Namespace, seeds: range, count: int) -> tuple[int, Counter[str]]:
    walked, reached = 0, Counter[str]()
    for seed in seeds:
        for kind in STEPS:
            operations, found = hunt(namespace, kind, seed, count)
            walked += operations
            reached += found
    return walked, reached


@pytest.mark.parametrize("part", [0, 1])
def test_lua_and_python_agree(namespace: Namespace, part: int) -> None:
    """Whatever is said, both answer the same and keep the same books, and the books are in order."""
    walked, reached = hunt_all(namespace, range(100 * part, 100 * part + 7), 320)
    assert walked >= 10_000
    assert EVERYTHING - RARE - set(reached) == set()


RARE = {
    "quarantine extended",
    "resumed in quarantine",
    "silent one's grant given back",
    "silent one's wait withdrawn",
    "told refused lost",
}
"""Reached by the long hunt only, with certainty."""


@pytest.mark.deep
@pytest.mark.parametrize("part", range(8))
def test_lua_and_python_agree_for_long(namespace: Namespace, part: int) -> None:
    """The same over a million operations and more."""
    first = 1_000_000 * (part + 1)
    walked, reached = hunt_all(namespace, range(first, first + 70), 400)
    assert walked >= 125_000
    assert EVERYTHING - set(reached) == set()


if __name__ == "__main__":
    _, kind, seed, count = sys.argv
    with valkey() as connection:
        print(f"{hunt(Namespace(connection, 'replay'), kind, int(seed), int(count))[0]} operations agree")
