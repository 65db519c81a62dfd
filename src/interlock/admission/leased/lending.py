"""Giving the units of a leased permit back for a while, and taking them again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from interlock.admission.leased.asks import Ask
from interlock.admission.leased.exchange import Exchange
from interlock.admission.leased.leases import Held
from interlock.admission.refusals import lending_refused, lost
from interlock.admission.validation import check_seconds
from interlock.errors import PermitLost

if TYPE_CHECKING:
    from collections.abc import Generator

    from interlock.core import model


class LendingExchange(Exchange):
    """An exchange whose permits can be lent."""

    def _lend(self, record: model.Permit) -> None:
        assert isinstance(record, Held)
        refused = "ended" if record.ended is not None else "lent" if record.lent else None
        if refused is None and any(held.over is record for held in tuple(self._held)):
            refused = "family"
        if refused is not None:
            raise lending_refused(record, refused)
        record.lent = True
        self._link.say(("lend", record.id, record.fence))

    def _reclaim(self, record: model.Permit, timeout: float | None) -> Generator[Any, None, None]:
        """Take the units of *record* again. If that fails it is released: nobody works without units."""
        assert isinstance(record, Held)
        if record.ended == "released":
            return  # its holder gave it up for good meanwhile
        if record.ended is not None:
            raise lost(record)
        ask: Ask | None = None
        try:
            self._settle_in()
            check_seconds("timeout", timeout)
            ask = Ask(
                self._next(),
                lambda ask: ("reclaim", ask.number, record.id, record.fence, ask.patience),
                "",
                timeout,
            )
            ask.names = record.claims.names
            self._put(ask)
            yield from ask.future
            if ask.error is not None:
                if isinstance(ask.error, PermitLost):
                    record.lose("expired")
                raise ask.error
            record.fence, record.granted_ms = ask.value
            record.lent = False
        finally:
            if ask is not None and ask.number in self._asks:
                self._withdraw(ask)
            if record.lent:
                self._let_go(record, "unused")
