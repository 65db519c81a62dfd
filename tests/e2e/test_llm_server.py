"""The gateway in front of a real LLM server: its slots are the limit, ``/slots`` is what it counts."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from e2e.observe import gate_of, reading, until
from e2e.tiny_llm import llm_server
from processes import serve

SLOTS = 3
TOKENS = 200
CONFIG = """\
store = "memory:"

[providers.llm]
base_url = "{llm}"
limit = {slots}
cooldown = "100ms"
usage = "llama.cpp"
usage_repoll = "50ms"
"""
_DEFERRED = re.compile(r"^llamacpp:requests_deferred ([0-9]+)$", re.MULTILINE)


@dataclass
class Watched:
    """The most of each that was ever seen, and how often was looked."""

    busy: int = 0
    deferred: int = 0
    in_flight: int = 0
    upstream: int = 0
    queued: int = 0
    looks: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("slots", "metrics", "status"), 0))


@dataclass
class Bench:
    """The LLM server, Interlock in front of it, and a client for readings of both."""

    llm: str
    server: str
    client: aiohttp.ClientSession

    @property
    def gateway(self) -> str:
        return f"{self.server}/gateway/llm"

    async def busy(self) -> int:
        return sum(slot["is_processing"] for slot in await reading(self.client, f"{self.llm}/slots"))

    async def gate(self) -> dict[str, Any]:
        return await gate_of(self.client, self.server, "llm")

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[Watched]:
        """Look at the slots, the queue in the LLM server and the gate, each as often as it answers."""
        seen = Watched()

        async def slots() -> None:
            seen.busy = max(seen.busy, await self.busy())

        async def metrics() -> None:
            async with self.client.get(f"{self.llm}/metrics") as response:
                found = _DEFERRED.search(await response.text())
            assert found is not None
            seen.deferred = max(seen.deferred, int(found[1]))

        async def status() -> None:
            gate = await self.gate()
            seen.in_flight = max(seen.in_flight, gate["inFlight"])
            seen.upstream = max(seen.upstream, gate.get("upstreamInFlight", 0))
            seen.queued = max(seen.queued, gate["queued"])

        async def again_and_again(look: Any) -> None:
            while True:
                await look()
                seen.looks[look.__name__] += 1

        async with asyncio.TaskGroup() as group:
            watching = [group.create_task(again_and_again(look)) for look in (slots, metrics, status)]
            yield seen
            for task in watching:
                task.cancel()


@pytest.fixture
async def bench(model: Path, tmp_path: Path) -> AsyncIterator[Bench]:
    async with (
        llm_server(model, slots=SLOTS) as llm,
        serve(tmp_path, CONFIG.format(llm=llm, slots=SLOTS)) as server,
        aiohttp.ClientSession() as client,
    ):
        yield Bench(llm, server.url, client)


async def openai_stream(
    client: AsyncOpenAI, number: int, *, tokens: int = TOKENS, leave_after: int = 0
) -> int:
    """Stream one answer to its end, or leave after so many chunks; how many chunks came."""
    chunks, ended = 0, None
    stream = await client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": f"conversation {number}"}],
        stream=True,
        stream_options={"include_usage": True},
        max_tokens=tokens,
        extra_body={"ignore_eos": True},
    )
    async for chunk in stream:
        chunks += 1
        if chunks == leave_after:
            if number % 2:
                await stream.close()
                return chunks
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            leave_after = 0
        if chunk.choices and chunk.choices[0].finish_reason:
            ended = chunk.choices[0].finish_reason
        if chunk.usage is not None:
            assert (chunk.usage.completion_tokens, ended) == (tokens, "length")
            return chunks
    raise AssertionError(f"stream {number} ended without its usage, after {chunks} chunks")


async def anthropic_stream(client: AsyncAnthropic, number: int) -> int:
    """Stream one answer to its end; how many tokens came."""
    async with client.messages.stream(
        model="tiny",
        max_tokens=TOKENS,
        messages=[{"role": "user", "content": f"conversation {number}"}],
        extra_body={"ignore_eos": True},
    ) as stream:
        answer = await stream.get_final_message()
    assert (answer.stop_reason, answer.usage.output_tokens) == ("max_tokens", TOKENS)
    return answer.usage.output_tokens


async def test_a_fleet_never_takes_more_slots_than_there_are(bench: Bench) -> None:
    """40 streams of one SDK, 10 of them left in the middle, and 4 of another, on 3 slots: all others end
    whole, the server never holds more than 3, never has one waiting inside, and none is left over."""
    dice = Random(1)
    leaving = {number: dice.randrange(2, 100) for number in dice.sample(range(40), 10)}
    async with (
        AsyncOpenAI(base_url=f"{bench.gateway}/v1", api_key="x", max_retries=0) as openai,
        AsyncAnthropic(base_url=bench.gateway, api_key="x", max_retries=0) as anthropic,
        bench.watched() as seen,
    ):
        calls = [openai_stream(openai, number, leave_after=leaving.get(number, 0)) for number in range(40)]
        calls += [anthropic_stream(anthropic, number) for number in range(40, 44)]
        ended = await asyncio.gather(*calls, return_exceptions=True)
    for number, end in enumerate(ended):
        if number in leaving:
            assert end == leaving[number] or isinstance(end, asyncio.CancelledError)
        else:
            assert isinstance(end, int), f"stream {number}: {end!r}"
    assert sum(isinstance(end, asyncio.CancelledError) for end in ended) == sum(n % 2 == 0 for n in leaving)
    assert (seen.busy, seen.deferred, seen.in_flight) == (SLOTS, 0, SLOTS)
    assert 1 <= seen.upstream <= SLOTS
    assert seen.queued >= 30
    assert min(seen.looks.values()) >= 10
    print(f"looked {seen.looks} times")

    async def idle() -> bool:
        return await bench.busy() == 0 and (await bench.gate())["inFlight"] == 0

    await until(idle, "every slot idle on both sides")
    gate = await bench.gate()
    assert (gate["queued"], gate["paused"], gate["autoReduced"]) == (0, False, False)


async def test_a_client_that_leaves_frees_the_slot_at_once(bench: Bench) -> None:
    """All slots stream; their clients leave together: the server is idle within half a second."""
    async with AsyncOpenAI(base_url=f"{bench.gateway}/v1", api_key="x", max_retries=0) as openai:
        calls = [asyncio.create_task(openai_stream(openai, n, tokens=900)) for n in range(SLOTS)]

        async def all_busy() -> bool:
            return await bench.busy() == SLOTS

        async def all_idle() -> bool:
            return await bench.busy() == 0

        await until(all_busy, "every slot busy")
        assert (await bench.gate())["inFlight"] == SLOTS
        for call in calls:
            call.cancel()
        took = await until(all_idle, "every slot idle", within=0.5, every=0.005)
        print(f"idle {took:.3f} s after the clients left")
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*calls)

    async def released() -> bool:
        return (await bench.gate())["inFlight"] == 0

    await until(released, "every permit back")
