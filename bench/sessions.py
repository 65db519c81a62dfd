"""Trivial runs through a session: how many a second, and how long from the submission to the start."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from bench.measure import Table, pin, spread, take_turns
from interlock.session.server import SessionServer
from interlock.stores import open_store

Figures = dict[str, float]

ORIGINAL = {"in memory": 2_450, "in memory, one subscriber": 1_950}
"""Runs a second of AgentSessionManager's session server, measured elsewhere on two cores."""


def run(*, quick: bool = False) -> list[Table]:
    """The one table; *quick* with fewer runs."""
    pin()
    count = 500 if quick else 3_000
    cases = {
        "in memory": partial(_runs, "memory:", count),
        "in memory, one subscriber": partial(_runs, "memory:", count, subscribed=True),
        "in memory, 64 in flight": partial(_runs, "memory:", count, at_once=64),
        "SQLite, durable": partial(_runs, "sqlite", count // 3),
        "SQLite, durable, 64 in flight": partial(_runs, "sqlite", count, at_once=64),
    }
    taken = take_turns(cases, rounds=2 if quick else 5)
    rows = [
        (
            name,
            f"{_median(figures, 'per_second'):,.0f}",
            f"{ORIGINAL[name]:,}" if name in ORIGINAL else "",
            f"{_median(figures, 'p50'):,.0f}",
            f"{_median(figures, 'p99'):,.0f}",
            spread([one["per_second"] for one in figures]),
        )
        for name, figures in taken.items()
    ]
    note = (
        "Runs whose agent returns at once: all submitted, all awaited. To start: microseconds from the "
        "submission, one run after the other. The original was measured elsewhere."
    )
    columns = ("", "runs/s", "original", "to start p50 µs", "p99 µs", "spread")
    return [Table("Sessions, trivial runs", columns, rows, note, taken)]


def _runs(store: str, count: int, *, at_once: int = 1, subscribed: bool = False) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        url = store if store == "memory:" else f"sqlite:///{Path(folder)}/bench.db"
        return asyncio.run(_measured(url, count, at_once, subscribed))


async def _measured(url: str, count: int, at_once: int, subscribed: bool) -> Figures:
    started: dict[str, float] = {}

    async def agent(run: Any) -> None:
        started[run.run_id] = time.perf_counter()

    async with await open_store(url) as store:
        server = await SessionServer.start(
            store, agent, max_concurrent_runs=at_once, max_queued_runs=2 * count
        )
        reading = asyncio.create_task(_read(server, count)) if subscribed else None
        began = time.perf_counter()
        submitting = [server.submit_run({}) for _ in range(count)]
        ids = [await one for one in submitting] if at_once == 1 else await asyncio.gather(*submitting)
        for run_id in ids:
            await server.await_run(run_id)
        if reading is not None:
            await reading
        per_second = count / (time.perf_counter() - began)
        waits = []
        for _ in range(count // 10):
            asked = time.perf_counter()
            run_id = await server.submit_run({})
            await server.await_run(run_id)
            waits.append((started[run_id] - asked) * 1e6)
        await server.close()
    hundredths = statistics.quantiles(waits, n=100)
    return {"per_second": per_second, "p50": hundredths[49], "p99": hundredths[98]}


async def _read(server: SessionServer, count: int) -> None:
    async with server.subscribe() as events:
        async for event in events:
            count -= event.type == "run_completed"
            if not count:
                return


def _median(figures: list[Figures], name: str) -> float:
    return statistics.median(one[name] for one in figures)
