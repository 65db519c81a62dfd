"""``interlock mock-provider``: something to rehearse against."""

from __future__ import annotations

import asyncio
import json
import signal

from interlock.cli.output import Json
from interlock.config import parse_duration
from interlock.errors import InterlockError, ValidationError
from interlock.testing.provider import MockProvider, running


async def mock_provider(
    *,
    port: int = 7500,
    limit: int = 4,
    hard_cap: int | None = None,
    lag: str = "300ms",
    latency: str = "800ms",
    penalty: str = "2s",
    seed: int = 0,
    as_json: Json = False,
) -> None:
    """Run a provider that counts late and punishes overshoot.

    Example: interlock mock-provider --port 7500 --limit 4 --hard-cap 5 --lag 300ms --latency 800ms

    Args:
        port: where it listens on 127.0.0.1; 0 takes any free one.
        limit: how many calls it says that it allows at once.
        hard_cap: above this it answers 429 (default: limit + 1).
        lag: for how long, at most, an ended call still counts.
        latency: how long an answer takes.
        penalty: for how long a refusal slows the account down.
        seed: of everything random.
        as_json: print where it listens, and what it allows, as JSON.
    """
    if limit < 1 or (hard_cap is not None and hard_cap < limit):
        raise ValidationError(f"limit is {limit} and hard-cap {hard_cap}; allowed are 1 <= limit <= hard-cap")
    if not 0 <= port <= 65535:
        raise ValidationError(f"port is {port}; allowed are 0 to 65535, 0 for any free one")
    provider = MockProvider(
        limit=limit,
        hard_cap=hard_cap,
        lag=parse_duration(lag),
        latency=parse_duration(latency),
        penalty=parse_duration(penalty),
        seed=seed,
    )
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    try:
        async with running(provider, port) as base:
            hard_cap = provider.account.hard_cap
            if as_json:
                print(json.dumps({"url": base, "limit": limit, "hardCap": hard_cap}), flush=True)
            else:
                print(f"mock provider: {limit} at once, 429 above {hard_cap}\n")
                print(f"  export OPENAI_BASE_URL={base}/v1")
                print(f"  export ANTHROPIC_BASE_URL={base}\n")
                print(f"  {base}/usage  {base}/stats", flush=True)
            await stopped.wait()
    except OSError as error:
        raise InterlockError(f"cannot listen on 127.0.0.1:{port}: {error.strerror}") from None
