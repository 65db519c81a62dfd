"""A fleet of agents on the official SDKs: turns of several calls each, with tools, over both dialects."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Turn = Callable[[str], Awaitable[int]]

_OPENAI_TOOL = {
    "type": "function",
    "function": {"name": "read", "parameters": {"type": "object", "properties": {}}},
}
_ANTHROPIC_TOOL = {"name": "read", "input_schema": {"type": "object", "properties": {}}}


@dataclass(slots=True)
class FleetResult:
    """What a fleet went through. Seconds."""

    turns: list[float] = field(default_factory=list)
    calls: int = 0
    failed: int = 0
    elapsed: float = 0.0

    def turn_mean(self) -> float:
        return sum(self.turns) / len(self.turns) if self.turns else 0.0

    def turn_p99(self) -> float:
        ordered = sorted(self.turns)
        return ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))] if ordered else 0.0


class Fleet:
    """*agents* agents, every other one on the other SDK, each doing *turns* turns of one to three calls."""

    def __init__(self, openai_url: str, anthropic_url: str, *, agents: int, turns: int, seed: int) -> None:
        self._urls = openai_url, anthropic_url
        self._agents = agents
        self._turns = turns
        self._seed = seed
        self.result = FleetResult()

    @property
    def turns_in_all(self) -> int:
        return self._agents * self._turns

    async def run(self) -> FleetResult:
        """Let all agents finish. Needs the `openai` and `anthropic` packages."""
        from anthropic import AsyncAnthropic
        from openai import AsyncOpenAI

        began = time.monotonic()
        async with AsyncExitStack() as stack:
            openai = await stack.enter_async_context(AsyncOpenAI(base_url=self._urls[0], api_key="demo"))
            anthropic = await stack.enter_async_context(
                AsyncAnthropic(base_url=self._urls[1], api_key="demo")
            )
            ways: tuple[Turn, Turn] = (
                lambda prompt: self._openai_turn(openai, prompt),
                lambda prompt: self._anthropic_turn(anthropic, prompt),
            )
            async with asyncio.TaskGroup() as group:
                for agent in range(self._agents):
                    group.create_task(self._agent(agent, ways[agent % 2]))
        self.result.elapsed = time.monotonic() - began
        return self.result

    async def _agent(self, agent: int, turn: Turn) -> None:
        dice = Random(f"{self._seed}:{agent}")  # noqa: S311 - repeatable on purpose
        for number in range(self._turns):
            steps = dice.randrange(3)
            prompt = f"Agent {agent}, task {number}: use {steps} tools, then report."
            began = time.monotonic()
            try:
                self.result.calls += await turn(prompt)
            except Exception:
                self.result.failed += 1
            else:
                self.result.turns.append(time.monotonic() - began)

    async def _openai_turn(self, client: Any, prompt: str) -> int:
        messages: list[Any] = [{"role": "user", "content": prompt}]
        calls = 0
        while True:
            calls += 1
            answer = await client.chat.completions.create(
                model="mock", messages=messages, tools=[_OPENAI_TOOL]
            )
            message = answer.choices[0].message
            if not message.tool_calls:
                return calls
            messages.append(message.model_dump(exclude_none=True))
            messages.append(
                {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "as expected"}
            )

    async def _anthropic_turn(self, client: Any, prompt: str) -> int:
        messages: list[Any] = [{"role": "user", "content": prompt}]
        calls = 0
        while True:
            calls += 1
            async with client.messages.stream(
                model="mock", max_tokens=64, messages=messages, tools=[_ANTHROPIC_TOOL]
            ) as stream:
                answer = await stream.get_final_message()
            if answer.stop_reason != "tool_use":
                return calls
            result = {"type": "tool_result", "tool_use_id": answer.content[0].id, "content": "as expected"}
            blocks = [block.model_dump(exclude_none=True) for block in answer.content]
            messages.append({"role": "assistant", "content": blocks})
            messages.append({"role": "user", "content": [result]})
