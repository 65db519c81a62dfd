"""Queries read strictly: typed by a struct, as the API's description has them; a slip of the pen is named."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
from msgspec import Meta
from msgspec import inspect as types

from interlock.errors import ValidationError

if TYPE_CHECKING:
    from starlette.requests import Request


class Query(msgspec.Struct, rename="camel", kw_only=True):
    """The parameters of a query. None are known to this one."""


class AnyQuery(Query):
    """Of a route that does not look at its query, for the sake of an original that does not."""


MOST_LISTED = 1000


class Paged(Query):
    """A part of a list: *after* is the ``next`` of the page before."""

    limit: Annotated[int, Meta(ge=1, le=MOST_LISTED, description="The most that one page has.")] = 100
    after: Annotated[str, Meta(min_length=1, description="The `next` of the page before.")] | None = None


Q = TypeVar("Q", bound=Query)


def read_query(request: Request, kind: type[Q]) -> Q:
    """What the query of *request* says. Raises `ValidationError` naming the parameter and what is allowed."""
    given = request.query_params
    known = _fields(kind)
    values: dict[str, Any] = {}
    for name in given:
        if name not in known:
            there = f"known are: {', '.join(known)}" if known else "there are none"
            raise ValidationError(f"unknown query parameter {name[:80]!r}; {there}")
        field, wanted = known[name]
        texts = given.getlist(name)
        if isinstance(wanted, types.CollectionType | types.VarTupleType):
            values[field] = tuple(_value(name, text, wanted.item_type) for text in texts)
        elif len(texts) > 1:
            raise ValidationError(f"{name} is given {len(texts)} times; allowed is once")
        else:
            values[field] = _value(name, texts[0], wanted)
    return kind(**values)


@lru_cache(maxsize=256)
def _fields(kind: type[Query]) -> dict[str, tuple[str, types.Type]]:
    """By the name in the query: the field, and its type where it is not None."""
    info = types.type_info(kind)
    assert isinstance(info, types.StructType)
    return {field.encode_name: (field.name, _bare(field.type)) for field in info.fields}


def _bare(kind: types.Type) -> types.Type:
    while isinstance(kind, types.Metadata):
        kind = kind.type
    if isinstance(kind, types.UnionType):
        [one] = [_bare(one) for one in kind.types if not isinstance(one, types.NoneType)]
        return one
    return kind


def _value(name: str, text: str, kind: types.Type) -> Any:
    kind = _bare(kind)
    if isinstance(kind, types.IntType):
        return whole(name, text, kind.ge or 0, 2**53 if kind.le is None else kind.le)
    if isinstance(kind, types.LiteralType):
        if text not in kind.values:
            raise ValidationError(f"{name} is {text[:80]!r}; allowed are {', '.join(map(str, kind.values))}")
        return text
    assert isinstance(kind, types.StrType), f"a query has no {kind!r}"
    least, most = kind.min_length or 0, kind.max_length
    if len(text) < least or (most is not None and len(text) > most):
        allowed = f"{least} characters or more" if most is None else f"{least} to {most} characters"
        raise ValidationError(f"{name} is {text[:80]!r}; allowed are {allowed}")
    if kind.pattern is not None and not re.search(re.sub(r"\$$", r"\\Z", kind.pattern), text):
        raise ValidationError(f"{name} is {text[:80]!r}; allowed is what matches {kind.pattern}")
    return text


def whole(name: str, text: str, least: int = 0, most: int = 2**53) -> int:
    """The number that *text* writes; `ValidationError` unless it is one from *least* to *most*."""
    if text.isascii() and text.isdecimal() and len(text) <= 16 and least <= int(text) <= most:
        return int(text)
    raise ValidationError(f"{name} is {text[:80]!r}; allowed are whole numbers from {least} to {most}")
