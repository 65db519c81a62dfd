"""What a pool tells about itself: frozen values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class PoolStats:
    """A pool at one moment; ``overflow`` counts those of its agents that are beyond ``size``."""

    size: int
    available: int
    in_use: int
    overflow: int
    max_overflow: int
    waiting: int
    starting: int = field(default=0, compare=False)
    preparing: int = field(default=0, compare=False)
    """Being reset or checked."""
    closing: int = field(default=0, compare=False)
    failures: int = field(default=0, compare=False)
    """How many starts have failed in a row."""
    last_failure: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class AgentOut:
    """An agent that is out. Seconds and user are known where the pool has a ``leak_after``."""

    agent: Any
    overflow: bool
    seconds: float | None
    user: str | None
