"""Streams, tools, and a ceiling over both.

The layers are selfware's `ConcurrencyGovernor`, semaphores one inside the other. Taken one after the other
they starve each other: who waits for a stream sits on a unit of the ceiling that a tool could use. Here a
request is one claim over all its layers, granted at once or not at all, and who waits holds nothing.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from types import EllipsisType
from typing import TYPE_CHECKING, Any, Final, Self

from interlock.admission.declared import Asking, Declared, Default, checked
from interlock.admission.local import LocalAdmission
from interlock.admission.permit import DEFAULT_TIMEOUT
from interlock.errors import InvalidOperation, ValidationError

if TYPE_CHECKING:
    from collections.abc import Generator

    from interlock.admission.permit import Permit
    from interlock.ports import Acquiring, Admission, Clock

DEFAULT_STREAMS: Final = Default(4)
DEFAULT_TOOLS: Final = Default(8)
DEFAULT_GLOBAL: Final = Default(16)

STREAM: Final = ("streams", "global")
TOOL: Final = ("tools", "global")


@dataclass(frozen=True, slots=True)
class GovernorStats:
    """All three layers as of one moment; None is unlimited. Who waits lowers nothing."""

    streams_available: int | None
    streams_max: int | None
    tools_available: int | None
    tools_max: int | None
    global_available: int | None
    global_max: int | None


class ConcurrencyGovernor:
    """Permits for streams and tools under one ceiling.

    Among those who wait, the oldest whose layers all have room goes first; within a category strictly in
    the order of arrival. Nested work names its ``parent`` and is not charged what that holds.

    Args:
        max_streams, max_tools, max_global: whole numbers from 1, or None for unlimited.
        max_tools_per_agent: how many tools of one agent at once: a limit ``tools:<agent>`` that appears with
            the agent's first use and goes when it is idle.
        admission: shared with others, whose limits ``streams``, ``tools`` and ``global`` these are then.
            Numbers that are given here count; the defaults give way to those that it has.
        clock: where time comes from, unless *admission* brings one.
    """

    def __init__(
        self,
        max_streams: int | None = DEFAULT_STREAMS,
        max_tools: int | None = DEFAULT_TOOLS,
        max_global: int | None = DEFAULT_GLOBAL,
        *,
        max_tools_per_agent: int | None = None,
        admission: Admission | None = None,
        clock: Clock | None = None,
    ) -> None:
        capacities = {
            "streams": checked("max_streams", max_streams),
            "tools": checked("max_tools", max_tools),
            "global": checked("max_global", max_global),
        }
        self._per_agent = checked("max_tools_per_agent", max_tools_per_agent)
        self._declared = Declared(capacities, admission, clock)
        self.admission = self._declared.admission
        self._agents: set[str] = set()
        """The limits of single agents that there are."""
        self._tidy_at = 16

    @classmethod
    def with_defaults(cls) -> Self:
        """4 streams, 8 tools, 16 of both together, whatever the defaults become."""
        return cls(4, 8, 16)

    @classmethod
    def shared(
        cls,
        endpoint: str,
        max_streams: int | None = DEFAULT_STREAMS,
        max_tools: int | None = DEFAULT_TOOLS,
        max_global: int | None = DEFAULT_GLOBAL,
        *,
        max_tools_per_agent: int | EllipsisType | None = ...,
    ) -> ConcurrencyGovernor:
        """The one governor of *endpoint* in this thread, made by the first who asks.

        The limit belongs to the server, not to an agent: a governor for each agent would multiply it. A
        thread runs one event loop at a time, and so has governors of its own; processes share an `Admission`
        instead.

        Numbers other than the first ones raise `InvalidOperation`: whichever won silently, one of the callers
        would run under a limit that it did not ask for. Leave them out to take what there is, and use
        `set_limits` to change it.
        """
        if not endpoint:
            raise ValidationError(
                "endpoint is empty; allowed is a text that names the server, such as its URL"
            )
        asked: dict[str, Any] = {
            "max_streams": max_streams,
            "max_tools": max_tools,
            "max_global": max_global,
            "max_tools_per_agent": max_tools_per_agent,
        }
        if endpoint not in _shared.governors:
            per_agent = None if isinstance(max_tools_per_agent, EllipsisType) else max_tools_per_agent
            governor = cls(max_streams, max_tools, max_global, max_tools_per_agent=per_agent)
            _shared.governors[endpoint] = governor, asked | {"max_tools_per_agent": per_agent}
        governor, first = _shared.governors[endpoint]
        for name, number in asked.items():
            if type(number) not in (Default, EllipsisType) and number != first[name]:
                raise InvalidOperation(
                    f"the governor of {endpoint!r} has {name}={first[name]}, {number} was asked for; "
                    "leave it out, or change it with set_limits"
                )
        return governor

    # -- taking

    def acquire_stream(
        self,
        *,
        parent: Permit | None = None,
        timeout: float | None = DEFAULT_TIMEOUT,
        priority: int = 0,
        since: float | None = None,
        owner: str | None = None,
    ) -> Acquiring:
        """Ask for a stream: ``await`` it, or enter it with ``async with``.

        Args:
            parent: a live permit; what it holds, such as the ceiling, is not charged again.
            timeout: seconds to wait; None for ever, 0 not at all.
            priority: smaller goes first.
            since: when the work began, seconds since the epoch; older goes first (default: now).
            owner: who it is for, to be named in readings and for `release_owner`.

        Awaiting it raises `LimitExceeded` (timeout 0), `AcquireTimeout`, `InvalidOperation` for a parent that
        has been released, `DeadlockDetected` if this would close a circle of nested waits, and `Unavailable`
        when the governor was closed.
        """
        request = self.admission.acquire(
            *STREAM, parent=parent, timeout=timeout, priority=priority, since=since, owner=owner
        )
        return Asking(self._declared, request) if self._declared.due else request

    def acquire_tool(
        self,
        *,
        agent: str | None = None,
        parent: Permit | None = None,
        timeout: float | None = DEFAULT_TIMEOUT,
        priority: int = 0,
        since: float | None = None,
        owner: str | None = None,
    ) -> Acquiring:
        """Ask for a tool, as `acquire_stream`; *agent* says whose, where agents have limits of their own."""
        asked: dict[str, Any] = {
            "parent": parent,
            "timeout": timeout,
            "priority": priority,
            "since": since,
            "owner": owner,
        }
        if agent is not None and self._per_agent is not None:
            return AgentToolRequest(self, f"tools:{agent}", asked)
        request = self.admission.acquire(*TOOL, **asked)
        return Asking(self._declared, request) if self._declared.due else request

    def try_acquire_stream(self, *, parent: Permit | None = None, priority: int = 0) -> Permit | None:
        """A stream if there is room at once, else None; never passes a waiter that could run."""
        permit: Permit | None = self.admission.try_acquire(*STREAM, parent=parent, priority=priority)
        return permit

    def try_acquire_tool(
        self, *, agent: str | None = None, parent: Permit | None = None, priority: int = 0
    ) -> Permit | None:
        """A tool if there is room at once, else None; never passes a waiter that could run."""
        names: tuple[str, ...] = TOOL
        if agent is not None and self._per_agent is not None:
            names = (*TOOL, f"tools:{agent}")
            self._make(names[-1])
        permit: Permit | None = self.admission.try_acquire(*names, parent=parent, priority=priority)
        return permit

    # -- numbers

    def stats(self) -> GovernorStats:
        """What is left of each layer, all of one moment."""
        limits = self.admission.limits()
        numbers: list[int | None] = []
        for name in ("streams", "tools", "global"):
            used, most = self._declared.use(name, limits)
            numbers += [None if most is None else max(0, most - used), most]
        return GovernorStats(*numbers)

    async def set_limits(
        self,
        *,
        max_streams: int | EllipsisType | None = ...,
        max_tools: int | EllipsisType | None = ...,
        max_global: int | EllipsisType | None = ...,
    ) -> None:
        """Change what is given, from now on. Lowering takes nothing away; raising lets in who waits."""
        wanted = {"streams": max_streams, "tools": max_tools, "global": max_global}
        await self._declared.set(
            {
                name: checked(f"max_{name}", capacity)
                for name, capacity in wanted.items()
                if not isinstance(capacity, EllipsisType)
            }
        )

    async def aclose(self) -> None:
        """End the waits with `Unavailable`, unless the admission is shared: then it is not ours to close."""
        if self._declared.own:
            await self.admission.aclose()

    def __repr__(self) -> str:
        now = self.stats()
        layers = (
            ("streams", now.streams_available, now.streams_max),
            ("tools", now.tools_available, now.tools_max),
            ("global", now.global_available, now.global_max),
        )
        shown = (f"{name} {'∞' if most is None else f'{left} of {most}'}" for name, left, most in layers)
        return f"<ConcurrencyGovernor free: {', '.join(shown)}>"

    # -- the limits of single agents

    def _appear(self, name: str) -> Generator[Any, None, None]:
        """Make the limit *name*, wherever that is, unless it is there."""
        self._make(name)
        if self._declared.due:
            yield from self._declared.declare().__await__()
        if name not in self.admission.limits():
            yield from self.admission.set_limit(name, self._per_agent).__await__()

    def _make(self, name: str) -> None:
        """Make the limit *name* in this process, unless it is there."""
        if not isinstance(self.admission, LocalAdmission):
            return
        limit = self.admission.kernel.limits.get(name)
        if limit is not None and not limit.removed:
            return
        if len(self._agents) >= self._tidy_at:  # permits that were released by hand leave theirs behind
            for one in tuple(self._agents):
                self._leave(one)
            self._tidy_at = 16 + 2 * len(self._agents)
        self.admission.configure(name, self._per_agent)
        self._agents.add(name)

    def _leave(self, name: str) -> None:
        """Remove the limit *name*, if it is ours to remove and nobody has to do with it.

        Elsewhere it stays: another process may have asked for it in this very moment.
        """
        if name not in self._agents or not isinstance(self.admission, LocalAdmission):
            return
        kernel = self.admission.kernel
        limit = kernel.limits.get(name)
        if limit is not None and not limit.removed:
            if limit.used or limit.waiters or limit.paused_until_ms is not None:
                return
            if any(one.lent and one.claims.weight(limit) for one in kernel.live):
                return
            kernel.remove(name, round(self.admission.clock.now() * 1000))
        self._agents.discard(name)


class AgentToolRequest:
    """A tool of an agent that has a limit of its own: to be awaited, or entered with ``async with``."""

    __slots__ = ("_asked", "_governor", "_name", "_permit")

    def __init__(self, governor: ConcurrencyGovernor, name: str, asked: dict[str, Any]) -> None:
        self._governor = governor
        self._name = name
        self._asked = asked

    def __await__(self) -> Generator[Any, None, Permit]:
        governor = self._governor
        yield from governor._appear(self._name)
        try:
            request = governor.admission.acquire(*TOOL, self._name, **self._asked)
            permit: Permit = yield from request.__await__()
        except BaseException:
            governor._leave(self._name)
            raise
        return permit

    async def __aenter__(self) -> Permit:
        permit = self._permit = await self
        return await permit.__aenter__()

    async def __aexit__(self, *exit_: Any) -> None:
        await self._permit.__aexit__(*exit_)
        self._governor._leave(self._name)


class _Shared(threading.local):
    """The governors by endpoint, each with the numbers that were first asked for."""

    def __init__(self) -> None:
        self.governors: dict[str, tuple[ConcurrencyGovernor, dict[str, Any]]] = {}


_shared = _Shared()
