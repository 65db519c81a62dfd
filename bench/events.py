"""The durable log: appends of many writers beside raw sqlite3, and a reader beside appends.

All of it at ``synchronous=FULL``, so the disk has a large part in the figures: compare ratios. The files are
made below the working directory, since a temporary directory is often no disk at all.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec

from bench.measure import Table, Timed, ratio, spread, take_turns
from interlock.core.sessions import NewEvent, Run, RunChange, Session
from interlock.stores import open_store
from interlock.stores.sqlite import SQLiteStore

SESSIONS = 20
WRITERS = 64
GROUP = 100
DATA = {"delta": "x" * 150}
INSERT = (
    "INSERT INTO events (session, sequence, id, type, timestamp, run_id, data, metadata, schema_version)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
BARE = (
    "CREATE TABLE log (session INTEGER NOT NULL, sequence INTEGER NOT NULL, id TEXT NOT NULL,"
    " type TEXT NOT NULL, timestamp REAL NOT NULL, run_id TEXT, data TEXT NOT NULL, metadata TEXT NOT NULL,"
    " schema_version INTEGER NOT NULL) STRICT",
    "CREATE UNIQUE INDEX log_by_sequence ON log (session, sequence)",
)
RAW = f"raw sqlite3, {GROUP} a commit"
RAW_BARE = f"raw sqlite3, {GROUP} a commit, no index of ids"


def run(*, quick: bool = False) -> list[Table]:
    """Two tables; *quick* with fewer events and rounds."""
    count, rounds = (6_400, 3) if quick else (25_600, 7)
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as folder:
        place = Place(Path(folder))
        return [_appends(place, count, rounds), _reader(place, 5.0 if quick else 20.0)]


class Place:
    """Databases in a directory, each used once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._serial = itertools.count()

    async def store(self) -> SQLiteStore:
        """An open store with `SESSIONS` sessions, ``s0`` and so on; their keys are 1 and so on."""
        store = await open_store(f"sqlite:///{self.path()}")
        assert isinstance(store, SQLiteStore)
        for number in range(SESSIONS):
            await store.create_session(Session(f"s{number}", "active"))
        return store

    def path(self) -> Path:
        """Where no file is yet; those used before are removed."""
        for file in self._folder.iterdir():
            file.unlink()
        return self._folder / f"{next(self._serial)}.db"


