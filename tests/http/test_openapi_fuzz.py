"""The API against its own description: schemathesis makes requests from ``/openapi.json`` and finds nothing.

It knows what is allowed and what is not (positive and negative data), each boundary of both (coverage), and
what follows from an answer (stateful). Time is virtual and runs, so that no wait is long.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from gateways import hosting
from interlock.testing import VirtualClock
from served_tokens import Door, door

TOKEN = "a-token-that-nobody-guesses-in-a-thousand-years"
SEED = int(os.environ.get("INTERLOCK_FUZZ_SEED", "20261121"))

CONFIG = """
color = false
warnings = false
request-timeout = 20
headers = { Accept = "application/json" }
[auth.openapi.token]
bearer = "%(token)s"
[phases.stateful]
max-steps = 8
[phases.stateful.generation]
max-examples = %(scenarios)d
[checks]
# A wait that is over ends with 504, by contract; what is not there (pools) with 503.
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", "503", "504"]
# A condition that does not hold is 412, by RFC 9110; a key that belongs to another body 422.
positive_data_acceptance.expected-statuses = [
    "2xx", "3xx", "401", "403", "404", "409", "412", "422", "429", "503", "504"
]
[[operations]]
# Whether there is a session or run to go on behind, no schema can say either.
include-name = ["GET /sessions", "GET /sessions/{id}/runs"]
[operations.checks]
positive_data_acceptance.expected-statuses = ["2xx", "400", "404"]
"""


class Watched:
    """An application whose requests are counted; time passes while they wait, and at no other time."""

    def __init__(self, app: Any, clock: VirtualClock) -> None:
        self.app = app
        self.clock = clock
        self.requests = 0
        self.answered = 0
        self._guessed: list[asyncio.Event] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.requests += 1

        async def sent(message: Any) -> None:
            if message.get("status") == 401:  # who guesses ten times in a minute has to wait, by contract
                self._guessed.append(asyncio.Event())
                await self._guessed[-1].wait()
            await send(message)

        try:
            await self.app(scope, receive, sent)
        finally:
            self.answered += 1

    async def let_time_pass(self) -> None:
        before = -1
        while True:
            if self._guessed:
                await self.clock.advance(7.0)
                self._guessed.pop().set()
            elif before == self.answered < self.requests:
                await self.clock.advance(3600.0)
            before = self.answered
            await asyncio.sleep(0.005)


@asynccontextmanager
async def watched(server: Door) -> AsyncIterator[Watched]:
    app = Watched(server.app, server.clock)
    task = asyncio.create_task(app.let_time_pass())
    try:
        yield app
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def described(document: Any) -> Any:
    """*document*, with the names that this server knows: that others are refused no schema can say."""
    schemas = document["components"]["schemas"]
    schemas["NewSession"]["properties"]["agent"] = {"enum": ["worker"]}
    known = ["tools", "global", "runs", "provider:p"]
    schemas["Asked"]["properties"]["limits"]["items"] = {"enum": known}
    for path in document["paths"].values():
        for operation in path.values():
            for parameter in operation["parameters"]:
                if parameter["name"] in ("If-Match", "If-None-Match"):  # its pattern is not kept to
                    parameter["schema"] = {"enum": ["*", '"0123"', 'W/"0"', '"a", "b"']}
    return document


async def fuzzed(tmp_path: Path, examples: int, scenarios: int, patience: float) -> int:
    """How many requests it took to find nothing."""
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG % {"token": TOKEN, "scenarios": scenarios})
    async with door(TOKEN) as server, watched(server) as counted, hosting(counted) as url:
        document = tmp_path / "openapi.json"
        document.write_text(json.dumps(described((await server.ask("GET", "/openapi.json", TOKEN)).json)))
        command = ["--config-file", str(config), "run", str(document), "--url", url]
        command += ["--seed", str(SEED), "--generation-database", "none", "--max-examples", str(examples)]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "schemathesis.cli", *command),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=tmp_path,
        )
        try:
            async with asyncio.timeout(patience):
                said, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    print(said.decode(), f"seed {SEED}, {counted.requests} requests")
    assert process.returncode == 0, said.decode()[-20_000:]
    return counted.requests


async def test_nothing_is_found(tmp_path: Path) -> None:
    """All phases and checks, a few examples each."""
    assert await fuzzed(tmp_path, examples=2, scenarios=12, patience=100) > 1500


@pytest.mark.deep
@pytest.mark.timeout(1200)
async def test_nothing_is_found_in_a_long_search(tmp_path: Path) -> None:
    assert await fuzzed(tmp_path, examples=120, scenarios=150, patience=1100) > 5000
