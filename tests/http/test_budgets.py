"""A token with a budget gets so much in a day and no more, over every way in and over a restart."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from admission.harnesses import hosted
from gateways import OK, Answer, chat, upstream
from interlock.admission.local import LocalAdmission
from interlock.admission.remote import RemoteAdmission
from interlock.errors import InterlockError, StoreError
from interlock.http.access.book import TokenBook
from interlock.http.access.budget import WRITE_SECONDS
from interlock.http.access.terms import Terms
from interlock.stores.memory import MemoryStore
from interlock.testing import VirtualClock, idle
from served_tokens import Door, door

DAY = 86_400
SCOPES = ("submit", "read", "gateway")
CHAT = "/gateway/p/v1/chat/completions"


def spent(answer: Answer, now: float) -> None:
    """429 ``budget``, until the next day of UTC begins."""
    body = answer.json.get("error", answer.json)
    assert (answer.status, body["code"]) == (429, "budget"), answer
    after = int(answer.header(b"retry-after") or b"")
    left = -(-(DAY - now % DAY) // 1)
    if "error" in answer.json:
        assert after == 900, after  # more no SDK is told to wait
    else:
        assert left <= after <= 1.2 * left + 1, after


async def take(server: Door, token: str, **more: Any) -> Answer:
    return await server.ask("POST", "/permits", token, {"limits": ["a"], **more})


async def test_so_many_requests_a_day() -> None:
    """Permits, runs and calls count, nothing else does, nor the same key again; tomorrow anew."""
    async with upstream() as provider, door(provider=provider.url) as server:
        server.admission.configure("a", None)
        token = await server.token(*SCOPES, requests_per_day=3)
        other, admin = await server.token(*SCOPES, name="other"), await server.token("admin")
        await server.ask("POST", "/sessions", admin, {"id": "s", "agent": "worker"})
        for _ in range(5):
            assert (await server.ask("GET", "/limits", token)).status == 200
        assert (await take(server, token, key="k")).status == 201
        assert (await take(server, token, key="k")).status == 201
        assert (await server.ask("POST", "/sessions/s/runs", token, {"input": {}})).status == 202
        provider.will_answer(OK, OK, OK)
        body = json.loads(chat())
        assert (await server.ask("POST", CHAT, token, body)).status == 200
        now = server.clock.now()
        spent(await take(server, token), now)
        spent(await server.ask("POST", "/sessions/s/runs", token, {"input": {}}), now)
        spent(await server.ask("POST", CHAT, token, body), now)
        assert provider.seen == 1
        assert (await take(server, token, key="k")).status == 201
        assert (await take(server, other)).status == 201
        await server.clock.advance(DAY - now % DAY)
        for _ in range(2):
            assert (await take(server, token)).status == 201
        assert (await server.ask("POST", CHAT, token, body)).status == 200
        spent(await take(server, token), server.clock.now())


async def test_so_many_seconds_of_permits_a_day() -> None:
    """Each that lasts counts, by the second; those that have ended count no more."""
    async with door() as server:
        server.admission.configure("a", None)
        token = await server.token("submit", permit_seconds_per_day=100)
        first, second = [(await take(server, token, leaseMs=DAY * 1000)).json["id"] for _ in range(2)]
        for _ in range(20):
            await server.clock.advance(1)
        await server.ask("DELETE", f"/permits/{first}", token)
        await server.clock.advance(1)  # 41 or 42 by now
        await server.clock.advance(56)
        assert (await take(server, token)).status == 201
        for _ in range(3):
            await server.clock.advance(1)
        spent(await take(server, token), server.clock.now())
        assert (await server.ask("DELETE", f"/permits/{second}", token)).json == {"released": True}
        spent(await take(server, token), server.clock.now())


async def test_a_call_s_permit_counts_as_long_as_the_provider_is_at_it() -> None:
    async with upstream() as provider, door(provider=provider.url) as server:
        token = await server.token("gateway", permit_seconds_per_day=10)
        calling = asyncio.ensure_future(server.ask("POST", CHAT, token, json.loads(chat())))
        exchange = await provider.next()
        for _ in range(10):
            await server.clock.advance(1)
        spent(await server.ask("POST", CHAT, token, {}), server.clock.now())
        exchange.write(OK)
        assert (await calling).status == 200


async def test_over_a_connection_of_permits_the_same_holds() -> None:
    clock, admission = VirtualClock(1000.0), LocalAdmission()
    admission.configure("a", None)
    book = TokenBook(MemoryStore(), clock)
    _, secret = await book.create("it", ("submit",), None, Terms(requests_per_day=2))
    async with hosted(admission, book=book) as server:
        remote = RemoteAdmission(server.url, token=secret.reveal())
        try:
            for _ in range(2):
                async with await remote.acquire("a"):
                    pass
            with pytest.raises(InterlockError) as caught:
                await remote.acquire("a")
            assert (caught.value.code, caught.value.retryable) == ("budget", True)
        finally:
            await remote.aclose()


class Counted(MemoryStore):
    """Counts writes, and fails them while it is told to."""

    writes = 0
    fails = False

    async def set(self, key: str, value: str) -> None:
        if key.startswith("budget:"):
            if self.fails:
                raise StoreError("the disk is full")
            self.writes += 1
        await super().set(key, value)


async def test_what_was_used_is_remembered_and_seldom_written(caplog: pytest.LogCaptureFixture) -> None:
    """Once in so many seconds, however much is asked; also after the store has failed, and at the end."""
    clock, store = VirtualClock(1000.0), Counted()
    book = TokenBook(store, clock)
    await book.create("it", ("submit",), None, Terms(requests_per_day=1000))
    await book.create("free", ("submit",))
    caller = book.caller([token.digest for token in book.tokens()])
    assert caller is not None
    for _ in range(100):
        book.budgets.ask(caller)
    assert store.writes == 0
    await clock.advance(WRITE_SECONDS)
    await idle()
    assert store.writes == 1
    assert list(await store.items("budget:")) == ["budget:it"]
    book.budgets.ask(caller)
    store.fails = True
    await clock.advance(WRITE_SECONDS)
    await idle()
    assert "is not written: the disk is full" in caplog.text
    store.fails = False
    book.budgets.ask(caller)
    await book.aclose()
    assert json.loads((await store.items("budget:"))["budget:it"])["requests"] == 102

    again = TokenBook(store, clock)
    await again.load()
    for _ in range(898):
        again.budgets.ask(caller)
    with pytest.raises(InterlockError, match="1000 requests of today"):
        again.budgets.ask(caller)
    await again.revoke("it")
    again.budgets.ask(caller)  # what it has opened and lasts is not held to a budget that is gone
    await again.aclose()
    assert await store.items("budget:") == {}

    await store.set("budget:it", "nonsense")
    await store.set("budget:old", '{"day": 0, "requests": 5, "seconds": 1.0}')
    await clock.advance(DAY)
    await TokenBook(store, clock).load()
