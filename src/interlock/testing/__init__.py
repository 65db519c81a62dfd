"""What users of Interlock test with, and Interlock itself: virtual time, seeded walks, a mock provider."""

from __future__ import annotations

from interlock.testing.virtual_time import VirtualClock, idle
from interlock.testing.walk import Step, random_steps

__all__ = [
    "Step",
    "VirtualClock",
    "idle",
    "random_steps",
]  # the provider needs interlock[http]: import it from its module
