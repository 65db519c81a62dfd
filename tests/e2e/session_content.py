"""What a server of sessions has stored, however it is read, and what its clients wrote down.

Part of the program `session_checker`, which shares no code with Interlock.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    from histories import Findings

Record = dict[str, Any]

MOMENTS = frozenset(
    ("timestamp", "createdAt", "updatedAt", "submittedAt", "startedAt", "endedAt", "waitedMs", "timeoutMs")
)
CLOCK_STEP = 1.0  # milliseconds that one moment may differ by between two ways to read it


@dataclass
class Content:
    """What is stored: sessions and runs by id, each session's events by their sequence numbers."""

    sessions: dict[str, Record]
    runs: dict[str, Record]
    logs: dict[str, list[Record]]

    @classmethod
    def of(cls, sessions: list[Record], runs: list[Record], events: list[Record]) -> Content:
        logs: dict[str, list[Record]] = {session["id"]: [] for session in sessions}
        for event in events:
            logs.setdefault(event["sessionId"], []).append(event)
        for log in logs.values():
            log.sort(key=lambda event: event["sequence"])
        return cls({s["id"]: s for s in sessions}, {r["runId"]: r for r in runs}, logs)


def from_file(path: Path) -> Content:
    """``{"sessions": […], "runs": […], "events": […]}``."""
    return Content.of(**json.loads(path.read_text(encoding="utf-8")))


def from_server(url: str) -> Content:
    """Everything, page by page, as the HTTP interface has it."""

    import urllib.request  # it takes a while, and is not always needed

    def get(path: str) -> Any:
        with urllib.request.urlopen(url + path, timeout=30) as answer:
            return json.load(answer)

    def pages(path: str, name: str) -> Iterator[Record]:
        after = ""
        while True:
            page = get(f"{path}?limit=1000{after}")
            yield from page[name]
            if page["next"] is None:
                return
            after = f"&after={quote(page['next'])}"

    sessions = list(pages("/sessions", "sessions"))
    runs: list[Record] = []
    events: list[Record] = []
    for session in sessions:
        path = f"/sessions/{quote(session['id'], safe='')}"
        runs += pages(f"{path}/runs", "runs")
        page = get(f"{path}/events")
        while page["events"]:
            events += page["events"]
            page = get(f"{path}/events?from={page['nextFrom']}")
    return Content.of(sessions, runs, events)


def ends_of_logs(path: Path) -> dict[str, int]:
    """The sequence number of the last event of each session in the SQLite file at *path*."""
    with _copied(path) as db:
        select = """
            SELECT sessions.id, max(sequence) FROM events JOIN sessions ON sessions.key = events.session
            GROUP BY sessions.key
        """
        return dict(db.execute(select))


def from_database(path: Path) -> Content:
    """What is in the SQLite file at *path*, in the words of the HTTP interface."""
    with _copied(path) as db:
        db.row_factory = sqlite3.Row
        sessions = [_worded(row, SESSION) for row in db.execute(SESSIONS)]
        runs = [_worded(row, RUN) for row in db.execute(RUNS)]
        events = [_worded(row, EVENT) for row in db.execute(EVENTS)]
    return Content.of(sessions, runs, events)


SESSIONS = "SELECT * FROM sessions JOIN counters ON counters.session = sessions.key ORDER BY created_at, id"
RUNS = """
    SELECT runs.*, sessions.id AS session_id FROM runs JOIN sessions ON sessions.key = runs.session
    ORDER BY runs.key
"""
EVENTS = """
    SELECT events.*, sessions.id AS session_id FROM events JOIN sessions ON sessions.key = events.session
    ORDER BY events.key
"""
SESSION = {
    "id": "id",
    "status": "status",
    "agent": "agent_id",
    "maxConcurrentRuns": "max_concurrent_runs",
    "maxQueuedRuns": "max_queued_runs",
    "collision": "collision",
    "metadata": "metadata",
    "tags": "tags",
    "createdAt": "created_at",
    "updatedAt": "updated_at",
    "lastSequence": "last_sequence",
}
RUN = {
    "runId": "id",
    "sessionId": "session_id",
    "status": "status",
    "number": "number",
    "input": "input",
    "output": "output",
    "error": "error",
    "attempt": "attempt",
    "priority": "priority",
    "retry": "retry",
    "timeoutMs": "timeout",
    "tokenUsage": "token_usage",
    "metadata": "metadata",
    "waitedMs": "waited",
    "submittedAt": "submitted_at",
    "startedAt": "started_at",
    "endedAt": "ended_at",
}
EVENT = {
    "id": "id",
    "sessionId": "session_id",
    "runId": "run_id",
    "sequence": "sequence",
    "type": "type",
    "timestamp": "timestamp",
    "data": "data",
    "metadata": "metadata",
}
JSON = frozenset(("input", "output", "error", "tokenUsage", "metadata", "data", "tags"))


def _worded(row: sqlite3.Row, names: dict[str, str]) -> Record:
    """*row* with the names of the HTTP interface, JSON read, and seconds as milliseconds."""

    def value(name: str) -> Any:
        stored = row[names[name]]
        if name in JSON:
            return json.loads(stored)
        return stored * 1000 if name in MOMENTS and stored is not None else stored

    return {name: value(name) for name in names}


@contextmanager
def _copied(path: Path) -> Iterator[sqlite3.Connection]:
    """A copy of the database, so that whoever opens the file itself finds it as it was left."""
    with tempfile.TemporaryDirectory() as directory:
        for suffix in ("", "-wal"):
            if (part := path.with_name(path.name + suffix)).exists():
                shutil.copy(part, directory)
        with closing(sqlite3.connect(Path(directory, path.name))) as db:
            yield db


@dataclass
class History:
    """What the clients wrote, by kind; within one file, in its order."""

    lines: dict[str, list[Record]] = field(default_factory=lambda: defaultdict(list))
    followers: dict[str, list[Record]] = field(default_factory=lambda: defaultdict(list))

    def add(self, record: Record) -> None:
        self.lines[record["what"]].append(record)
        if "follower" in record:
            self.followers[record["follower"]].append(record)

    @classmethod
    def read(cls, directory: Path) -> History:
        history = cls()
        for path in sorted(directory.glob("*.jsonl")):
            for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
                if line.endswith("\n"):  # the last one may be torn: its writer was killed
                    history.add(json.loads(line))
        return history

    def __getitem__(self, what: str) -> list[Record]:
        return self.lines.get(what, [])


def alike(one: Any, other: Any) -> bool:
    """Whether *other* says what *one* says, and perhaps more; moments may be rounded differently."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        return bool(one == other)
    return all(name in other and _same(name, one[name], other[name]) for name in one)


def _same(name: str, one: Any, other: Any) -> bool:
    if name in MOMENTS and one is not None and other is not None:
        return bool(abs(one - other) <= CLOCK_STEP)
    return bool(one == other)


def compare(contents: list[Content], found: Findings) -> None:
    """Two ways to read what is stored have to give the same."""
    first = contents[0]
    for other in contents[1:]:
        for ones, others in ((first.sessions, other.sessions), (first.runs, other.runs)):
            for name in sorted(ones.keys() | others.keys()):
                if not alike(ones.get(name), others.get(name)):
                    found.add("two readings", f"of {name}", ones.get(name), others.get(name))
        for name, log in first.logs.items():
            pairs = zip_longest(log, other.logs.get(name, []))
            for one, two in pairs:
                if not alike(one, two):
                    found.add("two readings", f"of the log of {name}", one, two)
