"""What the processes of a test write down, and what is found in it. Needs the standard library only.

A history is a file of JSON lines, one object each, written before anything that follows from it: who is
killed in the middle of a line has not done what it would have said.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def now() -> float:
    """Seconds of a clock that all processes of a machine share."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)


class Book:
    """What one process writes down, line by line; nothing of it is buffered here."""

    def __init__(self, directory: Path, name: str) -> None:
        path = directory / f"{name}.jsonl"
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def write(self, what: str, **more: Any) -> None:
        """Note *what* and *more*, as of now unless ``at`` is given."""
        os.write(self._file, json.dumps({"what": what, "at": now(), **more}).encode() + b"\n")

    def close(self) -> None:
        os.close(self._file)


def records(directory: Path) -> Iterator[Record]:
    """All that was written down, each with the process that did as ``by``; the oldest first."""
    found = []
    for path in sorted(directory.glob("*.jsonl")):
        lines = path.read_text(encoding="utf-8").split("\n")
        for line in lines[:-1]:  # the last one is empty, or was not finished
            found.append({**json.loads(line), "by": path.stem})
    yield from sorted(found, key=lambda record: record["at"])


@dataclass
class Findings:
    """What is wrong, each with the rule that it breaks."""

    printed: list[str] = field(default_factory=list)

    def add(self, rule: str, text: str, *evidence: Any) -> None:
        shown = "".join(f"\n    {json.dumps(one)[:600]}" for one in evidence)
        self.printed.append(f"{rule}: {text}{shown}")
