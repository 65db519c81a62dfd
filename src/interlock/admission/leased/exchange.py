"""What this process wants of a kernel elsewhere and has from it: requests, calls, and permits that it holds.

A request is said again after every reconnect until it is answered or given up, under the same id, so that an
answer that was lost is given once more and no unit with it. All that a grant changes is changed where the
answer is heard; the future of the task that waits is only a wake-up, as in `interlock.admission.shell`.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from threading import get_ident
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from interlock.admission.callback import begin, call_back
from interlock.admission.leased.asks import Ask, RemotePermit, hold_words, more_words
from interlock.admission.leased.leases import Held, LeaseKeeper, now
from interlock.admission.waits import Wait
from interlock.admission.wire import GENERATED, error_from_wire
from interlock.clock import SystemClock
from interlock.errors import (
    AcquireTimeout,
    InterlockError,
    InvalidOperation,
    Unavailable,
    ValidationError,
)

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Generator

    from interlock.admission.leased.leases import Renewals
    from interlock.admission.leased.links import Link
    from interlock.admission.permit import Acquisition, Permit
    from interlock.admission.waits import WaitWatcher
    from interlock.core import model
    from interlock.core.model import Outcome

_GRACE = 0.75
"""Seconds past its deadline after which a request ends here, should the server not have ended it.

