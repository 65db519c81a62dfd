"""Agents of the sessions that are killed: each says in its events which step of which attempt it is."""

from __future__ import annotations

import asyncio
from typing import Any


async def worker(run: Any) -> dict[str, Any]:
    """Write as many events as ``input`` has ``steps``, ``pause`` seconds apart; then end as ``does`` says."""
    for step in range(1, run.input["steps"] + 1):
        await run.checkpoint()
        await run.emit("message_streamed", {"content": f"{step}", "step": step, "attempt": run.attempt})
        await asyncio.sleep(run.input["pause"])
    if run.input["does"] == "fail":
        raise ValueError(run.input["key"])
    if run.input["does"] == "hang":
        await asyncio.sleep(3600)
    return {"steps": run.input["steps"], "attempt": run.attempt, "key": run.input["key"]}


worker.capabilities = {"pause"}  # type: ignore[attr-defined]
