"""How many sessions and runs at once, over the whole fleet.

The idea, the codes and the wording are AgentSessionManager's `ConcurrencyLimiter`, which keeps three maps:
sessions, runs, and whose runs they are. Here they are claims of two limits, keyed by id and owned by the
session: so that the order of acquiring means nothing, callers may wait, and what a dead holder leaves behind
comes back with its lease.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import EllipsisType
from typing import TYPE_CHECKING, Any, Final, Self

from interlock.admission.declared import Declared, Default, checked
from interlock.admission.local import LocalAdmission
from interlock.admission.validation import check_seconds
from interlock.clock import SystemClock
from interlock.errors import InvalidOperation, LimitExceeded, SessionNotFound, ValidationError

if TYPE_CHECKING:
    from collections.abc import Generator

    from interlock.admission.permit import Permit
    from interlock.ports import Admission, Clock, TimerHandle

DEFAULT_SESSIONS: Final = Default(100)
DEFAULT_RUNS: Final = Default(50)
BEATS = 3
"""How often a holder renews within one lease, so that one late beat costs nothing."""


@dataclass(frozen=True, slots=True)
class LimiterLimits:
    """The two capacities; None is unlimited."""

    max_parallel_sessions: int | None
    max_parallel_runs: int | None


@dataclass(frozen=True, slots=True)
class LimiterStatus:
    """Both limits as of one moment; None is unlimited."""

    active_sessions: int
    active_runs: int
    max_parallel_sessions: int | None
    max_parallel_runs: int | None
    available_session_slots: int | None
    available_run_slots: int | None


class ConcurrencyLimiter:
    """Slots for sessions and for their runs, held by id.

    The same id again is the same slot, counted once, also when full. Dropping a permit frees nothing: a slot
    is released by its id, with its session, by leaving its ``async with``, or by its holder's lease.

    Args:
        max_parallel_sessions, max_parallel_runs: whole numbers from 1, or None for unlimited.
        require_session: refuse runs of sessions that hold no slot.
        admission: shared with others, whose limits ``sessions`` and ``runs`` these are then. Numbers that are
            given here count; the defaults give way to those that it has.
        clock: where time comes from, unless *admission* brings one.
    """

    def __init__(
        self,
        max_parallel_sessions: int | None = DEFAULT_SESSIONS,
        max_parallel_runs: int | None = DEFAULT_RUNS,
        *,
        require_session: bool = False,
        admission: Admission | None = None,
        clock: Clock | None = None,
    ) -> None:
        capacities = {
            "sessions": checked("max_parallel_sessions", max_parallel_sessions),
            "runs": checked("max_parallel_runs", max_parallel_runs),
        }
        self._declared = Declared(capacities, admission, clock)
        self.admission = self._declared.admission
        self.clock: Clock = getattr(self.admission, "clock", None) or clock or SystemClock()
        self.require_session = require_session
        self._short: LocalAdmission | None = None
        """The admission, where it has a short way for us."""
        if isinstance(self.admission, LocalAdmission) and not require_session:
            self._short = self.admission

    # -- taking and giving back

    def acquire_session_slot(self, session_id: str, timeout: float | None = 0) -> SlotRequest:
        """Ask for the slot of *session_id*: ``await`` it, or enter it with ``async with``.

        *timeout* is in seconds: 0 refuses at once, None waits for ever. Raises `LimitExceeded` (code
        ``max_sessions_exceeded``), `AcquireTimeout`, and `InvalidOperation` if the session is released while
        this waits.
        """
        return SlotRequest(self, session_id, None, timeout)

    def acquire_run_slot(
        self,
        session_id: str,
        run_id: str,
        timeout: float | None = 0,
        *,
        priority: int = 0,
        since: float | None = None,
    ) -> SlotRequest:
        """Ask for the slot of *run_id*, which belongs to *session_id*.

        As `acquire_session_slot`, but the code is ``max_runs_exceeded``. Of those who wait, the smallest
        *priority* goes first, then the oldest *since* (seconds since the epoch; default: now). Raises
        `InvalidOperation` if another session has this run, and `SessionNotFound` if the session holds no slot
        where that is required.
        """
        request = SlotRequest(self, session_id, run_id, timeout)
        if priority or since is not None:
            request.order(priority, since)
        return request

    async def release_session_slot(self, session_id: str) -> None:
        """Free the slot of *session_id* and all its runs, however they were taken; end its waits."""
        await self.admission.release_owner(session_id)

    async def release_run_slot(self, run_id: str) -> None:
        """Free the slot of *run_id*, if it has one."""
        self.admission.release_key(f"run:{run_id}")

    def holder(self, name: str, lease: float = 30.0) -> SlotHolder:
        """Somebody called *name* whose slots come back when it has not been heard of for *lease* seconds."""
        return SlotHolder(self, name, lease)

    # -- numbers

    @property
    def limits(self) -> LimiterLimits:
        """The two limits in force."""
        status = self.status()
        return LimiterLimits(status.max_parallel_sessions, status.max_parallel_runs)

    def status(self) -> LimiterStatus:
        """What is in use and what is left, of one moment."""
        limits = self.admission.limits()
        sessions, max_sessions = self._declared.use("sessions", limits)
        runs, max_runs = self._declared.use("runs", limits)
        return LimiterStatus(
            active_sessions=sessions,
            active_runs=runs,
            max_parallel_sessions=max_sessions,
            max_parallel_runs=max_runs,
            available_session_slots=None if max_sessions is None else max(0, max_sessions - sessions),
            available_run_slots=None if max_runs is None else max(0, max_runs - runs),
        )

    async def set_limits(
        self,
        *,
        max_parallel_sessions: int | EllipsisType | None = ...,
        max_parallel_runs: int | EllipsisType | None = ...,
    ) -> None:
        """Change what is given, from now on. Lowering takes nothing away; raising lets in who waits."""
        wanted = {"sessions": max_parallel_sessions, "runs": max_parallel_runs}
        await self._declared.set(
            {
                name: checked(f"max_parallel_{name}", capacity)
                for name, capacity in wanted.items()
                if not isinstance(capacity, EllipsisType)
            }
        )

    async def aclose(self) -> None:
        """End the waits with `Unavailable`, unless the admission is shared: then it is not ours to close."""
        if self._declared.own:
            await self.admission.aclose()

    def __repr__(self) -> str:
        now = self.status()
        shown = ("∞" if one is None else one for one in (now.max_parallel_sessions, now.max_parallel_runs))
        sessions, runs = shown
        return (
            f"<ConcurrencyLimiter sessions {now.active_sessions}/{sessions}, runs {now.active_runs}/{runs}>"
        )

    # -- inside

    def _full(self, name: str) -> LimitExceeded | None:
        """The refusal in the originals' words, if the limit *name* is full."""
        reading = self.admission.limits()[name]
        if reading.capacity is None or reading.used < reading.capacity:
            return None
        return LimitExceeded(
            f"Maximum parallel {name} limit ({reading.capacity}) exceeded. Currently active: {reading.used}",
            code=f"max_{name}_exceeded",
            limit=name,
            capacity=reading.capacity,
            active=reading.used,
        )

    def _refused(self, name: str, refused: LimitExceeded) -> LimitExceeded:
        """*refused*, also where it is not for the reason that the originals name: a pause, say."""
        code = f"max_{name}_exceeded"
        return self._full(name) or LimitExceeded(refused.message, code=code, **refused.details)

    def _conflict(self, key: str, session_id: str, refused: InvalidOperation) -> InvalidOperation:
        """*refused*, saying whose the run is, where that is the reason."""
        for holder in self.admission.holders("runs"):
            if holder.key == key and holder.owner != session_id:
                run_id = key.removeprefix("run:")
                return InvalidOperation(
                    f"run {run_id!r} belongs to session {holder.owner!r}, not to {session_id!r}"
                )
        return refused

    def _check_session(self, session_id: str) -> None:
        key = f"session:{session_id}"
        if isinstance(self.admission, LocalAdmission):
            known = key in self.admission.kernel.permits
        else:
            known = any(holder.key == key for holder in self.admission.holders("sessions"))
        if not known:
            raise SessionNotFound(
                f"session {session_id!r} holds no slot; acquire one before its runs", session_id=session_id
            )


