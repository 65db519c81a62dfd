"""A store that forgets everything with its process: for tests and for trying things out."""

from __future__ import annotations

from typing import Self

from interlock.errors import Unavailable


class MemoryStore:
    """Settings in a dict. Nothing here waits, so every call is one step of the event loop."""

    def __init__(self) -> None:
        self._settings: dict[str, str] = {}
        self._closed = False

    async def get(self, key: str) -> str | None:
        """The value of *key*, or None."""
        self._check_open()
        return self._settings.get(key)

    async def set(self, key: str, value: str) -> None:
        """Write *value* under *key*, in place of what was there."""
        self._check_open()
        self._settings[key] = value

    async def delete(self, key: str) -> None:
        """Remove *key*, if there."""
        self._check_open()
        self._settings.pop(key, None)

    async def items(self, prefix: str = "") -> dict[str, str]:
        """Every entry whose key begins with *prefix*, in the order of the keys."""
        self._check_open()
        found = sorted(key for key in self._settings if key.startswith(prefix))
        return {key: self._settings[key] for key in found}

    async def aclose(self) -> None:
        """End the store; later calls raise :class:`Unavailable`. Closing again does nothing."""
        self._closed = True
        self._settings.clear()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("the store is closed")
