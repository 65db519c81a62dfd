"""See in a trace what an agent waited for, and for how long.

Needs ``interlock[otel]`` and ``opentelemetry-sdk``. Here the spans are printed; with an exporter of your
tracing system they go there.
"""

from __future__ import annotations

import asyncio

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

from interlock import Interlock
from interlock.config import Config


def line(span: ReadableSpan) -> str:
    told = span.attributes or {}
    if span.name != "interlock.wait":
        return f"{span.name}\n"
    return (
        f"  {told['interlock.owner']} waited for {', '.join(told['interlock.limits'])}: "
        f"{told['interlock.wait.outcome']}, {told['interlock.wait.position']} ahead\n"
    )


async def main() -> None:
    # 1. Set up OpenTelemetry, before the fleet is opened.
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(formatter=line)))
    trace.set_tracer_provider(provider)
    tracer = trace.get_tracer("my agents")

    # 2. That is all: a fleet that is opened now is traced.
    async with Interlock(Config(store="memory:")) as fleet:
        await fleet.gate.set_limit("openai", 1)
        await fleet.gate.set_cooldown("openai", 0)

        async def agent(name: str) -> None:
            with tracer.start_as_current_span(f"{name} answers"):
                async with fleet.gate.acquire("openai", name):
                    await asyncio.sleep(0.01)  # the call to the provider

        async with asyncio.TaskGroup() as group:
            for name in ("ada", "ben", "cleo"):
                group.create_task(agent(name))


if __name__ == "__main__":
    asyncio.run(main())
