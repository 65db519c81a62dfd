"""What is answered about permits and about who waits for one."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import asdict
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any, Final, NotRequired, TypedDict, cast

from interlock.admission.wire import is_generated
from interlock.core.explain import Why  # noqa: TC001 - the API's description reads it

if TYPE_CHECKING:
    from collections.abc import Sequence

    from interlock.admission.readings import Explanation, Holder, Waiting
    from interlock.core import model


PLACE: Final = "^-?[0-9]{1,4}:[0-9]{1,16}:[0-9]{1,16}:"
"""How a place in line begins; the id of who stood there follows."""


class PermitAnswer(TypedDict):
    """A permit that is held until its lease ends, unless it is renewed or released."""

    id: str
    fence: int
    limits: list[str]
    key: NotRequired[str]
    owner: NotRequired[str]
    grantedAt: int
    expiresAt: NotRequired[int]


class RenewedAnswer(TypedDict):
    """When the lease ends now."""

    expiresAt: int


class RenewalsAnswer(TypedDict):
    """Those permits that are lost, and which start of the server says so."""

    lost: list[str]
    epoch: str


class ReleasedAnswer(TypedDict):
    """Whether this released it."""

    released: bool


class WithdrawnAnswer(TypedDict):
    """The wait has ended."""

    withdrawn: bool


class WaitingAnswer(TypedDict):
    """Who waits: since when, until when, and how many go first."""

    id: str
    key: NotRequired[str]
    owner: NotRequired[str]
    limits: list[str]
    priority: int
    since: int
    arrivedAt: int
    deadline: NotRequired[int]
    position: int


class WaitingPage(TypedDict):
    """Who waits, in the order in which they would go."""

    waiting: list[WaitingAnswer]
    next: str | None


class HolderAnswer(TypedDict):
    """Who holds a permit over a limit."""

    id: str
    key: NotRequired[str]
    owner: NotRequired[str]
    limits: list[str]
    fence: int
    grantedAt: int
    touchedAt: NotRequired[int]


class BlockAnswer(TypedDict):
    """One limit that keeps somebody out, and why."""

    limit: str
    why: Why
    missing: int
    used: int
    capacity: int | None
    until: int | None
    ahead: list[str]
    holders: list[HolderAnswer]
    text: str


class ExplanationAnswer(WaitingAnswer):
    """Who waits, and for what."""

    blocks: list[BlockAnswer]
    text: str


def permit_said(record: model.Permit, limits: tuple[str, ...]) -> PermitAnswer:
    """A permit as who asked for it is told."""
    body = {
        "id": record.key,
        "fence": record.fence,
        "limits": limits,
        "key": None if is_generated(record.key) else record.key,
        "owner": record.owner,
        "grantedAt": record.granted_ms,
        "expiresAt": record.expires_ms,
    }
    return cast("PermitAnswer", _there(body))


def waiting_said(waiting: Waiting) -> WaitingAnswer:
    """One who waits."""
    body = _camel(asdict(waiting))
    body |= {name: _ms(body[name]) for name in ("since", "arrivedAt", "deadline")}
    if is_generated(waiting.key):
        body["key"] = None
    return cast("WaitingAnswer", _there(body))


def place_of(waiting: Waiting) -> str:
    """Where *waiting* stands in line, in words that are understood also when they have gone."""
    return ":".join(map(str, (*_rank(waiting), waiting.id)))


def place_behind(line: Sequence[Waiting], place: str) -> int:
    """The index of the first in *line* who stands behind *place*."""
    *digits, waiter_id = place.split(":", 3)
    rank = tuple(map(int, digits))
    start = bisect_left(line, rank, key=_rank)
    equal = takewhile(lambda one: _rank(one) == rank, islice(line, start, None))
    return next((index + 1 for index, one in enumerate(equal, start) if one.id == waiter_id), start)


def _rank(waiting: Waiting) -> tuple[int, ...]:
    return waiting.priority, round(waiting.since * 1000), round(waiting.arrived_at * 1000)


def explanation_said(found: Explanation) -> ExplanationAnswer:
    """One who waits, and why."""
    blocks = [
        {
            **_camel(asdict(block)),
            "holders": [_holder(holder) for holder in block.holders],
            "until": _ms(block.until),
            "text": str(block),
        }
        for block in found.blocks
    ]
    return cast("ExplanationAnswer", {**waiting_said(found.waiter), "blocks": blocks, "text": str(found)})


def _holder(holder: Holder) -> dict[str, Any]:
    body = _camel(asdict(holder))
    body |= {name: _ms(body[name]) for name in ("grantedAt", "touchedAt")}
    if is_generated(holder.key):
        body["key"] = None
    return _there(body)


def _there(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if value is not None}


def _camel(body: dict[str, Any]) -> dict[str, Any]:
    return {
        word + "".join(part.capitalize() for part in rest): value
        for name, value in body.items()
        for word, *rest in (name.split("_"),)
    }


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)
