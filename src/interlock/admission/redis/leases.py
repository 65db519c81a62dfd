"""The thread that keeps the leases of a process alive, with a connection of its own."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from interlock.admission.redis.server import Caller, Refused, server_id
from interlock.admission.remote.leases import Held, LeaseKeeper
from interlock.errors import InterlockError

if TYPE_CHECKING:
    from collections.abc import Callable


class RedisLeaseKeeper(LeaseKeeper):
    """`LeaseKeeper` that holds by the library's words; its requests have no number, as the link's have.

    *limits* says, for a server that has lost everything, which limits there are.
    """

    def __init__(
        self,
        url: str,
        caller: Caller,
        lease: float,
        client: str,
        held: dict[Held, None],
        lost: Callable[[Held], None],
        limits: Callable[[], list[tuple[Any, ...]]],
    ) -> None:
        super().__init__(url, None, lease, held, lost)
        self._redis_url = url
        self._caller = caller
        self._client = client
        self._limits = limits
        self._server: Any = None
        self._server_id = ""
        self.test_time: Callable[[], int] | None = None

    def _post(self, body: dict[str, Any]) -> dict[str, Any]:
        import redis.exceptions

        lease = body["leaseMs"] / 1000
        ops: list[tuple[Any, ...]] = []
        if any("limits" in entry for entry in body["permits"]):
            ops += self._limits()
        for entry in body["permits"]:
            names, adopt = entry.get("limits", ("-",)), "limits" in entry
            owner, parent = entry.get("owner"), entry.get("parent")
            ops.append(("hold", entry["id"], entry["fence"], names, owner, parent, lease, adopt))
        request: dict[str, Any] = {"v": 1, "client": self._client, "lease": body["leaseMs"], "seen": 0}
        request["ops"] = ops
        if self.test_time is not None:
            request["time"] = self.test_time()
        try:
            execute = self._connected()
            reply = self._caller.call(execute, {**request, "server": self._server_id})
        except (redis.exceptions.RedisError, InterlockError, Refused) as error:
            raise OSError(str(error)) from error
        lost = [answer[1] for answer in reply["answers"] if answer[0] == "ended"]
        return {"lost": lost, "epoch": reply["epoch"]}

    def _connected(self) -> Callable[..., Any]:
        import redis

        if self._server is None:
            # No retries, as in `link`: a connection made anew inside has not been asked who is there.
            patience = max(0.2, min(5.0, self._lease / 4))
            server: Any = redis.Redis.from_url(
                self._redis_url, single_connection_client=True, socket_timeout=patience, retry=None
            )
            self._server_id = server_id(server.info())
            self._server = server
        execute: Callable[..., Any] = self._server.execute_command
        return execute

    def _disconnect(self) -> None:
        import redis.exceptions

        server, self._server = self._server, None
        if server is not None:
            with suppress(OSError, redis.exceptions.RedisError):
                server.close()
