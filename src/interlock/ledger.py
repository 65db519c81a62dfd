"""The ledger of limits: every change of a capacity, by whom or by which signal, and on what evidence.

It is kept beside what it tells of, in the same settings: a record for every change, under a number that is
never used again. What a crash kept from being written is noticed at the next start and noted then, so that
the changes, one after the other, always lead to the limit that is in force.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import deque
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import msgspec

from interlock.errors import ValidationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from interlock.ports import Clock, Settings

log = logging.getLogger(__name__)

PREFIX: Final = "ledger:"
KEPT: Final = 1_000
"""Changes of one limit that are kept, the latest."""
MOST_EVIDENCE: Final = 200
"""Characters of a change's evidence."""
By = Literal["operator", "client", "file", "429", "recovery", "restore", "start"]

_DIGITS = 12
_ELSEWHERE = ("pool:", "session:", "tools:")
"""Limits that a part makes and forgets by itself, however many: they are nobody's decision."""
_WRITES_WITHIN = 10.0
_MOST_PENDING = 1_000
_SECRETS = re.compile(
    r"(?i:\bbearer\s+\S+|\b(?:api[_-]?key|key|token|secret|password)\s*[=:]\s*\S+)"
    r"|\b(?:sk|pk|rk|gh[a-z]|xox[a-z])[-_][\w-]{4,}|\bAIza[\w-]+|\b(?=[\w-]*\d)[\w-]{20,}"
)


class Cause(NamedTuple):
    """Who or what changed a limit; *evidence* is one line for people."""

    by: By
    evidence: str = ""


OPERATOR: Final = Cause("operator")
START: Final = Cause("start", "found like this at the start")


class Change(msgspec.Struct, frozen=True):
    """One change of one limit. ``at`` is in seconds since the epoch; None is unlimited."""

    number: int
    at: float
    by: str
    old: int | None
    new: int | None
    evidence: str = ""


class _Head(NamedTuple):
    """The last change of a limit: its number, and what was in force after it."""

    number: int = 0
    new: int | None = None


