"""Gate SDK calls in process: eight prompts at once, at most three of them in flight, and no line about it.

The gate is inside of the client: calls wait in their order, hold a slot until their answer is read, and are
asked again off the slot after a 429.

    OPENAI_API_KEY=... python examples/gate_in_process.py

`OPENAI_BASE_URL` and `OPENAI_MODEL` choose another provider and model.
"""

from __future__ import annotations

import asyncio
import os

import httpx2
from openai import AsyncOpenAI

from interlock import InterlockTransport, ProviderGate

MODEL = os.environ.get("OPENAI_MODEL", "gpt-5")


async def ask(client: AsyncOpenAI, number: int) -> None:
    stream = await client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": f"Say the number {number}."}], stream=True
    )
    pieces = [event.choices[0].delta.content or "" async for event in stream if event.choices]
    print(f"prompt {number}: {''.join(pieces)}")


async def main() -> None:
    async with ProviderGate() as gate:
        await gate.set_limit("openai", 3)
        http = httpx2.AsyncClient(transport=InterlockTransport(gate, "openai"))
        async with AsyncOpenAI(http_client=http, max_retries=0) as client, asyncio.TaskGroup() as prompts:
            for number in range(8):
                prompts.create_task(ask(client, number))
        status = gate.status("openai")
        assert status is not None
        print(f"limit {status.limit} of {status.configured_limit}; {status.notice or 'never refused'}")


asyncio.run(main())
