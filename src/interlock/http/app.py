"""One ASGI application: the guard, then the gateway or the control plane."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette

from interlock.admission.wire import PATH as CONNECT
from interlock.http.access.book import TokenBook
from interlock.http.access.routes import token_routes
from interlock.http.access.scopes import CONNECT as CONNECT_KEY
from interlock.http.access.scopes import GATEWAY, close, may, scoped
from interlock.http.changes import FleetStreams, fleet_routes
from interlock.http.concurrency import concurrency_routes
from interlock.http.control import routes
from interlock.http.dashboard.routes import Shown, dashboard_routes
from interlock.http.doctor import Doctor, doctor_routes
from interlock.http.events import EventStreams, event_routes
from interlock.http.guard import Guard
from interlock.http.history import history_routes
from interlock.http.ledger import ledger_routes
from interlock.http.metrics import metrics_routes
from interlock.http.overview import Overview
from interlock.http.permits.desk import PermitDesk
from interlock.http.permits.rights import without_limits
from interlock.http.permits.routes import permit_routes
from interlock.http.permits.stream import PermitStream
from interlock.http.problems import no_route
from interlock.http.sessions.routes import session_routes
from interlock.provider.remote import ServedGate
from interlock.stores.memory import MemoryStore
from interlock.telemetry.prometheus import FleetMetrics

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.routing import Route

    from interlock.config import ServerConfig
    from interlock.history import History
    from interlock.http.control import Fleet
    from interlock.http.gateway.proxy import Gateway
    from interlock.provider.gate import ProviderGate
    from interlock.session.sessions import Sessions

    App = Callable[[dict[str, Any], Any, Any], Awaitable[None]]


def create_app(
    gate: ProviderGate,
    gateway: Gateway,
    server: ServerConfig,
    desk: PermitDesk | None = None,
    fleet: Fleet | None = None,
    sessions: Sessions | None = None,
    *,
    doctor: Doctor | None = None,
    book: TokenBook | None = None,
    history: History | None = None,
) -> App:
    """The server's application; it takes no part in uvicorn's lifespan: the fleet outlives it.

    Without a *desk* that was loaded from a store, nothing about permits is remembered over a restart. Without
    a *fleet* there is a gate and nothing else, and without *sessions* their routes answer 503. Without a
    *book* that was loaded from a store, the server's configured token is the only one at its start.
    """
    logging.getLogger("uvicorn.error").addFilter(_not_torn)
    desk = desk or PermitDesk(gate.admission, MemoryStore())
    desk.gate = ServedGate(gate)
    if book is None:
        book = TokenBook(MemoryStore(), gate.clock, server.token)

    metrics = FleetMetrics(gate.admission, gate, sessions, providers=gateway.providers)
    gateway.on_ended = metrics.ended
    watched = FleetStreams(Overview(gate, fleet, sessions).read, clock=gate.clock)
    desk.on_drain(watched.close)

    def ready() -> bool:
        return not gateway.draining

    ledger = None if fleet is None else fleet.limits.ledger
    shown = Shown(gate.admission.kernel, watched, sessions, ledger, ready)
    control = Starlette(
        routes=[
            *ledger_routes(gate, fleet),
            *doctor_routes(doctor or Doctor(gate)),
            *routes(gate, fleet, ready),
            *concurrency_routes(gate),
            *permit_routes(desk),
            *fleet_routes(watched),
            *_event_routes(sessions, desk),
            *session_routes(sessions, desk, ready),
            *metrics_routes(metrics),
            *history_routes(history),
            *dashboard_routes(shown),
            *token_routes(book),
        ],
        exception_handlers={404: no_route, 405: no_route},
    )
    control.router.redirect_slashes = False  # the redirect would be built from the Host header
    close(control.routes)
    through = scoped(gateway, {"ANY": GATEWAY})
    connected = scoped(PermitStream(desk), {"ANY": CONNECT_KEY})
    working = scoped(PermitStream(without_limits(desk)), {"ANY": CONNECT_KEY})

    async def route(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["raw_path"].startswith(b"/gateway/"):
            await through(scope, receive, send)
        elif scope["type"] == "websocket" and scope["path"] == CONNECT:
            await (connected if may(scope, "admin") else working)(scope, receive, send)
        else:
            await control(scope, receive, send)

    any_host = server.host in ("0.0.0.0", "::")  # noqa: S104 - compared with, not bound to
    return Guard(route, hosts=(server.host, *server.allowed_hosts), book=book, any_host=any_host)


def _event_routes(sessions: Sessions | None, desk: PermitDesk) -> list[Route]:
    if sessions is None:
        return []
    streams = EventStreams(sessions.store, clock=sessions.clock)
    desk.on_drain(streams.close)
    return event_routes(streams)


def _not_torn(record: logging.LogRecord) -> bool:
    """Cutting a client's connection after a torn answer is meant, not a failure to report."""
    return not (record.exc_info and isinstance(record.exc_info[1], ConnectionResetError))
