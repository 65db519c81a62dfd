"""What SQLite is there for: nothing acknowledged is lost, whatever the process, disk or file suffers."""

import asyncio
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from interlock.core.sessions import NewEvent, Run, RunChange, Session
from interlock.errors import InterlockError, StoreError
from interlock.stores.sqlite import SQLiteStore, checkpoints, file, schema
from interlock.stores.sqlite.file import connect
from interlock.stores.sqlite.schema import migrate, migrations
from stores.killed_writers import kill_and_check


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "interlock.db"


@pytest.fixture
def chance() -> random.Random:
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(1 << 32))
    print(f"seed: {seed}")
    return random.Random(seed)


def event(id_: str, **fields: Any) -> NewEvent:
    return NewEvent(id_, "message_sent", 1.0, **fields)


# -- the process is killed -------------------------------------------------------------------------


async def test_no_acknowledged_append_or_run_is_lost(path: Path, chance: random.Random) -> None:
    """SIGKILL at any moment: what had returned is there, at its place, and the log has no gap."""
    await kill_and_check(f"sqlite:///{path}", chance, 8)


@pytest.mark.deep
async def test_no_acknowledged_append_or_run_is_lost_in_many_kills(path: Path, chance: random.Random) -> None:
    """The same, with as many kills as D1 asks for."""
    for _ in range(10):
        await kill_and_check(f"sqlite:///{path}", chance, 20)
        path.unlink()


MIGRATE = """
import os, signal, sys
from pathlib import Path
from interlock.stores.sqlite import schema
from interlock.stores.sqlite.file import connect

path, count = Path(sys.argv[1]), int(sys.argv[2])
statements = schema.statements

def killed_after(sql):
    for number, statement in enumerate(statements(sql)):
        if number == count:
            os.kill(os.getpid(), signal.SIGKILL)
        yield statement
    if count == number + 1:
        os.kill(os.getpid(), signal.SIGKILL)

schema.statements = killed_after
db = connect(path)
db.execute("PRAGMA journal_mode = WAL")
schema.migrate(db, path, schema.migrations())
os.kill(os.getpid(), signal.SIGKILL)
"""


def tables(path: Path) -> set[str]:
    db = sqlite3.connect(path)
    found = db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    db.close()
    return {name for (name,) in found}


async def test_a_migration_that_is_killed_leaves_the_old_schema_or_the_new(tmp_path: Path) -> None:
    """SIGKILL before each of its statements, and after the last: the next opening does what is left."""
    old = tmp_path / "old.db"
    db = connect(old)
    migrate(db, old, migrations()[:1])
    db.execute("INSERT INTO settings VALUES ('k', 'v')")
    db.close()
    before = tables(old)
    count = len(list(schema.statements(migrations()[1].sql)))
    assert count > 5
    seen = set()
    for killed_at in (*range(count + 1), 99):
        path = tmp_path / f"{killed_at}.db"
        shutil.copy(old, path)
        done = subprocess.run([sys.executable, "-c", MIGRATE, path, str(killed_at)], timeout=60, check=False)
        assert done.returncode == -signal.SIGKILL
        found = tables(path)
        assert (found == before) == (killed_at != 99)
        seen.add(frozenset(found))
        async with await SQLiteStore.open(path) as store:
            assert await store.get("k") == "v"
            await store.create_session(Session("s", "active"))
            assert await store.append("s", [event("e")]) == 1
    assert len(seen) == 2


# -- the disk is full ------------------------------------------------------------------------------


async def write(store: SQLiteStore, name: str, lanes: int, count: int, size: int) -> dict[str, int | None]:
    """Many appends at once: the place of each event, None where its append was refused."""
    places: dict[str, int | None] = {}

    async def lane(number: int) -> None:
        for n in range(count):
            id_ = f"{name}/{number}/{n}"
            try:
                places[id_] = await store.append("s", [event(id_, data={"x": "x" * size})])
            except StoreError:
                places[id_] = None

    await asyncio.gather(*map(lane, range(lanes)))
    return places


def check_places(places: dict[str, int | None], log: list[Any]) -> None:
    assert [one.sequence for one in log] == list(range(1, len(log) + 1))
    assert {one.id: one.sequence for one in log} == {id_: n for id_, n in places.items() if n is not None}


async def test_a_full_disk_loses_nothing_that_was_acknowledged(path: Path, chance: random.Random) -> None:
    """Full at random commits: what is refused is not there, what is told is; with room all goes on."""
    places: dict[str, int | None] = {}
    async with await SQLiteStore.open(path) as store:
        await store.create_session(Session("s", "active"))
        for turn in range(50):
            pages = await store._transact(lambda db: db.execute("PRAGMA page_count").fetchone()[0])
            most = pages + chance.randrange(6)
            await store._transact(
                lambda db, most=most: db.execute(f"PRAGMA max_page_count = {most}").fetchall()
            )
            places |= await write(store, f"full-{turn}", 8, 4, chance.choice([10, 500, 5000]))
            await store._transact(lambda db: db.execute("PRAGMA max_page_count = 1000000").fetchall())
            room = await write(store, f"room-{turn}", 2, 1, 10)
            assert None not in room.values()
            places |= room
        check_places(places, await store.get_events("s"))
    assert None in places.values()
    async with await SQLiteStore.open(path) as store:
        check_places(places, await store.get_events("s"))