class SlotRequest:
    """A slot that is asked for: ``permit = await request``, or ``async with request as permit``.

    Leaving ``async with`` releases the slot, and with a session's its runs; entered several times with one
    id, the last exit does.
    """

    __slots__ = ("_holder", "_limiter", "_permit", "_rank", "_run_id", "_session_id", "_timeout")
    _permit: Permit

    def __init__(
        self,
        limiter: ConcurrencyLimiter,
        session_id: str,
        run_id: str | None,
        timeout: float | None,
        holder: SlotHolder | None = None,
    ) -> None:
        self._limiter = limiter
        self._session_id = session_id
        self._run_id = run_id
        self._timeout = timeout
        self._holder = holder
        self._rank: tuple[int, float | None] = 0, None

    def order(self, priority: int, since: float | None) -> None:
        """Say where it stands among those who wait."""
        self._rank = priority, since

    def __await__(self) -> Generator[Any, None, Permit]:
        limiter, session_id, run_id = self._limiter, self._session_id, self._run_id
        if not session_id or run_id == "":
            raise ValidationError("an id is empty; allowed are texts of one character and more")
        if self._timeout:
            check_seconds("timeout", self._timeout)
        if run_id is None:
            name, key = "sessions", f"session:{session_id}"
        else:
            name, key = "runs", f"run:{run_id}"
        full = None
        try:
            local = limiter._short
            if local is not None and self._holder is None:
                permit = local.take(name, key, session_id)
                if permit is not None:
                    return permit
                if self._timeout == 0 and key not in local.kernel.permits:
                    full = limiter._full(name)
            if full is None:
                return (yield from self._ask(name, key))
        except LimitExceeded as refused:
            raise limiter._refused(name, refused) from None
        except InvalidOperation as refused:
            raise limiter._conflict(key, session_id, refused) from None
        raise full

    def _ask(self, name: str, key: str) -> Generator[Any, None, Permit]:
        """The long way: it may have to wait, to be declared, leased, or checked."""
        limiter, holder = self._limiter, self._holder
        if holder is not None:
            holder._check()
        if limiter._declared.due:
            yield from limiter._declared.declare().__await__()
        in_session = limiter.require_session and name == "runs"
        if in_session:
            limiter._check_session(self._session_id)
        lease = None if holder is None else holder.lease
        priority, since = self._rank
        permit: Permit = yield from limiter.admission.acquire(
            name,
            key=key,
            owner=self._session_id,
            priority=priority,
            since=since,
            timeout=self._timeout,
            lease=lease,
        ).__await__()
        if in_session:
            try:
                limiter._check_session(self._session_id)
            except SessionNotFound:  # its lease ran out while the run waited
                permit.release("unused")
                raise
        if holder is not None:
            holder._took(permit)
        return permit

    async def __aenter__(self) -> Permit:
        permit = self._permit = await self
        return await permit.__aenter__()

    async def __aexit__(self, *exit_: Any) -> None:
        permit = self._permit
        held = not permit.released
        await permit.__aexit__(*exit_)
        if self._run_id is None and held and permit.released:
            await self._limiter.release_session_slot(self._session_id)


