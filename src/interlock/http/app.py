"""One ASGI application: the guard, then the gateway or the control plane."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette

from interlock.admission.wire import PATH as CONNECT
from interlock.http.access.book import TokenBook
from interlock.http.access.caller import caller_of, may
from interlock.http.access.refusals import refuse
from interlock.http.access.routes import TokenRoutes
from interlock.http.access.scopes import CONNECT as CONNECT_KEY
from interlock.http.access.scopes import GATEWAY, close, scoped
from interlock.http.changes import FleetRoutes, FleetStreams
from interlock.http.concurrency import ConcurrencyRoutes
from interlock.http.control import ControlRoutes
from interlock.http.dashboard.routes import DashboardRoutes, Shown, StaticRoutes
from interlock.http.doctor import Doctor, DoctorRoutes
from interlock.http.endpoints import Path, routes_of
from interlock.http.events import EventRoutes, EventStreams
from interlock.http.guard import Guard
from interlock.http.history import HistoryRoutes
from interlock.http.ledger import LedgerRoutes
from interlock.http.metrics import MetricsRoutes
from interlock.http.openapi import DescriptionRoutes
from interlock.http.overview import Overview
from interlock.http.permits.desk import PermitDesk
from interlock.http.permits.rights import without_limits
from interlock.http.permits.room import WaitingRoom
from interlock.http.permits.routes import PermitRoutes
from interlock.http.permits.stream import PermitStream
from interlock.http.problems import no_route
from interlock.http.sessions.reception import Reception
from interlock.http.sessions.routes import SessionRoutes
from interlock.http.sessions.runs import RunRoutes
from interlock.http.streaming import StreamRoom
from interlock.http.table import SCOPES
from interlock.provider.remote import ServedGate
from interlock.stores.memory import MemoryStore
from interlock.telemetry.prometheus import FleetMetrics

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from random import Random

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
    chance: Random | None = None,
    history: History | None = None,
) -> App:
    """The server's application; it takes no part in uvicorn's lifespan: the fleet outlives it.

    Without a *desk* that was loaded from a store, nothing about permits is remembered over a restart. Without
    a *fleet* there is a gate and nothing else, and without *sessions* their routes answer 503. Without a
    *book* that was loaded from a store, the server's configured token is the only one at its start. *chance*
    keeps those apart who are told to come again.
    """
    logging.getLogger("uvicorn.error").addFilter(_not_torn)
    desk = desk or PermitDesk(gate.admission, MemoryStore())
    desk.gate = ServedGate(gate)
    book = book or TokenBook(MemoryStore(), gate.clock, server.token)
    metrics = FleetMetrics(gate.admission, gate, sessions, providers=gateway.providers)
    gateway.on_ended.append(metrics.ended)
    streams = StreamRoom()
    overview = Overview(gate, fleet, sessions, desk.quarantined)
    watched = FleetStreams(overview.read, clock=gate.clock, room=streams)
    gateway.budgets = desk.budgets = book.budgets
    gateway.room = desk.room = _room(gate, server)
    desk.on_drain(watched.close)
    ready = partial(_is_ready, gateway)
    ledger = None if fleet is None else fleet.limits.ledger
    reception = Reception(sessions, desk, ready)
    holders = [
        ControlRoutes(gate, fleet, ready),
        LedgerRoutes(gate, fleet),
        PermitRoutes(desk),
        SessionRoutes(reception),
        RunRoutes(reception),
        EventRoutes(_event_streams(sessions, desk, streams)),
        ConcurrencyRoutes(gate),
        FleetRoutes(watched),
        DoctorRoutes(doctor or Doctor(gate)),
        MetricsRoutes(metrics),
        TokenRoutes(book),
        HistoryRoutes(history),
        DashboardRoutes(Shown(gate.admission.kernel, watched, sessions, ledger, ready)),
        StaticRoutes(),
    ]
    control = _control_plane(holders)
    through = scoped(gateway, SCOPES[GATEWAY])
    connected = _connecting(desk)

    async def route(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["raw_path"].startswith(b"/gateway/"):
            await through(scope, receive, send)
        elif scope["type"] == "websocket" and scope["path"] == CONNECT:
            await connected(scope, receive, send)
        elif scope["type"] == "http" and gateway.tracing is not None:
            with gateway.tracing.within(scope["headers"]):
                await control(scope, receive, send)
        else:
            await control(scope, receive, send)

    any_host = server.socket is None and server.host in ("0.0.0.0", "::")  # noqa: S104 - compared with, not bound to
    return Guard(
        route, hosts=(server.host, *server.allowed_hosts), book=book, any_host=any_host, chance=chance
    )


def _is_ready(gateway: Gateway) -> bool:
    return not gateway.draining


def _control_plane(holders: list[Any]) -> Starlette:
    """The endpoints of *holders*, and the description of them all."""
    routes = routes_of(*holders, DescriptionRoutes([*holders, DescriptionRoutes]))
    control = Starlette(routes=routes, exception_handlers={404: no_route})
    control.router.redirect_slashes = False  # the redirect would be built from the Host header
    close(control.routes, but=Path)
    return control


def _room(gate: ProviderGate, server: ServerConfig) -> WaitingRoom:
    return WaitingRoom(
        gate.admission.kernel,
        most=server.max_waiting,
        most_per_limit=server.max_waiting_per_limit,
        most_bytes=server.max_waiting_bytes,
    )


_SEES_ALL = "a tenant's token takes permits by plain HTTP: this connection is shown those of everybody"


def _connecting(desk: PermitDesk) -> App:
    """The connections of permits: who is no admin changes no limits there, and a tenant has none."""
    whole = scoped(PermitStream(desk), SCOPES[CONNECT_KEY])
    working = scoped(PermitStream(without_limits(desk)), SCOPES[CONNECT_KEY])

    async def connected(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if caller_of(scope).tenant is not None:
            await refuse(scope, send, 403, "forbidden", _SEES_ALL)
        else:
            await (whole if may(scope, "admin") else working)(scope, receive, send)

    return connected


def _event_streams(sessions: Sessions | None, desk: PermitDesk, room: StreamRoom) -> EventStreams | None:
    if sessions is None:
        return None
    streams = EventStreams(sessions.store, clock=sessions.clock, room=room)
    desk.on_drain(streams.close)
    return streams


def _not_torn(record: logging.LogRecord) -> bool:
    """Cutting a client's connection after a torn answer is meant, not a failure to report."""
    return not (record.exc_info and isinstance(record.exc_info[1], ConnectionResetError))
