"""What a user of admission holds: an `Acquisition` while asking, a `Permit` once granted."""

from __future__ import annotations

import asyncio
import warnings
from copy import copy
from functools import partial
from threading import get_ident
from types import coroutine
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from interlock.admission.readings import permit_id
from interlock.errors import InterlockError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator
    from types import TracebackType

    from interlock.core import model
    from interlock.core.model import Outcome


DEFAULT_TIMEOUT: Final = 300.0
"""Seconds that an acquire waits when its caller says nothing."""


_new = object.__new__


class Granting(Protocol):
    """What an acquisition and its permit need of the admission behind them."""

    _thread: int | None
    _handed_over: dict[model.Permit, object]

    def _take(self, names: tuple[str, ...]) -> model.Permit | None: ...

    def _give_back(self, record: model.Permit) -> bool: ...

    def _admit(self, request: Acquisition) -> Generator[Any, None, Permit]: ...

    def _release(self, record: model.Permit, outcome: Outcome) -> bool: ...

    def _touch(self, record: model.Permit) -> None: ...

    def _lend(self, record: model.Permit) -> None: ...

    def _reclaim(self, record: model.Permit, timeout: float | None) -> Generator[Any, None, None]: ...

    def _abandon(self, record: model.Permit) -> None: ...


class Permit:
    """Units of every claimed limit, held until `release`.

    Leaving ``async with`` releases it, with the outcome that the exit shows; entered again (the same key
    gives the same permit) the last exit does. A permit without a key that is forgotten unreleased is
    released when Python collects it and reported with a `ResourceWarning`.
    """

    __slots__ = ("__weakref__", "_admission", "_entered", "_record", "limits")

    def __init__(self, admission: Granting, record: model.Permit, limits: tuple[str, ...]) -> None:
        self._admission = admission
        self._record = record
        self._entered = 0
        self.limits = limits

    @property
    def id(self) -> str:
        return permit_id(self._record)

    @property
    def key(self) -> str | None:
        return self._record.key

    @property
    def owner(self) -> str | None:
        return self._record.owner

    @property
    def fence(self) -> int:
        """Rises from grant to grant on every limit: hand it to whatever should refuse late writers."""
        return self._record.fence

    @property
    def granted_at(self) -> float:
        """Seconds since the epoch."""
        return self._record.granted_ms / 1000

    @property
    def released(self) -> bool:
        """Given back, or taken away: it holds nothing any more."""
        return self._record.ended is not None or self._record in self._admission._handed_over

    @property
    def lost(self) -> bool:
        """Taken away: the lease ran out or the watchdog saw no progress. The work should stop."""
        return self._record.ended in ("expired", "revoked")

    def release(self, outcome: Outcome = "success") -> bool:
        """Give everything back, at once and from any thread; False if that had happened already."""
        admission, record = self._admission, self._record
        at_home = admission._thread == get_ident()
        if at_home and not admission._handed_over and admission._give_back(record):
            return True
        return record.ended is None and admission._release(record, outcome)

    def touch(self) -> None:
        """Say that the work goes on, so that the idle watchdog leaves it alone."""
        self._admission._touch(self._record)

    @property
    def lent(self) -> bool:
        """Whether its units are given back for a while, see `lend`."""
        return self._record.lent and not self.released

    def lend(self, *, timeout: float | None = DEFAULT_TIMEOUT) -> Lending:
        """Give the units back while waiting for others that need them: ``async with permit.lend(): …``.

        A run that starts further runs and waits for them lends its own unit, else a tree of runs stands
        still as soon as its inner nodes hold all there is. On leaving, the units are asked for again, at
        the permit's original age and for at most *timeout* seconds (None: for ever), under a new fence.
        If that fails, the permit has ended, and the error says why: `AcquireTimeout`, `PermitLost`,
        `DeadlockDetected`, `Unavailable`.

        Entering raises `InvalidOperation` for a permit that ended, is lent already, or shares units with
        nested ones. What is acquired below a lent permit is charged in full.
        """
        return Lending(self._admission, self._record, timeout)

    async def __aenter__(self) -> Permit:
        self._entered += 1
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._entered -= 1
        if self._entered == 0:
            self.release(outcome_of(exc_type))

    def __del__(self) -> None:
        record = self._record
        if record.ended is not None or record.key is not None or record in self._admission._handed_over:
            return
        # The collector may call this in the middle of a kernel operation: the release is only noted here.
        self._admission._abandon(record)
        warnings.warn(f"{self!r} was never released", ResourceWarning, source=self, stacklevel=1)

    def __repr__(self) -> str:
        state = self._record.ended or "held"
        return f"<Permit {self.id} over {', '.join(self.limits) or 'nothing'}: {state}>"


