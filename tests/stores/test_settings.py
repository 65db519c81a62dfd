"""Settings: the rules that every store keeps, then what SQLite promises beyond them."""

import asyncio
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from interlock.errors import StoreError, Unavailable, ValidationError
from interlock.ports import Settings
from interlock.stores import MemoryStore, open_store
from interlock.stores.schema import Migration
from interlock.stores.sqlite import SQLiteStore
from interlock.stores.sqlite.file import connect
from interlock.stores.sqlite.schema import migrate, migrations
from interlock.stores.sqlite.transaction import one

ODD = ["", " ", "a", "A", "a%", "a_", "a%b", "aXb", "a\0", "a\0b", "ä", "a🙂", "a\U0010ffff", "b"]


@pytest.fixture(params=["memory", "sqlite", "postgres"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    url = {"memory": "memory:", "sqlite": f"sqlite:///{tmp_path}/a.db"}.get(request.param)
    async with await open_store(url or request.getfixturevalue("postgres_url")) as opened:
        yield opened


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "interlock.db"


async def sqlite(path: Path) -> SQLiteStore:
    store = await open_store(f"sqlite:///{path}")
    assert isinstance(store, SQLiteStore)
    return store


async def refusal(path: Path) -> str:
    with pytest.raises(StoreError) as caught:
        await sqlite(path)
    assert "\n" not in caught.value.message
    return caught.value.message


# -- every store -----------------------------------------------------------------------------------


async def test_satisfies_the_port(store: Settings) -> None:
    """What open_store returns is what the gate takes for its settings."""
    assert isinstance(store, Settings)


async def test_reads_what_was_written(store: Settings) -> None:
    """An unknown key is None; a write replaces; a delete removes, and may find nothing."""
    assert await store.get("k") is None
    await store.set("k", "1")
    await store.set("k", "2")
    assert await store.get("k") == "2"
    await store.delete("k")
    await store.delete("k")
    assert await store.get("k") is None


async def test_any_text_is_a_key_and_a_value(store: Settings) -> None:
    """Text comes back as it went in: empty, with NUL, outside the basic plane."""
    for text in ODD:
        await store.set(text, text)
    assert [await store.get(text) for text in ODD] == ODD


@pytest.mark.parametrize("prefix", ODD)
async def test_a_prefix_is_exact(store: Settings, prefix: str) -> None:
    """items() gives, in order, what begins with the prefix and nothing else; no wildcards."""
    for text in ODD:
        await store.set(text, "x")
    expected = sorted(text for text in ODD if text.startswith(prefix))
    assert list(await store.items(prefix)) == expected


async def test_writes_land_in_the_order_of_the_calls(store: Settings) -> None:
    """Of concurrent writes of one key, the one called last stays."""
    for last in range(20):
        await asyncio.gather(*(store.set("k", f"{n}") for n in range(last + 1)))
        assert await store.get("k") == f"{last}"


async def test_a_cancelled_caller_harms_nobody(store: Settings) -> None:
    """Whoever is cancelled at the await, the calls before and after it do what they say."""
    for n in range(50):
        calls = [asyncio.create_task(store.set(f"{n}/{i}", "x")) for i in range(3)]
        await asyncio.sleep(0)  # all three have begun
        calls[1].cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        assert {f"{n}/0", f"{n}/2"} <= set(await store.items(f"{n}/"))


async def test_a_closed_store_says_so(store: Any) -> None:
    """After closing every call raises Unavailable; closing again does nothing."""
    await store.aclose()
    await store.aclose()
    for call in (store.get("k"), store.set("k", "v"), store.delete("k"), store.items()):
        with pytest.raises(Unavailable, match="the store is closed"):
            await call


@pytest.mark.parametrize(
    "url",
    [
        *["", "interlock.db", "sqlite:", "sqlite://a.db", "sqlite:///", "sqlite:///a.db?mode=ro"],
        *["sqlite:///:memory:", "sqlite:///a\0b", "memory", "redis://u:secret@h", "file:///a.db"],
    ],
)
async def test_other_urls_are_refused(url: str) -> None:
    """The message names what is allowed, and shows no password."""
    with pytest.raises(ValidationError, match=r'is not "memory:", "sqlite:///file\.db"') as caught:
        await open_store(url)
    assert "secret" not in str(caught.value)


async def test_postgresql_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it, one sentence says what to type."""
    for name in [name for name in sys.modules if name.startswith("interlock.stores.postgres")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    with pytest.raises(
        ValidationError, match=r"needs the extra: pip install 'interlock\[postgres\]'"
    ) as caught:
        await open_store("postgresql://u:secret@h/db")
    assert "secret" not in str(caught.value)


async def test_memory_is_memory() -> None:
    """Two stores in memory share nothing."""
    async with MemoryStore() as one, MemoryStore() as other:
        await one.set("k", "v")
        assert await other.items() == {}


# -- SQLite: what it promises beyond ---------------------------------------------------------------


async def test_settings_outlive_the_store(path: Path) -> None:
    """What was written is there for the next owner of the file."""
    async with await sqlite(path) as store:
        await store.set("k", "v")
    async with await sqlite(path) as store:
        assert await store.items() == {"k": "v"}


async def test_a_relative_path_is_relative_to_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """sqlite:///a.db is a.db in the directory in which it was opened, wherever that goes later."""
    monkeypatch.chdir(tmp_path)
    async with await open_store("sqlite:///a.db") as store:
        monkeypatch.chdir("/")
        await store.set("k", "v")
    async with await sqlite(tmp_path / "a.db") as store:
        assert await store.get("k") == "v"


async def test_the_files_are_private(path: Path) -> None:
    """A new database, its log and its lock can be read by their owner only."""
    async with await sqlite(path) as store:
        await store.set("k", "v")
        modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    assert modes == dict.fromkeys(
        ["interlock.db", "interlock.db-wal", "interlock.db-shm", "interlock.db.lock"], 0o600
    )


async def test_the_disk_has_it_before_the_caller_knows(path: Path) -> None:
    """Write-ahead log, synchronous FULL, foreign keys on, no memory mapping."""
    async with await sqlite(path) as store:
        for pragma, expected in {
            "journal_mode": "wal",
            "synchronous": 2,
            "foreign_keys": 1,
            "mmap_size": 0,
            "busy_timeout": 5000,
        }.items():
            found = await store._transact(partial(one, sql=f"PRAGMA {pragma}"))
            assert (pragma, found) == (pragma, expected)


def _run(db: sqlite3.Connection, *statements: str) -> None:
    for statement in statements:
        db.execute(statement).fetchall()


async def hold(store: SQLiteStore) -> tuple[threading.Event, asyncio.Task[bool]]:
    """Keep the writer busy until the event is set, so that what is called meanwhile gathers."""
    gate, entered = threading.Event(), threading.Event()

    def work(db: sqlite3.Connection) -> bool:
        entered.set()
        return gate.wait(60)

    held = asyncio.create_task(store._transact(work))
    await asyncio.to_thread(entered.wait, 60)
    return gate, held


async def test_what_gathers_is_committed_together(path: Path) -> None:
    """Jobs that wait for the same commit share the next one, 256 at most."""
    said: list[str] = []
    async with await sqlite(path) as store:
        await store._transact(lambda db: db.set_trace_callback(said.append))
        gate, held = await hold(store)
        sets = [asyncio.create_task(store.set(f"{n}", "x")) for n in range(300)]
        await asyncio.sleep(0)
        said.clear()
        gate.set()
        await asyncio.gather(held, *sets)
        assert said.count("COMMIT") == 3  # the one that was held, 256, the rest


async def test_one_that_fails_fails_alone(path: Path) -> None:
    """The other jobs of its transaction are stored; its own traces are undone."""

    def wrong(db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO settings VALUES ('half', 'done')")
        db.execute("INSERT INTO settings VALUES ('half', 'twice')")

    def bug(db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO settings VALUES ('bug', '')")
        raise ZeroDivisionError

    async with await sqlite(path) as store:
        gate, held = await hold(store)
        jobs = [store.set("a", "1"), store._transact(wrong), store.set("b", "2")]
        jobs += [store._transact(bug), store.set("c", "\ud800"), store.set("d", "3")]
        waiting = asyncio.gather(*jobs, return_exceptions=True)
        await asyncio.sleep(0)
        gate.set()
        results = await waiting
        await held
        kinds = [type(r) for r in results if r is not None]
        assert kinds == [StoreError, ZeroDivisionError, ValidationError]
        assert await store.items() == {"a": "1", "b": "2", "d": "3"}


async def test_nothing_is_acknowledged_before_its_commit(path: Path) -> None:
    """A job whose commit is refused is told so, and takes no other job with it."""

    def orphan(db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO child VALUES (1)")  # refused at the end of the transaction only

    async with await sqlite(path) as store:
        parent = "CREATE TABLE parent (id PRIMARY KEY)"
        child = "CREATE TABLE child (id REFERENCES parent DEFERRABLE INITIALLY DEFERRED)"
        await store._transact(lambda db: _run(db, parent, child))
        gate, held = await hold(store)
        jobs = [store.set("a", "1"), store._transact(orphan), store.set("b", "2")]
        waiting = asyncio.gather(*jobs, return_exceptions=True)
        await asyncio.sleep(0)
        gate.set()
        first, refused, last = await waiting
        await held
        assert (first, last) == (None, None)
        assert isinstance(refused, StoreError)
        assert refused.message == f"{path}: FOREIGN KEY constraint failed"
        assert await store.items() == {"a": "1", "b": "2"}


async def test_a_full_disk_is_told_and_passes(path: Path) -> None:
    """What does not fit is refused and not stored, what fits is; with room again all goes on."""
    async with await sqlite(path) as store:
        await store._transact(lambda db: _run(db, "PRAGMA max_page_count = 20"))
        gate, held = await hold(store)
        jobs = [store.set("small", "1"), store.set("big", "x" * 200_000), store.set("last", "2")]
        waiting = asyncio.gather(*jobs, return_exceptions=True)
        await asyncio.sleep(0)
        gate.set()
        first, big, last = await waiting
        await held
        assert (first, last) == (None, None)
        assert isinstance(big, StoreError)
        assert big.message == f"{path}: the disk is full; nothing of this was stored"
        assert await store.items() == {"small": "1", "last": "2"}
        await store._transact(lambda db: _run(db, "PRAGMA max_page_count = 1000"))
        await store.set("big", "x" * 200_000)
        assert len(await store.items()) == 3


async def test_a_loop_that_has_gone_is_not_missed(path: Path) -> None:
    """An answer to a closed event loop is dropped; the job is done and the store goes on."""
    async with await sqlite(path) as store:
        gate, held = await hold(store)

        def leave() -> None:
            loop = asyncio.new_event_loop()
            task = loop.create_task(store.set("k", "v"))
            loop.call_soon(loop.stop)
            loop.run_forever()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                loop.run_until_complete(task)
            loop.close()

        await asyncio.to_thread(leave)
        gate.set()
        await held
        assert await store.get("k") == "v"


async def test_closing_finishes_what_was_asked_for(path: Path) -> None:
    """Jobs called before aclose() are done and answered, those after it refused."""
    store = await sqlite(path)
    gate, held = await hold(store)
    before = asyncio.create_task(store.set("k", "v"))
    await asyncio.sleep(0)
    closing = [asyncio.create_task(store.aclose()) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(Unavailable):
        await store.set("late", "v")
    closing[0].cancel()  # whoever is cancelled, the closing goes on
    gate.set()
    await asyncio.gather(held, before, *closing[1:])
    async with await sqlite(path) as store:
        assert await store.items() == {"k": "v"}


async def test_a_cancelled_open_leaves_the_file_free(path: Path) -> None:
    """Cancelled while it opens, the store closes what it has opened."""
    opening = asyncio.create_task(sqlite(path))
    await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    for thread in threading.enumerate():
        if thread.name == "interlock-sqlite":
            thread.join(60)
    async with await sqlite(path) as store:
        assert await store.items() == {}


# -- SQLite: what it refuses -----------------------------------------------------------------------


async def test_one_owner_in_a_process(path: Path) -> None:
    """Opened twice, the second is refused, and the first goes on."""
    async with await sqlite(path) as store:
        message = await refusal(path)
        assert message == (
            f"{path}: already open in process {os.getpid()} (this one); a database has one owner"
        )
        await store.set("k", "v")


WRITE = """
import asyncio, sys
from interlock.stores import open_store

async def main(url, name):
    async with await open_store(url) as store:
        print("open", flush=True)

        async def write(lane):
            for n in range(100_000):
                await store.set(f"{name}/{lane}/{n}", f"{n}")
                print(f"{name}/{lane}/{n}", flush=True)

        await asyncio.gather(*map(write, range(4)))

asyncio.run(main(*sys.argv[1:]))
"""


def writer(path: Path, name: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITE, f"sqlite:///{path}", name]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


async def test_one_owner_among_processes(path: Path) -> None:
    """Open in another process, it is refused by that process's id; a crash frees it at once."""
    with writer(path, "other") as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        assert await refusal(path) == (
            f"{path}: already open in process {other.pid}; a database has one owner"
        )
        other.kill()
    async with await sqlite(path):
        pass


async def test_nothing_acknowledged_is_lost(path: Path) -> None:
    """Whenever the process is killed, every write that had returned is there afterwards."""
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"seed: {seed}")
    chance = random.Random(seed)
    acknowledged = 0
    for kill in range(20):
        with writer(path, f"{kill}") as process:
            assert process.stdout is not None
            reads = chance.choice([0, 1, 2, chance.randrange(400)])
            lines = [process.stdout.readline() for _ in range(reads)]
            process.send_signal(signal.SIGKILL)
            lines += process.stdout.read().splitlines(keepends=True)
        told = {line[:-1] for line in lines if line.endswith("\n")} - {"open"}
        async with await sqlite(path) as store:
            kept = await store.items(f"{kill}/")
        assert told - kept.keys() == set()
        assert all(key.endswith(f"/{value}") for key, value in kept.items())
        acknowledged += len(told)
    assert acknowledged > 0


async def test_a_newer_schema_is_refused(path: Path) -> None:
    """What a newer Interlock has written is not touched by an older one."""
    async with await sqlite(path) as store:
        await store.set("k", "v")
    with sqlite3.connect(path) as db:
        db.execute("INSERT INTO schema_migrations VALUES (9999, '9999_later', 'x', 'x')")
    db.close()
    assert "schema 9999 is newer than" in await refusal(path)
    assert "schema 9999 is newer than" in await refusal(path)


async def test_a_changed_migration_is_refused(path: Path) -> None:
    """A schema that was made by other statements than those we know is not trusted."""
    async with await sqlite(path):
        pass
    with sqlite3.connect(path) as db:
        db.execute("UPDATE schema_migrations SET sha256 = 'x' WHERE version = 1")
    db.close()
    assert "migration 0001_settings is not the 0001_settings of" in await refusal(path)


def test_migrations_are_all_or_nothing(path: Path) -> None:
    """Where a statement of the second fails, nothing of the first is there either."""
    known = migrations()
    bad = Migration(len(known) + 1, "9_bad", "CREATE TABLE t (a);\nCREATE TABLE t (a);\n")
    db = connect(path)
    with pytest.raises(sqlite3.OperationalError, match="already exists"):
        migrate(db, path, [*known, bad])
    assert db.execute("SELECT name FROM sqlite_master").fetchall() == []
    migrate(db, path, known)
    migrate(db, path, known)
    applied = db.execute("SELECT version, name, sha256 FROM schema_migrations").fetchall()
    assert applied == [(m.version, m.name, m.sha256) for m in known]
    db.close()


def test_migrations_are_numbered_from_one() -> None:
    """A gap or a twin in the numbers would be applied in one place and not in another."""
    assert [m.version for m in migrations()] == list(range(1, len(migrations()) + 1))


@pytest.mark.parametrize("junk", [b"not a database at all", b"SQLite format 3\0" + b"\xff" * 4080])
async def test_what_is_no_database_is_left_alone(path: Path, junk: bytes) -> None:
    """A file of another kind is refused and not written over."""
    path.write_bytes(junk)
    assert await refusal(path) == f"{path}: not a SQLite database; it was left as it is"
    assert path.read_bytes() == junk


async def test_damage_is_found_on_opening(path: Path) -> None:
    """A database with a torn page is refused, never made anew."""
    async with await sqlite(path) as store:
        for n in range(100):
            await store.set(f"{n}", "x" * 200)
    whole = path.read_bytes()
    for broken in (whole[:4096] + b"\xff" * 4096 + whole[8192:], whole[: len(whole) // 2]):
        path.write_bytes(broken)
        message = await refusal(path)
        assert "damaged" in message or "not a SQLite database" in message
        assert path.read_bytes() == broken


async def test_another_programs_database_is_left_alone(path: Path) -> None:
    """Our tables are not put into a database that is somebody else's."""
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE theirs (a)")
    db.close()
    before = path.read_bytes()
    assert "a database of another program" in await refusal(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("size", [None, 0])
async def test_a_log_without_its_database_is_refused(path: Path, size: int | None) -> None:
    """Where only the log is left, making a new database would throw the log away."""
    path.with_name("interlock.db-wal").write_bytes(b"\x37\x7f\x06\x82" + b"x" * 100)
    if size is not None:
        path.touch()
    assert "though its log (interlock.db-wal) is" in await refusal(path)


async def test_a_link_is_refused(path: Path) -> None:
    """A symbolic link could point where somebody else decides; the lock beside it likewise."""
    target = path.with_name("target.db")
    path.symlink_to(target)
    assert "a symbolic link" in await refusal(path)
    path.unlink()
    path.with_name("interlock.db.lock").unlink()
    path.with_name("interlock.db.lock").symlink_to(target)
    await refusal(path)
    assert not target.exists()


async def test_what_cannot_be_opened_is_told(tmp_path: Path) -> None:
    """A missing directory and a directory in place of the file, each in one line."""
    missing = tmp_path / "no" / "interlock.db"
    assert await refusal(missing) == f"{missing}: No such file or directory"
    assert "not a file" in await refusal(tmp_path)
