"""The gate inside of aiohttp clients, as a middleware."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from interlock.admission.permit import DEFAULT_TIMEOUT
from interlock.errors import ValidationError
from interlock.provider.gate import ProviderGate
from interlock.provider.retry import EXCERPT
from interlock.transports.passage import LARGE, Asked, Passage

try:
    import aiohttp
    from aiohttp import ClientHandlerType, ClientMiddlewareType
    from aiohttp.base_protocol import BaseProtocol
except ImportError as missing:
    raise ImportError(
        "interlock.transports.aiohttp needs aiohttp 3.12 or newer: pip install 'interlock[http]'"
    ) from missing

if TYPE_CHECKING:
    from collections.abc import Callable

    from interlock.admission.permit import Permit
    from interlock.core.model import Outcome
    from interlock.ports import TimerHandle
    from interlock.transports.passage import Conversation, Ending, Headers, PromptStart

    T = TypeVar("T")

_LOOKS_EVERY = 10.0
"""Seconds after which it is seen whether an answer goes on; the pieces themselves pass unseen."""


def interlock_middleware(
    gate: ProviderGate,
    provider_id: str,
    *,
    conversation: Conversation = None,
    prompt_started_at: PromptStart = None,
    timeout: float | None = DEFAULT_TIMEOUT,
    retry: bool = True,
) -> ClientMiddlewareType:
    """A middleware: each call takes a permit of *provider_id* until its answer is read, released or closed.

        aiohttp.ClientSession(middlewares=[interlock_middleware(gate, "openai")])

    The arguments, the retries and what is raised are those of `interlock.InterlockTransport`; functions are
    called with the ``aiohttp.ClientRequest``. The session's own ``total`` timeout counts the wait as well.
    """
    if not isinstance(gate, ProviderGate):
        raise ValidationError(f"gate is {gate!r:.80}; allowed is a ProviderGate")
    passage = Passage(
        _Wire(gate),
        provider_id,
        conversation=_of_request(conversation),
        prompt_started_at=_of_request(prompt_started_at),
        timeout=timeout,
        retry=retry,
    )

    async def middleware(
        request: aiohttp.ClientRequest, handler: ClientHandlerType
    ) -> aiohttp.ClientResponse:
        return await passage.take((request, handler))  # type: ignore[no-any-return]

    return middleware


def _of_request(said: Any) -> Any:
    return (lambda call: said(call[0])) if callable(said) else said


class _Wire:
    """A call is here a request together with the handler that sends it."""

    def __init__(self, gate: ProviderGate) -> None:
        self._gate = gate

    async def asked(self, call: Any) -> Asked:
        request: aiohttp.ClientRequest = call[0]
        body: Any = request.body
        if isinstance(body, aiohttp.BytesPayload):
            body = await body.as_bytes()
        headers = {name.lower(): value for name, value in request.headers.items()}
        return Asked(request.method, request.url.path, headers, body if isinstance(body, bytes) else None)

    async def on_gate(self, work: Callable[[ProviderGate], T]) -> T:
        return work(self._gate)

    async def acquire(self, provider_id: str, conversation: str | None, **asked: Any) -> Permit:
        return await self._gate.acquire(provider_id, conversation, **asked)

    def release(self, permit: Permit, outcome: Outcome) -> bool:
        return permit.release(outcome)

    async def off_loop(self, work: Callable[[], T], size: int) -> T:
        if size < LARGE:
            return work()
        return await asyncio.get_running_loop().run_in_executor(None, work)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def send(self, call: Any) -> aiohttp.ClientResponse:
        request, handler = call
        return await handler(request)  # type: ignore[no-any-return]

    def status(self, response: aiohttp.ClientResponse) -> int:
        return response.status

    def headers(self, response: aiohttp.ClientResponse) -> Headers:
        return list(response.headers.items())

    async def head(self, response: aiohttp.ClientResponse) -> bytes | None:
        if (response.content_length or 0) > EXCERPT:
            return None  # what was read could not be put back before the rest
        body = await response.read()
        # Whoever reads the stream of the answer finds it there as well.
        loop = asyncio.get_running_loop()
        response.content = aiohttp.StreamReader(BaseProtocol(loop=loop), len(body) + 1, loop=loop)
        response.content.feed_data(body)
        response.content.feed_eof()
        return body

    async def close(self, response: aiohttp.ClientResponse) -> None:
        if not response.closed:
            response.close()

    def hand_on(
        self, response: aiohttp.ClientResponse, head: bytes | None, ending: Ending | None
    ) -> aiohttp.ClientResponse:
        if ending is None:
            return response
        if response.connection is None:
            ending.done()
        else:
            response.connection.add_callback(_Watched(self._gate, response, ending).ended)
        return response


class _Watched:
    """An answer under way: whether it goes on, and how it ends, its connection tells."""

    def __init__(self, gate: ProviderGate, response: aiohttp.ClientResponse, ending: Ending) -> None:
        self._clock = gate.clock
        self._content = response.content
        self._ending = ending
        self._seen = 0
        self._timer: TimerHandle
        self._look_later()

    def _look_later(self) -> None:
        self._timer = self._clock.call_at(self._clock.now() + _LOOKS_EVERY, self._look)

    def _look(self) -> None:
        if self._content.total_bytes > self._seen:
            self._seen = self._content.total_bytes
            self._ending.alive()
        self._look_later()

    def ended(self) -> None:
        """The connection is let go: after the last byte, or because somebody has enough."""
        self._timer.cancel()
        error = self._content.exception()
        if self._content.is_eof():
            self._ending.done()
        elif isinstance(error, aiohttp.ClientPayloadError):
            self._ending.broken(error)
        else:
            self._ending.left()
