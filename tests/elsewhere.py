"""An admission that is not in this process, as far as its users can tell: every awaited method takes a turn.

What it decides is a `LocalAdmission`'s, ``inside``.
"""

from __future__ import annotations

import asyncio
from typing import Any

from interlock.admission.local import LocalAdmission
from interlock.errors import InvalidOperation


class Elsewhere:
    """The `Admission` protocol over a connection that is always there."""

    def __init__(self, inside: LocalAdmission) -> None:
        self.inside = inside
        self.clock = inside.clock
        self.acquire = inside.acquire
        self.limits = inside.limits
        self.waiting = inside.waiting
        self.holders = inside.holders
        self.explain = inside.explain
        self.snapshot = inside.snapshot
        self.release_key = inside.release_key
        self.renew = inside.renew

    def try_acquire(self, *names: str, **asked: Any) -> Any:
        raise InvalidOperation("not in process: use acquire(timeout=0)")

    async def set_limit(self, name: str, capacity: int | None, *, cooldown: float = 0.0) -> None:
        await asyncio.sleep(0)
        await self.inside.set_limit(name, capacity, cooldown=cooldown)

    async def remove_limit(self, name: str) -> None:
        await asyncio.sleep(0)
        await self.inside.remove_limit(name)

    async def release_owner(self, owner: str) -> int:
        released = await self.inside.release_owner(owner)
        await asyncio.sleep(0)
        return released

    async def refresh(self) -> None:
        await asyncio.sleep(0)

    async def aclose(self) -> None:
        await self.inside.aclose()
