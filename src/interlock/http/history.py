"""``GET /history``: what a limit looked like in the last hour, or the last day."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.routing import Route

from interlock.errors import Unavailable, ValidationError
from interlock.http.problems import NotFound, answering, json

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from interlock.history import History

_HOUR = 3_600
_QUERY = ("limit", "since")


def history_routes(history: History | None) -> list[Route]:
    """The route over *history*, without which it answers 503."""

    async def answer(request: Request) -> Response:
        if history is None:
            raise Unavailable("this server keeps no history of its limits")
        return json(_history(request, history))

    return [Route("/history", answering(answer), methods=["GET"])]


def _history(request: Request, history: History) -> dict[str, Any]:
    query = request.query_params
    for asked in query:
        if asked not in _QUERY:
            raise ValidationError(f"unknown query parameter {asked[:80]!r}; known are {', '.join(_QUERY)}")
    name, names = query.get("limit"), history.names()
    if name is None:
        return {"limits": names}
    if name not in names:
        raise NotFound(f"{name[:80]!r} has no history; these have: {', '.join(names) or 'none yet'}")
    found = history.series(name, _since(query.get("since"), history.now()))
    return {
        "limit": name,
        "stepMs": found.step * 1000,
        "at": [at * 1000 for at in found.at],
        "inFlight": [row.in_flight for row in found.rows],
        "waiting": [row.waiting for row in found.rows],
        "waited": [row.waited for row in found.rows],
        "waitMedianMs": [row.median_ms for row in found.rows],
        "waitLongestMs": [row.longest_ms for row in found.rows],
        "refusals": [row.refusals for row in found.rows],
        "capacity": [row.capacity for row in found.rows],
    }


def _since(text: str | None, now: float) -> float:
    if text is None:
        return now - _HOUR
    if not (text.isascii() and text.isdecimal() and len(text) <= 16):
        raise ValidationError(f"since is {text[:40]!r}; it is in whole milliseconds since the epoch")
    return int(text) / 1000
