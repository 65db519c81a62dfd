"""Real processes for tests: each on a free port, ended whatever happens, its errors kept for whoever fails.

    async with mock_provider() as upstream, serve(tmp_path, config) as server:
        ...  # server.url, server.process

Nothing of the caller's environment that could change a result reaches them.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

START_SECONDS = 30.0
END_SECONDS = 10.0

_URL = re.compile(r"http://[^\s/]+:[0-9]+|unix:[^\s,]+")
_OURS = re.compile(r"INTERLOCK_|OPENAI_|ANTHROPIC_|.*_PROXY$|COLUMNS$|FORCE_COLOR$|PYTEST_", re.IGNORECASE)


@dataclass
class Running:
    """One process that has said where it listens."""

    process: Process
    errors: Path
    """The file that holds its standard error."""
    url: str = ""
    lines: list[str] = field(default_factory=list)
    """Its standard output so far."""

    def stderr(self) -> str:
        """What it has written to standard error so far."""
        return self.errors.read_text(encoding="utf-8", errors="replace")

    async def ended(self, within: float = END_SECONDS) -> int:
        """The exit code, once it has ended by itself."""
        async with asyncio.timeout(within):
            return await self.process.wait()


@dataclass(frozen=True)
class Finished:
    """A command that has run to its end."""

    code: int
    stdout: str
    stderr: str


def environment(env: dict[str, str] | None = None) -> dict[str, str]:
    """This process's environment without what steers Interlock, the SDKs or a terminal, and with *env*."""
    clean = {name: value for name, value in os.environ.items() if not _OURS.match(name)}
    return {**clean, "PYTHONUNBUFFERED": "1", "COLUMNS": "110", **(env or {})}


async def command(*arguments: str, cwd: Path, env: dict[str, str] | None = None) -> Finished:
    """Run ``interlock`` with *arguments* in *cwd* until it ends."""
    process = await asyncio.create_subprocess_exec(
        *_interlock(arguments), cwd=cwd, env=environment(env), stdin=DEVNULL, stdout=PIPE, stderr=PIPE
    )
    try:
        async with asyncio.timeout(START_SECONDS):
            stdout, stderr = await process.communicate()
    finally:
        await _end(process)
    assert process.returncode is not None
    return Finished(process.returncode, stdout.decode(), stderr.decode())


@asynccontextmanager
async def serve(
    tmp_path: Path,
    config: str,
    env: dict[str, str] | None = None,
    port: int = 0,
    *,
    more: tuple[str, ...] = (),
) -> AsyncIterator[Running]:
    """``interlock serve`` in *tmp_path* with *config* as its ``interlock.toml``, on *port* or a free one."""
    (tmp_path / "interlock.toml").write_text(config, encoding="utf-8")
    async with _running("serve", "--port", f"{port}", *more, cwd=tmp_path, env=env) as server:
        yield server


@asynccontextmanager
async def mock_provider(
    limit: int = 4, hard_cap: int = 5, lag: str = "0ms", latency: str = "20ms", seed: int = 1
) -> AsyncIterator[str]:
    """``interlock mock-provider`` on a free port; its base URL."""
    numbers = ("--limit", f"{limit}", "--hard-cap", f"{hard_cap}", "--seed", f"{seed}")
    with tempfile.TemporaryDirectory() as directory:
        times = ("--port", "0", "--lag", lag, "--latency", latency)
        async with _running("mock-provider", *numbers, *times, cwd=Path(directory), env=None) as provider:
            yield provider.url


@asynccontextmanager
async def _running(*arguments: str, cwd: Path, env: dict[str, str] | None) -> AsyncIterator[Running]:
    errors = cwd / f"{arguments[0]}.stderr"
    with errors.open("ab") as sink:
        process = await asyncio.create_subprocess_exec(
            *_interlock(arguments), cwd=cwd, env=environment(env), stdin=DEVNULL, stdout=PIPE, stderr=sink
        )
    running = Running(process, errors)
    announced = asyncio.Event()
    reading = asyncio.create_task(_read(running, announced))
    try:
        async with asyncio.timeout(START_SECONDS):
            await announced.wait()
        assert running.url, f"{arguments[0]} ended without saying where it listens"
        yield running
    except BaseException as error:
        if said := running.stderr().strip():
            error.add_note(f"standard error of {' '.join(arguments)}:\n{said[-4000:]}")
        raise
    finally:
        await _end(process)
        await reading


async def _read(running: Running, announced: asyncio.Event) -> None:
    """Take what the process prints, so that it never has to wait for us."""
    assert running.process.stdout is not None
    async for raw in running.process.stdout:
        line = raw.decode().rstrip("\n")
        running.lines.append(line)
        if not running.url and (found := _URL.search(line)):
            running.url = found[0]
            announced.set()
    announced.set()


async def _end(process: Process) -> None:
    """Terminate, then terminate at once, then kill."""
    for stop in (process.terminate, process.terminate, process.kill):
        if process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            stop()
        with suppress(TimeoutError):
            async with asyncio.timeout(3):
                await process.wait()


def _interlock(arguments: tuple[str, ...]) -> tuple[str, ...]:
    return (sys.executable, "-m", "interlock.cli", *arguments)
