"""Every example runs, and does what its first lines say."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from interlock.testing.provider import MockProvider, running
from processes import serve

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
    ran = {
        "gate_an_sdk.py",
        "gate_in_process.py",
        "govern_tools.py",
        "limit_runs.py",
        "many_limits.py",
        "many_processes.py",
        "pool_of_processes.py",
        "session.py",
        "trace_waits.py",
        "tree_of_runs.py",
    }
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


async def test_an_sdk_is_gated_from_inside(provider: MockProvider) -> None:
    """The same with the gate in its client; a refusal is asked again without a word of the program."""
    provider.cue("status", status=429, headers={"retry-after": "0.1"}, body={"error": {"message": "slow"}})
    async with running(provider) as base:
        printed = await run_example("gate_in_process.py", OPENAI_BASE_URL=f"{base}/v1", OPENAI_API_KEY="key")
    stats = provider.account.stats
    assert (stats.requests, stats.refused) == (9, 0)
    assert stats.peak_running <= 3
    assert printed.count("prompt") == 8
    assert "limit 2 of 3; Concurrency limit auto-reduced to 2" in printed


async def test_many_limits_are_taken_at_once() -> None:
    """Who lacks a stream keeps nothing of the ceiling; every wait has its reason; nothing is left."""
    lines = (await run_example("many_limits.py")).splitlines()
    assert lines[:2] == ["ada has streams and global", "cleo has tools and global"]
    assert "'streams' is full (1/1 in use, held by ada)" in lines[2]
    assert lines[3] == "dan: 1 ahead; 'global' is full (2/2 in use, held by ada, cleo)"
    assert lines[-1] == "in use at the end: {'global': 0, 'streams': 0, 'tools': 0}"


async def test_many_processes_share_a_limit(tmp_path: Path) -> None:
    """Never more than two of three workers have a tool; every fence is another; nothing is left."""
    async with serve(tmp_path, 'store = "memory:"\n') as server:
        lines = (await run_example("many_processes.py", INTERLOCK_URL=server.url)).splitlines()
    pieces = [line for line in lines if " does piece " in line]
    assert {line.split()[0] for line in pieces} == {"ada", "ben", "cleo"}
    assert len({line.rpartition(" ")[2] for line in pieces}) == len(pieces) == 6
    assert lines[-1] in {f"at most {most} at once; in use at the end: 0" for most in (1, 2)}


async def test_runs_are_limited() -> None:
    """Full is said in the originals' words; every run is done; the dead one's slot comes back."""
    lines = (await run_example("limit_runs.py")).splitlines()
    refusal = "Maximum parallel runs limit (2) exceeded. Currently active: 2"
    assert lines[0] == f"max_runs_exceeded: {refusal}"
    assert sorted(lines[1:3]) == ["ada did 3 runs of s1", "ben did 3 runs of s2"]
    assert lines[3:] == [
        "lost by the dead: ['run:unfinished']",
        "<ConcurrencyLimiter sessions 0/10, runs 0/2>",
    ]


async def test_tools_are_governed() -> None:
    """Parked streams keep nothing; nested work is not charged twice; a circle is refused, not waited in."""
    lines = (await run_example("govern_tools.py")).splitlines()
    assert lines[:3] == [
        "2 streams run, 8 wait: 4 of 6 are free",
        "a tool goes at once; another of ada's: None",
        "a stream's own tool: 4 of 6 are free",
    ]
    assert lines[3].startswith("refused: this would wait for ever: ben waits for 'streams' that ada keeps")
    assert lines[4] == "the elder goes on"


async def test_a_pool_survives_its_processes() -> None:
    """The killed worker is missed by one caller, which tries again; the pool has its size at the end."""
    lines = (await run_example("pool_of_processes.py")).splitlines()
    assert lines == [
        "lost while squaring 3, -9",
        "[0, 1, 4, 9, 16, 25, 36, 49]",
        "<AgentPool squares: 0 out and 2 idle of 2 + 0>",
    ]


async def test_a_tree_of_runs_finishes() -> None:
    """Three trees of seven runs, at a limit of two."""
    assert await run_example("tree_of_runs.py") == "21 runs, never more than 2 of 2 at work\n"


async def test_a_session_outlives_its_process() -> None:
    """What was submitted is found again; what was cut off says so."""
    assert (await run_example("session.py")).splitlines() == [
        "3 numbers: 3",
        "the endless one was cancelled",
        "5 numbers: 10",
        "asked again, not run again: 3",
        "the last one: interrupted",
        "its log begins with [1, 2, 3, 4, 5, 6, 7, 8]",
    ]


async def test_waits_are_traced() -> None:
    """A span for each wait, below the span of who waited, and none for who did not."""
    assert (await run_example("trace_waits.py")).splitlines() == [
        "ada answers",
        "  ben waited for provider:openai: granted, 0 ahead",
        "ben answers",
        "  cleo waited for provider:openai: granted, 1 ahead",
        "cleo answers",
    ]
