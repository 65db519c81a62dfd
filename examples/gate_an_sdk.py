"""Gate an SDK: eight prompts at once, at most three of them in flight at the provider.

A 429 pauses everyone who shares the gate, and the refused call waits again off its slot, in its old place.

    OPENAI_API_KEY=... python examples/gate_an_sdk.py

`OPENAI_BASE_URL` and `OPENAI_MODEL` choose another provider and model.
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress

from openai import AsyncOpenAI, RateLimitError

from interlock import ProviderGate

MODEL = os.environ.get("OPENAI_MODEL", "gpt-5")


def retry_after(error: RateLimitError) -> float | None:
    """The seconds that the provider asks for; None if it does not say."""
    with suppress(ValueError):
        return float(error.response.headers.get("retry-after", ""))
    return None


async def ask(gate: ProviderGate, client: AsyncOpenAI, number: int) -> None:
    began = time.time()
    while True:
        async with gate.acquire("openai", f"prompt-{number}", prompt_started_at=began) as permit:
            try:
                reply = await client.chat.completions.create(
                    model=MODEL, messages=[{"role": "user", "content": f"Say the number {number}."}]
                )
            except RateLimitError as error:
                if error.code == "insufficient_quota":
                    raise  # waiting does not help
                gate.report_rate_limit("openai", retry_after(error), permit=permit)
                continue
        waited = max(0.0, permit.granted_at - began)
        print(f"prompt {number} waited {waited:.2f} s: {reply.choices[0].message.content}")
        return


async def main() -> None:
    async with ProviderGate() as gate, AsyncOpenAI(max_retries=0) as client:
        await gate.set_limit("openai", 3)
        async with asyncio.TaskGroup() as prompts:
            for number in range(8):
                prompts.create_task(ask(gate, client, number))
        status = gate.status("openai")
        assert status is not None
        print(f"limit {status.limit} of {status.configured_limit}; {status.notice or 'never refused'}")


asyncio.run(main())