Promised is that it ends within one second; the event loop needs some of that."""
_INSTANT = 0.001
CALL_SECONDS = 30.0
_MISSING = object()


class Exchange:
    """The client's side of the wire. `LeasedAdmission` adds what users call.

    *renewals* renews leases from a thread; whoever makes an exchange gives it its ``_link`` at once.
    """

    _link: Link

    def __init__(self, url: str, lease: float, renewals: Renewals, client: str = "") -> None:
        self.clock = SystemClock()
        self.url = url
        """Of the other end, without a password."""
        self.lease = lease
        self._client = client or self._new_client()
        self._held: dict[Held, None] = {}
        self._by_id: dict[str, Held] = {}
        self._keyed: dict[model.Permit, RemotePermit] = {}
        self._asks: dict[int, Ask] = {}
        self._sharing: Counter[str] = Counter()
        self._numbers = 0
        self._epoch = ""
        self._view_at = 0.0
        self._view_number = -1
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._home: int | None = None
        self._thread: int | None = None
        self._handed_over: dict[model.Permit, object] = {}
        self._keeper = LeaseKeeper(renewals, lease, self._held, self._forget)
        self.on_wait: list[WaitWatcher] = []
        """Told of every wait, by the task that waits."""

    @staticmethod
    def _new_client() -> str:
        """The id of a process among all."""
        return uuid4().hex

    # -- asking

    def _take(self, names: tuple[str, ...]) -> None:
        """There is no short way."""

    def _give_back(self, record: model.Permit) -> bool:
        return False

    def _admit(self, request: Acquisition) -> Generator[Any, None, Permit]:
        ask = self._request(request)
        how, ended = "cancelled", None
        if self.on_wait:
            ended = begin(self.on_wait, Wait(request.names, request.owner, request.priority, _unknown))
        try:
            yield from ask.future
            how = "granted" if ask.error is None else ask.error.code
        except BaseException:
            self._give_up(ask)
            raise
        finally:
            if ended is not None and ask.queued:
                ended(how, ask.age)
        if ask.error is not None:
            raise ask.error
        held = ask.held
        assert held is not None
        held.claimants -= 1
        if held.ended == "released":
            if held.key is not None:  # somebody else with the key entered and left before this came to run
                return (yield from self._admit(request))
            raise InvalidOperation(f"owner {held.owner!r} was released while this waited")
        if held.key is None:
            return RemotePermit(self, held, request.names)
        permit = self._keyed.get(held)
        if permit is None:
            permit = self._keyed[held] = RemotePermit(self, held, request.names)
        return permit

    def _request(self, request: Acquisition) -> Ask:
        self._settle_in()
        more = more_words(request)
        number = self._next()
        permit_id = request.key or f"{GENERATED}{self._client[:16]}{number:016x}"
        names = request.names

        def words(ask: Ask) -> tuple[Any, ...]:
            asked = more if ask.since is None else {**more, "since": ask.since}
            if "since" in asked:
                asked = {**asked, "since": self._there(asked["since"])}
            if ask.late:
                patience = ask.patience
                if request.timeout and patience is not None:
                    patience = max(patience, _INSTANT)  # 0 is for those who would not wait at all
                asked = {**asked, "timeout": patience, "age": ask.age}
            return ("acquire", ask.number, permit_id, names, asked)

        ask = Ask(number, words, permit_id, request.timeout)
        ask.told = request.on_queued
        ask.shared = request.key is not None
        if ask.shared:
            self._sharing[permit_id] += 1
        ask.names, ask.value = names, request
        self._put(ask)
        return ask

    def _put(self, ask: Ask) -> None:
        """Say *ask* now, or as soon as there is somebody to hear it."""
        self._asks[ask.number] = ask
        try:
            if self._link.up:
                ask.said = 1
                self._link.say(ask.words(ask))
        except BaseException:  # what cannot be written down is not asked for
            self._forget_ask(ask)
            raise
        if ask.deadline is not None:
            self._watch(ask)

    def _watch(self, ask: Ask) -> None:
        patience = ask.patience
        assert patience is not None
        assert self._loop is not None
        ask.timer = self._loop.call_later(patience or _GRACE, self._overdue, ask)

    def _overdue(self, ask: Ask) -> None:
        """Its deadline is here. The server ends it, if it can be heard; else it ends here, a little later."""
        if ask.number not in self._asks:
            return
        assert ask.deadline is not None
        if self._link.up and now() < ask.deadline + _GRACE:
            assert self._loop is not None
            ask.timer = self._loop.call_later(_GRACE, self._overdue, ask)
            return
        ask.error = self._unanswered(ask)
        self._withdraw(ask)
        ask.settle()

    def _unanswered(self, ask: Ask) -> InterlockError:
        why = f"no answer from {self.url}" + (f" ({self._link.trouble})" if self._link.trouble else "")
        if ask.names:
            waited = f"waited {ask.age:.3g} s for {', '.join(ask.names)}"
            return AcquireTimeout(f"{waited}: {why}", limits=ask.names, blocked_by=[])
        return Unavailable(f"{why} within {ask.age:.0f} s")

    def _give_up(self, ask: Ask) -> None:
        """Nobody waits for *ask* any more: cancelled before the answer, or in the instant of it."""
        held = ask.held
        if ask.number in self._asks:
            self._withdraw(ask)
        elif held is not None and ask.permit_id:
            held.claimants -= 1
            if held.claimants <= 0 and held not in self._keyed:
                self._let_go(held, "unused")

    def _withdraw(self, ask: Ask) -> None:
        self._forget_ask(ask)
        permit_id = ask.permit_id
        if permit_id in self._by_id or self._sharing[permit_id]:
            permit_id = ""  # others here have it, or want it as well
        self._link.say(
            ("withdraw", ask.number, permit_id),
            # Its wait ends with the connection, but not a permit that it got.
            again=("release", permit_id, 0, "unused") if permit_id and ask.said else None,
        )

    def _forget_ask(self, ask: Ask) -> None:
        if self._asks.pop(ask.number, None) is not None and ask.shared:
            self._sharing[ask.permit_id] -= 1
            if not self._sharing[ask.permit_id]:
                del self._sharing[ask.permit_id]
        if ask.timer is not None:
            ask.timer.cancel()

    async def _call(self, word: str, *arguments: Any) -> Any:
        """Have the server do something; its answer. `Unavailable` if none comes in half a minute."""
        self._settle_in()
        ask = Ask(self._next(), lambda ask: (word, ask.number, *arguments), "", CALL_SECONDS)
        self._put(ask)
        try:
            await ask.future
        finally:
            self._forget_ask(ask)
        if ask.error is not None:
            # It was removed the first time, and the answer got lost.
            if word == "remove_limit" and ask.said > 1 and isinstance(ask.error, ValidationError):
                return None
            raise ask.error
        return ask.value

    def _next(self) -> int:
        self._numbers += 1
        return self._numbers

    def _there(self, moment: float) -> float:
        """*moment*, in seconds, on the clock of the other end."""
        return moment

    def _settle_in(self) -> None:
        if self._closed:
            raise Unavailable("the admission is closed")
        loop = self._link.start()
        if loop is not self._loop:
            self._loop, self._home = loop, get_ident()

    # -- giving back

    def _release(self, record: model.Permit, outcome: Outcome) -> bool:
        assert isinstance(record, Held)
        return self._let_go(record, outcome)

    def _abandon(self, record: model.Permit) -> None:
        # The collector may call this in the middle of anything: it is only noted here.
        assert isinstance(record, Held)
        self._let_go(record, "failed", later=True)

    def _let_go(self, held: Held, outcome: Outcome, *, later: bool = False) -> bool:
        # One step, so that of two threads that release at once one goes on.
        if self._held.pop(held, _MISSING) is _MISSING:
            return False
        if held.ended is not None:
            self._forget(held)
            return False
        held.ended = "released"
        self._forget(held)
        words = ("release", held.id, held.fence, outcome)
        if get_ident() == self._home and not later:
            self._link.say(words, again=words)
        elif self._loop is not None:
            with suppress(RuntimeError):  # the loop has been closed: the lease ends by itself
                self._loop.call_soon_threadsafe(self._link.say, words, words)
        return True

    def _forget(self, held: Held) -> None:
        """*held* has ended; called from the loop, from other threads and by the collector."""
        self._held.pop(held, None)
        self._keyed.pop(held, None)
        if self._by_id.get(held.id) is held:
            self._by_id.pop(held.id, None)

    # -- touching

    def _touch(self, record: model.Permit) -> None:
        assert isinstance(record, Held)
        record.touched_ms = int(self.clock.now() * 1000)
        words = ("touch", record.id, record.fence)
        if get_ident() == self._home:
            self._link.say(words)
        elif self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._link.say, words)

    # -- what the link calls

    def greeted(self, epoch: str) -> None:
        """Say what is held, then what is wanted."""
        self._epoch = epoch
        for held in tuple(self._held):
            if held.ended is not None:
                self._forget(held)
                continue
            self._link.say(hold_words(held, adopt=held.epoch != epoch))
            if held.lent and held.epoch != epoch:
                self._link.say(("lend", held.id, held.fence))
        for ask in tuple(self._asks.values()):
            ask.said += 1
            ask.late = True
            self._link.say(ask.words(ask))

    def silent(self) -> None:
        """Everything is said again at the next greeting; those whose deadline is over end now."""
        for ask in tuple(self._asks.values()):
            if ask.deadline is not None and ask.deadline <= now():
                self._overdue(ask)

    def beat(self) -> None:
        """Ask for the view, which also shows that this end is alive."""
        if self._link.up:
            self._link.say(("view", 0, False, self._view_number))

    def heard(self, answers: list[list[Any]], asked: float) -> None:
        """Do what the server says."""
        for word, *said in answers:
            match word:
                case "granted":
                    self._granted(asked, *said)
                case "error":
                    ask = self._asks.get(said[0])
                    if ask is not None:
                        self._forget_ask(ask)
                        ask.error = error_from_wire(*said[1:])
                        ask.settle()
                case "queued":
                    self._queued(*said)
                case "ended":
                    self._ended(*said)
                case "held":
                    self._confirmed(asked, *said)
                case "view":
                    self._viewed(*said)
                case "done":
                    ask = self._asks.get(said[0])
                    if ask is not None:
                        self._forget_ask(ask)
                        ask.value = said[1]
                        ask.settle()

    def _granted(self, asked: float, number: int, fence: int, granted_ms: int, left_ms: int | None) -> None:
        ask = self._asks.get(number)
        if ask is None:
            return  # withdrawn; the server gives it back when it hears so
        request: Acquisition = ask.value
        lease = self.lease if request.lease is None else request.lease
        held = self._by_id.get(ask.permit_id)
        if held is None or held.fence != fence or held.ended is not None:
            held = Held(
                ask.permit_id,
                request.names,
                fence,
                granted_ms,
                lease=lease,
                kept=request.lease is None,
            )
            held.key, held.owner = request.key, request.owner
            if request.parent is not None:
                parent = request.parent._record
                held.over = parent if isinstance(parent, Held) else None
        held.epoch = self._epoch
        held.confirm(asked, lease if left_ms is None else left_ms / 1000)
        if held.ended is not None:
            # This process stood still for longer than the lease while the grant lay waiting for it.
            self._link.say(("release", held.id, fence, "unused"))
            self._forget_ask(ask)
            ask.number = self._next()
            if ask.shared:
                self._sharing[ask.permit_id] += 1
            self._put(ask)
            return
        self._held[held] = None
        self._by_id[held.id] = held
        self._keeper.start()
        held.claimants += 1
        ask.held = held
        self._forget_ask(ask)
        ask.settle()

    def _queued(self, number: int, since: float | None) -> None:
        ask = self._asks.get(number)
        if ask is not None:
            ask.since = since
            ask.queued = True
            told, ask.told = ask.told, None
            if told is not None:
                call_back(told)

    def _ended(self, permit_id: str, fence: int, how: Any) -> None:
        held = self._by_id.get(permit_id)
        if held is not None and held.fence <= fence:
            held.lose(how)
            self._forget(held)

    def _confirmed(self, asked: float, permit_id: str, fence: int, left_ms: int | None) -> None:
        held = self._by_id.get(permit_id)
        if held is not None and held.fence <= fence:
            held.epoch = self._epoch
            held.confirm(asked, held.lease_seconds if left_ms is None else left_ms / 1000)

    # -- what the rest of an admission adds

    def _lend(self, record: model.Permit) -> None:
        raise NotImplementedError

    def _reclaim(self, record: model.Permit, timeout: float | None) -> Generator[Any, None, None]:
        raise NotImplementedError

    def _viewed(self, number: int, view_number: int, at: float, view: Any) -> None:
        raise NotImplementedError


def _unknown() -> None:
    """The place in line is the server's to know."""
