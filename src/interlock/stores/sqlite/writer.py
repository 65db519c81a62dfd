"""The thread that owns the connection, and its transactions."""

from __future__ import annotations

import asyncio
import threading
from contextlib import closing, suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, TypeVar

from interlock.errors import Unavailable
from interlock.stores.sqlite.checkpoints import Checkpoints
from interlock.stores.sqlite.file import connect, locked, prepare
from interlock.stores.sqlite.group import Job, Outcome, commit
from interlock.stores.sqlite.hints import Hints
from interlock.stores.sqlite.transaction import translated

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path

    from interlock.stores.sqlite.group import Reply, Work

T = TypeVar("T")

GROUP = 256  # jobs in one transaction at most


class Writer:
    """The thread that owns the connection: jobs in their order, answers to their event loops."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()  # the working directory may change
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        # Guards the three below. Without it a job could be queued behind the last one that the
        # thread takes, and its caller would wait for ever.
        self._gate = threading.Lock()
        self._stopping = False
        self._ended = False
        self._watchers: list[Reply] = []
        self.hints = Hints()

    def start(self) -> Reply:
        """Start the thread; the future ends when the database is open, or with why it is not."""
        ready = asyncio.get_running_loop().create_future()
        threading.Thread(target=self._main, args=(ready,), name="interlock-sqlite", daemon=True).start()
        return ready

    def submit(self, work: Work[T], session_id: str | None = None) -> asyncio.Future[T]:
        """Have *work* done in a transaction, and whoever watches the session told."""
        reply: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        with self._gate:
            if self._stopping:
                raise Unavailable("the store is closed")
            self._jobs.put(Job(work, reply, session_id))
        return reply

    def stop(self) -> None:
        """Take no more jobs; end after those that were taken."""
        with self._gate:
            if not self._stopping:
                self._stopping = True
                self._jobs.put(None)

    def ended(self) -> Reply:
        """A future that ends when the file is closed and its lock given up."""
        reply = asyncio.get_running_loop().create_future()
        with self._gate:
            if self._ended:
                reply.set_result(None)
            else:
                self._watchers.append(reply)
        return reply

    def _main(self, ready: Reply) -> None:
        failure: Exception = Unavailable("the store is closed")
        try:
            with locked(self.path), closing(connect(self.path)) as db:
                prepare(db, self.path)
                _deliver([Outcome(ready)])
                self._serve(db)
        except Exception as error:
            failure = translated(error, self.path)
        self.stop()
        with self._gate:
            self._ended = True
        # Nothing is queued or watched from here on, and jobs are left only where something failed.
        left = [ready]
        while not self._jobs.empty():
            job = self._jobs.get()
            left += [job.reply] if job else []
        _deliver([Outcome(reply, error=failure) for reply in left])
        _deliver([Outcome(reply) for reply in self._watchers])
        self.hints.tell_all()

    def _serve(self, db: sqlite3.Connection) -> None:
        checkpoints = Checkpoints(db, self.path)
        while True:
            group = [self._jobs.get()]
            while group[-1] and len(group) < GROUP and not self._jobs.empty():
                group.append(self._jobs.get())
            jobs = [job for job in group if job]
            outcomes = commit(db, jobs, self.path)
            self.hints.tell(jobs)
            _deliver(outcomes)
            checkpoints.take()
            if group[-1] is None:
                return


def _deliver(outcomes: list[Outcome]) -> None:
    """Wake the callers, with one step of the event loop for all that wait in it."""
    waiting: dict[asyncio.AbstractEventLoop, list[Outcome]] = {}
    for outcome in outcomes:
        waiting.setdefault(outcome.reply.get_loop(), []).append(outcome)
    for loop, theirs in waiting.items():
        with suppress(RuntimeError):  # the loop was closed: nobody is left to be told
            loop.call_soon_threadsafe(_settle, theirs)


def _settle(outcomes: list[Outcome]) -> None:
    for outcome in outcomes:
        reply = outcome.reply
        if reply.done():
            continue  # the caller was cancelled while its job ran
        if outcome.error is None:
            reply.set_result(outcome.value)
        else:
            reply.set_exception(outcome.error)
