"""What may be called what: the ids that are accepted for something new."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

from msgspec import Meta

from interlock.errors import ValidationError

LONGEST_ID: Final = 128
_ID: Final = re.compile(r"(?:\.?[A-Za-z0-9_:@/-])+\.?")
SEGMENT: Final = r"(?:\.?[A-Za-z0-9_:@-])+\.?"
_SEGMENT: Final = re.compile(SEGMENT)

# As what each of these looks like in the API's description; `$` of a JSON Schema is the very end of a text.
_ANY: Final[dict[str, Any]] = {"pattern": f"^{_ID.pattern}$"}
_ONE: Final[dict[str, Any]] = {"pattern": f"^{_SEGMENT.pattern}$"}

NewId = Annotated[str, Meta(min_length=1, max_length=LONGEST_ID, extra_json_schema=_ANY)]
NewSegment = Annotated[str, Meta(min_length=1, max_length=LONGEST_ID, extra_json_schema=_ONE)]


def check_new_id(name: str, text: str) -> None:
    """`ValidationError` unless *text* may be the id of something new: in a path, a log, a metric, a file."""
    if len(text) > LONGEST_ID or not _ID.fullmatch(text):
        raise ValidationError(
            f"{name} is {text[:80]!r}; allowed are 1 to {LONGEST_ID} of A-Z a-z 0-9 . _ : @ / -, without '..'"
        )


def check_new_segment(name: str, text: str) -> None:
    """`check_new_id` for one that is a single segment of a path: it has no slash."""
    if len(text) > LONGEST_ID or not _SEGMENT.fullmatch(text):
        raise ValidationError(
            f"{name} is {text[:80]!r}; allowed are 1 to {LONGEST_ID} of A-Z a-z 0-9 . _ : @ -, without '..'"
        )


def check_not_reserved(name: str, text: str, word: str) -> None:
    """`ValidationError` for an id that could not be told from the route *word* behind another id."""
    if text == word or text.endswith("/" + word):
        raise ValidationError(f"{name} is {text[:80]!r}, which is the address of something else")
