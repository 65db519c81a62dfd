"""What a route may ask of its caller; one that asks for nothing is closed to everybody."""

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


async def admits(scope: Any, send: Any, need: str | None) -> bool:
    """Whether who asks has the scope *need*; if not, this tells them so. None is a scope that nobody has."""
    if need == OPEN or (need is not None and may(scope, need)):
        return True
    if need is None:
        await refuse(scope, send, 403, "closed", "no scope opens this route")
        return False
    detail = f"the token has not the scope {need!r}; make one with `interlock token create`"
    challenge = b'Bearer error="insufficient_scope", scope="%b"' % need.encode()
    await refuse(scope, send, 403, "insufficient_scope", detail, [(b"www-authenticate", challenge)])
    return False


def scoped(app: App, need: str | None) -> App:
    """*app*, for those only who have the scope *need*."""

    async def checked(scope: Any, receive: Any, send: Any) -> None:
        if await admits(scope, send, need):
            await app(scope, receive, send)

    return checked


def close(routes: Iterable[BaseRoute], *, but: type) -> None:
    """Shut each of *routes* whose application is not of the kind *but*, which asks for scopes itself."""
    for route in routes:
        if not isinstance(route, Route | Mount):
            raise TypeError(f"{route!r} is of a kind that cannot be closed")
        if not isinstance(route.app, but):
            route.app = scoped(route.app, None)