def _appends(place: Place, count: int, rounds: int) -> Table:
    candidates: dict[str, Callable[[], float]] = {RAW: partial(_raw, place, count, bare=False)}
    candidates[RAW_BARE] = partial(_raw, place, count, bare=True)
    for writers in (1, WRITERS, 1_000):
        name = f"Interlock, {writers:,} writer{'s' if writers > 1 else ''}"
        candidates[name] = partial(_interlock, place, count if writers > 1 else count // 16, writers)
    taken = take_turns(candidates, rounds=rounds)
    rows: list[tuple[str, ...]] = [
        (
            name,
            f"{statistics.median(figures):,.1f}",
            f"{1e6 / statistics.median(figures):,.0f}",
            f"{ratio(taken[RAW], figures):.2f}",
            spread(figures),
        )
        for name, figures in taken.items()
    ]
    note = (
        f"Events of 150 bytes of text for {SESSIONS} sessions, acknowledged after the commit. A writer is a"
        " run that awaits each of its events, and may write only while it is in flight. The raw rows"
        " go into the same table with the same indexes, with random ids like Interlock's and numbers given;"
        " the second one lacks the index that keeps an event from being logged twice. Rate: times the first."
    )
    return Table("Durable appends", ("", "µs/event", "events/s", "rate", "spread"), rows, note, dict(taken))


def _ids(seed: int) -> Callable[[], str]:
    """A source of ids like those of the session server, cheap enough not to count."""
    bits = random.Random(seed).getrandbits
    return lambda: f"evt_{bits(128):032x}"


def _raw(place: Place, count: int, *, bare: bool) -> float:
    """Microseconds an event, its JSON included."""

    async def prepare() -> str:
        async with await place.store() as store:
            path: str = await store._transact(lambda db: db.execute("PRAGMA database_list").fetchone()[2])
        return path

    db = sqlite3.connect(asyncio.run(prepare()), isolation_level=None)
    for pragma in ("journal_mode = WAL", "synchronous = FULL"):
        db.execute(f"PRAGMA {pragma}")
    for statement in BARE if bare else ():
        db.execute(statement)
    insert = INSERT.replace("INTO events", "INTO log") if bare else INSERT
    new_id = _ids(1)
    encode = msgspec.json.Encoder().encode
    with Timed() as timed:
        for start in range(0, count, GROUP):
            rows = [
                (
                    *(1 + n % SESSIONS, 1 + n // SESSIONS, new_id(), "message_streamed", 1.0, "run_1"),
                    *(encode(DATA).decode(), "{}", 1),
                )
                for n in range(start, min(start + GROUP, count))
            ]
            db.execute("BEGIN IMMEDIATE")
            db.executemany(insert, rows)
            db.execute("COMMIT")
    db.close()
    return timed.ns / count / 1e3


def _interlock(place: Place, count: int, writers: int) -> float:
    """Microseconds an event, each appended by itself as a run does it, and awaited before the run's next."""
    new_id = _ids(2)

    async def start(store: SQLiteStore, writer: int) -> None:
        await store.submit_run(Run(f"run_{writer}", f"s{writer % SESSIONS}"))
        await store.change_run(f"run_{writer}", RunChange("start", 1.0))

    async def write(store: SQLiteStore, writer: int) -> None:
        session, run_id = f"s{writer % SESSIONS}", f"run_{writer}"
        for _ in range(count // writers):
            event = NewEvent(new_id(), "message_streamed", 1.0, run_id, DATA)
            await store.append(session, (event,), run_id=run_id, attempt=1)

    async def timed() -> float:
        async with await place.store() as store:
            await asyncio.gather(*(start(store, writer) for writer in range(writers)))
            with Timed() as time_:
                await asyncio.gather(*(write(store, writer) for writer in range(writers)))
        return time_.ns / (count // writers * writers) / 1e3

    return asyncio.run(timed())


def _reader(place: Place, seconds: float, backlog: int = 10_000, rate: int = 1_000) -> Table:
    """How soon a backlog is read while as many events a second come in as *rate*, and how late those are."""

    async def measured() -> tuple[list[float], list[float]]:
        new_id = _ids(3)
        backfills: list[float] = []
        appends: list[float] = []
        async with await place.store() as store:
            for _ in range(0, backlog, 500):
                batch = [NewEvent(new_id(), "message_streamed", 1.0, "run_1", DATA) for _ in range(500)]
                await store.append("s0", batch)
            ends = time.perf_counter() + seconds

            async def append(lane: int, lanes: int) -> None:
                due = time.perf_counter() + lane / rate
                while due < ends:
                    await asyncio.sleep(max(0.0, due - time.perf_counter()))
                    began = time.perf_counter()
                    await store.append("s0", [NewEvent(new_id(), "message_streamed", 1.0, "run_1", DATA)])
                    appends.append(time.perf_counter() - began)
                    due += lanes / rate

            async def read() -> None:
                while time.perf_counter() < ends:
                    began, seen = time.perf_counter(), 0
                    while seen < backlog:
                        seen = (await store.get_events("s0", after=seen, limit=500))[-1].sequence
                    backfills.append(time.perf_counter() - began)

            await asyncio.gather(read(), *(append(lane, 16) for lane in range(16)))
        return backfills, appends

    backfills, appends = asyncio.run(measured())
    rows = [
        (
            name,
            f"{len(times):,}",
            *(f"{1e3 * value:,.1f}" for value in (statistics.median(times), _p99(times))),
        )
        for name, times in ((f"backfill of {backlog:,}", backfills), ("append", appends))
    ]
    title = f"Backfills one after another beside {rate:,} appends a second"
    figures = {"backfills": backfills, "appends": appends}
    return Table(title, ("", "number", "p50 ms", "p99 ms"), rows, figures=figures)


def _p99(times: list[float]) -> float:
    return sorted(times)[int(0.99 * (len(times) - 1))]
