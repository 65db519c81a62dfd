"""Every admission plays the same cases: in process, through a server here, through another process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from admission.harnesses import LocalHarness, RemoteHarness, hosted
from interlock.admission.local import LocalAdmission
from interlock.testing import VirtualClock
from interlock.testing.conformance import CASES, Case, run
from processes import serve

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@every_case
async def test_local(case: Case) -> None:
    """The kernel in this process."""
    if case.peers:
        pytest.skip("a local admission shares its limits with nobody")
    await run(case, LocalHarness())


@every_case
async def test_remote(case: Case) -> None:
    """A real server on a real socket; its clock is virtual."""
    clock = VirtualClock(1_000.0)
    async with hosted(LocalAdmission(clock=clock), token="t0ken") as server:
        harness = RemoteHarness(server.url, clock, token="t0ken")
        try:
            await run(case, harness)
        finally:
            await harness.aclose()


def test_every_case_says_its_rule() -> None:
    """And no name is used twice."""
    assert [case.name for case in CASES if not case.rule] == []
    assert len({case.name for case in CASES}) == len(CASES) > 40


@pytest.mark.deep
async def test_remote_through_another_process(tmp_path: Path) -> None:
    """All cases, one after the other, with `interlock serve` and in real time."""
    async with serve(tmp_path, 'store = "memory:"\n') as server, _harness(server.url) as harness:
        for case in CASES:
            try:
                await run(case, harness)
            except BaseException as error:
                error.add_note(f"in case {case.name}")
                raise


@asynccontextmanager
async def _harness(url: str) -> AsyncIterator[RemoteHarness]:
    harness = RemoteHarness(url, second=0.3)
    try:
        yield harness
    finally:
        await harness.aclose()
