"""What a case of the conformance suite works with: limits of its own, tasks that ask, time that passes."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from interlock.errors import InterlockError

E = TypeVar("E", bound=BaseException)


class Harness(Protocol):
    """What an implementation of the port gives, to be held against the cases."""

    second: float
    """So many seconds of its clock stand for one of a case: less than 1 where time is real."""
    peers: bool
    """Whether a second admission shares limits and keys with the first, as another process would."""

    async def admission(self) -> Any:
        """One more admission; it is ended by the harness, not by the case."""
        ...

    async def advance(self, seconds: float) -> None:
        """Let *seconds* of its clock pass, and everything happen that is due."""
        ...

    async def settle(self) -> None:
        """Return once all that was said has been heard, and its answers as well; readings are exact then."""
        ...


@dataclass(frozen=True)
class Case:
    """One rule as a scene; its docstring says the rule."""

    name: str
    rule: str
    play: Callable[[Scene], Awaitable[None]]
    peers: bool = False
    """Whether it needs a harness with peers."""


CASES: list[Case] = []


def case(play: Callable[[Scene], Awaitable[None]]) -> Callable[[Scene], Awaitable[None]]:
    """Make *play* a case of the suite."""
    return _listed(play, peers=False)


def case_of_peers(play: Callable[[Scene], Awaitable[None]]) -> Callable[[Scene], Awaitable[None]]:
    """Make *play* a case for those who share limits with others."""
    return _listed(play, peers=True)


def _listed(play: Callable[[Scene], Awaitable[None]], *, peers: bool) -> Callable[[Scene], Awaitable[None]]:
    CASES.append(Case(play.__name__, play.__doc__ or "", play, peers))
    return play


class Scene:
    """One admission and the limits of one case, whose names nobody else uses."""

    def __init__(self, harness: Harness, admission: Any, name: str) -> None:
        self.harness = harness
        self.admission = admission
        self._name = name
        self._tasks: list[asyncio.Task[Any]] = []
        self._limits: list[str] = []

    def seconds(self, seconds: float) -> float:
        """*seconds* of the case on the harness's clock."""
        return seconds * self.harness.second

    def named(self, name: str) -> str:
        """*name*, as nobody else uses it: for keys and owners."""
        return f"{self._name}/{name}"

    async def limit(self, name: str, capacity: int | None, **settings: Any) -> str:
        """A limit of this case, made or changed; the name to ask for."""
        full = self.named(name)
        await self.admission.set_limit(full, capacity, **settings)
        if full not in self._limits:
            self._limits.append(full)
        return full

    async def ask(self, *names: str, of: Any = None, **asked: Any) -> asyncio.Task[Any]:
        """A task that acquires and has come as far as it can; it ends with the case."""
        return await self.run(self.acquired(*names, of=of, **asked))

    async def acquired(self, *names: str, of: Any = None, **asked: Any) -> Any:
        """The permit, from *of* or from the scene's admission."""
        return await (of or self.admission).acquire(*names, **asked)

    async def run(self, work: Any) -> asyncio.Task[Any]:
        """A task that does *work*, a coroutine, and has come as far as it can."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.append(task)
        await self.settle()
        return task

    async def settle(self) -> None:
        """Let everybody come as far as he can; readings are exact afterwards."""
        await self.harness.settle()

    async def advance(self, seconds: float) -> None:
        """Let *seconds* of the case pass."""
        await self.harness.advance(self.seconds(seconds))

    def still(self, began: float, seconds: float) -> bool:
        """Whether less than *seconds* of the case have passed since *began*: where time is real, and the
        machine busy, what should not have happened yet may have."""
        now: float = self.admission.clock.now()
        return now - began < self.seconds(seconds)

    async def used(self, name: str) -> int:
        """Units of the limit *name* that are taken."""
        await self.settle()
        used: int = self.admission.limits()[name].used
        return used

    async def waiting(self) -> list[str]:
        """The ids of those who wait for limits of this case, in their order."""
        await self.settle()
        return [one.id for one in self.admission.waiting() if set(one.limits) & set(self._limits)]

    async def refused(self, awaitable: Awaitable[Any], kind: type[E]) -> E:
        """The error with which *awaitable* ends; AssertionError for any other end."""
        try:
            result = await awaitable
        except kind as error:
            return error
        raise AssertionError(f"{kind.__name__} was expected, not {result!r}")

    async def empty(self, *names: str) -> None:
        """AssertionError unless nothing of *names* is taken and nobody waits."""
        for name in names:
            assert await self.used(name) == 0, f"{name} is still in use"
        assert await self.waiting() == []

    async def leave(self) -> None:
        """End the tasks, and what they hold."""
        for task in self._tasks:
            task.cancel()
        for done in await asyncio.gather(*self._tasks, return_exceptions=True):
            if hasattr(done, "release"):
                done.release()


def says(error: InterlockError, code: str, *words: str) -> None:
    """AssertionError unless *error* has this code and its message has these words."""
    assert error.code == code, f"{error.code!r} instead of {code!r}"
    missing = [word for word in words if word not in error.message]
    assert not missing, f"{missing} not in {error.message!r}"
