"""Server-sent events out of bytes, as the standard reads them: any bytes, however they are cut."""

from __future__ import annotations

import re
from typing import NamedTuple

_LINE_END = re.compile(rb"\r\n?|\n")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Message(NamedTuple):
    """One event of a stream: its type, its data, and the id of the last event that had one."""

    type: str
    data: str
    id: str


class Messages:
    """The events of one stream, as far as they have arrived whole.

    What is cut off at the end of a stream is no event. Nothing that it is fed makes it fail.
    """

    def __init__(self) -> None:
        self._line: list[bytes] = []  # what has come of the line that has not ended yet
        self._after_return = False
        self._first = True
        self._type = ""
        self._data: list[str] = []
        self._id = ""

    def feed(self, data: bytes) -> list[Message]:
        """The events that *data* completes."""
        if not data:
            return []
        if self._after_return:
            data = data.removeprefix(b"\n")  # one line end, cut in two
        *ended, rest = _LINE_END.split(data)
        self._after_return = data.endswith(b"\r")
        found = []
        for piece in ended:
            line = b"".join((*self._line, piece))
            self._line.clear()
            if (message := self._take(line)) is not None:
                found.append(message)
        if rest:
            self._line.append(rest)
        return found

    def _take(self, line: bytes) -> Message | None:
        if self._first:
            self._first = False
            line = line.removeprefix(_BYTE_ORDER_MARK)
        if not line:
            return self._complete()
        name, _, value = line.decode(errors="replace").partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._type = value
        elif name == "id" and "\0" not in value:
            self._id = value
        return None

    def _complete(self) -> Message | None:
        kind, data = self._type, self._data
        self._type, self._data = "", []
        return Message(kind or "message", "\n".join(data), self._id) if data else None
