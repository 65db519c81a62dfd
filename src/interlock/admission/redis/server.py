"""A Redis or Valkey server as the library's callers see it: requests in, replies out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from interlock.admission.redis.library import Library, keys
from interlock.errors import InterlockError, Unavailable, ValidationError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

SCHEMES = ("redis", "rediss", "unix")
_OLDEST = (7, 0)


class Unfit(InterlockError):
    """This server cannot keep limits; the message says why."""

    default_code = "unfit_server"


class Refused(Exception):
    """The library did nothing of a request, as an operation in it was wrong."""


def shown(url: str) -> str:
    """*url* without user and password."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{host}{port}{parts.path}"


def check_url(url: str) -> None:
    """`ValidationError` unless *url* is a Redis server's."""
    if urlsplit(url).scheme not in SCHEMES:
        allowed = "redis://host:port/db, rediss:// for TLS, and unix://path"
        raise ValidationError(f"the url {shown(url)!r} is no Redis server's; allowed are {allowed}")


def server_id(info: dict[str, Any]) -> str:
    """The id of the server that said *info*. `Unfit` for one that would not keep limits safe."""
    version = tuple(int(part) for part in str(info.get("redis_version", "0")).split(".")[:2])
    if version < _OLDEST:
        raise Unfit(
            f"the server is of version {info.get('redis_version')}; Redis 7.0 is the oldest that will do"
        )
    if info.get("role") not in ("master", None):
        raise Unfit("the server is a replica, which may not know of the last grants; name the primary")
    policy = info.get("maxmemory_policy", "noeviction")
    if info.get("maxmemory") and policy != "noeviction":
        raise Unfit(f"the server forgets what it has no room for (maxmemory-policy {policy}); set noeviction")
    return str(info["run_id"])


class Caller:
    """What it takes to call the library for one namespace."""

    def __init__(self, library: Library, namespace: str) -> None:
        import msgspec  # needs what an embedded limiter does not

        self.library = library
        self._encode, self._decode = msgspec.msgpack.encode, msgspec.msgpack.decode
        self.records, self.lists, self.root = keys(namespace)

    def command(self, request: dict[str, Any]) -> tuple[Any, ...]:
        """The ``FCALL`` of *request*."""
        body = self._encode(request)
        return "FCALL", self.library.name, 2, self.records, self.lists, self.root, body

    def load_command(self) -> tuple[Any, ...]:
        """What loads the library, where it is missing."""
        return "FUNCTION", "LOAD", "REPLACE", self.library.text

    def reply(self, answer: Any) -> dict[str, Any]:
        """What the library said."""
        reply: dict[str, Any] = self._decode(answer)
        return reply

    def call(self, execute: Callable[..., Any], request: dict[str, Any]) -> dict[str, Any]:
        """Ask, and load the library if need be."""
        try:
            return self.reply(execute(*self.command(request)))
        except Exception as error:
            self.look_at(error)
        execute(*self.load_command())
        return self.reply(execute(*self.command(request)))

    async def call_async(
        self, execute: Callable[..., Awaitable[Any]], request: dict[str, Any]
    ) -> dict[str, Any]:
        """`call` for a connection of asyncio."""
        try:
            return self.reply(await execute(*self.command(request)))
        except Exception as error:
            self.look_at(error)
        await execute(*self.load_command())
        return self.reply(await execute(*self.command(request)))

    def look_at(self, error: Exception) -> None:
        """Return if only the library is missing. `Refused` for a wrong request; the rest is `Unavailable`."""
        import redis.exceptions

        if not isinstance(error, redis.exceptions.ResponseError):
            raise error
        why = str(error)
        if why.startswith("INTERLOCK "):
            raise Refused(why.removeprefix("INTERLOCK ")) from None
        if "not found" not in why.lower():
            raise Unavailable(f"the server refused: {why}") from None
