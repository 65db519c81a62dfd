"""Clients, provider and server are killed with SIGKILL while calls run, at moments that a seed decides.

A run prints its seed; ``E2E_SEED=…`` repeats its moments (what the processes were doing then is theirs).
"""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import httpx2
import openai
import pytest
from openai import AsyncOpenAI

from e2e.observe import gate_of, reading, until
from interlock.app import Interlock
from processes import Running, _running, environment, mock_provider, serve

SEED = int(os.environ.get("E2E_SEED", time.time_ns() % 1_000_000))
DEADLINE = 6.0
"""Seconds within which every call has to end, one way or the other."""
CONFIG = """\
store = "{store}"

[providers.mock]
base_url = "{provider}"
limit = 4
cooldown = "150ms"
usage = "/usage"
usage_repoll = "20ms"

[gateway]
timeout = "4s"
"""


@pytest.fixture
def dice() -> Random:
    print(f"E2E_SEED={SEED}")
    return Random(SEED)


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def kill(process: Process) -> None:
    process.kill()
    await process.wait()


@asynccontextmanager
async def provider_at(directory: Path, port: int = 0, limit: int = 4) -> AsyncIterator[Running]:
    """The mock provider, on a port of one's choice."""
    directory.mkdir(exist_ok=True)
    numbers = ("--port", f"{port}", "--limit", f"{limit}", "--seed", "1")
    times = ("--lag", "100ms", "--latency", "300ms")
    async with _running("mock-provider", *numbers, *times, cwd=directory, env=None) as provider:
        yield provider


@asynccontextmanager
async def server_at(directory: Path, port: int = 0) -> AsyncIterator[Running]:
    """`interlock serve` with the configuration that is there, on a port of one's choice."""
    async with _running("serve", "--port", f"{port}", cwd=directory, env=None) as server:
        yield server


def port_of(running: Running) -> int:
    return int(running.url.rpartition(":")[2])


# -- a fleet that notes how every call ended


class Fleet:
    """Workers that stream and ask by turns until told to stop; every call ends in `ended` or in `hung`."""

    def __init__(self, gateway: str, workers: int) -> None:
        self._gateway = gateway
        self._workers = workers
        self._stopped = False
        self.ended: Counter[str] = Counter()
        self.hung = 0
        self.longest = 0.0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        limits = httpx2.Limits(max_connections=None)
        async with (
            httpx2.AsyncClient(limits=limits, trust_env=False) as http,
            AsyncOpenAI(
                base_url=f"{self._gateway}/v1", api_key="x", max_retries=0, http_client=http
            ) as client,
            asyncio.TaskGroup() as group,
        ):
            for worker in range(self._workers):
                group.create_task(self._work(client, worker))
            try:
                yield
            finally:
                self._stopped = True

    async def _work(self, client: AsyncOpenAI, worker: int) -> None:
        number = 0
        while not self._stopped:
            number += 1
            began = time.monotonic()
            try:
                async with asyncio.timeout(DEADLINE):
                    ended = await self._call(client, worker, number)
            except TimeoutError:
                self.hung += 1
                return
            self.longest = max(self.longest, time.monotonic() - began)
            self.ended[ended] += 1
            if ended != "answer":
                await asyncio.sleep(0.05)

    async def _call(self, client: AsyncOpenAI, worker: int, number: int) -> str:
        messages: list[Any] = [{"role": "user", "content": f"worker {worker}, call {number}"}]
        finish = None
        try:
            if number % 3 == 0:
                answer = await client.chat.completions.create(model="mock", messages=messages)
                finish = answer.choices[0].finish_reason
            else:
                stream = await client.chat.completions.create(model="mock", messages=messages, stream=True)
                async for chunk in stream:
                    finish = chunk.choices[0].finish_reason or finish
        except openai.APIStatusError as error:
            return f"status {error.status_code}"
        except (openai.APIError, httpx2.HTTPError) as error:
            return type(error).__name__
        assert finish == "stop", "half an answer was taken for a whole one"
        return "answer"

    async def answered(self, more: int) -> None:
        """Return when *more* answers have come."""
        wanted = self.ended["answer"] + more

        async def enough() -> bool:
            return self.ended["answer"] >= wanted

        await until(enough, f"{more} more answers, after {dict(self.ended)}")


