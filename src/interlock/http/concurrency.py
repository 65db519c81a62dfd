"""The seven routes of dispatch's ``provider-concurrency``, as its front ends know them.

Bodies, texts and codes are the original's: camelCase, milliseconds, absent keys absent, errors as
``{"error": "…"}``. Keys of ours may follow the original's in a status.
"""

from __future__ import annotations

import json as stdlib_json
import math
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired, TypedDict

import msgspec
from msgspec import Meta

from interlock.errors import InterlockError, Unavailable
from interlock.http.bodies import MOST_BYTES
from interlock.http.conditional import Condition, Unchanged, check, tag_of, tagged
from interlock.http.endpoints import endpoint
from interlock.http.ledger import operator
from interlock.http.problems import json
from interlock.http.queries import AnyQuery
from interlock.http.retrying import RETRY_AFTER, retry_fields, spread
from interlock.provider.policy import check_cooldowns, check_provider

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request
    from starlette.responses import Response

    from interlock.provider.gate import ProviderGate
    from interlock.provider.state import ProviderStatus

_DAY_MS = 86_400_000
MOST = 2**53 - 1
"""The largest whole number that the original's own clients can write."""

ABSENT = "Concurrency service not available"
NO_LIMIT = "No concurrency limit configured for this provider"
NOTHING = "No concurrency configuration for this provider"
NOT_JSON = "Invalid JSON body"
NOT_A_LIMIT = "Body must be { limit: <positive integer> }"
NOT_A_COOLDOWN = "Body must be { cooldownMs: <non-negative integer> }"


class _Refused(InterlockError):
    """400, in the original's words."""

    status = 400


class _Unknown(_Refused):
    status = 404


class _TooLarge(_Refused):
    status = 413


class ProviderLimit(TypedDict):
    """The limit in force of a provider."""

    providerId: str
    limit: int


class ProviderLimits(TypedDict):
    """Of every provider that has one."""

    limits: list[ProviderLimit]


class ProviderCooldown(TypedDict):
    """For how long a slot stays taken after its release."""

    providerId: str
    cooldownMs: int


class Removed(TypedDict):
    """The limit is gone."""

    ok: Literal[True]
    providerId: str


class ProviderAnswer(TypedDict):
    """A provider as the originals' front ends read it; keys without a value are absent."""

    providerId: str
    limit: NotRequired[int]
    inFlight: int
    queued: int
    paused: bool
    pausedUntil: NotRequired[int]
    cooldownMs: int
    autoReduced: bool
    autoReducedFrom: NotRequired[int]
    notice: NotRequired[str]
    configuredLimit: NotRequired[int]
    cooling: int
    upstreamInFlight: NotRequired[int]
    upstreamLimit: NotRequired[int]
    reason: NotRequired[str]


class ProvidersAnswer(TypedDict):
    """Every provider that has a limit or a pause."""

    providers: list[ProviderAnswer]


class Failure(TypedDict):
    """What went wrong, in the original's words."""

    error: str


class LimitAsked(msgspec.Struct):
    """The body of ``PUT /concurrency/limits/{providerId}``."""

    limit: Annotated[int, Meta(ge=1, le=MOST)]


class CooldownAsked(msgspec.Struct, rename="camel"):
    """The body of ``PUT /concurrency/cooldown/{providerId}``."""

    cooldown_ms: Annotated[int, Meta(ge=0, le=_DAY_MS)]


class NewProviderPath(msgspec.Struct):
    """A provider that is known, or becomes so."""

    id: Annotated[str, Meta(min_length=1, max_length=128)]


def _failed(error: InterlockError, scope: Mapping[str, Any]) -> Response:
    """*error* in the original's shape."""
    if isinstance(error, Unavailable):
        response = json({"error": ABSENT}, 503)
        response.raw_headers += retry_fields(spread(scope, RETRY_AFTER))
        return response
    return json({"error": error.message}, error.status)


_FAILURES: dict[int, Any] = {400: Failure, 413: Failure, 415: Failure, 503: Failure}
_original = partial(endpoint, tag="concurrency", own_errors=_failed, query=AnyQuery)


