"""The seven routes of dispatch's ``provider-concurrency``, as its front ends know them.

Bodies, texts and codes are the original's: camelCase, milliseconds, absent keys absent, errors as
``{"error": "…"}``. Keys of ours may follow the original's in a status.
"""

from __future__ import annotations

import json as stdlib_json
import math
from functools import wraps
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect
from starlette.routing import Route

from interlock.errors import InterlockError, Unavailable
from interlock.http.ledger import operator
from interlock.http.problems import MOST_BYTES, json

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request
    from starlette.responses import Response

    from interlock.provider.gate import ProviderGate
    from interlock.provider.state import ProviderStatus

    Handler = Callable[[Request], Awaitable[Response]]

MOST = 2**53 - 1
"""The largest whole number that the original's own clients can write."""

ABSENT = "Concurrency service not available"
NO_LIMIT = "No concurrency limit configured for this provider"
NOTHING = "No concurrency configuration for this provider"
NOT_JSON = "Invalid JSON body"
NOT_A_LIMIT = "Body must be { limit: <positive integer> }"
NOT_A_COOLDOWN = "Body must be { cooldownMs: <non-negative integer> }"


class _Refused(Exception):
    """An answer under *status* in the original's shape."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def concurrency_routes(gate: ProviderGate | None) -> list[Route]:
    """The routes over *gate*; without one, or once it is closed, they answer as the original without its
    service."""
    routes = _Routes(gate)
    return [
        Route(path, _answering(handler), methods=[method])
        for path, method, handler in (
            ("/concurrency/limits", "GET", routes.limits),
            ("/concurrency/limits/{id:path}", "GET", routes.limit),
            ("/concurrency/limits/{id:path}", "PUT", routes.set_limit),
            ("/concurrency/limits/{id:path}", "DELETE", routes.remove_limit),
            ("/concurrency/cooldown/{id:path}", "GET", routes.cooldown),
            ("/concurrency/cooldown/{id:path}", "PUT", routes.set_cooldown),
            ("/concurrency/status", "GET", routes.status),
        )
    ]


class _Routes:
    def __init__(self, gate: ProviderGate | None) -> None:
        self._gate = gate

    @property
    def _there(self) -> ProviderGate | None:
        return None if self._gate is None or self._gate.closed else self._gate

    def _service(self) -> ProviderGate:
        if (gate := self._there) is None:
            raise _Refused(503, ABSENT)
        return gate

    async def limits(self, request: Request) -> Response:
        limits = {} if (gate := self._there) is None else gate.limits()
        return json({"limits": [{"providerId": name, "limit": limit} for name, limit in limits.items()]})

    async def limit(self, request: Request) -> Response:
        provider_id = request.path_params["id"]
        if (limit := self._service().get_limit(provider_id)) is None:
            raise _Refused(404, NO_LIMIT)
        return json({"providerId": provider_id, "limit": limit})

    async def set_limit(self, request: Request) -> Response:
        gate, provider_id = self._service(), request.path_params["id"]
        limit = _member(await _body(request), "limit", 1, NOT_A_LIMIT)
        await gate.set_limit(provider_id, limit, cause=operator(request))
        return json({"providerId": provider_id, "limit": limit})

    async def remove_limit(self, request: Request) -> Response:
        gate, provider_id = self._service(), request.path_params["id"]
        if gate.get_limit(provider_id) is None:
            raise _Refused(404, NO_LIMIT)
        await gate.remove_limit(provider_id, cause=operator(request))
        return json({"ok": True, "providerId": provider_id})

    async def cooldown(self, request: Request) -> Response:
        provider_id = request.path_params["id"]
        if (cooldown := self._service().get_cooldown(provider_id)) is None:
            raise _Refused(404, NOTHING)
        return json({"providerId": provider_id, "cooldownMs": round(cooldown * 1000)})

    async def set_cooldown(self, request: Request) -> Response:
        gate, provider_id = self._service(), request.path_params["id"]
        cooldown_ms = _member(await _body(request), "cooldownMs", 0, NOT_A_COOLDOWN)
        await gate.set_cooldown(provider_id, cooldown_ms / 1000)
        return json({"providerId": provider_id, "cooldownMs": cooldown_ms})

    async def status(self, request: Request) -> Response:
        statuses = () if (gate := self._there) is None else gate.statuses()
        return json({"providers": [provider_status(status) for status in statuses]})


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


def _answering(handler: Handler) -> Handler:
    @wraps(handler)
    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except _Refused as refused:
            return json({"error": str(refused)}, refused.status)
        except Unavailable:
            return json({"error": ABSENT}, 503)
        except InterlockError as error:
            return json({"error": error.message}, error.status)
        except ClientDisconnect:
            return json({"error": NOT_JSON}, 400)  # nobody reads it

    return answer


async def _body(request: Request) -> Any:
    """What the body says, whatever it calls itself: the original does not look at its content type."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MOST_BYTES:
            raise _Refused(413, f"Body must have at most {MOST_BYTES} bytes")
    try:
        return stdlib_json.loads(
            body.decode("utf-8-sig"), parse_int=_whole, parse_float=float, parse_constant=_no_constant
        )
    except (ValueError, RecursionError):
        raise _Refused(400, NOT_JSON) from None


def _member(body: Any, name: str, least: int, otherwise: str) -> int:
    """The whole number that *body* has as *name*; neither true nor 3.0 is one."""
    value = body.get(name) if isinstance(body, dict) else None
    if type(value) is not int or not least <= value <= MOST:
        raise _Refused(400, otherwise)
    return value


def _whole(digits: str) -> int | float:
    # A number of thousands of digits is JSON, but costs time that grows with their square.
    return int(digits) if len(digits) <= 20 else math.inf


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)
