"""What each limit looked like over the last day: a few numbers for every bucket of time, kept over restarts.

The last hour is kept in buckets of ten seconds and the last day in buckets of a minute. Buckets are written
in blocks, one setting each, and only the blocks in hand are written again: a day takes 33 settings, whatever
happens in it. A bucket that is missing is one in which nobody looked: the server was not there.
"""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from interlock.ports import Clock, Settings

log = logging.getLogger(__name__)

PREFIX: Final = "history:"
WRITE_SECONDS: Final = 60.0
"""The blocks in hand are written at most so often; a crash loses no more than that."""
MOST_LIMITS: Final = 50
"""Limits that have a history; more are passed over."""
_WRITES_WITHIN: Final = 10.0
_STEP: Final = 1.25
"""Waits are counted in classes, each by so much longer than the one before: a median is as exact as that."""


class Resolution(NamedTuple):
    """Buckets of ``step`` seconds, kept for ``span`` seconds, written in blocks of ``block`` seconds."""

    step: int
    span: int
    block: int


FINE: Final = Resolution(10, 3_600, 600)
COARSE: Final = Resolution(60, 86_400, 3_600)


class Reading(NamedTuple):
    """One limit at one moment; *longest* is for how many seconds somebody waits already."""

    capacity: int | None
    in_flight: int
    waiting: int
    longest: float = 0.0


class Row(msgspec.Struct, array_like=True):
    """One limit in one bucket: the most that was in flight, that waited, and how long waits were."""

    in_flight: int = 0
    waiting: int = 0
    waited: int = 0
    median_ms: int = 0
    longest_ms: int = 0
    refusals: int = 0
    capacity: int | None = None


Block = dict[str, dict[int, Row]]
"""Rows by limit and by the start of their bucket, in seconds since the epoch."""
_block = msgspec.json.Decoder(Block)


class Series(NamedTuple):
    """The buckets of one limit, oldest first; *at* are their starts in seconds since the epoch."""

    step: int
    at: list[int]
    rows: list[Row]


class _Shelf:
    """The blocks of one resolution, and the bucket in hand."""

    def __init__(self, kept: Resolution) -> None:
        self.kept = kept
        self.blocks: dict[int, Block] = {}
        self.dirty: set[int] = set()
        self._waits: dict[str, dict[int, int]] = {}
        """What waited in the bucket in hand, by limit and class."""
        self._bucket = 0
        self._unsettled: dict[str, Row] = {}

    def row(self, name: str, now: float) -> Row | None:
        """The row of the bucket in hand; None if there are too many limits."""
        bucket = int(now) // self.kept.step * self.kept.step
        if bucket != self._bucket:
            self.settle()
            self._bucket = bucket
            self._waits.clear()
        start = bucket // self.kept.block * self.kept.block
        block = self.blocks.setdefault(start, {})
        if name not in block and len(block) >= MOST_LIMITS:
            return None
        self.dirty.add(start)
        return block.setdefault(name, {}).setdefault(bucket, Row())

    def waited(self, name: str, now: float, seconds: float) -> None:
        row = self.row(name, now)
        if row is None:
            return
        classes = self._waits.get(name)
        if classes is None:  # what was counted before a restart counts as its median
            classes = self._waits[name] = {_class(row.median_ms): row.waited} if row.waited else {}
        found = _class(seconds * 1000)
        classes[found] = classes.get(found, 0) + 1
        row.waited += 1
        row.longest_ms = max(row.longest_ms, round(seconds * 1000))
        self._unsettled[name] = row

    def settle(self) -> None:
        """Work out the medians of what has waited since the last time."""
        for name, row in self._unsettled.items():
            row.median_ms = min(_median_ms(self._waits[name]), row.longest_ms)
        self._unsettled.clear()

    def forget(self, now: float) -> list[int]:
        """Drop the blocks that are over; which."""
        old = [start for start in self.blocks if start + self.kept.block <= now - self.kept.span]
        for start in old:
            del self.blocks[start]
            self.dirty.discard(start)
        return old

    def key(self, start: int) -> str:
        return f"{PREFIX}{self.kept.step}:{start}"


