"""What is left of a limit as ``RateLimit`` and ``RateLimit-Policy`` fields (RFC 9651 structured fields).

The unit is ``concurrent-requests``: what counts is how many are held at a time, not how many come in a while.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

RawHeaders = list[tuple[bytes, bytes]]

_TEXT: Final = re.compile(r"[\x20-\x7e]{1,256}")
_LONGEST: Final = 1e9


RATE_LIMIT: Final = {
    "RateLimit": 'What is left of each limit: `"tools";r=3`.',
    "RateLimit-Policy": 'What each limit is: `"tools";q=8;qu="concurrent-requests"`.',
}
"""Both fields as the API's description has them."""


class Room(NamedTuple):
    """A limit of *quota* at a time: what *remains*, and for how many more seconds nothing does, if known."""

    name: str
    quota: int
    remains: int
    closed_for: float | None = None


def rate_limit_fields(rooms: Iterable[Room]) -> RawHeaders:
    """Both fields, an item for each limit; a name that no field can have is left out."""
    policies, states = [], []
    for room in rooms:
        if not _TEXT.fullmatch(room.name):
            continue
        name = '"' + room.name.replace("\\", "\\\\").replace('"', '\\"') + '"'
        policies.append(f'{name};q={room.quota};qu="concurrent-requests"')
        if room.closed_for is not None and room.closed_for > 0:
            states.append(f"{name};r=0;t={math.ceil(min(room.closed_for, _LONGEST))}")
        else:
            states.append(f"{name};r={max(room.remains, 0)}")
    if not policies:
        return []
    return [
        (b"ratelimit-policy", ", ".join(policies).encode()),
        (b"ratelimit", ", ".join(states).encode()),
    ]
