"""A session as any process sees it, whichever worker holds it: through rows of the store they share.

Submitting writes the run, and its holder finds it there. What is wanted of a run in flight is written down as
a wish, which the holder answers. What became of all of it is read: a hint says when, and a look each second.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from interlock.core.runs import ENDED, IN_FLIGHT
from interlock.core.sessions import RunChange
from interlock.core.workers import Wish
from interlock.errors import (
    AcquireTimeout,
    CapabilityNotSupported,
    Draining,
    InterlockError,
    InvalidOperation,
    InvalidStatus,
    QueueFull,
    RunNotFound,
    Unavailable,
)
from interlock.session.controls import error_of, own_run
from interlock.session.feed import subscribers
from interlock.session.intake import check_same, new_run, refusal, room_of
from interlock.session.patience import Writes, settle, sleep, within
from interlock.session.readings import (
    Blocking,
    OperationLog,
    Operations,
    RunResult,
    SessionStatus,
    result_of,
)
from interlock.session.server import SessionServer
from interlock.session.subscription import Subscription, subscribe
from interlock.session.values import event, run_event

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping

    from interlock.core.sessions import Run, Session
    from interlock.core.workers import Answer, WishVerb
    from interlock.ports import Clock, SharedStore

T = TypeVar("T")

POLL: Final = 1.0
"""Seconds after which it is looked, should no hint come."""
_BREATH: Final = 0.02
ANSWERED_WITHIN: Final = 10.0
"""Seconds that a wish waits for its answer."""
_CODES: Final[dict[str, type[InterlockError]]] = {
    one.default_code: one
    for one in (CapabilityNotSupported, InvalidOperation, InvalidStatus, RunNotFound, Unavailable)
}


class SharedSession:
    """One session of a shared *store*. Its methods are those of `SessionServer`, and mean the same."""

    closed: Final = False

    def __init__(
        self, store: SharedStore, session: Session, clock: Clock, drains: Counter[str] | None = None
    ) -> None:
        """*drains* counts who drains which session, for all that are given the same."""
        self.store = store
        self.session = session
        self.session_id = session.id
        self._clock = clock
        self._drains: Counter[str] = Counter() if drains is None else drains
        self._writes = Writes()
        self._operations = OperationLog()
        self._flying: list[str] = []
        self._waiting: list[str] = []

    # -- runs

    async def submit_run(
        self,
        input: Mapping[str, Any],  # noqa: A002 - the word for it
        **options: Any,
    ) -> str:
        """See `SessionServer.submit_run`. Only a drain in this process has it raise `Draining`."""
        if self._drains[self.session_id] > 0:
            raise Draining(f"session {self.session_id!r} is draining; submit again when that is over")
        run = new_run(self.session_id, self._clock.now(), input, **options)
        return await self._writes.finish(self._submit(run))

    async def _submit(self, run: Run) -> str:
        flying, waiting = await self._read()
        most = self.session.max_concurrent_runs
        blocking = [Blocking("session", len(flying), most)] if waiting or len(flying) >= most else []
        told = {"position": len(waiting) + 1, "waits_for": [one.as_data() for one in blocking]}
        queued = event("run_queued", run.submitted_at, told, run.id)
        try:
            stored, new = await self.store.submit_run(run, [queued], room=room_of(self.session))
        except QueueFull as refused:
            raise refusal(self.session, refused) from None
        if not new:
            check_same(stored, run)
        return stored.id

    async def await_run(self, run_id: str, timeout: float | None = 60.0) -> RunResult:
        """See `SessionServer.await_run`."""

        async def ended() -> Run | None:
            run = await own_run(self.store, self.session_id, run_id)
            return run if run.status in ENDED else None

        try:
            return result_of(await self._until(ended, timeout))
        except TimeoutError as error:
            if isinstance(error, InterlockError):
                raise
            message = f"run {run_id!r} has not ended within {timeout:g} s; it goes on"
            raise AcquireTimeout(message, run_id=run_id) from None

    async def execute_run(
        self,
        input: Mapping[str, Any],  # noqa: A002 - the word for it
        timeout: float | None = 60.0,
        **options: Any,
    ) -> RunResult:
        """See `SessionServer.execute_run`."""
        return await self.await_run(await self.submit_run(input, **options), timeout)

    # -- what is done to runs

    async def cancel_run(self, run_id: str) -> None:
        """See `SessionServer.cancel_run`; of one in flight it returns when its worker has been told."""
        await self._writes.finish(self._cancel(run_id))

    async def _cancel(self, run_id: str) -> None:
        while True:
            run = await own_run(self.store, self.session_id, run_id)
            if run.status in ENDED:
                return
            if run.status in IN_FLIGHT:
                break
            at = self._clock.now()
            change = RunChange("cancel", at, run.attempt)
            if await self.store.change_run(run_id, change, [run_event("cancel", at, run_id, {})]) is not None:
                self._operations.note(run_id, "cancel", at, "cancelled")
                return
        await self._wish(run_id, "cancel", "cancelled")

    async def interrupt_run(self, run_id: str) -> None:
        """See `SessionServer.interrupt_run`."""
        run = await own_run(self.store, self.session_id, run_id)
        if run.status not in IN_FLIGHT:
            raise RunNotFound(f"Run not in flight: {run_id}", run_id=run_id)
        await self._wish(run_id, "interrupt", "interrupted")

    async def pause_run(self, run_id: str) -> None:
        """See `SessionServer.pause_run`."""
        await self._wish_in_flight(run_id, "pause", "paused")

    async def resume_run(self, run_id: str) -> None:
        """See `SessionServer.resume_run`."""
        await self._wish_in_flight(run_id, "resume", "running")

    async def cancel_all(self, run_ids: Iterable[str] | None = None) -> dict[str, InterlockError | None]:
        """See `SessionServer.cancel_all`."""
        flying, waiting = await self._read()
        chosen = [*flying, *waiting] if run_ids is None else list(run_ids)
        return {run_id: await error_of(self.cancel_run(run_id)) for run_id in chosen}

    async def interrupt_all(self) -> dict[str, InterlockError | None]:
        """See `SessionServer.interrupt_all`."""
        flying, _ = await self._read()
        return {run_id: await error_of(self.interrupt_run(run_id)) for run_id in flying}

    def operations(self, run_id: str) -> Operations:
        """What was asked of a run through this object."""
        return self._operations.of(run_id)

    async def _wish_in_flight(self, run_id: str, verb: WishVerb, state: str) -> None:
        run = await own_run(self.store, self.session_id, run_id)
        if run.status not in IN_FLIGHT:
            raise InvalidOperation(f"run {run_id!r} is {run.status}; only one in flight can {verb}")
        await self._wish(run_id, verb, state)

    async def _wish(self, run_id: str, verb: WishVerb, state: str) -> None:
        """Write it down, and wait for the answer: what the holder was told, this raises."""
        key = await self.store.wish(Wish(self.session_id, run_id, verb))
        self._operations.note(run_id, verb, self._clock.now(), state)

        async def answered() -> Answer | None:
            return await self.store.answered(key)

        try:
            answer = await self._until(answered, ANSWERED_WITHIN)
        except TimeoutError:
            if verb in ("cancel", "interrupt"):
                return  # it is written down: whoever holds the session next will do it
            raise Unavailable(f"no worker has answered within {ANSWERED_WITHIN:g} s") from None
        if answer.code is not None and verb != "cancel":
            kind = _CODES.get(answer.code, InterlockError)
            raise kind(answer.message, code=answer.code, run_id=run_id)

    # -- the session

    def subscribe(
        self, from_sequence: int = 0, run_id: str | None = None, types: Collection[str] | None = None
    ) -> Subscription:
        """See `SessionServer.subscribe`; it ends with the session."""
        return subscribe(
            self.store,
            self.session_id,
            from_sequence=from_sequence,
            run_id=run_id,
            types=types,
            clock=self._clock,
        )

    async def refresh(self) -> None:
        """Have `status` tell what is in the store now."""
        await self._read()

    def status(self) -> SessionStatus:
        """Who was in flight and who waited when that was last read: by `refresh`, or by a submission."""
        return SessionStatus(
            self.session_id,
            tuple(self._flying),
            len(self._flying),
            tuple(self._waiting),
            len(self._waiting),
            self.session.max_concurrent_runs,
            self.session.max_queued_runs,
            subscribers(self.store, self.session_id),
        )

    def waits_for(self, run_id: str) -> tuple[int, list[Blocking]] | None:
        """The place in line of a run that waited when that was last read; None for any other."""
        if run_id not in self._waiting:
            return None
        flying, most = len(self._flying), self.session.max_concurrent_runs
        blocking = [Blocking("session", flying, most)] if flying >= most else []
        return self._waiting.index(run_id) + 1, blocking

    async def drain(self, timeout: float | None = 60.0) -> bool:
        """Return once no run is left to end: True. Meanwhile nothing new is taken in this process.

        Others may go on submitting.

        Raises `AcquireTimeout` after *timeout* seconds (None: never).
        """

        async def idle() -> bool | None:
            return None if any(await self._read()) else True

        self._drains[self.session_id] += 1
        try:
            return await self._until(idle, timeout)
        except TimeoutError:
            raise AcquireTimeout(
                f"session {self.session_id!r} is not drained: {len(self._flying)} runs are in flight and "
                f"{len(self._waiting)} wait",
                in_flight=self._flying,
                queued=len(self._waiting),
            ) from None
        finally:
            self._drains[self.session_id] -= 1
            if not self._drains[self.session_id]:
                del self._drains[self.session_id]

    async def close(self, complete: bool = False, timeout: float | None = 10.0) -> None:
        """With *complete* the session ends for good; `InvalidOperation` if it has unfinished runs.

        Without, nothing is done: workers serve it as long as it has runs.
        """
        if not complete:
            return
        at = self._clock.now()
        if await self.store.complete(self.session_id, at, [event("session_completed", at)]) is not None:
            return
        if any(await self._read()):
            raise InvalidOperation(
                f"session {self.session_id!r} has unfinished runs; drain it, or cancel them"
            )
        status = (await self.store.get_session(self.session_id)).status
        raise InvalidStatus(f"session {self.session_id!r} is {status}", status=status)

    async def wait_closed(self) -> None:
        """Return at once: there is nothing here that closes."""

    async def __aenter__(self) -> SharedSession:
        return self

    async def __aexit__(self, *exit_: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<SharedSession {self.session_id!r}>"

    # -- inside

    async def _read(self) -> tuple[list[str], list[str]]:
        """The ids of the runs in flight, and of those that wait."""
        self._flying, self._waiting = await self.store.unfinished(self.session_id)
        return self._flying, self._waiting

    async def _until(self, look: Callable[[], Awaitable[T | None]], timeout: float | None) -> T:
        """What *look* gives once it gives anything; TimeoutError after *timeout* seconds."""
        async with self._hints() as wait, within(self._clock, timeout):
            while True:
                found = await look()
                if found is not None:
                    return found
                await wait()

    @asynccontextmanager
    async def _hints(self) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        """What returns when the session has changed since it was last called, or after a second."""
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def hint() -> None:
            settle(waiting)

        async def wait() -> None:
            nonlocal waiting
            timer = self._clock.call_at(self._clock.now() + POLL, hint)
            try:
                await waiting
            finally:
                timer.cancel()
            waiting = asyncio.get_running_loop().create_future()
            await sleep(self._clock, _BREATH)  # there may be many events, each with a hint

        unwatch = self.store.watch(self.session_id, hint)
        try:
            yield wait
        finally:
            unwatch()


ServedSession: TypeAlias = SessionServer | SharedSession
"""A session by which runs are submitted: served in this process, or by whichever worker holds it."""
