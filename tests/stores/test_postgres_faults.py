"""Whatever befalls PostgreSQL or the way to it: nothing acknowledged is lost, and all goes on by itself."""

import asyncio
import random
from typing import Any

import asyncpg
import pytest

from interlock.core.sessions import NewEvent, Retention, Run, RunChange, Session
from interlock.errors import InterlockError, StoreError
from interlock.stores.postgres import PostgresStore, link
from interlock.stores.postgres.writer import Writer
from postgres_server import PostgresServer
from stores.killed_writers import kill_and_check
from stores.postgres_scenes import check_log, event, opened, other


async def keep_writing(store: PostgresStore, name: str, until: asyncio.Event) -> dict[str, int | None]:
    """Appends in four lanes, each going on whatever comes of it: the places, None where it was refused."""
    places: dict[str, int | None] = {}

    async def lane(number: int) -> None:
        n = 0
        while not until.is_set():
            n += 1
            id_ = f"{name}/{number}/{n}"
            try:
                places[id_] = await store.append("s", [event(id_)])
            except StoreError:
                places[id_] = None

    await asyncio.gather(*map(lane, range(4)))
    return places


async def count_to(store: PostgresStore, more: int) -> None:
    """Return when the log has *more* events than now."""
    last = None
    async with asyncio.timeout(30):
        while True:
            try:
                now = await store.get_latest_sequence("s")
            except StoreError:
                continue
            last = now if last is None else last
            if now >= last + more:
                return
            await asyncio.sleep(0.01)


async def test_terminated_backends_lose_nothing(postgres_url: str) -> None:
    """At any moment, also at a COMMIT: nobody notices, nothing is lost, nothing is logged twice."""
    async with await opened(postgres_url) as store, other(postgres_url) as db:
        await store.create_session(Session("s", "active"))
        over = asyncio.Event()
        writing = asyncio.create_task(keep_writing(store, "e", over))
        for _ in range(40):
            await db.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'interlock' AND pid <> pg_backend_pid()"
            )
            await count_to(store, random.randrange(1, 20))
        over.set()
        places = await writing
        assert None not in places.values()
        check_log(await store.get_events("s"), places)


async def test_killed_writers_lose_nothing(postgres_url: str) -> None:
    """SIGKILL at any moment, two writing at once: what had returned is there, and the logs have no gap."""
    await kill_and_check(postgres_url, random.Random(random.SystemRandom().random()), 8, at_once=2)


@pytest.mark.deep
@pytest.mark.timeout(900)
async def test_many_killed_writers_lose_nothing(postgres_url: str) -> None:
    """The same, with as many kills as D1 asks for."""
    await kill_and_check(postgres_url, random.Random(random.SystemRandom().random()), 60, at_once=3)


