"""The task that writes: it alone uses its connection, so no caller who leaves can leave an answer in it.

Changes gather while the last transaction is under way, and share the next one. Where the connection breaks,
they are done over another; where it breaks at the COMMIT, the mark that the transaction left, or did not
leave, says whether it happened.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar
from uuid import uuid4

import asyncpg

from interlock.errors import InterlockError, StoreError, Unavailable, ValidationError
from interlock.stores.postgres.group import Outcome, read_and_decide, write, writes
from interlock.stores.postgres.link import TRANSACTION_SECONDS, LinkLostError, translated

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from interlock.stores.postgres.changes import Change
    from interlock.stores.postgres.hints import Hints
    from interlock.stores.postgres.link import Line, Link

T = TypeVar("T")
log = logging.getLogger(__name__)

GROUP: Final = 256
"""Changes in one transaction at most."""
PATIENCE: Final = 5.0
"""Seconds that a caller waits for a database that cannot be reached."""
_TRIES: Final = 4
"""How often a transaction is tried that the server rolls back for the sake of another."""
_ROLLED_BACK: Final = (
    asyncpg.UniqueViolationError,
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
)
# An upsert rather than a look: it waits for a transaction that has not ended, also for the first of all.
_LAST: Final = """
INSERT INTO interlock.writers VALUES ($1, 0, clock_timestamp())
ON CONFLICT (id) DO UPDATE SET at = excluded.at RETURNING last
"""


class Job:
    """A change, or *work* that is a transaction of its own; who waits for it, and how long for a server."""

    __slots__ = ("change", "long", "reply", "until", "work")

    def __init__(
        self,
        change: Change | None,
        work: Callable[[asyncpg.Connection], Awaitable[Any]] | None,
        *,
        long: bool = False,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.change = change
        self.work = work
        self.long = long
        self.reply: asyncio.Future[Any] = loop.create_future()
        self.until = loop.time() + PATIENCE

    def settle(self, outcome: Outcome) -> None:
        """Tell who waits, if he still does."""
        if self.reply.done():
            return
        if outcome.error is not None:
            self.reply.set_exception(outcome.error)
        else:
            self.reply.set_result(outcome.value)


class Writer:
    """Does changes in the order of their calls, many in one transaction."""

    def __init__(self, line: Line, hints: Hints, first: Link | None = None) -> None:
        self.id = uuid4().hex
        self._line = line
        self._hints = hints
        self._link: Link | None = first
        self._serial = 0
        self._sent: list[Outcome] | None = None
        """What becomes of the group whose COMMIT is on its way."""
        self._jobs: deque[Job] = deque()
        self._woken: asyncio.Future[None] | None = None
        self._stopping = False
        self._task = asyncio.get_running_loop().create_task(self._run())

    def submit(self, change: Change) -> asyncio.Future[Any]:
        """Have *change* done; what it gives, once that is durable."""
        return self._put(Job(change, None))

    def transact(
        self, work: Callable[[asyncpg.Connection], Awaitable[T]], *, long: bool = False
    ) -> asyncio.Future[T]:
        """Have *work* done in a transaction of its own; it may be done twice, the first time in vain.

        Its statements may be *long* ones.
        """
        return self._put(Job(None, work, long=long))

    async def aclose(self) -> None:
        """Take no more, finish what was taken, and close the connection."""
        self._stopping = True
        self._wake()
        await asyncio.wait((self._task,))

    def _put(self, job: Job) -> asyncio.Future[Any]:
        if self._stopping:
            raise Unavailable("the store is closed")
        self._jobs.append(job)
        self._wake()
        return job.reply

    def _wake(self) -> None:
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)

    # -- the task

    async def _run(self) -> None:
        try:
            while self._jobs or not self._stopping:
                if self._jobs:
                    await self._do(self._take())
                else:
                    self._woken = asyncio.get_running_loop().create_future()
                    await self._woken
        finally:
            self._stopping = True
            link, self._link = self._link, None
            if link is not None:
                await link.close()
            for job in self._jobs:
                job.settle(Outcome(error=Unavailable("the store is closed")))

    def _take(self) -> list[Job]:
        group = [self._jobs.popleft()]
        while (
            group[0].change is not None
            and self._jobs
            and self._jobs[0].change is not None
            and len(group) < GROUP
        ):
            group.append(self._jobs.popleft())
        return group

    async def _do(self, group: list[Job]) -> None:
        """Carry out *group*; whatever happens, all of it is answered."""
        try:
            outcomes = await self._outcomes(group)
        except InterlockError as error:
            if len(group) > 1 and (isinstance(error, ValidationError) or "sqlstate" in error.details):
                for job in group:  # one of them is at fault, or too large: each for itself
                    await self._do([job])
                return
            outcomes = [Outcome(error=error) for _ in group]
        except BaseException as error:
            self._drop()
            alone = isinstance(error, Exception) and len(group) > 1
            for job in group:
                if alone:
                    await self._do([job])
                else:
                    job.settle(Outcome(error=StoreError(f"{self._line.where}: {error!r}")))
            if not isinstance(error, Exception):
                raise
            if not alone:
                log.exception("a transaction failed, and nobody knows why")
            return
        changes = [job.change for job in group if job.change is not None and job.change.session_id]
        self._hints.tell(
            {change.session_id or "" for change in changes},
            work={change.session_id or "" for change in changes if change.is_work},
        )
        for job, outcome in zip(group, outcomes, strict=True):
            job.settle(outcome)

    async def _outcomes(self, group: list[Job]) -> list[Outcome]:
        """What became of each of *group*; raises what became of all."""
        until = max(job.until for job in group)
        self._serial += 1
        unknown: list[Outcome] | None = None
        all_events = past_locks = False
        tries = 0
        while True:
            tries += 1
            link = await self._linked(until, unknown is not None)
            try:
                async with asyncio.timeout(TRANSACTION_SECONDS):
                    if unknown is not None:
                        if await self._happened(link):
                            return unknown
                        unknown = None
                    return await self._attempt(link, group, all_events, past_locks)
            except Exception as error:
                found = translated(error, self._line.where)
                if isinstance(found, LinkLostError):
                    unknown, self._sent = unknown or self._sent, None
                    self._drop()
                    if asyncio.get_running_loop().time() > until:
                        raise self._given_up(self._line.unreachable(found), unknown) from None
                elif isinstance(error, asyncpg.UniqueViolationError) and not all_events:
                    all_events = True  # something of this is there already
                elif isinstance(error, asyncpg.LockNotAvailableError) and group[0].change and not past_locks:
                    past_locks = True
                elif not isinstance(error, _ROLLED_BACK) or tries >= _TRIES:
                    raise found from None

    async def _attempt(
        self, link: Link, group: list[Job], all_events: bool, past_locks: bool
    ) -> list[Outcome]:
        """One transaction. Raises what the driver does, with the transaction rolled back."""
        db, work = link.db, group[0].work
        self._sent = None
        try:
            await db.execute(link.begin(long=group[0].long))
            if work is not None:
                outcomes, changed = [Outcome(await work(db))], True
            else:
                changes = [job.change for job in group if job.change is not None]
                kept, outcomes = await read_and_decide(
                    db, changes, all_events=all_events, past_locks=past_locks
                )
                changed = writes(kept)
                if changed:
                    await write(db, kept, self.id, self._serial)
        except BaseException as error:
            await self._roll_back(link, error)
            raise
        if not changed:
            await db.execute("ROLLBACK")
            return outcomes
        if work is None:
            self._sent = outcomes
        await db.execute("COMMIT")
        self._sent = None
        return outcomes

    async def _roll_back(self, link: Link, error: BaseException) -> None:
        if isinstance(error, Exception) and not isinstance(translated(error, link.where), LinkLostError):
            with suppress(Exception):
                await link.db.execute("ROLLBACK")
                return
        self._drop()

    async def _happened(self, link: Link) -> bool:
        """Whether the last transaction was committed. Waits for its end, should its server still be at it."""
        try:
            await link.db.execute(link.begin())
            last = await link.db.fetchval(_LAST, self.id)
            await link.db.execute("COMMIT")
        except asyncpg.PostgresError as error:
            raise LinkLostError(str(error)) from None  # to be asked again
        return int(last) >= self._serial

    async def _linked(self, until: float, unknown: bool) -> Link:
        if self._link is None or self._link.closed:
            try:
                self._link = await self._line.patiently(until)
            except StoreError as error:
                raise self._given_up(error, unknown) from None
        return self._link

    @staticmethod
    def _given_up(error: StoreError, unknown: object) -> StoreError:
        if not unknown:
            return error
        return StoreError(f"{error.message}; whether this was stored is unknown: ask again", unknown=True)

    def _drop(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.abort()
