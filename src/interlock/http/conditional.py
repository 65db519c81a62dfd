"""Settings under conditions (RFC 9110, 13): only if they are what the caller has seen, or not there yet."""

from __future__ import annotations

import re
from hashlib import sha256
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from msgspec import UNSET, Meta, UnsetType
from starlette.responses import Response

from interlock.errors import ValidationError
from interlock.http.problems import PreconditionFailed, encoded, json

if TYPE_CHECKING:
    from starlette.requests import Request

_TAG: Final = re.compile(r'(W/)?"([\x21\x23-\x7e]*)"')
_TAGS = Annotated[
    str,
    Meta(
        description='`*`, or tags as `ETag` has them: `"8a1f…", "03bc…"`.',
        extra_json_schema={"pattern": r'^(\*|(W/)?"[!#-~]*"( *, *(W/)?"[!#-~]*")*)$'},
    ),
]


class Unchanged(msgspec.Struct, rename={"if_none_match": "If-None-Match"}):
    """The header of a reading: 304 if it is still one of these."""

    if_none_match: _TAGS | UnsetType = UNSET


class Condition(msgspec.Struct, rename={"if_match": "If-Match", "if_none_match": "If-None-Match"}):
    """The header of a change: 412 unless it is one of these, or none of those."""

    if_match: _TAGS | UnsetType = UNSET
    if_none_match: _TAGS | UnsetType = UNSET


def tag_of(settings: Any) -> str:
    """The entity tag of *settings*: the same settings, the same tag."""
    return f'"{sha256(encoded(settings)).hexdigest()[:32]}"'


def tagged(request: Request, settings: Any) -> Response:
    """*settings* with their ``ETag``; 304 for who has them already."""
    tag = tag_of(settings)
    known = _tags(request, "if-none-match")
    if known is not None and ("*" in known or tag in {one.removeprefix("W/") for one in known}):
        return Response(status_code=304, headers={"etag": tag})
    return json(settings, headers={"etag": tag})


def check(request: Request, settings: Any) -> None:
    """`PreconditionFailed` if the request wants other *settings* to be there; None where there are none."""
    tag = None if settings is None else tag_of(settings)
    wanted, unwanted = _tags(request, "if-match"), _tags(request, "if-none-match")
    if wanted is not None and (tag is None or not {"*", tag} & wanted):
        said = "there is none" if tag is None else f"it is {tag} by now; read it again"
        raise PreconditionFailed(f"If-Match does not hold: {said}")
    if unwanted is not None and tag is not None and {"*", tag, f"W/{tag}"} & unwanted:
        raise PreconditionFailed("If-None-Match does not hold: it is there already")


def _tags(request: Request, name: str) -> set[str] | None:
    """What the field lists; None where there is none."""
    fields = request.headers.getlist(name)
    if not fields:
        return None
    text = ",".join(fields).strip()
    if text == "*":
        return {"*"}
    found: set[str] = set()
    for part in re.findall(r'(?:W/)?"[^"]*"|[^,\s]+', text):
        if not _TAG.fullmatch(part):
            raise ValidationError(f"{name} has {part[:80]!r}; allowed are '*', or tags as ETag has them")
        found.add(part)
    if not found:
        raise ValidationError(f"{name} is empty; allowed are '*', or tags as ETag has them")
    return found
