"""Bodies read strictly: any bytes in, a value or a clear 400 out."""

from __future__ import annotations

import asyncio
import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn, TypeVar

import msgspec
from msgspec import Meta

from interlock.errors import ValidationError
from interlock.http.problems import NotJson, TooLarge

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

MOST_BYTES: Final = 64 * 1024
"""Of a body, unless its route says otherwise."""
MOST_DEEP: Final = 64
"""Levels of a body: what reads it later may be less patient than we are."""
MOST_KEYS: Final = 10_000
MOST_WHOLE: Final = 2**53
"""The largest whole number that every reader of JSON has as it was written."""
_OFF_THE_LOOP: Final = 256 * 1024
"""From so many bytes on a body is read in a thread."""
_STRING: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
"""A string, be it one that does not end: nothing of it is looked at twice."""
_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))

JSON: Final = "#/components/schemas/Json"
JSON_SCHEMA: Final[dict[str, Any]] = {
    "description": f"Anything, at most {MOST_DEEP} levels deep; whole numbers up to 2^53.",
    "anyOf": [
        {"type": ["null", "boolean", "string"]},
        {"type": "number", "minimum": -MOST_WHOLE, "maximum": MOST_WHOLE},
        {"type": "array", "items": {"$ref": JSON}},
        {"type": "object", "additionalProperties": {"$ref": JSON}},
    ],
}
"""What an `Object` may hold, for the API's description."""

Object = Annotated[dict[str, Any], Meta(extra_json_schema={"additionalProperties": {"$ref": JSON}})]

T = TypeVar("T")


async def read_body(
    request: Request,
    kind: type[T],
    most: int = MOST_BYTES,
    *,
    otherwise: T | None = None,
    most_keys: int = MOST_KEYS,
) -> T:
    """The JSON body as a *kind*; *otherwise* where there may be none, and is none.

    Raises `ValidationError` naming what is wrong, `TooLarge` over *most* bytes, and `NotJson` for a body that
    says it is something else: forms are what a foreign web page may send without being asked.
    """
    media = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if media != "application/json" and not media.endswith("+json"):
        raise NotJson(f"content-type is {media[:80]!r}; send the body as application/json")
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > most:
            raise TooLarge(f"the body is too large; allowed are {most} bytes")
    if otherwise is not None and not body:
        return otherwise
    if len(body) > _OFF_THE_LOOP:
        return await asyncio.to_thread(decoded, bytes(body), kind, most_keys=most_keys)
    return decoded(bytes(body), kind, most_keys=most_keys)


def decoded(body: bytes, kind: type[T], *, most_keys: int = MOST_KEYS) -> T:
    """*body* as a *kind*; `ValidationError` says where it is none."""
    if _depth(body) > MOST_DEEP:
        raise _refused(f"it is nested too deeply; allowed are {MOST_DEEP} levels")
    try:
        value = msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        return _with_whole_floats(body, kind, most_keys, f"the body is refused: {error}")
    except (msgspec.DecodeError, UnicodeError) as error:
        raise ValidationError(f"the body is not JSON: {error}") from None
    _check(body, most_keys)
    return value


def _with_whole_floats(body: bytes, kind: type[T], most_keys: int, otherwise: str) -> T:
    """*body* as a *kind* where 52.0 is 52, as JSON has it; *otherwise* says what is wrong if it is none."""
    try:
        return msgspec.json.decode(msgspec.json.encode(_check(body, most_keys, whole_number)), type=kind)
    except (ValueError, RecursionError):  # it may be no JSON behind the place where it was refused
        raise ValidationError(otherwise) from None


def _check(body: bytes, most_keys: int, number: Callable[[str], int | float] | None = None) -> Any:
    """*body* as it is, its fractions as *number* makes them.

    `ValidationError` for what JSON allows and its readers understand in different ways; `ValueError` for
    what is no JSON.
    """
    return json.loads(
        body.decode(),
        object_pairs_hook=_Keys(most_keys).add,
        parse_int=_whole,
        parse_float=number or _number,
        parse_constant=_no_number,
    )


def _depth(body: bytes) -> int:
    """How deeply *body* is nested, told without following it there."""
    deepest = depth = 0
    for bracket in _STRING.sub(b"", body).translate(None, _BRACKETS):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


@dataclass
class _Keys:
    """Counts the members of all objects, and looks at those of each."""

    most: int
    seen: int = 0

    def add(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        self.seen += len(pairs)
        if self.seen > self.most:
            raise _refused(f"it has too many members; allowed are {self.most}")
        found = dict(pairs)
        if len(found) < len(pairs):
            seen: set[str] = set()
            twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            raise _refused(f"it has the member {twice[:80]!r} twice")
        return found


def _whole(digits: str) -> int:
    # A number of thousands of digits costs time that grows with their square.
    if len(digits) > 17 or abs(int(digits)) > MOST_WHOLE:
        raise _refused(f"{digits[:40]} is too large; allowed are whole numbers up to 2^53")
    return int(digits)


def _number(digits: str) -> float:
    if not math.isfinite(number := float(digits)):
        raise _refused(f"{digits[:40]} is too large for a number")
    return number


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def whole_number(digits: str) -> int | float:
    """What a fraction says, as a whole number if it is one: 52.0 is 52."""
    number = _number(digits)
    return int(number) if number.is_integer() and abs(number) <= MOST_WHOLE else number


def _refused(why: str) -> ValidationError:
    return ValidationError(f"the body is refused: {why}")
