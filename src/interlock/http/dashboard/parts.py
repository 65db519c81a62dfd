"""Pieces of a page: each has an id, a template and values, and is sent again when its values have changed.

Values are state alone. How long ago something was is worked out by whoever looks at it, so that a page on
which nothing happens costs nothing.
"""

from __future__ import annotations

import re
from functools import cache
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MOST_SHOWN: Final = 64
"""Characters of a foreign name."""
_STEERS: Final = re.compile(
    "[\\x00-\\x1f\\x7f-\\x9f\\u061c\\u200b-\\u200f\\u2028-\\u202e\\u2060-\\u2069\\ufeff\\ud800-\\udfff]"
)
"""Control characters, invisible ones, and those that turn the direction of writing."""


class Part(NamedTuple):
    """One piece; a list has others *inside*, which are sent one by one while they stay the same ones."""

    id: str
    template: str
    values: Mapping[str, Any]
    inside: tuple[Part, ...] = ()

    def html(self) -> Markup:
        """The whole piece."""
        inside = Markup().join(part.html() for part in self.inside)
        macro = getattr(_macros(), self.template)
        return Markup(macro(self.id, self.values, inside))  # noqa: S704 - escaped by the template


class Told:
    """What somebody has been sent of a page."""

    def __init__(self) -> None:
        self._parts: dict[str, Part] = {}

    def whole(self, parts: Sequence[Part]) -> str:
        """The page, as one piece."""
        self._note(parts)
        return "".join(part.html() for part in parts)

    def knows(self, parts: Sequence[Part]) -> bool:
        """Whether the page has places for all of *parts*."""
        return list(self._parts) == _ids(parts)

    def patch(self, parts: Sequence[Part]) -> str:
        """What of the page is not as it was sent, each piece for its place; empty if all is."""
        pieces: list[str] = []
        for part in parts:
            old = self._parts.get(part.id)
            if old == part:
                continue
            same = old is not None and (old.template, old.values) == (part.template, part.values)
            if not same or old is None or _ids(old.inside) != _ids(part.inside):
                pieces.append(_piece(part))
            else:
                before = {one.id: one for one in old.inside}
                pieces += [_piece(one) for one in part.inside if before[one.id] != one]
        self._note(parts)
        return "".join(pieces)

    def _note(self, parts: Sequence[Part]) -> None:
        self._parts = {part.id: part for part in parts}


def place(kind: str, name: str) -> str:
    """The id of the part of this *kind* that stands for *name*, whatever characters that has."""
    return f"{kind}-{sha256(name.encode('utf-8', 'replace')).hexdigest()[:12]}"


def shown(text: object, most: int = MOST_SHOWN) -> str:
    """A foreign *text* as it may stand on a page: what is invisible is spelt, what is long is cut."""
    line = str(text)
    line = f"{line[:most]}…" if len(line) > most else line
    return _STEERS.sub(lambda one: ascii(one[0])[1:-1], line)


def render(template: str, **values: Any) -> str:
    """A whole document."""
    return _environment().get_template(template).render(values)


def _ids(parts: Sequence[Part]) -> list[str]:
    return [part.id for part in parts]


def _piece(part: Part) -> str:
    return f'<hx-partial hx-target="#{part.id}" hx-swap="outerMorph">{part.html()}</hx-partial>\n'


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("interlock.http.dashboard"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters["shown"] = shown
    return environment


@cache
def _macros() -> Any:
    return _environment().get_template("parts.html").module
