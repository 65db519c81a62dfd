"""The one connection of a process to its Redis server: all that is said in a loop step goes in one call.

It says the words that a server of Interlock's is told as well. One task owns the socket,
asks and waits for the reply; what is said meanwhile goes with the next request. Every reply also brings what
others have done; where nothing is said, a request goes at least every half second, as soon as something falls
due, and when a hint comes. A hint is a message on a channel; lost ones cost half a second.
"""

from __future__ import annotations

import asyncio
import logging
import random
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from interlock.admission.leased.leases import now
from interlock.admission.redis.refusals import error_of
from interlock.admission.redis.server import Caller, Refused, server_id, shown
from interlock.admission.wire import error_to_wire
from interlock.errors import InterlockError, Unavailable, ValidationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from interlock.admission.leased.links import Listener

log = logging.getLogger(__name__)

_CALL_SECONDS = 5.0
_HANG_UP_SECONDS = 1.0
_LONGEST_PAUSE = 2.0
_MOST_OPERATIONS = 1000
"""Of one request: while the server works at it, it does nothing else."""

Operation = tuple[Any, ...]


class RedisLink:
    """A connection that is kept up by one task, from `start` until `stop`."""

    def __init__(
        self,
        url: str,
        caller: Caller,
        lease: float,
        client: str,
        listener: Listener,
        *,
        allow: bool = False,
        permit_of: Callable[[int], str],
    ) -> None:
        self._url = url
        self._caller = caller
        self._header = {"v": 1, "client": client, "lease": max(1, int(lease * 1000))}
        if allow:
            self._header["allow"] = True
        self._listener = listener
        self._permit_of = permit_of
        self._poll = min(0.5, lease / 10)
        self._jitter = random.uniform  # clients that lost one server come back one by one
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self.up = False
        """Whether the server has answered and nothing has gone wrong since."""
        self.trouble = ""
        self.ahead_ms = 0
        """How far the server's wall clock is ahead of the logical one."""
        self.test_time: Callable[[], int] | None = None
        """Milliseconds for a library that was loaded for tests."""
        self._number = 0
        self._seen = 0
        self._epoch = ""
        self._out: list[tuple[Operation, Operation | None]] = []
        self._unheard: list[Operation] = []
        self._idle: asyncio.Future[None] | None = None
        self._quiet: asyncio.Future[None] | None = None

    # -- being there

    def start(self) -> asyncio.AbstractEventLoop:
        """Keep a connection up from the running loop."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop or self._task is None or self._task.done():
            self._gone("another event loop")
            self._loop = loop
            self._task = loop.create_task(self._run())
        return loop

    async def stop(self, within: float) -> None:
        """Let the server hear what was said, for *within* seconds, and hang up."""
        try:
            alive = self._task is not None and not self._task.done()
            if alive and (self._out or self._unheard):
                self._quiet = asyncio.get_running_loop().create_future()
                await asyncio.wait((self._quiet,), timeout=within)
                if not self._quiet.done():
                    log.warning("the server at %s did not hear the last releases", shown(self._url))
        finally:
            task, self._task = self._task, None
            if task is not None and self._loop is asyncio.get_running_loop():
                task.cancel()
                await asyncio.wait((task,), timeout=_HANG_UP_SECONDS)
            self._gone("closed")

    @property
    def _current(self) -> bool:
        """Whether the task that asks is still the one that keeps the connection up.

        It is asked as well as cancelled: a cancellation that meets a reply may get lost in the client.
        """
        return self._task is asyncio.current_task()

    async def _run(self) -> None:
        failures = 0
        while self._current:
            try:
                was_up = await self._session()
            except InterlockError as error:
                was_up = self.up
                self._note(error.message)
            failures = 0 if was_up else failures + 1
            pause = min(_LONGEST_PAUSE, 0.02 * 2 ** min(failures, 10))
            await asyncio.sleep(pause * self._jitter(0.5, 1.5))

    async def _session(self) -> bool:
        """One connection from its start to its end; whether it was of any use."""
        import redis.asyncio
        import redis.exceptions

        was_up = False
        # No retries: a connection that the client makes anew by itself has not been asked who is there.
        connection: Any = redis.asyncio.Redis.from_url(
            self._url, single_connection_client=True, socket_timeout=_CALL_SECONDS, retry=None
        )
        listening: asyncio.Task[None] | None = None
        try:
            async with asyncio.timeout(_CALL_SECONDS):
                self._header["server"] = server_id(await connection.info())
            listening = asyncio.get_running_loop().create_task(self._listen(redis.asyncio))
            while self._current:
                was_up = await self._exchange(connection) or was_up
                await self._rest()
        except (OSError, TimeoutError, redis.exceptions.RedisError) as error:
            self._note(f"{error}" or type(error).__name__)
        finally:
            if listening is not None:
                listening.cancel()
                # Not awaited itself: its cancellation would look like ours, and ours like its.
                await asyncio.wait((listening,), timeout=_HANG_UP_SECONDS)
            self._gone(self.trouble)
            with suppress(OSError, TimeoutError, redis.exceptions.RedisError):
                async with asyncio.timeout(_HANG_UP_SECONDS):
                    await connection.aclose()
        return was_up

    async def _listen(self, library: Any) -> None:
        """Look at once when somebody else has left something; until the session ends."""
        import redis.exceptions

        hearing = library.Redis.from_url(self._url, socket_timeout=None)
        channel = hearing.pubsub(ignore_subscribe_messages=True)
        try:
            await channel.subscribe(f"{self._caller.root}:hint:{self._header['client']}")
            async for _ in channel.listen():
                self._stir()
        except (OSError, redis.exceptions.RedisError) as error:
            log.debug("no hints from %s: %s", shown(self._url), error)
        finally:
            with suppress(OSError, TimeoutError, redis.exceptions.RedisError):
                async with asyncio.timeout(_HANG_UP_SECONDS):
                    await channel.aclose()
                    await hearing.aclose()

    def _note(self, trouble: str) -> None:
        if trouble != self.trouble:
            log.warning("no connection to %s, trying again: %s", shown(self._url), trouble)
        self.trouble = trouble

    def _gone(self, trouble: str) -> None:
        """Forget what was said on the connection, but not what has to be said again on the next one."""
        self.trouble = trouble
        self._unheard += [again for _, again in self._out if again is not None]
        self._out.clear()
        self._stir()
        if self.up:
            self.up = False
            self._listener.silent()

    # -- saying

    def say(self, operation: Operation, again: Operation | None = None) -> None:
        """Send *operation* with this step's others; *again* is what to say should it get lost on the way.

        Without a connection only *again* is kept.
        """
        if self.up:
            self._out.append((operation, again))
            self._stir()
        elif again is not None:
            self._unheard.append(again)

    def _stir(self) -> None:
        idle, self._idle = self._idle, None
        if idle is not None and not idle.done():
            idle.set_result(None)

    async def _rest(self) -> None:
        """Until there is something to say, or it is time to ask."""
        if self._out:
            return
        assert self._loop is not None
        self._idle = self._loop.create_future()
        await asyncio.wait((self._idle,), timeout=min(self._poll, self._due))
        self._idle = None
        if not self._out:
            self._listener.beat()

    # -- asking

    async def _exchange(self, connection: Any) -> bool:
        """Say what there is to say, and hear the answer."""
        said = self._out[:_MOST_OPERATIONS]
        del self._out[: len(said)]
        try:
            await self._ask(connection, said)
        except Refused as refused:
            await self._one_by_one(connection, said, refused)
        except BaseException:
            self._out[:0] = said  # nobody knows whether they were heard
            raise
        if self._quiet is not None and not (self._unheard or self._out or self._quiet.done()):
            self._quiet.set_result(None)
        return True

    async def _one_by_one(
        self, connection: Any, said: list[tuple[Operation, Operation | None]], refused: Refused
    ) -> None:
        """One of *said* is wrong, and for its sake nothing was done: only that one is to suffer for it."""
        if len(said) != 1:
            for one in said:
                try:
                    await self._ask(connection, [one])
                except Refused as this:
                    await self._one_by_one(connection, [one], this)
            return
        ((_, ask, *_), _) = said[0]
        error = ValidationError(f"the server refused this: {refused}")
        if isinstance(ask, int):
            self._listener.heard([["error", ask, *error_to_wire(error)]], now())
        else:
            log.warning("the server at %s refused %r: %s", shown(self._url), said[0][0][0], refused)

    async def _ask(self, connection: Any, said: list[tuple[Operation, Operation | None]]) -> None:
        self._number += 1
        request: dict[str, Any] = {
            **self._header,
            "number": self._number,
            "seen": self._seen,
            "ops": [operation for operation, _ in said],
        }
        if self.test_time is not None:
            request["time"] = self.test_time()
        asked = now()
        async with asyncio.timeout(_CALL_SECONDS):
            reply = await self._caller.call_async(connection.execute_command, request)
        self._hear(reply, asked)

    def _hear(self, reply: dict[str, Any], asked: float) -> None:
        if reply["stale"]:
            raise Unavailable("the server has heard a later request already")
        self._seen = reply["inbox"]
        self._due = self._poll if reply["due"] is None else reply["due"] / 1000
        self.ahead_ms = reply["time"] - reply["now"]
        epoch = reply["epoch"]
        if not self.up or epoch != self._epoch or not reply["known"]:
            if epoch != self._epoch and reply["quarantine"]:
                log.warning(
                    "%s knows nothing of what may be held: for %.0f s nobody is let in over a limit",
                    shown(self._url),
                    reply["quarantine"] / 1000,
                )
            self._epoch = epoch
            self._greet(epoch)
        answers = [answer for answer in map(self._answer, reply["answers"]) if answer is not None]
        if answers:
            self._listener.heard(answers, asked)

    _due = 0.0

    def _greet(self, epoch: str) -> None:
        """First what got lost: a key must be free before it is asked for again."""
        if not self.up:
            self.up = True
            self.trouble = ""
            lost, self._unheard = self._unheard, []
            self._out += [(operation, operation) for operation in lost]
        self._listener.greeted(epoch)

    def _answer(self, answer: list[Any]) -> list[Any] | None:
        """*answer* in the words of `interlock.admission.wire`."""
        word, *said = answer
        match word:
            case "refused":
                ask, reason, details = said
                return ["error", ask, *error_to_wire(error_of(reason, details, self._permit_of(ask)))]
            case "granted":
                ask, fence, granted_ms, left_ms = said
                return ["granted", ask, fence, granted_ms + self.ahead_ms, left_ms]
            case "queued":
                ask, since = said
                return ["queued", ask, since + self.ahead_ms / 1000]
            case "done":
                return ["done", said[0], said[1] if len(said) > 1 else None]
            case "view":
                ask, number, _, view = said
                return ["view", ask, number, view or None]
            case "gate":
                return None
        return answer
