"""A pool of agents: at most ``size + max_overflow`` of them, each handed to one user at a time.

How many may be out is the admission's business (the limit ``pool:<name>``), which agent is handed out that of
`interlock.core.shelf`. Everything that takes time (starting, resetting, checking, closing an agent) is an
`Errand`; when one ends, as after every other change, `_assign` hands out and starts what follows from the
state. Vocabulary and overflow are those of SQLAlchemy's QueuePool, transactions those of nimble_pool.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from itertools import count
from typing import TYPE_CHECKING, Generic, Literal, TypeVar, cast

from interlock.admission.local import LocalAdmission
from interlock.admission.validation import check_name, check_seconds
from interlock.clock import SystemClock
from interlock.errors import ValidationError
from interlock.pool.checkout import DEFAULT_PATIENCE, Agent, Answer, Checkout
from interlock.pool.desk import Desk
from interlock.pool.leaks import LeakReport, named
from interlock.pool.policy import PoolPolicy
from interlock.pool.readings import AgentOut, PoolStats
from interlock.pool.stock import Stock

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from interlock.core.shelf import Member
    from interlock.errors import InterlockError
    from interlock.ports import Admission, Clock

Result = TypeVar("Result")

log = logging.getLogger(__name__)

_serial = count(1)


class AgentPool(Generic[Agent]):
    """Keeps *size* agents, starts up to *max_overflow* more when all are out, and lends them one by one.

    Args:
        factory: starts an agent. It and the next three may be plain or async; plain ones must not block.
        strategy: "lifo" hands out the last returned agent, "fifo" the longest returned.
        name: of the pool and of its limit, ``pool:<name>``; processes that share *admission* and give one
            name share the limit.
        reset: called with an agent between two users; if it raises, the agent is replaced.
        check: called with an agent before it is handed out; if it raises or says False, it is replaced.
        close: called with an agent that goes (default: its own ``aclose`` or ``close``, if it has one).
        max_idle: seconds for which an overflow agent stays idle; None: it ends when it comes back, unless
            somebody waits.
        max_lifetime: seconds after which an idle or returning agent is replaced.
        admission: shared with other parts; default: one of its own.
        leak_after: an agent that is out for longer (seconds) is reported in the log, once a checkout.
        start_timeout, reset_timeout, check_timeout, close_timeout: seconds that one such call may take.
        retry_delay, retry_max: seconds until a failed start is tried again, doubled each time up to the
            second.

    An agent may be any object; identity counts. It may offer ``alive``, a property or plain method: one that
    says False is replaced instead of handed out. It may offer ``async def wait_closed()`` that returns when
    it has died: then the pool notices at once, and an agent that dies while it is out is out no more.

    All methods are to be called from the event loop in which the pool was started.
    """

    def __init__(
        self,
        factory: Callable[[], Awaitable[Agent] | Agent],
        size: int = 10,
        max_overflow: int = 5,
        strategy: Literal["lifo", "fifo"] = "lifo",
        *,
        name: str | None = None,
        reset: Callable[[Agent], object] | None = None,
        check: Callable[[Agent], object] | None = None,
        close: Callable[[Agent], object] | None = None,
        max_idle: float | None = None,
        max_lifetime: float | None = None,
        admission: Admission | None = None,
        clock: Clock | None = None,
        leak_after: float | None = None,
        start_timeout: float = 60.0,
        reset_timeout: float = 10.0,
        check_timeout: float = 5.0,
        close_timeout: float = 10.0,
        retry_delay: float = 0.5,
        retry_max: float = 30.0,
    ) -> None:
        if strategy not in ("lifo", "fifo"):
            raise ValidationError(f"strategy is {strategy!r}; allowed are 'lifo' and 'fifo'")
        self.policy = PoolPolicy(
            size=size,
            max_overflow=max_overflow,
            max_idle=max_idle,
            max_lifetime=max_lifetime,
            leak_after=leak_after,
            start_timeout=start_timeout,
            reset_timeout=reset_timeout,
            check_timeout=check_timeout,
            close_timeout=close_timeout,
            retry_delay=retry_delay,
            retry_max=retry_max,
        )
        self.name = name if name is not None else f"agents-{next(_serial)}"
        self.limit_name = f"pool:{self.name}"
        check_name(self.limit_name)
        self._own_admission = admission is None
        self.clock: Clock = clock or getattr(admission, "clock", None) or SystemClock()
        self.admission: Admission = LocalAdmission(clock=self.clock) if admission is None else admission
        self._stock = Stock(
            self.name,
            self.policy,
            self.clock,
            lifo=strategy == "lifo",
            factory=factory,
            reset=reset,
            check=check,
            close=close,
        )
        leaks = None
        if leak_after is not None:
            leaks = LeakReport(self.name, self._stock.shelf, self.clock, leak_after)
        self._desk = Desk(self.admission, self.limit_name, self._stock, leaks)
        self._desk.changed = self._changed
        self._shelf = self._stock.shelf
        self._members = self._shelf.members
        self._lay = self._shelf.lay
        self._came_back: Awaitable[bool] = Answer(True)
        self._expecting: set[asyncio.Future[InterlockError | None]] = set()
        self._quiet: asyncio.Future[None] | None = None
        self._opened = False
        self._stopping: asyncio.Task[bool] | None = None

    # -- users

    def checkout(self, timeout: float | None = DEFAULT_PATIENCE, block: bool = True) -> Checkout[Agent]:
        """Ask for an agent. *timeout* (seconds, None: for ever) covers all waiting, also for a start.

        Awaiting it raises `AcquireTimeout`; `PoolExhausted` without *block*, if all agents are out and no
        overflow is left; `AgentStartFailed` if one would have to be started and could not be (the error of
        the factory is its cause); `PoolClosed` once the pool stops.
        """
        return Checkout(self, timeout, block)

    def checkin(self, agent: Agent) -> Awaitable[bool]:
        """Give *agent* back; it has happened when this returns, awaited or not.

        False: it is not out, or none of ours, and nothing was done.
        """
        member = self._members.get(id(agent))
        if member is None or member.permit is None:
            return Answer(False)
        member.used = True
        desk = self._desk
        tally = desk.short_back
        if (
            member.permit is tally
            and not desk.line
            and not member.overflow
            and (member.alive is None or self._stock.lives(member))
        ):
            member.permit = None
            self._lay(member)
            if not tally.give_back():
                desk.release(tally)
        else:
            desk.take_back(member, reset=True)
        return self._came_back

    def discard(self, agent: Agent) -> Awaitable[bool]:
        """Give *agent* back as useless: it is closed and replaced. Otherwise as `checkin`."""
        member = self._shelf.find(agent)
        if member is None or member.permit is None:
            return Answer(False)
        self._desk.take_back(member, reset=False, keep=False)
        return self._came_back

    async def transaction(
        self,
        function: Callable[[Agent], Awaitable[Result] | Result],
        timeout: float | None = DEFAULT_PATIENCE,
    ) -> Result:
        """Check out, return what *function* (plain or async) makes of the agent, check in.

        What it raises reaches the caller unchanged; the agent is then reset, or replaced where there is no
        ``reset``. *timeout* is that of `checkout`.
        """
        checkout = self.checkout(timeout)
        agent = await checkout
        try:
            result = function(agent)
            if inspect.isawaitable(result):
                result = await result
        except BaseException:
            if checkout.holds():
                if self._stock.resets:
                    self.checkin(agent)
                else:
                    self.discard(agent)
            raise
        if checkout.holds():
            self.checkin(agent)
        return cast("Result", result)

    # -- starting and stopping

    async def start(self) -> None:
        """Begin to start *size* agents, in the background; the first checkout does so, too."""
        if not self._may_open():
            return
        await self._desk.open(self.policy.most)
        if not self._may_open():  # somebody else was faster
            return
        self._opened = True
        done = asyncio.get_running_loop().create_future()
        done.set_result(True)
        self._came_back = done  # the same for all: a future that is done is the quickest thing to await
        self._desk.assign()
        await asyncio.sleep(0)  # agents that take no time are there when this returns

    def _may_open(self) -> bool:
        if self._desk.closed:
            raise self._desk.closed_error()
        return not self._opened

    async def ready(self) -> None:
        """Wait until *size* agents are there.

        Raises `AgentStartFailed` if a start fails or the last one has failed (the pool itself goes on
        trying), and `PoolClosed`.
        """
        await self.start()
        future: asyncio.Future[InterlockError | None] = asyncio.get_running_loop().create_future()
        self._expecting.add(future)
        self._changed()
        try:
            error = await future
        finally:
            self._expecting.discard(future)
        if error is not None:
            raise error

    async def stop(self, timeout: float = DEFAULT_PATIENCE) -> bool:
        """Hand out nothing any more, wait *timeout* seconds for agents that are out, close all.

        Those who wait get `PoolClosed`. Closing takes ``close_timeout`` at most. Says whether all agents came
        back in time; those that did not are closed under their users. A second call waits for the first;
        being cancelled does not end the stopping.
        """
        check_seconds("timeout", timeout)
        if self._stopping is None:
            self._desk.close()
            self._changed()
            loop = asyncio.get_running_loop()
            self._stopping = loop.create_task(self._stop(timeout), context=self._stock.errands.context)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._stopping.add_done_callback(lambda _: None if future.done() else future.set_result(None))
        await future
        return self._stopping.result()

    async def __aenter__(self) -> AgentPool[Agent]:
        await self.start()
        return self

    async def __aexit__(self, *exit_: object) -> None:
        await self.stop()

    async def _stop(self, timeout: float) -> bool:
        if self._busy():
            self._quiet = asyncio.get_running_loop().create_future()
            timer = self.clock.call_at(self.clock.now() + timeout, self._tell_quiet)
            await self._quiet
            timer.cancel()
        overdue = self._shelf.out()
        for member in overdue:
            log.warning("pool %r closes %r, which is still out", self.name, member.agent)
            self._desk.take_back(member, reset=False)
        self._stock.give_up()
        if self._busy():
            self._quiet = asyncio.get_running_loop().create_future()
            await self._quiet
        if self._desk.leaks is not None:
            self._desk.leaks.close()
        if self._own_admission:
            await self.admission.aclose()
        elif self._desk.tally is not None:
            await self.admission.remove_limit(self.limit_name)
        return not overdue

    def _busy(self) -> bool:
        stock = self._stock
        return bool(stock.errands.running or stock.closings.running or self._shelf.out())

    def _tell_quiet(self) -> None:
        if self._quiet is not None and not self._quiet.done():
            self._quiet.set_result(None)

    def _changed(self) -> None:
        """Wake those who wait for the pool itself: `ready` and `stop`."""
        waiting = [future for future in self._expecting if not future.done()]
        for future in waiting:
            if self._desk.closed:
                future.set_result(self._desk.closed_error())
            elif self._shelf.staying - self._shelf.preparing >= self.policy.size:
                future.set_result(None)
            elif self._stock.failures and self._stock.last_failure is not None:
                future.set_result(self._desk.not_started(self._stock.last_failure))
        if self._quiet is not None and not self._busy():
            self._tell_quiet()

    async def _wait(self, checkout: Checkout[Agent]) -> Member:
        check_seconds("timeout", checkout.timeout)
        await self.start()
        return await self._desk.wait(checkout)

    # -- readings

    def stats(self) -> PoolStats:
        """The pool now; ``waiting`` counts all who await a checkout."""
        shelf, failure = self._shelf, self._stock.last_failure
        return PoolStats(
            size=self.policy.size,
            available=len(shelf.idle),
            in_use=len(shelf.out()),
            overflow=shelf.overflow(),
            max_overflow=self.policy.max_overflow,
            waiting=len(self._desk.line),
            starting=shelf.starting,
            preparing=shelf.preparing,
            closing=shelf.closing,
            failures=self._stock.failures,
            last_failure=None if failure is None or not self._stock.failures else repr(failure),
        )

    def out(self) -> tuple[AgentOut, ...]:
        """The agents that are out; with ``leak_after``, for how long and with whom, longest first."""
        now_ms = self._stock.now_ms()
        found = []
        for member in self._shelf.out():
            watched = self._desk.leaks is not None and member.user is not None
            seconds = (now_ms - member.since_ms) / 1000 if watched else None
            user = named(member.user) if watched else None
            found.append(AgentOut(member.agent, member.overflow, seconds, user))
        return tuple(sorted(found, key=lambda one: -(one.seconds or 0.0)))

    def __repr__(self) -> str:
        stats = self.stats()
        limits = f"{stats.in_use} out and {stats.available} idle of {stats.size} + {stats.max_overflow}"
        notes = [
            f"{stats.waiting} waiting" if stats.waiting else "",
            f"{stats.starting} starting" if stats.starting else "",
            "closed" if self._desk.closed else "",
        ]
        return f"<AgentPool {self.name}: {', '.join([limits, *filter(None, notes)])}>"
