"""Every example runs, and does what its first lines say."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from interlock.testing.provider import MockProvider, running

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


async def run_example(name: str, **environment: str) -> str:
    """What the example prints; AssertionError with its complaint if it fails."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", str(EXAMPLES / name)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **environment},
    )
    try:
        async with asyncio.timeout(60):
            printed, complaint = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert (process.returncode, complaint.decode()) == (0, "")
    return printed.decode()


def test_every_example_has_a_test() -> None:
    ran = {"gate_an_sdk.py", "many_limits.py"}
    assert {path.name for path in EXAMPLES.glob("*.py")} == ran


@pytest.fixture
def provider() -> MockProvider:
    return MockProvider(limit=3, hard_cap=3, lag=0.02, latency=0.02)


async def test_an_sdk_is_gated(provider: MockProvider) -> None:
    """Eight prompts at once never exceed the provider's three, and all are answered."""
    async with running(provider) as base:
        printed = await run_example("gate_an_sdk.py", OPENAI_BASE_URL=f"{base}/v1", OPENAI_API_KEY="key")
    stats = provider.account.stats
    assert (stats.served, stats.refused) == (8, 0)
    assert stats.peak_running <= 3
    assert printed.count("waited") == 8
    assert printed.endswith("limit 3 of 3; never refused\n")


async def test_a_gated_sdk_survives_a_429(provider: MockProvider) -> None:
    """One refusal pauses the gate and cuts it by one; the refused call is made again."""
    provider.cue("status", status=429, headers={"retry-after": "0.1"}, body={"error": {"message": "slow"}})
    async with running(provider) as base:
        printed = await run_example("gate_an_sdk.py", OPENAI_BASE_URL=f"{base}/v1", OPENAI_API_KEY="key")
    assert provider.account.stats.requests == 9
    assert printed.count("waited") == 8
    assert "limit 2 of 3; Concurrency limit auto-reduced to 2" in printed


async def test_many_limits_are_taken_at_once() -> None:
    """Who lacks a stream keeps nothing of the ceiling; every wait has its reason; nothing is left."""
    lines = (await run_example("many_limits.py")).splitlines()
    assert lines[:2] == ["ada has streams and global", "cleo has tools and global"]
    assert "'streams' is full (1/1 in use, held by ada)" in lines[2]
    assert lines[3] == "dan: 1 ahead; 'global' is full (2/2 in use, held by ada, cleo)"
    assert lines[-1] == "in use at the end: {'global': 0, 'streams': 0, 'tools': 0}"
