"""How one provider is treated, where the defaults do not fit it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from interlock.errors import ValidationError

Recovery = Literal["manual", "probe"]


@dataclass(frozen=True, slots=True)
class ProviderPolicy:
    """Times in seconds.

    ``default_cooldown`` follows a release unless `ProviderGate.set_cooldown` says otherwise;
    ``default_pause`` a 429 that names no time. A slot without progress for longer than ``slot_timeout``
    is taken back. Usage is asked again after ``usage_repoll`` while somebody waits, for at most
    ``usage_timeout``, and believed for ``usage_stale``; a call that was granted less than
    ``usage_settle`` before the question may still be on its way there and is counted besides the
    answer. ``recovery`` "probe" raises a cut limit by one after each ``recovery_window`` without a 429.
    """

    default_cooldown: float = 0.35
    default_pause: float = 30.0
    slot_timeout: float = 300.0
    usage_repoll: float = 1.0
    usage_timeout: float = 2.0
    usage_stale: float = 5.0
    usage_settle: float = 0.0
    recovery: Recovery = "manual"
    recovery_window: float = 30.0

    def __post_init__(self) -> None:
        for name in ("default_cooldown", "default_pause", "usage_settle"):
            if not 0 <= getattr(self, name) <= 86_400:
                raise ValidationError(f"{name} is {getattr(self, name)!r}; allowed are 0 to 86400 seconds")
        for name in ("slot_timeout", "usage_repoll", "usage_timeout", "usage_stale", "recovery_window"):
            if not 0 < getattr(self, name) <= 86_400:
                raise ValidationError(
                    f"{name} is {getattr(self, name)!r}; allowed are more than 0 to 86400 seconds"
                )
        if self.recovery not in ("manual", "probe"):
            raise ValidationError(f"recovery is {self.recovery!r}; allowed are 'manual' and 'probe'")


LONGEST_PAUSE: Final = 86_400.0
"""Seconds."""


def check_provider(provider_id: str) -> None:
    """`ValidationError` unless *provider_id* can be one."""
    if not 0 < len(provider_id) <= 128:
        raise ValidationError(f"a provider's id is {provider_id!r}; allowed are 1 to 128 characters")


def check_pause(seconds: float) -> None:
    """`ValidationError` unless a provider can be paused for so long."""
    if not 0 <= seconds <= LONGEST_PAUSE:
        raise ValidationError(f"seconds is {seconds!r}; allowed are 0 to {LONGEST_PAUSE:g}")


def check_cooldowns(cooldown: float | None, cancelled: float | None, failed: float | None) -> None:
    """`ValidationError` unless a provider can have these."""
    if cooldown is None and (cancelled is not None or failed is not None):
        raise ValidationError("cooldown is None, back to the default; cancelled and failed go with it")
    for name, seconds in (("cooldown", cooldown), ("cancelled", cancelled), ("failed", failed)):
        if seconds is not None and not 0 <= seconds <= 86_400:
            raise ValidationError(f"{name} is {seconds!r}; allowed are 0 to 86400 seconds")
