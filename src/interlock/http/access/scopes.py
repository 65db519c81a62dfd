"""What a route may ask of its caller; one that asks for nothing is closed to everybody."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from starlette.routing import Mount, Route

from interlock.http.access.caller import may
from interlock.http.access.refusals import refuse

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from starlette.routing import BaseRoute

    App = Callable[[Any, Any, Any], Awaitable[None]]

NAMES: Final = ("gateway", "submit", "read", "admin")
"""The scopes that a token may have; ``admin`` includes the others."""

OPEN: Final = "open"
"""Instead of a scope: no token is asked for."""

GATEWAY: Final = "ANY /gateway/{provider}/{path}"
CONNECT: Final = "WEBSOCKET /permits/connect"


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
