"""Requests as bytes, and an application that remembers which of them it has read to their end."""

from __future__ import annotations

import asyncio
from typing import Any

from gateways import PATIENCE, caller


class Whole:
    """An application that answers 200 to what it has read to its end, and remembers it."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, bytes, list[bytes]]] = []

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            if not message["more_body"]:
                break
        self.seen.append((scope["path"], body, [name for name, _ in scope["headers"]]))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})


async def all_that_came(url: str, pieces: list[bytes]) -> bytes:
    """What is answered to *pieces* until the server ends the connection."""
    async with caller(url) as client:
        for piece in pieces:
            client.writer.write(piece)
            if len(pieces) > 1:
                await asyncio.sleep(0)
        async with asyncio.timeout(PATIENCE):
            try:
                return await client.reader.read()
            except ConnectionError:
                return b""  # cut off in the middle of what it sent
