"""What is in force at the providers of a gate."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from interlock.provider.state import Provider


class InForce:
    """The readings of a gate that need nothing but what it knows of its providers."""

    _providers: dict[str, Provider]

    def get_limit(self, provider_id: str) -> int | None:
        """The limit in force."""
        provider = self._providers.get(provider_id)
        return None if provider is None else provider.headroom.effective

    def limits(self) -> dict[str, int]:
        """Every limit in force."""
        limits = {name: provider.headroom.effective for name, provider in self._providers.items()}
        return {name: limit for name, limit in sorted(limits.items()) if limit is not None}

    def get_cooldown(self, provider_id: str) -> float | None:
        """Seconds; None when neither a limit nor a cooldown was set."""
        return self.cooldowns().get(provider_id)

    def cooldowns(self) -> dict[str, float]:
        """The cooldown in force of every provider that has a limit or a cooldown of its own."""
        return {
            name: provider.cooldown_in_force.success
            for name, provider in sorted(self._providers.items())
            if provider.cooldown is not None or provider.headroom.effective is not None
        }
