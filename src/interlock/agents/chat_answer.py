"""A model's answer while it comes in, and the events of its stream. Any bytes are read, nothing is raised but
`ProviderFailed` for what is too long."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from interlock.errors import ProviderFailed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from interlock.ports import Clock

ENOUGH: Final = 1024
"""Characters that are shown at once; fewer wait for more…"""
SPELL: Final = 0.05
"""…but not longer than so many seconds."""
_PIECE_MOST: Final = 64 * 1024
_ANSWER_MOST: Final = 4 << 20
EVENT_MOST: Final = 8 << 20
"""Bytes of one event, or of an answer in one piece."""
_CALLS_MOST: Final = 128
_BLOCKS_MOST: Final = 1000


@dataclass(slots=True)
class ToolCall:
    """A tool that the model wants to be called, with arguments as JSON, should it have said so properly."""

    id: str = ""
    name: str = ""
    pieces: list[str] = field(default_factory=list)

    @property
    def arguments(self) -> str:
        return "".join(self.pieces)


@dataclass(frozen=True, slots=True)
class Problem:
    """What the provider says went wrong, in the middle of a stream: as a status, and its own words."""

    status: int
    body: bytes


class Answer:
    """One answer: filled by a dialect as its events come in, shown in pieces by `fresh`."""

    def __init__(self) -> None:
        self.stop_reason = ""
        """In the words of OpenAI where there is one: stop, length, tool_calls, content_filter."""
        self.input_tokens = 0
        self.output_tokens = 0
        self.whole = False
        """The provider said that this was all."""
        self.problem: Problem | None = None
        self.calls: list[ToolCall] = []
        self.numbered: dict[int, ToolCall] = {}
        """The calls that come in pieces, by the number that the provider gave them last."""
        self.blocks: dict[int, dict[str, Any]] = {}
        """Parts by their number, for a dialect that has such."""
        self._texts: list[str] = []
        self._size = 0
        self._shown = 0
        """How many of the texts have been shown."""
        self._fresh = 0
        self._closed = False
        self._wanted = 1
        self._waiter: asyncio.Future[None] | None = None

    @property
    def text(self) -> str:
        return "".join(self._texts)

    @property
    def begun(self) -> bool:
        """Whether there is any of it: from then on, asking again would say things twice."""
        return self._size > 0 or bool(self.calls) or bool(self.blocks)

    # -- filling

    def add(self, text: str) -> None:
        """The next piece of its text."""
        if text:
            self.grow(len(text))
            self._texts.append(text)
            self._fresh += len(text)
            if self._fresh >= self._wanted:
                self._wake()

    def call(self) -> ToolCall:
        """One more tool call, empty; beyond a number that no model needs, one that is forgotten."""
        one = ToolCall()
        if len(self.calls) < _CALLS_MOST:
            self.calls.append(one)
        return one

    def block(self, number: int, block: dict[str, Any]) -> None:
        """One more part."""
        self.grow(1)
        if len(self.blocks) < _BLOCKS_MOST:
            self.blocks[number] = block

    def grow(self, size: int) -> None:
        """Count *size* characters that are kept."""
        self._size += size
        if self._size > _ANSWER_MOST:
            raise ProviderFailed(
                f"the answer has more than {_ANSWER_MOST} characters, the most that is taken"
            )

    def close(self) -> None:
        """Nothing more will come."""
        self._closed = True
        self._wake()

    # -- showing

    async def fresh(self, clock: Clock) -> list[str]:
        """What came since the last time, in pieces that are fit for events; empty once all was shown.

        It waits until there is enough of it, or a little while after the first of it.
        """
        await self._has(1)
        if self._fresh < ENOUGH and not self._closed:
            timer = clock.call_at(clock.now() + SPELL, self._wake)
            try:
                await self._has(ENOUGH, once=True)
            finally:
                timer.cancel()
        text = "".join(self._texts[self._shown :])
        self._shown, self._fresh = len(self._texts), 0
        return [text[start : start + _PIECE_MOST] for start in range(0, len(text), _PIECE_MOST)]

    async def _has(self, size: int, *, once: bool = False) -> None:
        self._wanted = size
        while self._fresh < size and not self._closed:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
            if once:
                return

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class EventStream:
    """Server-sent events out of the bytes of an answer: the data of each."""

    def __init__(self) -> None:
        self._left = bytearray()
        self._searched = 0
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The data of the events that *chunk* completes."""
        left = self._left
        left += chunk
        start = 0
        while (end := left.find(b"\n", max(start, self._searched))) >= 0:
            if (data := self._line(bytes(left[start:end]))) is not None:
                yield data
            start = end + 1
        del left[:start]
        self._searched = len(left)
        if self._size + len(left) > EVENT_MOST:
            raise ProviderFailed(f"it sent an event of more than {EVENT_MOST} bytes, the most that is taken")

    def rest(self) -> Iterator[bytes]:
        """The data of an event that nothing ends."""
        yield from self.feed(b"\n\n")

    def _line(self, line: bytes) -> bytes | None:
        line = line.rstrip(b"\r")
        if line.startswith(b"data:"):
            data = line[5:].removeprefix(b" ")
            self._data.append(data)
            self._size += len(data) + 1
        elif not line and self._data:
            event, self._data, self._size = b"\n".join(self._data), [], 0
            return event
        return None


def at(value: Any, *path: str) -> Any:
    """The member at *path* of nested objects; None if there is none."""
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def text_at(value: Any, *path: str) -> str:
    """The text at *path*, or an empty one."""
    found = at(value, *path)
    return found if isinstance(found, str) else ""


def objects_at(value: Any, *path: str) -> list[dict[str, Any]]:
    """The objects of the list at *path*."""
    found = at(value, *path)
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
