"""What a client of permits may not do over its connection unless its token is an admin's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from interlock.http.access.caller import Forbidden

if TYPE_CHECKING:
    from interlock.http.permits.desk import PermitDesk


class _WithoutLimits:
    """A desk whose limits and gates stay as they are; what a provider has refused is reported still."""

    def __init__(self, desk: PermitDesk) -> None:
        self._desk = desk

    def __getattr__(self, name: str) -> Any:
        return getattr(self._desk, name)

    def order(self, order: str, *more: Any) -> Any:
        """Only what happened, not what an operator wants."""
        return self._desk.order(order, *more) if order == "report" else self._refuse()

    def set_limit(self, *_: Any) -> Any:
        """Refused."""
        self._refuse()

    def remove_limit(self, *_: Any) -> Any:
        """Refused."""
        self._refuse()

    def _refuse(self) -> None:
        raise Forbidden(
            "limits, cooldowns and pauses need a token with the scope 'admin'", code="insufficient_scope"
        )


def without_limits(desk: PermitDesk) -> PermitDesk:
    """*desk* for clients with the scope ``submit``."""
    return cast("PermitDesk", _WithoutLimits(desk))
