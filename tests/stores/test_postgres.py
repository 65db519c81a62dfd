"""PostgreSQL: what this store promises beyond the rules of every store, whatever befalls the server."""

import asyncio
import random

import pytest

from interlock.core.sessions import Run, RunChange, Session
from interlock.errors import StoreError, ValidationError
from interlock.stores import open_store
from interlock.stores.postgres import PostgresStore, link, schema
from interlock.stores.schema import Migration
from interlock.testing.store_conformance_scene import Bell
from stores.postgres_scenes import check_log, event, opened, other


async def refusal(url: str) -> str:
    with pytest.raises(StoreError) as caught:
        await open_store(url)
    assert "\n" not in caught.value.message
    return caught.value.message


# -- opening -----------------------------------------------------------------------------------------


async def test_what_cannot_be_reached_is_told_without_the_password() -> None:
    """One line that names the server and says why."""
    message = await refusal("postgresql://u:canary@127.0.0.1:1/db?password=canary")
    assert "canary" not in message
    assert "postgresql://***@127.0.0.1:1/db?***: the database cannot be reached" in message


@pytest.mark.parametrize("url", ["postgresql://h:port/d", "postgresql://u:canary@h/d?sslmode=perhaps"])
async def test_what_is_no_url_is_told_so(url: str) -> None:
    """A `ValidationError`, without the password."""
    with pytest.raises(ValidationError, match="is not a URL of PostgreSQL") as caught:
        await open_store(url)
    assert "canary" not in caught.value.message


async def test_a_server_that_cannot_keep_a_promise_is_refused(postgres_url: str) -> None:
    """One that does not wait for its disk, and a database that cannot hold every text."""
    async with other(postgres_url) as db:
        await db.execute("DROP ROLE IF EXISTS hasty; CREATE ROLE hasty LOGIN SUPERUSER")
        await db.execute("ALTER ROLE hasty SET synchronous_commit = off")
        await db.execute("DROP DATABASE IF EXISTS latin")
        await db.execute("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0")
    assert "synchronous_commit is off" in await refusal(postgres_url.replace("postgres@", "hasty@"))
    latin = postgres_url.rpartition("/")[0] + "/latin"
    assert "encoding is LATIN1" in await refusal(latin)
    async with other(postgres_url) as db:
        await db.execute("DROP DATABASE latin")
        await db.execute("DROP ROLE hasty")


async def test_an_old_server_and_a_replica_are_refused(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bounds are those of the server's own answers."""
    monkeypatch.setattr(link, "OLDEST", 99)
    assert "PostgreSQL 99 or later is needed, this is" in await refusal(postgres_url)
    monkeypatch.undo()
    monkeypatch.setattr(link, "CHECK", link.CHECK.replace("pg_is_in_recovery()", "true"))
    assert "is a replica, which cannot be written to" in await refusal(postgres_url)


async def test_many_open_an_empty_database_at_once(postgres_url: str) -> None:
    """Its schema is made once, by one of them."""
    stores = await asyncio.gather(*(opened(postgres_url) for _ in range(5)))
    await asyncio.gather(*(store.set(f"{n}", "v") for n, store in enumerate(stores)))
    assert len(await stores[0].items()) == 5
    for store in stores:
        await store.aclose()
    async with other(postgres_url) as db:
        applied = await schema.applied_to(db)
    assert [one[0] for one in applied] == [one.version for one in schema.migrations()]


async def test_what_another_made_is_left_as_it_is(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A newer schema, a changed one, and another program's; a migration that fails leaves nothing."""
    async with await opened(postgres_url) as store:
        await store.set("k", "v")
    known = schema.migrations()
    broken = Migration(99, "0099_broken", "CREATE TABLE interlock.half (a int); CREATE TABLE nonsense")
    monkeypatch.setattr("interlock.stores.postgres.store.migrations", lambda: [*known, broken])
    assert "syntax error" in await refusal(postgres_url)
    newer = Migration(99, "0099_newer", "CREATE TABLE interlock.half (a int)")
    monkeypatch.setattr("interlock.stores.postgres.store.migrations", lambda: [*known, newer])
    await (await opened(postgres_url)).aclose()
    monkeypatch.undo()
    assert "its schema 99 is newer than" in await refusal(postgres_url)
    changed = [known[0]._replace(sql=known[0].sql + "--"), *known[1:]]
    monkeypatch.setattr("interlock.stores.postgres.store.migrations", lambda: changed)
    async with other(postgres_url) as db:
        await db.execute("DELETE FROM interlock.schema_migrations WHERE version = 99")
    assert "the database was made by a changed copy" in await refusal(postgres_url)
    monkeypatch.undo()
    async with await opened(postgres_url) as store:
        assert await store.get("k") == "v"
    async with other(postgres_url) as db:
        await db.execute("DROP TABLE interlock.schema_migrations")
    assert "is another program's" in await refusal(postgres_url)


# -- several processes -------------------------------------------------------------------------------


async def test_several_write_one_log(postgres_url: str) -> None:
    """Numbers without a gap, runs in one order, a key given once, room kept, one end of each run."""
    stores = [await opened(postgres_url) for _ in range(4)]
    sessions = await asyncio.gather(
        *(store.create_session(Session("s", "active", metadata={"n": n})) for n, store in enumerate(stores))
    )
    assert len({str(one.metadata) for one in sessions}) == 1
    places: dict[str, int | None] = {}

    async def work(n: int, store: PostgresStore) -> None:
        for k in range(30):
            places[f"{n}/{k}"] = await store.append("s", [event(f"{n}/{k}")])
            await store.submit_run(Run(f"{n}/{k}", "s", idempotency_key=f"{k}"), [event(f"q{n}/{k}")])

    await asyncio.gather(*(work(n, store) for n, store in enumerate(stores)))
    runs = await stores[0].list_runs("s")
    assert [run.number for run in runs] == list(range(1, 31))
    log = await stores[1].get_events("s")
    assert len(log) == 4 * 30 + 30
    check_log(log, places)
    done = await asyncio.gather(
        *(store.submit_run(Run(f"x{n}", "s"), room=32) for n, store in enumerate(stores)),
        return_exceptions=True,
    )
    assert [type(one).__name__ for one in done].count("QueueFull") == 2
    await stores[0].change_run(runs[0].id, RunChange("start", 1.0))
    ends = await asyncio.gather(
        *(store.change_run(runs[0].id, RunChange("complete", 2.0, 1)) for store in stores)
    )
    assert sum(end is not None for end in ends) == 1
    for store in stores:
        await store.aclose()


async def test_who_watches_hears_of_other_processes(postgres_url: str) -> None:
    """By a hint, soon; also after the connection that listens was lost."""
    async with await opened(postgres_url) as here, await opened(postgres_url) as there:
        await here.create_session(Session("s\0", "active"))
        bell = Bell()
        leave = here.watch("s\0", bell)

        async def hears(n: int) -> None:
            async with asyncio.timeout(20):
                while True:  # the listeners may not be there yet
                    bell.rings = 0
                    await there.append("s\0", [event(f"{n}/{random.random()}")])
                    try:
                        return await bell.rung(0.5)
                    except TimeoutError:
                        pass

        await hears(1)
        async with other(postgres_url) as db:
            gone = await db.fetch(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
                " OR query LIKE 'SELECT pg_notify%'"
            )
        assert gone
        await hears(2)
        leave()
