"""``GET /metrics``, for Prometheus and whatever reads the same format."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import Response

from interlock.http.endpoints import endpoint
from interlock.http.queries import AnyQuery
from interlock.telemetry.exposition import CONTENT_TYPE

if TYPE_CHECKING:
    from starlette.requests import Request

    from interlock.telemetry.prometheus import FleetMetrics


class MetricsRoutes:
    """The one route over *metrics*. Whatever a scraper would rather have, it gets the text format."""

    def __init__(self, metrics: FleetMetrics) -> None:
        self._metrics = metrics

    @endpoint(
        "GET /metrics",
        "read",
        "The numbers, for Prometheus",
        tag="state",
        query=AnyQuery,
        answers={200: "text/plain"},
    )
    async def metrics(self, request: Request) -> Response:
        headers = {"content-type": CONTENT_TYPE, "cache-control": "no-store"}
        return Response(self._metrics.text(), headers=headers)
