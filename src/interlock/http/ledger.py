"""The history of a limit over HTTP, and who it is that changes one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, TypedDict

from msgspec import Meta

from interlock.errors import StoreError, Unavailable
from interlock.http.endpoints import endpoint
from interlock.http.problems import NotFound, json
from interlock.http.queries import MOST_LISTED, Query, read_query
from interlock.ledger import Cause

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from interlock.http.control import Fleet
    from interlock.ledger import Change, Ledger
    from interlock.provider.gate import ProviderGate

_PROVIDER = "provider:"


def operator(request: Request) -> Cause:
    """Who asks for a change, as the ledger has it: the call and the program, nothing that is secret."""
    program = request.headers.get("user-agent", "").partition(" ")[0]
    call = f"{request.method} /{request.url.path.split('/')[1]}"
    return Cause("operator", f"{call} by {program[:60]}" if program else call)


class ChangeAnswer(TypedDict):
    """One change of a limit: who or what made it, and by what that is known."""

    number: int
    at: int
    by: str
    old: int | None
    new: int | None
    evidence: str


class HistoryPage(TypedDict):
    """The latest changes first, and where to go on."""

    name: str
    capacity: int | None
    changes: list[ChangeAnswer]
    next: int | None


_Number = Annotated[int, Meta(ge=1, le=2**53)]


class HistoryAsked(Query):
    """A part of a history: *after*, or *before* as it was called first, is the ``next`` of the last page."""

    limit: Annotated[int, Meta(ge=1, le=MOST_LISTED)] = 100
    after: _Number | None = None
    before: _Number | None = None


class LedgerRoutes:
    """The history of the limits of *gate* and *fleet*."""

    def __init__(self, gate: ProviderGate, fleet: Fleet | None) -> None:
        self._gate = gate
        self._fleet = fleet

    @endpoint(
        "GET /limits/{name:path}/history",
        "read",
        "What became of a limit",
        tag="limits",
        query=HistoryAsked,
        answers={200: HistoryPage},
        problems=(NotFound, StoreError, Unavailable),
    )
    async def history(self, request: Request) -> Response:
        """The latest changes first. A provider's id will do as the name."""
        asked = read_query(request, HistoryAsked)
        ledger = None if self._fleet is None else self._fleet.limits.ledger
        if ledger is None:
            raise Unavailable("this server keeps no ledger of its limits")
        name = _meant(request.path_params["name"], ledger, self._gate)
        before = asked.before if asked.after is None else asked.after
        found = await ledger.history(name, before=before, limit=asked.limit + 1)
        shown, more = found[: asked.limit], len(found) > asked.limit
        return json(
            {
                "name": name,
                "capacity": ledger.known().get(name),
                "changes": [_change(one) for one in shown],
                "next": shown[-1].number if more else None,
            }
        )


def _meant(said: str, ledger: Ledger, gate: ProviderGate) -> str:
    """The limit that *said* names, or the provider's of that id."""
    names = {*ledger.known(), *gate.admission.limits()}
    for name in (said, _PROVIDER + said):
        if name in names:
            return name
    known = ", ".join(sorted(name.removeprefix(_PROVIDER) for name in names)[:50]) or "none"
    raise NotFound(f"unknown limit {said!r:.80}; known are: {known}")


def _change(change: Change) -> ChangeAnswer:
    return {
        "number": change.number,
        "at": round(change.at * 1000),
        "by": change.by,
        "old": change.old,
        "new": change.new,
        "evidence": change.evidence,
    }
