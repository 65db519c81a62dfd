"""Where a session's events are shown as they come: lines, running text, and one line for what waits."""

from __future__ import annotations

import json
import shutil
import sys
from typing import Any

from interlock.cli.output import moment, plain, seconds

_CLEAR = "\r\x1b[K"


class Screen:
    """Events go to standard output, all else to standard error.

    The deltas of a message run on in one line until something else is to be said. The line of who waits is
    drawn over itself, and only on a terminal.
    """

    def __init__(self, *, as_json: bool = False) -> None:
        self._as_json = as_json
        self._running: Any = None  # the run whose text is under way, in a tuple
        self._waiting = ""
        self._draws = sys.stderr.isatty()

    @property
    def draws(self) -> bool:
        """Whether there is a terminal for the line of who waits."""
        return self._draws

    def event(self, event: dict[str, Any]) -> None:
        """Show *event*, as the server sent it."""
        self.wait("")
        if self._as_json:
            print(json.dumps(event), flush=True)
            return
        delta = _delta(event)
        if delta is None:
            self._end_text()
            print(f"{_head(event)}{plain(_brief(event))}".rstrip(), flush=True)
            return
        if self._running != (event.get("runId"),):
            self._end_text()
            self._running = (event.get("runId"),)
            print(_head(event), end="")
        print(plain(delta, keep="\n\t"), end="", flush=True)

    def say(self, line: str) -> None:
        """Tell the user something that is no event."""
        self.wait("")
        if sys.stdout.isatty():
            self._end_text()
        print(f"interlock: {plain(line)}", file=sys.stderr, flush=True)

    def wait(self, line: str) -> None:
        """Draw *line* where the last one was; empty takes that away."""
        if not self._draws or line == self._waiting or (line and self._running):
            return
        self._waiting = line
        width = shutil.get_terminal_size().columns - 1
        print(f"{_CLEAR}{plain(line)[:width]}", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the terminal as it was found."""
        self.wait("")
        self._end_text()

    def _end_text(self) -> None:
        if self._running:
            self._running = None
            print(flush=True)


def waits_for(limits: Any) -> str:
    """What a run waits for, as the server lists it: the limits that have no room."""
    listed = limits if isinstance(limits, list) else []
    return ", ".join(f"{one.get('limit')} {one.get('used')}/{one.get('capacity')}" for one in listed)


def _delta(event: dict[str, Any]) -> str | None:
    if event["type"] != "message_streamed":
        return None
    content = _data(event).get("content")
    return content if isinstance(content, str) else None


def _data(event: dict[str, Any]) -> dict[str, Any]:
    data = event.get("data")
    return data if isinstance(data, dict) else {}


def _head(event: dict[str, Any]) -> str:
    at = event.get("timestamp")
    clock = moment(at) if isinstance(at, int | float) else "-"
    run = plain(str(event.get("runId") or "-"))
    return f"{event['sequence']:>6} {clock} {plain(str(event['type'])):<20} {run}  "


def _brief(event: dict[str, Any]) -> str:
    """What matters of an event, in a line."""
    data = _data(event)
    match event["type"], data:
        case "run_queued", {"position": position, **more}:
            limits = waits_for(more.get("waits_for"))
            return f"place {position} in line" + (f", for {limits}" if limits else "")
        case "run_started", {"attempt": attempt, "waited": int() | float() as waited}:
            return f"attempt {attempt}, waited {seconds(waited * 1000)}"
        case "run_completed", {"duration": int() | float() as duration}:
            return f"after {seconds(duration * 1000)}"
        case "run_failed", {"error_code": code, "error_message": message}:
            return f"{code}: {message}"
        case "message_sent" | "message_received", {"content": str(content), **more} if set(more) <= {"role"}:
            return f"{more['role']}: {content}" if "role" in more else content
    return json.dumps(data, ensure_ascii=False) if data else ""
