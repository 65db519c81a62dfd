"""Leases renewed at an Interlock server, by plain HTTP from a thread."""

from __future__ import annotations

import http.client
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from interlock.admission.wire import RENEW_PATH

if TYPE_CHECKING:
    from interlock.admission.leased.leases import Held


class HttpRenewals:
    """`Renewals` over one connection, made again whenever it breaks."""

    def __init__(self, url: str, token: str | None) -> None:
        self._url = urlsplit(url)
        self._headers = {"content-type": "application/json"}
        if token is not None:
            self._headers["authorization"] = f"Bearer {token}"
        self._connection: http.client.HTTPConnection | None = None

    def renew(self, held: list[Held], lease: float, within: float, *, adopt: bool) -> tuple[set[str], str]:
        """See `Renewals.renew`."""
        permits = [_entry(one, adopt) for one in held]
        try:
            answer = self._post({"permits": permits, "leaseMs": int(lease * 1000)}, within)
            return set(answer["lost"]), answer["epoch"]
        except (http.client.HTTPException, ValueError, LookupError, TypeError) as error:
            raise OSError(f"the server's answer cannot be understood: {error}") from error

    def _post(self, body: dict[str, Any], within: float) -> dict[str, Any]:
        connection = self._connection
        if connection is None:
            secure = self._url.scheme == "https"
            kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
            connection = self._connection = kind(self._url.hostname or "", self._url.port, timeout=within)
        connection.request("POST", self._url.path + RENEW_PATH, json.dumps(body), self._headers)
        response = connection.getresponse()
        data = response.read()
        if response.status != 200:
            raise OSError(f"the server answered {response.status}")
        answer: dict[str, Any] = json.loads(data)
        return answer

    def close(self) -> None:
        """See `Renewals.close`."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _entry(held: Held, adopt: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {"id": held.id, "fence": held.fence}
    if adopt:
        entry["limits"] = held.claims.names
        if held.owner is not None:
            entry["owner"] = held.owner
        if held.over is not None:
            entry["parent"] = held.over.id
    return entry
