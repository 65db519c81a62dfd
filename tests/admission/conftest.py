"""A clock that stands still, and an admission with three limits."""

from collections.abc import Iterator

import pytest

from interlock.admission.local import LocalAdmission
from interlock.testing import VirtualClock


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock(100.0)


@pytest.fixture
def admission(clock: VirtualClock) -> Iterator[LocalAdmission]:
    """Limits ``a`` of 1, ``b`` of 2 and ``free`` without one."""
    admission = LocalAdmission(clock=clock)
    admission.configure("a", 1)
    admission.configure("b", 2)
    admission.configure("free", None)
    yield admission
    for record in tuple(admission.kernel.live):  # of a test that failed: its permits shall not warn in others
        admission.kernel.release(record, 0)
