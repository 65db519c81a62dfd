"""What a provider gate remembers over a restart, one record a provider, written in the order it happened."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from interlock.core.headroom import Headroom
from interlock.errors import InterlockError, StoreError
from interlock.provider.signals import REASONS, Reason

if TYPE_CHECKING:
    from interlock.ports import Settings

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

    def headroom(self, preset: int | None) -> Headroom | None:
        """The limits, if they make sense together. *preset* is the configuration file's limit: it counts
        where the operator set none, and a reduction of another limit than it is void."""
        if self.removed:
            return Headroom()
        limit = preset if self.limit is None else self.limit
        if limit is None or limit < 1:
            return None
        known = self.limit is not None or self.reduced_from == limit
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


class SettingsWriter:
    """Writes records from one task, the latest per provider; callers may wait for theirs to be durable."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._dirty: dict[str, tuple[ProviderRecord, list[asyncio.Future[None]]]] = {}
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
        if self._task is None:
            try:
                self._task = asyncio.get_running_loop().create_task(self._write())
            except RuntimeError:
                return  # no loop yet: the next write takes it along

    async def write(self, provider_id: str, record: ProviderRecord) -> None:
        """Return when *record*, or a later one of the same provider, is durable."""
        self.note(provider_id, record)
        written = asyncio.get_running_loop().create_future()
        self._dirty[provider_id][1].append(written)
        await written

    async def aclose(self) -> None:
        """Return when all that was noted is written."""
        while self._task is not None:
            done = asyncio.Event()
            self._task.add_done_callback(lambda _, done=done: done.set())  # type: ignore[misc]
            await done.wait()

    async def _write(self) -> None:
        try:
            while self._dirty:
                provider_id = next(iter(self._dirty))
                record, waiting = self._dirty.pop(provider_id)
                error = await self._write_one(provider_id, record)
                for written in waiting:
                    if not written.done():
                        _settle(written, error)
        finally:
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
