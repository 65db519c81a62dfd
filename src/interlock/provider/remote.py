"""The gate of a server, for the processes that share its admission.

The server has the limits, the pauses, what a 429 did and what the provider reports: one gate for the account,
however many processes call it. They ask for slots, say what they were answered, and read what it decided.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from interlock.admission.callback import call_back
from interlock.admission.permit import DEFAULT_TIMEOUT, Acquisition, Permit
from interlock.admission.readings import LimitReading
from interlock.admission.validation import check_capacity
from interlock.errors import InvalidOperation, Unavailable, ValidationError
from interlock.ledger import OPERATOR, Cause
from interlock.provider.gate import ProviderGate
from interlock.provider.policy import check_cooldowns, check_pause, check_provider
from interlock.provider.signals import REASONS
from interlock.provider.state import ProviderStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from interlock.admission.remote import RemoteAdmission
    from interlock.ports import Fenced
    from interlock.provider.signals import Reason

PREFIX = "provider:"
_CLIENT = Cause("client", "a process that shares the limits")


class RemoteGate(ProviderGate):
    """`ProviderGate` over a `RemoteAdmission`: the same calls, decided in the server.

    Its times, its usage sources and what it remembers are the server's configuration. A reading is at most a
    second old, and exact after ``await gate.admission.refresh()``. *on_pause* and *on_limit_reduced* hear of
    what this process has reported.
    """

    admission: RemoteAdmission  # type: ignore[assignment]

    def __init__(
        self,
        *,
        admission: RemoteAdmission,
        on_pause: Callable[[str, float], object] | None = None,
        on_limit_reduced: Callable[[str, int, int], object] | None = None,
        **elsewhere: Any,
    ) -> None:
        if elsewhere:
            raise ValidationError(
                f"{', '.join(elsewhere)}: the gate is the server's, so say this in its configuration"
            )
        self.admission = admission
        self.clock = admission.clock
        self._on_pause = on_pause
        self._on_limit_reduced = on_limit_reduced
        self.closed = False

    # -- asking

    def acquire(
        self,
        provider_id: str,
        conversation_id: str | None = None,
        *,
        prompt_started_at: float | None = None,
        timeout: float | None = DEFAULT_TIMEOUT,
        on_queued: Callable[[], object] | None = None,
        priority: int = 0,
        parent: Permit | None = None,
        also: tuple[str, ...] = (),
    ) -> Acquisition:
        """See `ProviderGate.acquire`."""
        check_provider(provider_id)
        request = self.admission.acquire(
            PREFIX + provider_id,
            *also,
            owner=conversation_id,
            parent=parent,
            priority=priority,
            since=prompt_started_at,
            timeout=timeout,
            on_queued=on_queued,
        )
        request.first(self._ready)
        return request

    async def _ready(self, request: Acquisition | None = None) -> None:
        if self.closed:
            raise Unavailable("the gate is closed")

    # -- 429

    def report_rate_limit(
        self,
        provider_id: str,
        retry_after: float | None = None,
        *,
        permit: Fenced | None = None,
        reason: Reason = "concurrency",
        evidence: str = "",
    ) -> None:
        """See `ProviderGate.report_rate_limit`. What is asked for after this waits behind the pause."""
        if reason not in REASONS:
            raise ValidationError(f"reason is {reason!r}; allowed are {', '.join(REASONS)}")
        check_provider(provider_id)
        self._tell(
            "report",
            provider_id,
            {"retry_after": retry_after, "fence": None if permit is None else permit.fence},
            reason,
            answered=partial(self._reported, provider_id),
        )

    def _reported(self, provider_id: str, answer: Any) -> None:
        seconds, before, after = answer
        if self._on_pause is not None:
            call_back(self._on_pause, provider_id, seconds)
        if self._on_limit_reduced is not None and after != before:
            call_back(self._on_limit_reduced, provider_id, after, before)

    def pause(self, provider_id: str, seconds: float) -> None:
        """See `ProviderGate.pause`."""
        check_provider(provider_id)
        check_pause(seconds)
        self._tell("pause", provider_id, {"seconds": seconds})

    def resume(self, provider_id: str) -> None:
        """See `ProviderGate.resume`."""
        check_provider(provider_id)
        self._tell("resume", provider_id, {})

    # -- settings

    async def set_limit(self, provider_id: str, limit: int | None, *, cause: Cause = OPERATOR) -> None:
        """See `ProviderGate.set_limit`; the server knows who we are."""
        check_provider(provider_id)
        if limit is not None:
            check_capacity(PREFIX + provider_id, limit)
        await self.admission.call("gate", "set_limit", provider_id, {"limit": limit}, None)

    async def remove_limit(self, provider_id: str, *, cause: Cause = OPERATOR) -> bool:
        """See `ProviderGate.remove_limit`."""
        check_provider(provider_id)
        known: bool = await self.admission.call("gate", "remove_limit", provider_id, {}, None)
        return known

    def preset(self, provider_id: str, limit: int | None, **rest: Any) -> None:
        """Not here: a configuration file is the server's to read. Raises `InvalidOperation`."""
        raise InvalidOperation("a provider of a server is configured at the server")

    async def set_cooldown(
        self,
        provider_id: str,
        cooldown: float | None,
        *,
        cancelled: float | None = None,
        failed: float | None = None,
    ) -> None:
        """See `ProviderGate.set_cooldown`."""
        check_provider(provider_id)
        more = {"cooldown": cooldown, "cancelled": cancelled, "failed": failed}
        check_cooldowns(**more)
        await self.admission.call("gate", "set_cooldown", provider_id, more, None)

    async def load(self) -> None:
        """Read what there is at the server."""
        await self.admission.refresh()

    # -- readings

    def get_limit(self, provider_id: str) -> int | None:
        """The limit in force."""
        return self.limits().get(provider_id)

    def limits(self) -> dict[str, int]:
        """Every limit in force."""
        found = {one.provider_id: one.limit for one in self.statuses()}
        return {name: limit for name, limit in found.items() if limit is not None}

    def cooldowns(self) -> dict[str, float]:
        """The cooldown in force of every provider that has a limit or a cooldown of its own."""
        cooldowns: dict[str, float] = self._part().get("cooldowns", {})
        return cooldowns

    def status(self, provider_id: str) -> ProviderStatus | None:
        """One provider; None if it has neither a limit nor a pause."""
        return next((one for one in self.statuses() if one.provider_id == provider_id), None)

    def statuses(self) -> tuple[ProviderStatus, ...]:
        """Every provider that has a limit or a pause, by name."""
        return tuple(ProviderStatus(**one) for one in self._part().get("statuses", ()))

    def reading(self, provider_id: str) -> LimitReading:
        """What is in flight at *provider_id*; ``capacity`` is the limit in force."""
        check_provider(provider_id)
        name = PREFIX + provider_id
        return self.admission.limits().get(name) or LimitReading(name, None, 0, 0, 0, None, False)

    def _part(self) -> dict[str, Any]:
        part: dict[str, Any] = self.admission.part("gate")
        return part

    # -- the end

    async def aclose(self) -> None:
        """Stop admitting: this process's queued acquires end with `Unavailable`. The server goes on."""
        self.closed = True
        self.admission.turn_away(PREFIX, Unavailable("the gate was closed while this waited"))

    # -- inside

    def _tell(
        self,
        what: str,
        provider_id: str,
        more: dict[str, float | None],
        reason: Reason | None = None,
        answered: Callable[[Any], object] | None = None,
    ) -> None:
        self.admission.order("gate", what, provider_id, more, reason, answered=answered)


