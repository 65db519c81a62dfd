"""A provider that counts late, punishes overshoot and misbehaves on cue.

It speaks the OpenAI and Anthropic dialects well enough for their official SDKs, streaming or not, with tool
calls; answers depend on nothing but the seed and the request's body. It is what a fleet can rehearse against:
``interlock mock-provider`` on the command line, `running` in a test.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
import time
from collections import deque
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import uvicorn

from interlock.http.connections.server import Server
from interlock.testing import answers
from interlock.testing.account import Account, Unit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    Scope = dict[str, Any]

_KINDS = {"chat/completions": "chat", "responses": "responses", "messages": "messages"}
_JSON = [(b"content-type", b"application/json")]
_STREAM = [(b"content-type", b"text/event-stream; charset=utf-8")]
_AS_CUED = {"type": "error", "error": {"type": "api_error", "message": "as cued"}}
_CREDENTIALS = (b"authorization", b"x-api-key", b"api-key", b"cookie")

FAULTS = (
    "status",
    "hang",
    "stall",
    "reset",
    "slow",
    "garbage",
    "huge_line",
    "redirect",
    "bad_retry_after",
    "wrong_length",
)
"""What can be cued; see `MockProvider.cue`."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One cued misbehaviour and its parameters."""

    kind: str
    params: dict[str, Any] = field(default_factory=dict)


class ConnectionCut(Exception):
    """The provider drops the connection: nothing proper follows."""


