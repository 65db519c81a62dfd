"""The engines of the storms do what they are told, seen by a client that knows nothing of Interlock."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as Disconnected
from redis.exceptions import NoScriptError
from redis.exceptions import TimeoutError as Unanswered

from e2e.engines import ValkeyEngine, valkey_engine

SCRIPT = "return redis.call('INCR', KEYS[1])"
FUNCTIONS = "#!lua name=there\nredis.register_function('here', function() return 'yes' end)"


def plain(engine: ValkeyEngine) -> Redis:
    return Redis.from_url(engine.url, socket_timeout=1, socket_connect_timeout=1, decode_responses=True)


async def test_a_valkey_forgets_what_it_is_made_to(tmp_path: Path) -> None:
    """Keys, scripts and functions when they are flushed, its clients, and everything when it is killed."""
    async with valkey_engine(tmp_path) as engine, plain(engine) as client:
        sha = await client.script_load(SCRIPT)
        await client.function_load(FUNCTIONS)
        assert await client.evalsha(sha, 1, "n") == 1
        await engine.forget_scripts()
        with pytest.raises(NoScriptError):
            await client.evalsha(sha, 1, "n")
        assert await client.function_list() == []
        assert await client.get("n") == "1"
        await engine.flush()
        assert await client.get("n") is None
        await client.set("n", 5)
        first = (await client.info("server"))["run_id"]
        connection = await client.client_id()
        await engine.hang_up()
        with suppress(Disconnected):
            await client.ping()
        assert await client.client_id() != connection
        await engine.kill()
        with pytest.raises(Disconnected):
            await client.get("n")
        await engine.start()
        assert await client.get("n") is None
        assert (await client.info("server"))["run_id"] != first


async def test_a_frozen_valkey_answers_when_it_wakes(tmp_path: Path) -> None:
    """Its connections stay; what was asked meanwhile is done late."""
    async with valkey_engine(tmp_path) as engine, plain(engine) as client:
        await client.set("n", 1)
        engine.freeze()
        with pytest.raises(Unanswered):
            await client.incr("n")
        engine.thaw()
        async with asyncio.timeout(5):
            while await client.get("n") != "2":  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_a_promoted_replica_misses_writes(tmp_path: Path) -> None:
    """It has what there was when it fell behind, and takes writes itself."""
    async with valkey_engine(tmp_path) as engine:
        async with plain(engine) as client:
            await client.set("kept", 1)
            await engine.fall_behind()
            await client.set("kept", 2)
            await client.set("missed", 1)
            first = engine.url
            await engine.fail_over()
            with pytest.raises(Disconnected):
                await client.get("kept")
        assert engine.url != first
        async with plain(engine) as client:
            assert await client.get("kept") == "1"
            assert await client.get("missed") is None
            assert await client.set("more", 1)
        await engine.kill()
        await engine.start()
        async with plain(engine) as client:
            assert await client.keys() == []
            second = engine.url
            await engine.lose_writes()
            assert engine.url != second
            await engine.fall_behind()
