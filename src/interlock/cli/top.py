"""``interlock top``: a running server as it changes, with keys to act on its gates."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import ExitStack, aclosing, suppress
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Group
from rich.live import Live

from interlock.cli.client import default_url, fetch, in_path
from interlock.cli.frame import PROVIDER, SORTS, View, frame, gates
from interlock.cli.keyboard import Keyboard, keys
from interlock.cli.output import Json, console, plain
from interlock.cli.watch import Fleet, watch
from interlock.config import parse_duration
from interlock.errors import InterlockError, ValidationError

REDRAW_SECONDS = 0.5
"""Between two frames while nothing changes but the time that something has waited."""


async def top(
    *,
    once: Annotated[bool, Parameter(negative=())] = False,
    pause: str = "1m",
    sort: str = "name",
    url: str | None = None,
    as_json: Json = False,
) -> int:
    """Show gates, limits, pools and sessions as they change. Without a terminal: as they are.

    Keys: q quit, s sort, up and down select, p pause or resume the selected provider, r restore its limit.

    Example: interlock top --sort queue

    Args:
        once: print how it is now, and end.
        pause: how long the key p pauses a provider, such as 30s or 5m.
        sort: by name, by queue (the longest first) or by use (the fullest first).
        url: the server (default: INTERLOCK_URL, else as the configuration here says).
        as_json: print the state as a line of JSON, and again each time it has changed.
    """
    if sort not in SORTS:
        raise ValidationError(f"--sort is {sort!r}; allowed are {', '.join(SORTS)}")
    view = View(url or default_url(), sort)
    pause_ms = round(parse_duration(pause) * 1000)
    screen = console()
    once = once or not (as_json or screen.is_terminal)

    def lost(line: str) -> None:
        view.lost = line
        if as_json:
            print(f"interlock: {plain(line)}", file=sys.stderr, flush=True)

    async with aclosing(watch(view.url, lost)) as changes:
        fleet = await anext(changes)
        if not (as_json or once):
            return await _Top(view, fleet, pause_ms).run(changes)
        while True:
            if as_json:
                print(json.dumps(fleet.document()), flush=True)
            else:
                view.keys = False
                for line in frame(fleet.rows, view, fleet.now_ms(), min(screen.width, 120)):
                    screen.print(line, no_wrap=True, crop=False)
            if once:
                return 0
            await anext(changes)


class _Top:
    """The fleet on a terminal, and what the keys do to it."""

    def __init__(self, view: View, fleet: Fleet, pause_ms: int) -> None:
        self._view = view
        self._fleet = fleet
        self._pause_ms = pause_ms
        self._keyboard: Keyboard | None = None
        self._live = Live(console=console(), screen=True, auto_refresh=False, vertical_overflow="crop")
        self._changed = asyncio.Event()
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._pressed = b""
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, changes: AsyncGenerator[Fleet, None]) -> int:
        """Until q is pressed, the terminal is gone or a signal says so; the exit code."""
        with ExitStack() as stack:
            self._listen(stack)
            stack.enter_context(self._live)
            try:
                self._start(self._follow(changes))
                self._start(self._draw())
                return await self._ended
            finally:
                for task in self._tasks:
                    task.cancel()
                await asyncio.gather(*self._tasks, return_exceptions=True)

    def _listen(self, stack: ExitStack) -> None:
        """To keys, if there is a keyboard, and to the signals that end or stop a program."""
        loop = asyncio.get_running_loop()

        def on(number: int, what: Callable[[], None]) -> None:
            loop.add_signal_handler(number, what)
            stack.callback(loop.remove_signal_handler, number)

        for number in (signal.SIGTERM, signal.SIGHUP):
            on(number, lambda number=number: self._end(128 + number))  # type: ignore[misc]
        on(signal.SIGWINCH, self._changed.set)
        on(signal.SIGTSTP, self._stop)
        self._view.keys = sys.stdin.isatty()
        if self._view.keys:
            fd = sys.stdin.fileno()
            self._keyboard = stack.enter_context(Keyboard(fd))
            loop.add_reader(fd, self._read, fd)
            stack.callback(loop.remove_reader, fd)

    def _end(self, code: int) -> None:
        if not self._ended.done():
            self._ended.set_result(code)

    def _stop(self) -> None:
        """Give the terminal back, stop as Ctrl-Z asks for, and have it again when that is over."""
        loop = asyncio.get_running_loop()
        self._live.stop()
        if self._keyboard is not None:
            self._keyboard.give_back()
        loop.remove_signal_handler(signal.SIGTSTP)
        signal.raise_signal(signal.SIGTSTP)
        loop.add_signal_handler(signal.SIGTSTP, self._stop)
        if self._keyboard is not None:
            self._keyboard.take()
        self._live.start()
        self._changed.set()

    # -- what goes on meanwhile

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not self._ended.done():
            self._ended.set_exception(error)

    async def _follow(self, changes: AsyncGenerator[Fleet, None]) -> None:
        async for _ in changes:
            self._view.lost = None
            self._changed.set()

    async def _draw(self) -> None:
        while True:
            self._changed.clear()
            self._keep_selected()
            size = self._live.console.size
            lines = frame(self._fleet.rows, self._view, self._fleet.now_ms(), size.width, size.height)
            self._live.update(Group(*lines), refresh=True)
            with suppress(TimeoutError):
                async with asyncio.timeout(REDRAW_SECONDS):
                    await self._changed.wait()

    # -- keys

    def _read(self, fd: int) -> None:
        try:
            data = os.read(fd, 1024)
        except OSError:
            data = b""
        if not data:
            self._end(0)  # the terminal is gone
            return
        found, self._pressed = keys(self._pressed + data)
        for key in found:
            self._press(key)
        self._changed.set()

    def _press(self, key: str) -> None:
        view = self._view
        view.said = ""
        match key:
            case "q":
                self._end(0)
            case "s":
                view.sort = SORTS[(SORTS.index(view.sort) + 1) % len(SORTS)]
            case "up" | "down":
                self._move(-1 if key == "up" else 1)
            case "p" | "r":
                self._keep_selected()
                if view.selected is not None:
                    self._start(self._act(self._pause if key == "p" else self._restore, view.selected))

    def _keep_selected(self) -> None:
        """Something is selected whenever there is something."""
        shown = gates(self._fleet.rows, self._view.sort)
        if self._view.selected not in shown:
            self._view.selected = shown[0] if shown else None

    def _move(self, by: int) -> None:
        self._keep_selected()
        shown = gates(self._fleet.rows, self._view.sort)
        if self._view.selected is not None:
            at = shown.index(self._view.selected) + by
            self._view.selected = shown[max(0, min(at, len(shown) - 1))]

    async def _act(self, work: Callable[[str], Coroutine[Any, Any, str]], name: str) -> None:
        try:
            if name.startswith(PROVIDER):
                self._view.said = await work(name.removeprefix(PROVIDER))
            else:
                self._view.said = f"{name} is no provider: there is nothing to pause or restore"
        except InterlockError as error:
            self._view.said = error.message
        self._changed.set()

    async def _pause(self, provider: str) -> str:
        path = f"/providers/{in_path(provider)}"
        if self._fleet.rows["limits"][PROVIDER + provider]["pausedUntil"] is not None:
            await fetch(self._view.url, f"{path}/resume", "POST")
            return f"{provider}: open"
        await fetch(self._view.url, f"{path}/pause", "POST", {"ms": self._pause_ms})
        return f"{provider}: paused for {self._pause_ms / 1000:g} s; p again to resume"

    async def _restore(self, provider: str) -> str:
        row = self._fleet.rows["providers"].get(provider, {})
        if not row.get("autoReduced"):
            return f"{provider}: its limit is not reduced"
        before = row["configuredLimit"]
        path = f"/limits/{in_path(PROVIDER + provider)}"
        await fetch(self._view.url, path, "PUT", {"capacity": before})
        return f"{provider}: limit {before} again"
