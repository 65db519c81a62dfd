"""The routes of the dashboard: its shell and files, open to everybody, and the stream of what is on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from starlette.responses import Response
from starlette.routing import Route

from interlock import __version__
from interlock.errors import ValidationError
from interlock.http.access.scopes import CALLER, NAMES
from interlock.http.dashboard.assets import PROTECTION, address, static_routes
from interlock.http.dashboard.fleet import PAGE, FleetView
from interlock.http.dashboard.ledger import LedgerView
from interlock.http.dashboard.parts import render
from interlock.http.dashboard.sessions import SessionsView, SessionView
from interlock.http.dashboard.stream import PageStream, once
from interlock.http.problems import answering
from interlock.http.streaming import wants_stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

    from interlock.core.kernel import Kernel
    from interlock.http.access.scopes import Caller
    from interlock.http.changes import FleetStreams
    from interlock.http.dashboard.fleet import View
    from interlock.ledger import Ledger
    from interlock.session.sessions import Sessions

VIEWS: Final = {
    "fleet": ("open", "n"),
    "sessions": ("id", "after"),
    "ledger": ("limit", "before"),
}
"""The pages, each with what may be asked of it."""


class Shown(NamedTuple):
    """What the dashboard shows."""

    kernel: Kernel
    streams: FleetStreams
    sessions: Sessions | None
    ledger: Ledger | None
    ready: Callable[[], bool]


def dashboard_routes(shown: Shown) -> list[Route]:
    """``/``, ``/static`` and ``/dashboard/stream``."""

    async def shell(request: Request) -> Response:
        page = render("shell.html", version=__version__, address=address)
        headers = {**PROTECTION, "cache-control": "no-cache"}
        return Response(page, 200, headers, media_type="text/html; charset=utf-8")

    async def stream(request: Request) -> Response:
        view = _view(request, shown)
        accept = request.headers.getlist("accept")
        if accept and not wants_stream(accept) and "*/*" not in ",".join(accept):
            headers = {**PROTECTION, "cache-control": "no-store"}
            return Response(await once(shown.streams, view), 200, headers, media_type="text/html")
        if request.method == "HEAD":
            return Response(None, 200, PROTECTION, media_type="text/event-stream")
        shown.streams.check_room()
        return PageStream(shown.streams, view, shown.ready)

    return [
        Route("/", shell, methods=["GET"]),
        *static_routes(),
        Route("/dashboard/stream", answering(stream), methods=["GET"]),
    ]


def _view(request: Request, shown: Shown) -> View:
    query, caller = request.query_params, request.scope.get(CALLER)
    name = query.get("view", "fleet")
    if name not in VIEWS:
        raise ValidationError(f"view is {name[:80]!r}; allowed are {', '.join(VIEWS)}")
    for parameter in query:
        if parameter not in ("view", *VIEWS[name]):
            known = ", ".join(VIEWS[name])
            raise ValidationError(f"unknown query parameter {parameter[:80]!r}; {name} has {known}")
    may = _scopes(caller)
    if name == "fleet":
        most = _number(query.get("n"), "n") or PAGE
        return FleetView(shown.kernel, shown.streams.clock, may, query.get("open"), most)
    if name == "ledger":
        return LedgerView(shown.ledger, query.get("limit"), _number(query.get("before"), "before"))
    if (session_id := query.get("id")) is not None:
        return SessionView(shown.sessions, session_id, may)
    return SessionsView(shown.sessions, query.get("after"))


def _scopes(caller: Caller | None) -> list[str]:
    return [] if caller is None else [name for name in NAMES if caller.may(name)]


def _number(text: str | None, name: str) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 13 and int(text) > 0):
        raise ValidationError(f"{name} is {text[:40]!r}; it is a whole number from 1")
    return int(text)
