"""An agent that is a process: JSON lines in on its standard input, JSON lines out on its standard output.

    > {"id": 1, "input": {"prompt": "…"}}
    < {"id": 1, "output": "…"}                or  {"id": 1, "error": "what went wrong"}

One request at a time. Once an answer is missing, late or not to be understood, no later one could be trusted,
so the process is killed: with everything that it started, because it leads a process group of its own.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, Final

from interlock.agents.group import ProcessGroup
from interlock.clock import SystemClock
from interlock.errors import AgentLost, InvalidOperation, RunFailed, RunTimedOut, ValidationError
from interlock.session.patience import within

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from interlock.ports import Clock

LINE_MAX: Final = 16 * 1024 * 1024
"""Bytes that a request or an answer may have when nobody says otherwise."""


class ProcessAgent:
    """A running process that answers requests; made by `start`.

    It fits `AgentPool` as it is: it offers ``alive``, ``wait_closed`` and ``close``.
    """

    def __init__(self, group: ProcessGroup, clock: Clock, line_max: int) -> None:
        self.command = group.command
        self._group = group
        self._clock = clock
        self._line_max = line_max
        self._serial = 0
        self._running = False
        self._lost = False

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
        group = await ProcessGroup.start(command, env=env, cwd=cwd, line_max=line_max)
        return cls(group, clock or SystemClock(), line_max)

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
            async with within(self._clock, timeout):
                answer = await self._exchange(request)
        except TimeoutError:
            self.kill()
            raise RunTimedOut(f"{self} gave no answer within {timeout:g} s{self._group.said()}") from None
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
        return not self._lost and self._group.returncode is None

    @property
    def pid(self) -> int:
        """Of the process, and of the group that it leads."""
        return self._group.pid

    # -- ending

    async def wait_closed(self) -> None:
        """Return once the process has ended, for whatever reason."""
        await self._group.wait_exited()

    async def close(self, grace: float = 5.0) -> None:
        """Let it end by closing its input; after *grace* seconds it is killed, its children in any case."""
        self._lost = True
        self._group.close_input()
        try:
            async with within(self._clock, grace):
                await self.wait_closed()
        except TimeoutError:
            pass
        finally:
            self.kill()
        await self._group.wait_closed()

    def kill(self) -> None:
        """End the process and all that it started, at once; `wait_closed` returns when that has happened."""
        self._lost = True
        self._group.kill()

    # -- inside

    async def _exchange(self, request: bytes) -> dict[str, Any]:
        line = b""
        try:
            self._group.write(request)
            await self._group.drain()
            line = await self._group.line()
        except asyncio.LimitOverrunError:
            raise self._loss(f"wrote a line of more than {self._line_max} bytes") from None
        except ConnectionError:
            pass
        if not line.endswith(b"\n"):
            self.kill()
            await self._group.wait_closed()  # its last words may still be on their way
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

    def _loss(self, what: str) -> AgentLost:
        group = self._group
        message = f"{self} {what}{group.how_it_ended()}{group.said()}"
        return AgentLost(message, command=self.command, returncode=group.returncode)

    def __repr__(self) -> str:
        return f"<ProcessAgent {self}: {'alive' if self.alive else 'ended'}>"

    def __str__(self) -> str:
        return str(self._group)


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return answer if isinstance(answer, dict) else None


def _shown(line: bytes) -> str:
    text = line.decode(errors="replace").strip()
    return repr(text if len(text) <= 200 else f"{text[:200]}…")
