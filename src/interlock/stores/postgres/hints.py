"""Who is told when something of a session was committed: here at once, elsewhere by NOTIFY.

A hint says only that it is time to look; the rows are the truth, and whoever watches looks each second
anyway. NOTIFY takes a lock of the whole database at its commit, so it is sent apart from what it tells of,
for all that was written within some 20 ms. The connection that sends is the one that listens. Behind a pooler
nobody could listen, so there nobody sends either.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import msgspec

from interlock.errors import StoreError
from interlock.stores.postgres.link import Backoff, LinkLostError, translated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from interlock.stores.postgres.link import Line, Link

log = logging.getLogger(__name__)

COALESCED: Final = 0.02
"""Seconds for which hints are gathered."""
_CHANNEL: Final = "interlock"
_MOST_BYTES: Final = 7000
_SEND_SECONDS: Final = 5.0


class _Watch:
    __slots__ = ("_due", "_loop", "callback")

    def __init__(self, callback: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._due = False
        self.callback: Callable[[], None] | None = callback

    def hint(self) -> None:
        if not self._due:
            self._due = True
            self._loop.call_soon(self._tell)

    def _tell(self) -> None:
        self._due = False
        if self.callback is not None:
            self.callback()


class Hints:
    """Watchers by session; what is told to them, and through `serve` to those of other processes."""

    def __init__(self) -> None:
        self._watches: dict[str, set[_Watch]] = {}
        self._workers: list[Callable[[str | None], None]] = []
        self._unsent: set[str] = set()
        self._unsent_work: set[str] = set()
        self._woken: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._pid = 0
        """Of the server's process behind the connection that listens."""

    def watch(self, session_id: str, callback: Callable[[], None]) -> Callable[[], None]:
        """Call *callback* after commits of the session; what ends that."""
        watch = _Watch(callback)
        self._watches.setdefault(session_id, set()).add(watch)

        def unwatch() -> None:
            watch.callback = None
            others = self._watches.get(session_id, set())
            others.discard(watch)
            if not others:
                self._watches.pop(session_id, None)

        return unwatch

    def watch_work(self, callback: Callable[[str | None], None]) -> Callable[[], None]:
        """Call *callback* where the holder of a session has to look, None where of any; what ends that."""
        self._workers.append(callback)

        def unwatch() -> None:
            if callback in self._workers:
                self._workers.remove(callback)

        return unwatch

    def tell(self, session_ids: Iterable[str], work: Iterable[str] = ()) -> None:
        """Something of these sessions was committed here, or may have been; some are *work* for holders."""
        ids, works = set(session_ids), set(work)
        self._hint(ids, works)
        if self._task is not None and (ids or works):
            self._unsent |= ids
            self._unsent_work |= works
            self._wake()

    def tell_all(self) -> None:
        """Whoever watches should look for himself."""
        self._hint(list(self._watches), (None,))

    # -- other processes

    def serve(self, line: Line) -> None:
        """Begin to listen and to send, over a connection of its own."""
        self._task = asyncio.get_running_loop().create_task(self._serve(line))

    async def aclose(self) -> None:
        """End, and have everybody look once more."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait((task,))
        self.tell_all()

    async def _serve(self, line: Line) -> None:
        backoff = Backoff()
        while True:
            link: Link | None = None
            try:
                link = await line.open()
                await self._listen(link)
                backoff = Backoff()
                self.tell_all()  # what came while nobody listened
                await self._send(link)
            except Exception as error:
                found = translated(error, line.where)
                if not isinstance(found, (LinkLostError, StoreError)):
                    raise
                log.debug("hints of other processes are off, trying again: %s", found)
            finally:
                if link is not None:
                    link.abort()
            await asyncio.sleep(backoff.next())

    async def _listen(self, link: Link) -> None:
        self._pid = link.db.get_server_pid()
        async with asyncio.timeout(_SEND_SECONDS):
            await link.db.add_listener(_CHANNEL, self._heard)
        link.db.add_termination_listener(lambda _: self._wake())

    async def _send(self, link: Link) -> None:
        """Send what is gathered, until the link is lost."""
        while not link.closed:
            if not self._unsent and not self._unsent_work:
                self._woken = asyncio.get_running_loop().create_future()
                await self._woken
                continue
            await asyncio.sleep(COALESCED)
            payload = msgspec.json.encode((self._unsent, self._unsent_work))
            self._unsent, self._unsent_work = set(), set()
            said = payload.decode() if len(payload) <= _MOST_BYTES else ""
            async with asyncio.timeout(_SEND_SECONDS):
                await link.db.fetchval("SELECT pg_notify($1, $2)", _CHANNEL, said)

    def _heard(self, db: Any, pid: int, channel: str, payload: object) -> None:
        if pid == self._pid:
            return  # our own
        with suppress(msgspec.DecodeError):
            self._hint(*msgspec.json.decode(str(payload), type=tuple[list[str], list[str]]))
            return
        self.tell_all()

    def _hint(self, session_ids: Iterable[str], work: Iterable[str | None]) -> None:
        for session_id in session_ids:
            for watch in self._watches.get(session_id, ()):
                watch.hint()
        for which in work:
            for callback in self._workers:
                callback(which)

    def _wake(self) -> None:
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)
