"""Tokens in a store that several servers use: what one makes or revokes, the others take over."""

from __future__ import annotations

import asyncio

import pytest

from interlock.clock import SystemClock
from interlock.http.access.book import PREFIX, TokenBook, digest_of
from interlock.stores.memory import MemoryStore


async def test_what_one_server_makes_and_revokes_counts_for_all() -> None:
    """After the next look; what a revoked token had opened at another server ends."""
    store = MemoryStore()
    here, there = TokenBook(store, SystemClock()), TokenBook(store, SystemClock())
    await here.load()
    await there.load()
    assert not there.required
    _, secret = await here.create("root", ["admin"])
    await there.load()
    assert there.required
    caller = there.caller([digest_of(secret.reveal())])
    assert caller is not None
    assert caller.names == ("root",)
    ended: list[str] = []
    there.on_end(caller.names, lambda: ended.append("root"))
    _, other = await there.create("other", ["read"])
    await here.load()
    assert here.caller([digest_of(other.reveal())]) is not None
    await here.revoke("root")
    await there.load()
    assert ended == ["root"]
    assert there.caller([digest_of(secret.reveal())]) is None
    await here.revoke("other")
    await there.load()
    assert not there.required


async def test_a_look_that_is_older_than_a_change_here_is_not_taken_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was read before a token was made or revoked says nothing about it."""
    store = MemoryStore()
    book = TokenBook(store, SystemClock())
    _, old = await book.create("old", ["read"])
    await book.load()
    items, reading = store.items, asyncio.Event()

    async def slowly(prefix: str = "") -> dict[str, str]:
        found = await items(prefix)
        await reading.wait()
        return found

    monkeypatch.setattr(store, "items", slowly)
    looking = asyncio.create_task(book.load())
    await asyncio.sleep(0)
    _, new = await book.create("new", ["read"])
    await book.revoke("old")
    reading.set()
    await looking
    assert book.caller([digest_of(new.reveal())]) is not None
    assert book.caller([digest_of(old.reveal())]) is None
    assert set(await items(PREFIX)) == {PREFIX + "new"}
