"""What is said about sessions and runs: bodies and queries as strictly as they are read, and the answers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Final, Generic, NamedTuple, TypeVar, get_args

import msgspec
from msgspec import Meta

from interlock.config import MAX_CAPACITY
from interlock.core.runs import RunStatus, SessionStatus
from interlock.core.sessions import Collision, Retry  # noqa: TC001 - msgspec reads them
from interlock.errors import ValidationError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from starlette.requests import Request

    from interlock.core.sessions import Run, Session
    from interlock.core.workers import Worker
    from interlock.session.readings import Blocking

MOST_BYTES: Final = 1 << 20
"""Of the body of a new session or run."""
MOST_DEEP: Final = 64
"""Levels of an input or of metadata: what reads them later may be less patient than we are."""
LONGEST_ID: Final = 200
LONGEST_WAIT_MS: Final = 300_000
_MOST_LISTED = 1000
_DAY_MS = 86_400_000
_KEY = re.compile(r"[\x21-\x7e]{1,255}")

RUN_STATUSES: Final[tuple[RunStatus, ...]] = get_args(RunStatus)
SESSION_STATUSES: Final[tuple[SessionStatus, ...]] = get_args(SessionStatus)

Id = Annotated[str, Meta(min_length=1, max_length=LONGEST_ID)]
WaitMillis = Annotated[int, Meta(ge=0, le=LONGEST_WAIT_MS)]
Tag = Annotated[str, Meta(min_length=1, max_length=100)]
S = TypeVar("S", bound=str)


class _Strict(msgspec.Struct, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """Unknown members are refused by name."""


class NewSession(_Strict):
    """The body of ``POST /sessions``; without an *id* it gets one of its own."""

    agent: Id
    id: Id | None = None
    max_concurrent_runs: Annotated[int, Meta(ge=1, le=MAX_CAPACITY)] = 1
    max_queued_runs: Annotated[int, Meta(ge=0, le=MAX_CAPACITY)] = 100
    collision: Collision = "enqueue"
    metadata: dict[str, Any] = msgspec.field(default_factory=dict)
    tags: Annotated[tuple[Tag, ...], Meta(max_length=64)] = ()

    def check(self) -> None:
        """`ValidationError` for what the types cannot say."""
        if self.id is not None and not is_id(self.id):
            raise ValidationError(
                f"the body is refused: id is {self.id[:80]!r};"
                f" allowed are 1 to {LONGEST_ID} printable characters without '/', but not '.' or '..'"
            )
        _check_depth("metadata", self.metadata)


class NewRun(_Strict):
    """The body of ``POST /sessions/{id}/runs``; *timeout_ms* counts from the start of the run."""

    input: dict[str, Any]
    timeout_ms: Annotated[int, Meta(ge=1, le=_DAY_MS)] | None = None
    priority: Annotated[int, Meta(ge=-1000, le=1000)] = 0
    retry: Retry | None = None
    metadata: dict[str, Any] = msgspec.field(default_factory=dict)

    def check(self) -> None:
        """`ValidationError` for what the types cannot say."""
        _check_depth("input", self.input)
        _check_depth("metadata", self.metadata)


class Drain(_Strict):
    """The body of ``POST /sessions/{id}/drain``."""

    timeout_ms: WaitMillis = 60_000


class Close(_Strict):
    """The body of ``POST /sessions/{id}/close``; *complete* ends the session for good."""

    complete: bool = False
    timeout_ms: WaitMillis = 10_000


class Page(NamedTuple, Generic[S]):
    """A part of a list: *after* is the id of the last one of the page before."""

    statuses: frozenset[S] | None
    after: str | None
    limit: int


class Line(NamedTuple):
    """The places of one session's runs that wait, 1 being next, and the limits without room for that one."""

    places: Mapping[str, int]
    blocking: Sequence[Blocking]

    def why(self) -> list[dict[str, Any]]:
        """The limits, as an event has them."""
        return [one.as_data() for one in self.blocking]


def is_id(text: str) -> bool:
    """Whether *text* can be the id of a session or run that is made over HTTP: a segment of a path."""
    return 0 < len(text) <= LONGEST_ID and text.isprintable() and "/" not in text and text not in (".", "..")