class History:
    """The history of every limit that is sampled, kept in *settings*."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._shelves = (_Shelf(FINE), _Shelf(COARSE))
        self._written = clock.now()
        self._task: asyncio.Task[None] | None = None

    async def load(self) -> None:
        """Read what was kept. What cannot be read is passed over."""
        now = self._clock.now()
        for key, text in (await self._settings.items(PREFIX)).items():
            shelf, start = self._place(key)
            if shelf is None or start + shelf.kept.block <= now - shelf.kept.span:
                await self._settings.delete(key)
                continue
            try:
                shelf.blocks[start] = _block.decode(text)
            except (msgspec.MsgspecError, UnicodeError):
                log.warning("the history from %d on cannot be read and was passed over", start)

    # -- as it happens

    def sample(self, readings: Mapping[str, Reading]) -> None:
        """How things are now; every second or so. What is due is written."""
        now = self._clock.now()
        for shelf in self._shelves:
            for name, reading in readings.items():
                row = shelf.row(name, now)
                if row is not None:
                    row.capacity = reading.capacity
                    row.in_flight = max(row.in_flight, reading.in_flight)
                    row.waiting = max(row.waiting, reading.waiting)
                    row.longest_ms = max(row.longest_ms, round(reading.longest * 1000))
            shelf.settle()
        if now - self._written >= WRITE_SECONDS and self._task is None:
            self._written = now
            self._task = asyncio.get_running_loop().create_task(self._write())

    def waited(self, name: str, seconds: float) -> None:
        """Somebody who needed the limit *name* has waited so long, however it ended."""
        now = self._clock.now()
        for shelf in self._shelves:
            shelf.waited(name, now, seconds)

    def refused(self, name: str, count: int) -> None:
        """The provider behind the limit *name* said "too much" so often."""
        now = self._clock.now()
        for shelf in self._shelves:
            row = shelf.row(name, now)
            if row is not None:
                row.refusals += count

    # -- readings

    def now(self) -> float:
        """The moment, in seconds since the epoch."""
        return self._clock.now()

    def names(self) -> list[str]:
        """The limits that have a history."""
        return sorted({name for shelf in self._shelves for block in shelf.blocks.values() for name in block})

    def series(self, name: str, since: float) -> Series:
        """The buckets of the limit *name* that end after *since*: fine ones, if they reach so far back."""
        fine, coarse = self._shelves
        shelf = fine if since >= self._clock.now() - fine.kept.span - fine.kept.step else coarse
        step = shelf.kept.step
        shelf.settle()
        found = {
            bucket: row
            for _, block in sorted(shelf.blocks.items())
            for bucket, row in block.get(name, {}).items()
            if bucket + step > since
        }
        return Series(step, list(found), list(found.values()))

    async def aclose(self) -> None:
        """Write what is not written yet; what a store that hangs does not take within 10 seconds is lost."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._write())
        await asyncio.wait({self._task}, timeout=_WRITES_WITHIN)
        if self._task is not None:
            self._task.cancel()

    # -- inside

    async def _write(self) -> None:
        now = self._clock.now()
        try:
            for shelf in self._shelves:
                shelf.settle()
                for start in shelf.forget(now):
                    await self._settings.delete(shelf.key(start))
                for start in sorted(shelf.dirty):
                    shelf.dirty.discard(start)
                    text = msgspec.json.encode(shelf.blocks[start]).decode()
                    await self._settings.set(shelf.key(start), text)
        except Exception as error:
            log.warning("the history is not written: %r", error)
        finally:
            self._task = None

    def _place(self, key: str) -> tuple[_Shelf | None, int]:
        """The shelf and the block that *key* stands for."""
        step, _, start = key.removeprefix(PREFIX).partition(":")
        if not (start.isascii() and start.isdecimal() and len(start) < 13):
            return None, 0
        return next((one for one in self._shelves if str(one.kept.step) == step), None), int(start)


def _class(ms: float) -> int:
    return math.ceil(math.log(max(ms, 1.0), _STEP))


def _median_ms(classes: Mapping[int, int]) -> int:
    half, seen = sum(classes.values()) / 2, 0
    for one in sorted(classes):
        seen += classes[one]
        if seen >= half:
            return round(_STEP**one)
    return 0