FULL = """
import asyncio, random, resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_sqlite_faults import Session, SQLiteStore, check_places, write

async def main(path, seed):
    chance, places = random.Random(seed), {}
    async with await SQLiteStore.open(path) as store:
        await store.create_session(Session("s", "active"))
        for turn in range(30):
            wal = path.with_name(f"{path.name}-wal")
            size = max(wal.stat().st_size if wal.exists() else 0, path.stat().st_size)
            most = size + chance.randrange(60_000)
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
            places |= await write(store, f"full-{turn}", 8, 4, chance.choice([10, 500, 5000]))
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            room = await write(store, f"room-{turn}", 2, 1, 10)
            assert None not in room.values()
            places |= room
        check_places(places, await store.get_events("s"))
    assert None in places.values()
    async with await SQLiteStore.open(path) as store:
        check_places(places, await store.get_events("s"))

asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
"""


def test_writes_that_the_system_refuses_lose_nothing(path: Path, chance: random.Random) -> None:
    """The same where the system itself refuses to let the files grow, in the middle of a commit."""
    arguments = [str(path), str(chance.randrange(1 << 32)), str(Path(__file__).parent)]
    done = subprocess.run(
        [sys.executable, "-c", FULL, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


# -- the file is damaged ---------------------------------------------------------------------------


async def flip(path: Path, chance: random.Random, flips: int) -> None:
    """Open copies of a database with one byte changed: each is refused, or is still that database."""
    async with await SQLiteStore.open(path) as store:
        for number in range(20):
            await store.create_session(Session(f"s{number}", "active", metadata={"n": number}))
            rows = [event(f"{number}/{n}", data={"text": "x" * 50}) for n in range(50)]
            await store.append(f"s{number}", rows)
            await store.submit_run(Run(f"r{number}", f"s{number}", input={"n": number}))
            await store.change_run(f"r{number}", RunChange("start", 1.0))
    whole = path.read_bytes()
    refused = 0
    for number in range(flips):
        damaged = path.with_name(f"{number}.db")
        at, bit = chance.randrange(len(whole)), 1 << chance.randrange(8)
        broken = whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :]
        damaged.write_bytes(broken)
        try:
            store = await SQLiteStore.open(damaged)
        except StoreError:
            refused += 1
            assert damaged.read_bytes() == broken, f"byte {at}, bit {bit}: refused, but written to"
            continue
        async with store:
            try:
                sessions = await store.list_sessions()
                runs = await store.list_runs()
            except StoreError:
                refused += 1
                continue
            assert (len(sessions), len(runs)) == (20, 20), f"byte {at}, bit {bit}"
            logged = 0
            for session in sessions:
                try:
                    logged += len(await store.get_events(session.id))
                except InterlockError:
                    logged += 50
            assert logged >= 900, f"byte {at}, bit {bit}"
    assert refused > 0


async def test_a_damaged_file_is_never_taken_for_an_empty_one(path: Path, chance: random.Random) -> None:
    """One byte changed: refused and left as it is, or read with an error, or read in full."""
    await flip(path, chance, 100)


@pytest.mark.deep
async def test_many_damaged_files(path: Path, chance: random.Random) -> None:
    """The same, with as many flips as D3 asks for."""
    await flip(path, chance, 2_000)


# -- reading while others write --------------------------------------------------------------------


async def test_a_long_log_is_read_while_it_grows(path: Path) -> None:
    """10,000 events in pages while others append: each once, in order."""
    async with await SQLiteStore.open(path) as store:
        await store.create_session(Session("s", "active"))
        for n in range(0, 10_000, 500):
            await store.append("s", [event(f"{k}") for k in range(n, n + 500)])

        async def append(lane: int) -> None:
            for n in range(100):
                await store.append("s", [event(f"{lane}/{n}")])

        async def read() -> list[int]:
            seen: list[int] = []
            while len(seen) < 11_000:
                page = await store.get_events("s", after=len(seen), limit=300)
                seen += [one.sequence for one in page]
            return seen

        *_, first, second = await asyncio.gather(*map(append, range(10)), read(), read())
        assert first == second == list(range(1, 11_001))


async def test_the_log_file_does_not_grow_for_ever(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner checkpoints between transactions, also while somebody else looks into the file."""
    size = 1 << 20
    for module in (file, checkpoints):
        monkeypatch.setattr(module, "LOG_SIZE", size)
    log = path.with_name(f"{path.name}-wal")
    async with await SQLiteStore.open(path) as store:
        assert await store._transact(lambda db: db.execute("PRAGMA wal_autocheckpoint").fetchone()) == (0,)
        await store.create_session(Session("s", "active"))

        async def fill(name: str) -> None:
            for n in range(5 * size // 100_000):
                await store.append("s", [event(f"{name}/{n}", data={"x": "x" * 100_000})])

        await fill("alone")
        assert size <= log.stat().st_size < 2 * size
        reader = sqlite3.connect(path, isolation_level=None)
        reader.execute("BEGIN")
        [before] = reader.execute("SELECT COUNT(*) FROM events").fetchone()
        await fill("watched")
        assert reader.execute("SELECT COUNT(*) FROM events").fetchone() == (before,)
        assert log.stat().st_size > 4 * size
        reader.close()
        await fill("alone again")
        assert log.stat().st_size < 2 * size
        assert len(await store.get_events("s")) == 3 * before
