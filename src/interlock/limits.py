"""The fleet's own limits, and whose word counts: the configuration file's or the operator's.

What was set at run time is durable and wins over the file, also after a restart, until the file itself says
something new. So what the file said last is remembered beside it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

import msgspec

from interlock.core.model import UNLIMITED
from interlock.errors import InterlockError, InvalidOperation
from interlock.ledger import OPERATOR, Cause

if TYPE_CHECKING:
    from collections.abc import Mapping

    from interlock.admission.local import LocalAdmission
    from interlock.ledger import Ledger
    from interlock.ports import Settings

log = logging.getLogger(__name__)

FLEET: Final = ("sessions", "runs", "streams", "tools", "global")
"""Each of them exists, unlimited until somebody says otherwise."""

PREFIX: Final = "limit:"
_HEARD: Final = "file:"
_ELSEWHERE: Final = {"pool": "the pool", "session": "the session", "tools": "the governor"}
"""Who makes the limits of these families, and would make them anew."""


class Heard:
    """What the configuration file said last, by key; a change is noticed also if nothing ran meanwhile."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._said: dict[str, str] = {}

    async def load(self) -> None:
        """Know what was noted before."""
        self._said = await self._settings.items(_HEARD)

    def differs(self, key: str, value: Any) -> bool:
        """Whether *value* is something new; what is heard for the first time is not."""
        return self._said.get(_HEARD + key, _text(value)) != _text(value)

    async def note(self, key: str, value: Any) -> None:
        """Remember *value*, once what follows from it is durable."""
        if self._said.get(_HEARD + key) != _text(value):
            await self._settings.set(_HEARD + key, _text(value))
            self._said[_HEARD + key] = _text(value)


class FleetLimits:
    """Limits of *admission* that can be set at run time; *settings* remember them, *ledger* each change."""

    def __init__(self, admission: LocalAdmission, settings: Settings, ledger: Ledger | None = None) -> None:
        self._admission = admission
        self._settings = settings
        self._heard = Heard(settings)
        self.ledger = ledger

    async def load(self, file: Mapping[str, int | None]) -> None:
        """Take over what the *file* says, by name, and what was set at run time before."""
        for name in FLEET:
            self._admission.configure(name, file.get(name))
        await self._heard.load()
        for key, text in (await self._settings.items(PREFIX)).items():
            try:
                self._admission.configure(key.removeprefix(PREFIX), **msgspec.json.decode(text))
            except (msgspec.MsgspecError, InterlockError, TypeError):
                log.warning("setting %r is not a limit's and was ignored", key)
        for name in FLEET:
            await self.hear(name, file.get(name))

    async def hear(self, name: str, capacity: int | None) -> bool:
        """The file says *capacity* of *name*: it counts if that is something new. Returns whether it is."""
        if not (news := self._heard.differs(name, capacity)):
            await self._heard.note(name, capacity)
            return news
        settings = self._current(name) | {"capacity": capacity}
        self._configure(name, settings, Cause("file"))
        if await self._settings.get(PREFIX + name) is not None:
            await self._settings.set(PREFIX + name, _text(settings))
        await self._heard.note(name, capacity)
        await self._noted()
        return news

    async def set(
        self,
        name: str,
        capacity: int | None,
        *,
        cooldown: float | None = None,
        cause: Cause = OPERATOR,
    ) -> None:
        """The operator says so; in force at once. Returns when it is durable.

        *cooldown* is in seconds; None leaves it as it is. A limit that is not there is made. Raises
        `InvalidOperation` for one that somebody else makes, `ValidationError` and `StoreError`.
        """
        family, colon, _ = name.partition(":")
        if colon and family in _ELSEWHERE:
            raise InvalidOperation(f"the limit {name!r} is made by {_ELSEWHERE[family]}: change it there")
        settings = self._current(name) | {"capacity": capacity}
        if cooldown is not None:
            settings |= {"cooldown": cooldown, "cooldown_cancelled": None, "cooldown_failed": None}
        self._configure(name, settings, cause)
        await self._settings.set(PREFIX + name, _text(settings))
        await self._noted()

    def _configure(self, name: str, settings: dict[str, Any], cause: Cause) -> None:
        self._admission.configure(name, **settings)
        if self.ledger is not None:
            self.ledger.note(name, settings["capacity"], cause)

    async def _noted(self) -> None:
        if self.ledger is not None:
            await self.ledger.written()

    def _current(self, name: str) -> dict[str, Any]:
        """What `LocalAdmission.configure` would have to be told to leave *name* as it is."""
        limit = self._admission.kernel.limits.get(name)
        if limit is None or limit.removed:
            return {}
        cooldown = limit.cooldown
        return {
            "capacity": None if limit.capacity == UNLIMITED else limit.capacity,
            "cooldown": cooldown.success_ms / 1000,
            "cooldown_cancelled": cooldown.cancelled_ms / 1000,
            "cooldown_failed": cooldown.failed_ms / 1000,
            "queue_max": limit.queue_max,
        }


def _text(value: Any) -> str:
    return msgspec.json.encode(value).decode()
