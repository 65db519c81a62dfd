"""On what terms a token is given: whose it is, how far to the front it goes, how much it may use."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from interlock.errors import ValidationError

if TYPE_CHECKING:
    from collections.abc import Collection

TENANT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
PRIORITIES: Final = (-1000, 1000)
MOST_PER_DAY: Final = 10**9


@dataclass(frozen=True, slots=True)
class Terms:
    """What a token may, beside its scopes; None is the default, which for budgets is no bound.

    *min_priority* is the smallest number it may ask for, by default 0, and any for an admin's. Budgets are
    for each day of UTC.
    """

    tenant: str | None = None
    min_priority: int | None = None
    requests_per_day: int | None = None
    permit_seconds_per_day: int | None = None

    def check(self, scopes: Collection[str]) -> None:
        """Raises `ValidationError` for what a token of these *scopes* cannot have."""
        admin = "admin" in scopes
        if self.tenant is not None:
            if not TENANT.fullmatch(self.tenant):
                raise ValidationError(
                    f"tenant: {self.tenant!r:.80} is not 1 to 64 letters, digits, '.', '_' and '-', "
                    "beginning with one of the first two"
                )
            if admin:
                raise ValidationError("tenant: an admin may do everything, also to what other tenants have")
        least, most = PRIORITIES
        if self.min_priority is not None:
            if admin:
                raise ValidationError("min-priority: an admin goes to any place in a line")
            if not least <= self.min_priority <= most:
                raise ValidationError(
                    f"min-priority: {self.min_priority} is not a whole number from {least} to {most}"
                )
        for name in ("requests_per_day", "permit_seconds_per_day"):
            budget = getattr(self, name)
            if budget is not None and not 1 <= budget <= MOST_PER_DAY:
                shown = name.replace("_", "-")
                raise ValidationError(f"{shown}: {budget} is not a whole number from 1 to {MOST_PER_DAY}")

    def least_priority(self, scopes: Collection[str]) -> int | None:
        """The smallest priority that may be asked for; None is any."""
        return None if "admin" in scopes else self.min_priority or 0
