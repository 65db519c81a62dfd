"""The routes of ``/tokens``: an operator makes, lists and revokes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, NotRequired, TypedDict

import msgspec
from msgspec import UNSET, Meta, UnsetType

from interlock.errors import InvalidOperation, StoreError
from interlock.http.access.book import LONGEST_DAYS
from interlock.http.access.scopes import NAMES
from interlock.http.access.terms import MOST_PER_DAY, PRIORITIES, Terms
from interlock.http.bodies import read_body
from interlock.http.endpoints import endpoint
from interlock.http.problems import NotFound, json
from interlock.http.queries import MOST_LISTED, Query, read_query

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from interlock.http.access.book import Token, TokenBook


TokenName = Annotated[str, Meta(max_length=64, extra_json_schema={"pattern": "^[A-Za-z0-9][A-Za-z0-9._-]*$"})]


class TokenBody(msgspec.Struct, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """The body of ``POST /tokens``."""

    name: TokenName
    scopes: Annotated[
        tuple[Literal["gateway", "submit", "read", "admin"], ...], Meta(min_length=1, max_length=len(NAMES))
    ]
    tenant: (
        Annotated[str, Meta(max_length=64, extra_json_schema={"pattern": "^[A-Za-z0-9][A-Za-z0-9._-]*$"})]
        | None
    ) = None
    min_priority: Annotated[int, Meta(ge=PRIORITIES[0], le=PRIORITIES[1])] | None = None
    requests_per_day: Annotated[int, Meta(ge=1, le=MOST_PER_DAY)] | None = None
    permit_seconds_per_day: Annotated[int, Meta(ge=1, le=MOST_PER_DAY)] | None = None
    expires_in_ms: Annotated[int, Meta(ge=1, le=LONGEST_DAYS * 86_400_000)] | UnsetType = UNSET


class TokenAnswer(TypedDict):
    """What may be told of a token."""

    name: str
    scopes: list[str]
    createdAt: int
    expiresAt: int | None
    tenant: NotRequired[str]
    minPriority: NotRequired[int]
    requestsPerDay: NotRequired[int]
    permitSecondsPerDay: NotRequired[int]


class NewTokenAnswer(TokenAnswer):
    """A token, the only time that it is shown."""

    token: str
    adminLeft: bool


class TokensPage(TypedDict):
    """Tokens by name, and where to go on."""

    tokens: list[TokenAnswer]
    next: str | None


class RevokedAnswer(TypedDict):
    """The token opens nothing any more."""

    name: str
    revoked: bool
    adminLeft: bool


class TokenPath(msgspec.Struct):
    """A token."""

    name: TokenName


class TokensAsked(Query):
    """A part of all tokens: *after* is the ``next`` of the page before."""

    limit: Annotated[int, Meta(ge=1, le=MOST_LISTED)] = MOST_LISTED
    after: Annotated[str, Meta(min_length=1, max_length=64)] | None = None


class TokenRoutes:
    """The routes over *book*."""

    def __init__(self, book: TokenBook) -> None:
        self._book = book

    @endpoint(
        "POST /tokens",
        "admin",
        "Make a token",
        tag="tokens",
        body=TokenBody,
        answers={201: NewTokenAnswer},
        problems=(InvalidOperation, StoreError),
        links={"DELETE /tokens/{name}": {"name": "name"}},
    )
    async def create_token(self, request: Request) -> Response:
        body = await read_body(request, TokenBody)
        expires_in = None if isinstance(body.expires_in_ms, UnsetType) else body.expires_in_ms / 1000
        terms = Terms(body.tenant, body.min_priority, body.requests_per_day, body.permit_seconds_per_day)
        token, secret = await self._book.create(body.name, body.scopes, expires_in, terms)
        answer = {**shown(token), "token": secret.reveal(), "adminLeft": self._book.has_admin}
        return json(answer, 201, {"cache-control": "no-store"})

    @endpoint("GET /tokens", "admin", "Tokens", tag="tokens", query=TokensAsked, answers={200: TokensPage})
    async def tokens(self, request: Request) -> Response:
        asked = read_query(request, TokensAsked)
        found = [one for one in self._book.tokens() if asked.after is None or one.name > asked.after]
        page, more = found[: asked.limit], len(found) > asked.limit
        return json({"tokens": [shown(one) for one in page], "next": page[-1].name if more else None})

    @endpoint(
        "DELETE /tokens/{name}",
        "admin",
        "Revoke a token",
        tag="tokens",
        within=TokenPath,
        answers={200: RevokedAnswer},
        problems=(NotFound, StoreError),
    )
    async def revoke_token(self, request: Request) -> Response:
        name = request.path_params["name"]
        await self._book.revoke(name)
        return json({"name": name, "revoked": True, "adminLeft": self._book.has_admin})


def shown(token: Token) -> TokenAnswer:
    """What may be told of *token*."""
    answer: TokenAnswer = {
        "name": token.name,
        "scopes": list(token.scopes),
        "createdAt": token.created_ms,
        "expiresAt": token.expires_ms,
    }
    terms = token.terms
    if terms.tenant is not None:
        answer["tenant"] = terms.tenant
    if terms.min_priority is not None:
        answer["minPriority"] = terms.min_priority
    if terms.requests_per_day is not None:
        answer["requestsPerDay"] = terms.requests_per_day
    if terms.permit_seconds_per_day is not None:
        answer["permitSecondsPerDay"] = terms.permit_seconds_per_day
    return answer
