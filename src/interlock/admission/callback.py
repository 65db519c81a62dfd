"""Calling back into what users gave us."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)


def call_back(callback: Callable[..., object], *arguments: object) -> None:
    """Call what a user gave us; what it raises is logged and harms nothing."""
    try:
        callback(*arguments)
    except Exception:
        log.exception("a callback raised: %r", callback)
