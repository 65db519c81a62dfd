"""The limits that a policy works with, on whichever admission it is given.

In process a limit is made at once. Elsewhere that takes a message, which goes ahead of the first request, so
that constructors stay plain functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from interlock.admission.local import LocalAdmission
from interlock.errors import ValidationError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Generator, Mapping

    from interlock.admission.readings import LimitReading
    from interlock.ports import Acquiring, Admission, Clock


class Default(int):
    """A capacity that nobody asked for: it gives way to the one that a shared admission has already."""


class Declared:
    """Limits by name on *admission*, or on one of their own; ``due`` are those that it has yet to be told."""

    def __init__(
        self, capacities: Mapping[str, int | None], admission: Admission | None, clock: Clock | None
    ) -> None:
        self.own = admission is None
        self.admission: Admission = LocalAdmission(clock=clock) if admission is None else admission
        self.due = dict(capacities)
        if isinstance(self.admission, LocalAdmission):
            for name, capacity in self._wanted().items():
                self.admission.configure(name, capacity)
            self.due.clear()

    async def declare(self) -> None:
        """Tell the admission what is due."""
        await self.admission.refresh()
        for name, capacity in self._wanted().items():
            if name in self.due:  # nobody was faster, or had another wish meanwhile
                await self.admission.set_limit(name, capacity)
        self.due.clear()

    async def set(self, capacities: Mapping[str, int | None]) -> None:
        """Change capacities, of all of them or of none."""
        if self.due:
            await self.declare()
        for name, capacity in capacities.items():
            await self.admission.set_limit(name, capacity)

    def use(self, name: str, limits: Mapping[str, LimitReading]) -> tuple[int, int | None]:
        """How many units of *name* are in use, going by *limits*, and of how many; also while it is due."""
        reading = limits.get(name)
        if reading is None:
            return 0, self.due.get(name)
        wanted = name in self.due and type(self.due[name]) is not Default
        return reading.used, self.due[name] if wanted else reading.capacity

    def _wanted(self) -> dict[str, int | None]:
        known = self.admission.limits()
        return {
            name: None if capacity is None else int(capacity)
            for name, capacity in self.due.items()
            if name not in known or type(capacity) is not Default
        }


class Asking:
    """A request that may need a declaration first: to be awaited, or entered with ``async with``."""

    __slots__ = ("_declared", "_request")

    def __init__(self, declared: Declared, request: Acquiring) -> None:
        self._declared = declared
        self._request = request

    def __await__(self) -> Generator[Any, None, Any]:
        if self._declared.due:
            yield from self._declared.declare().__await__()
        return (yield from self._request.__await__())

    async def __aenter__(self) -> Any:
        if self._declared.due:
            await self._declared.declare()
        return await self._request.__aenter__()

    def __aexit__(self, *exit_: Any) -> Awaitable[Any]:
        return self._request.__aexit__(*exit_)


def checked(what: str, capacity: Any) -> int | None:
    """*capacity*, if it is one; `ValidationError` names it as *what*."""
    whole = isinstance(capacity, int) and not isinstance(capacity, bool)
    if capacity is not None and not (whole and capacity >= 1):
        raise ValidationError(
            f"{what} is {capacity!r}; allowed are whole numbers from 1, or None for unlimited"
        )
    return cast("int | None", capacity)
