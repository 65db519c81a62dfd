"""Many sessions with many runs on few slots: each starts in its turn, and never too many are in flight.

The agent watches itself, and the checker that shares no code with the package reads the logs.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from e2e.histories import Book
from interlock.limiter import ConcurrencyLimiter
from interlock.ports import Store
from interlock.session.context import RunContext
from interlock.session.server import SessionServer
from interlock.stores import open_store

CHECKER = Path(__file__).with_name("session_checker.py")
RUN_SLOTS = 6
SESSION_SLOTS = 5


class Watching:
    """An agent that counts itself, says a little or nothing, takes a few turns and is done."""

    def __init__(self) -> None:
        self.started: defaultdict[str, list[str]] = defaultdict(list)
        self.inside: Counter[str] = Counter()
        self.peaks: Counter[str] = Counter()
        self.most = 0
        self.most_sessions = 0

    async def run(self, run: RunContext) -> dict[str, Any]:
        self.started[run.session_id].append(run.run_id)
        self.inside[run.session_id] += 1
        self.peaks[run.session_id] = max(self.peaks[run.session_id], self.inside[run.session_id])
        self.most = max(self.most, self.inside.total())
        self.most_sessions = max(self.most_sessions, sum(1 for n in self.inside.values() if n))
        for step in range(1, run.input["steps"] + 1):
            said = {"content": "…", "step": step, "attempt": run.attempt}
            assert await run.emit("message_streamed", said) > 0
        for _ in range(len(self.started[run.session_id]) % 4):
            await asyncio.sleep(0)
        self.inside[run.session_id] -= 1
        return {"steps": run.input["steps"], "attempt": run.attempt, "key": run.input["key"]}


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    url = "memory:" if request.param == "memory" else f"sqlite:///{tmp_path}/interlock.db"
    store = await open_store(url)
    try:
        yield store
    finally:
        await store.aclose()


def slots_of(number: int) -> int:
    return number % 4 + 1


async def submitted(server: SessionServer, book: Book, runs: range) -> None:
    """One client: each run after the one before was acknowledged."""
    for n in runs:
        key = f"{server.session_id}-{n}"
        given = {"key": key, "does": "steps", "steps": n % 3}
        told = {"key": key, "session": server.session_id, "input": given, "retry": None, "timeoutMs": None}
        book.write("submit", **told, at=time.monotonic())
        run_id = await server.submit_run(given, idempotency_key=key, priority=n % 3)
        book.write("accepted", key=key, run=run_id, replay=False, at=time.monotonic())


async def in_order(store: Store, tmp_path: Path, sessions: int, runs: int) -> None:
    histories = tmp_path / "histories"
    histories.mkdir()
    book = Book(histories, "clients")
    agent = Watching()
    limiter = ConcurrencyLimiter(SESSION_SLOTS, RUN_SLOTS)
    servers = []
    for number in range(sessions):
        name, slots = f"s{number}", slots_of(number)
        servers.append(
            await SessionServer.start(
                *(store, agent),
                session_id=name,
                max_concurrent_runs=slots,
                max_queued_runs=runs,
                limiter=limiter,
            )
        )
        book.write("session", session=name, slots=slots)
    began = time.monotonic()
    halves = (range(runs // 2), range(runs // 2, runs))
    await asyncio.gather(*(submitted(server, book, half) for server in servers for half in halves))
    await asyncio.gather(*(server.drain(timeout=100) for server in servers))
    took = time.monotonic() - began
    for server in servers:
        await server.close()
    await limiter.aclose()
    book.close()

    assert RUN_SLOTS // 2 < agent.most <= RUN_SLOTS
    assert SESSION_SLOTS // 2 < agent.most_sessions <= SESSION_SLOTS
    content: dict[str, list[Any]] = {"sessions": [], "runs": [], "events": []}
    for number in range(sessions):
        name = f"s{number}"
        stored = await store.list_runs(name)
        assert agent.started[name] == [run.id for run in stored]
        assert agent.peaks[name] <= slots_of(number)
        session = await store.get_session(name)
        content["sessions"].append(
            {"id": name, "maxConcurrentRuns": slots_of(number), "lastSequence": session.last_sequence}
        )
        content["runs"] += [
            {
                "runId": run.id,
                "sessionId": name,
                "number": run.number,
                "status": run.status,
                "input": run.input,
                "output": run.output,
                "error": run.error,
                "attempt": run.attempt,
                "retry": run.retry,
                "timeoutMs": run.timeout,
                "endedAt": run.ended_at,
            }
            for run in stored
        ]
        content["events"] += [
            {
                "id": event.id,
                "sessionId": name,
                "runId": event.run_id,
                "sequence": event.sequence,
                "type": event.type,
                "data": event.data,
                "metadata": event.metadata,
            }
            for event in await store.get_events(name)
        ]
    assert len(content["runs"]) == sessions * runs
    assert max(agent.peaks.values()) > 1
    (tmp_path / "content.json").write_text(json.dumps(content))
    done = subprocess.run(
        [
            *(sys.executable, "-E", "-s", "-S", CHECKER, histories),
            *("--content", tmp_path / "content.json", "--finished"),
        ],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout[:6000] + done.stderr
    print(f"{took:.2f} s, {sessions * runs / took:.0f} runs/s\n{done.stdout}")


async def test_runs_start_in_order_and_never_too_many(store: Store, tmp_path: Path) -> None:
    await in_order(store, tmp_path, sessions=20, runs=50)


@pytest.mark.deep
async def test_runs_start_in_order_and_never_too_many_at_length(store: Store, tmp_path: Path) -> None:
    """100 sessions of 200 runs."""
    await in_order(store, tmp_path, sessions=100, runs=200)
