"""The limiter's slots by id, beside the least that could hold them. All figures in nanoseconds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from bench.measure import Table, Timed, compared, pin, take_turns
from interlock.limiter import ConcurrencyLimiter

IDS = [f"run-{number}" for number in range(1_000)]
ORIGINAL = 240_000
"""Pairs a second of AgentSessionManager's limiter, one caller, on two cores."""


class ThreeMaps:
    """The original's rules with nothing else: no waiting, no owner's end, no readings."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.runs: dict[str, str] = {}
        self.by_session: dict[str, set[str]] = {}

    async def acquire_run_slot(self, session_id: str, run_id: str) -> bool:
        if run_id in self.runs:
            return True
        if len(self.runs) >= self.most:
            return False
        self.runs[run_id] = session_id
        self.by_session.setdefault(session_id, set()).add(run_id)
        return True

    async def release_run_slot(self, run_id: str) -> None:
        session_id = self.runs.pop(run_id, None)
        if session_id is not None:
            runs = self.by_session[session_id]
            runs.discard(run_id)
            if not runs:
                del self.by_session[session_id]


def run(*, quick: bool = False) -> list[Table]:
    """The one table; *quick* with fewer rounds."""
    pin()
    makers = {"three dicts": lambda: ThreeMaps(50), "Interlock": lambda: ConcurrencyLimiter(100, 50)}
    taken = take_turns(
        {name: partial(_pairs, make) for name, make in makers.items()}, rounds=3 if quick else 9
    )
    figures = sorted(taken["Interlock"])
    rate = 1e9 / figures[len(figures) // 2]
    note = (
        "One unit: acquire a run's slot and release it by its id, with a session that holds its own. "
        f"Interlock: {rate:,.0f} pairs/s; the original {ORIGINAL:,}, measured elsewhere."
    )
    return [compared("Limiter, acquire and release a run", "pair", taken, baseline="three dicts", note=note)]


def _pairs(make: Callable[[], Any], count: int = 20_000) -> float:
    async def timed() -> float:
        limiter = make()
        if isinstance(limiter, ConcurrencyLimiter):
            await limiter.acquire_session_slot("s1")
        for _ in range(2):  # the first time warms up
            with Timed() as time_:
                for number in range(count):
                    run_id = IDS[number % 1_000]
                    await limiter.acquire_run_slot("s1", run_id)
                    await limiter.release_run_slot(run_id)
        return time_.ns / count

    return asyncio.run(timed())
