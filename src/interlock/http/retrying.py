"""When who was refused may come again: never all of them in the same moment."""

from __future__ import annotations

import math
from random import Random
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

RETRY_AFTER: Final = 1.0
"""Seconds after which what was refused for want of room, or of a server, may be tried again."""
SPREAD: Final = 0.2

CHANCE: Final = "interlock.chance"
"""Where the guard puts the source of randomness in the ASGI scope."""
_CHANCE: Final = Random()  # noqa: S311 - only to keep the refused apart


def spread(scope: Mapping[str, Any], seconds: float) -> float:
    """*seconds*, a fifth more or less."""
    return seconds * _chance(scope).uniform(1 - SPREAD, 1 + SPREAD)


def spread_after(scope: Mapping[str, Any], seconds: float) -> float:
    """*seconds*, up to a fifth more: for a wait whose end is known, before which it is of no use to come."""
    return seconds * _chance(scope).uniform(1, 1 + SPREAD)


def retry_fields(seconds: float) -> list[tuple[bytes, bytes]]:
    """When to come back, in whole seconds as HTTP has it and in milliseconds as the SDKs read it."""
    return [
        (b"retry-after", b"%d" % math.ceil(seconds)),
        (b"retry-after-ms", b"%d" % math.ceil(seconds * 1000)),
    ]


def _chance(scope: Mapping[str, Any]) -> Random:
    chance: Random = scope.get(CHANCE, _CHANCE)
    return chance
