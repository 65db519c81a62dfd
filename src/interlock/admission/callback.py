"""Calling back into what users gave us."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

log = logging.getLogger(__name__)


def call_back(callback: Callable[..., object], *arguments: object) -> None:
    """Call what a user gave us; what it raises is logged and harms nothing."""
    try:
        callback(*arguments)
    except Exception:
        log.exception("a callback raised: %r", callback)


def begin(watchers: Iterable[Callable[..., Callable[..., object]]], *subject: object) -> Callable[..., None]:
    """Tell *watchers* that something begins; what is given tells of its end what they gave for that."""
    ends: list[Callable[..., object]] = []
    for watcher in watchers:
        call_back(lambda watcher=watcher: ends.append(watcher(*subject)))

    def ended(*how: object) -> None:
        for end in ends:
            call_back(end, *how)

    return ended
