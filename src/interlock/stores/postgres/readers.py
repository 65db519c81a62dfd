"""The tasks that read, each over a connection of its own, so that a long page delays no short one."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

from interlock.errors import InterlockError, StoreError, Unavailable
from interlock.stores.postgres.group import Outcome
from interlock.stores.postgres.link import BEGIN_READING, TRANSACTION_SECONDS, LinkLostError, translated
from interlock.stores.postgres.writer import Job

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import asyncpg

    from interlock.stores.postgres.link import Line, Link

T = TypeVar("T")

READERS: Final = 2
"""Connections that are read over, at most."""


class Readers:
    """Does reads, in the order in which they are asked for; connections are made when they are needed."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._jobs: deque[Job] = deque()
        self._idle: list[asyncio.Future[None]] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False

    def read(self, work: Callable[[asyncpg.Connection], Awaitable[T]]) -> asyncio.Future[T]:
        """What *work* gives or raises; it may be done twice."""
        if self._stopping:
            raise Unavailable("the store is closed")
        job = Job(None, work)
        self._jobs.append(job)
        if not self._wake() and len(self._tasks) < READERS:
            self._tasks.append(asyncio.get_running_loop().create_task(self._run()))
        return job.reply

    async def aclose(self) -> None:
        """Finish what was asked for, and close the connections."""
        self._stopping = True
        while self._wake():
            pass
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _wake(self) -> bool:
        while self._idle:
            waiting = self._idle.pop()
            if not waiting.done():
                waiting.set_result(None)
                return True
        return False

    async def _run(self) -> None:
        link: Link | None = None
        try:
            while self._jobs or not self._stopping:
                if self._jobs:
                    job = self._jobs.popleft()
                    if not job.reply.done():  # whoever left wants no answer
                        link = await self._do(job, link)
                    continue
                waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._idle.append(waiting)
                await waiting
        finally:
            if link is not None:
                await link.close()

    async def _do(self, job: Job, link: Link | None) -> Link | None:
        """Answer *job*; the link with which to go on."""
        while True:
            try:
                if link is None or link.closed:
                    link = await self._line.patiently(job.until)
                async with asyncio.timeout(TRANSACTION_SECONDS):
                    job.settle(Outcome(await self._read(link, job)))
            except Exception as error:
                found = translated(error, self._line.where)
                if not isinstance(found, LinkLostError):
                    if not isinstance(found, InterlockError):
                        found = StoreError(f"{self._line.where}: {type(found).__name__}: {found}")
                    job.settle(Outcome(error=found))
                    return link
                if link is not None:
                    link.abort()
                    link = None
                if asyncio.get_running_loop().time() > job.until:
                    job.settle(Outcome(error=self._line.unreachable(found)))
                    return None
            except BaseException:
                job.settle(Outcome(error=Unavailable("the store is closed")))
                if link is not None:
                    link.abort()
                raise
            else:
                return link

    @staticmethod
    async def _read(link: Link, job: Job) -> Any:
        assert job.work is not None
        if not link.pooled:
            return await job.work(link.db)
        # A pooler may give another connection to what comes after a statement was prepared.
        await link.db.execute(BEGIN_READING)
        try:
            return await job.work(link.db)
        finally:
            with suppress(Exception):
                await link.db.execute("ROLLBACK")
