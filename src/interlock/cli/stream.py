"""Events from a running server, over as many connections as it takes; a session's each of them once."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlencode

import httpx2

from interlock.cli.client import NoAnswer, client, in_path, nobody, reason, refusal, target
from interlock.cli.sse import Message, Messages
from interlock.errors import Unavailable

SILENCE_SECONDS = 45.0
"""After three pings that did not come, the connection is given up."""
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 10.0
"""Seconds between attempts to connect again: doubled each time, and never all at once."""
GOOD_SECONDS = 10.0
"""A connection that held so long begins its pauses anew, even if nothing came over it."""

BACKFILLED, END = "end-of-backfill", "end"
"""What the server says between the events: all of before has been given, and nothing more will come."""

T = TypeVar("T")


class Told(NamedTuple):
    """An event, or one of the two words of the server between them."""

    type: str
    document: dict[str, Any]


class BackOff:
    """Pauses between attempts, and one line when a connection is lost and when it is back."""

    def __init__(self, url: str, say: Callable[[str], None]) -> None:
        self._url = url
        self._say = say
        self._lost = False
        self._pause = FIRST_PAUSE

    def back(self) -> None:
        """It is answered again."""
        if self._lost:
            self._lost = False
            self._say("connected again")

    def good(self) -> None:
        """The connection has shown what it is worth."""
        self._pause = FIRST_PAUSE

    async def lost(self, why: str) -> None:
        """It is not answered any more, or still not; return when to try again."""
        if not self._lost:
            self._lost = True
            self._say(f"lost the connection to {self._url} ({why}); trying again")
        spread = random.uniform(0.5, 1.0)  # noqa: S311 - only to keep the many apart
        await asyncio.sleep(self._pause * spread)
        self._pause = min(self._pause * 2, LONGEST_PAUSE)


async def lasting(
    url: str,
    say: Callable[[str], None],
    connect: Callable[[httpx2.AsyncClient], AsyncGenerator[T | None, None]],
    progress: Callable[[], int] = lambda: 0,
) -> AsyncGenerator[T, None]:
    """What comes over connections that *connect* makes, one after the other, for ever; *say* is told of them.

    *connect* gives None once it is answered. A connection after which *progress* is another was worth it.
    Raises `NoAnswer` if there was no connection at all, and `InterlockError` for what the server refuses.
    """
    off, connected = BackOff(url, say), False
    async with client(url, timeout=SILENCE_SECONDS) as http:
        while True:
            began, before = time.monotonic(), progress()
            try:
                async with aclosing(connect(http)) as stream:
                    async for one in stream:
                        if one is None:
                            connected = True
                            off.back()
                            continue
                        yield one
                why = "it ended the stream"
            except (httpx2.HTTPError, httpx2.InvalidURL, NoAnswer) as error:
                if not connected:
                    raise error if isinstance(error, NoAnswer) else nobody(url, error) from None
                why = reason(error)
            if progress() > before or time.monotonic() - began > GOOD_SECONDS:
                off.good()
            await off.lost(why)


async def messages(
    http: httpx2.AsyncClient, url: str, path: str, last: str | None = None
) -> AsyncGenerator[Message | None, None]:
    """One connection to the stream at *path*: None once it is there, then what comes behind the event *last*.

    Raises what *http* does, and `InterlockError` for what the server refuses.
    """
    headers = {"accept": "text/event-stream", "cache-control": "no-store"}
    if last is not None:
        headers["last-event-id"] = last
    async with http.stream("GET", target(url, path), headers=headers) as response:
        if not response.is_success:
            await response.aread()
            raise refusal(url, response)
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            raise Unavailable(f"{url} answered no stream of events; is it an Interlock server?")
        yield None
        parser = Messages()
        async for piece in response.aiter_bytes():
            for message in parser.feed(piece):
                yield message


def not_ours(url: str) -> Unavailable:
    """The error for an event that no server of ours sends."""
    return Unavailable(f"{url} sent no event of ours; is it an Interlock server?")


class Following:
    """Where a reader is in a session's log; `events` gives what follows, each event once and in order.

    *run_id* and *types* choose among the events; *start* is the first sequence number.
    """

    def __init__(
        self,
        url: str,
        session_id: str,
        *,
        start: int = 0,
        run_id: str | None = None,
        types: Sequence[str] = (),
    ) -> None:
        self._url = url
        self._path = f"/sessions/{in_path(session_id)}/events"
        self._start = start
        self._filters = [("run", run_id)] if run_id else []
        self._filters += [("type", one) for one in types]
        self._seen = 0
        """The sequence number of the last event that was given."""

    async def events(self, say: Callable[[str], None]) -> AsyncGenerator[Told, None]:
        """What the server tells, until the session has ended; *say* is told what happens to the connection.

        Raises `NoAnswer` if there was no connection at all, and `InterlockError` for what it refuses.
        """
        stream = lasting(self._url, say, self._one_connection, lambda: self._seen)
        async with aclosing(stream):
            async for told in stream:
                yield told
                if told.type == END:
                    return

    async def _one_connection(self, http: httpx2.AsyncClient) -> AsyncGenerator[Told | None, None]:
        """None once it is there, then what is new of what comes over it."""
        query = urlencode([("from", self._start), *self._filters])
        last = str(self._seen) if self._seen else None
        async with aclosing(messages(http, self._url, f"{self._path}?{query}", last)) as stream:
            async for message in stream:
                if message is None:
                    yield None
                    continue
                told = _read(message)
                if told is None:
                    raise not_ours(self._url)
                if told.type in (BACKFILLED, END):
                    yield told
                elif told.document["sequence"] > self._seen:
                    self._seen = told.document["sequence"]
                    yield told


def _read(message: Message) -> Told | None:
    """What *message* tells; None if it is nothing that a server of ours says."""
    try:
        document = json.loads(message.data)
    except (ValueError, RecursionError):
        return None
    match document:
        case {"sequence": int(), "type": str(kind)}:
            return Told(kind, document)
        case dict() if message.type in (BACKFILLED, END):
            return Told(message.type, document)
    return None
