"""Admission through an Interlock server: the limits of one kernel, for every process that can reach it."""

from __future__ import annotations

from urllib.parse import urlsplit

from interlock.admission.leased.admission import LeasedAdmission
from interlock.admission.remote.link import WebSocketLink
from interlock.admission.remote.renewals import HttpRenewals
from interlock.errors import ValidationError


class RemoteAdmission(LeasedAdmission):
    """`LocalAdmission`'s semantics, decided in a server; see `LeasedAdmission`.

    Args:
        url: of the server, such as ``http://127.0.0.1:7411``.
        token: the server's, if it has one.
        lease: seconds after which the permits of a dead process are free again.

    Raises `ImportError` without ``interlock[http]``.
    """

    def __init__(self, url: str, *, token: str | None = None, lease: float = 30.0) -> None:
        url = url.rstrip("/")
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise ValidationError(f"url is {url!r}; allowed are http://host:port and https://host:port")
        super().__init__(url, lease, HttpRenewals(url, token))
        self._link = WebSocketLink(url, token, lease, self._client, self)
