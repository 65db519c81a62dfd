"""What `AgentPool.checkout` returns, and who stands in line for an agent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from interlock.admission.permit import _DONE

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Generator
    from types import TracebackType

    from interlock.core.shelf import Member
    from interlock.errors import InterlockError
    from interlock.pool.pool import AgentPool

Agent = TypeVar("Agent")

DEFAULT_PATIENCE: Final = 5.0
"""Seconds that a checkout waits when its caller says nothing, as in the original."""


class Answer:
    """An awaitable that is done already and says *value*."""

    __slots__ = ("_value",)

    def __init__(self, value: bool) -> None:
        self._value = value

    def __await__(self) -> Generator[Any, None, bool]:
        return self._value
        yield


class Checkout(Generic[Agent]):
    """A request for an agent: ``agent = await checkout`` or ``async with checkout as agent``, once.

    Nothing is asked for before one of the two. Leaving ``async with`` checks the agent in, in every case.
    Cancelling the awaiting task at any point leaks nothing.
    """

    __slots__ = ("_member", "_pool", "block", "timeout")

    def __init__(self, pool: AgentPool[Agent], timeout: float | None, block: bool) -> None:
        self._pool = pool
        self.timeout = timeout
        self.block = block

    def __await__(self) -> Generator[Any, None, Agent]:
        pool = self._pool
        desk = pool._desk
        tally = desk.short
        member = None
        # The short way: nothing is to be done but handing out (else it is None), and nobody is passed.
        if tally is not None and not desk.line and desk.idle and tally.take():
            member = desk.next()
            member.permit = tally
            if member.alive is not None and not desk.stock.lives(member):
                desk.take_back(member, reset=False)
                member = None
        if member is None:
            member = yield from pool._wait(self).__await__()
        self._member: Member = member
        member.lent_by = self
        agent: Agent = member.agent
        return agent

    def __aenter__(self) -> Awaitable[Agent]:
        return self

    def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> Awaitable[None]:
        if self.holds():
            self._pool.checkin(self._member.agent)
        return _DONE

    def holds(self) -> bool:
        """Whether the agent is out still, and by this checkout."""
        member = self._member
        return member.permit is not None and member.lent_by is self


class Caller:
    """One that found no agent at once. It stands in line from before it asks for a permit until it is served.

    What it was given stands here; its future is only a wake-up. If it is cancelled in the instant of being
    served, it finds the agent here and puts it back.
    """

    __slots__ = ("error", "future", "member", "permit", "scope")

    def __init__(self) -> None:
        self.permit: Any = None
        self.member: Member | None = None
        self.error: InterlockError | None = None
        self.future: asyncio.Future[None] | None = None
        self.scope: asyncio.Timeout | None = None
        """What it waits for its permit in, so that the pool can call it back when it stops."""

    def wake(self) -> None:
        if self.future is not None and not self.future.done():
            self.future.set_result(None)
