"""An answer while it comes in: filled by the connection, emptied by its reader at the reader's own pace."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

FailureKind = Literal["connect", "timeout", "reset", "redirect", "protocol"]


class UpstreamError(Exception):
    """The provider gave no proper answer, or not all of it.

    The message names its host, and never the query, a header or a key. ``connect`` means that
    nothing of the request was sent.
    """

    def __init__(self, kind: FailureKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message

    @property
    def status(self) -> int:
        """The status to answer with."""
        return 504 if self.kind == "timeout" else 502


class Source(Protocol):
    """Where an answer comes from."""

    def resume(self) -> None:
        """Go on, in case it waits for the reader."""
        ...

    def abort(self, error: UpstreamError) -> None:
        """Stop at once, and let the answer fail with *error*."""
        ...


class Answer:
    """``UpstreamResponse`` over a connection to *host*, the *source*. One task at a time may read it."""

    def __init__(self, source: Source, host: str) -> None:
        self._source: Source | None = source
        """None when nothing more will come: the body is whole or has broken off."""
        self._host = host
        self._pieces: list[bytes] = []
        self._failure: UpstreamError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._when_ended: list[Callable[[], object]] = []
        self.status = 0  # until the header is there
        self.headers: list[tuple[bytes, bytes]] = []
        self.begun = False
        """Whether any byte of it came."""
        self.unread = 0
        """Bytes of the body that wait for the reader."""

    @property
    def ended(self) -> bool:
        """See ``UpstreamResponse.ended``."""
        return self._source is None and self._failure is None and not self._pieces

    async def head(self) -> None:
        """Return when status and header fields are there. Raises ``UpstreamError``."""
        while not self.status:
            if self._failure is not None:
                raise self._failure
            await self._more()

    async def chunks(self) -> AsyncIterator[bytes]:
        """See ``UpstreamResponse.chunks``."""
        while True:
            if self._pieces:
                pieces, self._pieces, self.unread = self._pieces, [], 0
                if self._source is not None:
                    self._source.resume()
                yield pieces[0] if len(pieces) == 1 else b"".join(pieces)
            elif self._failure is not None:
                raise self._failure
            elif self._source is None:
                return
            else:
                await self._more()

    def when_ended(self, callback: Callable[[], object]) -> None:
        """See ``UpstreamResponse.when_ended``."""
        if self._source is not None:
            self._when_ended.append(callback)
        elif self._failure is None:
            callback()

    def close(self) -> None:
        """See ``UpstreamResponse.close``."""
        if self._source is not None:
            message = f"the answer of {self._host} was closed before it was whole"
            self._source.abort(UpstreamError("reset", message))

    async def _more(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    # -- for its source

    def add(self, piece: bytes) -> None:
        """Take the next *piece* of the body; `wake` the reader when it is to look."""
        self._pieces.append(piece)
        self.unread += len(piece)

    def finish(self) -> None:
        """The body is whole."""
        self._source = None
        self.wake()
        for callback in self._when_ended:
            callback()

    def fail(self, error: UpstreamError) -> None:
        """Nothing more will come; the reader gets *error* behind what is there."""
        self._source = None
        self._failure = error
        self.wake()

    def wake(self) -> None:
        """Have the reader look at what has changed."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
