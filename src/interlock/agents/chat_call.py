"""One call of a model: its turn at the gate, the request, the answer as it streams, and asking again.

The slot is held from before the request until the answer has ended. What is asked again, because the provider
said "too much" or failed before it said anything, waits without a slot and keeps its place in line.
"""

from __future__ import annotations

import asyncio
import math
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from interlock.agents.chat_answer import EVENT_MOST, Answer, EventStream, at
from interlock.errors import InterlockError, PermitLost, ProviderFailed
from interlock.governor import STREAM
from interlock.provider.retry import (
    EXCERPT,
    RETRIED,
    helps_to_retry,
    read_refusal,
    report_refusal,
    seconds_before,
)
from interlock.provider.signals import json_value, retry_after
from interlock.session.patience import sleep

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    import aiohttp

    from interlock.admission.permit import Permit
    from interlock.agents.chat_answer import ToolCall
    from interlock.agents.chat_tools import Tool
    from interlock.session.context import RunContext

_BYTES_MOST: Final = 256 << 20
"""Of one answer, on the wire: each token comes with a few hundred."""
_TRANSIENT: Final = frozenset((408, 500, 502, 503, 504))
_FAULTS_MOST: Final = 2
"""How often a call is made again after failures of the provider."""
_FAULT_PAUSE: Final = 0.5
_LAST_WORDS: Final = 1.0
"""Seconds for the connection to end after an answer that is whole."""
_WORDS_MOST: Final = 300


class Dialect(Protocol):
    """The API of a provider, in as far as APIs differ."""

    def url(self, base_url: str) -> str:
        """Where to ask."""
        ...

    def headers(self, api_key: str | None) -> dict[str, str]:
        """The fields of a request that are the dialect's own."""
        ...

    def opening(self, system: str | None, messages: Sequence[Any]) -> list[Any]:
        """The conversation's messages before the first answer."""
        ...

    def body(
        self, model: str, system: str | None, messages: Sequence[Any], tools: Sequence[Tool]
    ) -> dict[str, Any]:
        """What is asked."""
        ...

    def read(self, data: bytes, answer: Answer) -> None:
        """Take what one event of the stream says into *answer*."""
        ...

    def read_whole(self, body: bytes, answer: Answer) -> None:
        """Take an answer that came in one piece, from a server that does not stream."""
        ...

    def answered(self, answer: Answer, arguments: Sequence[Mapping[str, Any] | None]) -> list[Any]:
        """The messages that *answer* adds to the conversation; *arguments* are those of its calls, read."""
        ...

    def results(self, calls: Sequence[ToolCall], told: Sequence[tuple[str, bool]]) -> list[Any]:
        """The messages that tell what the tools gave, and whether they failed."""
        ...


class Terms:
    """How a provider is called: where, with which header fields, and how long it may take, in seconds."""

    def __init__(
        self,
        provider: str,
        url: str,
        headers: Mapping[str, str],
        *,
        secret: str | None,
        timeout: float | None,
        connect_timeout: float,
        read_timeout: float,
    ) -> None:
        self.provider = provider
        self.url = url
        self.headers = {
            **headers,
            "content-type": "application/json",
            "accept": "text/event-stream, application/json",
            "accept-encoding": "identity",
            "user-agent": "interlock",
        }
        self.secret = secret
        self.timeout = timeout
        self.connect_timeout = connect_timeout
        self.read_timeout = read_timeout

    @asynccontextmanager
    async def client(self) -> AsyncIterator[aiohttp.ClientSession]:
        """The connections of one run."""
        import aiohttp

        timeout = aiohttp.ClientTimeout(
            total=None, connect=None, sock_connect=self.connect_timeout, sock_read=self.read_timeout
        )
        async with aiohttp.ClientSession(
            timeout=timeout,
            trust_env=False,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        ) as session:
            yield session


