"""The gate inside of httpx 0.28 clients, which older SDKs and frameworks use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from interlock.admission.permit import DEFAULT_TIMEOUT
from interlock.transports.family import Gating, SyncGating

try:
    import httpx
except ImportError as missing:
    raise ImportError(
        "interlock.transports.httpx needs httpx: pip install 'httpx>=0.28,<1' (for httpx2: interlock[http])"
    ) from missing

if TYPE_CHECKING:
    from collections.abc import Callable

    from interlock.provider.gate import ProviderGate
    from interlock.sync import Gate

__all__ = ["InterlockSyncTransport", "InterlockTransport"]


class InterlockTransport(Gating, httpx.AsyncBaseTransport):
    """`interlock.InterlockTransport` with the types of httpx; the default *transport* is httpx's."""

    def __init__(
        self,
        gate: ProviderGate,
        provider_id: str,
        *,
        conversation: str | Callable[[httpx.Request], str | None] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        prompt_started_at: float | Callable[[httpx.Request], float | None] | None = None,
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


class InterlockSyncTransport(SyncGating, httpx.BaseTransport):
    """`interlock.InterlockSyncTransport` with the types of httpx."""

    def __init__(
        self,
        gate: Gate,
        provider_id: str,
        *,
        conversation: str | Callable[[httpx.Request], str | None] | None = None,
        transport: httpx.BaseTransport | None = None,
        prompt_started_at: float | Callable[[httpx.Request], float | None] | None = None,
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
