"""A process and all that it starts, as one: it leads a session, and so a process group, of its own.

It is started whole or not at all, wherever its starter is cancelled, and ended with its children. Only what
moved to a group of its own escapes.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
from asyncio.subprocess import DEVNULL, PIPE, Process, SubprocessStreamProtocol
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeAlias

from interlock.errors import AgentStartFailed, ValidationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from interlock.ports import Clock

TAIL: Final = 4096
"""Bytes that are kept of the end of its standard error."""
_LAST_WORDS: Final = 2.0


class _Streams(SubprocessStreamProtocol):
    """asyncio's own, and when the process itself has ended, and when all it wrote was read. Its children may
    hold the pipes open; `Process.wait` waits for them as well."""

    def __init__(self, limit: int, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(limit=limit, loop=loop)
        self.exited: asyncio.Future[None] = loop.create_future()
        self.emptied: asyncio.Future[None] = loop.create_future()
        self._open = {1, 2}

    def process_exited(self) -> None:
        super().process_exited()
        self.exited.set_result(None)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        super().pipe_connection_lost(fd, exc)
        self._open.discard(fd)
        if not self._open and not self.emptied.done():
            self.emptied.set_result(None)


_Started: TypeAlias = tuple[asyncio.SubprocessTransport, _Streams]


class ProcessGroup:
    """A process that runs, with its children; made by `start`. When it ends, they are killed."""

    def __init__(self, command: tuple[str, ...], started: _Started, *, patient: bool) -> None:
        self.command = command
        self._transport, streams = started
        self._exited, self._emptied = streams.exited, streams.emptied
        self._process = Process(*started, asyncio.get_running_loop())
        self._patient = patient
        self._lines = 0
        self._awaits_line = False
        self._tail: deque[bytes] = deque()
        self._tail_bytes = 0
        self._ended = False
        self._leaving: asyncio.Future[None] | None = None
        """While it has time to end by itself."""
        self._listening = asyncio.create_task(self._listen())
        self._watching = asyncio.create_task(self._watch())

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None,
        cwd: str | Path | None,
        line_max: int,
        stdin: bool = True,
        patient: bool = False,
    ) -> ProcessGroup:
        """Start *command* (a program and its arguments, no shell) in *env* and *cwd*, by default our own.

        Lines of its output may have *line_max* bytes. A *patient* reader takes all that it has written by
        `line`, however slowly; else that is lost soon after its end. Raises `AgentStartFailed` if it cannot
        be run at all.
        """
        words = check_command(command)
        loop = asyncio.get_running_loop()
        starting = asyncio.ensure_future(
            loop.subprocess_exec(
                lambda: _Streams(line_max, loop),
                *words,
                stdin=PIPE if stdin else DEVNULL,
                stdout=PIPE,
                stderr=PIPE,
                env=None if env is None else dict(env),
                cwd=cwd,
                start_new_session=True,
            )
        )
        try:
            await asyncio.wait([starting])  # not cancelled with us: a process that nobody knows would be left
            started = starting.result()
        except asyncio.CancelledError:
            starting.add_done_callback(_kill_unwanted)
            raise
        except (OSError, ValueError) as error:
            raise AgentStartFailed(f"{shlex.join(words)} could not be started: {error}") from error
        return cls(words, started, patient=patient)

    @property
    def pid(self) -> int:
        """Of the process, and of the group that it leads."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """What the process ended with, below 0 for a signal; None while it runs."""
        return self._process.returncode

    # -- talking

    def write(self, data: bytes) -> None:
        """Give it *data*, as soon as it takes any; one that has ended does not mind."""
        assert self._process.stdin is not None
        self._process.stdin.write(data)

    async def drain(self) -> None:
        """Wait until it has taken most of what was written. ConnectionError if it never will."""
        assert self._process.stdin is not None
        await self._process.stdin.drain()

    def close_input(self) -> None:
        """Its input ends, after what was written."""
        if self._process.stdin is not None:
            self._process.stdin.close()

    async def line(self) -> bytes:
        """The next line of its output with its end, or what there is before the end of all; then b"".

        Raises `asyncio.LimitOverrunError`, and takes nothing, for a longer one.
        """
        assert self._process.stdout is not None
        self._awaits_line = True
        try:
            return await self._process.stdout.readuntil(b"\n")
        except asyncio.IncompleteReadError as end:
            self._patient = self._patient and end.partial != b""
            return end.partial
        finally:
            self._awaits_line = False
            self._lines += 1

    async def piece(self, most: int) -> bytes:
        """Up to *most* bytes of its output, whatever they are; b"" at its end."""
        assert self._process.stdout is not None
        return await self._process.stdout.read(most)

    # -- ending

    async def wait_exited(self) -> None:
        """Return once the process has ended, for whatever reason."""
        if not self._exited.done():
            await asyncio.wait([self._exited])

    async def wait_closed(self) -> None:
        """Return once nothing of it is left: the processes have ended and the pipes are closed."""
        await asyncio.wait([self._watching])

    def signal(self, number: int) -> None:
        """Send a signal to all of them."""
        # Once the leader is reaped and its group empty, the number may be somebody else's.
        if not self._ended:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)

    def kill(self) -> None:
        """End all of them at once, and read no more; `wait_exited` returns when that has happened."""
        self._patient = False
        self._left()
        self.signal(signal.SIGKILL)

    async def terminate(self, grace: float, clock: Clock) -> None:
        """Ask all of them to end; after *grace* seconds they are killed, and at once if this is cancelled.

        Returns when nothing is left. What they write meanwhile is thrown away.
        """
        self._patient = False
        if not self._ended:
            self._leaving = asyncio.get_running_loop().create_future()
            quiet = asyncio.create_task(self._fall_silent())
            quiet.add_done_callback(lambda _: self._left())
            timer = clock.call_at(clock.now() + grace, self.kill)
            try:
                self.signal(signal.SIGTERM)
                self.signal(signal.SIGCONT)
                await asyncio.wait([self._leaving])
            finally:
                timer.cancel()
                self.kill()
        await self.wait_closed()

    # -- inside

    def _left(self) -> None:
        """Nobody needs time to end by itself any more."""
        if self._leaving is not None and not self._leaving.done():
            self._leaving.set_result(None)

    async def _fall_silent(self) -> None:
        """Return once nobody is left who could write: children that clean up hold the pipes open."""
        with suppress(OSError):
            while await self.piece(64 * 1024):
                pass
        await asyncio.wait([self._exited])
        await asyncio.wait([self._listening])

    async def _listen(self) -> None:
        """Keep the end of what it says on standard error; it must never wait for us."""
        assert self._process.stderr is not None
        while piece := await self._process.stderr.read(TAIL):
            self._tail.append(piece)
            self._tail_bytes += len(piece)
            while self._tail_bytes - len(self._tail[0]) >= TAIL:
                self._tail_bytes -= len(self._tail.popleft())

    async def _watch(self) -> None:
        await asyncio.wait([self._exited])
        if self._leaving is not None:
            await asyncio.wait([self._leaving])
        self.signal(signal.SIGKILL)  # the children of one that ended by itself
        self._ended = True
        # What is left in the pipes; one that left the group and holds them open is not waited for.
        left: set[asyncio.Future[None]] = {self._listening, self._emptied}
        while left:
            lines = self._lines
            _, left = await asyncio.wait(left, timeout=_LAST_WORDS)
            if not self._patient or (self._awaits_line and self._lines == lines):
                break
        self._transport.close()

    def how_it_ended(self) -> str:
        """Its exit status or signal in brackets, after a space; nothing while it runs."""
        code = self.returncode
        if code is None:
            return ""
        return f" (killed by signal {-code})" if code < 0 else f" (exit status {code})"

    def said(self, most: int = TAIL) -> str:
        """The end of what it said on standard error, at most so many bytes, as a part of a sentence."""
        tail = b"".join(self._tail)[-most:].decode(errors="replace").strip()
        return f"; its standard error ended with:\n{tail}" if tail else ""

    def __str__(self) -> str:
        return f"`{shlex.join(self.command)}` (process {self.pid})"


def check_command(command: object) -> tuple[str, ...]:
    """*command*, if it is a program and its arguments."""
    if (
        not isinstance(command, list | tuple)
        or not command
        or not all(isinstance(one, str) for one in command)
    ):
        raise ValidationError(f"command is {command!r:.200}; it takes a program and its arguments, in a list")
    return tuple(command)


def _kill_unwanted(starting: asyncio.Future[_Started]) -> None:
    """The one who started it was cancelled before it was there."""
    if not starting.cancelled() and starting.exception() is None:
        transport, _ = starting.result()
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(transport.get_pid(), signal.SIGKILL)
        transport.close()
