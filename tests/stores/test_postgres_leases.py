"""Leases: of many who look at once, one holds a session; a late one is fenced."""

import asyncio
from contextlib import AsyncExitStack

import asyncpg
import pytest

from interlock.core.sessions import NewEvent, Run, RunChange, Session
from interlock.core.workers import Answer, Held, Wish, Worker
from interlock.errors import InvalidStatus, SessionNotFound, StaleFence
from interlock.ports import SharedStore
from interlock.stores import MemoryStore, open_store
from interlock.stores.postgres import PostgresStore, leases


def worker(name: str, *agents: str) -> Worker:
    return Worker(name, "host", 1, agents or ("a",))


async def stores(stack: AsyncExitStack, url: str, count: int) -> list[PostgresStore]:
    found = []
    for _ in range(count):
        store = await stack.enter_async_context(await open_store(url))
        assert isinstance(store, PostgresStore)
        found.append(store)
    return found


async def with_run(store: PostgresStore, name: str, agent: str = "a") -> None:
    await store.create_session(Session(name, "active", agent_id=agent))
    await store.submit_run(Run(f"run-{name}", name))


async def test_the_port() -> None:
    """What several processes can use says so by its methods."""
    assert issubclass(PostgresStore, SharedStore)
    assert not isinstance(MemoryStore(), SharedStore)


async def test_each_session_has_one_holder(postgres_url: str) -> None:
    """Of five who claim sixty at once, in small bites; those without work or with another agent are left."""
    async with AsyncExitStack() as stack:
        found = await stores(stack, postgres_url, 5)
        for n in range(60):
            await with_run(found[n % 5], f"{n}", "ab"[n % 20 == 0])
        await found[0].create_session(Session("idle", "active", agent_id="a"))

        async def claim(n: int) -> set[str]:
            held: set[str] = set()
            for _ in range(20):
                now = await found[n].hold(worker(f"w{n}"), 30.0, most=3)
                assert now is not None
                assert held <= now.keys()
                assert len(now) <= len(held) + 3
                held = set(now)
            return held

        shares = await asyncio.gather(*map(claim, range(5)))
        everything = [session_id for share in shares for session_id in share]
        assert sorted(everything, key=int) == [f"{n}" for n in range(60) if n % 20]
        counted = {one.id: one.sessions for one in await found[0].workers()}
        assert counted == {f"w{n}": len(share) for n, share in enumerate(shares)}


async def test_a_late_holder_starts_nothing(postgres_url: str) -> None:
    """Once another holds the session, nor does it end what it had started; what waits can be cancelled."""
    async with AsyncExitStack() as stack:
        late, next_, nobody = await stores(stack, postgres_url, 3)
        await with_run(late, "s")
        await late.submit_run(Run("other", "s"))
        assert await late.hold(worker("late"), 0.3, most=9) == {"s": Held(1, 2)}
        assert await nobody.change_run("run-s", RunChange("start", 1.0)) is None
        started = await late.change_run("run-s", RunChange("start", 1.0))
        assert started is not None
        assert await next_.hold(worker("next"), 30.0, most=9) == {}
        held = None
        async with asyncio.timeout(10):
            while not held:
                held = await next_.hold(worker("next"), 30.0, most=9)
        assert held == {"s": Held(2, 2)}
        for change in (RunChange("complete", 2.0, 1), RunChange("pause", 2.0, 1)):
            assert await late.change_run("run-s", change) is None
        with pytest.raises(StaleFence, match="another process has taken over"):
            await late.append("s", [NewEvent("e", "message_sent", 2.0)], run_id="run-s", attempt=1)
        assert await late.change_run("other", RunChange("start", 1.0)) is None
        assert await late.hold(worker("late"), 30.0, most=9) is None
        cancelled = await late.change_run("other", RunChange("cancel", 1.0))
        assert cancelled is not None
        assert cancelled.status == "cancelled"
        assert await next_.change_run("run-s", RunChange("requeue", 2.0, 1)) is not None
        assert await late.change_run("run-s", RunChange("complete", 2.0, 1)) is None
        again = await next_.change_run("run-s", RunChange("start", 3.0, 1))
        assert again is not None
        assert again.attempt == 2
        dead, living = await nobody.workers()
        assert (dead.id, dead.alive, dead.sessions) == ("late", False, 0)
        assert (living.id, living.alive, living.sessions) == ("next", True, 1)


