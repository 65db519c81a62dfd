"""The state of a running server as its stream of changes tells it."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import httpx2

from interlock.cli.sse import Message
from interlock.cli.stream import lasting, messages, not_ours

SECTIONS = ("limits", "providers", "pools", "sessions")

Rows = dict[str, dict[str, Any]]


class Fleet:
    """Every row that the server told of, and its time."""

    def __init__(self) -> None:
        self.rows: dict[str, Rows] = {section: {} for section in SECTIONS}
        self.at_ms = 0.0
        """The server's time when it told of the last change."""
        self._heard = time.monotonic()

    def take(self, event: str, document: dict[str, Any]) -> None:
        """Bring the rows up to date with an *event* of the stream."""
        if event == "snapshot":
            self.rows = {section: {} for section in SECTIONS}
        for section in SECTIONS:
            rows = self.rows[section]
            for name, row in document.get(section, {}).items():
                if row is None:
                    rows.pop(name, None)
                else:
                    rows[name] = row
        self.at_ms, self._heard = document["at"], time.monotonic()

    def now_ms(self) -> float:
        """The server's time now."""
        return self.at_ms + (time.monotonic() - self._heard) * 1000

    def document(self) -> dict[str, Any]:
        """All of it, as a snapshot is written."""
        return {"at": self.at_ms, **self.rows}


async def watch(url: str, say: Callable[[str], None]) -> AsyncGenerator[Fleet, None]:
    """The fleet, again and again the same object, each time it has changed; *say* is told of the connection.

    Raises `NoAnswer` if there was no connection at all, and `InterlockError` for what the server refuses.
    """
    fleet = Fleet()

    async def connect(http: httpx2.AsyncClient) -> AsyncGenerator[Fleet | None, None]:
        async with aclosing(messages(http, url, "/events")) as stream:
            async for message in stream:
                if message is not None:
                    fleet.take(message.type, _document(url, message))
                yield None if message is None else fleet

    async with aclosing(lasting(url, say, connect)) as stream:
        async for one in stream:
            yield one


def _document(url: str, message: Message) -> dict[str, Any]:
    try:
        document = json.loads(message.data)
    except (ValueError, RecursionError):
        raise not_ours(url) from None
    match message.type, document:
        case "snapshot" | "changes", {"at": int() | float()}:
            if all(isinstance(document.get(section, {}), dict) for section in SECTIONS):
                return dict(document)
    raise not_ours(url)
