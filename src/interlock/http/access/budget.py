"""How much of the day's budget each token has used: what it asked for, and how long its permits lasted.

A permit's time is counted once a second, so a shorter one counts for a second. Every few seconds what has
changed is written: a server that is killed forgets no more than that.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec

from interlock.errors import LimitExceeded, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from interlock.http.access.book import TokenBook
    from interlock.http.access.caller import Caller
    from interlock.http.access.terms import Terms
    from interlock.ports import Settings, TimerHandle

log = logging.getLogger(__name__)

PREFIX: Final = "budget:"
WRITE_SECONDS: Final = 5.0
COUNT_SECONDS: Final = 1.0
_DAY: Final = 86_400


class _Kept(msgspec.Struct, kw_only=True):
    """What a token has used, as it stands in the store."""

    day: int
    requests: int
    seconds: float


@dataclass(slots=True)
class _Used:
    day: int
    requests: int = 0
    seconds: float = 0.0
    live: list[Callable[[], bool]] = field(default_factory=list)
    """Of each permit that lasts, whether it has ended."""
    counted_at: float = 0.0
    written: bool = True


class Budgets:
    """The budgets of the tokens of *book*; only those that have one cost anything here."""

    def __init__(self, book: TokenBook, settings: Settings) -> None:
        self._book = book
        self._settings = settings
        self._clock = book.clock
        self._used: dict[str, _Used] = {}
        self._writing: TimerHandle | None = None
        self._counting: TimerHandle | None = None
        self._writes: set[asyncio.Task[None]] = set()

    async def load(self) -> None:
        """Go on from what the store has of today; what is of other days or damaged is forgotten."""
        for key, value in (await self._settings.items(PREFIX)).items():
            try:
                kept = msgspec.json.decode(value, type=_Kept)
            except (msgspec.MsgspecError, UnicodeError):
                continue
            if kept.day == self._today():
                self._used[key.removeprefix(PREFIX)] = _Used(kept.day, kept.requests, kept.seconds)

    async def aclose(self) -> None:
        """Write what has not been written."""
        for timer in (self._writing, self._counting):
            if timer is not None:
                timer.cancel()
        self._count()
        await self._write()

    # -- asking

    def ask(self, caller: Caller) -> None:
        """Count one more permit, run or call that *caller* asks for. Raises `LimitExceeded` instead."""
        bounded = [(name, terms) for name in caller.names if (terms := self._terms(name)) is not None]
        if not bounded:
            return
        self._count()
        for name, terms in bounded:
            used = self._of(name)
            if terms.requests_per_day is not None and used.requests >= terms.requests_per_day:
                raise self._spent(name, f"{terms.requests_per_day} requests")
            if terms.permit_seconds_per_day is not None and used.seconds >= terms.permit_seconds_per_day:
                raise self._spent(name, f"{terms.permit_seconds_per_day} permit-seconds")
        for name, _ in bounded:
            used = self._of(name)
            used.requests += 1
            self._changed(used)

    def hold(self, caller: Caller, has_ended: Callable[[], bool]) -> None:
        """A permit of *caller* lasts, until *has_ended* says otherwise."""
        for name in caller.names:
            terms = self._terms(name)
            if terms is None or terms.permit_seconds_per_day is None:
                continue
            self._count()
            self._of(name).live.append(has_ended)
            if self._counting is None:
                self._counting = self._clock.call_at(self._clock.now() + COUNT_SECONDS, self._tick)

    def _terms(self, name: str) -> Terms | None:
        token = self._book.token(name)
        if token is None or (token.terms.requests_per_day or token.terms.permit_seconds_per_day) is None:
            return None
        return token.terms

    def _spent(self, name: str, what: str) -> LimitExceeded:
        left = _DAY - self._clock.now() % _DAY
        return LimitExceeded(
            f"the token {name!r} has used its {what} of today; the next day of UTC begins in {left:.0f} s",
            code="budget",
            retry_after=left,
        )

    # -- counting

    def _today(self) -> int:
        return int(self._clock.now() // _DAY)

    def _of(self, name: str) -> _Used:
        used, today = self._used.get(name), self._today()
        if used is None:
            used = self._used[name] = _Used(today, counted_at=self._clock.now())
        if used.day != today:
            used.day, used.requests, used.seconds = today, 0, 0.0
            self._changed(used)
        return used

    def _tick(self) -> None:
        self._count()
        lasting = any(used.live for used in self._used.values())
        again = self._clock.now() + COUNT_SECONDS
        self._counting = self._clock.call_at(again, self._tick) if lasting else None

    def _count(self) -> None:
        now = self._clock.now()
        for name, used in self._used.items():
            if used.live:
                self._of(name).seconds += len(used.live) * max(0.0, now - used.counted_at)
                used.live = [has_ended for has_ended in used.live if not has_ended()]
                self._changed(used)
            used.counted_at = now

    # -- remembering

    def _changed(self, used: _Used) -> None:
        used.written = False
        if self._writing is None:
            self._writing = self._clock.call_at(self._clock.now() + WRITE_SECONDS, self._write_soon)

    def _write_soon(self) -> None:
        self._writing = None
        task = asyncio.get_running_loop().create_task(self._write())
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)

    async def _write(self) -> None:
        for name, used in list(self._used.items()):
            if used.written:
                continue
            used.written = True
            kept = _Kept(day=used.day, requests=used.requests, seconds=used.seconds)
            try:
                if self._terms(name) is None:
                    await self._settings.delete(PREFIX + name)
                    self._used.pop(name, None)
                else:
                    await self._settings.set(PREFIX + name, msgspec.json.encode(kept).decode())
            except StoreError as error:
                used.written = False
                log.warning("what the token %r has used is not written: %s", name, error)
