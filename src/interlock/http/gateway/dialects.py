"""The providers' own error shapes, so that every SDK raises what its users already catch.

An answer of ours must look like one of the provider: as a body while the status line is still ours
to choose, and as an event of the stream once it has been sent.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from interlock.http.retrying import retry_fields
from interlock.provider.retry import inflated

if TYPE_CHECKING:
    from collections.abc import Mapping

Dialect = Literal["openai", "responses", "anthropic"]
"""``responses`` is OpenAI's as well: the same bodies, other events."""

PING: Final = b": ping\n\n"
"""A comment of an event stream: every client skips it, and no idle timer fires."""

_RETRY_AFTER_MAX: Final = 900.0
_EXCERPT: Final = 500
_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\s]+")
_QUOTA: Final = ("quota", "insufficient_quota")

_ANTHROPIC_TYPES: Final = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def dialect_of(path: str, headers: Mapping[str, str]) -> Dialect:
    """The dialect of a request, by the path below the provider and its lower-case headers."""
    path = path.partition("?")[0].rstrip("/")
    if "anthropic-version" in headers or path.endswith(("/messages", "/messages/count_tokens", "/complete")):
        return "anthropic"
    return "responses" if path.endswith("/responses") else "openai"


def error_body(dialect: Dialect, status: int, code: str, message: str) -> bytes:
    """A JSON error as the provider itself would answer it with *status*."""
    return msgspec.json.encode(_wrapped(dialect, _error(dialect, status, code, message)))


def error_event(dialect: Dialect, status: int, code: str, message: str) -> bytes:
    """The same error as the last event of a stream whose status line has gone out already."""
    return _event(dialect, _wrapped(dialect, _error(dialect, status, code, message)))


def upstream_error_event(dialect: Dialect, status: int, body: bytes, content_encoding: str = "") -> bytes:
    """The error that the provider answered, as an event of the stream.

    What it said is kept member by member where it has the shape of an error; else its text, or the
    beginning of it, becomes the message.
    """
    body = inflated(body, content_encoding)
    answer = _decoded(body)
    error = answer.get("error")
    if not (isinstance(error, dict) and isinstance(error.get("message"), str)):
        return error_event(dialect, status, "upstream_error", _said(status, answer, body))
    own = _error(dialect, status, "upstream_error", "")
    whole = _wrapped(dialect, {"type": own["type"], **error})
    if dialect == "anthropic" and isinstance(answer.get("request_id"), str):
        whole["request_id"] = answer["request_id"]
    return _event(dialect, whole)


def refusal_headers(retry_after: float | None, *, quota: bool = False) -> list[tuple[bytes, bytes]]:
    """When to come back, in both spellings that the SDKs read; and not at all for a quota."""
    headers: list[tuple[bytes, bytes]] = []
    if retry_after is not None and not math.isnan(retry_after):
        seconds = min(max(retry_after, 0.0), _RETRY_AFTER_MAX)
        headers += retry_fields(seconds)
    if quota:
        headers.append((b"x-should-retry", b"false"))
    return headers


def _error(dialect: Dialect, status: int, code: str, message: str) -> dict[str, Any]:
    if dialect == "anthropic":
        kind = _ANTHROPIC_TYPES.get(status)
        kind = kind or ("api_error" if status >= 500 else "invalid_request_error")
        return {"type": kind, "message": message, "details": {"error_code": code}}
    if status == 429:
        kind = "insufficient_quota" if code in _QUOTA else "rate_limit_error"
    else:
        kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"message": message, "type": kind, "param": None, "code": code}


def _wrapped(dialect: Dialect, error: dict[str, Any]) -> dict[str, Any]:
    return {"type": "error", "error": error} if dialect == "anthropic" else {"error": error}


def _event(dialect: Dialect, whole: dict[str, Any]) -> bytes:
    if dialect == "openai":
        return b"data: " + msgspec.json.encode(whole) + b"\n\n"
    if dialect == "responses":
        # The members flat as the reference has them, and nested as the SDK raises them.
        error = whole["error"]
        flat = {name: error.get(name) for name in ("code", "message", "param")}
        whole = {"type": "error", **flat, "sequence_number": 0, **whole}
    return b"event: error\ndata: " + msgspec.json.encode(whole) + b"\n\n"


def _decoded(body: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError, ValueError):
        return {}


def _said(status: int, answer: dict[str, Any], body: bytes) -> str:
    for name in ("error", "message", "detail"):
        said = answer.get(name)
        if isinstance(said, str) and said:
            break
    else:
        said = body[: 4 * _EXCERPT].decode("utf-8", "replace")
    said = _UNPRINTABLE.sub(" ", said).strip()[:_EXCERPT]
    return f"The provider answered {status}: {said or 'without saying why'}"