def page_asked(request: Request, statuses: Sequence[S]) -> Page[S]:
    """The page that the query asks for; *statuses* are those that there are. Raises `ValidationError`."""
    query = _query(request, ("after", "limit", "status"))
    asked = request.query_params.getlist("status")
    known: dict[str, S] = {one: one for one in statuses}
    for one in asked:
        if one not in known:
            raise ValidationError(f"status is {one[:80]!r}; allowed are {', '.join(statuses)}")
    after = query.get("after")
    if after is not None and not is_id(after):
        raise ValidationError(
            f"after is {after[:80]!r}; allowed is the id that the page before names as next"
        )
    limit = _whole("limit", query.get("limit", "100"), 1, _MOST_LISTED)
    return Page(frozenset(known[one] for one in asked) or None, after, limit)


def wait_asked(request: Request) -> float:
    """For how many seconds the query wants to wait. Raises `ValidationError`."""
    query = _query(request, ("timeoutMs",))
    return _whole("timeoutMs", query.get("timeoutMs", "60000"), 0, LONGEST_WAIT_MS) / 1000


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


def _query(request: Request, known: Collection[str]) -> Mapping[str, str]:
    """The query's parameters; one that is misspelt must not go unheard, nor one that is said twice."""
    query = request.query_params
    for name in query:
        if name not in known:
            raise ValidationError(f"unknown query parameter {name[:80]!r}; known are: {', '.join(known)}")
        if name != "status" and len(query.getlist(name)) > 1:
            raise ValidationError(f"{name} is given {len(query.getlist(name))} times; allowed is once")
    return query


def _whole(name: str, text: str, least: int, most: int) -> int:
    number = int(text) if text.isascii() and text.isdecimal() and len(text) <= 9 else -1
    if not least <= number <= most:
        raise ValidationError(f"{name} is {text[:80]!r}; allowed are whole numbers from {least} to {most}")
    return number


def _check_depth(name: str, value: dict[str, Any]) -> None:
    level: list[Any] = [value]
    for _ in range(MOST_DEEP):
        parts = [part for outer in level for part in (outer.values() if isinstance(outer, dict) else outer)]
        level = [part for part in parts if isinstance(part, dict | list)]
        if not level:
            return
    raise ValidationError(f"the body is refused: {name} is nested too deeply; allowed are {MOST_DEEP} levels")


# -- answers -------------------------------------------------------------------------------------------------


def worker_said(worker: Worker) -> dict[str, Any]:
    """*worker* as the API shows it."""
    return {
        "id": worker.id,
        "host": worker.host,
        "pid": worker.pid,
        "agents": worker.agents,
        "state": ("draining" if worker.draining else "working") if worker.alive else "dead",
        "sessions": worker.sessions,
        "startedAt": ms(worker.started_at),
        "seenAt": ms(worker.seen_at),
    }


def session_said(session: Session) -> dict[str, Any]:
    """A session as every route tells it."""
    return {
        "id": session.id,
        "agent": session.agent_id,
        "status": session.status,
        "maxConcurrentRuns": session.max_concurrent_runs,
        "maxQueuedRuns": session.max_queued_runs,
        "collision": session.collision,
        "metadata": session.metadata,
        "tags": session.tags,
        "createdAt": ms(session.created_at),
        "updatedAt": ms(session.updated_at),
        "lastSequence": session.last_sequence,
    }


def run_said(run: Run, line: Line | None) -> dict[str, Any]:
    """A run as every route tells it; *line* is its session's, where it may wait."""
    waits = (
        {"position": line.places.get(run.id), "waitsFor": line.why()}
        if line and run.status == "pending"
        else {}
    )
    return {
        "runId": run.id,
        "sessionId": run.session_id,
        "status": run.status,
        "number": run.number,
        "input": run.input,
        "output": run.output,
        "error": run.error,
        "attempt": run.attempt,
        "priority": run.priority,
        "timeoutMs": ms(run.timeout),
        "retry": run.retry,
        "tokenUsage": {_camel(name): count for name, count in run.token_usage.items()},
        "metadata": run.metadata,
        "submittedAt": ms(run.submitted_at),
        "startedAt": ms(run.started_at),
        "endedAt": ms(run.ended_at),
        "waitedMs": ms(run.waited),
        **waits,
    }


def ms(seconds: float | None) -> int | None:
    """Seconds as whole milliseconds."""
    return None if seconds is None else round(seconds * 1000)


def _camel(name: str) -> str:
    word, *rest = name.split("_")
    return word + "".join(part.capitalize() for part in rest)
