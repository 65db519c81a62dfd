"""What the server is asked: one `Ask` for each thing, and the words that say it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from interlock.admission.leased.leases import Held, now
from interlock.admission.permit import Permit
from interlock.admission.validation import check_seconds
from interlock.errors import ValidationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from interlock.admission.permit import Acquisition
    from interlock.errors import InterlockError


class RemotePermit(Permit):
    """A permit of the server's; its id is what the server calls it."""

    __slots__ = ()

    @property
    def id(self) -> str:
        record = self._record
        assert isinstance(record, Held)
        return record.id


class Ask:
    """Something that the server has to answer: said until it does, or until nobody waits for it."""

    timer: asyncio.TimerHandle | None = None
    since: float | None = None
    shared = False
    """Whether others may ask for the same permit: it has a key of the caller's."""
    told: Callable[[], object] | None = None
    queued = False
    """Whether the server has said that it has to wait."""
    said = 0
    names: tuple[str, ...] = ()
    """Of the limits that it is for, if it waits for limits."""
    late = False
    """Whether time has passed since it was made: it says how much."""
    held: Held | None = None
    value: Any = None
    error: InterlockError | None = None

    def __init__(
        self, number: int, words: Callable[[Ask], tuple[Any, ...]], permit_id: str, timeout: float | None
    ) -> None:
        self.number = number
        self.words = words
        self.permit_id = permit_id
        """Of the permit that comes of it; "" if none does."""
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.asked_at = now()
        self.deadline = None if timeout is None else self.asked_at + timeout

    def settle(self) -> None:
        """Wake who waits."""
        if self.timer is not None:
            self.timer.cancel()
        if not self.future.done():
            self.future.set_result(None)

    @property
    def age(self) -> float:
        return now() - self.asked_at

    @property
    def patience(self) -> float | None:
        """Seconds left until its deadline."""
        return None if self.deadline is None else max(0.0, self.deadline - now())


def hold_words(held: Held, *, adopt: bool, lease: float | None = None) -> tuple[Any, ...]:
    """That *held* is held, and for how long it is to be; a lease that its holder chose is not made longer."""
    if lease is None:
        lease = held.lease_seconds if held.kept else max(0.001, held.until - now())
    over = None if held.over is None else held.over.id
    return ("hold", held.id, held.fence, held.claims.names, held.owner, over, lease, adopt)


def more_words(request: Acquisition) -> dict[str, Any]:
    """What *request* says besides its names; `ValidationError` for what the server could not even read."""
    check_seconds("timeout", request.timeout)
    check_seconds("since", request.since)
    check_seconds("lease", request.lease)
    texts = (*request.names, request.key, request.owner)
    if not all(text is None or isinstance(text, str) for text in texts):
        raise ValidationError(f"names, key and owner are {texts!r}; allowed are texts")
    if isinstance(request.priority, bool) or not isinstance(request.priority, int):
        raise ValidationError(f"priority is {request.priority!r}; allowed are whole numbers")
    more: dict[str, Any] = {"timeout": request.timeout}
    if request.owner is not None:
        more["owner"] = request.owner
    if request.parent is not None:
        more["parent"] = request.parent.id
    if request.priority:
        more["priority"] = request.priority
    if request.since is not None:
        more["since"] = request.since
    if request.lease is not None:
        more["lease"] = request.lease
    return more
