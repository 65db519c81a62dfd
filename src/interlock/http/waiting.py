"""Requests that take their time: they end when their client leaves, or when the server stops."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from interlock.errors import Draining

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from starlette.requests import Request

    from interlock.http.permits.desk import PermitDesk

T = TypeVar("T")


async def poll(request: Request, desk: PermitDesk, work: Coroutine[Any, Any, T]) -> T:
    """The result of *work*, which is cancelled should nobody wait for it any longer; `Draining` then."""
    task = asyncio.get_running_loop().create_task(work)
    try:
        return await while_there(request, desk, task)
    finally:
        task.cancel()
        task.add_done_callback(_looked_at)


async def while_there(request: Request, desk: PermitDesk, task: asyncio.Task[T]) -> T:
    """The result of *task*; `Draining` when *desk* drains, or the client of *request* leaves, before that.

    The task goes on then.
    """
    if desk.draining:
        raise _stopping()
    loop = asyncio.get_running_loop()
    draining: asyncio.Future[None] = loop.create_future()

    def send_away() -> None:
        draining.cancel()

    called_off = desk.on_drain(send_away)
    leaving = loop.create_task(_left(request))
    try:
        await asyncio.wait((task, draining, leaving), return_when=asyncio.FIRST_COMPLETED)
    finally:
        called_off()
        draining.cancel()
        leaving.cancel()
    if task.done():
        return task.result()
    raise _stopping()


def _stopping() -> Draining:
    return Draining("the server stops; come back in a moment")


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _looked_at(task: asyncio.Task[Any]) -> None:
    """An error of a task that nobody awaits any longer is no news."""
    if not task.cancelled():
        task.exception()
