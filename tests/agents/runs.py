"""A run for the tests of agents: what `RunContext` offers, over a list instead of a store."""

from __future__ import annotations

import asyncio
from typing import Any

from interlock.clock import SystemClock
from interlock.errors import RunCancelled
from interlock.session.values import check_emitted, plain_object


class Recorder:
    """One run; ``events`` is all that its agent has emitted, ``used`` the tokens that it has counted."""

    def __init__(
        self, given: Any = None, *, governor: Any = None, gate: Any = None, clock: Any = None
    ) -> None:
        self.session_id, self.run_id, self.attempt = "s1", "r1", 1
        self.input = given
        self.metadata: dict[str, Any] = {}
        self.clock = clock or SystemClock()
        self.submitted_at = self.clock.now()
        self.governor = governor
        self.gate = gate
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.used = {"input_tokens": 0, "output_tokens": 0}
        self.cancelled = False
        self.slowness: float | None = None
        """Seconds that an emit takes."""
        self._going = asyncio.Event()
        self._going.set()

    @property
    def paused(self) -> bool:
        return not self._going.is_set()

    def pause(self) -> None:
        self._going.clear()

    def resume(self) -> None:
        self._going.set()

    async def emit(self, type_: str, data: Any = None, *, metadata: Any = None) -> int:
        self.events.append((check_emitted(type_), plain_object("data", data)))
        if self.slowness is not None:
            await asyncio.sleep(self.slowness)
        return len(self.events)

    async def checkpoint(self) -> None:
        await self._going.wait()
        if self.cancelled:
            raise RunCancelled("it was cancelled")

    def usage(self, input_tokens: int = 0, output_tokens: int = 0) -> None:
        self.used["input_tokens"] += input_tokens
        self.used["output_tokens"] += output_tokens

    # -- reading

    def of(self, *types: str) -> list[dict[str, Any]]:
        """The data of all events of these types."""
        return [data for type_, data in self.events if type_ in types]

    @property
    def types(self) -> list[str]:
        return [type_ for type_, _ in self.events]

    @property
    def streamed(self) -> str:
        return "".join(data["content"] for data in self.of("message_streamed"))
