"""A provider that costs next to nothing: `python -m bench.upstream` prints its port and answers.

A POST gets 20 events of a chat completion, in one write; one for the model ``mock-paced`` gets them 10 ms
apart. GET /usage says that nothing is in flight. Written on a bare asyncio protocol.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

EVENTS_COUNT = 20
GAP = 0.01

_LENGTH = re.compile(rb"content-length:[ \t]*([0-9]+)", re.IGNORECASE)


def _event(number: int) -> bytes:
    last = number == EVENTS_COUNT - 1
    delta = {} if last else {"content": f"word{number} "} if number else {"role": "assistant", "content": ""}
    chunk = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": "mock",
        "choices": [{"index": 0, "delta": delta, "finish_reason": "stop" if last else None}],
    }
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


EVENTS = [*map(_event, range(EVENTS_COUNT)), b"data: [DONE]\n\n"]
BODY = b"".join(EVENTS)
"""What every proxy must hand on, byte for byte."""


def _framed(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


_FRAMES = [*map(_framed, EVENTS), b"0\r\n\r\n"]
_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
    b"x-request-id: req_1\r\ntransfer-encoding: chunked\r\n\r\n"
)
_BURST = _HEAD + b"".join(_FRAMES)
_NOTHING = b'{"usage": {"concurrent_sessions": 0}}'
_USAGE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
    len(_NOTHING),
    _NOTHING,
)


class _Connection(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.received = b""

    def data_received(self, data: bytes) -> None:
        self.received += data
        while (end := self.received.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(self.received, 0, end)
            whole = end + 4 + (int(length[1]) if length else 0)
            if len(self.received) < whole:
                return
            request, self.received = self.received[:whole], self.received[whole:]
            if request.startswith(b"GET"):
                self.transport.write(_USAGE)
            elif b'"mock-paced"' in request:
                self.pacing = asyncio.get_running_loop().create_task(self.paced())
            else:
                self.transport.write(_BURST)

    async def paced(self) -> None:
        self.transport.write(_HEAD + _FRAMES[0])
        for frame in _FRAMES[1:EVENTS_COUNT]:
            await asyncio.sleep(GAP)
            self.transport.write(frame)
        self.transport.write(b"".join(_FRAMES[EVENTS_COUNT:]))


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(_Connection, "127.0.0.1", 0, backlog=1024)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    import uvloop

    uvloop.run(main())
