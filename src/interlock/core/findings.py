"""What an examination finds: how bad it is, what, by what it is told, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["ok", "warn", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. *remedy* is the next command to type, or what to change; else ""."""

    severity: Severity
    about: str
    what: str
    evidence: str = ""
    remedy: str = ""
