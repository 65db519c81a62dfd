"""Admission in this process: the kernel, called from the tasks of one event loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from interlock.admission.permit import DEFAULT_TIMEOUT, Acquisition, Permit
from interlock.admission.readings import (
    Explanation,
    Holder,
    LimitReading,
    Snapshot,
    Waiting,
    read_blocks,
    read_holders,
    read_limit,
    read_waiting,
    waiter_id,
)
from interlock.admission.refusals import refusal
from interlock.admission.shell import Shell
from interlock.admission.validation import (
    check_capacity,
    check_name,
    check_seconds,
    duration_ms,
    to_ms,
)
from interlock.core import model
from interlock.core.explain import positions
from interlock.core.model import Cooldown, Refused, Waiter
from interlock.errors import InterlockError, InvalidOperation, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable


_new = object.__new__


class GateReading(NamedTuple):
    """``granted`` counts the units ever granted through the gate (the difference of two readings matters),
    ``granted_since`` those granted after a given moment and still held."""

    capacity: int | None
    used: int
    granted: int
    granted_since: int
    waiting: bool
    room: bool


class LocalAdmission(Shell):
    """Admission for the tasks of one event loop.

    *clock* gives the time (default: the system's). All methods but `Permit.release` are to be called from the
    loop's own thread.
    """

    # -- asking

    def acquire(
        self,
        *names: str,
        key: str | None = None,
        owner: str | None = None,
        parent: Permit | None = None,
        priority: int = 0,
        since: float | None = None,
        timeout: float | None = DEFAULT_TIMEOUT,
        lease: float | None = None,
        on_queued: Callable[[], object] | None = None,
    ) -> Acquisition:
        """Ask for one permit over all *names* at once; a name given twice takes two units.

        Args:
            key: makes it idempotent while live: the same key is the same permit, or the same wait.
            owner: ties permits together for `release_owner`.
            parent: a live permit; what it holds is not charged again and stays held by both.
            priority: smaller goes first.
            since: when the caller's work began, seconds since the epoch; older goes first (default: now).
            timeout: seconds to wait; None for ever, 0 not at all.
            lease: seconds after which the permit is lost unless renewed (default: never).
            on_queued: called once if the request has to wait.

        Awaiting it raises `LimitExceeded` (timeout 0), `AcquireTimeout`, `QueueFull`, `ValidationError`
        for an unknown name, `InvalidOperation` for a key in use with other names or a released parent,
        and `Unavailable` when the admission is closed.
        """
        request = _new(Acquisition)  # made for every call: the detour over __init__ would show
        request._admission = self
        request.names = names
        if (
            key is not None
            or owner is not None
            or parent is not None
            or since is not None
            or lease is not None
            or on_queued is not None
            or priority != 0
            or timeout is not DEFAULT_TIMEOUT
        ):
            request.more(key, owner, parent, priority, since, timeout, lease, on_queued)
        return request

    def try_acquire(
        self,
        *names: str,
        key: str | None = None,
        owner: str | None = None,
        parent: Permit | None = None,
        priority: int = 0,
        since: float | None = None,
    ) -> Permit | None:
        """A permit if there is room at once, else None; never passes a waiter that could run."""
        request = Acquisition(self, names)
        request.more(key, owner, parent, priority, since, 0, None, None)
        answer = self._ask(request)
        if isinstance(answer, model.Permit):
            return self._permit(answer, request.names)
        if isinstance(answer, Refused) and answer.reason != "would_block":
            raise refusal(self.kernel, answer, request, self._now_ms())
        return None

    def take(self, name: str, key: str, owner: str) -> Permit | None:
        """The short way to a slot of *name* that is known by its *key*; None if there is none: `acquire` it.

        Either it is held already, or there is room and nobody waits.
        """
        kernel = self.kernel
        record = kernel.permits.get(key)
        if record is None:
            record = self._take((name,))
            if record is None:
                return None
            kernel.enrol(record, key, owner)
        elif record.owner != owner or record.lent or record.claims.names != (name,):
            return None
        permit = self._keyed.get(record)
        if permit is None:
            permit = self._keyed[record] = Permit(self, record, (name,))
        return permit

    def adopt(
        self,
        names: tuple[str, ...],
        *,
        key: str,
        fence: int,
        owner: str | None = None,
        parent_key: str | None = None,
        lease: float | None = None,
    ) -> Permit:
        """Count a permit over *names* that was granted before a restart: there is room or not, it is held.

        It keeps its *fence*. *parent_key* names the permit it was nested in, if that is held here; *lease* is
        in seconds. Raises `InvalidOperation` if *key* is in use for something else, `ValidationError` for an
        unknown limit.
        """
        now_ms = self._now_ms()
        self._catch_up(now_ms)
        check_seconds("lease", lease)
        record = self.kernel.adopt(
            self._claims(names),
            now_ms,
            key,
            fence,
            owner,
            None if parent_key is None else self.kernel.permits.get(parent_key),
            None if lease is None else to_ms(lease),
        )
        self._carry_out()
        if isinstance(record, Refused):
            raise InvalidOperation(f"key {key!r} is in use for something else")
        return self._permit(record, names)

    # -- limits

    async def set_limit(
        self,
        name: str,
        capacity: int | None,
        *,
        cooldown: float = 0.0,
        cooldown_cancelled: float | None = None,
        cooldown_failed: float | None = None,
        queue_max: int | None = None,
        gated: bool = False,
    ) -> None:
        """Make or change a limit; takes effect at once. *cooldown* (seconds) follows each release."""
        self.configure(
            name,
            capacity,
            cooldown=cooldown,
            cooldown_cancelled=cooldown_cancelled,
            cooldown_failed=cooldown_failed,
            queue_max=queue_max,
            gated=gated,
        )

    def configure(
        self,
        name: str,
        capacity: int | None,
        *,
        cooldown: float = 0.0,
        cooldown_cancelled: float | None = None,
        cooldown_failed: float | None = None,
        queue_max: int | None = None,
        gated: bool = False,
    ) -> None:
        """`set_limit`, plain: in process there is nothing to wait for."""
        check_name(name)
        check_capacity(name, capacity)
        success_ms = duration_ms("cooldown", cooldown)
        self.kernel.configure(
            name,
            self._now_ms(),
            capacity=capacity,
            cooldown=Cooldown(
                success_ms,
                success_ms
                if cooldown_cancelled is None
                else duration_ms("cooldown_cancelled", cooldown_cancelled),
                success_ms if cooldown_failed is None else duration_ms("cooldown_failed", cooldown_failed),
            ),
            queue_max=queue_max,
            gated=gated,
        )
        self._carry_out()

    async def remove_limit(self, name: str) -> None:
        """Forget a limit. Who waits for it gets `InvalidOperation`; who holds it stays counted."""
        self._known(name)
        self.kernel.remove(name, self._now_ms())
        self._carry_out()

    async def release_owner(self, owner: str) -> int:
        """End everything that *owner* holds or waits for; how many permits that were."""
        released = self.kernel.release_owner(owner, self._now_ms())
        for record in released:
            self._keyed.pop(record, None)
        self._carry_out()
        return len(released)

    def release_key(self, key: str, *, fence: int | None = None) -> bool:
        """Release the permit held under *key*, if there is one (and it has this *fence*)."""
        record = self.kernel.permits.get(key)
        if record is None or (fence is not None and record.fence != fence):
            return False
        return self._release(record, "success")

    def permit(self, key: str) -> Permit | None:
        """The permit held under *key*, if there is one."""
        record = self.kernel.permits.get(key)
        return None if record is None else self._permit(record, record.claims.names)

    def withdraw(self, waiter_id_: str, error: InterlockError) -> bool:
        """Let the waiter of this id wait no more: it gets *error*. False if nobody has the id."""
        for waiter in self._waiters():
            if waiter_id(waiter) == waiter_id_:
                self.kernel.withdraw(waiter, self._now_ms())
                self._forget_reclaimed(waiter)
                self._wake(waiter, error)
                self._carry_out()
                return True
        return False

    def pause(self, name: str, until: float) -> None:
        """Admit nobody over *name* until *until* (seconds since the epoch); a pause only grows."""
        self._known(name)
        self.kernel.pause(name, to_ms(until), self._now_ms())
        self._carry_out()

    def resume(self, name: str) -> None:
        """End the pause of *name*."""
        self._known(name)
        self.kernel.resume(name, self._now_ms())
        self._carry_out()

    def renew(self, permit: Permit, lease: float) -> float | None:
        """Let the lease of *permit* end *lease* seconds from now; None if it is gone already."""
        record = permit._record
        due_ms = self.kernel.renew(record, record.fence, to_ms(lease), self._now_ms())
        self._carry_out()
        return None if due_ms is None else due_ms / 1000

    # -- what a provider gate needs

    def listen_at_gate(self, name: str, waiting: Callable[[bool], None]) -> None:
        """Call *waiting* when somebody waits at the gated limit *name* that has room.

        Its argument says whether room appeared since the last answer; the answer is `admit`.
        """
        self._gate_listeners[name] = waiting

    def gate_reading(self, name: str, since: float | None = None) -> GateReading:
        """The numbers that an answer at the gate *name* is worked out from."""
        limit = self.kernel.limits[name]
        capacity = None if limit.capacity == model.UNLIMITED else limit.capacity
        young = 0
        if since is not None:
            since_ms = to_ms(since)
            young = sum(
                record.claims.weight(limit)
                for record in self.kernel.holders(limit)
                if record.granted_ms > since_ms
            )
        room = limit.free > 0 and limit.paused_until_ms is None
        return GateReading(capacity, limit.used, limit.granted, young, bool(limit.waiters), room)

    def admit(self, name: str, count: int, fresh_until: float | None = None) -> None:
        """Let *count* units past the gate of *name*; valid until *fresh_until*, then it lapses."""
        fresh_ms = None if fresh_until is None else to_ms(fresh_until)
        self.kernel.admit(name, count, self._now_ms(), fresh_ms)
        self._carry_out()

    def revoke(self, record: model.Permit) -> bool:
        """Take a permit back from a holder without a sign of life."""
        revoked = self.kernel.revoke(record, self._now_ms())
        self._carry_out()
        return revoked

    def turn_away(self, name: str, error: InterlockError) -> None:
        """Everyone who waits for the limit *name* gets *error*."""
        # The youngest first: else the room of an elder goes to one that is turned away as well.
        waiters = sorted(self.kernel.limits[name].waiters, key=lambda waiter: waiter.rank, reverse=True)
        for waiter in waiters:
            self.kernel.withdraw(waiter, self._now_ms())
            self._wake(waiter, error)
        self._carry_out()

    # -- readings

    def limits(self) -> dict[str, LimitReading]:
        """Every limit by name."""
        limits = sorted(self.kernel.limits.items())
        return {name: read_limit(limit) for name, limit in limits if not limit.removed}

    def waiting(self) -> tuple[Waiting, ...]:
        """Everybody who waits, in the order in which they would go."""
        waiters = self._waiters()
        return tuple(map(read_waiting, waiters, positions(waiters)))

    def holders(self, name: str) -> tuple[Holder, ...]:
        """Who holds the limit *name*, longest first."""
        return read_holders(self.kernel, self._known(name))

    def explain(self, waiter_id_: str) -> Explanation | None:
        """Why the waiter of this id (its key, or as `waiting` says) waits; None if nobody does."""
        for waiter in self._waiters():
            if waiter_id(waiter) == waiter_id_:
                blocked_by = read_blocks(self.kernel, waiter.charged, waiter.rank)
                return Explanation(read_waiting(waiter), blocked_by)
        return None

    def snapshot(self) -> Snapshot:
        """All limits and all who wait, as of one moment."""
        return Snapshot(self.clock.now(), tuple(self.limits().values()), self.waiting())

    async def refresh(self) -> None:
        """Readings are exact already in process."""

    async def aclose(self) -> None:
        """Stop admitting: everyone who waits gets `Unavailable`. Permits may still be released."""
        self._closed = True
        self.kernel.claims_by_names.clear()  # from now on nobody takes the short way
        for waiter in sorted(self._parked, key=lambda waiter: waiter.rank, reverse=True):
            self.kernel.withdraw(waiter, self._now_ms())
            self._wake(waiter, Unavailable("the admission was closed while this waited"))
        self._carry_out()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = self._timer_due_ms = None

    # -- inside

    def _waiters(self) -> list[Waiter]:
        waiters = {waiter for limit in self.kernel.limits.values() for waiter in limit.waiters}
        return sorted(waiters, key=lambda waiter: waiter.rank)

    def __repr__(self) -> str:
        return f"<LocalAdmission {self.kernel!r}>"
