"""Load for one server: `python -m bench.load URL [--connections 64] [--seconds 2] [--paced]`.

Every connection is one agent that asks, reads the answer to its end and asks again, with the header fields
that an SDK sends and about a kilobyte of conversation of its own. After a warm-up of half a second the
answers are counted; only a complete one with the right body counts. Prints one JSON object: requests per
second, milliseconds to the first byte and to the end (p50, p99), how many were answered in all, warm-up and
end included, and how many of those answers were wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from typing import Any
from urllib.parse import urlsplit

import uvloop

from bench.upstream import BODY

WARM_UP = 0.5
CHAT = "/v1/chat/completions"
_TEXT = "Please look at the failing test, find the cause, and propose the smallest change that mends it. " * 6


class Load:
    """What all connections share."""

    def __init__(self, url: str, *, seconds: float, paced: bool, loose: bool) -> None:
        self.url = urlsplit(url)
        self.model = "mock-paced" if paced else "mock"
        self.loose = loose
        self.clock = time.perf_counter
        self.counted_from = self.clock() + WARM_UP
        self.until = self.counted_from + seconds
        self.seconds = seconds
        self.first_bytes: list[float] = []
        self.totals: list[float] = []
        self.answered = 0
        self.wrong = 0
        self.example = b""

    def request(self, agent: int) -> bytes:
        body = {
            "model": self.model,
            "stream": True,
            "max_completion_tokens": 1024,
            "messages": [
                {"role": "system", "content": f"You are agent {agent} of a fleet. Be brief and exact."},
                {"role": "user", "content": _TEXT},
                {"role": "assistant", "content": "I will look at the test first."},
                {"role": "user", "content": "Go on, and tell me before you change anything else."},
            ],
        }
        content = json.dumps(body).encode()
        head = (
            f"POST {self.url.path} HTTP/1.1\r\nhost: {self.url.netloc}\r\nconnection: keep-alive\r\n"
            "accept: application/json\r\naccept-encoding: identity\r\ncontent-type: application/json\r\n"
            "authorization: Bearer sk-bench\r\nuser-agent: AsyncOpenAI/Python 3.0.0\r\n"
            "x-stainless-lang: python\r\nx-stainless-package-version: 3.0.0\r\nx-stainless-os: Linux\r\n"
            "x-stainless-arch: x64\r\nx-stainless-runtime: CPython\r\nx-stainless-runtime-version: 3.11.7\r\n"
            "x-stainless-async: async:asyncio\r\nx-stainless-retry-count: 0\r\n"
            f"x-stainless-read-timeout: 600\r\ncontent-length: {len(content)}\r\n\r\n"
        )
        return head.encode() + content

    def right(self, answer: bytes) -> bool:
        head, _, framed = answer.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            return False
        body = _unframed(framed)
        if self.loose:
            return body.count(b"data: ") >= 20 and b"word9 " in body and body.rstrip().endswith(b"[DONE]")
        return body == BODY

    def summary(self) -> dict[str, float | int | str]:
        return {
            "per_second": len(self.totals) / self.seconds,
            "first_p50": _percentile(self.first_bytes, 0.5),
            "first_p99": _percentile(self.first_bytes, 0.99),
            "total_p50": _percentile(self.totals, 0.5),
            "total_p99": _percentile(self.totals, 0.99),
            "answered": self.answered,
            "wrong": self.wrong,
            "example": self.example[:300].decode("latin-1"),
        }


class _Agent(asyncio.Protocol):
    def __init__(self, load: Load, request: bytes, left: asyncio.Future[None]) -> None:
        self.load = load
        self.request = request
        self.left = left

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        self.answer = b""
        self.first_byte = 0.0
        self.asked = self.load.clock()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        load = self.load
        if not self.answer:
            self.first_byte = load.clock()
        self.answer += data
        if not self.answer.endswith(b"0\r\n\r\n"):
            return
        now = load.clock()
        load.answered += 1
        if not load.right(self.answer):
            load.wrong += 1
            load.example = self.answer
        elif now >= load.counted_from:
            load.first_bytes.append(self.first_byte - self.asked)
            load.totals.append(now - self.asked)
        if now < load.until:
            self.ask()
        else:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.load.clock() < self.load.until:
            self.load.wrong += 1
            self.load.example = self.answer
        self.left.set_result(None)


async def _drive(load: Load, connections: int) -> None:
    loop = asyncio.get_running_loop()
    ends = [loop.create_future() for _ in range(connections)]
    for agent, left in enumerate(ends):
        request = load.request(agent)
        await loop.create_connection(
            lambda request=request, left=left: _Agent(load, request, left), load.url.hostname, load.url.port
        )
    # A server that hangs counts as wrong, not as a benchmark that never ends.
    _, hanging = await asyncio.wait(ends, timeout=load.until - load.clock() + 20)
    load.wrong += len(hanging)


def _unframed(framed: bytes) -> bytes:
    pieces = []
    at = 0
    while True:
        line = framed.index(b"\r\n", at)
        size = int(framed[at:line], 16)
        if size == 0:
            return b"".join(pieces)
        pieces.append(framed[line + 2 : line + 2 + size])
        at = line + 4 + size


def _percentile(seconds: list[float], share: float) -> float:
    """In milliseconds."""
    if not seconds:
        return float("nan")
    return sorted(seconds)[min(len(seconds) - 1, int(len(seconds) * share))] * 1000


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--paced", action="store_true")
    parser.add_argument(
        "--loose", action="store_true", help="the answer need not be the provider's byte for byte"
    )
    arguments = parser.parse_args()
    load = Load(arguments.url, seconds=arguments.seconds, paced=arguments.paced, loose=arguments.loose)
    uvloop.run(_drive(load, arguments.connections))
    print(json.dumps(load.summary()))