class Ledger:
    """The changes of every limit, kept in *settings*. Nothing is noted before `start`.

    *secrets* never stand in any evidence, whatever they look like.
    """

    def __init__(self, settings: Settings, clock: Clock, secrets: Iterable[str] = ()) -> None:
        self._settings = settings
        self._secrets = sorted(filter(None, secrets), key=len, reverse=True)
        self._clock = clock
        self._heads: dict[str, _Head] = {}
        self._pending: deque[tuple[str, Change]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._started = False
        self.noted = 0
        """How many changes were noted so far, by this process."""

    async def start(self, in_force: Mapping[str, int | None], file: Mapping[str, int | None]) -> None:
        """Begin to note, first what is in force and was not noted: the *file* said so, or nobody knows."""
        found: dict[str, list[int]] = {}
        latest: dict[str, str] = {}
        for key, text in (await self._settings.items(PREFIX)).items():
            if (place := _place(key)) is not None:  # in the order of their numbers
                found.setdefault(place[0], []).append(place[1])
                latest[place[0]] = text
        for name, numbers in found.items():
            change = _read(name, latest[name])
            self._heads[name] = _Head(numbers[-1], None if change is None else change.new)
            for number in numbers[:-KEPT]:
                await self._settings.delete(_key(name, number))
        self._started = True
        for name in sorted({*in_force, *self._heads}):
            new = in_force.get(name)
            says_file = name in file and file[name] == new
            self.note(name, new, Cause("file", "read at the start") if says_file else START)
        await self.written()

    def note(self, name: str, new: int | None, cause: Cause) -> None:
        """*new* is in force at the limit *name* from now on; nothing is noted if it was before."""
        head = self._heads.get(name, _Head())
        if not self._started or new == head.new or name.startswith(_ELSEWHERE):
            return
        evidence = cause.evidence
        for secret in self._secrets:
            evidence = evidence.replace(secret, "***")
        change = Change(head.number + 1, self._clock.now(), cause.by, head.new, new, shown(evidence))
        self._heads[name] = _Head(change.number, new)
        self.noted += 1
        self._pending.append((name, change))
        if len(self._pending) > _MOST_PENDING:
            lost, earliest = self._pending.popleft()
            log.warning("change %d of the limit %r could not be written", earliest.number, lost)
        self._go_on()

    async def written(self) -> None:
        """Return when everything that was noted is durable, or could not be made so, which is logged."""
        if (task := self._go_on()) is not None:
            await asyncio.wait({task}, timeout=_WRITES_WITHIN)

    def known(self) -> dict[str, int | None]:
        """Every limit that has a history, with what is in force by its last change."""
        return {name: head.new for name, head in self._heads.items()}

    async def history(self, name: str, *, before: int | None = None, limit: int = 100) -> list[Change]:
        """At most *limit* changes of the limit *name* with numbers below *before*, newest first."""
        if limit < 1 or (before is not None and before < 1):
            raise ValidationError("limit and before are whole numbers from 1")
        await self.written()
        found = await self._settings.items(f"{PREFIX}{name}:")
        keys = [key for key in found if (place := _place(key)) is not None and place[0] == name]
        if before is not None:
            keys = [key for key in keys if key < _key(name, before)]
        changes = (_read(name, found[key]) for key in keys[: -limit - 1 : -1])
        return [change for change in changes if change is not None]

    async def aclose(self) -> None:
        """Return when all is written; what a store that hangs has not taken within 10 seconds is lost."""
        await self.written()
        if self._task is not None:
            self._task.cancel()
        self._started = False

    # -- inside

    def _go_on(self) -> asyncio.Task[None] | None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return None  # the next change takes it along, or the end
        if self._pending and (self._task is None or self._task.get_loop() is not loop):
            self._task = loop.create_task(self._write())
        return self._task

    async def _write(self) -> None:
        task = asyncio.current_task()
        try:
            while self._pending:
                name, change = self._pending[0]
                await self._settings.set(_key(name, change.number), msgspec.json.encode(change).decode())
                if self._pending and self._pending[0][1] is change:
                    self._pending.popleft()
                if change.number > KEPT:
                    await self._settings.delete(_key(name, change.number - KEPT))
        except Exception as error:
            log.warning("%d changes of limits are not written yet: %r", len(self._pending), error)
        finally:
            if self._task is task:
                self._task = None


def replay(changes: Iterable[Change]) -> int | None:
    """What is in force after *changes*, oldest first. Raises `ValueError` where one does not follow."""
    before: Change | None = None
    for change in changes:
        if before is not None and change.number != before.number + 1:
            raise ValueError(f"change {before.number + 1} is missing")
        if before is None and change.number == 1 and change.old is not None:
            raise ValueError(f"change 1 begins at {change.old}, not at unlimited")
        if before is not None and change.old != before.new:
            raise ValueError(f"change {change.number} begins at {change.old}, not at {before.new}")
        before = change
    return None if before is None else before.new


def read_changes(settings: Mapping[str, str]) -> dict[str, list[Change]]:
    """The changes of every limit among *settings* (by key), oldest first. Raises `ValueError` for one that
    cannot be read."""
    found: dict[str, list[Change]] = {}
    for key in sorted(settings):
        if (place := _place(key)) is not None:
            change = _read(place[0], settings[key])
            if change is None or change.number != place[1]:
                raise ValueError(f"{key} cannot be read")
            found.setdefault(place[0], []).append(change)
    return found


def shown(evidence: str) -> str:
    """The beginning of *evidence* on one line, without what looks like a key."""
    return _SECRETS.sub("***", " ".join(evidence.split()))[:MOST_EVIDENCE]


def _key(name: str, number: int) -> str:
    return f"{PREFIX}{name}:{number:0{_DIGITS}}"


def _place(key: str) -> tuple[str, int] | None:
    """The limit and the number that *key* stands for; names may have colons of their own."""
    name, _, number = key.removeprefix(PREFIX).rpartition(":")
    if not name or len(number) != _DIGITS or not (number.isascii() and number.isdecimal()):
        return None
    return name, int(number)


def _read(name: str, text: str) -> Change | None:
    try:
        return msgspec.json.decode(text, type=Change)
    except (msgspec.MsgspecError, ValueError):
        log.warning("a change of the limit %r cannot be read and was passed over", name)
        return None
