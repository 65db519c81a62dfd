"""What is said about sessions and runs: bodies and queries as strictly as they are read, and the answers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from msgspec import UNSET, Meta, UnsetType

from interlock.config import MAX_CAPACITY
from interlock.core.runs import RunStatus, SessionStatus  # noqa: TC001 - msgspec reads them
from interlock.core.sessions import Collision, Retry  # noqa: TC001 - msgspec reads them
from interlock.errors import ValidationError
from interlock.http.bodies import Object  # noqa: TC001 - msgspec reads it
from interlock.http.ids import NewSegment, check_new_segment
from interlock.http.queries import Paged, Query

if TYPE_CHECKING:
    from starlette.requests import Request

MOST_BYTES: Final = 1 << 20
"""Of the body of a new session or run."""
LONGEST_ID: Final = 200
LONGEST_WAIT_MS: Final = 300_000
_DAY_MS = 86_400_000
_KEY = re.compile(r"[\x21-\x7e]{1,255}")

Segment = Annotated[str, Meta(min_length=1, max_length=LONGEST_ID)]
"""The id of a session or run that is there; those made in process may have other characters than new ones."""
Id = Annotated[str, Meta(min_length=1, max_length=LONGEST_ID)]
WaitMillis = Annotated[int, Meta(ge=0, le=LONGEST_WAIT_MS)]
Tag = Annotated[str, Meta(min_length=1, max_length=100)]


class _Strict(msgspec.Struct, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """Unknown members are refused by name."""


class NewSession(_Strict):
    """The body of ``POST /sessions``; without an *id* it gets one of its own."""

    agent: Id
    id: NewSegment | None = None
    max_concurrent_runs: Annotated[int, Meta(ge=1, le=MAX_CAPACITY)] = 1
    max_queued_runs: Annotated[int, Meta(ge=0, le=MAX_CAPACITY)] = 100
    collision: Collision = "enqueue"
    metadata: Object = msgspec.field(default_factory=dict)
    tags: Annotated[tuple[Tag, ...], Meta(max_length=64)] = ()

    def __post_init__(self) -> None:
        if self.id is not None:
            check_new_segment("id", self.id)


class NewRun(_Strict):
    """The body of ``POST /sessions/{id}/runs``; *timeout_ms* counts from the start of the run."""

    input: Object
    timeout_ms: Annotated[int, Meta(ge=1, le=_DAY_MS)] | None = None
    priority: Annotated[int, Meta(ge=-1000, le=1000)] = 0
    retry: Retry | None = None
    metadata: Object = msgspec.field(default_factory=dict)


class Drain(_Strict):
    """The body of ``POST /sessions/{id}/drain``."""

    timeout_ms: WaitMillis = 60_000


class Close(_Strict):
    """The body of ``POST /sessions/{id}/close``; *complete* ends the session for good."""

    complete: bool = False
    timeout_ms: WaitMillis = 10_000


class SessionsAsked(Paged):
    """A part of all sessions."""

    status: tuple[SessionStatus, ...] = ()
    after: Segment | None = None


class RunsAsked(Paged):
    """A part of a session's runs."""

    status: tuple[RunStatus, ...] = ()
    after: Segment | None = None


class WaitAsked(Query):
    """For how long a poll waits."""

    timeout_ms: WaitMillis = 60_000


class Submit(msgspec.Struct, rename={"idempotency_key": "Idempotency-Key"}):
    """The header of a submit; the same key is the same run."""

    idempotency_key: Annotated[str, Meta(pattern=r"^[!-~]{1,255}$")] | UnsetType = UNSET


def is_id(text: str) -> bool:
    """Whether *text* can be the id of a session or run that is made over HTTP: a segment of a path."""
    return 0 < len(text) <= LONGEST_ID and text.isprintable() and "/" not in text and text not in (".", "..")


def idempotency_key(request: Request) -> str | None:
    """The key under which a submit may be repeated, if there is one. Raises `ValidationError`."""
    match request.headers.getlist("idempotency-key"):
        case []:
            return None
        case [key] if _KEY.fullmatch(key):
            return key
        case [key]:
            shown = f"is {key[:80]!r}"
        case keys:
            shown = f"is given {len(keys)} times"
    raise ValidationError(f"Idempotency-Key {shown}; allowed are 1 to 255 visible ASCII characters, once")
