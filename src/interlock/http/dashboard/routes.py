"""The routes of the dashboard: its shell and files, open to everybody, and the stream of what is on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Literal, NamedTuple

from msgspec import Meta
from starlette.responses import Response

from interlock import __version__
from interlock.errors import ValidationError
from interlock.http.access.caller import Forbidden, caller_of
from interlock.http.access.scopes import NAMES
from interlock.http.dashboard import assets
from interlock.http.dashboard.fleet import PAGE, FleetView
from interlock.http.dashboard.ledger import LedgerView
from interlock.http.dashboard.parts import render
from interlock.http.dashboard.sessions import SessionsView, SessionView
from interlock.http.dashboard.stream import PageStream, once
from interlock.http.endpoints import endpoint
from interlock.http.queries import AnyQuery, Query, read_query
from interlock.http.streaming import wants_stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

    from interlock.core.kernel import Kernel
    from interlock.http.access.caller import Caller
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


_Number = Annotated[int, Meta(ge=1, le=10**12)]


class PageAsked(Query, rename=None):
    """Which page, and what of it."""

    view: Literal["fleet", "sessions", "ledger"] = "fleet"
    open: str | None = None
    n: _Number | None = None
    id: str | None = None
    after: str | None = None
    limit: str | None = None
    before: _Number | None = None


class Shown(NamedTuple):
    """What the dashboard shows."""

    kernel: Kernel
    streams: FleetStreams
    sessions: Sessions | None
    ledger: Ledger | None
    ready: Callable[[], bool]


class DashboardRoutes:
    """The shell of the dashboard, which has no data, and the stream of what is on a page."""

    def __init__(self, shown: Shown) -> None:
        self._shown = shown

    @endpoint(
        "GET /",
        "open",
        "The dashboard",
        tag="dashboard",
        query=AnyQuery,
        answers={200: "text/html"},
        documented=False,
    )
    async def shell(self, request: Request) -> Response:
        """A page for people; a browser loads it without a token."""
        page = render("shell.html", version=__version__, address=assets.address)
        headers = {**assets.PROTECTION, "cache-control": "no-cache"}
        return Response(page, 200, headers, media_type="text/html; charset=utf-8")

    @endpoint(
        "GET /dashboard/stream",
        "read",
        "A page of the dashboard as it changes",
        tag="dashboard",
        query=PageAsked,
        answers={200: ("text/html", "text/event-stream")},
        documented=False,
    )
    async def page_stream(self, request: Request) -> Response:
        """HTML for the dashboard's own page; programs find all of it at other addresses."""
        shown, caller = self._shown, caller_of(request.scope)
        if caller.tenant is not None:
            raise Forbidden("the dashboard shows everybody's work; a tenant's token reads its own over HTTP")
        view = _view(read_query(request, PageAsked), shown, caller)
        accept = request.headers.getlist("accept")
        if accept and not wants_stream(accept) and "*/*" not in ",".join(accept):
            headers = {**assets.PROTECTION, "cache-control": "no-store"}
            return Response(await once(shown.streams, view), 200, headers, media_type="text/html")
        if request.method == "HEAD":
            return Response(None, 200, assets.PROTECTION, media_type="text/event-stream")
        shown.streams.check_room(caller)
        return PageStream(shown.streams, view, shown.ready, caller)


class StaticRoutes:
    """The files that the shell loads: one endpoint for each, so that no path is looked up on the disk."""


def _serving(number: int, name: str) -> None:
    async def answer(self: StaticRoutes, request: Request) -> Response:
        return assets.answer(name, request.query_params.get("v"))

    answer.__name__ = f"file_{number}"
    declare = endpoint(
        f"GET /static/{name}",
        "open",
        "A file of the dashboard",
        tag="dashboard",
        query=AnyQuery,
        answers={200: assets.FILES[name]},
        documented=False,
    )
    setattr(StaticRoutes, answer.__name__, declare(answer))


for _number, _name in enumerate(assets.FILES):
    _serving(_number, _name)


def _view(asked: PageAsked, shown: Shown, caller: Caller) -> View:
    given = {
        name for name in ("open", "n", "id", "after", "limit", "before") if getattr(asked, name) is not None
    }
    for name in given.difference(VIEWS[asked.view]):
        raise ValidationError(f"{name} is nothing of the {asked.view}; it has {', '.join(VIEWS[asked.view])}")
    may = [name for name in NAMES if caller.may(name)]
    if asked.view == "fleet":
        return FleetView(shown.kernel, shown.streams.clock, may, asked.open, asked.n or PAGE)
    if asked.view == "ledger":
        return LedgerView(shown.ledger, asked.limit, asked.before)
    if asked.id is not None:
        return SessionView(shown.sessions, asked.id, may)
    return SessionsView(shown.sessions, asked.after)
