"""Answers that last: they end with the token that opened them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from interlock.http.access.refusals import refuse

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from interlock.http.access.book import TokenBook
    from interlock.http.access.caller import Caller

    App = Callable[[dict[str, Any], Any, Any], Awaitable[None]]

CHALLENGE = (b"www-authenticate", b"Bearer")
_ENDED = "the token was revoked or has expired"


async def while_valid(
    book: TokenBook, caller: Caller, app: App, scope: dict[str, Any], receive: Any, send: Any
) -> None:
    """Have *app* answer until a token of *caller* ends, which closes a connection and cuts off a stream."""
    task = asyncio.current_task()
    assert task is not None
    ended = started = False

    def end() -> None:
        nonlocal ended
        if not ended:
            ended = True
            task.cancel()

    async def sending(message: dict[str, Any]) -> None:
        nonlocal started
        started = True
        await send(message)

    stop = book.on_end(caller.names, end)
    try:
        await app(scope, receive, send if scope["type"] == "websocket" else sending)
    except asyncio.CancelledError:
        if not ended or task.uncancel() > 0:
            raise
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": _ENDED})
        elif started:
            raise ConnectionResetError(_ENDED) from None
        else:
            await refuse(scope, send, 401, "unauthorized", _ENDED, [CHALLENGE])
    finally:
        stop()
