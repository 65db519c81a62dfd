"""One suite for everything that calls itself a `Store`: in memory, in SQLite, and elsewhere.

In the test file of a store stands no more than

    @pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
    async def test_it_conforms(case: Case) -> None:
        async with an_empty_store() as store:
            await run(case, store)

New semantics are written here first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from interlock.testing import store_conformance_log, store_conformance_runs, store_conformance_sessions
from interlock.testing.store_conformance_scene import CASES as _CASES
from interlock.testing.store_conformance_scene import Case, Scene

if TYPE_CHECKING:
    from typing import Final

    from interlock.ports import Store

CASES: Final[tuple[Case, ...]] = tuple(_CASES)
"""Every case, in the order of their parts."""

_PARTS = (store_conformance_log, store_conformance_runs, store_conformance_sessions)


async def run(case: Case, store: Store) -> None:
    """Play *case* on *store*, which has nothing in it; AssertionError says what is not as it should be."""
    await case.play(Scene(store))


__all__ = ["CASES", "Case", "Scene", "run"]
