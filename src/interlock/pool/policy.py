"""The numbers by which a pool works."""

from __future__ import annotations

from dataclasses import dataclass

from interlock.admission.validation import to_ms
from interlock.errors import ValidationError


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolPolicy:
    """All in seconds, except for the two sizes; what each means says `AgentPool`."""

    size: int
    max_overflow: int
    max_idle: float | None
    max_lifetime: float | None
    leak_after: float | None
    start_timeout: float
    reset_timeout: float
    check_timeout: float
    close_timeout: float
    retry_delay: float
    retry_max: float

    def __post_init__(self) -> None:
        for name, least in (("size", 1), ("max_overflow", 0)):
            number = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, int) or number < least:
                raise ValidationError(f"{name} is {number!r}; allowed are whole numbers from {least}")
        for name in ("max_idle", "max_lifetime", "leak_after"):
            seconds = getattr(self, name)
            if seconds is not None and not 0 < seconds <= 1e9:
                raise ValidationError(f"{name} is {seconds!r}; allowed are None and seconds above 0")
        for name in (
            "start_timeout",
            "reset_timeout",
            "check_timeout",
            "close_timeout",
            "retry_delay",
            "retry_max",
        ):
            seconds = getattr(self, name)
            if seconds is None or not 0 < seconds <= 86_400:
                raise ValidationError(f"{name} is {seconds!r}; allowed are seconds above 0, up to 86400")

    @property
    def most(self) -> int:
        """How many agents there may be at once."""
        return self.size + self.max_overflow

    @property
    def max_idle_ms(self) -> int | None:
        return None if self.max_idle is None else to_ms(self.max_idle)

    @property
    def max_lifetime_ms(self) -> int | None:
        return None if self.max_lifetime is None else to_ms(self.max_lifetime)

    def retry_after(self, failures: int) -> float:
        """How long to wait after so many failed starts in a row."""
        return float(min(self.retry_max, self.retry_delay * 2.0 ** min(failures - 1, 60)))
