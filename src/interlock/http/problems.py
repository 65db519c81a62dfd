"""Errors as problem documents (RFC 9457), and bodies read strictly: any bytes in, a value or a 400 out."""

from __future__ import annotations

import math
from functools import wraps
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Match

from interlock.errors import InterlockError, ValidationError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from starlette.requests import Request

    Handler = Callable[[Request], Awaitable[Response]]

MOST_BYTES = 64 * 1024
"""Of a body, unless its route says otherwise."""

RETRY_AFTER = "1"
"""Seconds after which what was refused for want of room, or of a server, may be tried again."""

T = TypeVar("T")


class NotFound(InterlockError):
    """Nothing has this id."""

    default_code = "not_found"
    status = 404


class NotAllowed(InterlockError):
    """The path is known, but not with this method."""

    default_code = "method_not_allowed"
    status = 405


class TooLarge(ValidationError):
    """The body has more bytes than the route takes."""

    default_code = "too_large"
    status = 413


class NotJson(ValidationError):
    """The body is announced as something else than JSON."""

    default_code = "unsupported_media_type"
    status = 415


def problem(error: InterlockError) -> Response:
    """*error* under its own status, with everything that a program may want to look at."""
    body = {
        "type": "about:blank",
        "status": error.status,
        "code": error.code,
        "detail": error.message,
        "retryable": error.retryable,
        "details": error.details,
    }
    seconds = error.details.get("retry_after", RETRY_AFTER)
    headers = {"retry-after": str(math.ceil(float(seconds)))} if error.status in (429, 503) else {}
    if error.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        headers["connection"] = "close"  # what is still to come is not read
    return Response(encoded(body), error.status, headers, media_type="application/problem+json")


def answering(handler: Handler) -> Handler:
    """*handler*, with the `InterlockError` that it raises as its answer."""

    @wraps(handler)
    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except InterlockError as error:
            return problem(error)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it

    return answer


async def no_route(request: Request, error: Exception) -> Response:
    """The answer where no route has this path, or none of those that have it this method."""
    found = [one for one in request.app.routes if one.matches(request.scope)[0] is not Match.NONE]
    if not found:
        return problem(NotFound(f"nothing is at {request.scope['path'][:80]!r}"))
    allowed = ", ".join(sorted({method for one in found for method in one.methods}))
    refused = problem(NotAllowed(f"{request.method} is not for this path; allowed are {allowed}"))
    refused.headers["allow"] = allowed
    return refused


async def read_body(
    request: Request, kind: type[T], most: int = MOST_BYTES, *, otherwise: T | None = None
) -> T:
    """The JSON body as a *kind*; *otherwise* where there may be none, and is none.

    Raises `ValidationError` naming what is wrong, `TooLarge` over *most* bytes, and `NotJson` for a body that
    says it is something else: forms are what a foreign web page may send without being asked.
    """
    media = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if media != "application/json" and not media.endswith("+json"):
        raise NotJson(f"content-type is {media[:80]!r}; send the body as application/json")
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > most:
            raise TooLarge(f"the body is too large; allowed are {most} bytes")
    if otherwise is not None and not body:
        return otherwise
    return decoded(bytes(body), kind)


def decoded(body: bytes, kind: type[T]) -> T:
    """*body* as a *kind*; `ValidationError` says where it is none."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise ValidationError(f"the body is refused: {error}") from None
    except RecursionError:
        raise ValidationError("the body is refused: it is nested too deeply") from None
    except (msgspec.DecodeError, UnicodeError) as error:
        raise ValidationError(f"the body is not JSON: {error}") from None


def encoded(value: Any) -> bytes:
    """*value* as JSON; what JSON has no word for, as text."""
    return msgspec.json.encode(value, enc_hook=str)


def json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """*value* as a JSON answer."""
    return Response(encoded(value), status, headers, media_type="application/json")