class Lending:
    """What `Permit.lend` returns: an async context in which the units are somebody else's."""

    def __init__(self, admission: Granting, record: model.Permit, timeout: float | None) -> None:
        self._admission = admission
        self._record = record
        self._timeout = timeout

    async def __aenter__(self) -> None:
        self._admission._lend(self._record)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if exc_type is GeneratorExit:  # whoever is collected must not wait any more
            self._admission._release(self._record, "cancelled")
            return
        # Also when cancelled: what comes after may go on under the permit, as inside of asyncio.timeout().
        try:
            await _Awaitable(self._admission._reclaim(self._record, self._timeout))
        except InterlockError:
            if exc_type is None or not issubclass(exc_type, asyncio.CancelledError):
                raise


class _Awaitable:
    """A generator of steps as something to await."""

    def __init__(self, steps: Generator[Any, None, None]) -> None:
        self._steps = steps

    def __await__(self) -> Generator[Any, None, None]:
        return self._steps


class Acquisition:
    """A request for a permit: ``permit = await acquisition`` or ``async with acquisition as permit``.

    Nothing is asked for before one of the two. Cancelling the awaiting task at any point leaks nothing.
    What a plain request does not say stays on the class: one is made for every call.
    """

    plain = True
    key: str | None = None
    owner: str | None = None
    parent: Permit | None = None
    priority = 0
    since: float | None = None
    timeout: float | None = DEFAULT_TIMEOUT
    lease: float | None = None
    on_queued: Callable[[], object] | None = None
    _first: Callable[[], Awaitable[object]] | None = None
    _permit: Permit

    def __init__(self, admission: Granting, names: tuple[str, ...]) -> None:
        self._admission = admission
        self.names = names

    def more(
        self,
        key: str | None,
        owner: str | None,
        parent: Permit | None,
        priority: int,
        since: float | None,
        timeout: float | None,
        lease: float | None,
        on_queued: Callable[[], object] | None,
    ) -> None:
        """Say everything that a plain request leaves unsaid."""
        sound = (timeout is None or timeout >= 0) and (since is None or since >= 0)  # else it is refused
        self.plain = sound and key is None and owner is None and parent is None and lease is None
        self.key = key
        self.owner = owner
        self.parent = parent
        self.priority = priority
        self.since = since
        self.timeout = timeout
        self.lease = lease
        self.on_queued = on_queued

    def again(self, since_ms: int, deadline_ms: int | None, now_ms: int) -> Acquisition:
        """The same request once more: as old as it is, and with the patience that is left."""
        request = copy(self)
        request.plain = False
        request.since = since_ms / 1000
        request.timeout = None if deadline_ms is None else max(0, deadline_ms - now_ms) / 1000
        return request

    def first(self, step: Callable[[], Awaitable[object]]) -> None:
        """Have *step* awaited before anything is asked for."""
        self.plain = False
        self._first = step

    def __await__(self) -> Generator[Any, None, Permit]:
        return self._at_once() or (yield from self._in_turn())

    @coroutine
    def __aenter__(self) -> Generator[Any, None, Permit]:
        permit = self._permit = self._at_once() or (yield from self._in_turn())
        permit._entered += 1
        return permit

    def _at_once(self) -> Permit | None:
        """The short way, if there is one."""
        record = self._admission._take(self.names) if self.plain else None
        if record is None:
            return None
        permit = _new(Permit)  # made for every call: the detour over __init__ would show
        permit._admission = self._admission
        permit._record = record
        permit._entered = 0
        permit.limits = self.names
        return permit

    def _in_turn(self) -> Generator[Any, None, Permit]:
        if self._first is not None:
            yield from self._first().__await__()
        return (yield from self._admission._admit(self))

    def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> Awaitable[None]:
        permit = self._permit
        permit._entered -= 1
        if permit._entered == 0:
            permit.release("success" if exc_type is None else outcome_of(exc_type))
        return _DONE


class _Done:
    """An awaitable that is done: leaving needs neither a coroutine nor a call of Python's."""

    __await__ = staticmethod(partial(iter, ()))


_DONE = cast("Awaitable[None]", _Done())


def outcome_of(exc_type: type[BaseException] | None) -> Outcome:
    """How work that left with *exc_type* ended."""
    if exc_type is None:
        return "success"
    if issubclass(exc_type, (asyncio.CancelledError, GeneratorExit)):
        return "cancelled"
    return "failed"
