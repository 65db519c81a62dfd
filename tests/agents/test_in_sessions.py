"""The agents in real sessions, over a real store: what the server asks of them, they do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agents.chats import mock
from agents.test_command import speaker, state
from agents.test_process import children, group_lives, until
from interlock.agents import ChatAgent
from interlock.errors import RunCancelled, RunFailed, RunInterrupted, RunTimedOut
from interlock.session.server import SessionServer
from interlock.stores import open_store


@asynccontextmanager
async def session(tmp_path: Path, agent: Any, **options: Any) -> AsyncIterator[SessionServer]:
    store = await open_store(f"sqlite:///{tmp_path / 'interlock.db'}")
    server = await SessionServer.start(store, agent, **options)
    try:
        yield server
    finally:
        await server.close()
        await store.aclose()


async def said(server: SessionServer, *types: str) -> list[dict[str, Any]]:
    found = await server.store.get_events(server.session_id, types=types)
    return [dict(event.data) for event in found]


async def processes(server: SessionServer) -> int:
    """The group of a run that is to "do: children", once it has said who it is."""
    async with asyncio.timeout(20):
        while not (found := await said(server, "turn_completed")):  # noqa: ASYNC110 - another process says it
            await asyncio.sleep(0.01)
    return int(found[0]["pid"])


async def test_a_command_in_a_session(tmp_path: Path) -> None:
    async with session(tmp_path, speaker()) as server:
        lines = ['{"usage": {"input_tokens": 3}}\n', "hello\n", '{"output": {"a": 1}}\n']
        result = await server.execute_run({"do": "lines", "lines": lines})
        assert (result.output, result.token_usage) == ({"a": 1}, {"input_tokens": 3})
        assert await said(server, "message_streamed") == [{"content": "hello\n"}]
        with pytest.raises(RunFailed, match=r"exit status 3.*\n.*I am leaving") as failed:
            await server.execute_run({"do": "fail", "status": 3})
        assert failed.value.code == "command_failed"


@pytest.mark.parametrize("how", ["cancel", "interrupt", "timeout", "close"])
async def test_however_a_run_is_ended_its_processes_are(tmp_path: Path, how: str) -> None:
    async with session(tmp_path, speaker(grace=0.2)) as server:
        timeout = 1.0 if how == "timeout" else None
        run_id = await server.submit_run({"do": "children", "children": ["plain", "deaf"]}, timeout=timeout)
        pid = await processes(server)
        if how == "close":
            await server.close(timeout=0.1)
            run = await server.store.get_run(run_id)
            assert run.status == "interrupted"
        else:
            if how == "cancel":
                await server.cancel_run(run_id)
            elif how == "interrupt":
                await server.interrupt_run(run_id)
            errors = {"cancel": RunCancelled, "interrupt": RunInterrupted, "timeout": RunTimedOut}
            with pytest.raises(errors[how]):
                await server.await_run(run_id)
        await until(lambda: not group_lives(pid))


async def test_a_paused_command_stands_still(tmp_path: Path) -> None:
    before = children()
    async with session(tmp_path, speaker(grace=0.2)) as server:
        run_id = await server.submit_run({"do": "tick"})
        await until(lambda: children() - before)
        (pid,) = children() - before
        await server.pause_run(run_id)
        await until(lambda: state(pid) == "T")
        seen = await said(server, "message_streamed")
        await server.resume_run(run_id)
        await until(lambda: state(pid) != "T")
        async with asyncio.timeout(20):
            while len(await said(server, "message_streamed")) <= len(seen) + 2:  # noqa: ASYNC110 - see above
                await asyncio.sleep(0.01)
        await server.cancel_run(run_id)


async def test_a_chat_in_a_session(tmp_path: Path) -> None:
    async with mock() as scene:
        parts = {"gate": scene.gate, "governor": scene.governor}
        async with session(tmp_path, scene.agent(tools=[echo]), **parts) as server:
            result = await server.execute_run({"prompt": "use 2 tools"})
            streamed = await said(server, "message_streamed")
            assert "".join(one["content"] for one in streamed) == result.output["content"]
            assert result.token_usage["input_tokens"] == 60
            assert len(await said(server, "tool_call_completed")) == 2
            scene.provider.cue("status", status=401, body={"error": {"message": "who are you?"}})
            with pytest.raises(RunFailed, match="p answered 401: who are you") as failed:
                await server.execute_run({"prompt": "hello"})
            assert failed.value.code == "provider_error"


def echo(path: str) -> str:
    return path


async def test_a_chat_is_cancelled_and_paused_by_its_session(tmp_path: Path) -> None:
    async with mock(latency=0.3) as scene:
        agent: ChatAgent = scene.agent()
        async with session(tmp_path, agent, gate=scene.gate) as server:
            run_id = await server.submit_run({"prompt": "hello"})
            await until(lambda: scene.used == 1)
            await server.pause_run(run_id)
            await until(lambda: scene.used == 0)
            assert await said(server, "message_received") == []
            await server.resume_run(run_id)
            assert (await server.await_run(run_id)).output["stop_reason"] == "stop"
            run_id = await server.submit_run({"prompt": "hello"})
            await until(lambda: scene.used == 1)
            await server.cancel_run(run_id)
            with pytest.raises(RunCancelled):
                await server.await_run(run_id)
            assert scene.used == 0
