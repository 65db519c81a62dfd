"""A model as an agent of a session: asked, given its tools' results, and asked again, until it has answered.

Every call takes its turn at the run's gate, every tool under the run's governor. What the model says is
logged as it comes in, but reading it never waits for the log, nor for a run that is paused: the provider's
slot is free as soon as the answer has ended.
"""

from __future__ import annotations

import asyncio
import re
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, Literal

from interlock.admission.validation import check_seconds
from interlock.agents.chat_answer import Answer, ToolCall
from interlock.agents.chat_anthropic import Anthropic
from interlock.agents.chat_call import Call, Dialect, Terms
from interlock.agents.chat_openai import OpenAI
from interlock.agents.chat_tools import RESULT_MOST, Tool, call, check_tools
from interlock.errors import CapabilityNotSupported, ValidationError
from interlock.provider.signals import json_value
from interlock.secret import Secret

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence

    import aiohttp

    from interlock.ports import Clock
    from interlock.session.context import RunContext

_DIALECTS: Final[dict[str, type[Dialect]]] = {"openai": OpenAI, "anthropic": Anthropic}
_URL: Final = r"https?://[^\s/?#@\\]+(?:/[^\s?#@\\]*)?"
_MESSAGES_MOST: Final = 10_000
_SHOWN_MOST: Final = 16 * 1024
"""Characters of a tool's arguments or result in an event."""
_INPUT: Final = 'allowed is {"prompt": "…"}, or {"messages": [{"role": "user", "content": "…"}]}'


