"""The whole: every part wired together from one configuration. The only module that knows all of them."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from interlock.admission.local import LocalAdmission
from interlock.config import Config, load_config
from interlock.errors import ValidationError
from interlock.provider.gate import ProviderGate
from interlock.provider.policy import ProviderPolicy
from interlock.provider.usage import usage_source
from interlock.stores import open_store

if TYPE_CHECKING:
    from pathlib import Path

    from interlock.config import ProviderConfig
    from interlock.ports import UsageSource
    from interlock.stores.memory import MemoryStore
    from interlock.stores.sqlite import SQLiteStore

LIMITS = ("sessions", "runs", "streams", "tools", "global")
"""The fleet's own limits; every one exists, unlimited until configured."""


class Interlock:
    """A fleet's limits, provider gate and store, opened with ``async with Interlock.open(…) as il``."""

    admission: LocalAdmission
    gate: ProviderGate
    store: MemoryStore | SQLiteStore

    def __init__(self, config: Config) -> None:
        self.config = config

    @classmethod
    def open(cls, path: str | Path | None = None) -> Interlock:
        """From a file (default: ``interlock.toml`` here, if there is one) and the environment.

        Raises `ValidationError` whose message is one line naming the file, the key and what is allowed.
        """
        return cls(load_config(path))

    async def __aenter__(self) -> Interlock:
        config = self.config
        check_supported(config)
        self.store = await open_store(config.store)
        self.admission = LocalAdmission()
        for name in LIMITS:
            capacity = getattr(config.limits, "global_" if name == "global" else name)
            self.admission.configure(name, capacity)
        providers = config.providers.values()
        self.gate = ProviderGate(
            admission=self.admission,
            settings=self.store,
            policies={provider.id: _policy(provider) for provider in providers},
            usage_sources={
                provider.id: source
                for provider in providers
                if (source := _usage_source(provider)) is not None
            },
        )
        for provider in providers:
            self.gate.preset(
                provider.id,
                provider.limit,
                cooldown=provider.cooldown,
                cancelled=provider.cooldown_cancelled,
                failed=provider.cooldown_failed,
            )
        await self.gate.load()
        return self

    async def __aexit__(self, *exit_: Any) -> None:
        await self.gate.aclose()
        await self.admission.aclose()
        await self.store.aclose()


def check_supported(config: Config) -> None:
    """`ValidationError` for what a configuration may say but this version does not do yet, or must not."""
    if config.coordination != "local":
        raise ValidationError('coordination: this version coordinates one process; allowed is "local"')
    if config.store.startswith(("postgres://", "postgresql://")):
        raise ValidationError(
            'store: postgresql:// comes with a later version; allowed are "memory:" and "sqlite:///file.db"'
        )
    if not is_loopback(config.server.host) and config.server.token is None:
        raise ValidationError(
            f"server.host is {config.server.host!r}, which others can reach: set server.token "
            '(for instance to "env:INTERLOCK_TOKEN"), or a loopback host'
        )


def is_loopback(host: str) -> bool:
    """Whether a server bound to *host* is reachable from this machine only."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _policy(provider: ProviderConfig) -> ProviderPolicy:
    return ProviderPolicy(
        default_cooldown=provider.cooldown,
        default_pause=provider.default_pause,
        slot_timeout=provider.slot_timeout,
        usage_repoll=provider.usage_repoll,
        usage_timeout=provider.usage_timeout,
        usage_settle=provider.usage_settle,
        recovery=provider.recovery,
        recovery_window=provider.recovery_window,
    )


def _usage_source(provider: ProviderConfig) -> UsageSource | None:
    if provider.usage is None:
        return None
    key = None if provider.api_key is None else provider.api_key.reveal()
    return usage_source(provider.usage, provider.base_url, key, timeout=provider.usage_timeout)
