"""All routes of the server: where each is declared, and the scope of those that are no endpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from interlock.http.access.routes import TokenRoutes
from interlock.http.access.scopes import CONNECT, GATEWAY, OPEN
from interlock.http.changes import FleetRoutes
from interlock.http.concurrency import ConcurrencyRoutes
from interlock.http.control import ControlRoutes
from interlock.http.dashboard.routes import DashboardRoutes, StaticRoutes
from interlock.http.doctor import DoctorRoutes
from interlock.http.endpoints import declared
from interlock.http.events import EventRoutes
from interlock.http.history import HistoryRoutes
from interlock.http.ledger import LedgerRoutes
from interlock.http.metrics import MetricsRoutes
from interlock.http.openapi import DescriptionRoutes
from interlock.http.permits.routes import PermitRoutes
from interlock.http.sessions.routes import SessionRoutes
from interlock.http.sessions.runs import RunRoutes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from interlock.http.endpoints import Endpoint

HOLDERS: Final = (
    ControlRoutes,
    LedgerRoutes,
    PermitRoutes,
    SessionRoutes,
    RunRoutes,
    EventRoutes,
    ConcurrencyRoutes,
    FleetRoutes,
    DoctorRoutes,
    MetricsRoutes,
    TokenRoutes,
    HistoryRoutes,
    DashboardRoutes,
    StaticRoutes,
    DescriptionRoutes,
)
"""The classes that declare endpoints; the application has one object of each."""

ENDPOINTS: Final[tuple[Endpoint, ...]] = tuple(one for holder in HOLDERS for one in declared(holder))

SCOPES: Final[Mapping[str, str]] = {
    **{one.key: one.scope for one in ENDPOINTS},
    GATEWAY: "gateway",
    CONNECT: "submit",
}
"""What every route asks of its caller, by method and path as it declares them."""

OPEN_PATHS: Final = frozenset(one.path for one in ENDPOINTS if one.scope == OPEN)