async def test_an_answer_to_commit_that_got_lost_is_found_out(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the connection breaks behind or before the COMMIT, the call gives what it would have given."""
    breaks: list[str] = []
    execute = asyncpg.Connection.execute

    async def breaking(self: asyncpg.Connection, query: str, *values: Any, **options: Any) -> str:
        if query == "COMMIT" and breaks:
            if breaks.pop(0) == "behind":
                await execute(self, query, *values, **options)
            self.terminate()
            raise ConnectionResetError("the wire was cut")
        return await execute(self, query, *values, **options)

    async with await opened(postgres_url) as store:
        monkeypatch.setattr(asyncpg.Connection, "execute", breaking)
        await store.create_session(Session("s", "active"))
        for n, how in enumerate((["behind"], ["before"], ["before", "behind"], ["behind", "behind"])):
            breaks[:] = how
            assert await store.append("s", [event(f"{n}")]) == n + 1
            breaks[:] = how
            run, new = await store.submit_run(Run(f"r{n}", "s"))
            assert (run.number, new) == (n + 1, True)
            breaks[:] = how
            changed = await store.change_run(f"r{n}", RunChange("start", 1.0))
            assert changed is not None
            assert changed.attempt == 1
        assert breaks == []


async def test_a_killed_server_loses_nothing_and_is_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL for the postmaster: after a restart all that was acknowledged is there, and all goes on."""
    monkeypatch.setattr("interlock.stores.postgres.writer.PATIENCE", 1.0)
    server = PostgresServer("fsync=on")
    try:
        server.start()
        async with await opened(server.url) as store:
            await store.create_session(Session("s", "active"))
            over = asyncio.Event()
            writing = asyncio.create_task(keep_writing(store, "e", over))
            await count_to(store, 50)
            server.kill()
            await asyncio.to_thread(server.stop)
            await asyncio.to_thread(server.start)
            await count_to(store, 50)
            server.stop("fast")
            failing = asyncio.gather(*(store.set(f"{n}", "v") for n in range(300)), return_exceptions=True)
            async with asyncio.timeout(30):
                assert {type(one) for one in await failing} == {StoreError}
                with pytest.raises(StoreError, match="the database cannot be reached"):
                    await store.get("k")
            await asyncio.to_thread(server.start)
            await count_to(store, 20)
            over.set()
            places = await writing
            check_log(await store.get_events("s"), places)
    finally:
        server.remove()


async def crowd(url: str) -> list[asyncpg.Connection]:
    """As many connections as there are."""
    found = []
    while True:
        try:
            found.append(await asyncpg.connect(url))
        except asyncpg.TooManyConnectionsError:
            return found


async def test_a_full_house_is_waited_for(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No connection is left at the server: refused in so many words, and later it works again."""
    monkeypatch.setattr("interlock.stores.postgres.writer.PATIENCE", 1.0)
    async with other(postgres_url) as admin:
        await admin.execute("DROP ROLE IF EXISTS crowd; CREATE ROLE crowd LOGIN CONNECTION LIMIT 4")
        await admin.execute("GRANT CREATE ON DATABASE postgres TO crowd")
        url = postgres_url.replace("postgres@", "crowd@")
        async with await opened(url) as store:
            assert await store.get("k") is None
            guests = await crowd(url)
            await admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE usename = 'crowd' AND application_name = 'interlock'"
            )
            guests += await crowd(url)  # the places that became free
            with pytest.raises(StoreError, match="too many connections"):
                await store.set("k", "v")
            for guest in guests:
                await guest.close()
            async with asyncio.timeout(20):
                await store.set("k", "v")
            assert await store.get("k") == "v"
        await admin.execute("DROP OWNED BY crowd CASCADE")
        await admin.execute("DROP ROLE crowd")


async def test_a_lock_that_somebody_keeps_harms_its_session_only(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What needs the locked row is refused after a while; its neighbours in the same moment are stored."""
    monkeypatch.setattr(link, "BEGIN", link.BEGIN.replace("lock_timeout = '5s'", "lock_timeout = '200ms'"))
    async with await opened(postgres_url) as store, other(postgres_url) as db:
        for name in "ab":
            await store.create_session(Session(name, "active"))
            await store.submit_run(Run(f"run-{name}", name))
        tx = db.transaction()
        await tx.start()
        await db.execute("SELECT FROM interlock.sessions WHERE id = 'a' FOR UPDATE")
        done = await asyncio.gather(
            store.append("a", [event("1")]),
            store.append("b", [event("1")]),
            store.change_run("run-a", RunChange("start", 1.0)),
            store.change_run("run-b", RunChange("start", 1.0)),
            store.append("unknown", [event("1")]),
            store.set("k", "v"),
            return_exceptions=True,
        )
        assert [type(one).__name__ for one in done] == [
            *("StoreError", "int", "StoreError", "Run", "SessionNotFound", "NoneType")
        ]
        assert "session 'a' is locked by somebody else" in str(done[0])
        await tx.rollback()
        assert await store.append("a", [event("1")]) == 1


async def test_a_deadlock_with_another_program_is_got_over(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server sends the store's transaction away, and all of it is done by the next one, once."""
    attempt, tries = Writer._attempt, []

    async def counted(self: Writer, *arguments: Any) -> Any:
        tries.append(arguments)
        return await attempt(self, *arguments)

    async with await opened(postgres_url) as store, other(postgres_url) as db:
        for name in "ab":
            await store.create_session(Session(name, "active"))
        monkeypatch.setattr(Writer, "_attempt", counted)
        tx = db.transaction()
        await tx.start()
        await db.execute("SET LOCAL deadlock_timeout = '10s'")  # so that it is the store that finds it
        await db.execute("SELECT FROM interlock.sessions WHERE id = 'b' FOR UPDATE")
        appends = asyncio.gather(store.append("a", [event("1")]), store.append("b", [event("1")]))
        async with asyncio.timeout(10), other(postgres_url) as watching:
            waiting = 0
            while not waiting:
                waiting = await watching.fetchval("SELECT COUNT(*) FROM pg_locks WHERE NOT granted")
        await db.execute("SELECT FROM interlock.sessions WHERE id = 'a' FOR UPDATE")
        await tx.rollback()
        assert await appends == [1, 1]
        assert len(tries) == 2
        assert len(await store.get_events("a")) == len(await store.get_events("b")) == 1


async def test_what_hangs_is_given_up(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that does not answer keeps its callers for so long only; nobody gets another's answer."""
    monkeypatch.setattr("interlock.stores.postgres.readers.TRANSACTION_SECONDS", 0.3)
    monkeypatch.setattr("interlock.stores.postgres.writer.PATIENCE", 0.5)
    async with await opened(postgres_url) as store:
        await store.set("k", "v")
        with pytest.raises(StoreError, match="it does not answer"):
            await store._read(lambda db: db.fetchval("SELECT pg_sleep(30)"))
        assert await store.get("k") == "v"
        reads = [asyncio.create_task(store.get(key)) for key in ("k", "x", "k", "x")]
        await asyncio.sleep(0)
        reads[0].cancel()
        reads[3].cancel()
        assert (await asyncio.gather(*reads, return_exceptions=True))[1:3] == [None, "v"]


async def test_an_odd_value_is_refused_alone(postgres_url: str) -> None:
    """What PostgreSQL cannot keep is told to its caller; others of the same moment are stored."""
    async with await opened(postgres_url) as store:
        await store.create_session(Session("s", "active"))
        calls = [
            store.set("a", "1"),
            store.set("\ud800", "x"),
            store.append("s", [event("e", run_id="\1\0")]),
            store.append("s", [NewEvent("late", "message_sent", "noon")]),  # type: ignore[arg-type]
            store.submit_run(Run("r", "s", priority=2**70)),
            store.set("b", "2"),
        ]
        done = await asyncio.gather(*calls, return_exceptions=True)
        assert [isinstance(one, InterlockError) for one in done] == [False, True, False, True, True, False]
        assert await store.items() == {"a": "1", "b": "2"}
        assert [one.run_id for one in await store.get_events("s")] == ["\1\0"]


async def test_two_prune_one_database(postgres_url: str) -> None:
    """What is gone is counted by one of them."""
    async with await opened(postgres_url) as one, await opened(postgres_url) as two:
        for n in range(20):
            await one.create_session(Session(f"{n}", "completed", created_at=1.0), [event("e")])
        keep = Retention(completed_age=1.0, deleted_age=0.0)
        pruned = await asyncio.gather(one.prune(keep, 9.0), two.prune(keep, 9.0))
        again = await one.prune(keep, 9.0)
        assert sum(round_.hidden_sessions for round_ in pruned) == 20
        assert sum(round_.removed_sessions for round_ in (*pruned, again)) == 20
        async with other(postgres_url) as db:
            assert await db.fetchval("SELECT COUNT(*) FROM interlock.events") == 0
