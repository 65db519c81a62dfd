"""Sessions behind the real application on a real socket, worked on by an agent that does as it is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from gateways import Answer, Header, call, hosting, until
from interlock.admission.local import LocalAdmission
from interlock.clock import SystemClock
from interlock.config import ServerConfig
from interlock.http.app import create_app
from interlock.http.gateway.proxy import Gateway
from interlock.http.gateway.upstream import HttpUpstream
from interlock.http.permits.desk import PermitDesk
from interlock.limiter import ConcurrencyLimiter
from interlock.ports import Clock, Store
from interlock.provider.gate import ProviderGate
from interlock.session.sessions import Sessions
from interlock.stores.memory import MemoryStore

JSON: Header = (b"content-type", b"application/json")
HOLD = {"do": "hold"}
"""The input of a run that goes on until the test lets it end."""


class Worker:
    """An agent that can be paused; any other input than what follows is given back.

    ``{"do": "hold"}`` holds until `finish`, ``{"do": "fail"}`` raises, ``{"do": "count"}`` uses tokens.
    """

    capabilities = frozenset(("pause",))

    def __init__(self) -> None:
        self.started: list[str] = []
        self._held: dict[str, asyncio.Future[Any]] = {}

    async def run(self, run: Any) -> Any:
        self.started.append(run.run_id)
        match run.input:
            case {"do": "hold"}:
                self._held[run.run_id] = asyncio.get_running_loop().create_future()
                return await self._held[run.run_id]
            case {"do": "fail"}:
                raise RuntimeError("it broke")
            case {"do": "count"}:
                run.usage(input_tokens=3, output_tokens=5)
        return run.input

    async def finish(self, run_id: str, output: Any = "done") -> None:
        """Let this run end, once it holds."""
        await until(lambda: run_id in self._held)
        self._held.pop(run_id).set_result(output)


@dataclass
class Served:
    """A server with its sessions."""

    url: str
    sessions: Sessions
    store: Store
    desk: PermitDesk
    gateway: Gateway
    agents: dict[str, Worker] = field(default_factory=dict)

    @property
    def worker(self) -> Worker:
        return self.agents["worker"]

    async def get(self, target: str) -> Answer:
        return await call(self.url, "GET", target)

    async def post(self, target: str, body: Any = None, *headers: Header) -> Answer:
        """*body* as JSON, if it is not bytes already; None is no body at all."""
        if body is None:
            return await call(self.url, "POST", target, headers)
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await call(self.url, "POST", target, [JSON, *headers], raw)

    async def session(self, session_id: str = "s1", **more: Any) -> str:
        """A session of the agent ``worker``, made over HTTP."""
        answer = await self.post("/sessions", {"id": session_id, "agent": "worker", **more})
        assert answer.status == 201, answer
        made: str = answer.json["id"]
        return made

    async def submit(self, asked: Any = HOLD, session_id: str = "s1", **more: Any) -> str:
        """A run, submitted over HTTP; a text is what its agent shall say."""
        body = {"input": {"say": asked} if isinstance(asked, str) else asked, **more}
        answer = await self.post(f"/sessions/{session_id}/runs", body)
        assert answer.status == 202, answer
        run_id: str = answer.json["runId"]
        return run_id

    async def started(self, *run_ids: str) -> None:
        """Return once the agent works, or has worked, on all of these."""
        await until(lambda: set(run_ids) <= set(self.worker.started))

    async def run(self, run_id: str) -> Any:
        return (await self.get(f"/runs/{run_id}")).json

    async def ended(self, run_id: str) -> Any:
        """The run, once it has ended."""
        answer = await self.get(f"/runs/{run_id}/wait?timeoutMs=5000")
        assert answer.status == 200, answer
        return answer.json


@asynccontextmanager
async def serving(
    store: Store | None = None,
    *,
    agents: Sequence[str] = ("worker",),
    clock: Clock | None = None,
    limiter: ConcurrencyLimiter | None = None,
    with_sessions: bool = True,
) -> AsyncIterator[Served]:
    """The whole application over the sessions of *store* (default: a new one) and agents of these names."""
    async with AsyncExitStack() as stack:
        store = store or MemoryStore()
        gate = await stack.enter_async_context(ProviderGate(admission=LocalAdmission()))
        workers = {name: Worker() for name in agents}
        sessions = Sessions(store, workers, clock=clock or SystemClock(), limiter=limiter)
        stack.push_async_callback(sessions.aclose, timeout=0.0)
        desk = PermitDesk(gate.admission, store)
        client = HttpUpstream()
        stack.push_async_callback(client.aclose)
        gateway = Gateway(gate, client, {})
        app = create_app(gate, gateway, ServerConfig(), desk, sessions=sessions if with_sessions else None)
        url = await stack.enter_async_context(hosting(app))
        stack.callback(desk.drain)  # or those who wait would be waited for
        yield Served(url, sessions, store, desk, gateway, workers)


def refused(answer: Answer, status: int, code: str, *said: str) -> dict[str, Any]:
    """The problem document of *answer*, which tells to come back where that makes sense."""
    assert answer.status == status, answer
    assert answer.header(b"content-type") == b"application/problem+json"
    problem: dict[str, Any] = answer.json
    assert (problem["status"], problem["code"]) == (status, code)
    assert [one for one in said if one not in problem["detail"]] == []
    assert (answer.header(b"retry-after") is not None) == (status in (429, 503))
    return problem
