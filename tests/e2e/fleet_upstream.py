"""Something outside that a fleet uses, and that counts who is inside: a program of the standard library only.

    python -E -s -S fleet_upstream.py SOCKET HISTORIES

A connection to the Unix socket is a piece of work: one JSON line that says who begins, answered by ``in``; it
ends with a second line, answered by ``out``, or with the connection, as the system closes those of the dead.
``{"what": "count"}`` is answered with the pieces of work that each client has begun.

Written down are ``began`` (with what was said) and ``left`` (``cut`` if nobody said so).
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

from histories import Book


class Upstream:
    """Who is inside."""

    def __init__(self, book: Book) -> None:
        self.book = book
        self.begun: Counter[str] = Counter()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            said = json.loads(await reader.readline() or b'{"what": "nothing"}')
            if said["what"] == "count":
                writer.write(json.dumps(self.begun).encode() + b"\n")
                await writer.drain()
            elif said["what"] == "begin":
                await self.inside(said, reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def inside(
        self, said: dict[str, str], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        ended = b""
        said.pop("what")
        self.book.write("began", **said)
        self.begun[said["client"]] += 1
        try:
            writer.write(b"in\n")
            ended = await reader.readline()
        finally:
            self.book.write("left", ask=said["ask"], cut=not ended)
        writer.write(b"out\n")
        await writer.drain()


async def main(path: str, histories: str) -> None:
    upstream = Upstream(Book(Path(histories), "upstream"))
    server = await asyncio.start_unix_server(upstream.connected, path, backlog=1000)
    asyncio.get_running_loop().add_reader(sys.stdin, server.close)  # nobody writes: the test has been ended
    print("ready", flush=True)
    with suppress(asyncio.CancelledError):
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
