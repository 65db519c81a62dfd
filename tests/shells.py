"""Commands against a server that says what the test wants, over real HTTP.

    async with stub() as server:
        server.says("GET /runs/r1", Reply({"runId": "r1"}))
        finished = await shell.run("runs", "--run", "r1", "--url", server.url)

The commands run in threads of this process, which takes a hundredth of the time of a process of their own.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

import pytest

from gateways import PATIENCE, hosting, until
from interlock.cli import main
from processes import Finished

# -- the server ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reply:
    """A whole answer."""

    body: Any
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Stream:
    """A stream of events: *pieces*, and then it is ended, cut (a chunk is missing) or left open.

    *later* comes once the test says ``go``.
    """

    pieces: tuple[bytes, ...]
    then: str = "end"
    later: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Asked:
    """A request as it came."""

    route: str
    query: list[tuple[str, str]]
    headers: dict[str, str]
    body: Any


class Cut(Exception):
    """Has uvicorn drop the connection; only its log tells of it."""


@dataclass
class Stub:
    """For each route its answers, in their order; the last one stays."""

    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    go: asyncio.Event = field(default_factory=asyncio.Event)
    _answers: dict[str, list[Reply | Stream]] = field(default_factory=dict)

    def says(self, route: str, *answers: Reply | Stream) -> None:
        self._answers.setdefault(route, []).extend(answers)

    def asked_for(self, route: str) -> list[Asked]:
        return [one for one in self.asked if one.route == route]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        route = f"{scope['method']} {scope['path']}"
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        query = parse_qsl(scope["query_string"].decode())
        self.asked.append(Asked(route, query, headers, json.loads(body) if body else None))
        answers = self._answers.get(route) or [problem(404, "not_found", f"no {route}")]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Reply):
            kind = [(b"content-type", b"application/json")]
            kind += [(name.encode(), value.encode()) for name, value in answer.headers]
            await send({"type": "http.response.start", "status": answer.status, "headers": kind})
            await send({"type": "http.response.body", "body": json.dumps(answer.body).encode()})
            return
        kind = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": kind})
        for piece in answer.pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        if answer.later:
            await self.go.wait()
            await send({"type": "http.response.body", "body": b"".join(answer.later), "more_body": True})
        if answer.then == "cut":
            raise Cut
        if answer.then == "open":
            while (await receive())["type"] != "http.disconnect":
                pass
            return
        await send({"type": "http.response.body", "body": b""})


@asynccontextmanager
async def stub() -> AsyncIterator[Stub]:
    """A server on a free port that answers as it is told."""
    server = Stub()
    async with hosting(server) as url:
        server.url = url
        yield server


def problem(status: int, code: str, detail: str, *headers: tuple[str, str]) -> Reply:
    return Reply({"status": status, "code": code, "detail": detail}, status, headers)


def event(sequence: int, kind: str, run_id: str | None = "r1", **data: Any) -> dict[str, Any]:
    """An event as the server tells it."""
    return {
        "id": f"evt_{sequence}",
        "sessionId": "s1",
        "runId": run_id,
        "sequence": sequence,
        "type": kind,
        "timestamp": 1_700_000_000_000 + sequence,
        "data": data,
        "metadata": {},
    }


def frame(told: dict[str, Any]) -> bytes:
    return f"id: {told['sequence']}\nevent: {told['type']}\ndata: {json.dumps(told)}\n\n".encode()


def mark(name: str, next_from: int) -> bytes:
    return f'event: {name}\ndata: {{"nextFrom":{next_from}}}\n\n'.encode()


def stream(*told: dict[str, Any], then: str = "end") -> Stream:
    """*told*, of which all but the last are there from the beginning; "end" is the end of the session."""
    last = told[-1]["sequence"] + 1
    closing = (mark("end", last),) if then == "end" else ()
    return Stream((*map(frame, told), mark("end-of-backfill", last), *closing), then)


def run(run_id: str = "r1", status: str = "completed", **more: Any) -> dict[str, Any]:
    """A run as the server tells it."""
    return {
        "runId": run_id,
        "sessionId": "s1",
        "status": status,
        "number": 1,
        "input": {"prompt": "hi"},
        "output": None,
        "error": None,
        "attempt": 1,
        "priority": 0,
        "timeoutMs": None,
        "retry": None,
        "tokenUsage": {},
        "metadata": {},
        "submittedAt": 1_700_000_000_000,
        "startedAt": 1_700_000_000_300,
        "endedAt": 1_700_000_002_400,
        "waitedMs": 300,
        **more,
    }


# -- the client ----------------------------------------------------------------------------------------------


class Shell:
    """Runs commands as ``interlock`` does, one at a time, and hears what they print."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.stdout = ""
        self.stderr = ""

    def start(self, *words: str) -> asyncio.Future[int]:
        """Begin a command; the future is its exit code. What a hung one leaves behind is a daemon."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[int] = loop.create_future()
        self.stdout = self.stderr = ""

        def work() -> None:
            code = -1
            try:
                main(words)
            except SystemExit as stopped:
                code = stopped.code if isinstance(stopped.code, int) else -1
            finally:
                loop.call_soon_threadsafe(lambda: ended.done() or ended.set_result(code))

        threading.Thread(target=work, daemon=True).start()
        return ended

    def hear(self) -> None:
        said = self._capsys.readouterr()
        self.stdout += said.out
        self.stderr += said.err

    async def heard(self, text: str) -> None:
        """Return once *text* has been printed."""

        def there() -> bool:
            self.hear()
            return text in self.stdout + self.stderr

        await until(there)

    async def finish(self, ended: asyncio.Future[int]) -> Finished:
        async with asyncio.timeout(2 * PATIENCE):
            code = await ended
        self.hear()
        return Finished(code, self.stdout, self.stderr)

    async def run(self, *words: str) -> Finished:
        return await self.finish(self.start(*words))

    async def says(self, *words: str) -> str:
        """What a command prints that succeeds and complains of nothing."""
        finished = await self.run(*words)
        assert (finished.code, finished.stderr) == (0, ""), finished
        return finished.stdout

    async def refuses(self, code: int, *words: str) -> str:
        """The one line of a command that fails."""
        finished = await self.run(*words)
        assert (finished.code, finished.stdout) == (code, ""), finished
        (line,) = finished.stderr.splitlines()
        assert line.startswith("interlock: ")
        return line
