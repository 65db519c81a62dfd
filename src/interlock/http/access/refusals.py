"""An answer of ours to a request that is not let in, in the shape that its client understands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from interlock.http.gateway.dialects import dialect_of, error_body
from interlock.http.problems import PROBLEM_JSON, described, encoded

if TYPE_CHECKING:
    from collections.abc import Sequence

_GATEWAY = b"/gateway/"


def is_gateway(scope: dict[str, Any]) -> bool:
    """Whether the request goes to the gateway, by the path as it came."""
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    return scope["type"] == "http" and raw.startswith(_GATEWAY)


async def refuse(
    scope: dict[str, Any],
    send: Any,
    status: int,
    code: str,
    detail: str,
    headers: Sequence[tuple[bytes, bytes]] = (),
) -> None:
    """Answer with a problem document; in front of the gateway, as the provider's dialect says errors."""
    if is_gateway(scope):
        below = "/" + scope["path"].partition(_GATEWAY.decode())[2].partition("/")[2]
        names = {name.lower().decode("latin-1"): "" for name, _ in scope["headers"]}
        body, media = error_body(dialect_of(below, names), status, code, detail), b"application/json"
    else:
        body, media = encoded(described(status, code, detail)), PROBLEM_JSON.encode()
    # An upgrade, too, is refused by a plain answer: nothing is accepted first.
    prefix = "" if scope["type"] == "http" else "websocket."
    fields = [(b"content-type", media), (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": f"{prefix}http.response.start", "status": status, "headers": fields})
    await send({"type": f"{prefix}http.response.body", "body": body, "more_body": False})
