"""The whole: every part wired together from one configuration. The only module that knows all of them."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

from interlock.admission.local import LocalAdmission
from interlock.admission.remote import RemoteAdmission
from interlock.agents import ProcessAgent, agent_factory
from interlock.agents.command import CommandAgent
from interlock.agents.python import session_agent
from interlock.clock import SystemClock
from interlock.config import Config, load_config
from interlock.core.sessions import Retention
from interlock.errors import InvalidOperation, ValidationError
from interlock.governor import ConcurrencyGovernor
from interlock.ledger import Cause, Ledger
from interlock.limiter import ConcurrencyLimiter
from interlock.limits import FLEET, FleetLimits, Heard
from interlock.pool import AgentPool
from interlock.provider.gate import ProviderGate
from interlock.provider.policy import ProviderPolicy
from interlock.provider.usage import usage_source
from interlock.session.retention import Pruner
from interlock.session.sessions import Sessions
from interlock.session.worker import LEASE
from interlock.stores import open_store
from interlock.telemetry import traced

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from interlock.config import AgentConfig, PoolConfig, ProviderConfig
    from interlock.ports import UsageSource
    from interlock.stores.memory import MemoryStore
    from interlock.stores.postgres import PostgresStore
    from interlock.stores.sqlite import SQLiteStore
    from interlock.telemetry.otel import OpenTelemetry


class Interlock:
    """A fleet's limits, gate, pools and store, opened with ``async with Interlock.open(…) as il``.

    All parts are over one ``admission``, and so are their numbers. Where the configuration names a server as
    its ``coordination``, that is the server's: it keeps the limits, the providers and what is remembered of
    both; ``limits`` and ``ledger`` are None then, and the store is this process's memory, or PostgreSQL.
    """

    admission: LocalAdmission | RemoteAdmission
    limits: FleetLimits | None
    ledger: Ledger | None
    limiter: ConcurrencyLimiter
    governor: ConcurrencyGovernor
    gate: ProviderGate
    pools: dict[str, AgentPool[Any]]
    sessions: Sessions
    store: MemoryStore | SQLiteStore | PostgresStore
    telemetry: OpenTelemetry | None
    """None, unless OpenTelemetry is set up in this process."""

    def __init__(
        self, config: Config, *, agents: Mapping[str, Any] | None = None, lease: float = LEASE
    ) -> None:
        """*agents* of sessions beside the configured ones; *lease* in seconds, of a worker's sessions."""
        self.config = config
        self.lease = lease
        self._agents = agents or {}

    @classmethod
    def open(cls, path: str | Path | None = None) -> Interlock:
        """From a file (default: ``interlock.toml`` here, if there is one) and the environment.

        Raises `ValidationError` whose message is one line naming the file, the key and what is allowed.
        """
        return cls(load_config(path))

    async def __aenter__(self) -> Interlock:
        config = self.config
        check_supported(config)
        here = config.coordination == "local"
        agents = _session_agents(config) | dict(self._agents)
        factories = {name: _agent_factory(config, pool) for name, pool in config.pools.items()}
        async with AsyncExitStack() as opened:
            shared = config.store.startswith(("postgres://", "postgresql://"))
            self.store = await open_store(config.store if here or shared else "memory:")
            opened.push_async_callback(self.store.aclose)
            if here:
                await self._open_here(config, opened)
            else:
                await self._open_elsewhere(config, opened)
            self.pools = {
                name: AgentPool(
                    factories[name],
                    pool.size,
                    pool.max_overflow,
                    pool.strategy,
                    name=name,
                    admission=self.admission,
                )
                for name, pool in config.pools.items()
            }
            for pool in self.pools.values():
                await opened.enter_async_context(pool)
            clock = SystemClock()
            self.sessions = Sessions(
                self.store,
                agents,
                clock=clock,
                limiter=self.limiter,
                governor=self.governor,
                gate=self.gate,
                lease=self.lease,
            )
            opened.push_async_callback(self.sessions.aclose)
            if self.sessions.worker is not None:
                await self.sessions.recover()
            pruner = Pruner(self.store, retention_of(config), every=config.retention.every, clock=clock)
            pruner.start()
            opened.push_async_callback(pruner.aclose)
            self.telemetry = traced(self.admission, self.store)
            self._opened = opened.pop_all()
        return self

    async def _open_elsewhere(self, config: Config, opened: AsyncExitStack) -> None:
        token = config.server.token
        self.admission = RemoteAdmission(config.coordination, token=None if token is None else token.reveal())
        opened.push_async_callback(self.admission.aclose)
        await self.admission.refresh()  # now rather than at the first call: a wrong URL or token shows
        self.limits = self.ledger = None
        given = {name: number for name, number in _capacities(config).items() if number is not None}
        slots: dict[str, Any] = {f"max_parallel_{name}": given[name] for name in FLEET[:2] if name in given}
        layers: dict[str, Any] = {f"max_{name}": given[name] for name in FLEET[2:] if name in given}
        self.limiter = ConcurrencyLimiter(admission=self.admission, **slots)
        self.governor = ConcurrencyGovernor(admission=self.admission, **layers)
        self.gate = ProviderGate(admission=self.admission)
        opened.push_async_callback(self.gate.aclose)

    async def _open_here(self, config: Config, opened: AsyncExitStack) -> None:
        self.admission = LocalAdmission()
        opened.push_async_callback(self.admission.aclose)
        keys = [one.api_key.reveal() for one in config.providers.values() if one.api_key is not None]
        ledger = self.ledger = Ledger(self.store, SystemClock(), keys)
        opened.push_async_callback(ledger.aclose)
        self.limits = FleetLimits(self.admission, self.store, ledger)
        await self.limits.load(_capacities(config))
        self.limiter = ConcurrencyLimiter(admission=self.admission)
        self.governor = ConcurrencyGovernor(admission=self.admission)
        providers = config.providers.values()
        self.gate = ProviderGate(
            admission=self.admission,
            settings=self.store,
            ledger=ledger,
            policies={provider.id: _policy(provider) for provider in providers},
            usage_sources={
                provider.id: source
                for provider in providers
                if (source := _usage_source(provider)) is not None
            },
        )
        opened.push_async_callback(self.gate.aclose)
        for provider in providers:
            self.gate.preset(
                provider.id,
                provider.limit,
                cooldown=provider.cooldown,
                cancelled=provider.cooldown_cancelled,
                failed=provider.cooldown_failed,
            )
        await self.gate.load()
        self._heard = Heard(self.store)
        await self._heard.load()
        for provider in providers:
            await self._hear(provider, preset=True)
        said = {f"provider:{provider.id}": provider.limit for provider in providers} | _capacities(config)
        in_force = {name: one.capacity for name, one in self.admission.limits().items()}
        await ledger.start(in_force, said)

    async def apply(self, config: Config) -> None:
        """Take over the limits and cooldowns that are new in *config*; the rest counts at the next start.

        What was set at run time stays in force where the file still says what it said then. Raises
        `ValidationError` for what cannot be, and then nothing has changed.
        """
        check_supported(config)
        if self.limits is None:
            raise InvalidOperation("the limits are the server's: change its configuration")
        for name, capacity in _capacities(config).items():
            await self.limits.hear(name, capacity)
        for provider in config.providers.values():
            if provider.id in self.config.providers:
                await self._hear(provider)
        self.config = config

    async def _hear(self, provider: ProviderConfig, *, preset: bool = False) -> None:
        """What the file says of *provider* counts if it is something new. A *preset* cooldown is in force
        where none was set at run time."""
        key, cooldowns = f"provider:{provider.id}", _cooldowns(provider)
        if self._heard.differs(f"{key}:limit", provider.limit):
            await self.gate.set_limit(provider.id, provider.limit, cause=Cause("file"))
        if self._heard.differs(f"{key}:cooldown", cooldowns):
            cooldown, cancelled, failed = (None, None, None) if preset else cooldowns
            await self.gate.set_cooldown(provider.id, cooldown, cancelled=cancelled, failed=failed)
        await self._heard.note(f"{key}:limit", provider.limit)
        await self._heard.note(f"{key}:cooldown", cooldowns)

    async def __aexit__(self, *exit_: Any) -> None:
        await self._opened.aclose()


