"""How the kernel lives in an event loop: a future per waiter, one timer, effects carried out.

The grant lives in the kernel's record; setting a waiter's future is only a wake-up. Whoever is
cancelled looks at the record: granted, then it is given back in the same step; still waiting, then it
is withdrawn. So there is no interleaving in which a permit sits in a future that nobody reads.
"""

from __future__ import annotations

import asyncio
from asyncio.events import _get_running_loop
from collections import deque
from contextlib import suppress
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Any

from interlock.admission.callback import begin, call_back
from interlock.admission.permit import Acquisition, Permit
from interlock.admission.refusals import (
    deadlock,
    ending,
    lending_refused,
    lost,
    refusal,
    unknown_limit,
)
from interlock.admission.validation import check_seconds, to_ms
from interlock.admission.waits import Wait
from interlock.clock import SystemClock
from interlock.core import model
from interlock.core.explain import position
from interlock.core.kernel import Kernel
from interlock.core.model import GateWaiting, Granted, Refused, Waiter
from interlock.errors import (
    AcquireTimeout,
    InterlockError,
    InvalidOperation,
    Unavailable,
    ValidationError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from interlock.admission.waits import WaitEnded, WaitWatcher
    from interlock.core.model import Claims, Outcome, Rank
    from interlock.ports import Clock, TimerHandle

_CROWD = 1000


class _Parked:
    """Those who await one waiter: several with one key, else one."""

    __slots__ = ("error", "futures")

    def __init__(self) -> None:
        self.futures: dict[asyncio.Future[None], None] = {}
        self.error: InterlockError | None = None

    def wake(self) -> None:
        for future in self.futures:
            _resolve(future)


class Shell:
    """The kernel with a clock and a loop. `LocalAdmission` adds what users call."""

    def __init__(self, *, clock: Clock | None = None) -> None:
        self.clock: Clock = clock or SystemClock()
        self.kernel = Kernel()
        self._give_back = self.kernel.give_back
        self._now_ms: Callable[[], int] = getattr(self.clock, "now_ms", self._rounded_now)
        self._parked: dict[Waiter, _Parked] = {}
        self._keyed: dict[model.Permit, Permit] = {}
        self._abandoned: deque[tuple[model.Permit, Outcome]] = deque()
        self._handed_over: dict[model.Permit, object] = {}
        self._gate_listeners: dict[str, Callable[[bool], None]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: int | None = None
        self._timer: TimerHandle | None = None
        self._timer_due_ms: int | None = None
        self._closed = False
        self.on_wait: list[WaitWatcher] = []
        """Told of every wait, by the task that waits."""

    # -- the way of a request

    def _take(self, names: tuple[str, ...]) -> model.Permit | None:
        """The short way: a plain request whose limits all have room, with nobody waiting."""
        claims = self.kernel.claims_by_names.get(names)
        # Not asyncio's own question which loop runs: that asks the system for the process, at every call.
        if claims is None or self._loop is None or self._loop.is_closed():
            return None
        return self.kernel.take(claims, self._now_ms())

    def _admit(self, request: Acquisition) -> Generator[Any, None, Permit]:
        answer = self._ask(request)
        if isinstance(answer, Waiter):
            if answer.waiting and request.timeout != 0:
                return (yield from self._wait(answer, request))
            # Granted already, by a listener that answered at the gate at once; or the same key waits.
            answer = answer.permit or Refused("would_block", answer.claims.names[0])
        if isinstance(answer, model.Permit):
            return self._permit(answer, request.names)
        raise refusal(self.kernel, answer, request, self._now_ms())

    def _catch_up(self, now_ms: int) -> None:
        """Before anything is asked for: let happen what should have happened."""
        # A loop that runs in this thread is the one that runs: to ask asyncio which costs more than the rest.
        if self._loop is None or self._thread != get_ident() or not self._loop.is_running():
            self._settle_in()
        if self._abandoned:
            self._collect()
        if self._timer_due_ms is not None and self._timer_due_ms <= now_ms:
            self._tick()  # the loop is late
        if self._closed:
            raise Unavailable("the admission is closed")

    def _ask(self, request: Acquisition) -> model.Permit | Waiter | Refused:
        kernel = self.kernel
        now_ms = self._now_ms()
        self._catch_up(now_ms)
        claims = kernel.claims_by_names.get(request.names) or self._claims(request.names)
        timeout, parent = request.timeout, request.parent
        deadline_ms = since_ms = lease_ms = None
        if timeout:
            check_seconds("timeout", timeout)
            deadline_ms = now_ms + to_ms(timeout)
        if request.since is not None:
            check_seconds("since", request.since)
            since_ms = to_ms(request.since)
        if request.lease is not None:
            check_seconds("lease", request.lease)
            lease_ms = to_ms(request.lease)
        answer = kernel.acquire(
            claims,
            now_ms,
            request.key,
            request.owner,
            None if parent is None else parent._record,
            request.priority,
            since_ms,
            deadline_ms,
            lease_ms,
            timeout != 0,
        )
        if kernel.outbox or kernel.timers.moved:
            self._carry_out()
        return answer

    def _wait(self, waiter: Waiter, request: Acquisition) -> Generator[Any, None, Permit]:
        deadline_ms = None if request.timeout is None else self._now_ms() + to_ms(request.timeout)
        error = yield from self._park(waiter, deadline_ms, request.on_queued)
        permit, now_ms = waiter.permit, self._now_ms()
        # The one it joined was less patient, or entered and left before this one came to run.
        outlived = isinstance(error, AcquireTimeout) and (deadline_ms is None or deadline_ms > now_ms)
        missed = permit is not None and permit.ended == "released"
        if waiter.key is not None and (outlived or missed):
            return (yield from self._admit(request.again(waiter.since_ms, deadline_ms, now_ms)))
        if error is not None:
            raise error
        assert permit is not None
        if permit.ended == "released":
            raise InvalidOperation(f"owner {waiter.owner!r} was released while this waited")
        return self._permit(permit, request.names)

    def _park(
        self, waiter: Waiter, deadline_ms: int | None, on_queued: Callable[[], object] | None = None
    ) -> Generator[Any, None, InterlockError | None]:
        """Wait until *waiter* waits no more; what went wrong, if it was not granted."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        parked = self._parked.get(waiter)
        timer = None
        if parked is None:
            parked = self._parked[waiter] = _Parked()
        elif deadline_ms is not None and deadline_ms < (waiter.deadline_ms or deadline_ms + 1):
            # It joins somebody with the same key who is more patient: its own patience ends by itself.
            timer = self.clock.call_at(deadline_ms / 1000, lambda: _resolve(future))
        parked.futures[future] = None
        ended, how = self._watched(waiter), "cancelled"
        try:
            if on_queued is not None:
                call_back(on_queued)
            yield from future
            how = "timeout" if waiter.waiting else "granted" if parked.error is None else parked.error.code
        except BaseException:
            del parked.futures[future]
            self._give_up(waiter, parked)
            raise
        finally:
            if timer is not None:
                timer.cancel()
            if ended is not None:
                ended(how, (self._now_ms() - waiter.arrived_ms) / 1000)
        del parked.futures[future]
        if waiter.waiting:
            self._give_up(waiter, parked)
            return ending(self.kernel, "timed_out", waiter, self._now_ms())
        return parked.error

    def _watched(self, waiter: Waiter) -> WaitEnded | None:
        """Tell whoever wants to know that *waiter* waits; what is to be told of its end."""
        if not self.on_wait:
            return None
        charged = waiter.charged
        names = tuple(limit.name for limit, _ in charged.limits)
        ahead = partial(_position, charged, waiter.rank)
        return begin(self.on_wait, Wait(names, waiter.owner, waiter.rank[0], ahead))

    def _give_up(self, waiter: Waiter, parked: _Parked) -> None:
        """Somebody stopped awaiting *waiter*: cancelled while waiting, or in the instant of being granted."""
        if parked.futures:
            return
        if waiter.waiting:
            self._parked.pop(waiter, None)
            self.kernel.withdraw(waiter, self._now_ms())
            self._forget_reclaimed(waiter)
            self._carry_out()
        elif waiter.permit is not None and waiter.reclaims is None and waiter.permit not in self._keyed:
            self._release(waiter.permit, "unused")

    # -- lending

    def _lend(self, record: model.Permit) -> None:
        now_ms = self._now_ms()
        self._catch_up(now_ms)
        refused = self.kernel.lend(record, now_ms)
        self._carry_out()
        if refused is not None:
            raise lending_refused(record, refused)

    def _reclaim(self, record: model.Permit, timeout: float | None) -> Generator[Any, None, None]:
        """Take the units of *record* again. If that fails it is released: nobody works without units."""
        if record.ended == "released":
            return  # its holder gave it up for good meanwhile
        try:
            now_ms = self._now_ms()
            self._catch_up(now_ms)
            if record.ended is not None:
                raise lost(record)
            check_seconds("timeout", timeout)
            deadline_ms = None if timeout is None else now_ms + to_ms(timeout)
            claims = self._claims(record.claims.names)
            answer = self.kernel.reclaim(record, claims, now_ms, deadline_ms)
            self._carry_out()
            error: InterlockError | None = None
            if isinstance(answer, Refused):
                assert answer.reason == "deadlock", answer
                error = deadlock(answer.circle)
            elif isinstance(answer, Waiter) and answer.waiting:
                error = yield from self._park(answer, deadline_ms)
            if error is not None:
                raise error
        finally:
            if record.lent:
                self._release(record, "unused")

    def _forget_reclaimed(self, waiter: Waiter) -> None:
        """The permit that *waiter* wanted back ended with its wait."""
        if waiter.reclaims is not None:
            self._keyed.pop(waiter.reclaims, None)

    def _permit(self, record: model.Permit, names: tuple[str, ...]) -> Permit:
        if record.key is None or record.ended is not None:  # its lease may have ended before its task ran
            return Permit(self, record, names)
        permit = self._keyed.get(record)
        if permit is None:
            permit = self._keyed[record] = Permit(self, record, names)
        return permit

    def _release(self, record: model.Permit, outcome: Outcome) -> bool:
        if self._thread is not None and self._thread != get_ident():
            return self._release_from_afar(record, outcome)
        if record in self._handed_over:
            return False
        kernel = self.kernel
        released = kernel.give_back_enrolled(record) or kernel.release(record, self._now_ms(), outcome)
        if record.key is not None:
            self._keyed.pop(record, None)
        if kernel.outbox or kernel.timers.moved:
            self._carry_out()
        return released

    def _release_from_afar(self, record: model.Permit, outcome: Outcome) -> bool:
        mine = object()
        if self._handed_over.setdefault(record, mine) is not mine:
            return False  # setdefault is one step: of two threads that release at once, one goes on
        if record.ended is not None:
            self._handed_over.pop(record, None)  # the loop was faster
            return False
        self._hand_over(record, outcome)
        return True

    def _touch(self, record: model.Permit) -> None:
        self.kernel.touch(record, self._now_ms())

    def _abandon(self, record: model.Permit) -> None:
        self._hand_over(record, "failed")

    def _hand_over(self, record: model.Permit, outcome: Outcome) -> None:
        """Note a release that must not happen here and now; the loop, or the next request, does it."""
        self._abandoned.append((record, outcome))
        loop = self._loop
        if loop is not None:
            with suppress(RuntimeError):  # it has been closed: the next request collects
                loop.call_soon_threadsafe(self._collect)

    def _collect(self) -> None:
        while self._abandoned:
            record, outcome = self._abandoned.popleft()
            self.kernel.release(record, self._now_ms(), outcome)
            self._keyed.pop(record, None)
            self._handed_over.pop(record, None)
        self._carry_out()

    # -- effects

    def _carry_out(self) -> None:
        outbox = self.kernel.outbox
        while outbox:
            effects = outbox[:]
            outbox.clear()
            for effect in effects:
                if isinstance(effect, Granted):
                    self._wake(effect.waiter, None)
                elif isinstance(effect, GateWaiting):
                    if (listener := self._gate_listeners.get(effect.limit)) is not None:
                        call_back(listener, effect.recycled)
                elif isinstance(effect.subject, Waiter):
                    self._wake(
                        effect.subject, ending(self.kernel, effect.reason, effect.subject, self._now_ms())
                    )
                else:
                    self._keyed.pop(effect.subject, None)
        if self.kernel.timers.moved:
            self._arm()

    def _wake(self, waiter: Waiter, error: InterlockError | None) -> None:
        if error is not None:
            self._forget_reclaimed(waiter)
        parked = self._parked.pop(waiter, None)
        if parked is not None:
            parked.error = error
            parked.wake()

    def _arm(self) -> None:
        """Set the one timer to the earliest deadline; it is only ever brought forward."""
        due_ms = self.kernel.next_deadline()
        if due_ms is None or (self._timer_due_ms is not None and self._timer_due_ms <= due_ms):
            self.kernel.timers.moved = False
            return
        try:
            timer = self.clock.call_at(due_ms / 1000, self._tick)
        except RuntimeError:
            return  # no loop runs in this thread: the next request that is made in one arms it
        self.kernel.timers.moved = False
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_due_ms = timer, due_ms

    def _tick(self) -> None:
        self._timer = self._timer_due_ms = None
        self.kernel.tick(self._now_ms())
        self.kernel.timers.moved = True
        self._carry_out()

    def _settle_in(self) -> None:
        """This thread, with the loop that runs in it, is the one that asks: others hand over."""
        loop = _get_running_loop()
        if loop is not self._loop or self._thread != get_ident():
            # A second asyncio.run(), perhaps: the timer that is set belongs to a loop that no longer turns.
            self._loop, self._thread = loop, get_ident()
            self._timer = self._timer_due_ms = None
            self._arm()

    def _claims(self, names: tuple[str, ...]) -> model.Claims:
        if not names:
            raise ValidationError("acquire needs the name of at least one limit")
        try:
            return self.kernel.claims(names)
        except KeyError as missing:
            raise unknown_limit(self.kernel, missing.args[0]) from None

    def _known(self, name: str) -> model.Limit:
        try:
            return self.kernel.limit(name)
        except KeyError:
            raise unknown_limit(self.kernel, name) from None

    def _rounded_now(self) -> int:
        return to_ms(self.clock.now())


def _position(claims: Claims, rank: Rank) -> int | None:
    """How many go before *rank*; None where so many wait that to count them would hold everybody up."""
    crowd = sum(len(limit.waiters) for limit, _ in claims.limits)
    return position(claims, rank) if crowd <= _CROWD else None


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
