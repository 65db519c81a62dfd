"""Admission across machines, through Redis or Valkey."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from interlock.admission.leased.admission import LeasedAdmission
from interlock.admission.redis.library import Library
from interlock.admission.redis.library import library as known_library
from interlock.admission.redis.link import RedisLink
from interlock.admission.redis.renewals import RedisRenewals
from interlock.admission.redis.server import Caller, check_url, shown
from interlock.admission.redis.views import view_of
from interlock.errors import InvalidOperation, ValidationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from interlock.admission.leased.asks import Ask
    from interlock.admission.permit import Acquisition
    from interlock.admission.view import View

_LONGEST_NAMESPACE = 200
_LONGEST_ID = 256


class RedisAdmission(LeasedAdmission):
    """`LocalAdmission`'s semantics, decided in a Redis or Valkey server that all processes share.

    See `LeasedAdmission`. Make one with `connect`. Limits that this process has set are set again, unless
    somebody else has, should the server lose them.

    A server that comes back empty, or another one in its place, lets nobody in for a lease: who holds
    something says so meanwhile. See ``docs/design/0004-redis.md``.
    """

    def __init__(
        self,
        url: str,
        *,
        namespace: str = "interlock",
        lease: float = 30.0,
        on_failover: Literal["quarantine", "allow"] = "quarantine",
        library: Library | None = None,
    ) -> None:
        import redis  # noqa: F401 - the extra is missed here, not in the middle of something

        check_url(url)
        if not 0 < len(namespace) <= _LONGEST_NAMESPACE:
            raise ValidationError(
                f"namespace is {namespace!r}; allowed are 1 to {_LONGEST_NAMESPACE} characters"
            )
        if on_failover not in ("quarantine", "allow"):
            raise ValidationError(f"on_failover is {on_failover!r}; allowed are quarantine and allow")
        caller = Caller(library or known_library(), namespace)
        client = self._new_client()
        self._set: dict[str, dict[str, Any]] = {}
        """Limits that this process has set, as it set them."""
        super().__init__(shown(url), lease, RedisRenewals(url, caller, client, self._limit_words), client)
        self._link: RedisLink = RedisLink(
            url,
            caller,
            lease,
            client,
            self,
            allow=on_failover == "allow",
            permit_of=self._asked_under,
        )

    @classmethod
    async def connect(
        cls,
        url: str,
        *,
        namespace: str = "interlock",
        lease: float = 30.0,
        on_failover: Literal["quarantine", "allow"] = "quarantine",
    ) -> RedisAdmission:
        """An admission that has been answered.

        Args:
            url: such as ``redis://user:password@host:6379/0``, or ``rediss://`` for TLS.
            namespace: limits are shared by those who name the same one.
            lease: seconds after which the permits of a dead process are free again.
            on_failover: ``allow`` lets newcomers in at once after a loss, at the price of going over limits.

        Raises `Unavailable` if there is no answer in half a minute, `ImportError` without
        ``interlock[redis]``.
        """
        admission = cls(url, namespace=namespace, lease=lease, on_failover=on_failover)
        try:
            await admission.refresh()
        except BaseException:
            await admission.aclose()
            raise
        return admission

    def _asked_under(self, number: int) -> str:
        ask = self._asks.get(number)
        return "" if ask is None else ask.permit_id

    # -- asking

    def _request(self, request: Acquisition) -> Ask:
        if not request.names:
            raise ValidationError("acquire needs the name of at least one limit")
        if max(len(request.key or ""), len(request.owner or "")) > _LONGEST_ID:
            raise ValidationError(f"a key or owner is too long; allowed are {_LONGEST_ID} characters")
        return super()._request(request)

    # -- limits

    async def _call(self, word: str, *arguments: Any) -> Any:
        value = await super()._call(word, *arguments)
        if word == "set_limit":
            name, limit = arguments
            self._set[name] = limit
        elif word == "remove_limit":
            self._set.pop(arguments[0], None)
        return value

    def _limit_words(self) -> list[tuple[Any, ...]]:
        return [("set_limit", 0, name, {**limit, "keep": True}) for name, limit in list(self._set.items())]

    async def call(self, word: str, *arguments: Any) -> Any:
        """Not here: raises `InvalidOperation`. A provider's gate is in a server of Interlock's."""
        raise _no_gate()

    def order(self, word: str, *arguments: Any, answered: Callable[[Any], object] | None = None) -> None:
        """Not here: raises `InvalidOperation`."""
        raise _no_gate()

    # -- what the link calls

    def greeted(self, epoch: str) -> None:
        """Say which limits there are, what is held, and what is wanted."""
        if epoch != self._epoch:
            for words in self._limit_words():
                self._link.say(words)
        self._link.say(("wants", list(self._asks)))
        super().greeted(epoch)

    def heard(self, answers: list[list[Any]], asked: float) -> None:
        """Do what the server says."""
        for answer in answers:
            if answer[0] == "view":
                _, number, version, view = answer
                read = None if view is None else (view, self._link.ahead_ms)
                self._viewed(number, version, self.clock.now(), read)
        super().heard([answer for answer in answers if answer[0] != "view"], asked)

    def _viewed(self, number: int, view_number: int, at: float, view: Any) -> None:
        if at < self._view_at:
            self._view_at = at  # a clock that was set back, not an older view: they come in order
        super()._viewed(number, view_number, at, view)

    def _read(self, view: Any) -> View:
        said, ahead_ms = view
        return view_of(said, self._view_at, ahead_ms)

    def _there(self, moment: float) -> float:
        return moment - self._link.ahead_ms / 1000


def _no_gate() -> InvalidOperation:
    return InvalidOperation("a provider's gate needs the limits in process, or a server of Interlock's")
