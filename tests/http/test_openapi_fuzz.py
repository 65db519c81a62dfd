"""The API against its own description: schemathesis makes requests from ``/openapi.json`` and finds nothing.

It knows what is allowed and what is not (positive and negative data), each boundary of both (coverage), and
what follows from an answer (stateful). Time is virtual and passes when everybody waits, so no wait is long.
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
from interlock.http.access import failures
from interlock.testing import VirtualClock
from served_tokens import door

TOKEN = "a-token-that-nobody-guesses-in-a-thousand-years"
SEED = int(os.environ.get("INTERLOCK_FUZZ_SEED", "20261121"))

CONFIG = """
color = false
warnings = false
request-timeout = 20
seed = %(seed)d
headers = { Accept = "application/json" }
[generation]
database = "none"
[auth.openapi.token]
bearer = "%(token)s"
[phases.fuzzing.generation]
max-examples = %(examples)d
[phases.stateful]
max-steps = 12
[phases.stateful.generation]
max-examples = %(examples)d
[checks]
# A wait that is over ends with 504, by contract; what is not there (pools) with 503.
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", "503", "504"]
# A condition that does not hold is 412, by RFC 9110; a key that belongs to another body 422.
positive_data_acceptance.expected-statuses = [
    "2xx", "3xx", "401", "403", "404", "409", "412", "422", "429", "503", "504"
]
[[operations]]
# Whether there is a session or run to go on behind, no schema can say.
include-name = ["GET /sessions", "GET /sessions/{id}/runs"]
[operations.checks]
positive_data_acceptance.expected-statuses = ["2xx", "400", "404"]
[[operations]]
# A permit is gone when its lease ends.
include-name = "POST /permits/{id}/renew"
[operations.checks]
ensure_resource_availability.enabled = false
"""
FREE = """
[[operations]]
# Their free objects are left out of this description: with all its levels most scenarios are not made.
include-name = ["POST /sessions", "POST /sessions/{id}/runs"]
[operations.checks]
positive_data_acceptance.expected-statuses = ["2xx", "400", "404", "409", "422", "429"]
"""


class Watched:
    """An application whose requests are counted; time passes while they wait, and at no other time."""

    def __init__(self, app: Any, clock: VirtualClock) -> None:
        self.app = app
        self.clock = clock
        self.requests = 0
        self.read = 0
        self.answered = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.requests += 1
        whole = False

        async def received() -> Any:
            nonlocal whole
            message = await receive()
            if not whole and not message.get("more_body"):
                whole = True
                self.read += 1
            return message

        try:
            await self.app(scope, received, send)
        finally:
            self.answered += 1
            self.read += not whole

    async def let_time_pass(self) -> None:
        while True:
            before = self.answered
            for _ in range(10):  # turns of this loop: whoever has something to do has done it by then
                await asyncio.sleep(0.001)
                if self.answered != before or self.read == self.answered:
                    break
            else:
                await self.clock.advance(3600.0)


@asynccontextmanager
async def watched(app: Any, clock: VirtualClock) -> AsyncIterator[Watched]:
    counted = Watched(app, clock)
    task = asyncio.create_task(counted.let_time_pass())
    try:
        yield counted
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


async def searched(folder: Path, url: str, document: Any, phases: str, config: str, patience: float) -> None:
    """Fails with what schemathesis has to say if it finds anything."""
    (folder / "schemathesis.toml").write_text(config)
    (folder / "openapi.json").write_text(json.dumps(document))
    command = ["-m", "schemathesis.cli", "run", "openapi.json", "--url", url, "--phases", phases]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=folder,
    )
    try:
        async with asyncio.timeout(patience):
            said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    print(said.decode())
    assert process.returncode == 0, f"seed {SEED}: {said.decode()[-20_000:]}"


async def fuzzed(folder: Path, examples: int, scenarios: int, patience: float) -> int:
    """How many requests it took to find nothing."""
    async with (
        door(TOKEN) as server,
        watched(server.app, server.clock) as counted,
        hosting(counted) as url,
    ):
        document = described((await server.ask("GET", "/openapi.json", TOKEN)).json)
        config = CONFIG % {"seed": SEED, "token": TOKEN, "examples": examples}
        await searched(folder, url, document, "coverage,fuzzing", config, patience)
        document["components"]["schemas"]["Json"] = {}
        config = CONFIG % {"seed": SEED, "token": TOKEN, "examples": scenarios} + FREE
        await searched(folder, url, document, "stateful", config, patience)
    print(f"seed {SEED}: {counted.requests} requests")
    return counted.requests


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who shows wrong tokens need not wait: schemathesis does so all the time."""
    monkeypatch.setattr(failures, "MOST", 10**9)


async def test_nothing_is_found(tmp_path: Path) -> None:
    """All phases and checks, a few examples each."""
    assert await fuzzed(tmp_path, examples=1, scenarios=15, patience=100) > 1500


@pytest.mark.deep
@pytest.mark.timeout(1800)
async def test_nothing_is_found_in_a_long_search(tmp_path: Path) -> None:
    assert await fuzzed(tmp_path, examples=120, scenarios=150, patience=800) > 5000