class ChatAgent:
    """Asks *model* of *provider*, which is the provider's name at the gate.

    A run's input is ``{"prompt": text}`` or ``{"messages": […]}`` in the words of the dialect; its output is
    ``{"content": text, "messages": how many there are in the end, "stop_reason": …}``. The reason is
    ``stop``, ``length``, ``content_filter``, what else the provider said, or ``max_turns``.

    Args:
        base_url: as the SDK of the *dialect* takes it: OpenAI's ends with ``/v1``.
        api_key: None sends none; may be a `Secret`. It is never shown.
        tools: functions, async ones or plain ones (these run in threads), or `Tool`s.
        max_turns: how often the model is asked in one run, at most.
        timeout: seconds until an answer begins, for the slot and all attempts together; None for ever.
        connect_timeout, read_timeout: seconds for a connection, and for each next piece of an answer.
        tool_timeout: seconds for one use of a tool; None for ever.
        headers: further fields of every request; they are not shown either.
        options: further members of every request's body, such as ``{"temperature": 0}``.
    """

    def __init__(
        self,
        provider: str,
        model: str,
        *,
        base_url: str,
        api_key: str | None = None,
        dialect: Literal["openai", "anthropic"] = "openai",
        system: str | None = None,
        tools: Sequence[Callable[..., Any] | Tool] = (),
        max_turns: int = 50,
        timeout: float | None = 3600.0,
        connect_timeout: float = 10.0,
        read_timeout: float = 300.0,
        tool_timeout: float | None = 3600.0,
        headers: Mapping[str, str] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if dialect not in _DIALECTS:
            raise ValidationError(f"dialect is {dialect!r}; allowed are {', '.join(_DIALECTS)}")
        if not re.fullmatch(_URL, str(base_url)):
            raise ValidationError("base_url is no http or https address without user, query and hash")
        if type(max_turns) is not int or max_turns < 1:
            raise ValidationError(f"max_turns is {max_turns!r}; allowed are whole numbers from 1")
        for name, text in (("provider", provider), ("model", model)):
            if not text or not isinstance(text, str):
                raise ValidationError(f"{name} is {text!r}; allowed is a text")
        spans = {"timeout": timeout, "tool_timeout": tool_timeout}
        whole = {**spans, "connect_timeout": connect_timeout, "read_timeout": read_timeout}
        for name, seconds in whole.items():
            if seconds is None and name not in spans:
                raise ValidationError(f"{name} is None; allowed are seconds")
            check_seconds(name, seconds)
        if find_spec("aiohttp") is None:
            raise CapabilityNotSupported("asking a model needs aiohttp: interlock[http]")
        self.capabilities = frozenset(("pause",))
        self.provider = provider
        self.model = model
        self._dialect = _DIALECTS[dialect]()
        self._system = system
        self._tools = check_tools(tools)
        self._max_turns = max_turns
        self._tool_timeout = tool_timeout
        self._options = dict(options or {})
        key = api_key.reveal() if isinstance(api_key, Secret) else api_key
        self._terms = Terms(
            provider,
            self._dialect.url(base_url.rstrip("/")),
            _checked_fields({**self._dialect.headers(key), **(headers or {})}),
            secret=key,
            timeout=timeout,
            connect_timeout=connect_timeout,
            read_timeout=read_timeout,
        )

    async def run(self, run: RunContext) -> dict[str, Any]:
        """The model's last answer to the run's input.

        Raises `ProviderFailed`, `ValidationError` for an input that is none, `AcquireTimeout`, and whatever
        the run's own calls raise.
        """
        given = _messages(run.input)
        last = given[-1]
        await run.emit("message_sent", {"role": last["role"], "content": last.get("content")})
        talk = self._dialect.opening(self._system, given)
        async with self._terms.client() as client:
            for turn in range(1, self._max_turns + 1):
                await run.checkpoint()
                answer = await self._ask(run, talk, client)
                asked = [_arguments(one) for one in answer.calls]
                talk += self._dialect.answered(answer, asked)
                uses = bool(answer.calls) and turn < self._max_turns
                if uses:
                    talk += self._dialect.results(answer.calls, await self._use(run, answer.calls, asked))
                reason = "max_turns" if answer.calls and not uses else answer.stop_reason or "stop"
                told = {"turn": turn, "stop_reason": reason, "tool_calls": len(answer.calls)}
                await run.emit("turn_completed", told)
                if not uses:
                    return {"content": answer.text, "messages": len(talk), "stop_reason": reason}
        raise AssertionError("the last turn returns")

    # -- asking

    async def _ask(self, run: RunContext, talk: list[Any], client: aiohttp.ClientSession) -> Answer:
        """The model's answer to *talk*, logged while it comes in."""
        body = self._dialect.body(self.model, self._system, talk, list(self._tools.values())) | self._options
        answer = Answer()
        asking = asyncio.create_task(Call(run, self._terms, self._dialect, client).perform(body, answer))
        try:
            while pieces := await answer.fresh(run.clock):
                for piece in pieces:
                    await run.checkpoint()
                    await run.emit("message_streamed", {"content": piece})
            await asyncio.wait([asking])  # it has ended, or lets go of the slot
        finally:
            asking.cancel()
            await asyncio.wait([asking])
            if not asking.cancelled():
                asking.exception()  # seen, also where another error is on its way
            # Also of an answer that broke off: it has to be paid for.
            used = {"input_tokens": answer.input_tokens, "output_tokens": answer.output_tokens}
            run.usage(**used)
        asking.result()
        for number, one in enumerate(answer.calls):
            one.id = one.id or f"call_{len(talk)}_{number}"
            one.name = one.name or "unnamed"
        said = {"role": "assistant", "content": answer.text, "stop_reason": answer.stop_reason}
        await run.emit("message_received", said)
        await run.emit("token_usage_updated", used)
        return answer

    # -- tools

    async def _use(
        self, run: RunContext, calls: Sequence[ToolCall], asked: Sequence[Mapping[str, Any] | None]
    ) -> list[tuple[str, bool]]:
        """What each call gave, as the model is told it, and whether it failed. All of them at once."""
        work = [self._use_one(run, one, given) for one, given in zip(calls, asked, strict=True)]
        return await _together(work)

    async def _use_one(
        self, run: RunContext, one: ToolCall, given: Mapping[str, Any] | None
    ) -> tuple[str, bool]:
        named = {"tool_name": one.name, "tool_call_id": one.id}
        await run.checkpoint()
        permit: Any = None
        if run.governor is not None:
            permit = await run.governor.acquire_tool(timeout=self._terms.timeout)
        began = run.clock.now()
        try:
            shown = given if len(one.arguments) <= _SHOWN_MOST else _cut(one.arguments)
            await run.emit("tool_call_started", {**named, "arguments": shown})
        except BaseException:
            if permit is not None:
                permit.release("cancelled")
            raise
        text, failed = await self._outcome(one, given, permit, run.clock)
        told = {**named, "error" if failed else "result": _cut(text), "duration": run.clock.now() - began}
        await run.emit("tool_call_failed" if failed else "tool_call_completed", told)
        return text, failed

    async def _outcome(
        self, one: ToolCall, given: Mapping[str, Any] | None, permit: Any, clock: Clock
    ) -> tuple[str, bool]:
        """What the tool gave, or what went wrong: the model may know better then. *permit* is released."""
        held = permit
        try:
            known = self._tools.get(one.name)
            if known is None:
                return f"there is no tool {one.name!r}; there are: {', '.join(self._tools) or 'none'}", True
            if given is None:
                return f"the arguments are no JSON object: {one.arguments[:200]!r}", True
            arguments = known.read(given)
            held = None  # the call releases it: a thread may outlive us
            return await call(known, arguments, permit, clock, self._tool_timeout), False
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return "it was cancelled", True
        except TimeoutError as error:
            return str(error) or f"it took longer than {self._tool_timeout} s", True
        except (Exception, SystemExit) as error:
            return f"{type(error).__name__}: {error}"[:RESULT_MOST], True
        finally:
            if held is not None:
                held.release("failed")

    def __repr__(self) -> str:
        return f"<ChatAgent {self.model} of {self.provider}>"


async def _together(work: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
    """The results of all of *work*; with the first error, or a cancellation, all of it ends."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        failed = [
            task for task in tasks if task.done() and (task.cancelled() or task.exception() is not None)
        ]
        return [task.result() for task in failed or tasks]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def _messages(given: Any) -> list[dict[str, Any]]:
    match given:
        case {"prompt": str(prompt), **rest} if not rest:
            return [{"role": "user", "content": prompt}]
        case {"messages": [_, *_] as messages, **rest} if not rest:
            if len(messages) > _MESSAGES_MOST:
                raise ValidationError(f"messages has {len(messages)}; allowed are {_MESSAGES_MOST}")
            for place, one in enumerate(messages):
                if not isinstance(one, dict) or not isinstance(one.get("role"), str):
                    raise ValidationError(f"messages[{place}] is no object with a role; {_INPUT}")
            return list(messages)
    raise ValidationError(f"the input does not fit; {_INPUT}")


def _arguments(one: ToolCall) -> Mapping[str, Any] | None:
    """The arguments of a tool call; None if they are no object."""
    text = one.arguments
    read = json_value(text.encode(errors="replace")) if text.strip() else {}
    return read if isinstance(read, dict) else None


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_MOST else f"{text[:_SHOWN_MOST]}…"


def _checked_fields(headers: Mapping[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name):
            raise ValidationError(f"headers: {name!r:.80} is no name of a header field")
        if not value.isascii() or not value.isprintable():
            raise ValidationError(
                f"headers: the value of {name} cannot be sent"
            )  # not shown: it may be a key
    return {name.lower(): value for name, value in headers.items()}
