"""What a provider gate remembers over a restart, one record a provider, written in the order it happened."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from interlock.core.headroom import Headroom
from interlock.errors import InterlockError, StoreError, Unavailable
from interlock.provider.signals import REASONS, Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from interlock.ports import Clock, Settings

log = logging.getLogger(__name__)

PREFIX = "provider:"


@dataclass(frozen=True, slots=True)
class CooldownSetting:
    """Seconds that a slot stays taken after its release; None: as after success."""

    success: float
    cancelled: float | None = None
    failed: float | None = None


class ProviderRecord(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """One provider's settings as they are stored."""

    limit: int | None = None
    effective: int | None = None
    reduced_from: int | None = None
    reason: str | None = None
    removed: bool = False
    cooldown: float | None = None
    cooldown_cancelled: float | None = None
    cooldown_failed: float | None = None

    @property
    def operator_limit(self) -> int | None:
        """What `set_limit` said; a number that it would have refused was never said."""
        return None if self.limit is None or self.limit < 1 else self.limit

    def headroom(self, preset: int | None) -> Headroom | None:
        """The limits, if they make sense together. *preset* is the configuration file's limit: it counts
        where the operator set none, and a reduction of another limit than it is void."""
        if self.removed:
            return Headroom()
        limit = preset if self.operator_limit is None else self.operator_limit
        if limit is None:
            return None
        known = self.operator_limit is not None or self.reduced_from == limit
        if known and self.effective is not None and 1 <= self.effective < limit:
            first = self.reduced_from or limit
            return Headroom(limit, self.effective, first if self.effective < first <= limit else limit)
        return Headroom(limit, limit)

    def known_reason(self) -> Reason | None:
        return next((reason for reason in REASONS if reason == self.reason), None)

    def cooldown_setting(self) -> CooldownSetting | None:
        given = (self.cooldown, self.cooldown_cancelled, self.cooldown_failed)
        if self.cooldown is None or not all(0 <= one <= 86_400 for one in given if one is not None):
            return None
        return CooldownSetting(self.cooldown, self.cooldown_cancelled, self.cooldown_failed)


class Shared:
    """Something that is done once, for all who wait for it, each for as long as it can."""

    def __init__(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._work = work
        self._task: asyncio.Task[None] | None = None

    async def wait(self, clock: Clock, until: float | None) -> bool:
        """False if *until* came first. Raises what the work raises; who comes then begins it again."""
        task, loop = self._task, asyncio.get_running_loop()
        if task is None or task.done() or task.get_loop() is not loop:
            task = self._task = loop.create_task(self._work())
        if not await ended(task, clock, until):
            return False
        if task.cancelled():
            raise Unavailable("the gate was closed while its settings were read")
        task.result()
        return True

    def close(self) -> None:
        """Stop it; those who wait get `Unavailable`."""
        if self._task is not None:
            self._task.cancel()


async def ended(task: asyncio.Task[Any], clock: Clock, until: float | None) -> bool:
    """Wait for *task*, whatever becomes of it; False if *until* (seconds since the epoch) came first."""
    over = asyncio.Event()

    def end(task: asyncio.Task[Any]) -> None:
        if not task.cancelled():
            task.exception()  # seen, also if nobody is left to raise it to
        over.set()

    task.add_done_callback(end)
    timer = None if until is None else clock.call_at(until, over.set)
    try:
        await over.wait()
    finally:
        if timer is not None:
            timer.cancel()
    return task.done()


class SettingsWriter:
    """Writes records from one task, the latest per provider; callers may wait for theirs to be durable."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._dirty: dict[str, tuple[ProviderRecord, list[asyncio.Future[None]]]] = {}
        self._in_hand: dict[str, tuple[ProviderRecord, list[asyncio.Future[None]]]] = {}
        self._task: asyncio.Task[None] | None = None

    async def load(self) -> dict[str, ProviderRecord]:
        """Every readable record; what cannot be read is logged and left as it is."""
        records = {}
        for key, text in (await self._settings.items(PREFIX)).items():
            try:
                records[key.removeprefix(PREFIX)] = msgspec.json.decode(text, type=ProviderRecord)
            except (msgspec.MsgspecError, ValueError):
                log.warning("setting %r is not a provider's record and was ignored", key)
        return records

    def note(self, provider_id: str, record: ProviderRecord) -> None:
        """Have *record* written soon."""
        _, waiting = self._dirty.get(provider_id, (record, []))
        self._dirty[provider_id] = record, waiting
        with suppress(RuntimeError):  # no loop yet: the next write takes it along, or the end
            self._go_on(asyncio.get_running_loop())

    def _go_on(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._task is None or self._task.get_loop() is not loop:
            self._task = loop.create_task(self._write())

    async def write(self, provider_id: str, record: ProviderRecord) -> None:
        """Return when *record*, or a later one of the same provider, is durable."""
        self.note(provider_id, record)
        written = asyncio.get_running_loop().create_future()
        self._dirty[provider_id][1].append(written)
        await written

    async def aclose(self, until: float) -> None:
        """Return when all that was noted is written. At *until* (seconds since the epoch) it gives up: who
        waits for a write then gets `StoreError`."""
        if self._dirty:
            self._go_on(asyncio.get_running_loop())
        while self._task is not None:
            if not await ended(self._task, self._clock, until):
                self._give_up()
                return

    def _give_up(self) -> None:
        assert self._task is not None
        self._task.cancel()
        unwritten = {**self._dirty, **self._in_hand}
        log.warning("settings were not written before the end: %s", ", ".join(map(repr, unwritten)))
        for provider_id, (_, waiting) in unwritten.items():
            error = StoreError(f"settings of {provider_id!r} were not written before the end")
            for written in waiting:
                if not written.done():
                    _settle(written, error)

    async def _write(self) -> None:
        task = asyncio.current_task()
        try:
            while self._dirty:
                provider_id = next(iter(self._dirty))
                record, waiting = self._dirty.pop(provider_id)
                self._in_hand = {provider_id: (record, waiting)}
                error = await self._write_one(provider_id, record)
                self._in_hand = {}
                for written in waiting:
                    if not written.done():
                        _settle(written, error)
        except asyncio.CancelledError:
            # Its loop ends in the middle of a write: the next one takes it along, unless there is a newer.
            self._dirty = {**self._in_hand, **self._dirty}
            raise
        finally:
            if self._task is task:
                self._task = None

    async def _write_one(self, provider_id: str, record: ProviderRecord) -> InterlockError | None:
        key = PREFIX + provider_id
        try:
            if record == ProviderRecord():
                await self._settings.delete(key)
            else:
                await self._settings.set(key, msgspec.json.encode(record).decode())
        except Exception as error:
            log.warning("settings of %r were not written: %r", provider_id, error)
            if isinstance(error, InterlockError):
                return error
            return StoreError(f"settings of {provider_id!r} were not written: {error}")
        return None


def _settle(written: asyncio.Future[Any], error: BaseException | None) -> None:
    if error is None:
        written.set_result(None)
    else:
        written.set_exception(error)
