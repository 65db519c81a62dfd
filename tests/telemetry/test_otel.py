"""OpenTelemetry, through real calls and real runs: spans, where they belong, numbers, and no secrets."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry import metrics, trace
from opentelemetry.trace import SpanKind, StatusCode

from gateways import OK, answer, call, chat, gateway, until, upstream
from interlock import LocalAdmission, ProviderGate, RemoteAdmission, RunFailed, SessionServer
from interlock.errors import AcquireTimeout
from interlock.http.gateway.call import GatewayProvider
from interlock.session.context import RunContext
from interlock.stores.memory import MemoryStore
from interlock.telemetry.otel import instrument
from processes import serve
from served_sessions import serving
from spans import Sdk, hexed, parent, said

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01".encode()


@pytest.fixture
def sdk() -> Iterator[Sdk]:
    made = Sdk()
    yield made
    made.tracers.shutdown()
    made.meters.shutdown()


async def test_a_gateway_call_that_waited(sdk: Sdk) -> None:
    """The caller's trace goes on: its call has the wait and the provider's call below it, and the provider
    is sent the latter as its parent. Everything else is sent as it came."""
    async with upstream() as provider, gateway(provider.url, limit=1) as served:
        served.app.tracing = instrument(served.admission, **sdk.providers)
        first = asyncio.create_task(call(served.url, body=chat("first")))
        exchange = await provider.next()
        headers = [
            (b"X-Interlock-Conversation", b"conv-1"),
            (b"TraceParent", TRACEPARENT),
            (b"tracestate", b"vendor=1"),
            (b"X-Mine", b"kept"),
        ]
        second = asyncio.create_task(call(served.url, headers=headers, body=chat("second")))
        await served.waits(1)
        gauges = {name: points for name, points in sdk.points().items() if name.startswith("interlock.limit")}
        exchange.write(OK)
        sent = await provider.next()
        sent.write(OK)
        assert [(await one).status for one in (first, second)] == [200, 200]
        await served.idle()

    served_call = sdk.spans("POST /gateway/{provider}/{path}")[1]
    (wait,) = sdk.spans("interlock.wait")
    client = sdk.spans("chat m")[1]
    assert (served_call.kind, wait.kind, client.kind) == (
        SpanKind.SERVER,
        SpanKind.INTERNAL,
        SpanKind.CLIENT,
    )
    assert parent(served_call) == PARENT
    assert parent(wait) == parent(client) == hexed(served_call)
    assert sent.header(b"traceparent") == f"00-{TRACE}-{hexed(client)}-01".encode()
    assert sent.header(b"tracestate") == b"vendor=1"
    names = [name.lower() for name, _ in sent.headers]
    assert names.count(b"traceparent") == 1
    assert sent.header(b"x-mine") == b"kept"
    assert sent.body == chat("second")

    waited = said(wait)
    assert waited.pop("interlock.wait.seconds") > 0
    assert waited == {
        "interlock.provider": "p",
        "interlock.limits": ("global", "provider:p", "streams"),
        "interlock.wait.outcome": "granted",
        "interlock.wait.position": 0,
        "interlock.priority": 0,
        "interlock.owner": "conv-1",
    }
    host, _, port = provider.url.removeprefix("http://").partition(":")
    assert said(client) == {
        "gen_ai.provider.name": "p",
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "m",
        "gen_ai.conversation.id": "conv-1",
        "server.address": host,
        "server.port": int(port),
        "interlock.attempt": 0,
        "http.response.status_code": 200,
    }
    assert said(served_call)["interlock.outcome"] == "answered"
    assert {
        name: {point.attributes["interlock.limit.name"]: point.value for point in points}["provider:p"]
        for name, points in gauges.items()
    } == {
        "interlock.limit.capacity": 1,
        "interlock.limit.in_use": 1,
        "interlock.limit.cooling": 0,
        "interlock.limit.waiting": 1,
    }
    (duration,) = sdk.points()["gen_ai.client.operation.duration"]
    assert (duration.count, duration.attributes["gen_ai.request.model"]) == (2, "m")
    waits = sdk.points()["interlock.wait.duration"]
    assert {point.attributes["interlock.limit.name"]: point.count for point in waits} == {
        "provider:p": 1,
        "streams": 1,
        "global": 1,
    }


async def test_every_attempt_has_its_span_and_none_has_a_secret(sdk: Sdk) -> None:
    """A 429 that says the key back, then an error that does; the canary is in everything else as well."""
    canary = "sk-canary-0123456789"
    body = b'{"error": {"message": "slow down, %b"}}' % canary.encode()
    async with upstream() as provider:
        known = GatewayProvider("p", provider.url, api_key=canary)
        async with gateway(known, limit=2) as served:
            served.app.tracing = instrument(served.admission, **sdk.providers)
            provider.will_answer(
                answer(429, body, (b"retry-after-ms", b"1")), answer(500, body), answer(200, body)
            )
            target = f"/gateway/p/v1/{canary}/chat/completions?key={canary}"
            headers = [(b"authorization", f"Bearer {canary}".encode()), (b"x-api-key", canary.encode())]
            first = await call(served.url, "POST", target, headers, chat(canary))
            assert first.status == 500
            odd = await call(served.url, "POST", "/gateway/p/v1/else", headers, b"{}")
            assert odd.status == 200
            nobody = await call(served.url, "POST", f"/gateway/{canary}/v1/chat", headers, b"{}")
            assert nobody.status == 404
            await served.idle()
    attempts = sdk.spans("chat m")
    assert [said(one)["interlock.attempt"] for one in attempts] == [0, 1]
    assert [said(one)["error.type"] for one in attempts] == ["429", "500"]
    assert {one.status.status_code for one in attempts} == {StatusCode.ERROR}
    assert "gen_ai.operation.name" not in said(sdk.spans("call")[0])
    outcomes = [said(one)["interlock.outcome"] for one in sdk.spans("POST /gateway/{provider}/{path}")]
    assert outcomes == ["upstream_error", "answered", "refused"]
    exported = "".join(span.to_json() for span in sdk.exporter.get_finished_spans())
    assert canary not in exported
    assert canary not in repr(sdk.points())


async def test_who_leaves_or_is_cut_off_ends_its_spans(sdk: Sdk) -> None:
    """Each attempt says what broke it, once."""
    async with upstream() as provider, gateway(provider.url) as served:
        served.app.tracing = instrument(served.admission, **sdk.providers)
        left = asyncio.create_task(call(served.url, body=chat()))
        exchange = await provider.next()
        left.cancel()
        async with asyncio.timeout(5):
            await exchange.left.wait()
        await until(lambda: not served.app.calls)
        torn = asyncio.create_task(call(served.url, body=chat()))
        exchange = await provider.next()
        exchange.write(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{")
        exchange.reset()
        with pytest.raises(asyncio.IncompleteReadError):
            await torn
        await served.idle()
    assert [said(one)["error.type"] for one in sdk.spans("chat m")] == ["cancelled", "reset"]
    calls = sdk.spans("POST /gateway/{provider}/{path}")
    assert [said(one)["interlock.outcome"] for one in calls] == ["left", "torn"]


async def test_without_spans_the_callers_context_passes_as_it_came() -> None:
    """The API alone, with nobody behind it: what a later version of the header says is kept, too."""
    later = b"01-" + TRACEPARENT[3:] + b"-more"
    async with upstream() as provider, gateway(provider.url) as served:
        served.app.tracing = instrument(
            served.admission,
            tracer_provider=trace.NoOpTracerProvider(),
            meter_provider=metrics.NoOpMeterProvider(),
        )
        provider.will_answer(OK)
        await call(served.url, headers=[(b"TraceParent", later)], body=chat())
        exchange = await provider.next()
        assert [value for name, value in exchange.headers if name.lower() == b"traceparent"] == [later]


async def test_a_run_is_a_trace_with_what_it_waited_for(sdk: Sdk) -> None:
    """In process: a span for each run, and below it the wait of its gate; an error is its code alone."""
    admission = LocalAdmission()
    gate = ProviderGate(admission=admission, default_cooldown=0)
    await gate.set_limit("p", 1)
    store = MemoryStore()
    for _ in range(2):  # the second does nothing
        instrument(admission, store, **sdk.providers)
    taken = await gate.acquire("p", "other")

    async def agent(run: RunContext) -> None:
        assert run.gate is not None
        if run.input == {"wait": "no"}:
            raise ValueError("canary-words")
        async with run.gate.acquire("p"):
            pass

    server = await SessionServer.start(store, agent, session_id="s", gate=gate)
    with sdk.tracers.get_tracer("test").start_as_current_span("who submits"):
        waits = await server.submit_run({"wait": "yes"})
        await until(lambda: gate.reading("p").waiting)
    taken.release()
    await server.await_run(waits, timeout=5)
    with pytest.raises(RunFailed):
        await server.execute_run({"wait": "no"}, timeout=5)
    await server.close()
    with pytest.raises(AcquireTimeout):
        async with gate.acquire("p"):
            await gate.acquire("p", timeout=0.001)
    await gate.aclose()

    done, failed = sdk.spans("interlock.run")
    (submitting,) = sdk.spans("who submits")
    assert [f"{link.context.span_id:016x}" for link in done.links] == [hexed(submitting)]
    assert not failed.links
    waited, late = sdk.spans("interlock.wait")
    assert parent(done) is None
    assert parent(waited) == hexed(done)
    assert said(done) | {"interlock.wait.seconds": 0} == {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.conversation.id": "s",
        "interlock.run.id": waits,
        "interlock.run.attempt": 1,
        "interlock.run.status": "completed",
        "interlock.wait.seconds": 0,
        "interlock.priority": 0,
    }
    assert (said(failed)["interlock.run.status"], said(failed)["error.type"]) == ("failed", "internal_error")
    assert said(waited)["interlock.owner"] == waits
    assert (said(late)["interlock.wait.outcome"], said(late)["error.type"]) == ("timeout", "timeout")
    assert "canary-words" not in "".join(span.to_json() for span in sdk.exporter.get_finished_spans())
    assert len(sdk.points()["interlock.wait.duration"]) == 1


async def test_requests_of_the_control_plane_are_in_their_callers_trace(sdk: Sdk) -> None:
    """A run is linked to it; the wait for a permit is below it. One request has nothing of the other's."""
    headers = [(b"content-type", b"application/json"), (b"TraceParent", TRACEPARENT)]
    async with serving() as served:
        admission = served.desk.admission
        served.gateway.tracing = instrument(admission, served.store, **sdk.providers)
        admission.configure("tools", 1)
        taken = await admission.acquire("tools")
        await served.session()
        run = await served.post("/sessions/s1/runs", {"input": {}}, *headers[1:])
        other = await served.submit("hi")
        for run_id in (run.json["runId"], other):
            await served.ended(run_id)
        ask = b'{"limits": ["tools"], "timeoutMs": 5000}'
        asking = asyncio.create_task(call(served.url, "POST", "/permits", headers, ask))
        await until(lambda: admission.waiting())
        taken.release()
        assert (await asking).status == 201
    linked, alone = sdk.spans("interlock.run")
    assert [f"{link.context.span_id:016x}" for link in linked.links] == [PARENT]
    assert (parent(linked), alone.links, parent(alone)) == (None, (), None)
    (wait,) = sdk.spans("interlock.wait")
    assert parent(wait) == PARENT


