"""A provider's stream behind the gate: one slot from before the first item until after the last.

The idea is the wrapper of dispatch's provider concurrency. Beyond it, a 429 counts whether it is raised or
yielded, takes its Retry-After along, and costs a place only if it speaks of concurrency.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from interlock.admission.callback import call_back
from interlock.admission.permit import DEFAULT_TIMEOUT, outcome_of
from interlock.provider.retry import RETRIED, report_refusal
from interlock.provider.signals import MAX_RETRY_AFTER, classify, headers_of, retry_after, status_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
    from types import TracebackType

    from interlock.admission.permit import Permit
    from interlock.core.model import Outcome
    from interlock.provider.gate import ProviderGate

log = logging.getLogger(__name__)

T = TypeVar("T")

_END: Final[Any] = object()


async def gated(
    source: Callable[[], AsyncIterable[T] | Awaitable[AsyncIterable[T]]],
    gate: ProviderGate,
    provider_id: str,
    conversation_id: str | None,
    *,
    prompt_started_at: float | None = None,
    is_rate_limit: Callable[[T], object] | None = None,
    on_queued: Callable[[], object] | None = None,
    on_acquired: Callable[[], object] | None = None,
    timeout: float | None = DEFAULT_TIMEOUT,
) -> AsyncIterator[T]:
    """The items of ``source()``, called under a permit of *provider_id* and closed before its release.

    The permit is released however the iteration ends: with the last item, an exception, a cancellation, or
    ``aclose()`` by a consumer that has enough (put ``contextlib.aclosing`` around a loop that may be
    left early). A 429, raised or yielded, is reported to *gate* with its Retry-After, once, and still reaches
    the consumer; so is a 529.

    Args:
        source: returns an async iterator, or something to await that gives one.
        prompt_started_at: seconds since the epoch; the oldest prompt goes first.
        is_rate_limit: whether an item is a 429, besides mappings of type "error" and code "429".
        on_queued, on_acquired: called without arguments; what they raise is logged.
        timeout: seconds to wait for the permit; None for ever.

    Raises what `ProviderGate.acquire` raises, and what *source* raises.
    """
    async with AsyncExitStack() as ending:
        permit = await gate.acquire(
            provider_id,
            conversation_id,
            prompt_started_at=prompt_started_at,
            timeout=timeout,
            on_queued=on_queued,
        )
        listening = _Listening(gate, provider_id, permit)
        ending.push(listening.ended)
        if on_acquired is not None:
            call_back(on_acquired)
        with listening:
            stream: Any = source()
            if not hasattr(stream, "__aiter__"):
                stream = await stream
            ending.push_async_callback(_close, stream)
            items: AsyncIterator[T] = aiter(stream)
        if items is not stream:
            ending.push_async_callback(_close, items)
        while True:
            with listening:
                item = await anext(items, _END)
            if item is _END:
                return
            permit.touch()
            listening.look_at(item, is_rate_limit)
            yield item


class _Listening:
    """What a provider says in one call. Entered around its code only: a consumer may throw as well."""

    def __init__(self, gate: ProviderGate, provider_id: str, permit: Permit) -> None:
        self._gate = gate
        self._provider_id = provider_id
        self._permit = permit
        self._refused = False

    def __enter__(self) -> None: ...

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        status = None if exc is None else status_of(exc)
        if exc is not None and status in RETRIED:
            headers = headers_of(exc)
            wait = None if retry_after(headers, now=self._gate.clock.now()) is not None else _wait_of(exc)
            self._report(status, headers, _words_of(exc), wait)

    def look_at(self, item: T, is_rate_limit: Callable[[T], object] | None) -> None:
        """Report *item* if it says that it is a 429."""
        is_429 = False
        if isinstance(item, Mapping):
            with suppress(Exception):
                is_429 = item.get("type") == "error" and str(item.get("code")) == "429"
        if not is_429 and is_rate_limit is not None:
            try:
                is_429 = bool(is_rate_limit(item))
            except Exception:
                log.exception("is_rate_limit raised: %r", is_rate_limit)
        if is_429:
            self._report(429, (), _json(item), _wait_of(item))

    def ended(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """The last thing of all: the slot is free again."""
        outcome: Outcome = outcome_of(exc_type)
        self._permit.release("failed" if self._refused and outcome == "success" else outcome)

    def _report(
        self, status: int, headers: tuple[tuple[str, str], ...], body: bytes, wait: float | None
    ) -> None:
        if self._refused:
            return
        self._refused = True
        signal = classify(status, headers, body, provider=self._provider_id, now=self._gate.clock.now())
        if signal is not None:
            if wait is not None:
                signal = replace(signal, retry_after=wait)
            report_refusal(self._gate, self._provider_id, self._permit, signal)


async def _close(thing: Any) -> None:
    try:
        close = getattr(thing, "aclose", None) or getattr(thing, "close", None)
        closing = None if close is None else close()
        if inspect.isawaitable(closing):
            await closing
    except Exception as error:
        log.warning("a provider's stream could not be closed: %r", error)


def _attribute(thing: object, *path: str) -> Any:
    """Exceptions and items come from foreign code: a property of theirs may raise."""
    with suppress(Exception):
        for name in path:
            thing = getattr(thing, name)
        return thing
    return None


def _wait_of(thing: object) -> float | None:
    """The seconds of ``retry_after``, from 0 to 900, if it is a number."""
    wait = _attribute(thing, "retry_after")
    if isinstance(wait, bool) or not isinstance(wait, int | float) or not wait >= 0:
        return None
    return min(float(wait), MAX_RETRY_AFTER)


def _words_of(error: BaseException) -> bytes:
    """What a client's exception says: the body that it carries, else its own text."""
    for body in (_attribute(error, "body"), _attribute(error, "response", "content")):
        if isinstance(body, bytes):
            return body
        if isinstance(body, Mapping | list) and (encoded := _json(body)):
            return encoded
    return _text(error)


def _json(value: object) -> bytes:
    with suppress(Exception):
        return msgspec.json.encode(value, enc_hook=str)
    return _text(value)


def _text(value: object) -> bytes:
    with suppress(Exception):
        return str(value).encode(errors="replace")
    return b""
