"""Arguments as users give them, checked and turned into the kernel's whole milliseconds."""

from __future__ import annotations

from interlock.errors import ValidationError


def to_ms(seconds: float) -> int:
    """*seconds* in whole milliseconds."""
    # Binary floats: 0.35 * 1000 may be a hair under 350; a thousandth of a millisecond mends it.
    return int(seconds * 1000 + 0.001)


def duration_ms(what: str, seconds: float) -> int:
    """*seconds* in milliseconds; `ValidationError` names *what* is out of range."""
    if not 0 <= seconds <= 86_400:
        raise ValidationError(f"{what} is {seconds!r}; allowed are 0 to 86400 seconds")
    return to_ms(seconds)


def check_seconds(what: str, seconds: float | None) -> None:
    """`ValidationError` unless *seconds* is None or a number from 0 that a clock can reach."""
    if seconds is not None and not 0 <= seconds <= 1e11:
        raise ValidationError(f"{what} is {seconds!r}; allowed are None and seconds from 0")


def check_name(name: str) -> None:
    """`ValidationError` if *name* cannot be a limit's."""
    if not 0 < len(name) <= 200:
        raise ValidationError(f"a limit's name is {name!r}; allowed are 1 to 200 characters")


def check_capacity(name: str, capacity: int | None) -> None:
    """`ValidationError` unless *capacity* is a whole number from 1, or None."""
    whole = isinstance(capacity, int) and not isinstance(capacity, bool)
    if capacity is not None and not (whole and capacity >= 1):
        raise ValidationError(
            f"the capacity of {name!r} is {capacity!r}; allowed are whole numbers from 1, or None"
        )
