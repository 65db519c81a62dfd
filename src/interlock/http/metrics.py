"""``GET /metrics``, for Prometheus and whatever reads the same format."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import Response
from starlette.routing import Route

from interlock.telemetry.exposition import CONTENT_TYPE

if TYPE_CHECKING:
    from starlette.requests import Request

    from interlock.telemetry.prometheus import FleetMetrics


def metrics_routes(metrics: FleetMetrics) -> list[Route]:
    """The one route over *metrics*. Whatever a scraper would rather have, it gets the text format."""

    async def answer(request: Request) -> Response:
        return Response(metrics.text(), headers={"content-type": CONTENT_TYPE, "cache-control": "no-store"})

    return [Route("/metrics", answer, methods=["GET"])]