async def test_waits_at_a_server_have_spans_where_they_are_awaited(sdk: Sdk, tmp_path: Path) -> None:
    """What the server grants at once is no wait; its place in line is not known here."""
    config = 'store = "memory:"\n[limits]\ntools = 1\n'
    async with serve(tmp_path, config) as server:
        admission = RemoteAdmission(server.url)
        instrument(admission, **sdk.providers)
        with sdk.tracers.get_tracer("test").start_as_current_span("caller") as caller:
            first = await admission.acquire("tools")
            queued = asyncio.Event()

            async def second() -> None:
                (await admission.acquire("tools", owner="ben", on_queued=queued.set)).release()

            waiting = asyncio.create_task(second())
            async with asyncio.timeout(5):
                await queued.wait()
                first.release()
                await waiting
        await admission.aclose()
    (wait,) = sdk.spans("interlock.wait")
    assert parent(wait) == f"{caller.get_span_context().span_id:016x}"
    waited = said(wait)
    assert waited.pop("interlock.wait.seconds") > 0
    assert waited == {
        "interlock.limits": ("tools",),
        "interlock.wait.outcome": "granted",
        "interlock.priority": 0,
        "interlock.owner": "ben",
    }


async def test_nothing_is_imported_where_nobody_set_it_up(tmp_path: Path) -> None:
    """A fleet in a process without an SDK is not traced; with one, it is, by being opened."""
    code = (
        "import asyncio, sys\n"
        "{}\n"
        "from interlock import Interlock\n"
        "from interlock.config import Config\n"
        "async def main():\n"
        "    async with Interlock(Config(store='memory:')) as fleet:\n"
        "        print(fleet.telemetry is not None, 'opentelemetry' in sys.modules)\n"
        "asyncio.run(main())\n"
    )
    sets_up = (
        "from opentelemetry import trace; from opentelemetry.sdk.trace import TracerProvider; "
        "trace.set_tracer_provider(TracerProvider())"
    )
    assert await python(code.format(""), tmp_path) == "False False\n"
    assert await python(code.format("import opentelemetry.trace"), tmp_path) == "False True\n"
    assert await python(code.format(sets_up), tmp_path) == "True True\n"


async def test_a_server_is_traced_when_its_process_was_set_up(tmp_path: Path) -> None:
    """As `opentelemetry-instrument` does it: by a module that the interpreter loads before anything else."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "from opentelemetry import trace\n"
        "from opentelemetry.sdk.trace import TracerProvider\n"
        "from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor\n"
        "shown = ConsoleSpanExporter(out=sys.stderr, formatter=lambda span: span.name + chr(10))\n"
        "trace.set_tracer_provider(TracerProvider())\n"
        "trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(shown))\n"
    )
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    async with upstream() as provider:
        config = f'store = "memory:"\n[providers.p]\nbase_url = "{provider.url}"\n'
        async with serve(tmp_path, config, {"PYTHONPATH": path}) as server:
            provider.will_answer(OK)
            assert (await call(server.url, body=chat())).status == 200
            await until(lambda: "POST /gateway" in server.stderr())
            assert server.stderr() == "chat m\nPOST /gateway/{provider}/{path}\n"


async def python(code: str, cwd: Path) -> str:
    """What *code* prints, in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", "-c", code, cwd=cwd, stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(30):
        printed, _ = await process.communicate()
    return printed.decode()
