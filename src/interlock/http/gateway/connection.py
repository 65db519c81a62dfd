"""One connection to a provider: a request out, and its answer in as it comes.

It carries one call at a time. The parser's findings go into the call's `Answer`; once that is whole, the
connection is free for the next call. Whatever goes wrong, at any moment, ends in `Connection.abort`: the
transport is gone at once, and the answer, if one was under way, has failed.
"""

from __future__ import annotations

import asyncio
import re
import select
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from interlock.http.gateway.answer import Answer, UpstreamError

if TYPE_CHECKING:
    from collections.abc import Callable

_OVERHEAD_MAX: Final = 64 * 1024
"""Bytes in a row that are no body: a header and informational answers before it, chunk sizes, trailers."""
_FIELDS_MAX: Final = 256
_READ_AHEAD: Final = 256 * 1024
"""Of an answer whose reader is slow; so the provider is done with most of them when it is done."""
_PIECE: Final = 256 * 1024
"""Of an upload; one a turn of the loop, so that it does not hold up everyone else."""
_FRAMING: Final = (b"content-length", b"transfer-encoding")
_KEPT_FOR: Final = re.compile(rb"(?:.*[\s,;])?timeout=([0-9]{1,9})(?:[\s,;].*)?", re.IGNORECASE | re.DOTALL)


class Times(NamedTuple):
    """Seconds to wait: for the header of an answer and again for the first piece of its body, for each later
    piece, and for all of it."""

    first_byte: float
    idle: float
    total: float


