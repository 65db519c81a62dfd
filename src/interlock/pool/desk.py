"""Where agents are handed out and taken back: who stands in line, who has a permit, who gets which agent.

A caller stands in line from before it asks for a permit until it has an agent. `assign` is the one function
that hands out and starts agents; it is called after every change and works from what is there.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, Any

from interlock.admission.local import LocalAdmission
from interlock.core.tally import Tally
from interlock.errors import (
    AcquireTimeout,
    AgentStartFailed,
    InterlockError,
    InvalidOperation,
    LimitExceeded,
    PoolClosed,
    PoolExhausted,
)
from interlock.pool.checkout import Caller, Checkout

if TYPE_CHECKING:
    from collections.abc import Callable

    from interlock.core.shelf import Member
    from interlock.pool.leaks import LeakReport
    from interlock.pool.stock import Stock
    from interlock.ports import Admission


class Desk:
    """Lends the agents of *stock* under the limit *limit_name* of *admission*."""

    def __init__(self, admission: Admission, limit_name: str, stock: Stock, leaks: LeakReport | None) -> None:
        self.admission = admission
        self.limit_name = limit_name
        self.stock = stock
        self.shelf = stock.shelf
        self.idle = stock.shelf.idle
        self.next = stock.shelf.next
        self.leaks = leaks
        self.line: OrderedDict[Caller, None] = OrderedDict()
        self.wanting = 0
        """Those in line who have a permit and lack an agent."""
        self.tally: Tally | None = None
        """In place of permits, where the admission is in this process."""
        self.short: Tally | None = None
        """The tally, while handing out an idle agent is all there is to do; else None."""
        self.short_back: Tally | None = None
        """The tally, while laying it on the shelf is all there is to do with one that comes back."""
        self.closed = False
        self.changed: Callable[[], None] = lambda: None
        stock.changed = self.assign
        stock.offer = self._offer
        stock.start_failed = self._start_failed
        stock.died = self._died
        stock.somebody_waits = lambda: bool(self.line)

    # -- opening and closing

    async def open(self, most: int) -> None:
        """Make the limit; from now on *most* agents may be out."""
        if not isinstance(self.admission, LocalAdmission):
            await self.admission.set_limit(self.limit_name, most)
            return
        if self.limit_name in self.admission.limits():
            raise InvalidOperation(
                f"the limit {self.limit_name!r} exists already; pools need different names"
            )
        self.admission.configure(self.limit_name, most)
        owner = self.limit_name.replace(":", " ", 1)
        self.tally = Tally(self.admission.kernel, self.limit_name, owner, self.stock.now_ms())
        if not self.stock.checks and self.leaks is None:
            self.short = self.tally
        if not self.stock.resets and self.stock.policy.max_lifetime is None:
            self.short_back = self.tally

    def close(self) -> None:
        """Hand out nothing any more: everyone in line gets `PoolClosed`."""
        self.closed = True
        self.short = None
        self.short_back = None
        self.stock.stop()
        for caller in list(self.line):
            if caller.permit is not None:
                self._refuse(caller, self.closed_error())
            elif caller.scope is not None:
                caller.scope.reschedule(0.0)  # called back from where it waits for its permit

    def closed_error(self) -> PoolClosed:
        """What everybody gets who still wants something."""
        return PoolClosed(f"pool {self.stock.name!r} is closed")

    # -- the way of a checkout

    async def wait(self, checkout: Checkout[Any]) -> Member:
        """The long way: in line for a permit, then for an agent; both within the time that *checkout* has."""
        timeout = checkout.timeout
        deadline = None if timeout is None else self.stock.clock.now() + timeout
        caller = Caller()
        self.line[caller] = None
        try:
            caller.permit = await self._permit(caller, checkout)
            self.wanting += 1
            self.assign()
            if caller.member is None:
                await self._agent(caller, timeout, deadline)
        except BaseException:
            self._forsake(caller)
            raise
        member = caller.member
        assert member is not None, "who is woken without an error has an agent"
        if self.leaks is not None:
            self.leaks.note(member)
        return member

    async def _permit(self, caller: Caller, checkout: Checkout[Any]) -> Any:
        if len(self.line) == 1 and self.tally is not None and self.tally.take():
            return self.tally
        try:
            async with asyncio.timeout(None) as caller.scope:
                timeout = checkout.timeout if checkout.block else 0
                return await self.admission.acquire(self.limit_name, timeout=timeout)
        except LimitExceeded as full:
            if checkout.block:
                raise AcquireTimeout(full.message, **full.details) from None
            raise PoolExhausted(
                f"pool {self.stock.name!r} has no agent left: {len(self.shelf.out())} are out of"
                f" {self.shelf.size} and {self.shelf.max_overflow} overflow, {len(self.line) - 1} wait"
            ) from None
        except (TimeoutError, InterlockError):
            if self.closed:
                raise self.closed_error() from None
            raise
        finally:
            caller.scope = None

    async def _agent(self, caller: Caller, timeout: float | None, deadline: float | None) -> None:
        if self.closed:  # after the grant, before the step that noticed it
            raise self.closed_error()
        caller.future = asyncio.get_running_loop().create_future()
        timer = None
        if deadline is not None:
            timer = self.stock.clock.call_at(deadline, partial(self._too_late, caller, timeout))
        try:
            await caller.future
        finally:
            if timer is not None:
                timer.cancel()
        if caller.error is not None:
            raise caller.error

    def _too_late(self, caller: Caller, timeout: float | None) -> None:
        shelf = self.shelf
        found = f"{shelf.starting} being started, {shelf.preparing} being reset or checked"
        name = self.stock.name
        self._refuse(caller, AcquireTimeout(f"waited {timeout:g} s for an agent of pool {name!r}: {found}"))

    def _forsake(self, caller: Caller) -> None:
        """*caller* failed or was cancelled: waiting, or in the instant of being served."""
        self._leave_line(caller)
        member = caller.member
        if member is not None:
            if member.permit is caller.permit:  # else it died or the pool stopped meanwhile
                self.take_back(member, reset=False)
        elif caller.permit is not None:
            self.release(caller.permit)
        self.assign()

    def _leave_line(self, caller: Caller) -> bool:
        if caller not in self.line:
            return False
        del self.line[caller]
        self.wanting -= caller.permit is not None
        return True

    def _refuse(self, caller: Caller, error: InterlockError) -> None:
        """End the waiting of *caller* for an agent; its permit it gives back itself."""
        if self._leave_line(caller):
            caller.error = error
            caller.wake()

    def take_back(self, member: Member, *, reset: bool, keep: bool = True) -> None:
        """*member*, which is out, comes back: to be *reset* if it was used, to be closed unless *keep*."""
        permit, member.permit = member.permit, None
        member.user = None
        if keep:
            self.stock.back(member, reset=reset)
        else:
            self.stock.close(member)
        self.release(permit)
        self.assign()

    def release(self, permit: Any) -> None:
        """Give back what a caller or an agent held."""
        if permit is not self.tally or self.tally is None:
            permit.release()
        elif not self.tally.give_back() and isinstance(self.admission, LocalAdmission):
            now_ms = self.stock.now_ms()
            self.admission._release(self.tally.part(now_ms), "success")

    # -- who gets which agent

    def assign(self) -> None:
        """Hand out and start what the state calls for; called after every change of it."""
        stock, idle = self.stock, self.idle
        if not self.closed:
            if stock.checks:
                while idle and self.wanting > stock.examining and (member := stock.next()) is not None:
                    stock.examine(member)
            else:
                while idle and self._front() is not None and (member := stock.next()) is not None:
                    if not self._offer(member):
                        stock.hand_over(member)  # back on the shelf
            if not self.line:
                for member in self.shelf.surplus():
                    idle.remove(member)
                    stock.close(member)
            stock.staff(self.wanting)
        self.changed()

    def _front(self) -> Caller | None:
        """Who is to be served next.

        Permits are granted in line in one process. So if the first in line has none yet and somebody behind
        it has, it was granted one and is about to run: an agent that is there now is its own.
        """
        if not self.wanting:
            return None
        if self.tally is not None:
            first = next(iter(self.line))
            return first if first.permit is not None else None
        return next(caller for caller in self.line if caller.permit is not None)

    def _offer(self, member: Member) -> bool:
        caller = self._front()
        if caller is None:
            return False
        self._leave_line(caller)
        member.permit = caller.permit
        caller.member = member
        caller.wake()
        return True

    def _start_failed(self, cause: BaseException) -> None:
        """Tell those who waited for just this one: of the callers the youngest, for whom none is left."""
        shelf = self.shelf
        if self.wanting > shelf.starting + shelf.preparing + len(shelf.idle):
            youngest = next(caller for caller in reversed(self.line) if caller.permit is not None)
            self._refuse(youngest, self.not_started(cause))

    def _died(self, member: Member) -> None:
        """*member* died while it was out: it is out no more, and who waits gets another."""
        permit, member.permit = member.permit, None
        self.stock.close(member)
        self.release(permit)

    def not_started(self, cause: BaseException) -> AgentStartFailed:
        """What a caller gets for whom no agent could be started."""
        error = AgentStartFailed(f"pool {self.stock.name!r} could not start an agent: {cause!r}")
        error.__cause__ = cause
        return error
