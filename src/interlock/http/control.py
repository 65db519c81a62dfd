"""The control plane's routes: health, and every gate at a glance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from starlette.responses import Response
from starlette.routing import Route

if TYPE_CHECKING:
    from starlette.requests import Request

    from interlock.admission.readings import LimitReading
    from interlock.provider.gate import ProviderGate
    from interlock.provider.state import ProviderStatus


def routes(gate: ProviderGate, ready: Any) -> list[Route]:
    """Routes over *gate*; *ready* says whether new work is taken."""

    async def healthz(request: Request) -> Response:
        return _json({"status": "ok"})

    async def readyz(request: Request) -> Response:
        return _json({"status": "ok"}) if ready() else _json({"status": "draining"}, 503)

    async def status(request: Request) -> Response:
        return _json({"providers": [provider_status(one) for one in gate.statuses()]})

    async def limits(request: Request) -> Response:
        return _json({"limits": [_limit(one) for one in gate.admission.limits().values()]})

    return [
        Route("/healthz", healthz),
        Route("/readyz", readyz),
        Route("/limits", limits),
        Route("/concurrency/status", status),
    ]


def provider_status(status: ProviderStatus) -> dict[str, Any]:
    """One provider as the originals' front ends read it: camelCase, milliseconds, absent keys absent."""
    body: dict[str, Any] = {
        "providerId": status.provider_id,
        "limit": status.limit,
        "inFlight": status.in_flight,
        "queued": status.queued,
        "paused": status.paused,
        "pausedUntil": _ms(status.paused_until),
        "cooldownMs": _ms(status.cooldown),
        "autoReduced": status.auto_reduced,
        "autoReducedFrom": status.auto_reduced_from,
        "notice": status.notice,
        "configuredLimit": status.configured_limit,
        "cooling": status.cooling,
        "upstreamInFlight": status.upstream_in_flight,
        "reason": status.reason,
    }
    return {name: value for name, value in body.items() if value is not None}


def _limit(limit: LimitReading) -> dict[str, Any]:
    return {
        "name": limit.name,
        "capacity": limit.capacity,
        "used": limit.used,
        "cooling": limit.cooling,
        "waiting": limit.waiting,
        "pausedUntil": _ms(limit.paused_until),
        "gated": limit.gated,
    }


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