class Connection(asyncio.Protocol):
    """A connection to *host*, as errors name it.

    *freed* is called when it can carry another call, *lost* when it is gone. Unused for *keep_alive* seconds
    it closes itself.
    """

    def __init__(
        self,
        host: str,
        *,
        keep_alive: float,
        freed: Callable[[Connection], None],
        lost: Callable[[Connection], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._host = host
        self._keep_alive = keep_alive
        self._freed = freed
        self._lost = lost
        self.closed: asyncio.Future[None] = self._loop.create_future()
        """Done when it is gone."""
        self._transport: asyncio.Transport
        self._upload = memoryview(b"")
        self._writing_paused = self._reading_paused = False
        # One timer, set anew only when it goes off: nearly every deadline has moved on before it comes.
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = self._deadline = 0.0
        self._answer: Answer | None = None
        self._times = Times(0, 0, 0)
        self._last_moment = self._patience = 0.0
        self._head_only = False
        self._headers: list[tuple[bytes, bytes]] = []
        self._overhead = 0
        self._whole = self._reusable = False
        self._parser = HttpResponseParser(self)
        # Small servers do both: end a line without CR, and put blanks behind the size of a chunk.
        self._parser.set_dangerous_leniencies(
            lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True
        )

    @property
    def usable(self) -> bool:
        """Whether it can carry a call now. The peer may have closed it without the loop having looked yet."""
        return self._answer is None and not self._transport.is_closing() and not self._readable()

    def ask(self, method: str, head: bytes, body: bytes, times: Times, began: float) -> Answer:
        """Send a request that *began* at this time of the loop; the answer, of which nothing is there yet."""
        self._answer = answer = Answer(self, self._host)
        self._times = times
        self._patience = times.first_byte
        self._last_moment = began + times.total
        self._head_only = method == "HEAD"
        self._headers = []
        self._overhead = 0
        self._whole = self._reusable = False
        self._expire_at(min(began + times.first_byte, self._last_moment))
        self._transport.write(head + body[:_PIECE])
        if len(body) > _PIECE:
            self._upload = memoryview(body)[_PIECE:]
            self._loop.call_soon(self._send_more)
        return answer

    def resume(self) -> None:
        """Read on, now that the reader has caught up."""
        if self._reading_paused:
            self._reading_paused = False
            self._transport.resume_reading()
            self._wait_on()

    def abort(self, error: UpstreamError | None = None) -> None:
        """Close it now, whatever is left to send; an answer that is under way fails."""
        answer, self._answer = self._answer, None
        self._upload = memoryview(b"")
        self._transport.abort()
        if answer is not None:
            message = f"{self._host} closed the connection before the answer was whole"
            answer.fail(error or UpstreamError("reset", message))

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is there."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Pass on what came, and decide what it means for the answer only then: no callback of the parser
        must find it changed."""
        answer = self._answer
        if answer is None:
            self.abort()  # Nobody asked: it would be taken for the answer to the next call.
            return
        answer.begun = True
        self._overhead += len(data)
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            self._reusable = False
            if not self._whole:
                refusal = error.__context__  # what a callback raised
                self.abort(refusal if isinstance(refusal, UpstreamError) else self._improper())
                return
        if self._whole:
            self._finish()
        elif self._overhead > _OVERHEAD_MAX:
            self.abort(self._too_large())
        elif answer.status:
            if answer.unread > _READ_AHEAD and not self._reading_paused:
                self._reading_paused = True
                self._transport.pause_reading()
            self._wait_on()
            answer.wake()

    def eof_received(self) -> None:
        """The peer has said all that it will: for an answer without any framing, this is its end."""
        answer = self._answer
        if (
            answer is not None
            and answer.status
            and not any(name.lower() in _FRAMING for name, _ in answer.headers)
        ):
            self._finish()
        self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self.abort()
        if self._timer is not None:
            self._timer.cancel()
        del self._parser  # it refers to this object
        self.closed.set_result(None)
        self._lost(self)

    def pause_writing(self) -> None:
        """The peer takes no more for now."""
        self._writing_paused = True

    def resume_writing(self) -> None:
        """The peer has taken most of it."""
        self._writing_paused = False
        self._send_more()

    # -- httptools.HttpResponseParser

    def on_message_begin(self) -> None:
        """Nothing may follow the answer."""
        if self._whole:
            raise self._improper()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field of the header; behind it, a trailer, which nobody is told."""
        if self._answer is not None and not self._answer.status:
            self._headers.append((name, value))
            if len(self._headers) > _FIELDS_MAX:
                raise self._too_large()

    def on_headers_complete(self) -> None:
        """The header is there: of the answer, or of an informational one before it."""
        answer, status = self._answer, self._parser.get_status_code()
        if answer is None:
            return
        if 100 <= status < 200 and status != 101:
            self._headers.clear()
            return
        refusal = self._refusal(status)
        if refusal is not None:
            raise refusal
        answer.status = status
        answer.headers = self._headers
        if self._head_only:
            # The parser cannot be told that no body follows: for another answer it is spoilt.
            self._whole = True
        else:
            self._reusable = self._parser.should_keep_alive()

    def on_body(self, piece: bytes) -> None:
        """A piece of the body, at most what came at once."""
        if self._answer is not None and not self._whole:
            self._overhead = 0
            self._patience = self._times.idle
            self._answer.add(piece)

    def on_message_complete(self) -> None:
        """The end of the answer, or of an informational one."""
        if self._answer is not None and self._answer.status:
            self._whole = True

    # -- inside

    def _finish(self) -> None:
        """The answer is whole. What is left to send now, for whatever reason, spoils the connection."""
        answer, self._answer = self._answer, None
        assert answer is not None
        sent = not self._upload and not self._transport.get_write_buffer_size()
        if self._reusable and sent and not self._reading_paused:
            self._expire_at(self._loop.time() + self._kept_for())
            self._freed(self)
        else:
            self.abort()
        answer.finish()

    def _kept_for(self) -> float:
        """Seconds it may lie unused: half of what the peer says, so that its closing meets no request."""
        said = (_KEPT_FOR.fullmatch(value) for name, value in self._headers if name.lower() == b"keep-alive")
        return min((self._keep_alive, *(int(found[1]) / 2 for found in said if found)))

    def _readable(self) -> bool:
        """Whether there is anything to read, be it the end: between calls, all of that is a reason to go."""
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket"), select.POLLIN)
        return bool(poll.poll(0))

    def _send_more(self) -> None:
        if self._upload and not self._writing_paused:
            piece, self._upload = self._upload[:_PIECE], self._upload[_PIECE:]
            self._transport.write(piece)
            self._loop.call_soon(self._send_more)

    def _wait_on(self) -> None:
        """Wait for the next piece; while it is the reader who is slow, only for the end of all time."""
        moment = self._last_moment
        self._expire_at(moment if self._reading_paused else min(self._loop.time() + self._patience, moment))

    def _expire_at(self, moment: float) -> None:
        self._deadline = moment
        if self._timer is None or moment < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = moment
            self._timer = self._loop.call_at(moment, self._look_at_the_time)

    def _look_at_the_time(self) -> None:
        self._timer = None
        if self._loop.time() < self._deadline:
            self._expire_at(self._deadline)
        else:
            self.abort(UpstreamError("timeout", f"{self._host} took too long to answer"))

    def _refusal(self, status: int) -> UpstreamError | None:
        if 300 <= status < 400 and status != 304:
            message = (
                f"{self._host} answered with a redirect ({status}), which is not followed; "
                "set base_url to where the provider really is"
            )
            return UpstreamError("redirect", message)
        if status == 101:
            message = f"{self._host} wants to switch protocols, which was not asked for"
            return UpstreamError("protocol", message)
        if not 200 <= status < 600:
            message = f"{self._host} answered with {status}, which is no HTTP status"
            return UpstreamError("protocol", message)
        if (
            self._overhead > _OVERHEAD_MAX
            and sum(len(name) + len(value) + 4 for name, value in self._headers) > _OVERHEAD_MAX
        ):
            return self._too_large()
        return None

    def _too_large(self) -> UpstreamError:
        limits = f"{_OVERHEAD_MAX} bytes or {_FIELDS_MAX} fields"
        return UpstreamError("protocol", f"the header of the answer of {self._host} is over {limits}")

    def _improper(self) -> UpstreamError:
        return UpstreamError("protocol", f"the answer of {self._host} is not proper HTTP")
