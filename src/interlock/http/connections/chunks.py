"""The lines between the pieces of a chunked body, which the parser takes at any length."""

from __future__ import annotations

LONGEST_EXTENSION = 256
LONGEST_TRAILERS = 16 << 10
_LONGEST_LINE = 16 + LONGEST_EXTENSION + 2
"""Sixteen digits are more than any size that fits into memory."""


class BadChunk(Exception):
    """A line is longer than any that says something, or its size is no number."""


class Chunks:
    """Follows one chunked body by its sizes; whether its words are proper, the parser knows better."""

    def __init__(self) -> None:
        self._left = 0
        """Of the chunk and the line end behind it."""
        self._line = b""
        self._trailers: bytes | None = None
        """The last bytes of the trailers, once they have begun."""
        self._size = 0
        self.ended = False

    def take(self, data: bytes) -> int:
        """How many bytes of *data*, which comes next, belong to this body. Raises `BadChunk`."""
        at = 0
        while at < len(data) and not self.ended:
            if self._trailers is not None:
                at = self._take_trailers(data, at)
            elif self._left:
                step = min(self._left, len(data) - at)
                self._left -= step
                at += step
            else:
                at = self._take_line(data, at)
        return at

    def _take_line(self, data: bytes, at: int) -> int:
        end = data.find(b"\n", at, at + _LONGEST_LINE + 1) + 1
        self._line += data[at : end or at + _LONGEST_LINE + 1]
        if len(self._line) > _LONGEST_LINE:
            raise BadChunk(f"a chunk's line is longer than {_LONGEST_LINE} bytes")
        if not end:
            return len(data)
        digits = self._line.partition(b";")[0].strip()
        extension = len(self._line.rstrip(b"\r\n")) - len(digits)
        try:
            size = int(digits, 16)
        except ValueError:
            raise BadChunk("a chunk's size is no number") from None
        if extension > LONGEST_EXTENSION or size < 0:
            raise BadChunk(f"a chunk's extension is longer than {LONGEST_EXTENSION} bytes")
        self._line = b""
        if size:
            self._left = size + 2
        else:
            self._trailers = b"\r\n"
        return end

    def _take_trailers(self, data: bytes, at: int) -> int:
        """The trailers end with an empty line; *at* is within them."""
        assert self._trailers is not None
        held = self._trailers
        seen = held + data[at:]
        end = seen.find(b"\r\n\r\n")
        taken = (len(seen) if end < 0 else end + 4) - len(held)
        self._size += taken
        if self._size > LONGEST_TRAILERS:
            raise BadChunk(f"the trailers are over {LONGEST_TRAILERS} bytes")
        self._trailers = seen[-3:]
        self.ended = end >= 0
        return at + taken
