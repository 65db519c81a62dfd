"""What is known of one provider, and how it is told."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from interlock.core import headroom as headrooms
from interlock.core.headroom import Headroom
from interlock.provider.persistence import CooldownSetting, ProviderRecord

if TYPE_CHECKING:
    from interlock.admission.readings import LimitReading
    from interlock.ports import TimerHandle
    from interlock.provider.policy import ProviderPolicy
    from interlock.provider.poller import UsagePoller
    from interlock.provider.signals import Reason


Refusals: TypeAlias = Counter[tuple[str, "Reason"]]
"""How often each provider said "too much", by its id and the reason."""


@dataclass(frozen=True, slots=True)
class ProviderStatus:
    """One provider at one moment. ``in_flight`` includes ``cooling``; times are seconds (since the epoch).

    ``limit`` is in force, ``configured_limit`` the operator's; ``reason`` is that of the last 429 while
    it still pauses or reduces; ``upstream_in_flight`` and ``upstream_limit`` are what the provider reported
    last, while that is fresh.
    """

    provider_id: str
    limit: int | None
    configured_limit: int | None
    in_flight: int
    cooling: int
    queued: int
    paused: bool
    paused_until: float | None
    cooldown: float
    auto_reduced: bool
    auto_reduced_from: int | None
    notice: str | None
    upstream_in_flight: int | None
    reason: Reason | None
    upstream_limit: int | None = None


class Provider:
    """What the gate knows about one provider; what is in flight there is the kernel's to know."""

    def __init__(self, provider_id: str, policy: ProviderPolicy) -> None:
        self.id = provider_id
        self.limit_name = f"provider:{provider_id}"
        self.policy = policy
        self.headroom = Headroom()
        self.operator_limit: int | None = None
        """What `set_limit` said, which outlives a configuration file's limit."""
        self.cooldown: CooldownSetting | None = None
        self.preset_cooldown = CooldownSetting(policy.default_cooldown)
        self.reason: Reason | None = None
        self.reported_until = 0.0
        """Until when a 429 has paused it, as against the operator."""
        self.preset_limit: int | None = None
        self.removed = False
        """The operator took a configuration file's limit away."""
        self.poller: UsagePoller | None = None
        self.recovery: TimerHandle | None = None
        self.recovery_loop: object = None
        """The event loop in which that timer is set."""

    @property
    def notice(self) -> str | None:
        if not self.headroom.reduced:
            return None
        then = (
            f"recovering towards {self.headroom.configured}"
            if self.policy.recovery == "probe"
            else "restore manually when ready"
        )
        return f"Concurrency limit auto-reduced to {self.headroom.effective} after a 429 — {then}."

    @property
    def cooldown_in_force(self) -> CooldownSetting:
        return self.cooldown or self.preset_cooldown

    def status(self, reading: LimitReading) -> ProviderStatus:
        """Itself, as its limit is *reading*."""
        usage = None if self.poller is None else self.poller.fresh
        paused_until = reading.paused_until
        said = paused_until is not None and paused_until <= self.reported_until + 0.001
        return ProviderStatus(
            provider_id=self.id,
            limit=self.headroom.effective,
            configured_limit=self.headroom.configured,
            in_flight=reading.used,
            cooling=reading.cooling,
            queued=reading.waiting,
            paused=paused_until is not None,
            paused_until=paused_until,
            cooldown=self.cooldown_in_force.success,
            auto_reduced=self.headroom.reduced,
            auto_reduced_from=self.headroom.reduced_from,
            notice=self.notice,
            upstream_in_flight=None if usage is None else usage.concurrent_sessions,
            upstream_limit=None if usage is None else usage.limit,
            reason=self.reason if said or self.headroom.reduced else None,
        )

    def take_over(self, record: ProviderRecord, fence: int) -> None:
        """Be as *record* says. What was cut before it was read is cut from its limit; *fence* is the last."""
        cut_meanwhile = self.headroom.reduced
        self.removed = record.removed
        self.operator_limit = record.operator_limit
        if (kept := record.headroom(self.headroom.configured)) is not None:
            self.headroom = kept
            self.reason = record.known_reason()
        self.cooldown = record.cooldown_setting() or self.cooldown
        if cut_meanwhile:
            self.headroom = headrooms.cut(self.headroom, fence)
            self.reason = "concurrency"

    def record(self) -> ProviderRecord:
        cooldown = self.cooldown
        return ProviderRecord(
            limit=self.operator_limit,
            effective=self.headroom.effective if self.headroom.reduced else None,
            reduced_from=self.headroom.reduced_from,
            reason=self.reason if self.headroom.reduced else None,
            removed=self.removed,
            cooldown=None if cooldown is None else cooldown.success,
            cooldown_cancelled=None if cooldown is None else cooldown.cancelled,
            cooldown_failed=None if cooldown is None else cooldown.failed,
        )
