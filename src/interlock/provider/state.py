"""What is known of one provider, and how it is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from interlock.core.headroom import Headroom
from interlock.provider.persistence import CooldownSetting, ProviderRecord

if TYPE_CHECKING:
    from interlock.ports import TimerHandle
    from interlock.provider.policy import ProviderPolicy
    from interlock.provider.poller import UsagePoller
    from interlock.provider.signals import Reason


@dataclass(frozen=True, slots=True)
class ProviderStatus:
    """One provider at one moment. ``in_flight`` includes ``cooling``; times are seconds (since the epoch).

    ``limit`` is in force, ``configured_limit`` the operator's; ``reason`` is that of the last 429 while
    it still pauses or reduces; ``upstream_in_flight`` what the provider reported last, while that is
    fresh.
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
