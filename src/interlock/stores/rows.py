"""How every store keeps its records: as rows of plain values, with what is JSON as its text.

So what was handed in or out can be changed by whoever has it without harm to what is kept. A store counts,
compares and moves rows; it turns them into records for the caller only.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from interlock.core.runs import ENDED, RUN_MOVES
from interlock.core.sessions import SCHEMA_VERSION, Event, NewEvent, Run, RunChange, Session
from interlock.errors import StoreError, ValidationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from interlock.core.runs import RunStatus, SessionStatus
    from interlock.core.sessions import Collision, Retry

_EMPTY = "{}"


class SessionRow(NamedTuple):
    """A `Session`, in the order of its fields."""

    id: str
    status: SessionStatus
    agent_id: str | None
    max_concurrent_runs: int
    max_queued_runs: int
    collision: Collision
    metadata: str
    tags: str
    created_at: float
    updated_at: float
    last_sequence: int = 0


class RunRow(NamedTuple):
    """A `Run`, in the order of its fields."""

    id: str
    session_id: str
    status: RunStatus
    input: str
    number: int
    metadata: str
    priority: int
    timeout: float | None
    retry: Retry | None
    idempotency_key: str | None
    attempt: int
    output: str
    error: str
    token_usage: str
    submitted_at: float
    started_at: float | None
    ended_at: float | None
    waited: float | None


class EventRow(NamedTuple):
    """An `Event` without its session, and without its place until it has one."""

    id: str
    type: str
    timestamp: float
    run_id: str | None
    data: str
    metadata: str
    schema_version: int = SCHEMA_VERSION
    sequence: int = 0


class ChangeRow(NamedTuple):
    """A `RunChange`; None where it leaves what there is."""

    change: RunChange
    output: str | None
    error: str | None


# -- in --------------------------------------------------------------------------------------------


def encoded(value: Any) -> str:
    """*value* as JSON; raises `ValidationError` where it is none."""
    if type(value) is dict and not value:
        return _EMPTY
    try:
        return _encode(value).decode()
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ValidationError(f"this cannot be kept as JSON: {error}") from None


def _mapping(value: Any) -> Any:
    if isinstance(value, MappingProxyType):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not JSON")


_encode = msgspec.json.Encoder(enc_hook=_mapping).encode
_decode = msgspec.json.Decoder().decode


def session_row(session: Session) -> SessionRow:
    """*session* before its first event."""
    return SessionRow(
        session.id,
        session.status,
        session.agent_id,
        session.max_concurrent_runs,
        session.max_queued_runs,
        session.collision,
        encoded(session.metadata),
        encoded(session.tags),
        session.created_at,
        max(session.created_at, session.updated_at),
    )


def run_row(run: Run) -> RunRow:
    """*run*, with the number that it has: the store gives it another."""
    return RunRow(
        run.id,
        run.session_id,
        run.status,
        encoded(run.input),
        run.number,
        encoded(run.metadata),
        run.priority,
        run.timeout,
        run.retry,
        run.idempotency_key,
        run.attempt,
        encoded(run.output),
        encoded(run.error),
        encoded(run.token_usage),
        run.submitted_at,
        run.started_at,
        run.ended_at,
        run.waited,
    )


def event_rows(events: Sequence[NewEvent]) -> list[EventRow]:
    """*events* without a place yet; of those that share an id, the first."""
    if len(events) == 1:
        return [_event_row(events[0])]  # by far the most
    rows: dict[str, EventRow] = {}
    for event in events:
        if event.id not in rows:
            rows[event.id] = _event_row(event)
    return list(rows.values())


def _event_row(event: NewEvent) -> EventRow:
    data, metadata = encoded(event.data), encoded(event.metadata)
    return EventRow(event.id, event.type, event.timestamp, event.run_id, data, metadata)


def change_row(change: RunChange) -> ChangeRow:
    """*change*, ready to be done."""
    output = None if change.output is None else encoded(change.output)
    return ChangeRow(change, output, None if change.error is None else encoded(change.error))


# -- the change of a run ---------------------------------------------------------------------------


def changed(row: RunRow, done: ChangeRow) -> RunRow | None:
    """*row* after the change, or None where it does not allow it."""
    change = done.change
    before, after = RUN_MOVES[change.verb]
    if row.status not in before or change.attempt not in (None, row.attempt):
        return None
    starts = change.verb == "start"
    usage = row.token_usage
    if change.token_usage:
        sums: dict[str, int] = _decoded(usage)
        for what, count in change.token_usage.items():
            sums[what] = sums.get(what, 0) + count
        usage = encoded(sums)
    return row._replace(
        status=after,
        attempt=row.attempt + starts,
        output=row.output if done.output is None else done.output,
        error=row.error if done.error is None else done.error,
        token_usage=usage,
        started_at=change.at if starts else row.started_at,
        ended_at=change.at if after in ENDED else row.ended_at,
        waited=row.waited if change.waited is None else change.waited,
    )


# -- out -------------------------------------------------------------------------------------------


def _decoded(text: str) -> Any:
    if text == _EMPTY:
        return {}
    try:
        return _decode(text)
    except msgspec.DecodeError as error:
        raise StoreError(f"what is kept as JSON is damaged: {error}") from None


def session_of(row: SessionRow) -> Session:
    """The record of *row*, the caller's own."""
    return Session(
        row.id,
        row.status,
        row.agent_id,
        row.max_concurrent_runs,
        row.max_queued_runs,
        row.collision,
        _decoded(row.metadata),
        tags_of(row.tags),
        row.created_at,
        row.updated_at,
        row.last_sequence,
    )


def tags_of(text: str) -> tuple[str, ...]:
    """Tags from their text."""
    return tuple(_decoded(text))


def run_of(row: RunRow) -> Run:
    """The record of *row*, the caller's own."""
    return Run(
        row.id,
        row.session_id,
        row.status,
        _decoded(row.input),
        row.number,
        _decoded(row.metadata),
        row.priority,
        row.timeout,
        row.retry,
        row.idempotency_key,
        row.attempt,
        _decoded(row.output),
        _decoded(row.error),
        _decoded(row.token_usage),
        row.submitted_at,
        row.started_at,
        row.ended_at,
        row.waited,
    )


def event_of(session_id: str, row: EventRow) -> Event:
    """The record of *row*, the caller's own."""
    id_, type_, timestamp, run_id, data, metadata, version, sequence = row
    return Event(
        id_, session_id, run_id, sequence, type_, timestamp, _decoded(data), _decoded(metadata), version
    )