async def test_who_froze_in_a_statement_is_sent_away(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server waits for the rest of a statement for ever, with all that is locked: workers end that."""
    monkeypatch.setattr(leases, "_UNBLOCK", leases._UNBLOCK.replace("10 seconds", "0.2 seconds"))
    async with AsyncExitStack() as stack:
        [store] = await stores(stack, postgres_url, 1)
        await with_run(store, "s")
        frozen = await asyncpg.connect(postgres_url, server_settings={"application_name": "interlock"})
        await frozen.execute("BEGIN; SELECT FROM interlock.sessions FOR UPDATE")
        await frozen.prepare("SELECT 1")  # which is sent, and would be carried out with the next message
        held = await store.hold(worker("w"), 30.0, most=9)
        assert held == {}
        async with asyncio.timeout(10):
            while not held:
                held = await store.hold(worker("w"), 30.0, most=9)
        assert held == {"s": Held(1, 1)}
        frozen.terminate()


async def test_what_is_let_go_can_be_taken(postgres_url: str) -> None:
    """One session, or all of them with the worker itself; a session that is held is not."""
    async with AsyncExitStack() as stack:
        one, two = await stores(stack, postgres_url, 2)
        for name in ("x", "y\0"):
            await with_run(one, name)
        assert set(await one.hold(worker("one"), 30.0, most=9) or ()) == {"x", "y\0"}
        assert await two.hold(worker("two"), 30.0, most=9) == {}
        heard = asyncio.Event()
        leave = two.watch_work(lambda _: heard.set())
        await one.let_go("one", ("y\0",))
        async with asyncio.timeout(5):
            await heard.wait()
        leave()
        assert await two.hold(worker("two"), 30.0, most=9) == {"y\0": Held(2, 1)}
        assert set(await one.hold(worker("one"), 30.0, most=0) or ()) == {"x"}
        await one.let_go("one")
        assert [one.id for one in await two.workers()] == ["two"]
        assert set(await two.hold(worker("two"), 30.0, most=9) or ()) == {"x", "y\0"}


async def test_wishes_are_answered_once(postgres_url: str) -> None:
    """In their order, to whoever asks by the key; those of a session that is gone are gone."""
    async with AsyncExitStack() as stack:
        one, two = await stores(stack, postgres_url, 2)
        await with_run(one, "s")
        await two.hold(worker("two"), 30.0, most=9)
        keys = [await one.wish(Wish("s", "run-s", verb)) for verb in ("pause", "cancel")]
        assert [(wish.verb, wish.key) for wish in await two.wishes("s")] == [
            ("pause", keys[0]),
            ("cancel", keys[1]),
        ]
        assert (await two.hold(worker("two"), 30.0, most=9) or {})["s"].wished
        assert await one.answered(keys[0]) is None
        await two.answer(keys[0], Answer("a_code", "why not"), "s")
        await two.answer(keys[0], Answer(), "s")
        assert await one.answered(keys[0]) == Answer("a_code", "why not")
        assert [wish.key for wish in await two.wishes("s")] == [keys[1]]
        with pytest.raises(SessionNotFound):
            await one.wish(Wish("unknown", "r", "cancel"))
        await one.delete_session("s")
        assert await one.answered(keys[0]) is None


async def test_no_session_is_completed_with_work_left(postgres_url: str) -> None:
    """Of a completion and a submit at once, from two processes, one is refused."""
    async with AsyncExitStack() as stack:
        one, two = await stores(stack, postgres_url, 2)
        for n in range(20):
            name = f"s{n}"
            await one.create_session(Session(name, "active"))
            await with_ended_run(one, name)
            calls = [two.complete(name, 2.0), one.submit_run(Run(f"late-{n}", name))]
            if n % 2:
                calls.reverse()
            done = await asyncio.gather(*calls, return_exceptions=True)
            completed, submitted = done[::-1] if n % 2 else done
            if completed is None:
                assert await one.unfinished(name) == ([], [f"late-{n}"])
            else:
                assert isinstance(submitted, InvalidStatus)
                assert await one.unfinished(name) == ([], [])
                assert await two.complete(name, 3.0) is None


async def with_ended_run(store: PostgresStore, name: str) -> None:
    await store.submit_run(Run(f"run-{name}", name))
    await store.change_run(f"run-{name}", RunChange("start", 1.0))
    await store.change_run(f"run-{name}", RunChange("complete", 2.0, 1))