class _Again(Exception):
    """To be asked again, *seconds* from now at the earliest, unless *error* has to be the end."""

    def __init__(self, error: ProviderFailed, seconds: float, *, fault: bool) -> None:
        super().__init__()
        self.error = error
        self.seconds = seconds
        self.fault = fault


class Call:
    """One call for *run*, made by `perform`."""

    def __init__(
        self, run: RunContext, terms: Terms, dialect: Dialect, client: aiohttp.ClientSession
    ) -> None:
        self._run = run
        self._gate: Any = run.gate
        self._clock = run.clock
        self._terms = terms
        self._dialect = dialect
        self._client = client
        self._deadline = math.inf if terms.timeout is None else self._clock.now() + terms.timeout
        self._attempt = 0

    async def perform(self, body: Mapping[str, Any], answer: Answer) -> None:
        """Ask *body*, and have *answer* filled.

        Raises `ProviderFailed`, and what waiting for the slot raises.
        """
        request = msgspec.json.encode(body)
        faults = 0
        try:
            while True:
                try:
                    async with self._slot() as permit:
                        await self._ask(request, answer, permit)
                        return
                except _Again as again:
                    faults += again.fault
                    if faults > _FAULTS_MOST or self._clock.now() + again.seconds >= self._deadline:
                        raise again.error from None
                    await sleep(self._clock, again.seconds)
                    self._attempt = min(self._attempt + 1, 60)
        finally:
            answer.close()

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[Permit | None]:
        run, left = self._run, None
        if self._deadline != math.inf:
            left = max(0.0, self._deadline - self._clock.now())
        governor: Any = run.governor
        async with AsyncExitStack() as held:
            permit: Permit | None = None
            if self._gate is not None:
                # Where one admission has both, a stream is one claim: who waits for a part holds nothing.
                both = governor is not None and governor.admission is self._gate.admission
                also = STREAM if both else ()
                asking = self._gate.acquire(self._terms.provider, timeout=left, also=also)
                permit = await held.enter_async_context(asking)
            elif governor is not None:
                permit = await held.enter_async_context(governor.acquire_stream(timeout=left))
            yield permit

    async def _ask(self, request: bytes, answer: Answer, permit: Permit | None) -> None:
        import aiohttp

        try:
            async with self._client.post(
                self._terms.url, data=request, headers=self._terms.headers, allow_redirects=False
            ) as response:
                if response.status == 200:
                    await self._take(response, answer, permit)
                    return
                head = await _head(response)
                refusal = self._refusal(response.status, list(response.headers.items()), head, permit)
        except (InterlockError, _Again):
            raise
        except TimeoutError:
            error = self._failed("took too long to answer", code="provider_timeout")
            refusal = error if answer.begun else self._again(error)
        except (aiohttp.ClientError, OSError, ValueError) as failure:
            error = self._failed(f"gave no proper answer{self._fit(f'{type(failure).__name__}: {failure}')}")
            refusal = error if answer.begun else self._again(error)
        raise refusal

    async def _take(self, response: aiohttp.ClientResponse, answer: Answer, permit: Permit | None) -> None:
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise ValueError("it is compressed, which was not asked for")
        whole: bytearray | None = None
        if response.content_type == "application/json":
            whole = bytearray()
        events, size = EventStream(), 0
        answer.problem, answer.stop_reason = None, ""
        try:
            async with asyncio.timeout(None) as last_words:
                async for chunk in response.content.iter_any():
                    if permit is not None:
                        _keep(permit)
                    size += len(chunk)
                    if size > _BYTES_MOST:
                        raise ProviderFailed(f"the answer has more than {_BYTES_MOST} bytes")
                    if whole is not None:
                        whole += chunk
                        if len(whole) > EVENT_MOST:
                            raise ProviderFailed(f"the answer has more than {EVENT_MOST} bytes")
                        continue
                    for data in events.feed(chunk):
                        self._read(data, answer, permit)
                    if answer.whole and last_words.when() is None:
                        last_words.reschedule(asyncio.get_running_loop().time() + _LAST_WORDS)
        except TimeoutError:
            if not answer.whole:
                raise
        if whole is not None:
            self._dialect.read_whole(bytes(whole), answer)
            self._check(answer, permit)
        elif not answer.whole:
            for data in events.rest():
                self._read(data, answer, permit)
        if not answer.whole and not answer.stop_reason:
            raise ValueError("it broke off" if answer.begun or size else "it is empty")

    def _read(self, data: bytes, answer: Answer, permit: Permit | None) -> None:
        if not answer.whole:
            self._dialect.read(data, answer)
            self._check(answer, permit)

    def _check(self, answer: Answer, permit: Permit | None) -> None:
        if answer.problem is not None:
            refusal = self._refusal(answer.problem.status, [], answer.problem.body, permit)
            raise refusal.error if answer.begun and isinstance(refusal, _Again) else refusal

    # -- what went wrong

    def _refusal(
        self, status: int, headers: list[tuple[str, str]], body: bytes, permit: Permit | None
    ) -> ProviderFailed | _Again:
        """What to raise for a *status* other than 200; the gate is told of those that say "too much"."""
        provider, now = self._terms.provider, self._clock.now()
        signal = read_refusal(status, headers, body, provider_id=provider, now=now)
        words = self._fit(_words(body))
        if signal is None or status not in RETRIED:
            if signal is not None and self._gate is not None and permit is not None:
                report_refusal(self._gate, provider, permit, signal)
            error = self._failed(f"answered {status}{words}", status=status)
            return self._again(error, retry_after(headers, now=now)) if status in _TRANSIENT else error
        error = self._failed(
            f"answered {status}{words}", code="provider_rate_limited", status=status, reason=signal.reason
        )
        if self._gate is None or permit is None:
            wait = signal.retry_after
            wait = _pause(self._attempt) if wait is None else max(wait, 0.02 * _pause(self._attempt))
            return error if signal.reason == "quota" else _Again(error, wait, fault=False)
        report_refusal(self._gate, provider, permit, signal)
        attempt, deadline = self._attempt, self._deadline
        if not helps_to_retry(self._gate, provider, status, signal, attempt=attempt, deadline=deadline):
            return error
        return _Again(error, seconds_before(self._gate, provider, attempt + 1), fault=False)

    def _again(self, error: ProviderFailed, wait: float | None = None) -> _Again:
        return _Again(error, _pause(self._attempt) if wait is None else wait, fault=True)

    def _fit(self, words: str) -> str:
        """*words* fit to be shown, after a colon."""
        if self._terms.secret:
            words = words.replace(self._terms.secret, "***")
        words = "".join(one if one.isprintable() else " " for one in words[: 4 * _WORDS_MOST])
        words = " ".join(words.split())[:_WORDS_MOST]
        return f": {words}" if words else ""

    def _failed(self, what: str, code: str = "provider_error", **details: Any) -> ProviderFailed:
        return ProviderFailed(
            f"{self._terms.provider} {what}", code=code, provider=self._terms.provider, **details
        )


def _keep(permit: Permit) -> None:
    """Show that the work goes on. `PermitLost` if somebody else has the slot."""
    permit.touch()
    if permit.lost:
        raise PermitLost("the provider's slot was taken back in the middle of an answer")


def _pause(attempt: int) -> float:
    return float(min(8.0, _FAULT_PAUSE * 2**attempt))


async def _head(response: aiohttp.ClientResponse) -> bytes:
    """The beginning of an error's body."""
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > EXCERPT:
            break
    return bytes(body[:EXCERPT])


def _words(body: bytes) -> str:
    """What an error's body says."""
    said = json_value(body)
    found: Any = None
    for path in (("error", "message"), ("error",), ("message",), ("detail",)):
        found = at(said, *path)
        if isinstance(found, str) and found:
            break
    else:
        found = body.decode("utf-8", "replace") if said is None else ""
    return str(found)
