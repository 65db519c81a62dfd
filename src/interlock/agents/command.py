"""Any program as an agent of a session: one process per run, its output the run's events.

    {"type": "turn_completed", "data": {…}}            an event of that type
    {"usage": {"input_tokens": 1, "output_tokens": 2}} is counted
    {"output": …}                                      what the run comes to; the last one counts

Any other line, and with ``output="text"`` every line, is a ``message_streamed``. The process leads a group of
its own, and when the run ends, however it ends, nothing of that group is left.
"""

from __future__ import annotations

import asyncio
import codecs
import json
import os
import signal
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Literal

from interlock.agents.group import ProcessGroup, check_command
from interlock.agents.python import check_capabilities
from interlock.core.runs import EVENT_TYPES, LIFECYCLE
from interlock.errors import InterlockError, RunFailed, ValidationError
from interlock.provider.signals import count, json_value
from interlock.session.patience import sleep

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from interlock.session.context import RunContext

_MAY_EMIT: Final = EVENT_TYPES - LIFECYCLE
_SAID_MAX: Final = 1500
"""Bytes of its standard error in the error of a run."""
_LOOKS_EVERY: Final = 0.05
"""Seconds between two looks whether the run is paused."""


class CommandAgent:
    """Runs *command* once per run; the run's input is its input, its output the run's output.

    Args:
        command: a program and its arguments, no shell.
        input: how it gets the run's input, as JSON: on ``"stdin"`` (one line, then the end), as one more
            ``"argument"``, or in the ``"environment"`` as INTERLOCK_INPUT. The environment also names
            INTERLOCK_SESSION_ID, INTERLOCK_RUN_ID and INTERLOCK_ATTEMPT.
        output: ``"json"`` for lines as above, ``"text"`` for text, the end of which becomes the output.
        cwd, env: where it runs, and with which environment; by default our own.
        grace: seconds that it and its children have to end after SIGTERM, before SIGKILL.
        max_line: bytes of a line of JSON. A longer one fails the run; longer lines of text come in pieces.
        max_output: characters of text that are kept as output: the last ones.
        capabilities: with ``"pause"``, its group is stopped (SIGSTOP) while the run is paused.

    An exit status other than 0 fails the run with the end of what was said on standard error.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        input: Literal["stdin", "argument", "environment"] = "stdin",  # noqa: A002 - a word of the contract
        output: Literal["json", "text"] = "json",
        cwd: str | Path | None = None,
        env: Mapping[str, str] | None = None,
        grace: float = 5.0,
        max_line: int = 1 << 20,
        max_output: int = 1 << 20,
        capabilities: Collection[str] = ("pause",),
    ) -> None:
        check_command(command)
        _check_one_of("input", input, ("stdin", "argument", "environment"))
        _check_one_of("output", output, ("json", "text"))
        if not 0 <= grace <= 86_400:  # also False for NaN
            raise ValidationError(f"grace is {grace!r}; allowed are seconds from 0 to 86400")
        for name, number in (("max_line", max_line), ("max_output", max_output)):
            if type(number) is not int or number < 1:
                raise ValidationError(f"{name} is {number!r}; allowed are whole numbers from 1")
        self.command = tuple(command)
        self.capabilities = check_capabilities(tuple(capabilities))
        self._input = input
        self._text = output == "text"
        self._cwd = cwd
        self._env = env
        self._grace = grace
        self._max_line = max_line
        self._max_output = max_output

    async def run(self, run: RunContext) -> Any:
        """The output of one process for *run*.

        Raises `AgentStartFailed` if it cannot be run at all and `RunFailed` if it fails.
        """
        group = await self._started(run)
        pausing = None
        try:
            if "pause" in self.capabilities:
                pausing = asyncio.create_task(_stop_while_paused(run, group))
            output = await (self._read_text if self._text else self._read_json)(run, group)
            await group.wait_closed()
        except BaseException:
            await group.terminate(self._grace, run.clock)
            raise
        finally:
            if pausing is not None:
                pausing.cancel()
        if group.returncode != 0:
            raise _failure(group, "failed")
        return output

    async def _started(self, run: RunContext) -> ProcessGroup:
        try:
            given = json.dumps(run.input, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValidationError(f"the input is nothing that JSON can say: {error}") from None
        env = dict(os.environ if self._env is None else self._env)
        env["INTERLOCK_SESSION_ID"] = run.session_id
        env["INTERLOCK_RUN_ID"] = run.run_id
        env["INTERLOCK_ATTEMPT"] = str(run.attempt)
        if self._input == "environment":
            env["INTERLOCK_INPUT"] = given
        group = await ProcessGroup.start(
            (*self.command, given) if self._input == "argument" else self.command,
            env=env,
            cwd=self._cwd,
            line_max=self._max_line,
            stdin=self._input == "stdin",
            patient=True,
        )
        if self._input == "stdin":
            group.write(given.encode() + b"\n")  # nobody waits for it: it may write much before it reads
            group.close_input()
        return group

    # -- what it says

    async def _read_json(self, run: RunContext, group: ProcessGroup) -> Any:
        output = None
        while True:
            try:
                line = await group.line()
            except asyncio.LimitOverrunError:
                what = f"wrote a line of more than {self._max_line} bytes, the most that is allowed,"
                raise _failure(group, what) from None
            if not line:
                return output
            await run.checkpoint()
            said = json_value(line)
            if _is_event(said):
                await run.emit(said["type"], said.get("data"))
            elif isinstance(said, dict) and said and said.keys() <= {"output", "usage"}:
                output = said.get("output", output)
                if "usage" in said:
                    await _count(run, said["usage"])
            else:
                await run.emit("message_streamed", {"content": line.decode(errors="replace")})

    async def _read_text(self, run: RunContext, group: ProcessGroup) -> str:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        kept: deque[str] = deque()
        size = 0
        ended = False
        while not ended:
            try:
                line = await group.line()
            except asyncio.LimitOverrunError:
                line = await group.piece(self._max_line)
            ended = not line
            text = decoder.decode(line, final=ended)
            if not text:
                continue
            kept.append(text)
            size += len(text)
            while size - len(kept[0]) >= self._max_output:
                size -= len(kept.popleft())
            await run.checkpoint()
            await run.emit("message_streamed", {"content": text})
        return "".join(kept)[-self._max_output :]

    def __repr__(self) -> str:
        return f"<CommandAgent {self.command[0]}>"


async def _count(run: RunContext, usage: object) -> None:
    said = usage if isinstance(usage, dict) else {}
    used = {name: count(said.get(name)) or 0 for name in ("input_tokens", "output_tokens")}
    run.usage(**used)
    await run.emit("token_usage_updated", used)


def _is_event(said: Any) -> bool:
    if not isinstance(said, dict) or not isinstance(said.get("data"), dict | None):
        return False
    kind = said.get("type")
    return isinstance(kind, str) and kind in _MAY_EMIT and said.keys() <= {"type", "data"}


async def _stop_while_paused(run: RunContext, group: ProcessGroup) -> None:
    """Stop the processes whenever *run* is paused, until it goes on. To be cancelled when they have ended."""
    with suppress(InterlockError):  # it was cancelled: whoever runs the agent hears of it as well
        while True:
            await sleep(run.clock, _LOOKS_EVERY)
            if not run.paused:
                continue
            group.signal(signal.SIGSTOP)
            try:
                await run.checkpoint()
            finally:
                group.signal(signal.SIGCONT)


def _failure(group: ProcessGroup, what: str) -> RunFailed:
    code = group.returncode
    message = f"{group} {what}{group.how_it_ended()}{group.said(_SAID_MAX)}"
    return RunFailed(message, code="command_failed", returncode=code)


def _check_one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValidationError(f"{name} is {value!r}; allowed are {', '.join(allowed)}")
