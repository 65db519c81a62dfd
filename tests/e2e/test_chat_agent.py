"""Chat agents of sessions on a real LLM server: its slots are the limit, its answers go into the log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from e2e.observe import reading, until
from e2e.tiny_llm import llm_server
from interlock.agents import ChatAgent
from interlock.errors import RunCancelled
from interlock.provider.gate import ProviderGate
from interlock.session.server import SessionServer
from interlock.stores import open_store

SLOTS = 2
TOKENS = 60


@asynccontextmanager
async def fleet(model: Path) -> AsyncIterator[tuple[str, ProviderGate, Any]]:
    """The LLM server, a gate in front of it, and a store."""
    async with llm_server(model, slots=SLOTS) as llm, ProviderGate(default_cooldown=0.0) as gate:
        await gate.set_limit("llm", SLOTS)
        store = await open_store("memory:")
        try:
            yield llm, gate, store
        finally:
            await store.aclose()


def chat(llm: str, dialect: Any = "openai", tokens: int = TOKENS) -> ChatAgent:
    base_url = f"{llm}/v1" if dialect == "openai" else llm
    options = {"max_tokens": tokens, "ignore_eos": True}
    return ChatAgent("llm", "tiny", base_url=base_url, dialect=dialect, options=options)


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
async def test_sessions_share_the_slots(model: Path, dialect: str) -> None:
    """Five sessions on two slots: every answer is whole and in its log, and never more than two come in."""
    most = 0
    async with fleet(model) as (llm, gate, store):
        agent = chat(llm, dialect)
        servers = [await SessionServer.start(store, agent, gate=gate) for _ in range(5)]

        async def watch() -> None:
            nonlocal most
            async with aiohttp.ClientSession() as client:
                while True:
                    slots = await reading(client, f"{llm}/slots")
                    most = max(most, sum(slot["is_processing"] for slot in slots))

        watching = asyncio.create_task(watch())
        results = await asyncio.gather(*(one.execute_run({"prompt": "tell me"}) for one in servers))
        watching.cancel()
        await asyncio.wait([watching])
        for server, result in zip(servers, results, strict=True):
            assert result.output["stop_reason"] == "length"
            assert result.token_usage["output_tokens"] == TOKENS
            assert result.token_usage["input_tokens"] > 0
            events = await store.get_events(server.session_id, run_id=result.run_id)
            streamed = [event.data["content"] for event in events if event.type == "message_streamed"]
            assert "".join(streamed) == result.output["content"] != ""
            assert 0 < len(streamed) < TOKENS
            assert [event.type for event in events][-2:] == ["turn_completed", "run_completed"]
            await server.close()
        assert 0 < most <= SLOTS
        assert gate.reading("llm").used == 0


async def test_a_cancelled_run_frees_the_slot_at_once(model: Path) -> None:
    """In the LLM server as well, in the middle of what would have been a long answer."""
    async with fleet(model) as (llm, gate, store), aiohttp.ClientSession() as client:
        server = await SessionServer.start(store, chat(llm, tokens=900), gate=gate)
        run_id = await server.submit_run({"prompt": "tell me"})

        async def streams() -> bool:
            events = await store.get_events(server.session_id, types=["message_streamed"])
            return len(events) > 2

        async def idle() -> bool:
            return not any(slot["is_processing"] for slot in await reading(client, f"{llm}/slots"))

        await until(streams, "some of the answer in the log")
        await server.cancel_run(run_id)
        took = await until(idle, "no slot busy", within=0.5, every=0.005)
        print(f"idle {took:.3f} s after the cancel")
        with pytest.raises(RunCancelled):
            await server.await_run(run_id)
        assert gate.reading("llm").used == 0
        await server.close()
