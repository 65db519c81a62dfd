"""Leases renewed in Redis, by calls of their own from a thread."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from interlock.admission.leased.asks import hold_words
from interlock.admission.redis.server import Caller, Refused, server_id
from interlock.errors import InterlockError

if TYPE_CHECKING:
    from collections.abc import Callable

    from interlock.admission.leased.leases import Held


class RedisRenewals:
    """`Renewals` by the library's words; its requests have no number, as the link's have.

    *limits* says, for a server that has lost everything, which limits there are.
    """

    def __init__(self, url: str, caller: Caller, client: str, limits: Callable[[], list[Any]]) -> None:
        self._url = url
        self._caller = caller
        self._client = client
        self._limits = limits
        self._server: Any = None
        self._server_id = ""
        self.test_time: Callable[[], int] | None = None
        """Milliseconds for a library that was loaded for tests."""

    def renew(self, held: list[Held], lease: float, within: float, *, adopt: bool) -> tuple[set[str], str]:
        """See `Renewals.renew`."""
        import redis.exceptions

        request: dict[str, Any] = {
            "v": 1,
            "client": self._client,
            "lease": int(lease * 1000),
            "seen": 0,
            "ops": [
                *(self._limits() if adopt else ()),
                *(hold_words(one, adopt=adopt, lease=lease) for one in held),
            ],
        }
        if self.test_time is not None:
            request["time"] = self.test_time()
        try:
            execute = self._connected(within)
            reply = self._caller.call(execute, {**request, "server": self._server_id})
        except (redis.exceptions.RedisError, InterlockError, Refused) as error:
            raise OSError(str(error)) from error
        return {answer[1] for answer in reply["answers"] if answer[0] == "ended"}, reply["epoch"]

    def _connected(self, within: float) -> Callable[..., Any]:
        import redis

        if self._server is None:
            # No retries, as in `link`: a connection made anew inside has not been asked who is there.
            server: Any = redis.Redis.from_url(
                self._url, single_connection_client=True, socket_timeout=within, retry=None
            )
            self._server_id = server_id(server.info())
            self._server = server
        execute: Callable[..., Any] = self._server.execute_command
        return execute

    def close(self) -> None:
        """See `Renewals.close`."""
        import redis.exceptions

        server, self._server = self._server, None
        if server is not None:
            with suppress(OSError, redis.exceptions.RedisError):
                server.close()
