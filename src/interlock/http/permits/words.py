"""The operations that a client of the admission sends, as strictly as they are read."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

_Word = msgspec.Struct
Lease = Annotated[float, Meta(gt=0, le=86_400)]


class Hello(_Word, array_like=True, tag="hello", forbid_unknown_fields=True):
    """The first word: the version that is spoken, and for how many seconds permits are leased."""

    version: int
    lease: Lease
    client: str


class More(_Word, forbid_unknown_fields=True):
    """What a plain request does not say; times in seconds, *age* since the request was made."""

    owner: str | None = None
    parent: str | None = None
    priority: int = 0
    since: float | None = None
    age: float = 0.0
    timeout: float | None = None
    lease: Lease | None = None


class Acquire(_Word, array_like=True, tag="acquire", forbid_unknown_fields=True):
    """A permit over *names*, to be held under *id*."""

    ask: int
    id: str
    names: tuple[str, ...]
    more: More


class Withdraw(_Word, array_like=True, tag="withdraw", forbid_unknown_fields=True):
    """The request of this number is wanted no more, nor the permit *id* that it may have got; "" is none."""

    ask: int
    id: str


class Release(_Word, array_like=True, tag="release", forbid_unknown_fields=True):
    """The permit is given back."""

    id: str
    fence: int
    outcome: Literal["success", "cancelled", "failed", "unused"]


class Touch(_Word, array_like=True, tag="touch", forbid_unknown_fields=True):
    """The work under the permit goes on."""

    id: str
    fence: int


class Hold(_Word, array_like=True, tag="hold", forbid_unknown_fields=True):
    """The client has this permit, and *adopt*s it should this server not know it."""

    id: str
    fence: int
    names: tuple[str, ...]
    owner: str | None
    parent: str | None
    lease: Lease
    adopt: bool


class Lend(_Word, array_like=True, tag="lend", forbid_unknown_fields=True):
    """The units of the permit are given back for a while."""

    id: str
    fence: int


class Reclaim(_Word, array_like=True, tag="reclaim", forbid_unknown_fields=True):
    """The units of a lent permit are wanted back."""

    ask: int
    id: str
    fence: int
    timeout: float | None


class Limit(_Word, forbid_unknown_fields=True):
    """What a limit is set to."""

    capacity: int | None
    cooldown: float = 0.0
    cooldown_cancelled: float | None = None
    cooldown_failed: float | None = None
    queue_max: int | None = None


class SetLimit(_Word, array_like=True, tag="set_limit", forbid_unknown_fields=True):
    """A limit is made or changed."""

    ask: int
    name: str
    limit: Limit


class RemoveLimit(_Word, array_like=True, tag="remove_limit", forbid_unknown_fields=True):
    """A limit is removed."""

    ask: int
    name: str


class ReleaseOwner(_Word, array_like=True, tag="release_owner", forbid_unknown_fields=True):
    """All that an owner holds or waits for is ended."""

    ask: int
    owner: str


class Gate(_Word, array_like=True, tag="gate", forbid_unknown_fields=True):
    """An order to the gate of a provider; what it says *more* is checked where it is carried out."""

    ask: int
    order: Literal["report", "pause", "resume", "set_limit", "remove_limit", "set_cooldown"]
    provider: str
    more: dict[str, int | float | None]
    reason: Literal["concurrency", "rate", "overload", "quota"] | None


class Look(_Word, array_like=True, tag="view", forbid_unknown_fields=True):
    """A view, unless it is the one *seen* last."""

    ask: int
    whole: bool
    seen: int


Operation = (
    Hello
    | Acquire
    | Withdraw
    | Release
    | Touch
    | Hold
    | Lend
    | Reclaim
    | SetLimit
    | RemoveLimit
    | ReleaseOwner
    | Gate
    | Look
)
_decode = msgspec.json.Decoder(list[Operation]).decode


class Misspoken(Exception):
    """What came is no message; the text says why."""


def operations(message: bytes | str) -> list[Operation]:
    """*message* as its operations; raises `Misspoken` for anything else."""
    try:
        return _decode(message)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise Misspoken(f"{error}") from None
