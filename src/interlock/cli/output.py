"""What commands have in common in what they print."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from datetime import datetime
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console

Json = Annotated[bool, Parameter(name="--json", negative=())]
"""The switch of every command that prints: a JSON document instead of a table."""

_STEERS = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff]")
"""Control characters, those that turn the direction of writing, and halves of characters."""


def console() -> Console:
    """Standard output for tables of what others have named: nothing in it is taken for markup.

    Where nobody looks at it, lines are as long as they need to be for a program.
    """
    wide = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 200
    return Console(markup=False, highlight=False, emoji=False, width=wide)


def plain(text: str, keep: str = "") -> str:
    """*text* without what would steer a terminal or could not be written; *keep* stays as it is."""
    return _STEERS.sub(lambda one: one[0] if one[0] in keep else ascii(one[0])[1:-1], text)


def shown(value: Any) -> str:
    """A JSON value for people: text as it is, everything else as JSON, nothing of None."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return plain(text, keep="\n\t")


def ago(at_ms: float) -> str:
    """How long ago a moment was, given in milliseconds since the epoch."""
    return seconds(max(0.0, time.time() * 1000 - at_ms))


def seconds(ms: float) -> str:
    """A duration in milliseconds, for people."""
    if ms < 600_000:
        return f"{ms / 1000:.1f} s"
    minutes = round(ms / 60_000)
    return f"{minutes} min" if minutes < 180 else f"{minutes / 60:.0f} h"


def moment(at_ms: float) -> str:
    """A moment in milliseconds since the epoch as this place's time of day."""
    return datetime.fromtimestamp(at_ms / 1000).astimezone().strftime("%H:%M:%S")