class MockProvider:
    """An ASGI application; the keyword arguments are those of `Account`, times in seconds.

    Args:
        latency: how long an answer takes, give or take a fifth (by the request's body).
    """

    def __init__(
        self,
        *,
        limit: int = 4,
        hard_cap: int | None = None,
        lag: float = 0.3,
        latency: float = 0.8,
        penalty: float = 2.0,
        seed: int = 0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        cap = limit + 1 if hard_cap is None else hard_cap
        self.account = Account(limit=limit, hard_cap=cap, lag=lag, penalty=penalty, seed=seed, now=now)
        self.latency = latency
        self.seed = seed
        self._faults: deque[Fault] = deque()

    def cue(self, kind: str, times: int = 1, **params: Any) -> None:
        """Misbehave for the next *times* calls.

        ``status`` (status, headers, body) answers so; ``hang`` never answers; ``stall`` (after) sends
        so many pieces and no more; ``reset`` (after) cuts the connection there; ``slow`` (factor) takes
        longer; ``garbage`` answers 200 with no JSON; ``huge_line`` (size) sends one endless line;
        ``redirect`` points to a link-local address; ``bad_retry_after`` (values) is a 429 with these
        ``retry-after`` headers; ``wrong_length`` promises more than it sends.
        """
        if kind not in FAULTS:
            raise ValueError(f"unknown fault {kind!r}; known are: {', '.join(FAULTS)}")
        self._faults.extend([Fault(kind, params)] * times)

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body = await _body(receive)
        path = _route(scope["path"])
        method = scope["method"]
        if method == "POST" and path in _KINDS:
            await self._call(_KINDS[path], body, receive, send)
        elif method == "GET" and path == "models":
            await _answer(send, _models())
        elif method == "GET" and path == "usage":
            account = self.account
            concurrency = {"limit": account.limit, "hard_cap": account.hard_cap}
            usage = {"concurrent_sessions": account.counted}
            await _answer(send, {"usage": usage, "limits": {"concurrency": concurrency}})
        elif path == "stats" and method == "GET":
            await _answer(send, self.account.report())
        elif path == "stats/reset" and method == "POST":
            self.account.reset()
            await _answer(send, {"ok": True})
        elif path == "foreign" and method == "POST":
            await self._foreign(_decoded(body).get("count"), send)
        elif path == "cue" and method == "POST":
            await self._cued(_decoded(body), send)
        elif path == "messages/count_tokens" and method == "POST":
            await _answer(send, {"input_tokens": max(1, len(body) // 4)})
        elif path == "embeddings" and method == "POST":
            await self._call("embeddings", body, receive, send)
        else:
            await _answer(send, _echo(scope, body))

    async def _foreign(self, count: object, send: Any) -> None:
        if type(count) is not int or count < 0:
            await _answer(send, {"error": "Body must be { count: <non-negative integer> }"}, 400)
            return
        self.account.set_foreign(count)
        await _answer(send, {"foreign": count})

    async def _cued(self, request: dict[str, Any], send: Any) -> None:
        try:
            for fault in request.get("faults", []):
                params = dict(fault)
                self.cue(params.pop("kind"), params.pop("times", 1), **params)
        except (ValueError, KeyError, TypeError) as error:
            await _answer(send, {"error": str(error)}, 400)
            return
        await _answer(send, {"cued": len(self._faults)})

    # -- one call

    async def _call(self, kind: str, body: bytes, receive: Any, send: Any) -> None:
        unit = self.account.begin()
        if unit is None:
            await self._refuse(kind, send)
            return
        working = asyncio.ensure_future(self._serve(kind, body, send))
        leaving = asyncio.ensure_future(_disconnected(receive))
        served = False
        try:
            await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
            served = working.done() and not working.cancelled() and working.exception() is None
        finally:
            self.account.end(unit, served=served)
            leaving.cancel()
            working.cancel()
        if working.done() and not working.cancelled():
            working.result()

    async def _refuse(self, kind: str, send: Any) -> None:
        message = (
            f"Concurrency limit reached for requests: {self.account.counted} in flight, "
            f"at most {self.account.hard_cap} allowed."
        )
        headers = [*_JSON, (b"retry-after", b"1"), (b"retry-after-ms", b"1000")]
        await _answer(send, answers.refusal(kind, message), 429, headers)

    async def _serve(self, kind: str, body: bytes, send: Any) -> None:
        fault = self._faults.popleft() if self._faults else Fault("")
        if fault.kind:
            faults = self.account.stats.faults
            faults[fault.kind] = faults.get(fault.kind, 0) + 1
        dice = answers.seeded(self.seed, body)
        seconds = self.latency * dice.uniform(0.8, 1.2) * (2 if self.account.punished else 1)
        if fault.kind == "slow":
            seconds *= fault.params.get("factor", 10)
        if await _misbehaves(fault, seconds, send):
            return
        request = _decoded(body)
        if kind == "embeddings":
            await asyncio.sleep(seconds)
            await _answer(send, _embeddings(request, dice.random()))
            return
        answer = answers.compose(kind, request, dice)
        if request.get("stream") is True:
            await self._stream(list(answers.pieces(answer, request)), seconds, fault, send)
            return
        if fault.kind == "stall":
            await asyncio.Event().wait()
        await asyncio.sleep(seconds)
        if fault.kind == "reset":
            await _cut(send)
        await _answer(send, answers.whole(answer, request))

    async def _stream(self, pieces: list[bytes], seconds: float, fault: Fault, send: Any) -> None:
        after = fault.params.get("after", 2) if fault.kind in ("stall", "reset") else len(pieces)
        await asyncio.sleep(seconds * 0.3)
        await send({"type": "http.response.start", "status": 200, "headers": _STREAM})
        pause = seconds * 0.7 / len(pieces)
        for index, piece in enumerate(pieces):
            if index == after:
                if fault.kind == "reset":
                    raise ConnectionCut
                await asyncio.Event().wait()
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            if pause > 0.0005:
                await asyncio.sleep(pause)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _misbehaves(fault: Fault, seconds: float, send: Any) -> bool:
    """Carry out a fault that replaces the whole answer; False if the answer is still to be given."""
    params = fault.params
    match fault.kind:
        case "status":
            headers = [(name.encode(), value.encode()) for name, value in params.get("headers", {}).items()]
            body = params.get("body", _AS_CUED)
            await _answer(send, body, params.get("status", 500), [*_JSON, *headers])
        case "hang":
            await asyncio.Event().wait()
        case "garbage":
            await asyncio.sleep(seconds)
            await _answer(send, b"\x00\xff this is no JSON {{{")
        case "huge_line":
            await send({"type": "http.response.start", "status": 200, "headers": _STREAM})
            left = params.get("size", 10 << 20)
            while left > 0:
                await send({"type": "http.response.body", "body": b"x" * min(left, 65536), "more_body": True})
                left -= 65536
            await send({"type": "http.response.body", "body": b"\n\n", "more_body": False})
        case "redirect":
            location = (b"location", b"http://169.254.169.254/latest/meta-data/")
            await _answer(send, {}, 302, [location])
        case "bad_retry_after":
            waits = [(b"retry-after", value.encode()) for value in params.get("values", ("nan",))]
            await _answer(send, _AS_CUED, 429, [*_JSON, *waits])
        case "wrong_length":
            await _cut(send, (b"content-length", b"9999"))
        case _:
            return False
    return True


async def _cut(send: Any, *headers: tuple[bytes, bytes]) -> None:
    """Begin an answer and drop the connection in the middle of it."""
    await send({"type": "http.response.start", "status": 200, "headers": [*_JSON, *headers]})
    await send({"type": "http.response.body", "body": b"{", "more_body": True})
    raise ConnectionCut


# -- serving


class _Server(Server):
    """A server for one application, which may be left at once."""

    def __init__(self, app: Any) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="httptools",
                ws="none",
                lifespan="off",
                access_log=False,
                log_config=None,
                log_level="critical",
                timeout_graceful_shutdown=1,
            )
        )

    async def abandon(self) -> None:
        """End the calls under way, also those that would hang for ever."""
        calls = set(self.server_state.tasks)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)


@asynccontextmanager
async def running(provider: Any, port: int = 0) -> AsyncIterator[str]:
    """Serve *provider* on loopback in the running loop; yields its base URL. OSError if the port is taken."""
    # With its protocol named, or asyncio leaves Nagle on: 40 ms for an answer written in two parts.
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    with listening:
        listening.bind(("127.0.0.1", port))
        server = _Server(provider)
        serving = asyncio.ensure_future(server.serve(sockets=[listening]))
        try:
            await server.ready
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            server.force_exit = True
            await server.abandon()
            await serving
            await server.abandon()  # what came in meanwhile


def _route(path: str) -> str:
    """*path* below its version, wherever that stands."""
    return ("/" + path.strip("/")).rpartition("/v1/")[2].strip("/")


async def _body(receive: Any) -> bytes:
    pieces = []
    while True:
        message = await receive()
        pieces.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(pieces)


async def _disconnected(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _answer(
    send: Any, value: Any, status: int = 200, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    body = value if isinstance(value, bytes) else msgspec.json.encode(value)
    headers = [*(_JSON if headers is None else headers), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def _decoded(body: bytes) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _models() -> dict[str, Any]:
    names = ("mock", "gpt-mock", "claude-mock")
    return {
        "object": "list",
        "data": [{"id": name, "object": "model", "created": 1, "owned_by": "interlock"} for name in names],
    }


def _embeddings(request: dict[str, Any], value: float) -> dict[str, Any]:
    given = request.get("input", "")
    count = len(given) if isinstance(given, list) else 1
    data = [{"object": "embedding", "index": n, "embedding": [value, 0.5]} for n in range(count)]
    usage = {"prompt_tokens": count, "total_tokens": count}
    return {"object": "list", "data": data, "model": request.get("model", "mock"), "usage": usage}


def _echo(scope: Scope, body: bytes) -> dict[str, Any]:
    """What arrived, so that passing through can be checked; never a credential."""
    headers = [
        [name.decode("latin-1"), value.decode("latin-1")]
        for name, value in scope["headers"]
        if name.lower() not in _CREDENTIALS
    ]
    return {
        "method": scope["method"],
        "path": scope["raw_path"].decode("latin-1"),
        "query": scope["query_string"].decode("latin-1"),
        "headers": headers,
        "bodySha256": hashlib.sha256(body).hexdigest(),
    }


__all__ = ["FAULTS", "Account", "MockProvider", "Unit", "running"]
