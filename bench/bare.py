"""The least that can stand between a client and a provider: `python -m bench.bare UPSTREAM`.

A raw ASGI application on uvicorn (uvloop, httptools, the settings of `interlock serve`) that hands each
request to one aiohttp session and the answer back as it comes, with the end-to-end header fields of both. No
gates, no dialects, no refusals, and it does not notice when a client leaves.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import Any

import aiohttp
import uvicorn
import uvloop

_OF_ONE_CONNECTION = frozenset(
    (b"host", b"connection", b"content-length", b"transfer-encoding", b"keep-alive")
)


class Bare:
    """The ASGI application; *upstream* is the provider's origin."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            auto_decompress=False,
        )

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        headers = [
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in scope["headers"]
            if name not in _OF_ONE_CONNECTION
        ]
        async with self.session.request(
            scope["method"], self.upstream + scope["path"], data=body, headers=headers
        ) as response:
            kept = [
                (name, value)
                for name, value in response.raw_headers
                if name.lower() not in _OF_ONE_CONNECTION
            ]
            await send({"type": "http.response.start", "status": response.status, "headers": kept})
            async for chunk in response.content.iter_any():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def main(upstream: str) -> None:
    # The protocol is named so that small writes are not delayed, as in `interlock serve`.
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.bind(("127.0.0.1", 0))
    listening.listen(2048)  # from here on who comes is kept, also before the server runs
    config = uvicorn.Config(
        Bare(upstream),
        http="httptools",
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=False,
        timeout_keep_alive=75,
        backlog=2048,
    )
    serving = asyncio.create_task(uvicorn.Server(config).serve(sockets=[listening]))
    print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
    await serving


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
