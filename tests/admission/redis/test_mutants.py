"""The differential walk itself is tested: every library that is broken on purpose has to be found out."""

from __future__ import annotations

import pytest
import redis

from admission.redis.differential import Differs, hunt
from admission.redis.mutants import MUTANTS, ONLY_IN, mutant
from admission.redis.servers import Namespace
from admission.redis.walks import STEPS

MOST_OPERATIONS = 20_000
KINDS = tuple(STEPS)


@pytest.mark.parametrize("name", MUTANTS)
def test_every_fault_is_found_out(server: redis.Redis, name: str) -> None:
    """A library with one fault differs from the kernel before so many operations are over."""
    library = mutant(name)
    namespace = Namespace(server, "mutant", library)
    try:
        walked = operations_until_caught(namespace, ONLY_IN.get(name, KINDS))
        assert walked < MOST_OPERATIONS
    finally:
        server.function_delete(library.name)
        namespace.empty()


def test_the_library_as_it_is_is_not(namespace: Namespace) -> None:
    """What the faults are found out by is no difference of the library itself."""
    assert operations_until_caught(namespace, KINDS, 6_000) >= 6_000


def operations_until_caught(namespace: Namespace, kinds: tuple[str, ...], most: int = MOST_OPERATIONS) -> int:
    walked = 0
    for seed in range(500, 1_000):
        for kind in kinds:
            try:
                walked += hunt(namespace, kind, seed, 200)[0]
            except Differs:
                return walked
            if walked >= most:
                return walked
    return walked
