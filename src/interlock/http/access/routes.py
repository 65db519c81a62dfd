"""The routes of ``/tokens``: an operator makes, lists and revokes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType
from starlette.routing import Route

from interlock.http.access.book import LONGEST_DAYS
from interlock.http.access.scopes import NAMES
from interlock.http.access.terms import Terms
from interlock.http.problems import answering, json, read_body

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from interlock.http.access.book import Token, TokenBook


class TokenBody(msgspec.Struct, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """The body of ``POST /tokens``."""

    name: str
    scopes: Annotated[tuple[str, ...], Meta(min_length=1, max_length=len(NAMES))]
    tenant: str | None = None
    min_priority: int | None = None
    requests_per_day: int | None = None
    permit_seconds_per_day: int | None = None
    expires_in_ms: Annotated[int, Meta(ge=1, le=LONGEST_DAYS * 86_400_000)] | UnsetType = UNSET


def token_routes(book: TokenBook) -> list[Route]:
    """The routes over *book*."""
    routes = _Routes(book)
    return [
        Route(path, answering(handler), methods=[method])
        for path, method, handler in (
            ("/tokens", "POST", routes.create),
            ("/tokens", "GET", routes.tokens),
            ("/tokens/{name}", "DELETE", routes.revoke),
        )
    ]


class _Routes:
    def __init__(self, book: TokenBook) -> None:
        self._book = book

    async def create(self, request: Request) -> Response:
        body = await read_body(request, TokenBody)
        expires_in = None if isinstance(body.expires_in_ms, UnsetType) else body.expires_in_ms / 1000
        terms = Terms(body.tenant, body.min_priority, body.requests_per_day, body.permit_seconds_per_day)
        token, secret = await self._book.create(body.name, body.scopes, expires_in, terms)
        answer = {**shown(token), "token": secret.reveal(), "adminLeft": self._book.has_admin}
        return json(answer, 201, {"cache-control": "no-store"})

    async def tokens(self, request: Request) -> Response:
        return json({"tokens": [shown(token) for token in self._book.tokens()]})

    async def revoke(self, request: Request) -> Response:
        name = request.path_params["name"]
        await self._book.revoke(name)
        return json({"name": name, "revoked": True, "adminLeft": self._book.has_admin})


def shown(token: Token) -> dict[str, Any]:
    """What may be told of *token*."""
    terms = {
        "tenant": token.terms.tenant,
        "minPriority": token.terms.min_priority,
        "requestsPerDay": token.terms.requests_per_day,
        "permitSecondsPerDay": token.terms.permit_seconds_per_day,
    }
    return {
        "name": token.name,
        "scopes": token.scopes,
        "createdAt": token.created_ms,
        "expiresAt": token.expires_ms,
    } | {name: value for name, value in terms.items() if value is not None}
