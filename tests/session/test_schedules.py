"""No schedule of a few clients breaks the session server: whatever is cancelled wherever, nothing is lost."""

from __future__ import annotations

import pytest

from schedules import explore
from session.serving import SERVING


@pytest.mark.parametrize("name", SERVING)
def test_no_schedule_breaks_it(name: str) -> None:
    """Nothing leaks, no run is forgotten, none ends twice, and they start in their order."""
    report = explore(SERVING[name], limit=1_500)
    assert report.failure is None, report


@pytest.mark.deep
@pytest.mark.parametrize("name", SERVING)
def test_no_schedule_of_many_breaks_it(name: str) -> None:
    """The same, for long."""
    report = explore(SERVING[name], limit=200_000)
    assert report.failure is None, report
