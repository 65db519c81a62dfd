"""What the tests of chat agents share: a provider, a gate, and a run that uses both."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from agents.runs import Recorder
from gateways import Upstream, hosting, upstream
from interlock.admission.local import LocalAdmission
from interlock.agents import ChatAgent
from interlock.governor import ConcurrencyGovernor
from interlock.provider.gate import ProviderGate
from interlock.testing.provider import MockProvider

KEY = "sk-very-secret-0123456789"


class RunGate:
    """A gate as a run has it: asked in the name of that run."""

    def __init__(self, gate: ProviderGate) -> None:
        self._gate = gate

    def acquire(self, provider_id: str, **asked: Any) -> Any:
        return self._gate.acquire(provider_id, "r1", **asked)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._gate, name)


@dataclass
class Scene:
    """A provider behind a gate of limit 2."""

    url: str
    gate: ProviderGate
    governor: ConcurrencyGovernor
    provider: Any

    def agent(self, dialect: Any = "openai", **options: Any) -> ChatAgent:
        base = f"{self.url}/v1" if dialect == "openai" else self.url
        given = {"base_url": base, "api_key": KEY, "dialect": dialect, **options}
        return ChatAgent("p", "mock", **given)

    def run(self, given: Any = "hello", **options: Any) -> Recorder:
        given = {"prompt": given} if isinstance(given, str) else given
        return Recorder(given, **{"gate": RunGate(self.gate), "governor": self.governor, **options})

    @property
    def used(self) -> int:
        """Slots of the provider that are taken."""
        return self.gate.reading("p").used

    def idle(self) -> bool:
        """Nothing is held of anything, and nobody waits."""
        readings = self.gate.admission.limits().values()
        return not [one for one in readings if one.used or one.waiting]


@asynccontextmanager
async def scene(url: str, provider: Any = None, **options: Any) -> AsyncIterator[Scene]:
    """Fails unless all is given back in the end, and every task has ended."""
    before = asyncio.all_tasks()
    admission = LocalAdmission()
    async with ProviderGate(admission=admission, default_cooldown=0.0, **options) as gate:
        await gate.set_limit("p", 2)
        one = Scene(url, gate, ConcurrencyGovernor(admission=admission), provider)
        yield one
        assert one.idle(), admission.snapshot()
        assert [task for task in asyncio.all_tasks() - before if "agents" in repr(task.get_coro())] == []


@asynccontextmanager
async def mock(latency: float = 0.0, **options: Any) -> AsyncIterator[Scene]:
    """The mock provider."""
    provider = MockProvider(**{"lag": 0.0, "latency": latency, "limit": 8, **options})
    async with hosting(provider) as url, scene(url, provider) as one:
        yield one


@asynccontextmanager
async def scripted(*answers: bytes, **options: Any) -> AsyncIterator[tuple[Scene, Upstream]]:
    """A provider that says just these bytes."""
    async with upstream() as provider, scene(provider.url, provider, **options) as one:
        provider.will_answer(*answers)
        yield one, provider


def said(body: bytes, kind: str = "text/event-stream", status: str = "200 OK", *fields: str) -> bytes:
    """One answer as it goes over the wire, ended by the end of the connection's life."""
    lines = [f"HTTP/1.1 {status}", f"content-type: {kind}", f"content-length: {len(body)}", *fields, "", ""]
    return "\r\n".join(lines).encode() + body


def events(*values: Any) -> bytes:
    """An event stream; texts go as they are, everything else as JSON."""
    texts = [value if isinstance(value, str) else json.dumps(value) for value in values]
    return "".join(f"data: {text}\n\n" for text in texts).encode()


def delta(content: str | None = None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    """A chunk of a chat completion."""
    message = {**({} if content is None else {"content": content}), **more}
    return {"choices": [{"index": 0, "delta": message, "finish_reason": finish}]}
