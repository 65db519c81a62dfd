"""From where a server can be reached, and whether it may be without a token."""

from __future__ import annotations

import logging
from ipaddress import ip_address
from typing import TYPE_CHECKING

from interlock.errors import ValidationError

if TYPE_CHECKING:
    from interlock.config import ServerConfig
    from interlock.http.access.book import TokenBook

log = logging.getLogger(__name__)


def is_loopback(host: str) -> bool:
    """Whether *host* is this machine's own: a server bound to it is reachable from here only."""
    try:
        parsed = ip_address(host.partition("%")[0])
    except ValueError:
        return host == "localhost"
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback


def is_exposed(server: ServerConfig) -> bool:
    """Whether others than this machine's users can reach it."""
    return server.socket is None and not is_loopback(server.host)


def check_reach(server: ServerConfig, book: TokenBook, *, insecure: bool = False) -> None:
    """Raises `ValidationError` for a server that others can reach and that asks nobody for a token.

    With *insecure* that is only warned of.
    """
    if not is_exposed(server) or (book.required and book.has_admin):
        return
    if not insecure:
        raise ValidationError(
            f"server.host is {server.host!r}, which others can reach: set server.token (for instance to "
            '"env:INTERLOCK_TOKEN"), make one with `interlock token create NAME --scope admin`, or choose a '
            "loopback host; --insecure-no-auth starts it all the same"
        )
    if not book.required:
        log.warning("everybody who reaches %s may do everything: there is no token", server.host)
