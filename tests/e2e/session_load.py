"""Clients of a server of sessions that dies every now and then; each writes down what it did and was told.

What they write is what `session_checker` reads. A client that got no answer asks again, with the same key.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any, Self

import aiohttp

from e2e.histories import Book

ANSWER_SECONDS = 10.0
AGAIN_SECONDS = 0.03
"""How soon a client asks again that was refused."""
LOST_SECONDS = 0.1
"""How soon one asks again that got no answer."""
LOST = (aiohttp.ClientError, TimeoutError, OSError, ValueError)
"""What a client sees of a server that died: a broken connection, or an answer that is cut off."""
ENDED = frozenset(("completed", "failed", "cancelled", "interrupted", "timeout"))


@dataclass
class Answer:
    """What the server said."""

    status: int
    body: Any
    headers: Any


@dataclass
class Follower:
    """A subscriber, and how far it has got."""

    name: str
    session: str
    last: int
    pages: bool
    """Whether it asks for page after page instead of holding a stream."""


@dataclass
class Load:
    """Sessions, clients that submit to them and clients that follow them; ends when it is left."""

    url: str
    directory: Path
    dice: Random
    sessions: int = 4
    submitters: int = 3
    followers: int = 2
    think: float = 0.03
    """The longest time between two submits of one client, in seconds."""
    agent: str = "worker"
    also: tuple[str, ...] = ()
    """Further servers of the same sessions; each request goes to any of them."""
    following: list[Follower] = field(default_factory=list)
    accepted: int = 0
    """Submits that were acknowledged as new."""
    refusals: dict[tuple[int, str], int] = field(default_factory=dict)
    """How many there were, by status and code."""

    async def __aenter__(self) -> Self:
        self.stopping = False
        self.books: list[Book] = []
        self.names = [f"s{n}" for n in range(self.sessions)]
        connector = aiohttp.TCPConnector(limit=0)
        self.http = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(None))
        for name in self.names:
            await self._make(name)
        self.submitting = [
            self._task(self._submitter(name, f"{name}-c{n}"))
            for name in self.names
            for n in range(self.submitters)
        ]
        self.submitting.append(self._task(self._drainer()))
        self.watching = []
        for name in self.names:
            for n in range(self.followers + 1):
                cursor = 0 if n == 0 else self.dice.randrange(3)
                follower = Follower(f"{name}-f{n}", name, cursor, pages=n == self.followers)
                self.following.append(follower)
                self.watching.append(self._task(self._follow(follower)))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tasks = [*self.submitting, *self.watching]
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        await self.http.close()
        for book in self.books:
            book.close()
        failed = [end for end in ends if isinstance(end, Exception)]
        if failed and error is None:
            raise failed[0]

    async def finish(self, within: float = 30.0) -> None:
        """Submit nothing more, let what was submitted end, and everybody see it."""
        self.stopping = True
        async with asyncio.timeout(within):
            await asyncio.gather(*self.submitting)
            book = self._book("finish")
            ends = {name: await self._drained(book, name, 5.0) for name in self.names}
            while any(follower.last < ends[follower.session] for follower in self.following):  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    def without_disk(self) -> int:
        """How many submits were refused because nothing could be stored."""
        return sum(count for (status, _), count in self.refusals.items() if status == 507)

    def _book(self, name: str) -> Book:
        self.books.append(Book(self.directory, name))
        return self.books[-1]

    def _task(self, work: Any) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(work)

    async def _ask(
        self, method: str, path: str, body: Any = None, key: str | None = None, within: float = ANSWER_SECONDS
    ) -> Answer:
        headers = {} if key is None else {"Idempotency-Key": key}
        async with (
            asyncio.timeout(within),
            self.http.request(method, self._at(path), json=body, headers=headers) as response,
        ):
            text = await response.text()
            if not text.startswith("{"):
                assert response.status >= 500, (path, response.status, text)
                return Answer(response.status, {"code": text[:100]}, response.headers)
            return Answer(response.status, json.loads(text), response.headers)

    def _at(self, path: str) -> str:
        return self.dice.choice((self.url, *self.also)) + path if self.also else self.url + path

    async def _surely(
        self, method: str, path: str, body: Any = None, within: float = ANSWER_SECONDS
    ) -> Answer:
        """Ask until there is an answer other than that there is no room or no server now."""
        while True:
            try:
                answer = await self._ask(method, path, body, within=within)
            except LOST:
                await asyncio.sleep(LOST_SECONDS)
            else:
                if answer.status not in (429, 503, 507):
                    return answer
                await asyncio.sleep(AGAIN_SECONDS)

    async def _make(self, name: str) -> None:
        slots = self.dice.randrange(1, 4)
        body = {"id": name, "agent": self.agent, "maxConcurrentRuns": slots, "maxQueuedRuns": 12}
        answer = await self._surely("POST", "/sessions", body)
        assert answer.status in (200, 201), answer
        self._book(f"{name}-made").write("session", session=name, slots=slots)

    # -- submitting ------------------------------------------------------------------------------------------

    async def _submitter(self, session: str, name: str) -> None:
        book, dice = self._book(name), Random(self.dice.random())
        number = 0
        while not self.stopping:
            number += 1
            await self._submit(book, dice, session, f"{name}-{number}")
            await asyncio.sleep(dice.uniform(0, self.think))

    def _work(self, dice: Random, key: str) -> dict[str, Any]:
        does = dice.choices(("steps", "fail", "hang"), (90, 5, 5))[0]
        steps, pause = dice.randrange(5), dice.choice((0, 0, 0.005, 0.02))
        body: dict[str, Any] = {"input": {"key": key, "does": does, "steps": steps, "pause": pause}}
        if does == "hang":
            body["timeoutMs"] = dice.randrange(30, 150)
        if dice.random() < 0.4:
            body["retry"] = "on_crash"
        return body

    async def _submit(self, book: Book, dice: Random, session: str, key: str) -> None:
        body = self._work(dice, key)
        run = await self._sent(book, dice, session, key, body)
        if run is None:
            return
        what_then = dice.random()
        if what_then < 0.08:
            await self._sent(book, dice, session, key, body)
        elif what_then < 0.11:
            await self._conflict(book, session, key, body)
        elif what_then < 0.25:
            await asyncio.sleep(dice.uniform(0, 0.1))
            await self._cancel(book, run)
        elif what_then < 0.40:
            await self._ended(book, run)
        elif what_then < 0.44:
            book.write("interrupt", run=run)
            await self._surely("POST", f"/runs/{run}/interrupt")
        elif what_then < 0.50:
            # It may have ended, or be run again; in any case it is not paused after this.
            await self._surely("POST", f"/runs/{run}/pause")
            await asyncio.sleep(dice.uniform(0, 0.05))
            await self._surely("POST", f"/runs/{run}/resume")

    async def _sent(
        self, book: Book, dice: Random, session: str, key: str, body: dict[str, Any]
    ) -> str | None:
        """Send *body* until it is answered: the run's id, or None where a refusal is taken for good."""
        sent = {"retry": body.get("retry"), "timeoutMs": body.get("timeoutMs"), "input": body["input"]}
        while True:
            # Some clients go away before they are answered, and come again.
            patience = dice.uniform(0, 0.01) if dice.random() < 0.03 else ANSWER_SECONDS
            book.write("submit", key=key, session=session, **sent, at=time.monotonic())
            try:
                answer = await self._ask("POST", f"/sessions/{session}/runs", body, key, patience)
            except LOST as error:
                book.write("lost", key=key, error=repr(error))
                await asyncio.sleep(LOST_SECONDS)
                continue
            if answer.status == 202:
                replay = answer.headers.get("Idempotent-Replay") == "true"
                self.accepted += not replay
                run: str = answer.body["runId"]
                book.write("accepted", key=key, run=run, replay=replay, at=time.monotonic())
                return run
            code = answer.body["code"]
            self.refusals[answer.status, code] = self.refusals.get((answer.status, code), 0) + 1
            book.write("refused", key=key, status=answer.status, code=code)
            if answer.status not in (429, 503, 507) or self.stopping or dice.random() < 0.3:
                return None
            await asyncio.sleep(AGAIN_SECONDS)

    async def _conflict(self, book: Book, session: str, key: str, body: dict[str, Any]) -> None:
        other = {**body, "input": {**body["input"], "steps": -1}}
        try:
            answer = await self._ask("POST", f"/sessions/{session}/runs", other, key)
        except LOST:
            return
        if answer.status != 503:
            book.write("conflict", key=key, status=answer.status)

    async def _cancel(self, book: Book, run: str) -> None:
        book.write("cancel", run=run)
        try:
            answer = await self._ask("POST", f"/runs/{run}/cancel")
        except LOST:
            return
        if answer.status == 202:
            book.write("cancel_accepted", run=run, status=answer.body["status"])

    async def _ended(self, book: Book, run: str) -> None:
        while True:
            answer = await self._surely("GET", f"/runs/{run}/wait?timeoutMs=5000")
            if answer.status != 504:
                assert answer.status == 200, answer
                book.write("ended", run=answer.body)
                return

    # -- draining --------------------------------------------------------------------------------------------

    async def _drainer(self) -> None:
        book, dice = self._book("drainer"), Random(self.dice.random())
        while not self.stopping:
            await asyncio.sleep(dice.uniform(0, 1.0))
            await self._drained(book, dice.choice(self.names), 1.0)

    async def _drained(self, book: Book, session: str, seconds: float) -> int:
        """Drain *session*, as often as it takes; the sequence number of its last event after that."""
        while True:
            since = time.monotonic()
            body = {"timeoutMs": round(seconds * 1000)}
            answer = await self._surely("POST", f"/sessions/{session}/drain", body)
            if answer.status == 200:
                upto: int = (await self._surely("GET", f"/sessions/{session}")).body["lastSequence"]
                book.write("drained", session=session, since=since, upto=upto)
                return upto
            assert answer.status == 504, answer

    # -- following -------------------------------------------------------------------------------------------

    async def _follow(self, follower: Follower) -> None:
        book, dice = self._book(follower.name), Random(self.dice.random())
        book.write("follow", follower=follower.name, session=follower.session, cursor=follower.last)
        first = True
        while True:
            try:
                await (
                    self._pages(book, follower)
                    if follower.pages
                    else self._stream(book, dice, follower, first)
                )
            except LOST as error:
                book.write("cut", follower=follower.name, error=repr(error))
                await asyncio.sleep(LOST_SECONDS)
            first = False
            await asyncio.sleep(AGAIN_SECONDS)

    async def _pages(self, book: Book, follower: Follower) -> None:
        path = f"/sessions/{follower.session}/events?from={follower.last + 1}"
        answer = await self._ask("GET", path)
        book.write("connected", follower=follower.name)
        if answer.status != 200:
            return
        for event in answer.body["events"]:
            self._seen(book, follower, event, event["sequence"], event["type"])
        book.write("backfilled", follower=follower.name, next=answer.body["nextFrom"])

    async def _stream(self, book: Book, dice: Random, follower: Follower, first: bool) -> None:
        """One connection. The first names where it begins, the later ones go on after what was seen last."""
        headers = {"Accept": "text/event-stream"}
        path = f"/sessions/{follower.session}/events?from={follower.last + 1}"
        if not first:
            headers["Last-Event-ID"] = f"{follower.last}"
            path = f"/sessions/{follower.session}/events"
        async with self.http.get(self._at(path), headers=headers) as response:
            book.write("connected", follower=follower.name)
            if response.status != 200:
                return
            async with self._messages(response) as messages:
                async for message in messages:
                    data = json.loads(message["data"])
                    if message["event"] == "end-of-backfill":
                        book.write("backfilled", follower=follower.name, next=data["nextFrom"])
                        continue
                    self._seen(book, follower, data, int(message["id"]), message["event"])
                    if dice.random() < 0.005:
                        return

    def _seen(self, book: Book, follower: Follower, event: Any, number: int, kind: str) -> None:
        book.write("seen", follower=follower.name, event=event, id=number, type=kind)
        follower.last = event["sequence"]

    @asynccontextmanager
    async def _messages(
        self, response: aiohttp.ClientResponse
    ) -> AsyncIterator[AsyncIterator[dict[str, str]]]:
        """What a stream of server-sent events says; comments are left out."""

        async def read() -> AsyncIterator[dict[str, str]]:
            message: dict[str, str] = {}
            async for raw in response.content:
                line = raw.decode().rstrip("\r\n")
                if not line and message:
                    yield message
                    message = {}
                elif line and not line.startswith(":"):
                    name, _, value = line.partition(":")
                    message[name] = message.get(name, "") + value.removeprefix(" ")

        messages = read()
        try:
            yield messages
        finally:
            await messages.aclose()
