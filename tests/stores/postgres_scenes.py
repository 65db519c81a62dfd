"""A store in PostgreSQL for a test, beside other programs, and what its log has to be."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from interlock.core.sessions import NewEvent
from interlock.stores import open_store
from interlock.stores.postgres import PostgresStore


def event(id_: str, **fields: Any) -> NewEvent:
    """An event of this id."""
    return NewEvent(id_, "message_sent", 1.0, **fields)


async def opened(url: str) -> PostgresStore:
    """The store at *url*."""
    store = await open_store(url)
    assert isinstance(store, PostgresStore)
    return store


@asynccontextmanager
async def other(url: str) -> AsyncIterator[asyncpg.Connection]:
    """A program that is not ours, in the same database."""
    db = await asyncpg.connect(url)
    try:
        yield db
    finally:
        await db.close()


def check_log(log: list[Any], places: dict[str, int | None]) -> None:
    """What was acknowledged is there at its place, and the log has no gap; what was not may be there too."""
    assert [one.sequence for one in log] == list(range(1, len(log) + 1))
    there = {one.id: one.sequence for one in log}
    assert len(there) == len(log)
    told = {id_: place for id_, place in places.items() if place is not None}
    assert told.items() <= there.items()
