"""The gate inside of httpx2 clients, and so of the SDKs of OpenAI, Anthropic and others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from interlock.admission.permit import DEFAULT_TIMEOUT
from interlock.transports.family import Gating, SyncGating

try:
    import httpx2
except ImportError as missing:
    raise ImportError("interlock.InterlockTransport needs httpx2: pip install 'interlock[http]'") from missing

if TYPE_CHECKING:
    from collections.abc import Callable

    from interlock.provider.gate import ProviderGate
    from interlock.sync import Gate

__all__ = ["InterlockSyncTransport", "InterlockTransport"]


class InterlockTransport(Gating, httpx2.AsyncBaseTransport):
    """Each call of an asynchronous client takes a permit of *provider_id* until its answer's body has ended.

        client = AsyncOpenAI(http_client=httpx2.AsyncClient(transport=InterlockTransport(gate, "openai")))

    GET, HEAD and OPTIONS take none. A 429 or 529 is reported, and asked again off the slot while *timeout*
    lasts; then the provider's own answer passes. Give the SDK ``max_retries=0``: it would ask a second time.

    Args:
        conversation: names the holder; a function of the request may say. Default: read from its body, as
            the gateway does.
        transport: what sends; default ``httpx2.AsyncHTTPTransport()``, closed with this one.
        prompt_started_at: seconds since the epoch, or a function of the request; the oldest goes first.
            Default: when the conversation's turn began.
        timeout: seconds for the permit and all attempts together; None for ever.
        retry: False passes every refusal on at once. A request whose body is a stream is never sent twice.

    Requests raise `AcquireTimeout`, `LimitExceeded` (timeout 0) and `Unavailable` (the gate is closed)
    besides the client's own errors. Also works in an ``httpx.AsyncClient``.
    """

    def __init__(
        self,
        gate: ProviderGate,
        provider_id: str,
        *,
        conversation: str | Callable[[httpx2.Request], str | None] | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
        prompt_started_at: float | Callable[[httpx2.Request], float | None] | None = None,
        timeout: float | None = DEFAULT_TIMEOUT,
        retry: bool = True,
    ) -> None:
        super().__init__(
            gate,
            provider_id,
            transport,
            conversation=conversation,
            prompt_started_at=prompt_started_at,
            timeout=timeout,
            retry=retry,
        )


class InterlockSyncTransport(SyncGating, httpx2.BaseTransport):
    """The same for synchronous clients in threads, over a gate of `interlock.sync`.

    with sync.start(lambda: ProviderGate()) as gate:
        client = OpenAI(http_client=httpx2.Client(transport=InterlockSyncTransport(gate, "openai")))
    """

    def __init__(
        self,
        gate: Gate,
        provider_id: str,
        *,
        conversation: str | Callable[[httpx2.Request], str | None] | None = None,
        transport: httpx2.BaseTransport | None = None,
        prompt_started_at: float | Callable[[httpx2.Request], float | None] | None = None,
        timeout: float | None = DEFAULT_TIMEOUT,
        retry: bool = True,
    ) -> None:
        super().__init__(
            gate,
            provider_id,
            transport,
            conversation=conversation,
            prompt_started_at=prompt_started_at,
            timeout=timeout,
            retry=retry,
        )
