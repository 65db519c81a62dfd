"""``GET /history``: what a limit looked like in the last hour, or the last day."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, TypedDict

from msgspec import Meta

from interlock.errors import Unavailable
from interlock.http.endpoints import endpoint
from interlock.http.problems import NotFound, json
from interlock.http.queries import Query, read_query

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from interlock.history import History

_HOUR = 3_600


class SamplesAsked(Query):
    """Of which limit, and from when on (by default the last hour); without a limit, which there are."""

    limit: Annotated[str, Meta(max_length=200)] | None = None
    since: Annotated[int, Meta(ge=0, le=10**15)] | None = None


class SamplesAnswer(TypedDict, total=False):
    """Which limits have a history; or of one limit the samples, oldest first, as one list for each number."""

    limits: list[str]
    limit: str
    stepMs: int
    at: list[int]
    inFlight: list[int]
    waiting: list[int]
    waited: list[int]
    waitMedianMs: list[int]
    waitLongestMs: list[int]
    refusals: list[int]
    capacity: list[int | None]


class HistoryRoutes:
    """The route over *history*, without which it answers 503."""

    def __init__(self, history: History | None) -> None:
        self._kept = history

    @endpoint(
        "GET /history",
        "read",
        "What limits looked like",
        tag="limits",
        query=SamplesAsked,
        answers={200: SamplesAnswer},
        problems=(NotFound, Unavailable),
    )
    async def samples(self, request: Request) -> Response:
        """Every 10 s of the last hour, every minute of the last day."""
        if self._kept is None:
            raise Unavailable("this server keeps no history of its limits")
        return json(_history(read_query(request, SamplesAsked), self._kept))


def _history(asked: SamplesAsked, history: History) -> dict[str, Any]:
    name, names = asked.limit, history.names()
    if name is None:
        return {"limits": names}
    if name not in names:
        raise NotFound(f"{name[:80]!r} has no history; these have: {', '.join(names) or 'none yet'}")
    found = history.series(name, history.now() - _HOUR if asked.since is None else asked.since / 1000)
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
