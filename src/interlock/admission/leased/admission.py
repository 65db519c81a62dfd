"""Admission by a kernel that other processes use as well: what users call."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from interlock.admission.callback import call_back
from interlock.admission.leased.asks import Ask, hold_words
from interlock.admission.leased.exchange import CALL_SECONDS
from interlock.admission.leased.leases import Held
from interlock.admission.leased.lending import LendingExchange
from interlock.admission.permit import DEFAULT_TIMEOUT, Acquisition, Permit
from interlock.admission.validation import check_capacity, check_name, check_seconds
from interlock.admission.view import EMPTY, View
from interlock.errors import InvalidOperation, Unavailable, ValidationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from interlock.admission.leased.leases import Renewals
    from interlock.admission.readings import Explanation, Holder, LimitReading, Snapshot, Waiting
    from interlock.errors import InterlockError

log = logging.getLogger(__name__)

_STOP_SECONDS = 2.0


class LeasedAdmission(LendingExchange):
    """`LocalAdmission`'s semantics, decided elsewhere, for every process that can reach it.

    Permits are leased: a process that dies gives back what it held when its leases end. While it lives a
    thread renews them, also if the event loop is busy. A holder that could not renew for nine tenths of a
    lease counts its permits as lost, so that no unit is used twice; `Permit.lost` says so.

    Nobody is let in while the other end cannot be reached. Who waits goes on waiting, keeps its place, and
    may get an `AcquireTimeout` at its own deadline. After a restart there it is told what is held.

    Readings are what was said last, at most a second old while the other end can be reached; after `refresh`
    they are exact. All methods but `Permit.release` are to be called from the loop's own thread.
    """

    def __init__(self, url: str, lease: float, renewals: Renewals, client: str = "") -> None:
        if not 0.1 <= lease <= 86_400:
            raise ValidationError(f"lease is {lease!r}; allowed are 0.1 to 86400 seconds")
        super().__init__(url, lease, renewals, client)
        self._view = EMPTY
        self._unread: Any = None

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
        """`LocalAdmission.acquire`, with the same arguments and the same errors.

        A *key* is one permit for all processes: who releases it releases it for all. A permit with a *lease*
        of its own is not renewed for you: it ends, unless `renew` is called.
        """
        request = Acquisition(self, names)
        request.more(key, owner, parent, priority, since, timeout, lease, on_queued)
        return request

    def try_acquire(self, *names: str, **asked: Any) -> Permit | None:
        """Not here: raises `InvalidOperation`."""
        raise InvalidOperation("try_acquire works in process only; use `await acquire(…, timeout=0)`")

    def release_key(self, key: str, *, fence: int | None = None) -> bool:
        """Release the permit under *key*; whether this process held it. Another's goes a moment later."""
        held = self._by_id.get(key)
        if held is not None and fence in (None, held.fence):
            return self._let_go(held, "success")
        self._settle_in()
        words = ("release", key, fence or 0, "success")
        self._link.say(words, again=words)
        return False

    def renew(self, permit: Permit, lease: float) -> float | None:
        """Let the lease of *permit* end *lease* seconds from now; None if it is gone already."""
        held = permit._record
        assert isinstance(held, Held)
        check_seconds("lease", lease)
        if held.ended is not None:
            return None
        self._link.say(hold_words(held, adopt=False, lease=lease))
        return self.clock.now() + lease

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
    ) -> None:
        """Make or change a limit, for everybody; the other end remembers it. *cooldown* is in seconds."""
        check_name(name)
        check_capacity(name, capacity)
        limit = {
            "capacity": capacity,
            "cooldown": cooldown,
            "cooldown_cancelled": cooldown_cancelled,
            "cooldown_failed": cooldown_failed,
            "queue_max": queue_max,
        }
        for what in ("cooldown", "cooldown_cancelled", "cooldown_failed"):
            check_seconds(what, limit[what])
        await self._call("set_limit", name, limit)

    async def remove_limit(self, name: str) -> None:
        """Forget a limit. Who waits for it gets `InvalidOperation`; who holds it stays counted."""
        await self._call("remove_limit", name)

    async def release_owner(self, owner: str) -> int:
        """End everything that *owner* holds or waits for, in all processes; how many permits that were."""
        count: int = await self._call("release_owner", owner)
        return count

    # -- for the parts above that a server keeps as well, such as a provider gate

    async def call(self, word: str, *arguments: Any) -> Any:
        """Have the server do something beyond admission; its answer, or the error that it raised."""
        return await self._call(word, *arguments)

    def order(self, word: str, *arguments: Any, answered: Callable[[Any], object] | None = None) -> None:
        """`call` for those who do not wait. It goes ahead of all that is asked for after it; *answered* is
        called with the answer, and an error is logged."""
        self._settle_in()
        ask = Ask(self._next(), lambda ask: (word, ask.number, *arguments), "", CALL_SECONDS)

        def settled(_: object) -> None:
            self._forget_ask(ask)
            if ask.error is not None:
                log.warning("%s could not be done at %s: %s", word, self.url, ask.error)
            elif answered is not None:
                call_back(answered, ask.value)

        ask.future.add_done_callback(settled)
        self._put(ask)

    def turn_away(self, prefix: str, error: InterlockError) -> None:
        """Everyone here who waits for a limit whose name begins so gets *error*."""
        for ask in tuple(self._asks.values()):
            request = ask.value
            if isinstance(request, Acquisition) and any(name.startswith(prefix) for name in request.names):
                ask.error = error
                self._withdraw(ask)
                ask.settle()

    def part(self, name: str) -> Any:
        """What the part called *name* shows in the view; empty before there is one."""
        return self._seen().parts.get(name, {})

    # -- readings

    def limits(self) -> dict[str, LimitReading]:
        """Every limit by name."""
        return {limit.name: limit for limit in self._seen().limits}

    def waiting(self) -> tuple[Waiting, ...]:
        """Everybody who waits, in the order in which they would go."""
        return self._seen().waiting()

    def holders(self, name: str) -> tuple[Holder, ...]:
        """Who holds the limit *name*, longest first."""
        view = self._seen()
        known = [limit.name for limit in view.limits]
        if name not in known:
            raise ValidationError(
                f"unknown limit {name!r}; known are: {', '.join(known) or 'none'}", limit=name
            )
        return view.holders(name)

    def explain(self, waiter_id: str) -> Explanation | None:
        """Why the waiter of this id (its key, or as `waiting` says) waits; None if nobody does."""
        return self._seen().explain(waiter_id)

    def snapshot(self) -> Snapshot:
        """All limits and all who wait, as of the moment that it names."""
        return self._seen().snapshot()

    async def refresh(self) -> None:
        """Make the readings exact: they are as of a moment between the call and its return."""
        await self._call("view", True, 0)

    async def aclose(self) -> None:
        """Hang up: everyone who waits gets `Unavailable`.

        Releases made before are still sent. What is held after this ends with its lease.
        """
        if self._closed:
            return
        self._closed = True
        for ask in tuple(self._asks.values()):
            ask.error = Unavailable("the admission was closed while this waited")
            self._withdraw(ask)
            ask.settle()
        self._keeper.stop()
        await self._link.stop(_STOP_SECONDS)

    # -- what the link calls

    def _viewed(self, number: int, view_number: int, at: float, view: Any) -> None:
        if at >= self._view_at:
            if view is not None:
                self._unread = view
                self._view_number = view_number
            self._view_at = at
        ask = self._asks.get(number)
        if ask is not None:
            self._forget_ask(ask)
            ask.settle()

    def _seen(self) -> View:
        if self._unread is not None:
            self._view = self._read(self._unread)
            self._unread = None
        elif not self._closed:
            self._look()
        if self._view.at != self._view_at:
            self._view = replace(self._view, at=self._view_at)
        return self._view

    def _read(self, unread: Any) -> View:
        import msgspec

        return msgspec.convert(unread, View)

    def _look(self) -> None:
        """Be connected, if somebody reads and there is a loop to do it."""
        with suppress(RuntimeError):
            self._settle_in()

    def __repr__(self) -> str:
        state = (
            "closed" if self._closed else "connected" if self._link.up else self._link.trouble or "not yet"
        )
        return f"<{type(self).__name__} {self.url}: {len(self._held)} held, {len(self._asks)} asked, {state}>"
