"""The server's end of a `RemoteAdmission`: one WebSocket for each process, see `interlock.admission.wire`.

When the connection ends, everything that waits on it is withdrawn. Permits live on until their leases
end: the client comes back, or renews by plain HTTP meanwhile.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import TYPE_CHECKING, Any, cast

import msgspec

from interlock.admission.wire import VERSION, error_to_wire
from interlock.errors import InterlockError, InvalidOperation, LimitExceeded, PermitLost, ValidationError
from interlock.http.access.caller import ANYBODY, caller_of
from interlock.http.permits.asking import Asking, at_once
from interlock.http.permits.channel import Channel
from interlock.http.permits.desk import owns
from interlock.http.permits.words import (
    Acquire,
    Gate,
    Hello,
    Hold,
    Lend,
    Look,
    Misspoken,
    More,
    Reclaim,
    Release,
    ReleaseOwner,
    RemoveLimit,
    SetLimit,
    Touch,
    Withdraw,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from interlock.admission.permit import Lending, Permit
    from interlock.core import model
    from interlock.core.model import Outcome
    from interlock.http.access.caller import Caller
    from interlock.http.permits.desk import PermitDesk

    Answer = tuple[Any, ...]

log = logging.getLogger(__name__)

_SWEEP_SECONDS = 0.2
"""How often a connection looks which of its permits were taken away."""
_MOST_WAITING = 100_000
_LEAST_SILENCE = 5.0
_LONGEST_ID = 256


class PermitStream:
    """The ASGI application of ``/permits/connect``."""

    def __init__(self, desk: PermitDesk) -> None:
        self._desk = desk

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if (await receive())["type"] != "websocket.connect":
            return
        await send({"type": "websocket.accept"})
        await _Connection(self._desk, receive, send, caller_of(scope)).run()


class _Connection(Channel):
    """One client, as long as it is connected."""

    def __init__(
        self,
        desk: PermitDesk,
        receive: Callable[[], Awaitable[dict[str, Any]]],
        send: Callable[[dict[str, Any]], Awaitable[None]],
        caller: Caller = ANYBODY,
    ) -> None:
        super().__init__(receive, send)
        self._desk = desk
        self._caller = caller
        self._admission = desk.admission
        self._kernel = desk.admission.kernel
        self._sweeping: asyncio.TimerHandle | None = None
        self._lease = 0.0
        self._client = ""
        self._askings: dict[int, Asking] = {}
        self._held: dict[str, model.Permit] = {}
        self._handlers: dict[type, Callable[[Any], None]] = {
            Hello: self._hello,
            Acquire: self._acquire,
            Withdraw: self._withdraw,
            Release: self._release,
            Touch: self._touch,
            Hold: self._hold,
            Lend: self._lend,
            Reclaim: self._reclaim,
            SetLimit: self._set_limit,
            RemoveLimit: self._remove_limit,
            ReleaseOwner: self._release_owner,
            Gate: self._order,
            Look: self._look,
        }

    # -- in and out

    def _do(self, operation: Any) -> None:
        if not self._lease and type(operation) is not Hello:
            raise Misspoken("say hello first")
        self._handlers[type(operation)](operation)

    def _begin(self) -> None:
        self._sweep()

    def _leave(self) -> None:
        """What waits is withdrawn, the youngest first: room that one gives up is not for another of them."""
        super()._leave()
        if self._sweeping is not None:
            self._sweeping.cancel()
        staying = set(self._desk.reclaims.values())
        for asking in reversed(self._askings.values()):
            if asking not in staying:
                asking.leave()
        self._askings.clear()

    def _sweep(self) -> None:
        self._tell_ended()
        if self._loop.time() - self._heard_at > max(self._lease, _LEAST_SILENCE):
            # Stopped, or cut off without a word: what it waits for is not for somebody who cannot take it.
            self._errand(self._close("nothing was heard"))
            return
        self._sweeping = self._loop.call_later(_SWEEP_SECONDS, self._sweep)

    def _tell_ended(self) -> None:
        for permit_id, record in tuple(self._held.items()):
            if record.ended is not None:
                del self._held[permit_id]
                self._say("ended", permit_id, record.fence, record.ended)

    def _refuse(self, ask: int, error: InterlockError) -> None:
        self._say("error", ask, *error_to_wire(error))

    # -- operations

    def _hello(self, said: Hello) -> None:
        if said.version != VERSION:
            raise Misspoken(f"this server speaks version {VERSION}")
        self._lease = said.lease
        self._client = said.client
        self._say("hello", self._desk.epoch)

    def _acquire(self, said: Acquire) -> None:
        more = said.more
        lease = more.lease or self._lease
        try:
            if max(len(said.id), len(more.owner or "")) > _LONGEST_ID:
                raise ValidationError(f"a key or owner is too long; allowed are {_LONGEST_ID} characters")
            if len(self._askings) >= _MOST_WAITING:
                raise LimitExceeded(f"{_MOST_WAITING} requests of this process wait already")
            self._caller.check_priority(more.priority)
            self._desk.ask(self._caller, said.names, said.id, waits=more.timeout != 0)
            acquisition = self._admission.acquire(
                *said.names,
                key=said.id,
                owner=more.owner,
                parent=self._desk.parent(more.parent),
                priority=more.priority,
                since=self._since(more),
                timeout=more.timeout,
                lease=lease,
                on_queued=lambda: self._queued(said),
            )
        except InterlockError as error:
            self._refuse(said.ask, error)
            return
        known = said.id in self._kernel.permits

        def settled(permit: Permit | None, error: InterlockError | None) -> None:
            self._askings.pop(said.ask, None)
            record = self._kernel.permits.get(said.id)
            if permit is None:
                assert error is not None
                self._refuse(said.ask, error)
            elif record is None:
                # This server stood still for longer than the lease: its client will ask again.
                self._say("granted", said.ask, permit.fence, int(permit.granted_at * 1000), 0)
            else:
                self._granted(said.ask, record, lease, known)

        asking = self._askings[said.ask] = Asking(acquisition.__await__(), settled)
        asking.begin()

    def _since(self, more: More) -> float | None:
        now = self._admission.clock.now()
        if more.since is None and more.age:  # it was made while nobody was there to hear it
            return self._caller.started(now - more.age, now)
        return self._caller.started(more.since, now)

    def _queued(self, said: Acquire) -> None:
        waiter = self._kernel.waiters.get(said.id)
        self._say("queued", said.ask, None if waiter is None else waiter.since_ms / 1000)

    def _granted(self, ask: int, record: model.Permit, lease: float, known: bool) -> None:
        self._desk.taken(record, self._client, known)
        if not known:
            self._desk.charge(self._caller, record)
        if self._desk.is_safe(record, lease):
            self._tell_granted(ask, record)
            return

        async def when_safe() -> None:
            try:
                await self._desk.safe(record, lease, self._client)
                self._tell_granted(ask, record)
            except InterlockError as error:
                self._refuse(ask, error)

        self._errand(when_safe())

    def _tell_granted(self, ask: int, record: model.Permit) -> None:
        self._held[record.key or ""] = record
        self._say("granted", ask, record.fence, record.granted_ms, self._left_ms(record))

    def _left_ms(self, record: model.Permit) -> int | None:
        """What is left of the lease; None where it has none, as it belongs to somebody in this process."""
        if record.expires_ms is None:
            return None
        return max(0, record.expires_ms - int(self._admission.clock.now() * 1000))

    def _withdraw(self, said: Withdraw) -> None:
        asking = self._askings.pop(said.ask, None)
        if asking is not None:
            if self._desk.reclaims.get(said.id) is asking:
                del self._desk.reclaims[said.id]
            asking.leave()
        elif (record := self._kernel.permits.get(said.id)) is not None:
            # The grant was on its way when the client changed its mind.
            self._held.pop(said.id, None)
            self._desk.give_back(record, self._client)

    def _release(self, said: Release) -> None:
        record = self._kernel.permits.get(said.id)
        if record is None or (said.fence and not owns(record, said.fence)):
            return
        self._held.pop(said.id, None)
        if said.outcome == "unused":
            self._desk.give_back(record, self._client)
            return
        outcome: Outcome = said.outcome
        permit = self._admission.permit(said.id)
        assert permit is not None
        permit.release(outcome)

    def _touch(self, said: Touch) -> None:
        permit = self._admission.permit(said.id)
        if permit is not None and permit.fence == said.fence:
            permit.touch()

    def _hold(self, said: Hold) -> None:
        """The client came back: what it says it holds is so, was lost meanwhile, or is counted again."""
        record = self._kernel.permits.get(said.id)
        if record is None and said.adopt:
            try:
                self._desk.adopt(
                    said.id,
                    said.fence,
                    said.names,
                    owner=said.owner,
                    parent_id=said.parent,
                    lease=said.lease,
                )
            except InterlockError as error:
                log.warning("permit %r cannot be counted again: %s", said.id, error)
            record = self._kernel.permits.get(said.id)
        if record is None or not owns(record, said.fence):
            self._say("ended", said.id, said.fence, "expired")
            return
        self._desk.taken(record, self._client, known=False)
        self._held[said.id] = record
        self._errand(self._renew(record, said.lease))

    async def _renew(self, record: model.Permit, lease: float) -> None:
        try:
            await self._desk.renew(record.key or "", record.fence, lease)
            self._say("held", record.key, record.fence, self._left_ms(record))
        except InterlockError:
            self._say("ended", record.key, record.fence, record.ended or "expired")

    # -- lending

    def _lend(self, said: Lend) -> None:
        lending = self._lending(said.id, said.fence, None)
        try:
            if lending is not None:
                at_once(lending.__aenter__())
        except InvalidOperation:
            pass  # others share its units: then it simply keeps them

    def _lending(self, permit_id: str, fence: int, timeout: float | None) -> Lending | None:
        try:
            self._desk.found(permit_id, fence)
        except InterlockError:
            return None
        permit = self._admission.permit(permit_id)
        return None if permit is None else permit.lend(timeout=timeout)

    def _reclaim(self, said: Reclaim) -> None:
        lending = self._lending(said.id, said.fence, said.timeout)

        def settled(result: None, error: InterlockError | None) -> None:
            self._askings.pop(said.ask, None)
            self._desk.reclaims.pop(said.id, None)
            record = self._kernel.permits.get(said.id)
            if error is None and record is not None:
                self._say("done", said.ask, (record.fence, record.granted_ms))
            else:
                lost = PermitLost(f"permit {said.id!r} was lost while it was lent")
                self._refuse(said.ask, error or lost)

        asking = self._desk.reclaims.get(said.id)
        if asking is not None:  # its client was away meanwhile, and asks once more
            asking.settled = settled
            self._askings[said.ask] = asking
        elif lending is None:
            settled(None, None)
        else:
            steps: Any = lending.__aexit__(None, None, None)
            asking = self._askings[said.ask] = self._desk.reclaims[said.id] = Asking(steps, settled)
            asking.begin()

    # -- limits, owners, readings

    def _set_limit(self, said: SetLimit) -> None:
        self._change(said.ask, lambda: self._desk.set_limit(said.name, msgspec.structs.asdict(said.limit)))

    def _remove_limit(self, said: RemoveLimit) -> None:
        self._change(said.ask, lambda: self._desk.remove_limit(said.name))

    def _order(self, said: Gate) -> None:
        try:
            answer = self._desk.order(said.order, said.provider, said.more, said.reason)
        except InterlockError as error:
            self._refuse(said.ask, error)
            return
        if inspect.isawaitable(answer):
            self._change(said.ask, lambda: cast("Coroutine[Any, Any, Any]", answer))
        else:
            self._say("done", said.ask, answer)

    def _change(self, ask: int, change: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        """Make a change at once, so that it keeps its place; answer when it is durable."""
        try:
            writing = self._loop.create_task(change())
        except InterlockError as error:
            self._refuse(ask, error)
            return

        async def when_durable() -> None:
            try:
                await asyncio.wait((writing,))  # which goes on if the client leaves
                self._say("done", ask, writing.result())
            except InterlockError as error:
                self._refuse(ask, error)

        self._errand(when_durable())

    def _release_owner(self, said: ReleaseOwner) -> None:
        count = at_once(self._admission.release_owner(said.owner))
        self._tell_ended()
        self._say("done", said.ask, count)

    def _look(self, said: Look) -> None:
        if said.whole:
            self._tell_ended()
            now = self._admission.clock.now()
            self._say("view", said.ask, 0, now, msgspec.Raw(self._desk.whole_view()))
            return
        number, at, view = self._desk.view()
        self._say("view", said.ask, number, at, None if number == said.seen else msgspec.Raw(view))
