"""One suite for everything that calls itself an `Admission`, in process, through a server or through Redis.

An implementation joins with a `Harness`; in its test file stands no more than

    @pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
    async def test_it_conforms(case: Case) -> None:
        async with my_harness() as harness:
            await run(case, harness)

New semantics are written here first. The idea is that of River's ``riverdrivertest`` and of Oban's engine
tests.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from interlock.testing import conformance_identity, conformance_leaving, conformance_order
from interlock.testing.conformance_scene import CASES as _CASES
from interlock.testing.conformance_scene import Case, Harness, Scene

if TYPE_CHECKING:
    from typing import Final

CASES: Final[tuple[Case, ...]] = tuple(_CASES)
"""Every case, in the order of their rules."""

_PARTS = (conformance_order, conformance_identity, conformance_leaving)
_serial = itertools.count(1)


async def run(case: Case, harness: Harness) -> None:
    """Play *case* on a new admission of *harness*; AssertionError says what is not as it should be."""
    scene = Scene(harness, await harness.admission(), f"{case.name}-{next(_serial)}")
    try:
        await case.play(scene)
    finally:
        await scene.leave()


__all__ = ["CASES", "Case", "Harness", "Scene", "run"]