def check_supported(config: Config) -> None:
    """`ValidationError` for what a configuration may say but this version does not do yet, or must not."""
    if config.coordination.startswith(("redis://", "rediss://")):
        raise ValidationError(
            'coordination: redis:// comes with a later version; allowed are "local" and "http://host:7411"'
        )


def retention_of(config: Config) -> Retention:
    """What *config* wants kept."""
    kept = config.retention
    return Retention(
        kept.completed_age, kept.deleted_age, kept.max_events_per_session, exempt_tags=kept.exempt_tags
    )


def _agent_factory(config: Config, pool: PoolConfig) -> Callable[[], Any]:
    """What starts the agents of *pool*."""
    agent = config.agents[pool.agent]
    match agent.type:
        case "command":
            return partial(ProcessAgent.start, agent.command)
        case "python":
            return agent_factory(agent.target or "")
    raise ValidationError(
        f'agents.{pool.agent}: type is {agent.type!r}; a pool of this version takes "command" and "python"'
    )


def _session_agents(config: Config) -> dict[str, Any]:
    """What works for sessions, by name. An agent of a pool may be no agent of a session."""
    pooled = {pool.agent for pool in config.pools.values()}
    found = {}
    for name in config.agents:
        try:
            found[name] = _session_agent(config, name)
        except ValidationError as error:
            if name not in pooled:
                raise ValidationError(f"agents.{name}: {error.message}") from None
    return found


def _session_agent(config: Config, name: str) -> Any:
    agent = config.agents[name]
    match agent.type:
        case "command":
            return CommandAgent(agent.command, input=agent.input or "stdin", output=agent.output or "json")
        case "python":
            return session_agent(agent.target or "")
        case "chat":
            return _chat_agent(config, agent)


def _chat_agent(config: Config, agent: AgentConfig) -> Any:
    # Imported here since it needs an HTTP client, which is an extra.
    from interlock.agents.chat import ChatAgent

    provider = config.providers[agent.provider or ""]
    return ChatAgent(
        provider.id,
        agent.model or "",
        base_url=provider.base_url,
        api_key=None if provider.api_key is None else provider.api_key.reveal(),
        dialect=agent.dialect or ("anthropic" if "anthropic" in provider.base_url else "openai"),
        system=agent.system,
    )


def _capacities(config: Config) -> dict[str, int | None]:
    limits = config.limits
    return {name: getattr(limits, "global_" if name == "global" else name) for name in FLEET}


def _cooldowns(provider: ProviderConfig) -> tuple[float, float | None, float | None]:
    return provider.cooldown, provider.cooldown_cancelled, provider.cooldown_failed


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
