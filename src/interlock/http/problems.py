"""Errors as problem documents (RFC 9457), and answers as JSON."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import msgspec
from msgspec import UNSET, UnsetType
from starlette.responses import Response

from interlock.errors import InterlockError, ValidationError
from interlock.http.retrying import RETRY_AFTER, retry_fields, spread, spread_after

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from starlette.requests import Request

log = logging.getLogger(__name__)

PROBLEM_JSON: Final = "application/problem+json"
_EXPECTED: Final = (503, 504)
"""Of the errors from 500 on, those that come when all is well: somebody waited, or came at the end."""


class NotFound(InterlockError):
    """Nothing has this id."""

    default_code = "not_found"
    status = 404


class NotAllowed(InterlockError):
    """The path is known, but not with this method."""

    default_code = "method_not_allowed"
    status = 405


class PreconditionFailed(InterlockError):
    """It is not what the caller thinks it is."""

    default_code = "precondition_failed"
    status = 412


class TooLarge(ValidationError):
    """The body has more bytes than the route takes."""

    default_code = "too_large"
    status = 413


class NotJson(ValidationError):
    """The body is announced as something else than JSON."""

    default_code = "unsupported_media_type"
    status = 415


class Problem(msgspec.Struct, rename="camel", kw_only=True):
    """What went wrong, for programs (code, retryable, details) and for people (detail)."""

    title: str
    status: int
    code: str
    detail: str
    request_id: str
    type: str = "about:blank"
    retryable: bool | UnsetType = UNSET
    details: dict[str, Any] | UnsetType = UNSET


def described(status: int, code: str, detail: str, **more: Any) -> Problem:
    """The problem under an id of its own, which is in the log as well if it may be ours."""
    title = HTTPStatus(status).phrase
    said = Problem(
        title=title, status=status, code=code, detail=detail, request_id=f"req_{uuid4().hex}", **more
    )
    if status >= 500:
        level = logging.DEBUG if status in _EXPECTED else logging.ERROR
        log.log(level, "%s: %d %s: %s", said.request_id, status, code, detail)
    return said


def problem(
    error: InterlockError, scope: Mapping[str, Any], headers: Iterable[tuple[bytes, bytes]] = ()
) -> Response:
    """*error* under its own status, with everything that a program may want to look at."""
    said = described(
        error.status, error.code, error.message, retryable=error.retryable, details=error.details
    )
    response = Response(encoded(said), error.status, media_type=PROBLEM_JSON)
    response.raw_headers += headers
    if error.status in (429, 503):
        known = error.details.get("retry_after")  # before which it is of no use to come
        wait = spread(scope, RETRY_AFTER) if known is None else spread_after(scope, float(known))
        response.raw_headers += retry_fields(wait)
    if error.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        response.headers["connection"] = "close"  # what is still to come is not read
    return response


def unexpected(error: Exception) -> Problem:
    """What may be told of an error that nobody foresaw; the log has the rest, under the same id."""
    said = described(500, InterlockError.default_code, "something went wrong in the server, see its log")
    log.error("%s: %s", said.request_id, type(error).__name__, exc_info=error)
    return said


async def no_route(request: Request, error: Exception) -> Response:
    """The answer where no route has this path."""
    return problem(NotFound(f"nothing is at {request.scope['path'][:80]!r}"), request.scope)


def encoded(value: Any) -> bytes:
    """*value* as JSON; what JSON has no word for, as text."""
    return msgspec.json.encode(value, enc_hook=str)


def json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """*value* as a JSON answer."""
    return Response(encoded(value), status, headers, media_type="application/json")
