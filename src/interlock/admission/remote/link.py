"""The one connection of a process to its server: made again whenever it breaks, written once per loop step.

Nobody but this file touches the socket, and no caller waits on it: they leave operations here and are called
with what was heard. So a caller that is cancelled cannot leave half a message, or another's answer, behind.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from interlock.admission.leased.leases import now
from interlock.admission.wire import PATH, VERSION

if TYPE_CHECKING:
    from interlock.admission.leased.links import Listener

log = logging.getLogger(__name__)

_CONNECT_SECONDS = 5.0
_LONGEST_PAUSE = 2.0
_MOST_BYTES = 256 * 1024
"""Of one message, about."""


class WebSocketLink:
    """A `Link` that one task keeps up."""

    def __init__(self, url: str, token: str | None, lease: float, client: str, listener: Listener) -> None:
        from interlock.admission.remote import websocket  # needs what an embedded limiter does not

        self._url = urlsplit(url)
        self._token = token
        self._hello = ("hello", VERSION, lease, client)
        self._listener = listener
        self._socket_type = websocket.Socket
        self._encode, self._decode = websocket.encode, websocket.decode
        self._silence = max(1.0, min(5.0, lease / 2))
        self._beat = min(0.5, lease / 10)
        self._jitter = random.uniform  # clients that lost one server come back one by one
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._socket: websocket.Socket | None = None
        self.up = False
        """Whether the server has answered the greeting and nothing has gone wrong since."""
        self.trouble = ""
        self._out: list[bytes] = []
        self._flushing = False
        self._said = 0
        self._unheard: deque[tuple[int, bytes]] = deque()
        self._sent: deque[tuple[int, float]] = deque()
        self._asked = 0.0
        self._heard_at = 0.0
        self._quiet: asyncio.Future[None] | None = None
        """Somebody waits until the server has heard all that matters."""

    # -- being there

    def start(self) -> asyncio.AbstractEventLoop:
        """Keep a connection up from the running loop."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop or self._task is None or self._task.done():
            # A second asyncio.run(), perhaps: what the last one had went with its loop.
            if self._task is not None and not self._task.done() and self._loop is not None:
                self._task = None
            self._gone("another event loop")
            self._loop = loop
            self._task = loop.create_task(self._run())
        return loop

    async def stop(self, within: float) -> None:
        """Let the server hear what was said, for *within* seconds, and hang up."""
        try:
            alive = self._task is not None and not self._task.done()
            if alive and (self._out or self._unheard):  # perhaps only the next connection brings them
                self._quiet = asyncio.get_running_loop().create_future()
                await asyncio.wait((self._quiet,), timeout=within)
                if not self._quiet.done():
                    log.warning("the server at %s did not hear the last releases", self._url.geturl())
        finally:
            task, self._task = self._task, None
            if task is not None and self._loop is asyncio.get_running_loop():
                task.cancel()
            self._gone("closed")

    async def _run(self) -> None:
        failures = 0
        while True:
            try:
                was_up = await self._session()
            except (OSError, TimeoutError) as error:
                was_up = False
                self._note(f"{error}" or type(error).__name__)
            failures = 0 if was_up else failures + 1
            pause = min(_LONGEST_PAUSE, 0.02 * 2 ** min(failures, 10))
            await asyncio.sleep(pause * self._jitter(0.5, 1.5))

    async def _session(self) -> bool:
        """One connection from its start to its end; whether it was of any use."""
        loop = asyncio.get_running_loop()
        socket = self._socket_type(self._url, self._token, self._received)
        try:
            await socket.connect(PATH, _CONNECT_SECONDS)
            self._socket = socket
            self._heard_at = loop.time()
            socket.send(self._encode([self._hello]))
            self._said = 1
            self._sent.append((1, now()))
            await asyncio.wait((socket.greeted,), timeout=_CONNECT_SECONDS)
            if not socket.greeted.done():
                raise TimeoutError("it does not answer the greeting")
            socket.greeted.result()
            while not socket.lost.done():
                await asyncio.wait((socket.lost,), timeout=self._beat)
                if loop.time() - self._heard_at > self._silence:
                    self._note("it fell silent")
                    break
                self._listener.beat()
            if socket.lost.done() and self._socket is socket:
                self._note(socket.lost.result() or "the connection was closed")
            return True
        finally:
            socket.abort()
            if self._socket is socket or self._socket is None:
                self._gone(self.trouble)

    def _note(self, trouble: str) -> None:
        if trouble != self.trouble:
            log.warning("no connection to %s, trying again: %s", self._url.geturl(), trouble)
        self.trouble = trouble

    def _gone(self, trouble: str) -> None:
        """Forget the connection, but not what has to be said again on the next one."""
        self.trouble = trouble
        socket, self._socket = self._socket, None
        if socket is not None:
            socket.abort()
        self._unheard = deque((0, operation) for _, operation in self._unheard)
        self._out.clear()
        self._sent.clear()
        self._said = 0
        if self.up:
            self.up = False
            self._listener.silent()

    # -- saying and hearing

    def say(self, operation: tuple[Any, ...], again: tuple[Any, ...] | None = None) -> None:
        """Send *operation* with this step's others; *again* is what to say should it get lost on the way.

        Without a connection only *again* is kept.
        """
        if self.up:
            self._put(self._encode(operation), None if again is None else self._encode(again))
        elif again is not None:
            self._unheard.append((0, self._encode(again)))

    def _put(self, operation: bytes, again: bytes | None) -> None:
        self._said += 1
        self._out.append(operation)
        if again is not None:
            self._unheard.append((self._said, again))
        if not self._flushing:
            assert self._loop is not None
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        socket, out = self._socket, self._out
        if socket is None or not out:
            return
        self._out = []
        self._sent.append((self._said, now()))
        size = start = 0
        for end, operation in enumerate(out, 1):
            size += len(operation)
            if size > _MOST_BYTES or end == len(out):
                socket.send(b"[" + b",".join(out[start:end]) + b"]")
                size, start = 0, end

    def _received(self, data: bytes) -> None:
        """A message came; `ValueError` if it is none."""
        heard, answers = self._decode(data)
        assert self._loop is not None
        self._heard_at = self._loop.time()
        unheard, sent = self._unheard, self._sent
        while unheard and 0 < unheard[0][0] <= heard:
            unheard.popleft()
        while sent and sent[0][0] <= heard:
            self._asked = sent.popleft()[1]
        if self._quiet is not None and not (unheard or self._out or self._quiet.done()):
            self._quiet.set_result(None)
        if not self.up and answers and answers[0][0] == "hello":
            self._greeted(answers.pop(0)[1])
        if answers:
            self._listener.heard(answers, self._asked)

    def _greeted(self, epoch: str) -> None:
        """First what got lost last time: a key must be free before it is asked for again."""
        self.up = True
        self.trouble = ""
        lost, self._unheard = self._unheard, deque()
        for _, operation in lost:
            self._put(operation, operation)
        self._listener.greeted(epoch)
        socket = cast("Any", self._socket)
        if not socket.greeted.done():
            socket.greeted.set_result(None)
