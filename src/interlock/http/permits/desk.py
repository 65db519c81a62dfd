"""Where permits go out of the process: what the HTTP routes and the connections of clients have in common.

Every permit that leaves has a key, made up if its holder named none, so that the kernel knows all that there
is to know about it; and a lease, so that it comes back from the dead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import uuid4

from interlock.admission.view import MOST as MOST_SHOWN
from interlock.admission.view import look
from interlock.admission.wire import GENERATED, is_generated
from interlock.errors import InvalidOperation, PermitLost, StaleFence
from interlock.http.permits.asking import Asking, at_once
from interlock.http.permits.leases import LeaseRecord
from interlock.http.permits.room import WaitingRoom
from interlock.http.problems import NotFound, encoded
from interlock.ledger import Cause
from interlock.limits import PREFIX
from interlock.provider.remote import PREFIX as GATED

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from interlock.admission.local import LocalAdmission
    from interlock.admission.permit import Permit
    from interlock.core import model
    from interlock.http.access.budget import Budgets
    from interlock.http.access.caller import Caller
    from interlock.ledger import Ledger
    from interlock.ports import Settings
    from interlock.provider.remote import ServedGate
    from interlock.provider.signals import Reason

_DAY_US = 86_400_000_000
_CLIENT = Cause("client", "a process that shares the limits")
_VIEW_SECONDS = 0.25
"""For so long one view is shown to everybody."""


class PermitGone(NotFound):
    """No permit of this id is held any more."""

    default_code = PermitLost.default_code

    def __init__(self, permit_id: str) -> None:
        super().__init__(f"no permit {permit_id!r} is held: it was released, or its lease ran out")


class PermitDesk:
    """The permits of *admission* for other processes; what has to survive this one is in *store*."""

    def __init__(self, admission: LocalAdmission, store: Settings) -> None:
        self.admission = admission
        self.room = WaitingRoom(admission.kernel)
        self.budgets: Budgets | None = None
        """Of tokens, where there are any."""
        self.epoch = uuid4().hex
        """Another one at every start, by which clients know that they have to say what they hold."""
        self.leases = LeaseRecord(store, admission.clock.now)
        self.draining = False
        """Set by `drain`: plain HTTP takes no new requests. Clients stay, their permits outlive a restart."""
        self._drains: dict[object, Callable[[], None]] = {}
        self.reclaims: dict[str, Asking] = {}
        """Lent permits that wait for their units; they do so even while their client is not connected."""
        self.gate: ServedGate | None = None
        """What keeps the limits of providers, where there is one."""
        self.ledger: Ledger | None = None
        """Told what clients make of limits."""
        self._store = store
        self._takers: dict[model.Permit, set[object]] = {}
        self._quarantine: dict[str, float] = {}
        """Until when limits are paused that may be held from before the start."""
        self._unsafe: dict[str, float] = {}
        self._unpaused: set[str] = set()
        """Those of `_unsafe` that are still to be paused, as nobody has made them yet."""
        self._view = b""
        self._view_number = 0
        self._view_at = float("-inf")

    # -- starting and ending

    async def load(self) -> None:
        """Know again where holders from before the start may still be; the limits have been made already.

        Fences go on from the clock, in microseconds: no grants come so fast that a later start would find
        the clock behind them.
        """
        kernel = self.admission.kernel
        kernel.fence = max(kernel.fence, int(self.admission.clock.now() * 1e6))
        self._unsafe = await self.leases.load()
        self._unpaused = set(self._unsafe)
        self.hold_back(tuple(self._unsafe))

    def hold_back(self, names: Iterable[str]) -> None:
        """Pause those of *names* that somebody may hold from before the start, once they exist."""
        if not self._unpaused:
            return
        for name in self._unpaused.intersection(names):
            limit = self.admission.kernel.limits.get(name)
            if limit is not None and not limit.removed:
                self._unpaused.discard(name)
                # Nobody knows how the work of those ended that gave back what they held.
                end = self._quarantine[name] = self._unsafe[name] + limit.cooldown.longest_ms / 1000
                self.admission.pause(name, end)

    def quarantined(self, name: str) -> bool:
        """Whether the limit *name* is paused as somebody may hold it since before the start."""
        return self.admission.clock.now() < self._quarantine.get(name, 0.0)

    def drain(self) -> None:
        """End the long polls, so that the server can."""
        self.draining = True
        for turn_away in tuple(self._drains.values()):
            turn_away()

    def on_drain(self, turn_away: Callable[[], None]) -> Callable[[], None]:
        """Have *turn_away* called should the server stop; what it returns calls that off."""
        token = object()
        self._drains[token] = turn_away
        return lambda: self._drains.pop(token, None) and None

    async def aclose(self) -> None:
        """Note until when what is out may be held; nothing leased leaves no trace."""
        live: dict[str, float] = {}
        for record in self.admission.kernel.live:
            if record.expires_ms is not None:
                for name in record.claims.names:
                    live[name] = max(live.get(name, 0.0), record.expires_ms / 1000)
        now = self.admission.clock.now()
        live |= {name: max(end, live.get(name, 0.0)) for name, end in self._unsafe.items() if end > now}
        await self.leases.settle(live)

    def prepare(self, names: tuple[str, ...]) -> None:
        """Before somebody asks for *names*: what may still be held elsewhere is paused, and every provider
        is known."""
        if self.gate is not None:
            self.gate.know(names)
        self.hold_back(names)

    # -- who asks

    def ask(self, caller: Caller, names: tuple[str, ...], key: str, *, waits: bool) -> None:
        """Before *caller* asks for *names*: `prepare`, and see whether it may.

        Raises `QueueFull`, and `LimitExceeded` for a spent budget. Who asks again under a *key* is known.
        """
        self.prepare(names)
        kernel = self.admission.kernel
        if waits:
            self.room.check(names, key)
        if self.budgets is not None and key not in kernel.permits and key not in kernel.waiters:
            self.budgets.ask(caller)

    def charge(self, caller: Caller, record: model.Permit) -> None:
        """*caller* pays for the time that *record* lasts."""
        if self.budgets is not None:
            self.budgets.hold(caller, lambda: record.ended is not None)

    # -- limits

    def order(
        self, order: str, provider_id: str, more: dict[str, int | float | None], reason: Reason | None
    ) -> Any:
        """Have the gate do it; the answer, or something to await for it."""
        if self.gate is None:
            raise InvalidOperation("this server has no provider gate")
        return self.gate.carry_out(order, provider_id, more, reason)

    def set_limit(self, name: str, settings: dict[str, Any]) -> Coroutine[Any, Any, None]:
        """`LocalAdmission.configure`, now; to be awaited until it is durable, for `FleetLimits` to read."""
        if self.gate is not None and name.startswith(GATED):
            raise InvalidOperation(f"the limit {name!r} is the gate's: use ProviderGate.set_limit")
        self.admission.configure(name, **settings)
        self._note(name, settings["capacity"])
        self.hold_back((name,))
        return self._store.set(PREFIX + name, encoded(settings).decode())

    def remove_limit(self, name: str) -> Coroutine[Any, Any, None]:
        """`LocalAdmission.remove_limit`, now; to be awaited until it is durable.

        One that the configuration has comes back at the next start.
        """
        at_once(self.admission.remove_limit(name))
        self._note(name, None)
        if name in self._unsafe:
            self._unpaused.add(name)  # should it be made again
        return self._store.delete(PREFIX + name)

    def _note(self, name: str, capacity: int | None) -> None:
        if self.ledger is not None:
            self.ledger.note(name, capacity, _CLIENT)

    # -- permits

    def parent(self, parent_id: str | None) -> Permit | None:
        """The permit under which another is asked for, if that names one. Raises `InvalidOperation`."""
        if parent_id is None:
            return None
        parent = self.admission.permit(parent_id)
        if parent is None:
            raise InvalidOperation(f"the parent {parent_id!r} has been released")
        return parent

    def found(self, permit_id: str, fence: int) -> model.Permit:
        """The permit of this id, if *fence* is (or, for a permit that was lent, has been) its own.

        Raises `NotFound` and `StaleFence`.
        """
        record = self.admission.kernel.permits.get(permit_id)
        if record is None:
            raise PermitGone(permit_id)
        if not owns(record, fence):
            raise StaleFence(f"the fence {fence} of permit {permit_id!r} is stale", fence=record.fence)
        return record

    def adopt(
        self,
        permit_id: str,
        fence: int,
        names: tuple[str, ...],
        *,
        owner: str | None,
        parent_id: str | None,
        lease: float,
    ) -> None:
        """`LocalAdmission.adopt`, for a fence that an earlier start can have given.

        Fences are made from the clock: a greater one is nobody's, and would leave too few for the others.
        """
        if fence > self.admission.kernel.fence + _DAY_US:
            raise InvalidOperation(f"the fence {fence} of permit {permit_id!r} was never given")
        self.admission.adopt(
            names, key=permit_id, fence=fence, owner=owner, parent_key=parent_id, lease=lease
        )

    async def renew(self, permit_id: str, fence: int, lease: float) -> float:
        """Let the lease end *lease* seconds from now, or when it would have if that is later; when that is.

        Raises what `found` raises. A lease is never cut short: another holder of the key may count on it.
        """
        record = self.found(permit_id, fence)
        now = self.admission.clock.now()
        if record.expires_ms is None:
            return now + lease  # it belongs to somebody in this process: it has no lease to end
        end = max(record.expires_ms / 1000, now + lease)
        if not self.leases.covers(record.claims.names, end, lease):
            await self.leases.cover(record.claims.names, end, lease)
            record = self.found(permit_id, fence)
        permit = self.admission.permit(permit_id)
        assert permit is not None
        self.admission.renew(permit, end - self.admission.clock.now())
        return end

    async def safe(self, record: model.Permit, lease: float, taker: object) -> None:
        """Return once the lease of *record* is durable. `StoreError` if it cannot be; it is given back."""
        if record.expires_ms is None:
            return
        try:
            await self.leases.cover(record.claims.names, record.expires_ms / 1000, lease)
        except BaseException:
            self.give_back(record, taker)
            raise

    def is_safe(self, record: model.Permit, lease: float) -> bool:
        """Whether the lease of *record* is durable already."""
        end = record.expires_ms
        return end is None or self.leases.covers(record.claims.names, end / 1000, lease)

    def taken(self, record: model.Permit, taker: object, known: bool) -> None:
        """*taker* was given *record*; if it was *known* before, somebody else has it, too."""
        if is_generated(record.key):
            return
        takers = self._takers.setdefault(record, {self} if known else set())
        takers.add(taker)
        if len(self._takers) > 1000 and len(self._takers) > 2 * len(self.admission.kernel.permits):
            self._takers = {one: who for one, who in self._takers.items() if one.ended is None}

    def give_back(self, record: model.Permit, taker: object) -> None:
        """*taker* never came to use *record*: it is free again, unless somebody else has it, too."""
        if not is_generated(record.key):
            takers = self._takers.get(record, set())
            takers.discard(taker)
            if takers or record not in self._takers:
                return
        permit = self.admission.permit(record.key or "")
        if permit is not None and permit.fence == record.fence:
            permit.release("unused")

    # -- readings

    def view(self) -> tuple[int, float, bytes]:
        """A view for everybody, its number, and when it was made: the same number is the same view."""
        now = self.admission.clock.now()
        if now - self._view_at >= _VIEW_SECONDS:
            self._view_at = now
            view = encoded(look(self.admission.kernel, 0.0, MOST_SHOWN, self._parts()))
            if view != self._view:
                self._view = view
                self._view_number += 1
        return self._view_number, self._view_at, self._view

    def whole_view(self) -> bytes:
        """All there is to read, as of now."""
        return encoded(look(self.admission.kernel, 0.0, parts=self._parts()))

    def _parts(self) -> dict[str, Any]:
        return {} if self.gate is None else {"gate": self.gate.part()}


def owns(record: model.Permit, fence: int) -> bool:
    """Whether *fence* is, or for a permit that was lent has been, that of *record*.

    Who had its units back may not have heard of its new fence yet.
    """
    return (record.serial or record.fence) <= fence <= record.fence


def new_id() -> str:
    """An id for a permit whose holder named no key."""
    return GENERATED + uuid4().hex
