"""uvicorn as Interlock runs it: within bounds, and without its own ideas about signals, logs and headers."""

from __future__ import annotations

import asyncio
import re
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import httptools
import uvicorn

from interlock.errors import InterlockError
from interlock.http.connections.places import Places
from interlock.http.connections.protocol import Connection, LongConnection, Patience

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator


OLDEST_PARSER: Final = (0, 6, 3)
"""Of httptools: what came before takes some requests for what they are not."""


def check_parser(version: str = httptools.__version__) -> None:
    """Raises `InterlockError` for a parser of requests that is too old to be trusted."""
    numbers = tuple(int(part) for part in re.findall(r"[0-9]+", version)[:3])
    if numbers < OLDEST_PARSER:
        oldest = ".".join(map(str, OLDEST_PARSER))
        raise InterlockError(
            f"httptools {version} is too old to read requests safely; install {oldest} or later"
        )


def uvicorn_config(
    app: Any, *, places: Places | None = None, patience: Patience | None = None
) -> uvicorn.Config:
    """How *app* is served; *places* and *patience* bound its connections."""
    bounds = {"places": Places() if places is None else places, "patience": patience or Patience()}
    return uvicorn.Config(
        app,
        http=partial(Connection, **bounds),  # type: ignore[arg-type]
        ws=LongConnection,
        ws_per_message_deflate=False,
        ws_ping_interval=None,  # clients of permits are heard of all the time
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=5,  # for answers that their client does not read
        backlog=2048,
    )


class Server(uvicorn.Server):
    """A server in the running loop; signals are its caller's business."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done once it listens."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set_result(None)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
