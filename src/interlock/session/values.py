"""What may be written down: values that are JSON, ids that can stand in a URL, numbers in their range."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import msgspec

from interlock.core.runs import EVENT_OF, EVENT_TYPES, LIFECYCLE
from interlock.core.sessions import NewEvent, Session
from interlock.errors import ValidationError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from interlock.core.runs import RunVerb
    from interlock.core.sessions import Collision

COLLISIONS: Final = ("enqueue", "reject", "interrupt", "rollback")
MAX_BYTES: Final = 16 << 20
"""Of one value, as JSON."""
_ID_LENGTH: Final = 200
_KEY_LENGTH: Final = 255

_encoder = msgspec.json.Encoder()


def new_id(kind: str) -> str:
    """An id that nothing else has, such as ``run_0f3c…``."""
    return f"{kind}_{uuid4().hex}"


def plain(name: str, value: Any) -> Any:
    """*value* as JSON has it, in a copy of its own. `ValidationError` names it if JSON cannot say it."""
    try:
        encoded = _encoder.encode(value)
        if len(encoded) > MAX_BYTES:
            raise ValidationError(f"{name} has {len(encoded)} bytes as JSON; allowed are {MAX_BYTES}")
        if b"null" in encoded:
            _check_finite(name, value)
        return msgspec.json.decode(encoded)
    except (TypeError, ValueError, RecursionError, OverflowError) as error:
        if isinstance(error, ValidationError):
            raise
        why = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ValidationError(f"{name} is not JSON: {why}") from None


def _check_finite(name: str, value: Any) -> None:
    """JSON has no word for a number that is not finite; it would come back as null."""
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, float) and not math.isfinite(one):
            raise ValidationError(f"{name} is not JSON: it has the number {one!r}")
        if isinstance(one, dict):
            left += one.values()
        elif isinstance(one, (list, tuple)):
            left += one


def plain_object(name: str, value: Mapping[str, Any] | None) -> dict[str, Any]:
    """`plain`, of a mapping with texts as keys; None is an empty one."""
    found = plain(name, {} if value is None else value)
    if not isinstance(found, dict):
        raise ValidationError(f"{name} is {type(value).__name__}; allowed are objects such as {{}}")
    return found


def check_id(name: str, value: Any) -> str:
    """*value*, if it is an id: 1 to 200 printable characters without a slash."""
    fits = (
        isinstance(value, str) and 0 < len(value) <= _ID_LENGTH and value.isprintable() and "/" not in value
    )
    if not fits:
        shown = value if isinstance(value, str) else type(value).__name__
        allowed = f"allowed are 1 to {_ID_LENGTH} printable characters without a slash"
        raise ValidationError(f"{name} is {shown!r:.250}; {allowed}")
    return str(value)


def check_key(name: str, value: Any) -> str | None:
    """*value*, if it is None or a key that a caller may make up: 1 to 255 printable characters."""
    if value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value) <= _KEY_LENGTH or not value.isprintable():
        shown = value if isinstance(value, str) else type(value).__name__
        allowed = f"allowed are 1 to {_KEY_LENGTH} printable characters"
        raise ValidationError(f"{name} is {shown!r:.300}; {allowed}")
    return value


def check_count(name: str, value: Any, least: int) -> int:
    """*value*, if it is a whole number of at least *least*."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValidationError(f"{name} is {value!r}; allowed are whole numbers from {least}")
    return value


def check_span(name: str, value: Any) -> float | None:
    """*value*, if it is None or a finite number of seconds above 0."""
    if value is None:
        return None
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 < value < math.inf:
        raise ValidationError(f"{name} is {value!r}; allowed are seconds above 0, or None")
    return float(value)


def new_session(
    session_id: str | None,
    agent_id: str | None,
    max_concurrent_runs: int,
    max_queued_runs: int,
    collision: Collision,
    metadata: Mapping[str, Any] | None,
    tags: Collection[str],
    at: float,
) -> Session:
    """A session that begins *at* this time; `ValidationError` for what makes no sense."""
    if collision not in COLLISIONS:
        raise ValidationError(f"collision is {collision!r}; allowed are {', '.join(COLLISIONS)}")
    return Session(
        check_id("session_id", new_id("ses") if session_id is None else session_id),
        "active",
        None if agent_id is None else check_id("agent_id", agent_id),
        check_count("max_concurrent_runs", max_concurrent_runs, 1),
        check_count("max_queued_runs", max_queued_runs, 0),
        collision,
        plain_object("metadata", metadata),
        tuple(tags),
        at,
        at,
    )


def event(
    kind: str,
    at: float,
    data: Mapping[str, Any] | None = None,
    run_id: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> NewEvent:
    """An event of the server's own, whose parts are known to be JSON."""
    return NewEvent(new_id("evt"), kind, at, run_id, data or {}, metadata or {})


def run_event(verb: RunVerb, at: float, run_id: str, data: Mapping[str, Any]) -> NewEvent:
    """The event that says what *verb* did to a run."""
    return event(EVENT_OF[verb], at, data, run_id)


def check_emitted(kind: Any) -> str:
    """*kind*, if it is a type that an agent may emit."""
    if not isinstance(kind, str) or kind not in EVENT_TYPES:
        allowed = ", ".join(sorted(EVENT_TYPES - LIFECYCLE))
        raise ValidationError(f"event type {kind!r} is unknown; allowed are {allowed}")
    if kind in LIFECYCLE:
        raise ValidationError(f"event type {kind!r} is written by the session server alone")
    return kind