class ConcurrencyRoutes:
    """The routes over *gate*; without one, or once it is closed, they answer as the original without its
    service."""

    def __init__(self, gate: ProviderGate | None) -> None:
        self._gate = gate

    @property
    def _there(self) -> ProviderGate | None:
        return None if self._gate is None or self._gate.closed else self._gate

    def _service(self) -> ProviderGate:
        if (gate := self._there) is None:
            raise Unavailable(ABSENT)
        return gate

    @_original(
        "GET /concurrency/limits", "read", "The limit of every provider", answers={200: ProviderLimits}
    )
    async def provider_limits(self, request: Request) -> Response:
        limits = {} if (gate := self._there) is None else gate.limits()
        return json({"limits": [{"providerId": name, "limit": limit} for name, limit in limits.items()]})

    @_original(
        "GET /concurrency/limits/{id:path}",
        "read",
        "The limit of a provider",
        headers=Unchanged,
        answers={200: ProviderLimit, 304: None, 400: Failure, 404: Failure, 503: Failure},
    )
    async def provider_limit(self, request: Request) -> Response:
        provider_id = request.path_params["id"]
        if (limit := self._service().get_limit(provider_id)) is None:
            raise _Unknown(NO_LIMIT)
        return tagged(request, _limit(provider_id, limit))

    @_original(
        "PUT /concurrency/limits/{id:path}",
        "admin",
        "Set the limit of a provider",
        within=NewProviderPath,
        headers=Condition,
        body=LimitAsked,
        answers={200: ProviderLimit, 412: Failure, 507: Failure, **_FAILURES},
    )
    async def set_provider_limit(self, request: Request) -> Response:
        gate, provider_id = self._service(), request.path_params["id"]
        limit = _member(await _body(request), "limit", 1, NOT_A_LIMIT)
        await gate.load()
        check_provider(provider_id)
        check(request, _limit(provider_id, gate.get_limit(provider_id)))
        await gate.set_limit(provider_id, limit, cause=operator(request))
        said = _limit(provider_id, limit)
        return json(said, headers={"etag": tag_of(said)})

    @_original(
        "DELETE /concurrency/limits/{id:path}",
        "admin",
        "Remove the limit of a provider",
        headers=Condition,
        answers={200: Removed, 400: Failure, 404: Failure, 412: Failure, 503: Failure, 507: Failure},
    )
    async def remove_provider_limit(self, request: Request) -> Response:
        gate, provider_id = self._service(), request.path_params["id"]
        await gate.load()
        if (limit := gate.get_limit(provider_id)) is None:
            raise _Unknown(NO_LIMIT)
        check(request, _limit(provider_id, limit))
        await gate.remove_limit(provider_id, cause=operator(request))
        return json({"ok": True, "providerId": provider_id})

    @_original(
        "GET /concurrency/cooldown/{id:path}",
        "read",
        "The cooldown of a provider",
        headers=Unchanged,
        answers={200: ProviderCooldown, 304: None, 400: Failure, 404: Failure, 503: Failure},
    )
    async def provider_cooldown(self, request: Request) -> Response:
        provider_id = request.path_params["id"]
        if (cooldown := self._service().get_cooldown(provider_id)) is None:
            raise _Unknown(NOTHING)
        return tagged(request, _cooldown(provider_id, cooldown))

    @_original(
        "PUT /concurrency/cooldown/{id:path}",
        "admin",
        "Set the cooldown of a provider",
        within=NewProviderPath,
        headers=Condition,
        body=CooldownAsked,
        answers={200: ProviderCooldown, 412: Failure, 507: Failure, **_FAILURES},
    )
    async def set_provider_cooldown(self, request: Request) -> Response:
        gate, provider_id = self._service(), request.path_params["id"]
        cooldown_ms = _member(await _body(request), "cooldownMs", 0, NOT_A_COOLDOWN)
        await gate.load()
        check_provider(provider_id)
        check_cooldowns(cooldown_ms / 1000, None, None)
        check(request, _cooldown(provider_id, gate.get_cooldown(provider_id)))
        await gate.set_cooldown(provider_id, cooldown_ms / 1000)
        said = _cooldown(provider_id, cooldown_ms / 1000)
        return json(said, headers={"etag": tag_of(said)})

    @_original("GET /concurrency/status", "read", "What providers are doing", answers={200: ProvidersAnswer})
    async def provider_statuses(self, request: Request) -> Response:
        statuses = () if (gate := self._there) is None else gate.statuses()
        return json({"providers": [provider_status(status) for status in statuses]})


def _limit(provider_id: str, limit: int | None) -> Any:
    return None if limit is None else {"providerId": provider_id, "limit": limit}


def _cooldown(provider_id: str, cooldown: float | None) -> Any:
    return None if cooldown is None else {"providerId": provider_id, "cooldownMs": round(cooldown * 1000)}


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
        "upstreamLimit": status.upstream_limit,
        "reason": status.reason,
    }
    return {name: value for name, value in body.items() if value is not None}


async def _body(request: Request) -> Any:
    """What the body says, whatever it calls itself: the original does not look at its content type."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MOST_BYTES:
            raise _TooLarge(f"Body must have at most {MOST_BYTES} bytes")
    try:
        return stdlib_json.loads(
            body.decode("utf-8-sig"), parse_int=_whole, parse_float=_fraction, parse_constant=_no_constant
        )
    except (ValueError, RecursionError):
        raise _Refused(NOT_JSON) from None


def _member(body: Any, name: str, least: int, otherwise: str) -> int:
    """The whole number that *body* has as *name*; 3.0 is one, as it is for the original, true is none."""
    value = body.get(name) if isinstance(body, dict) else None
    if type(value) is not int or not least <= value <= MOST:
        raise _Refused(otherwise)
    return value


def _whole(digits: str) -> int | float:
    # A number of thousands of digits is JSON, but costs time that grows with their square.
    return int(digits) if len(digits) <= 20 else math.inf


def _fraction(digits: str) -> int | float:
    number = float(digits)
    return int(number) if number.is_integer() else number


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)
