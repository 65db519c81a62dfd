"""The history of a limit over HTTP, and who it is that changes one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.routing import Route

from interlock.errors import Unavailable, ValidationError
from interlock.http.problems import NotFound, answering, json
from interlock.ledger import Cause

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from interlock.http.control import Fleet
    from interlock.ledger import Change, Ledger
    from interlock.provider.gate import ProviderGate

_PROVIDER = "provider:"
_MOST = 1_000


def operator(request: Request) -> Cause:
    """Who asks for a change, as the ledger has it: the call and the program, nothing that is secret."""
    program = request.headers.get("user-agent", "").partition(" ")[0]
    call = f"{request.method} /{request.url.path.split('/')[1]}"
    return Cause("operator", f"{call} by {program[:60]}" if program else call)


def ledger_routes(gate: ProviderGate, fleet: Fleet | None) -> list[Route]:
    """``GET /limits/{name}/history``: the latest changes first, in pages."""

    async def history(request: Request) -> Response:
        ledger = None if fleet is None else fleet.limits.ledger
        if ledger is None:
            raise Unavailable("this server keeps no ledger of its limits")
        name = _meant(request.path_params["name"], ledger, gate)
        limit, before = _number(request, "limit", 100), _number(request, "before", None)
        assert limit is not None
        found = await ledger.history(name, before=before, limit=min(limit, _MOST) + 1)
        shown, more = found[: min(limit, _MOST)], len(found) > min(limit, _MOST)
        return json(
            {
                "name": name,
                "capacity": ledger.known().get(name),
                "changes": [_change(one) for one in shown],
                "next": shown[-1].number if more else None,
            }
        )

    return [Route("/limits/{name:path}/history", answering(history), methods=["GET"])]


def _meant(said: str, ledger: Ledger, gate: ProviderGate) -> str:
    """The limit that *said* names, or the provider's of that id."""
    names = {*ledger.known(), *gate.admission.limits()}
    for name in (said, _PROVIDER + said):
        if name in names:
            return name
    known = ", ".join(sorted(name.removeprefix(_PROVIDER) for name in names)[:50]) or "none"
    raise NotFound(f"unknown limit {said!r:.80}; known are: {known}")


def _number(request: Request, name: str, otherwise: int | None) -> int | None:
    text = request.query_params.get(name)
    if text is None:
        return otherwise
    if not (text.isascii() and text.isdecimal() and len(text) < 13 and int(text) > 0):
        raise ValidationError(f"{name} is {text!r:.40}; it is a whole number from 1")
    return int(text)


def _change(change: Change) -> dict[str, Any]:
    return {
        "number": change.number,
        "at": round(change.at * 1000),
        "by": change.by,
        "old": change.old,
        "new": change.new,
        "evidence": change.evidence,
    }
