"""An agent that is a process: JSON lines in on its standard input, JSON lines out on its standard output.

    > {"id": 1, "input": {"prompt": "…"}}
    < {"id": 1, "output": "…"}                or  {"id": 1, "error": "what went wrong"}

One request at a time. Once an answer is missing, late or not to be understood, no later one could be trusted,
so the process is killed: with everything that it started, because it leads a process group of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
from asyncio.subprocess import PIPE, Process, SubprocessStreamProtocol
from collections import deque
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from interlock.clock import SystemClock
from interlock.errors import (
    AgentLost,
    AgentStartFailed,
    InvalidOperation,
    RunFailed,
    RunTimedOut,
    ValidationError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from pathlib import Path

    from interlock.ports import Clock

LINE_MAX: Final = 16 * 1024 * 1024
"""Bytes that a request or an answer may have when nobody says otherwise."""
_TAIL_MAX = 4096
_LAST_WORDS = 2.0


class _Streams(SubprocessStreamProtocol):
    """asyncio's own, and when the process itself has ended: `Process.wait` waits for its pipes as well, which
    its children may hold open."""

    def __init__(self, limit: int, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(limit=limit, loop=loop)
        self.exited: asyncio.Future[None] = loop.create_future()

    def process_exited(self) -> None:
        super().process_exited()
        self.exited.set_result(None)


_Started: TypeAlias = tuple[asyncio.SubprocessTransport, _Streams]


class ProcessAgent:
    """A running process that answers requests; made by `start`.

    It fits `AgentPool` as it is: it offers ``alive``, ``wait_closed`` and ``close``.
    """

    def __init__(self, command: tuple[str, ...], started: _Started, clock: Clock, line_max: int) -> None:
        self.command = command
        self._transport, self._exited = started[0], started[1].exited
        self._process = Process(*started, asyncio.get_running_loop())
        self._clock = clock
        self._line_max = line_max
        self._serial = 0
        self._running = False
        self._lost = False
        self._tail: deque[bytes] = deque()
        self._tail_bytes = 0
        self._group_ended = False
        self._listening = asyncio.create_task(self._listen())
        self._watching = asyncio.create_task(self._watch())

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        line_max: int = LINE_MAX,
        clock: Clock | None = None,
    ) -> ProcessAgent:
        """Start *command* (a program and its arguments, no shell) in *env* and *cwd*, by default our own.

        Raises `AgentStartFailed` if it cannot be run at all.
        """
        words = tuple(command)
        if isinstance(command, str) or not words:
            raise ValidationError(f"command is {command!r}; it takes a program and its arguments, in a list")
        loop = asyncio.get_running_loop()
        starting = asyncio.ensure_future(
            loop.subprocess_exec(
                lambda: _Streams(line_max, loop),
                *words,
                stdin=PIPE,
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
        return cls(words, started, clock or SystemClock(), line_max)

    # -- using

    async def run(self, payload: Any, timeout: float | None = 60.0) -> Any:
        """Send *payload* (anything that JSON can say) and return the answer; *timeout* in seconds.

        Raises `RunFailed` if the agent answers with an error and `ValidationError` for what cannot be sent;
        the agent is fine then. After `RunTimedOut`, `AgentLost` (it ended, or said something else than an
        answer) or a cancellation it is not: it has been killed.
        """
        if self._running:
            raise InvalidOperation(f"{self} is at work; it takes one request at a time")
        if not self.alive:
            raise self._loss("has ended")
        self._serial += 1
        request = self._encoded({"id": self._serial, "input": payload})
        self._running = True
        try:
            async with self._within(timeout):
                answer = await self._exchange(request)
        except TimeoutError:
            self.kill()
            raise RunTimedOut(f"{self} gave no answer within {timeout:g} s{self._said()}") from None
        except AgentLost:
            self.kill()
            raise
        except BaseException:
            self.kill()  # its answer would be taken for that to the next request
            raise
        finally:
            self._running = False
        if "error" in answer:
            raise RunFailed(f"{self} answered with an error: {answer['error']}", error=answer["error"])
        return answer["output"]

    @property
    def alive(self) -> bool:
        """Whether it may be asked."""
        return not self._lost and self._process.returncode is None

    @property
    def pid(self) -> int:
        """Of the process, and of the group that it leads."""
        return self._process.pid

    # -- ending

    async def wait_closed(self) -> None:
        """Return once the process has ended, for whatever reason."""
        if not self._exited.done():
            await asyncio.wait([self._exited])

    async def close(self, grace: float = 5.0) -> None:
        """Let it end by closing its input; after *grace* seconds it is killed, its children in any case."""
        self._lost = True
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            async with self._within(grace):
                await self.wait_closed()
        except TimeoutError:
            pass
        finally:
            self.kill()
        await asyncio.wait([self._watching])

    def kill(self) -> None:
        """End the process and all that it started, at once; `wait_closed` returns when that has happened."""
        self._lost = True
        # Once the leader is reaped and its group empty, the number may be somebody else's.
        if not self._group_ended:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    # -- inside

    async def _exchange(self, request: bytes) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(request)
            await self._process.stdin.drain()
            line = await self._process.stdout.readuntil(b"\n")
        except asyncio.LimitOverrunError:
            raise self._loss(f"wrote a line of more than {self._line_max} bytes") from None
        except (asyncio.IncompleteReadError, ConnectionError):
            self.kill()
            await asyncio.wait([self._watching])  # its last words may still be on their way
            raise self._loss("ended without an answer") from None
        answer = _parsed(line)
        if answer is None or not ("output" in answer or "error" in answer):
            raise self._loss(f"wrote something else than an answer: {_shown(line)}")
        if answer.get("id") != self._serial:
            raise self._loss(f"answered to request {answer.get('id')!r} instead of {self._serial}")
        return answer

    def _encoded(self, request: dict[str, Any]) -> bytes:
        try:
            line = json.dumps(request, allow_nan=False).encode() + b"\n"
        except (TypeError, ValueError, RecursionError) as error:
            raise ValidationError(f"the payload is nothing that JSON can say: {error}") from error
        if len(line) > self._line_max:
            raise ValidationError(f"the request has {len(line)} bytes; allowed are {self._line_max}")
        return line

    @asynccontextmanager
    async def _within(self, seconds: float | None) -> AsyncIterator[None]:
        async with asyncio.timeout(None) as scope:
            timer = None
            if seconds is not None:
                timer = self._clock.call_at(self._clock.now() + seconds, lambda: scope.reschedule(0.0))
            try:
                yield
            finally:
                if timer is not None:
                    timer.cancel()

    async def _listen(self) -> None:
        """Keep the end of what it says on standard error; it must never wait for us."""
        assert self._process.stderr is not None
        while piece := await self._process.stderr.read(_TAIL_MAX):
            self._tail.append(piece)
            self._tail_bytes += len(piece)
            while self._tail_bytes - len(self._tail[0]) >= _TAIL_MAX:
                self._tail_bytes -= len(self._tail.popleft())

    async def _watch(self) -> None:
        await asyncio.wait([self._exited])
        self.kill()  # the children of one that ended by itself
        self._group_ended = True
        # What is left in the pipes; one that left the group and holds them open is not waited for.
        await asyncio.wait(
            [self._listening, asyncio.ensure_future(self._process.wait())], timeout=_LAST_WORDS
        )
        self._transport.close()

    def _loss(self, what: str) -> AgentLost:
        code = self._process.returncode
        ended = ""
        if code is not None:
            ended = f" (killed by signal {-code})" if code < 0 else f" (exit status {code})"
        return AgentLost(f"{self} {what}{ended}{self._said()}", command=self.command, returncode=code)

    def _said(self) -> str:
        tail = b"".join(self._tail)[-_TAIL_MAX:].decode(errors="replace").strip()
        return f"; its standard error ended with:\n{tail}" if tail else ""

    def __repr__(self) -> str:
        return f"<ProcessAgent {self}: {'alive' if self.alive else 'ended'}>"

    def __str__(self) -> str:
        return f"`{shlex.join(self.command)}` (process {self.pid})"


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return answer if isinstance(answer, dict) else None


def _shown(line: bytes) -> str:
    text = line.decode(errors="replace").strip()
    return repr(text if len(text) <= 200 else f"{text[:200]}…")


def _kill_unwanted(starting: asyncio.Future[_Started]) -> None:
    """The one who started it was cancelled before it was there."""
    if not starting.cancelled() and starting.exception() is None:
        transport, _ = starting.result()
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(transport.get_pid(), signal.SIGKILL)
        transport.close()
