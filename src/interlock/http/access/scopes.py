"""What each route asks of its caller. One table: a route that is not in it is closed to everybody."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from starlette.routing import Mount, Route

from interlock.http.access.refusals import refuse

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from starlette.routing import BaseRoute

    App = Callable[[Any, Any, Any], Awaitable[None]]

NAMES: Final = ("gateway", "submit", "read", "admin")
"""The scopes that a token may have; ``admin`` includes the others."""

OPEN: Final = "open"
"""Instead of a scope: no token is asked for."""

CALLER: Final = "interlock.caller"
"""Where the guard puts the `Caller` in the ASGI scope."""

GATEWAY: Final = "ANY /gateway/{provider}/{path}"
CONNECT: Final = "WEBSOCKET /permits/connect"

TABLE: Final[Mapping[str, str]] = {
    "GET /healthz": OPEN,
    "GET /readyz": OPEN,
    # -- state
    "GET /limits": "read",
    "GET /limits/{name:path}/history": "read",
    "GET /limiter/status": "read",
    "GET /governor/stats": "read",
    "GET /pools": "read",
    "GET /metrics": "read",
    "GET /events": "read",
    "GET /concurrency/limits": "read",
    "GET /concurrency/limits/{id:path}": "read",
    "GET /concurrency/cooldown/{id:path}": "read",
    "GET /concurrency/status": "read",
    "GET /waiting": "read",
    "GET /waiting/{id:path}": "read",
    "GET /sessions": "read",
    "GET /sessions/{id}": "read",
    "GET /sessions/{id}/events": "read",
    "GET /sessions/{id}/runs": "read",
    "GET /runs/{id}": "read",
    "GET /runs/{id}/wait": "read",
    "GET /workers": "read",
    # -- the operator
    "PUT /limits/{name:path}": "admin",
    "PUT /concurrency/limits/{id:path}": "admin",
    "DELETE /concurrency/limits/{id:path}": "admin",
    "PUT /concurrency/cooldown/{id:path}": "admin",
    "POST /providers/{id:path}/pause": "admin",
    "POST /providers/{id:path}/resume": "admin",
    "GET /doctor": "admin",
    "POST /tokens": "admin",
    "GET /tokens": "admin",
    "DELETE /tokens/{name}": "admin",
    # -- work
    "POST /permits": "submit",
    "POST /permits/renew": "submit",
    "POST /permits/{id:path}/renew": "submit",
    "DELETE /permits/{id:path}": "submit",
    "DELETE /waiting/{id:path}": "submit",
    CONNECT: "submit",
    "POST /sessions": "submit",
    "POST /sessions/{id}/drain": "submit",
    "POST /sessions/{id}/close": "submit",
    "POST /sessions/{id}/runs": "submit",
    "POST /runs/{id}/cancel": "submit",
    "POST /runs/{id}/interrupt": "submit",
    "POST /runs/{id}/pause": "submit",
    "POST /runs/{id}/resume": "submit",
    GATEWAY: "gateway",
}
"""By method and path as the route declares it; "ANY" is one for all methods."""

OPEN_PATHS: Final = frozenset(key.partition(" ")[2] for key, scope in TABLE.items() if scope == OPEN)


class Caller(NamedTuple):
    """Who asks: what its tokens allow, and their names, if they are stored ones."""

    scopes: frozenset[str]
    names: tuple[str, ...] = ()

    def may(self, scope: str) -> bool:
        """Whether *scope* is among what it may do."""
        return scope in self.scopes or "admin" in self.scopes


ANYBODY: Final = Caller(frozenset(("admin",)))
"""Who asks a server without any token: all on this machine may do everything."""


def may(scope: Mapping[str, Any], what: str) -> bool:
    """Whether the caller of the request *scope* may do *what*; nobody may whom no guard has seen."""
    caller: Caller | None = scope.get(CALLER)
    return caller is not None and caller.may(what)


def scoped(app: App, keys: Mapping[str, str]) -> App:
    """*app*, for those only who have the scope of what they ask.

    *keys* says for each method (and "ANY" for the others) which entry of the table that is.
    """
    needed = {method: TABLE.get(key) for method, key in keys.items()}

    async def checked(scope: Any, receive: Any, send: Any) -> None:
        method = scope.get("method", "ANY")
        need = needed.get("GET" if method == "HEAD" else method, needed.get("ANY"))
        if need == OPEN or (need is not None and may(scope, need)):
            await app(scope, receive, send)
        elif need is None:
            await refuse(scope, send, 403, "closed", "no scope opens this route")
        else:
            detail = f"the token has not the scope {need!r}; make one with `interlock token create`"
            challenge = b'Bearer error="insufficient_scope", scope="%b"' % need.encode()
            headers = [(b"www-authenticate", challenge)]
            await refuse(scope, send, 403, "insufficient_scope", detail, headers)

    return checked


def close(routes: Iterable[BaseRoute]) -> None:
    """Put each of *routes* behind its scope: what is checked is the very route that answers."""
    for route in routes:
        if not isinstance(route, Route | Mount):
            raise TypeError(f"{route!r} is of a kind that cannot be closed")
        route.app = scoped(route.app, {key.partition(" ")[0]: key for key in keys_of(route)})


def keys_of(route: BaseRoute) -> list[str]:
    """What *route* is called in the table: one entry for each of its methods."""
    methods = getattr(route, "methods", None) or {"ANY"}
    return [f"{method} {getattr(route, 'path', '')}" for method in sorted(methods) if method != "HEAD"]
