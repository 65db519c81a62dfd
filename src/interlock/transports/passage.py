"""The way of one call through the gate, written once for every client library.

As in the gateway: it is read, waits for its permit, is sent, and keeps the permit until the answer's body has
ended. A 429 or 529 is asked again off the slot, while there is patience and the request can be sent twice.

It is written with ``await``, but nothing in it waits by itself: whatever takes time is the `Wire`'s to do.
With one that blocks instead of waiting it is a function for threads; `without_waiting` runs it to its end.
"""

from __future__ import annotations

import itertools
import math
import threading
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

from interlock.admission.permit import DEFAULT_TIMEOUT, outcome_of
from interlock.admission.validation import check_seconds
from interlock.errors import AcquireTimeout, LimitExceeded
from interlock.http.gateway.conversation import RequestFacts, Turns, TurnScanner, identify
from interlock.provider.retry import (
    EXCERPT,
    WITHOUT_PERMIT,
    helps_to_retry,
    read_refusal,
    report_refusal,
    seconds_before,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from interlock.admission.permit import Permit
    from interlock.core.model import Outcome
    from interlock.provider.gate import ProviderGate

    T = TypeVar("T")
    Headers: TypeAlias = list[tuple[str, str]]

    Conversation: TypeAlias = str | Callable[[Any], str | None] | None
    PromptStart: TypeAlias = float | Callable[[Any], float | None] | None

LARGE = 256 * 1024
"""Bytes of a request from which reading it takes milliseconds."""
_REFUSING = (429, 503, 529)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request says: its lower-case headers, and its body if that can be read and sent again."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes | None


class Wire(Protocol):
    """One client library, as a `Passage` sees it."""

    async def asked(self, request: Any) -> Asked: ...

    async def on_gate(self, work: Callable[[ProviderGate], T]) -> T:
        """What *work* gives, where the gate lives."""
        ...

    async def acquire(self, provider_id: str, conversation: str | None, **asked: Any) -> Permit: ...

    def release(self, permit: Permit, outcome: Outcome) -> bool: ...

    async def off_loop(self, work: Callable[[], T], size: int) -> T:
        """What *work* gives, which keeps a processor busy for as long as it takes to read *size* bytes."""
        ...

    async def sleep(self, seconds: float) -> None: ...

    async def send(self, request: Any) -> Any: ...

    def status(self, response: Any) -> int: ...

    def headers(self, response: Any) -> Headers: ...

    async def head(self, response: Any) -> bytes | None:
        """The body up to a little more than `EXCERPT`, which stays to be read with what follows; None if
        that cannot be had."""
        ...

    async def close(self, response: Any) -> None: ...

    def hand_on(self, response: Any, head: bytes | None, ending: Ending | None) -> Any:
        """*response* for the caller: as it came, *head* first, and *ending* told of its end."""
        ...


class Ending:
    """The end of a call's answer, however it comes; the first one counts and frees the slot."""

    def __init__(self, passage: Passage, permit: Permit, conversation: str | None, encoding: str) -> None:
        self._passage = passage
        self._release = partial(passage.wire.release, permit)
        self._permit = permit
        self._conversation = conversation
        self._scanner = TurnScanner(encoding)
        self.refused = False
        """The answer says that something failed."""

    def feed(self, chunk: bytes) -> None:
        """A piece of the answer passes."""
        self.alive()
        self._scanner.feed(chunk)

    def alive(self) -> None:
        """The answer is under way."""
        self._permit.touch()

    def done(self) -> bool:
        """The answer has ended."""
        if not self._release("failed" if self.refused else "success"):
            return False
        if not self.refused and self._conversation is not None:
            self._passage.observe(self._conversation, self._scanner)
        return True

    def left(self) -> bool:
        """The caller has closed it. After the model's last word that is an end like any other."""
        return self.done() if self._scanner.ended is not None else self._release("cancelled")

    def broken(self, error: BaseException) -> bool:
        """Reading it raised *error*."""
        return self._release(outcome_of(type(error)))


@dataclass(slots=True)
class _Call:
    request: Any
    asked: Asked
    conversation: str | None
    since: float
    deadline: float


@dataclass(frozen=True, slots=True)
class _Refusal:
    """An answer that says "too much", with its whole body: it can still be handed on."""

    response: Any
    body: bytes


class Passage:
    """Calls to *provider_id* over *wire*. Times in seconds; None as *timeout* waits for ever.

    Args:
        conversation: names the holder; a function of the request may say. Default: as the gateway reads it.
        prompt_started_at: the oldest goes first; a function of the request may say. Default: when the turn
            began that the request belongs to.
        timeout: for the permit and all attempts together.
        retry: whether a 429 or 529 is asked again.
    """

    def __init__(
        self,
        wire: Wire,
        provider_id: str,
        *,
        conversation: Conversation = None,
        prompt_started_at: PromptStart = None,
        timeout: float | None = DEFAULT_TIMEOUT,
        retry: bool = True,
    ) -> None:
        check_seconds("timeout", timeout)
        self.wire = wire
        self._provider_id = provider_id
        self._conversation = conversation
        self._prompt_started_at = prompt_started_at
        self._timeout = timeout
        self._retry = retry
        self._turns = Turns()
        self._turns_lock = threading.Lock()  # calls of several threads may share one passage
        self._now: Callable[[], float] | None = None

    async def take(self, request: Any) -> Any:
        """The answer to *request*, under a permit until its body has ended.

        Raises what the acquire raises, when there is no answer of the provider to hand on instead, and what
        the client library raises.
        """
        asked = await self.wire.asked(request)
        if asked.method in WITHOUT_PERMIT:
            return await self.wire.send(request)
        call = await self._read(request, asked)
        last: _Refusal | None = None
        for attempt in itertools.count():
            try:
                permit = await self._admitted(call, attempt)
            except (AcquireTimeout, LimitExceeded):
                if last is None:
                    raise
                return self.wire.hand_on(last.response, last.body, None)
            answer = await self._attempt(call, permit, attempt)
            if not isinstance(answer, _Refusal):
                return answer
            last = answer
        raise AssertionError("unreachable")

    def observe(self, conversation: str, scanner: TurnScanner) -> None:
        """An answer of *conversation* has passed."""
        with self._turns_lock:
            self._turns.observe(conversation, scanner.ended, scanner.response_id, self._clock())

    def _clock(self) -> float:
        assert self._now is not None
        return self._now()

    async def _read(self, request: Any, asked: Asked) -> _Call:
        wire = self.wire
        if self._now is None:
            self._now = await wire.on_gate(lambda gate: gate.clock.now)
        now = self._now()
        facts = RequestFacts(None, streaming=False, continues_turn=False, model=None)
        body = asked.body
        if body is not None:
            known = self._turns.conversation_of
            facts = await wire.off_loop(lambda: identify(asked.path, asked.headers, body, known), len(body))
        said = self._conversation
        conversation = (said(request) if callable(said) else said) or facts.conversation
        began = self._prompt_started_at
        since = began(request) if callable(began) else began
        if since is None:
            since = now
            if conversation is not None:
                with self._turns_lock:
                    since = self._turns.started_at(conversation, continues=facts.continues_turn, now=now)
        deadline = math.inf if self._timeout is None else now + self._timeout
        return _Call(request, asked, conversation, since, deadline)

    async def _admitted(self, call: _Call, attempt: int) -> Permit:
        wire, provider_id = self.wire, self._provider_id
        if attempt:
            await wire.sleep(await wire.on_gate(lambda gate: seconds_before(gate, provider_id, attempt)))
        timeout = None if call.deadline == math.inf else max(0.0, call.deadline - self._clock())
        return await wire.acquire(
            provider_id, call.conversation, prompt_started_at=call.since, timeout=timeout
        )

    async def _attempt(self, call: _Call, permit: Permit, attempt: int) -> Any:
        """One try under *permit*: the answer, which keeps it, or a refusal to come back for."""
        wire = self.wire
        response: Any = None
        outcome: Outcome = "failed"
        keeps = False
        try:
            response = await wire.send(call.request)
            fields = wire.headers(response)
            encoding = next((value for name, value in fields if name.lower() == "content-encoding"), "")
            ending = Ending(self, permit, call.conversation, encoding)
            status = wire.status(response)
            ending.refused = status >= 500
            head: bytes | None = None
            if status in _REFUSING:
                head = await wire.head(response)
                ending.refused = True
                if await self._told(call, permit, attempt, response, head):
                    return _Refusal(response, head or b"")
            answer = wire.hand_on(response, head, ending)
            keeps = True
        except BaseException as error:
            outcome = outcome_of(type(error))
            raise
        else:
            return answer
        finally:
            if not keeps:
                # Closed before it is released: the provider sees the end no later than the next one's start.
                try:
                    if response is not None:
                        await wire.close(response)
                finally:
                    wire.release(permit, outcome)

    async def _told(
        self, call: _Call, permit: Permit, attempt: int, response: Any, head: bytes | None
    ) -> bool:
        """Tell the gate what was refused, and say whether to ask again."""
        wire, provider_id = self.wire, self._provider_id
        status, fields = wire.status(response), wire.headers(response)

        def tell(gate: ProviderGate) -> bool:
            signal = read_refusal(status, fields, head or b"", provider_id=provider_id, now=gate.clock.now())
            if signal is None:
                return False
            report_refusal(gate, provider_id, permit, signal)
            # A longer body would be lost, should this be the last answer after all.
            whole = head is not None and len(head) <= EXCERPT
            again = self._retry and call.asked.body is not None and whole
            return again and helps_to_retry(
                gate, provider_id, status, signal, attempt=attempt, deadline=call.deadline
            )

        return await wire.on_gate(tell)


def without_waiting(coroutine: Coroutine[Any, Any, T]) -> T:
    """What *coroutine* gives, which never waits: all that takes time in it blocks."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    coroutine.close()
    raise AssertionError("it waited")
