"""Lists in pages that stay small, whatever is in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import msgspec

from interlock.errors import RunNotFound, SessionNotFound, ValidationError
from interlock.http.problems import encoded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

_AT_ONCE = 10
"""So many are read before their size is looked at."""
MOST_PAGE_BYTES: Final = 8 << 20
"""A page that has become as large ends there: inputs and outputs may be megabytes each."""


class _Listed(Protocol):
    @property
    def id(self) -> str: ...


T = TypeVar("T", bound=_Listed)


async def page(
    name: str,
    read: Callable[[str | None, int], Awaitable[list[T]]],
    said: Callable[[list[T]], Awaitable[Sequence[Any]]],
    *,
    after: str | None,
    limit: int,
) -> dict[str, Any]:
    """At most *limit* of what *read* gives behind *after*, as *said*, under *name*; and where to go on.

    *read* is given the id to start behind, and how many. Raises `ValidationError` where nothing has that id.
    """
    pieces: list[msgspec.Raw] = []
    size, more = 0, True
    while more and len(pieces) < limit and size < MOST_PAGE_BYTES:
        wanted = min(_AT_ONCE, limit - len(pieces))
        try:
            found = await read(after, wanted + 1)
        except (SessionNotFound, RunNotFound):
            raise ValidationError(
                f"after is {after!r}, which is unknown; give what the page before has as next"
            ) from None
        shown, more = found[:wanted], len(found) > wanted
        for one, answer in zip(shown, await said(shown), strict=True):
            pieces.append(msgspec.Raw(encoded(answer)))
            size += len(pieces[-1])
            after = one.id
    return {name: pieces, "next": after if more else None}
