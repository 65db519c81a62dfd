"""One client's WebSocket, for whoever understands what it says: messages in, answers out in one task."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from interlock.http.permits.words import Misspoken, operations
from interlock.http.problems import encoded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    Answer = tuple[Any, ...]

_ACK_SECONDS = 0.05
"""How long the client may wait to hear that what needs no answer was done."""
_MOST_UNSENT = 10_000
"""Answers that may wait for a slow reader before nothing more is read from it."""


class Channel:
    """What is said on it is done in one step, in its order; what there is to say is collected and sent by
    one task."""

    def __init__(
        self,
        receive: Callable[[], Awaitable[dict[str, Any]]],
        send: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> None:
        self._receive = receive
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._out: list[Answer] = []
        self._idle: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._heard = self._told = 0
        self._heard_at = self._loop.time()
        self._acknowledging: asyncio.TimerHandle | None = None
        self._errands: set[asyncio.Task[None]] = set()

    @abstractmethod
    def _do(self, operation: Any) -> None:
        """Carry out one operation. Raises `Misspoken` for one that cannot be said here."""

    @abstractmethod
    def _begin(self) -> None:
        """The client is there."""

    def _leave(self) -> None:
        """The client is there no more."""
        if self._acknowledging is not None:
            self._acknowledging.cancel()
        for errand in self._errands:
            errand.cancel()

    async def run(self) -> None:
        """Until the client leaves, falls silent, or says what is no message."""
        writing = self._loop.create_task(self._write())
        self._begin()
        try:
            await self._read()
        except Misspoken as error:
            await self._close(f"{error}"[:100])
        finally:
            writing.cancel()
            self._leave()

    async def _read(self) -> None:
        while True:
            message = await self._receive()
            if message["type"] != "websocket.receive":
                return
            self._heard_at = self._loop.time()
            for operation in operations(message.get("bytes") or message.get("text") or b""):
                self._do(operation)
                self._heard += 1
            if not self._out and self._acknowledging is None:
                self._acknowledging = self._loop.call_later(_ACK_SECONDS, self._acknowledge)
            while len(self._out) > _MOST_UNSENT:
                self._room = self._loop.create_future()
                await self._room

    def _say(self, *answer: Any) -> None:
        self._out.append(answer)
        self._stir()

    def _stir(self) -> None:
        idle, self._idle = self._idle, None
        if idle is not None and not idle.done():
            idle.set_result(None)

    def _acknowledge(self) -> None:
        self._acknowledging = None
        if self._told != self._heard:
            self._stir()

    async def _write(self) -> None:
        while True:
            if not self._out:
                self._idle = self._loop.create_future()
                await self._idle
            out, self._out = self._out, []
            self._told = self._heard
            await self._send({"type": "websocket.send", "bytes": encoded((self._told, out))})
            if self._room is not None and not self._room.done():
                self._room.set_result(None)

    async def _close(self, reason: str) -> None:
        await self._send({"type": "websocket.close", "code": 1008, "reason": reason})

    def _errand(self, work: Coroutine[Any, Any, None]) -> None:
        """Do what takes time, unless the connection ends first."""
        task = self._loop.create_task(work)
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)
