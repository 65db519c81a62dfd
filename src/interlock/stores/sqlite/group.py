"""Group commit: one transaction for the jobs that gathered; each succeeds or fails for itself."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from msgspec import Struct

from interlock.stores.sqlite.transaction import transaction, translated

if TYPE_CHECKING:
    import asyncio
    from pathlib import Path

T = TypeVar("T")
Work: TypeAlias = Callable[[sqlite3.Connection], T]
"""What a job does. If it has a static method ``together(db, works)``, that does several at once, quicker."""
Reply: TypeAlias = "asyncio.Future[Any]"


class Job(Struct, frozen=True):
    """What is to be done, and who waits for it."""

    work: Work[Any]
    reply: Reply
    session_id: str | None = None
    """Whose watchers are told."""


class Outcome(Struct, frozen=True):
    """What became of a job."""

    reply: Reply
    value: Any = None
    error: Exception | None = None


def commit(db: sqlite3.Connection, group: list[Job], path: Path) -> list[Outcome]:
    """Run *group* in one transaction. What one job did wrong is undone, and told to it alone."""
    try:
        try:
            with transaction(db):
                return _run_together(db, group, path)
        except _UndoneError:
            with transaction(db):
                return [_run_alone(db, job, path) for job in group]
    except Exception as error:
        if len(group) > 1:
            # A full disk, say, ends the whole transaction, whichever job it was that hit it: each
            # for itself now, so that what fits is stored and only what does not is refused.
            return [outcome for job in group for outcome in commit(db, [job], path)]
        return [Outcome(job.reply, error=translated(error, path)) for job in group]


class _UndoneError(Exception):
    """A job failed half way: the others can go on only without what it has written."""


def _run_together(db: sqlite3.Connection, group: list[Job], path: Path) -> list[Outcome]:
    """Run *group* in the hope that all goes well: savepoints are dear, since SQLite copies pages for them."""
    outcomes: list[Outcome] = []
    for together, neighbours in groupby(group, key=lambda job: getattr(job.work, "together", None)):
        jobs = list(neighbours)
        if together is not None and len(jobs) > 1:
            try:
                values = together(db, [job.work for job in jobs])
            except Exception as error:
                raise _UndoneError from error
            outcomes += [Outcome(job.reply, value) for job, value in zip(jobs, values, strict=True)]
            continue
        for job in jobs:
            before = db.total_changes
            try:
                outcomes.append(Outcome(job.reply, job.work(db)))
            except Exception as error:
                if db.total_changes != before or not db.in_transaction:
                    raise _UndoneError from error
                outcomes.append(Outcome(job.reply, error=translated(error, path)))
    return outcomes


def _run_alone(db: sqlite3.Connection, job: Job, path: Path) -> Outcome:
    """Run *job* in a savepoint of its own, to which it is undone if it fails."""
    db.execute("SAVEPOINT job")
    try:
        outcome = Outcome(job.reply, job.work(db))
    except Exception as error:
        if not db.in_transaction:
            raise  # SQLite has rolled back everything, so the rest of the group is undone too
        db.execute("ROLLBACK TO job")
        outcome = Outcome(job.reply, error=translated(error, path))
    db.execute("RELEASE job")
    return outcome
