"""The control plane's routes: health, the fleet's limits and what is in use, and the operator's hand."""

from __future__ import annotations

from dataclasses import asdict
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import msgspec
from msgspec import UNSET, Meta, UnsetType
from starlette.routing import Route

from interlock.config import MAX_CAPACITY
from interlock.errors import Unavailable
from interlock.http.ledger import operator
from interlock.http.problems import NotFound, answering, json, read_body

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request
    from starlette.responses import Response

    from interlock.admission.readings import LimitReading
    from interlock.governor import ConcurrencyGovernor
    from interlock.limiter import ConcurrencyLimiter
    from interlock.limits import FleetLimits
    from interlock.pool import AgentPool
    from interlock.provider.gate import ProviderGate

_DAY_MS = 86_400_000
PROVIDER = "provider:"
"""How the limit of a provider's gate is called."""


class _Strict(msgspec.Struct, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """Unknown members are refused by name."""


class LimitBody(_Strict):
    """The body of ``PUT /limits/{name}``; null is unlimited, a cooldown that is left out stays."""

    capacity: Annotated[int, Meta(ge=1, le=MAX_CAPACITY)] | None
    cooldown_ms: Annotated[int, Meta(ge=0, le=_DAY_MS)] | UnsetType = UNSET


class PauseBody(_Strict):
    """The body of ``POST /providers/{id}/pause``."""

    ms: Annotated[int, Meta(ge=0, le=_DAY_MS)]


class Fleet(NamedTuple):
    """The parts of a fleet that the control plane shows and changes beside its gate."""

    limits: FleetLimits
    limiter: ConcurrencyLimiter
    governor: ConcurrencyGovernor
    pools: Mapping[str, AgentPool[Any]] = MappingProxyType({})


def routes(gate: ProviderGate, fleet: Fleet | None, ready: Any) -> list[Route]:
    """Routes over *gate* and the *fleet* of its admission; *ready* says whether new work is taken."""
    control = _Routes(gate, fleet, ready)
    return [
        Route(path, answering(handler), methods=[method])
        for path, method, handler in (
            ("/healthz", "GET", control.healthz),
            ("/readyz", "GET", control.readyz),
            ("/limits", "GET", control.limits),
            ("/limits/{name:path}", "PUT", control.set_limit),
            ("/limiter/status", "GET", control.limiter_status),
            ("/governor/stats", "GET", control.governor_stats),
            ("/pools", "GET", control.pools),
            ("/providers/{id:path}/pause", "POST", control.pause),
            ("/providers/{id:path}/resume", "POST", control.resume),
        )
    ]


class _Routes:
    def __init__(self, gate: ProviderGate, fleet: Fleet | None, ready: Any) -> None:
        self._gate = gate
        self._whole = fleet
        self._ready = ready

    @property
    def _fleet(self) -> Fleet:
        if self._whole is None:
            raise Unavailable("this server has a gate, but no limits of a fleet")
        return self._whole

    async def healthz(self, request: Request) -> Response:
        return json({"status": "ok"})

    async def readyz(self, request: Request) -> Response:
        return json({"status": "ok"}) if self._ready() else json({"status": "draining"}, 503)

    # -- limits

    async def limits(self, request: Request) -> Response:
        return json({"limits": [limit_body(one) for one in self._gate.admission.limits().values()]})

    async def set_limit(self, request: Request) -> Response:
        name = request.path_params["name"]
        body = await read_body(request, LimitBody)
        cause = operator(request)
        cooldown = None if isinstance(body.cooldown_ms, UnsetType) else body.cooldown_ms / 1000
        if name.startswith(PROVIDER):
            provider_id = name.removeprefix(PROVIDER)
            await self._gate.set_limit(provider_id, body.capacity, cause=cause)
            if cooldown is not None:
                await self._gate.set_cooldown(provider_id, cooldown)
        else:
            await self._fleet.limits.set(name, body.capacity, cooldown=cooldown, cause=cause)
        return json(limit_body(self._gate.admission.limits()[name]))

    async def limiter_status(self, request: Request) -> Response:
        return json(camel(asdict(self._fleet.limiter.status())))

    async def governor_stats(self, request: Request) -> Response:
        return json(camel(asdict(self._fleet.governor.stats())))

    async def pools(self, request: Request) -> Response:
        pools = self._fleet.pools.items()
        return json({"pools": [{"name": name} | camel(asdict(pool.stats())) for name, pool in pools]})

    # -- providers

    async def pause(self, request: Request) -> Response:
        provider_id = self._known(request)
        body = await read_body(request, PauseBody)
        self._gate.pause(provider_id, body.ms / 1000)
        return self._paused(provider_id)

    async def resume(self, request: Request) -> Response:
        provider_id = self._known(request)
        self._gate.resume(provider_id)
        return self._paused(provider_id)

    def _known(self, request: Request) -> str:
        """The id in the path, if it is a provider's: a slip of the pen shall not pause nobody."""
        provider_id: str = request.path_params["id"]
        names = [name for name in self._gate.admission.limits() if name.startswith(PROVIDER)]
        if PROVIDER + provider_id not in names:
            known = ", ".join(name.removeprefix(PROVIDER) for name in names) or "none"
            raise NotFound(f"unknown provider {provider_id!r:.80}; known are: {known}")
        return provider_id

    def _paused(self, provider_id: str) -> Response:
        until = self._gate.reading(provider_id).paused_until
        body = {"providerId": provider_id, "paused": until is not None}
        return json(body if until is None else {**body, "pausedUntil": round(until * 1000)})


def limit_body(limit: LimitReading) -> dict[str, Any]:
    """*limit* as a member of ``GET /limits``."""
    return {
        "name": limit.name,
        "capacity": limit.capacity,
        "used": limit.used,
        "cooling": limit.cooling,
        "waiting": limit.waiting,
        "pausedUntil": None if limit.paused_until is None else round(limit.paused_until * 1000),
        "gated": limit.gated,
    }


def camel(body: dict[str, Any]) -> dict[str, Any]:
    """*body* with its names in camelCase."""
    return {
        word + "".join(part.capitalize() for part in rest): value
        for name, value in body.items()
        for word, *rest in (name.split("_"),)
    }
