"""The control plane's routes: health, the fleet's limits and what is in use, and the operator's hand."""

from __future__ import annotations

from dataclasses import asdict
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, NotRequired, TypedDict

import msgspec
from msgspec import UNSET, Meta, UnsetType

from interlock.config import MAX_CAPACITY
from interlock.core.model import UNLIMITED
from interlock.errors import InvalidOperation, StoreError, Unavailable
from interlock.http.bodies import read_body
from interlock.http.conditional import Condition, Unchanged, check, tag_of, tagged
from interlock.http.endpoints import endpoint
from interlock.http.ids import NewId, check_new_id, check_not_reserved
from interlock.http.ledger import operator
from interlock.http.problems import NotFound, PreconditionFailed, json
from interlock.http.retrying import RETRY_AFTER, retry_fields, spread

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

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


class HealthAnswer(TypedDict):
    """Whether the server is well."""

    status: Literal["ok", "draining"]


class LimitAnswer(TypedDict):
    """A limit and what is in use of it; a capacity of null is unlimited."""

    name: str
    capacity: int | None
    used: int
    cooling: int
    waiting: int
    pausedUntil: int | None
    gated: bool


class LimitsAnswer(TypedDict):
    """Every limit."""

    limits: list[LimitAnswer]


class LimitSettings(TypedDict):
    """What a limit is set to: how many at a time, and for how long a unit rests after its release."""

    name: str
    capacity: int | None
    cooldownMs: int
    cooldownCancelledMs: int
    cooldownFailedMs: int


class LimiterAnswer(TypedDict):
    """The slots for sessions and runs; null is unlimited."""

    activeSessions: int
    activeRuns: int
    maxParallelSessions: int | None
    maxParallelRuns: int | None
    availableSessionSlots: int | None
    availableRunSlots: int | None


class GovernorAnswer(TypedDict):
    """Streams, tools and the ceiling over both; null is unlimited."""

    streamsAvailable: int | None
    streamsMax: int | None
    toolsAvailable: int | None
    toolsMax: int | None
    globalAvailable: int | None
    globalMax: int | None


class PoolAnswer(TypedDict):
    """A pool of agents."""

    name: str
    size: int
    available: int
    inUse: int
    overflow: int
    maxOverflow: int
    waiting: int
    starting: int
    preparing: int
    closing: int
    failures: int
    lastFailure: str | None


class PoolsAnswer(TypedDict):
    """Every pool."""

    pools: list[PoolAnswer]


class PauseAnswer(TypedDict):
    """Whether a provider is paused, and until when."""

    providerId: str
    paused: bool
    pausedUntil: NotRequired[int]


class NewLimitPath(msgspec.Struct):
    """A limit that is there, or is made."""

    name: NewId


