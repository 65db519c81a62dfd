"""Who asks, and what that allows: which scopes, whose things, and how far to the front of a line.

What belongs to a tenant is told by its name: ``s1@acme`` is acme's. So it stays told in every store, and an
id of somebody else is unknown before anything is looked up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from interlock.errors import InterlockError, ValidationError

if TYPE_CHECKING:
    from collections.abc import Mapping

CALLER: Final = "interlock.caller"
"""Where the guard puts the `Caller` in the ASGI scope."""
_PLAINER: Final = {
    "timeout": "the deadline passed while waiting; others hold what was asked for",
    "deadlock": "this nested claim would close a circle in which everyone waits",
}
E = TypeVar("E", bound=InterlockError)
OLDEST_START: Final = 86_400.0
"""Seconds that work may have begun ago, for tokens that are no admin's."""


class Forbidden(InterlockError):
    """The token does not allow this."""

    default_code = "forbidden"
    status = 403


class Caller(NamedTuple):
    """Who asks: what its tokens allow, and their names, if they are stored ones.

    *tenant* None sees everything; *min_priority* None goes to any place in a line.
    """

    scopes: frozenset[str]
    names: tuple[str, ...] = ()
    tenant: str | None = None
    min_priority: int | None = None

    def may(self, scope: str) -> bool:
        """Whether *scope* is among what it may do."""
        return scope in self.scopes or "admin" in self.scopes

    # -- whose

    def owns(self, *names: str | None) -> bool:
        """Whether the thing that has these names (its id, its owner) is this caller's to see."""
        return self.tenant is None or any(name is not None and name.endswith(self.suffix) for name in names)

    @property
    def suffix(self) -> str:
        """How the names of its things end."""
        return "" if self.tenant is None else f"@{self.tenant}"

    def check_name(self, what: str, name: str | None) -> None:
        """Raises `ValidationError` for a *name* that a thing of this caller's cannot have."""
        if name is not None and not self.owns(name):
            raise ValidationError(
                f"{what} is {name[:80]!r}; for the tenant of this token it ends with {self.suffix!r}"
            )

    def told(self, error: E) -> E:
        """*error* as this caller may hear it: what names others' work says only that it is in the way."""
        if self.tenant is not None:
            error.message = _PLAINER.get(error.code, "the state of what it names does not allow this")
            error.args, error.details = (error.message,), {}
        return error

    # -- when

    def check_priority(self, priority: int) -> int:
        """*priority*, if it may have that; raises `Forbidden`."""
        if self.min_priority is not None and priority < self.min_priority:
            raise Forbidden(
                f"priority is {priority}; the token allows none before {self.min_priority}",
                code="priority_not_allowed",
            )
        return priority

    def started(self, since: float | None, now: float) -> float | None:
        """When work is taken to have begun that says *since*, in seconds: never later than now, and not so
        long ago as to pass everybody."""
        if since is None:
            return None
        oldest = float("-inf") if self.min_priority is None else now - OLDEST_START
        return max(min(since, now), oldest)


ANYBODY: Final = Caller(frozenset(("admin",)))
"""Who asks a server without any token: all on this machine may do everything."""
NOBODY: Final = Caller(frozenset())
"""Whom no guard has seen: no route lets it in."""


def caller_of(scope: Mapping[str, Any]) -> Caller:
    """Who asks the request *scope*; `NOBODY` unless a guard has looked at it."""
    caller: Caller | None = scope.get(CALLER)
    return NOBODY if caller is None else caller


def may(scope: Mapping[str, Any], what: str) -> bool:
    """Whether the caller of the request *scope* may do *what*; nobody may whom no guard has seen."""
    return caller_of(scope).may(what)