class _Granted(NamedTuple):
    """A permit of a client's, which it may have released by now."""

    fence: int


class ServedGate:
    """The other end, at the server: *gate* does what the `RemoteGate` of a client says.

    What is said has the right names, but any values: the gate's own checks are the ones that count.
    """

    def __init__(self, gate: ProviderGate) -> None:
        self._gate = gate

    def know(self, names: Iterable[str]) -> None:
        """Count the providers among the limits *names*, whether they have a limit or not."""
        for name in names:
            if name.startswith(PREFIX):
                self._gate.reading(name.removeprefix(PREFIX))

    def part(self) -> dict[str, Any]:
        """What there is to read, for the view of all clients."""
        statuses = [asdict(status) for status in self._gate.statuses()]
        return {"statuses": statuses, "cooldowns": self._gate.cooldowns()}

    def carry_out(
        self, order: str, provider_id: str, more: Mapping[str, float | None], reason: Reason | None = None
    ) -> Any:
        """The answer to *order*, or something to await for it. Raises `InterlockError`."""
        gate = self._gate
        orders: dict[str, Callable[..., Any]] = {
            "report": partial(self._report, reason=reason or "concurrency"),
            "pause": gate.pause,
            "resume": gate.resume,
            "set_limit": partial(gate.set_limit, cause=_CLIENT),
            "remove_limit": partial(gate.remove_limit, cause=_CLIENT),
            "set_cooldown": gate.set_cooldown,
        }
        try:
            return orders[order](provider_id, **more)
        except TypeError as error:  # it says more than belongs to this order, or less
            raise ValidationError(f"the gate was given no proper {order!r}: {error}") from None

    def _report(
        self, provider_id: str, retry_after: float | None, fence: int | None, reason: Reason
    ) -> tuple[float, int | None, int | None]:
        """For how long it is paused, and its limit before and after."""
        gate = self._gate
        permit = None if fence is None else _Granted(fence)
        before = gate.get_limit(provider_id)
        gate.report_rate_limit(
            provider_id, retry_after, permit=permit, reason=reason, evidence=f"{reason}, told by a client"
        )
        until = gate.reading(provider_id).paused_until or gate.clock.now()
        return until - gate.clock.now(), before, gate.get_limit(provider_id)