class ControlRoutes:
    """Health, limits and what is in use, over *gate* and the *fleet* of its admission.

    *ready* says whether new work is taken.
    """

    def __init__(self, gate: ProviderGate, fleet: Fleet | None, ready: Callable[[], bool]) -> None:
        self._gate = gate
        self._whole = fleet
        self._ready = ready

    @property
    def _fleet(self) -> Fleet:
        if self._whole is None:
            raise Unavailable("this server has a gate, but no limits of a fleet")
        return self._whole

    @endpoint("GET /healthz", "open", "Whether it runs", tag="state", answers={200: HealthAnswer})
    async def healthz(self, request: Request) -> Response:
        return json({"status": "ok"})

    @endpoint(
        "GET /readyz",
        "open",
        "Whether new work is taken",
        tag="state",
        answers={200: HealthAnswer, 503: HealthAnswer},
    )
    async def readyz(self, request: Request) -> Response:
        if self._ready():
            return json({"status": "ok"})
        response = json({"status": "draining"}, 503)
        response.raw_headers += retry_fields(spread(request.scope, RETRY_AFTER))
        return response

    # -- limits

    @endpoint("GET /limits", "read", "Every limit and its use", tag="limits", answers={200: LimitsAnswer})
    async def limits(self, request: Request) -> Response:
        return json({"limits": [limit_body(one) for one in self._gate.admission.limits().values()]})

    @endpoint(
        "GET /limits/{name:path}",
        "read",
        "What a limit is set to",
        tag="limits",
        answers={200: LimitSettings, 304: None},
        headers=Unchanged,
        problems=(NotFound,),
    )
    async def limit(self, request: Request) -> Response:
        """Its ETag may be sent back as If-Match with a change."""
        name = request.path_params["name"]
        if (settings := self._settings(name)) is None:
            known = ", ".join(self._gate.admission.limits()) or "none"
            raise NotFound(f"unknown limit {name!r:.80}; known are: {known}")
        return tagged(request, settings)

    @endpoint(
        "PUT /limits/{name:path}",
        "admin",
        "Set a limit",
        tag="limits",
        within=NewLimitPath,
        headers=Condition,
        body=LimitBody,
        answers={200: LimitAnswer},
        problems=(InvalidOperation, PreconditionFailed, StoreError, Unavailable),
    )
    async def set_limit(self, request: Request) -> Response:
        """Durable once it is answered. It wins over the configuration file, also after a restart."""
        name = request.path_params["name"]
        body = await read_body(request, LimitBody)
        await self._gate.load()  # or somebody could come between the condition and the change
        if (settings := self._settings(name)) is None:
            check_new_id("name", name)
            check_not_reserved("name", name, "history")
        check(request, settings)
        cause = operator(request)
        cooldown = None if isinstance(body.cooldown_ms, UnsetType) else body.cooldown_ms / 1000
        if name.startswith(PROVIDER):
            provider_id = name.removeprefix(PROVIDER)
            await self._gate.set_limit(provider_id, body.capacity, cause=cause)
            if cooldown is not None:
                await self._gate.set_cooldown(provider_id, cooldown)
        else:
            await self._fleet.limits.set(name, body.capacity, cooldown=cooldown, cause=cause)
        answer = limit_body(self._gate.admission.limits()[name])
        return json(answer, headers={"etag": tag_of(self._settings(name))})

    def _settings(self, name: str) -> LimitSettings | None:
        """What is in force, also where a 429 has made less of it; None where there is no such limit."""
        limit = self._gate.admission.kernel.limits.get(name)
        if limit is None or limit.removed:
            return None
        cooldown = limit.cooldown
        return {
            "name": name,
            "capacity": None if limit.capacity == UNLIMITED else limit.capacity,
            "cooldownMs": cooldown.success_ms,
            "cooldownCancelledMs": cooldown.cancelled_ms,
            "cooldownFailedMs": cooldown.failed_ms,
        }

    @endpoint(
        "GET /limiter/status",
        "read",
        "Slots for sessions and runs",
        tag="state",
        answers={200: LimiterAnswer},
        problems=(Unavailable,),
    )
    async def limiter_status(self, request: Request) -> Response:
        return json(camel(asdict(self._fleet.limiter.status())))

    @endpoint(
        "GET /governor/stats",
        "read",
        "Streams and tools",
        tag="state",
        answers={200: GovernorAnswer},
        problems=(Unavailable,),
    )
    async def governor_stats(self, request: Request) -> Response:
        return json(camel(asdict(self._fleet.governor.stats())))

    @endpoint(
        "GET /pools",
        "read",
        "Pools of agents",
        tag="state",
        answers={200: PoolsAnswer},
        problems=(Unavailable,),
    )
    async def pools(self, request: Request) -> Response:
        pools = self._fleet.pools.items()
        return json({"pools": [{"name": name} | camel(asdict(pool.stats())) for name, pool in pools]})

    # -- providers

    @endpoint(
        "POST /providers/{id:path}/pause",
        "admin",
        "Let nobody call a provider for a while",
        tag="providers",
        body=PauseBody,
        answers={200: PauseAnswer},
        problems=(NotFound,),
    )
    async def pause(self, request: Request) -> Response:
        provider_id = self._known(request)
        body = await read_body(request, PauseBody)
        self._gate.pause(provider_id, body.ms / 1000)
        return self._paused(provider_id)

    @endpoint(
        "POST /providers/{id:path}/resume",
        "admin",
        "End the pause of a provider",
        tag="providers",
        answers={200: PauseAnswer},
        problems=(NotFound,),
    )
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


def limit_body(limit: LimitReading) -> LimitAnswer:
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
