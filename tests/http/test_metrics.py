"""`GET /metrics` of the whole application: its answer, and every way for a call or a run to end."""

from __future__ import annotations

import asyncio

import pytest

from expositions import Exposition, parse
from gateways import EVENTS, LAST, OK, Served, answer, call, caller, chat, event, gateway, until, upstream
from interlock.stores.memory import MemoryStore
from interlock.telemetry.prometheus import METRICS, OUTCOMES
from served_sessions import serving

CHAT = "/gateway/p/v1/chat/completions"


async def scrape(url: str) -> Exposition:
    got = await call(url, "GET", "/metrics")
    assert got.status == 200
    return parse(got.body.decode())


async def outcomes(served: Served, provider: str = "p") -> dict[str, float]:
    """How often calls to *provider* ended how, without the zeros; once none is under way."""
    await until(lambda: not served.app.calls)
    said = await scrape(served.url)
    name = "interlock_gateway_requests_total"
    numbers = {one: said.value(name, provider=provider, outcome=one) for one in OUTCOMES}
    return {one: number for one, number in numbers.items() if number}


async def test_it_is_the_text_format_whatever_is_asked_for() -> None:
    async with gateway() as served:
        for accept in (b"*/*", b"application/openmetrics-text;version=1.0.0", b"application/json"):
            got = await call(served.url, "GET", "/metrics", [(b"accept", accept)])
            assert got.status == 200
            assert got.header(b"content-type") == b"text/plain; version=0.0.4; charset=utf-8"
            assert list(parse(got.body.decode())) == [metric.name for metric in METRICS]


async def test_it_is_no_more_open_than_the_rest() -> None:
    async with gateway(token="the-token") as served:
        assert (await call(served.url, "GET", "/metrics")).status == 401
        bearer = [(b"authorization", b"Bearer the-token")]
        assert (await call(served.url, "GET", "/metrics", bearer)).status == 200
        assert (await call(served.url, "POST", "/metrics", bearer)).status == 405


@pytest.mark.parametrize(
    ("said", "outcome"),
    [
        (OK, "answered"),
        (EVENTS + event({"n": 1}) + LAST, "answered"),
        (answer(404, b"x" * 100_000), "upstream_error"),
        (answer(429, b'{"error": {"code": "insufficient_quota"}}'), "upstream_error"),
        (b"SSH-2.0\r\n\r\n", "upstream_failed"),
    ],
)
async def test_a_call_ends_as_its_provider_answers(said: bytes, outcome: str) -> None:
    async with upstream() as provider, gateway(provider.url) as served:
        provider.will_answer(said)
        await call(served.url, body=chat())
        assert await outcomes(served) == {outcome: 1}


