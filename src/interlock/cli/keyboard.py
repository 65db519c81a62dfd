"""Keys from a terminal as they are pressed, and the terminal as it was afterwards."""

from __future__ import annotations

import re
import termios
import tty
from typing import Any, Self

_SEQUENCE = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|O[ -~])")
_BEGUN = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*|O)?\Z")
_NAMED = {b"\x1b[A": "up", b"\x1bOA": "up", b"\x1b[B": "down", b"\x1bOB": "down", b"k": "up", b"j": "down"}


class Keyboard:
    """While it is entered, the terminal *fd* gives every key at once and shows none of them.

    Ctrl-C and Ctrl-Z stay the signals that they are.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._before: list[Any] | None = None

    def __enter__(self) -> Self:
        self.take()
        return self

    def __exit__(self, *exit_: object) -> None:
        self.give_back()

    def take(self) -> None:
        """Have the keys."""
        if self._before is None:
            self._before = termios.tcgetattr(self._fd)
            tty.setcbreak(self._fd, termios.TCSADRAIN)

    def give_back(self) -> None:
        """Leave the terminal as it was found."""
        if self._before is not None:
            before, self._before = self._before, None
            termios.tcsetattr(self._fd, termios.TCSADRAIN, before)


def keys(data: bytes) -> tuple[list[str], bytes]:
    """The names of the keys in *data*, and the beginning of one at its end; unknown ones are skipped."""
    found: list[str] = []
    while data:
        if (sequence := _SEQUENCE.match(data)) is not None:
            size = sequence.end()
        elif _BEGUN.match(data):
            return found, data
        else:
            size = 1
        one, data = data[:size], data[size:]
        if one in _NAMED:
            found.append(_NAMED[one])
        elif size == 1 and one.isalpha():
            found.append(one.decode())
    return found, b""
