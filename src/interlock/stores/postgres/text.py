"""Text as PostgreSQL can keep it: it has no NUL.

NUL becomes two characters of code 1, and a character of code 1 becomes codes 1 and 2. So texts keep their
order, and what begins alike still does; nearly all of them stay as they are.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, overload

from interlock.errors import ValidationError

if TYPE_CHECKING:
    from interlock.stores.rows import EventRow, RunRow, SessionRow

_ESCAPED = {"\0": "\1\1", "\1": "\1\2"}
_MEANT = {escaped: meant for meant, escaped in _ESCAPED.items()}
_MOST = 2**63


@overload
def kept(text: str) -> str: ...
@overload
def kept(text: str | None) -> str | None: ...
def kept(text: str | None) -> str | None:
    """*text* as it is kept; raises `ValidationError` for half a surrogate pair."""
    if text is None:
        return None
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValidationError(f"this cannot be kept as text: {error}") from None
    return re.sub("[\0\1]", _escape, text) if "\0" in text or "\1" in text else text


@overload
def given(text: str) -> str: ...
@overload
def given(text: str | None) -> str | None: ...
def given(text: str | None) -> str | None:
    """What *text* was before it was kept."""
    return text if text is None or "\1" not in text else re.sub("\1[\1\2]", _mean, text)


def _escape(found: re.Match[str]) -> str:
    return _ESCAPED[found[0]]


def _mean(found: re.Match[str]) -> str:
    return _MEANT[found[0]]


def kept_session(row: SessionRow) -> SessionRow:
    """*row* with its texts as they are kept."""
    _check_numbers(row.max_concurrent_runs, row.max_queued_runs)
    return row._replace(id=kept(row.id), agent_id=kept(row.agent_id))


def given_session(row: SessionRow) -> SessionRow:
    """*row* with its texts as they were."""
    return row._replace(id=given(row.id), agent_id=given(row.agent_id))


def kept_run(row: RunRow) -> RunRow:
    """*row* with its texts as they are kept."""
    _check_numbers(row.priority)
    return _with(row, kept)


def given_run(row: RunRow) -> RunRow:
    """*row* with its texts as they were."""
    return _with(row, given)


def _with(row: RunRow, change: Any) -> RunRow:
    return row._replace(
        id=change(row.id),
        session_id=change(row.session_id),
        idempotency_key=change(row.idempotency_key),
    )


def kept_event(row: EventRow) -> EventRow:
    """*row* with its texts as they are kept."""
    return row._replace(id=kept(row.id), type=kept(row.type), run_id=kept(row.run_id))


def given_event(row: EventRow) -> EventRow:
    """*row* with its texts as they were."""
    return row._replace(id=given(row.id), type=given(row.type), run_id=given(row.run_id))


def _check_numbers(*numbers: int) -> None:
    for number in numbers:
        if not -_MOST <= number < _MOST:
            raise ValidationError(f"{number} cannot be kept: allowed are whole numbers of 64 bits")