async def test_an_answer_that_breaks_off_is_torn_or_a_failure() -> None:
    """A body is cut for the client as well; a stream of events ends with one that says so."""
    async with upstream() as provider, gateway(provider.url) as served:
        for head in (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{", EVENTS + event({"n": 1})):
            async with caller(served.url) as client:
                client.ask(body=chat(stream=True))
                exchange = await provider.next()
                exchange.write(head)
                await client.head()
                exchange.reset()
                await exchange.left.wait()
                await until(lambda: not served.app.calls)
        assert await outcomes(served) == {"torn": 1, "upstream_failed": 1}


async def test_a_client_that_leaves_is_told_apart() -> None:
    async with upstream() as provider, gateway(provider.url) as served:
        async with caller(served.url) as client:
            client.ask(body=chat())
            exchange = await provider.next()
            client.leave()
            await exchange.left.wait()
        assert await outcomes(served) == {"left": 1}


async def test_what_we_refuse_is_refused_and_a_wait_is_a_wait() -> None:
    async with upstream() as provider, gateway(provider.url, limit=1) as served:
        async with caller(served.url) as client:
            client.ask(body=chat())
            exchange = await provider.next()
            late = await call(served.url, headers=[(b"x-interlock-timeout-ms", b"20")], body=chat())
            assert late.status == 504
            exchange.write(OK)
            await client.answer()
        await call(served.url, target="/gateway/nobody/v1/x", body=chat())
        assert await outcomes(served) == {"refused": 1, "answered": 1}
        assert await outcomes(served, "unknown") == {"refused": 1}
        said = await scrape(served.url)
        assert said.value("interlock_wait_seconds_count", limit="provider:p") == 1
        assert 0.01 < said.value("interlock_wait_seconds_sum", limit="provider:p") < 5
        assert said.value("interlock_wait_seconds_count", limit="streams") == 1


async def test_every_429_is_counted_also_those_that_are_tried_again() -> None:
    refusal = answer(429, b'{"error": {"code": "rate_limit_exceeded"}}', (b"retry-after-ms", b"20"))
    async with upstream() as provider, gateway(provider.url) as served:
        provider.will_answer(refusal, refusal, OK)
        assert (await call(served.url, body=chat())).status == 200
        assert await outcomes(served) == {"answered": 1}
        said = await scrape(served.url)
        assert said.value("interlock_refusals_total", provider="p", reason="rate") == 2


async def test_a_stream_that_was_kept_alive_by_pings_ends_as_what_follows() -> None:
    async with upstream() as provider, gateway(provider.url, limit=1, ping_after=0.01) as served:
        async with caller(served.url) as first, caller(served.url) as second:
            first.ask(body=chat())
            exchange = await provider.next()
            second.ask(body=chat(stream=True))
            await second.head()  # pings have begun
            exchange.write(OK)
            await first.answer()
            (await provider.next()).write(answer(400))
            await second.body()
        assert await outcomes(served) == {"answered": 1, "upstream_error": 1}


async def test_runs_count_by_how_they_ended() -> None:
    """Also one that was cancelled before it started: twice cancelled, once ended."""
    async with serving() as served:
        await served.session(maxConcurrentRuns=1)
        for asked in ("hello", {"do": "fail"}):
            await served.ended(await served.submit(asked))
        held = await served.submit()
        queued = await served.submit()
        await served.started(held)
        for run_id in (queued, queued):
            await served.post(f"/runs/{run_id}/cancel")
        said = await scrape(served.url)
        assert said.value("interlock_runs_started_total") == 3
        assert said.by("interlock_runs_ended_total", "status") == {
            "cancelled": 1,
            "completed": 1,
            "failed": 1,
            "interrupted": 0,
            "timeout": 0,
        }
        assert said.value("interlock_sessions_running") == 1
        await served.post(f"/runs/{held}/interrupt")
        await served.ended(held)
        await served.sessions.close("s1")
        said = await scrape(served.url)
        assert said.by("interlock_runs_ended_total", "status")["interrupted"] == 1
        assert said.value("interlock_sessions_running") == 0


async def test_servers_of_different_stores_count_for_themselves() -> None:
    async with serving(MemoryStore()) as one, serving(MemoryStore()) as other:
        await one.session()
        await one.ended(await one.submit("hello"))
        assert (await scrape(one.url)).value("interlock_runs_started_total") == 1
        assert (await scrape(other.url)).value("interlock_runs_started_total") == 0


async def test_counters_only_grow_while_calls_run() -> None:
    """Scraped again and again under load: nothing that only grows ever falls, and every rule holds."""
    async with upstream() as provider, gateway(provider.url, limit=2) as served:
        provider.will_answer(*([OK, answer(500), answer(429, b"", (b"retry-after-ms", b"1")), OK] * 10))
        calls = [asyncio.create_task(call(served.url, body=chat())) for _ in range(30)]
        before: dict[object, float] = {}
        while not all(one.done() for one in calls):
            said = await scrape(served.url)
            now = {
                key: value
                for family in said.values_of("counter", "histogram")
                for key, value in family.items()
            }
            assert [key for key, value in before.items() if now[key] < value] == []
            before = now
            assert said.value("interlock_invariant_violations_total") == 0
            assert said.value("interlock_limit_in_use", limit="provider:p") <= 2
        assert sum((await outcomes(served)).values()) == 30