# -- the client

CLIENTS = """
import asyncio, os, signal, sys
from openai import AsyncOpenAI

async def stream(client, number):
    while True:
        messages = [{"role": "user", "content": f"process {os.getpid()}, stream {number}"}]
        async for _ in await client.chat.completions.create(model="mock", messages=messages, stream=True):
            pass
        os.write(1, b"%d\\n" % os.getpid())

async def main():
    async with AsyncOpenAI(base_url=sys.argv[1], api_key="x", max_retries=0) as client:
        await asyncio.gather(*(stream(client, number) for number in range(3)))

signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while sys.stdin.readline():
    if os.fork() == 0:
        asyncio.run(main())
"""
"""A process that has the SDK loaded and becomes two with every line it is given. The new one streams for
ever, three streams at a time, and says its number after each."""


async def test_killed_clients_leave_no_slot_behind(
    tmp_path: Path, client: aiohttp.ClientSession, dice: Random
) -> None:
    """Processes with three streams each, some of them waiting, die at any moment: within two seconds every
    slot is free again, and the provider has seen all their streams end. Nothing is ever refused."""
    async with (
        mock_provider(4, 5, lag="100ms", latency="300ms") as provider,
        serve(tmp_path, CONFIG.format(store="memory:", provider=provider)) as server,
        clients(f"{server.url}/gateway/mock/v1") as (new, said),
    ):

        async def over() -> bool:
            stats = await reading(client, f"{provider}/stats")
            return stats["running"] == 0 and await idle(client, server.url)

        took, dead = [], set[int]()
        for _ in range(5):
            doomed: set[int] = set()
            for _ in range(3):
                new()
            async with asyncio.timeout(20):
                while len(doomed) < 3:
                    doomed |= {await said()} - dead
            for process_id in doomed:
                await asyncio.sleep(dice.uniform(0, 0.15))
                os.kill(process_id, signal.SIGKILL)
            dead |= doomed
            took.append(await until(over, "every slot free", within=2.0))
            gate = await gate_of(client, server.url, "mock")
            assert (gate["limit"], gate["paused"], gate["autoReduced"]) == (4, False, False)
        stats = await reading(client, f"{provider}/stats")
        print(
            f"free after {max(took):.2f} s at the most; {stats['abandoned']} streams ended with their client"
        )
        assert stats["abandoned"] >= 5
        assert (stats["refused"], stats["peak"]) == (0, 4)


@asynccontextmanager
async def clients(
    base_url: str,
) -> AsyncIterator[tuple[Callable[[], None], Callable[[], Awaitable[int]]]]:
    """A way to start one more client, and a way to hear the id of one that has streamed an answer."""
    first = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", CLIENTS, base_url),
        env=environment(),
        stdin=PIPE,
        stdout=PIPE,
        start_new_session=True,
    )
    assert first.stdin is not None
    assert first.stdout is not None
    write, read = first.stdin.write, first.stdout.readline

    async def said() -> int:
        return int(await read())

    try:
        yield lambda: write(b"one more\n"), said
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        await first.wait()


# -- the provider


