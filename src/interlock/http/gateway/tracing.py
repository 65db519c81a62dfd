"""What a tracer is told of a gateway call: its beginning, each attempt at the provider, and its end.

The gateway does not know what traces are made of; `interlock.telemetry.otel` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from contextlib import AbstractContextManager

    Headers = list[tuple[str, str]]


class CallTrace(Protocol):
    """One call, from its first byte to the last of its answer. Nothing here raises."""

    def identified(self, path: str, model: str | None, conversation: str | None) -> None:
        """The request was read: *path* is below the provider, the rest None where it does not say."""

    def sending(self, base_url: str, headers: Headers) -> Headers:
        """An attempt begins; the header fields to send, which carry the trace on."""
        ...

    def answered(self, status: int) -> None:
        """The provider has begun to answer the attempt."""

    def attempted(self, error: str | None) -> None:
        """The attempt is over; *error* says what broke it, None: nothing. The first word counts."""

    def ended(self, outcome: str, status: int) -> None:
        """The call is over, see `Reply.outcome`; *status* is what its client was told, 0 for nothing."""


class Tracing(Protocol):
    """Whoever traces calls."""

    def within(self, headers: Iterable[tuple[bytes, bytes]]) -> AbstractContextManager[None]:
        """What happens in here belongs to the trace that a request's *headers*, as they came, name."""
        ...

    def call(self, method: str, provider: str | None, headers: Mapping[str, str]) -> CallTrace:
        """A call begins, in the task that serves it; *headers* have lower-case names."""
        ...


class Untraced:
    """A call that nobody traces."""

    def identified(self, path: str, model: str | None, conversation: str | None) -> None: ...

    def sending(self, base_url: str, headers: Headers) -> Headers:
        return headers

    def answered(self, status: int) -> None: ...

    def attempted(self, error: str | None) -> None: ...

    def ended(self, outcome: str, status: int) -> None: ...


UNTRACED = Untraced()
