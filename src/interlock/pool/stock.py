"""The agents of a pool and all that is done to them: started, reset, checked, watched, closed.

Each of these is an `Errand`. Its end changes the shelf and then tells the pool (`changed`), which works out
what follows; nothing here knows who waits.
"""

from __future__ import annotations

import inspect
import logging
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from interlock.admission.validation import to_ms
from interlock.core.shelf import Member, Shelf
from interlock.errors import InterlockError, InvalidOperation
from interlock.pool.errand import Errands

if TYPE_CHECKING:
    from collections.abc import Callable

    from interlock.pool.policy import PoolPolicy
    from interlock.ports import Clock, TimerHandle

log = logging.getLogger(__name__)


class Stock:
    """What one pool has of agents.

    *changed* is called after every change; *start_failed* with the error when an agent could not be started;
    *offer* with one that is ready at this moment, and says whether somebody took it; *died* with one that
    died while it was out. Closing an agent is no news by itself: whoever does so calls *changed* afterwards.
    """

    changed: Callable[[], None]
    start_failed: Callable[[BaseException], None]
    offer: Callable[[Member], bool]
    died: Callable[[Member], None]
    somebody_waits: Callable[[], bool]

    def __init__(
        self,
        name: str,
        policy: PoolPolicy,
        clock: Clock,
        *,
        lifo: bool,
        factory: Callable[[], Any],
        reset: Callable[[Any], object] | None,
        check: Callable[[Any], object] | None,
        close: Callable[[Any], object] | None,
    ) -> None:
        self.name = name
        self.policy = policy
        self.clock = clock
        self.shelf = Shelf(
            policy.size,
            policy.max_overflow,
            lifo=lifo,
            max_idle_ms=policy.max_idle_ms,
            max_lifetime_ms=policy.max_lifetime_ms,
        )
        self.errands = Errands(clock)
        """Agents being started, reset, checked; the next two: being closed, being watched."""
        self.closings = Errands(clock)
        self.watches = Errands(clock)
        self.examining = 0
        """Agents that are checked before they are handed out."""
        self.failures = 0
        """Starts that failed in a row."""
        self.last_failure: BaseException | None = None
        self.checks = check is not None
        self.resets = reset is not None
        self.closed = False
        self._factory = factory
        self._reset = reset
        self._check = check
        self._close = close
        self._retry: TimerHandle | None = None
        self._expiry: TimerHandle | None = None
        self._expiry_ms: int | None = None

    def now_ms(self) -> int:
        return to_ms(self.clock.now())

    # -- starting

    def staff(self, waiting: int) -> None:
        """Start what *waiting* callers and the size of the pool call for.

        After a failure the pool tries again with one agent at a time, and callers do not wait for that: each
        gets an attempt of its own.
        """
        spare = None
        if self.failures:
            spare = 0 if self._retry is not None else 1 - self.shelf.starting
        for _ in range(self.shelf.to_start(waiting, spare)):
            self.shelf.starting += 1
            self.errands.send(self.policy.start_timeout, self._started, self._factory, late=self._came_late)

    def _started(self, agent: Any, error: BaseException | None) -> None:
        self.shelf.starting -= 1
        if error is None and agent is None:
            error = InvalidOperation("the factory returned None")
        if error is None and self.shelf.find(agent) is not None:
            error = InvalidOperation(f"the factory returned {agent!r}, which is in the pool already")
        if error is not None:
            self._failed_to_start(error)
            self.start_failed(error)
        else:
            member = self.shelf.arrive(agent, self.now_ms())
            self._meet(member)
            if self._check is None or self.closed:
                self._begin(member)
            else:
                self._examine(member, partial(self._was_checked_at_start, member))
        self.changed()

    def _meet(self, member: Member) -> None:
        """See what *member* offers to tell of its own death."""
        agent = member.agent
        try:
            alive, wait_closed = getattr(agent, "alive", None), getattr(agent, "wait_closed", None)
        except Exception:
            log.exception("pool %r cannot look at an agent of type %s", self.name, type(agent).__name__)
            member.dead = True
            return
        if alive is not None:
            member.alive = alive if callable(alive) else partial(getattr, agent, "alive")
        if inspect.iscoroutinefunction(wait_closed):
            member.watch = self.watches.send(None, partial(self._was_closed, member), wait_closed)

    def _begin(self, member: Member) -> None:
        member.failures, self.failures = self.failures, 0
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self.closed:
            self.close(member)
        elif not self.lives(member):
            self.start_failed(self._bury(member))
        elif not self.offer(member):
            self._lay(member)

    def _was_checked_at_start(self, member: Member, fit: object, error: BaseException | None) -> None:
        self.examining -= 1
        self.shelf.prepared(member)
        if error is None and _refused(fit):
            error = InvalidOperation(f"the check refused {member.agent!r}, which had just been started")
        if error is None:
            self._begin(member)
        else:
            self.close(member)
            self._failed_to_start(error)
            self.start_failed(error)
        self.changed()

    def _failed_to_start(self, error: BaseException) -> None:
        self.failures += 1
        self.last_failure = error
        if not self.closed and self._retry is None:
            delay = self.policy.retry_after(self.failures)
            log.warning(
                "pool %r could not start an agent (%d in a row), next attempt in %g s: %r",
                *(self.name, self.failures, delay, error),
            )
            self._retry = self.clock.call_at(self.clock.now() + delay, self._try_again)

    def _try_again(self) -> None:
        self._retry = None
        self.changed()

    def _came_late(self, agent: Any) -> None:
        """The factory answered after its time: nobody counts on this one any more."""
        if agent is not None and self.shelf.find(agent) is None:
            self._call_close(agent, lambda _, error: None)

    # -- between two users

    def back(self, member: Member, *, reset: bool) -> None:
        """*member* came back; *reset* if it was used."""
        if self.closed or self.shelf.outlived(member, self.now_ms()):
            self.close(member)
        elif not self.lives(member):
            self._bury(member)
        elif reset and self._reset is not None:
            self.shelf.prepare(member)
            then = partial(self._was_reset, member)
            self.errands.send(self.policy.reset_timeout, then, self._reset, member.agent)
        else:
            self._shelve(member)

    def _was_reset(self, member: Member, _: object, error: BaseException | None) -> None:
        self.shelf.prepared(member)
        if error is not None:
            log.warning("pool %r replaces %r, whose reset failed: %r", self.name, member.agent, error)
            self.close(member)
        else:
            self.back(member, reset=False)
        self.changed()

    def _shelve(self, member: Member) -> None:
        if not self.shelf.settle(member) and not self.somebody_waits():
            self.close(member)
        else:
            self._lay(member)

    def _lay(self, member: Member) -> None:
        self.shelf.put(member, self.now_ms())
        due_ms = self.shelf.due_ms(member)
        if due_ms is not None and (self._expiry_ms is None or due_ms < self._expiry_ms):
            self._expire_at(due_ms)

    def _expire_at(self, due_ms: int | None) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
        self._expiry = None if due_ms is None else self.clock.call_at(due_ms / 1000, self._expire)
        self._expiry_ms = due_ms

    def _expire(self) -> None:
        for member in self.shelf.expire(self.now_ms()):
            self.close(member)
        self._expire_at(self.shelf.next_due())
        self.changed()

    # -- before it is handed out

    def next(self) -> Member | None:
        """The idle agent whose turn it is, off the shelf; the dead are sorted out."""
        while self.shelf.idle:
            member = self.shelf.next()
            if member.alive is None or self.lives(member):
                return member
            self._bury(member)
        return None

    def examine(self, member: Member) -> None:
        """Check *member*, which was taken off the shelf; if it is fit, it is offered."""
        self._examine(member, partial(self._was_checked, member))

    def _examine(self, member: Member, then: Callable[[Any, BaseException | None], None]) -> None:
        assert self._check is not None
        self.examining += 1
        self.shelf.prepare(member)
        self.errands.send(self.policy.check_timeout, then, self._check, member.agent)

    def _was_checked(self, member: Member, fit: object, error: BaseException | None) -> None:
        self.examining -= 1
        self.shelf.prepared(member)
        if error is not None or _refused(fit):
            log.warning("pool %r replaces %r, which its check refused: %r", self.name, member.agent, error)
            self.close(member)
        else:
            self.hand_over(member)
        self.changed()

    def hand_over(self, member: Member) -> None:
        """Offer *member*, which is fit and unused since; if nobody takes it, it goes back on the shelf."""
        if self.closed:
            self.close(member)
        elif not self.lives(member):
            self._bury(member)
        elif not self.offer(member):
            self._shelve(member)

    # -- going

    def lives(self, member: Member) -> bool:
        """Whether *member* says so, or cannot tell."""
        if member.alive is not None and not member.dead:
            try:
                member.dead = not member.alive()
            except Exception:
                log.exception("pool %r takes %r for dead, which could not tell", self.name, member.agent)
                member.dead = True
        return not member.dead

    def _was_closed(self, member: Member, _: object, error: BaseException | None) -> None:
        """`wait_closed` of *member* has ended."""
        if member.state in ("closing", "gone"):
            return
        log.info("pool %r: %r has died (%r)", self.name, member.agent, error)
        member.dead = True
        if member.permit is not None:
            self.died(member)
        elif member.state == "here":
            self.shelf.idle.remove(member)
            self._bury(member)
        # else it is being prepared, and whoever does so will find it dead
        self.changed()

    def _bury(self, member: Member) -> InterlockError:
        """*member* died. One that did so young and without any use was not started well: no hurry, then."""
        error = InvalidOperation(f"{member.agent!r} died before its first use")
        self.close(member)
        young = self.now_ms() - member.born_ms < to_ms(self.policy.retry_max)
        if young and not member.used and not self.closed:
            self.failures = max(self.failures, member.failures)
            self._failed_to_start(error)
        return error

    def close(self, member: Member) -> None:
        """*member* goes, wherever it was. One that is dead makes room at once, else once it is closed."""
        self.shelf.leave(member)
        if member.watch is not None:
            member.watch.give_up(InvalidOperation("the agent is being closed"))
        if not self._call_close(member.agent, partial(self._gone, member)) or member.dead:
            self.shelf.forget(member)

    def _call_close(self, agent: Any, then: Callable[[Any, BaseException | None], None]) -> bool:
        """False: there is nothing to call."""
        close: Any = None
        if self._close is not None:
            close = partial(self._close, agent)
        else:
            with suppress(Exception):
                close = getattr(agent, "aclose", None) or getattr(agent, "close", None)
        if not callable(close):
            return False
        self.closings.send(self.policy.close_timeout, then, close)
        return True

    def _gone(self, member: Member, _: object, error: BaseException | None) -> None:
        self.shelf.forget(member)
        if error is not None:
            log.warning("pool %r could not close %r: %r", self.name, member.agent, error)
        self.changed()

    # -- stopping

    def stop(self) -> None:
        """Close what is idle now, and from now on whatever comes back."""
        self.closed = True
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self._expire_at(None)
        while self.shelf.idle:
            self.close(self.shelf.idle.popleft())

    def give_up(self) -> None:
        """Wait no longer for what is being started, reset or checked."""
        error = TimeoutError("the pool was stopped meanwhile")
        for errand in list(self.errands.running):
            errand.give_up(error)


def _refused(fit: object) -> bool:
    """A check that returns nothing has nothing against it."""
    return fit is not None and not fit