class SlotHolder:
    """A worker whose slots come back a *lease* (seconds) after its last heartbeat.

    Entered with ``async with`` it beats by itself and releases at the end all that it holds. Without that,
    call `heartbeat` often enough, and `release` at the end. Of several holders of one id the shortest lease
    counts.
    """

    def __init__(self, limiter: ConcurrencyLimiter, name: str, lease: float) -> None:
        if not 0 < lease <= 86_400:
            raise ValidationError(f"lease is {lease!r}; allowed are more than 0 to 86400 seconds")
        self.name = name
        self.lease = lease
        self._limiter = limiter
        self._slots: dict[Permit, None] = {}
        self._forget_at = 64
        self._timer: TimerHandle | None = None
        self._left = False

    def acquire_session_slot(self, session_id: str, timeout: float | None = 0) -> SlotRequest:
        """`ConcurrencyLimiter.acquire_session_slot`, leased. A slot that is held already gets the lease."""
        return SlotRequest(self._limiter, session_id, None, timeout, self)

    def acquire_run_slot(self, session_id: str, run_id: str, timeout: float | None = 0) -> SlotRequest:
        """`ConcurrencyLimiter.acquire_run_slot`, leased. A slot that is held already gets the lease."""
        return SlotRequest(self._limiter, session_id, run_id, timeout, self)

    def heartbeat(self) -> tuple[Permit, ...]:
        """Renew all leases; the permits that were lost since the last time, whose work should stop."""
        renew, lease = self._limiter.admission.renew, self.lease
        gone = [permit for permit in self._slots if permit.released or renew(permit, lease) is None]
        for permit in gone:
            del self._slots[permit]
        return tuple(permit for permit in gone if permit.lost)

    async def release(self) -> None:
        """Release all that this holds; it takes nothing any more."""
        self._left = True
        if self._timer is not None:
            self._timer.cancel()
        held = [permit for permit in self._slots if permit.release()]
        self._slots.clear()
        for permit in held:
            if permit.limits == ("sessions",) and permit.owner is not None:
                await self._limiter.release_session_slot(permit.owner)

    async def __aenter__(self) -> Self:
        self._check()
        self._beat()
        return self

    async def __aexit__(self, *exit_: Any) -> None:
        await self.release()

    def __repr__(self) -> str:
        held = sum(not permit.released for permit in self._slots)
        return f"<SlotHolder {self.name!r}: {held} slots, leased for {self.lease:g} s>"

    # -- inside

    def _check(self) -> None:
        if self._left:
            raise InvalidOperation(f"holder {self.name!r} has left; make another")

    def _took(self, permit: Permit) -> None:
        if self._left:  # while this waited
            permit.release("unused")
        self._check()
        self._limiter.admission.renew(permit, self.lease)
        self._slots[permit] = None
        if len(self._slots) > self._forget_at:  # long since released by id, most of them
            self._slots = {one: None for one in self._slots if not one.released}
            self._forget_at = 64 + 2 * len(self._slots)

    def _beat(self) -> None:
        self.heartbeat()
        clock = self._limiter.clock
        self._timer = clock.call_at(clock.now() + self.lease / BEATS, self._beat)