async def test_a_killed_provider_hangs_nobody(
    tmp_path: Path, client: aiohttp.ClientSession, dice: Random
) -> None:
    """It dies under full load and comes back on its port, four times: every call ends within its deadline,
    whole or as an error, calls go through again, and no slot is lost."""
    async with AsyncExitStack() as stack:
        provider = await stack.enter_async_context(provider_at(tmp_path / "provider"))
        config = CONFIG.format(store="memory:", provider=provider.url)
        server = await stack.enter_async_context(serve(tmp_path, config))
        fleet = Fleet(f"{server.url}/gateway/mock", workers=10)
        async with fleet.running():
            for _ in range(4):
                await fleet.answered(5)
                await asyncio.sleep(dice.uniform(0, 0.4))
                await kill(provider.process)
                await asyncio.sleep(dice.uniform(0, 0.4))
                again = provider_at(tmp_path / "provider", port_of(provider))
                provider = await stack.enter_async_context(again)
            await fleet.answered(5)
        print(f"{dict(fleet.ended)}, longest {fleet.longest:.1f} s")
        assert fleet.hung == 0
        assert fleet.ended.total() > fleet.ended["answer"] >= 25
        await until(partial(idle, client, server.url), "every slot free", within=2.0)
        gate = await gate_of(client, server.url, "mock")
        assert (gate["limit"], gate["paused"], gate["autoReduced"]) == (4, False, False)


# -- the server


async def test_a_killed_server_keeps_its_settings(
    tmp_path: Path, client: aiohttp.ClientSession, dice: Random
) -> None:
    """It dies under full load and comes back on its store, three times, each time after a 429 has cut its
    limit: its clients get errors and no silence, and it knows the operator's limit and cooldown, set at run
    time and not as its file says, the limit in force, and what it was cut from."""
    store = tmp_path / "interlock.db"
    expected = {"configuredLimit": 6, "cooldownMs": 80}
    expected |= {"autoReduced": True, "autoReducedFrom": 6, "reason": "concurrency"}
    async with AsyncExitStack() as stack:
        provider = await stack.enter_async_context(provider_at(tmp_path / "provider", limit=8))
        file = tmp_path / "interlock.toml"
        file.write_text(CONFIG.format(store=f"sqlite:///{store}", provider=provider.url))
        async with Interlock.open(file) as earlier:
            await earlier.gate.set_limit("mock", 6)
            await earlier.gate.set_cooldown("mock", 0.08)
        server = await stack.enter_async_context(server_at(tmp_path))
        fleet = Fleet(f"{server.url}/gateway/mock", workers=10)
        async with fleet.running():
            for limit in (5, 4, 3):
                await fleet.answered(5)
                await cue_429(client, provider.url)
                await until(partial(stored, store, limit), f"a cut to {limit} on the disk")
                await asyncio.sleep(dice.uniform(0, 0.4))
                await kill(server.process)
                await asyncio.sleep(dice.uniform(0, 0.4))
                server = await stack.enter_async_context(server_at(tmp_path, port_of(server)))
                gate = await gate_of(client, server.url, "mock")
                assert gate.items() >= {**expected, "limit": limit}.items()
            await fleet.answered(5)
        print(f"{dict(fleet.ended)}, longest {fleet.longest:.1f} s")
        assert fleet.hung == 0
        assert fleet.ended["APIConnectionError"] >= 3
        await until(partial(idle, client, server.url), "every slot free", within=2.0)
        gate = await gate_of(client, server.url, "mock")
        assert gate.items() >= {**expected, "limit": 3}.items()


async def cue_429(client: aiohttp.ClientSession, provider: str) -> None:
    """The provider refuses its next call for too much concurrency, and names a short wait."""
    body = {"error": {"code": "concurrency_limit_exceeded", "message": "too many at once"}}
    fault = {"kind": "status", "status": 429, "headers": {"retry-after-ms": "100"}, "body": body}
    async with client.post(f"{provider}/cue", json={"faults": [fault]}) as response:
        assert response.status == 200


async def idle(client: aiohttp.ClientSession, server: str) -> bool:
    """Whether nobody holds a slot, waits for one or keeps one cooling."""
    gate = await gate_of(client, server, "mock")
    return not (gate["inFlight"] or gate["queued"])


async def stored(store: Path, limit: int) -> bool:
    """Whether the cut is in the file: nothing says so over HTTP, and a kill before that may forget it."""
    with closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as database:
        rows = database.execute("SELECT value FROM settings WHERE key = 'provider:mock'").fetchall()
    return any(f'"effective":{limit}' in value for (value,) in rows)
