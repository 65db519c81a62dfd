"""Concurrency control for fleets of LLM agents: every limit at once, and why anything waits.

The public names; each is imported when it is first used, so that a library that embeds the limiter does not
load a web server.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from interlock.admission.local import LocalAdmission as LocalAdmission
    from interlock.admission.permit import Acquisition as Acquisition
    from interlock.admission.permit import Permit as Permit
    from interlock.admission.readings import Explanation as Explanation
    from interlock.admission.readings import Holder as Holder
    from interlock.admission.readings import LimitReading as LimitReading
    from interlock.admission.readings import Snapshot as Snapshot
    from interlock.admission.readings import Waiting as Waiting
    from interlock.admission.redis import RedisAdmission as RedisAdmission
    from interlock.admission.remote import RemoteAdmission as RemoteAdmission
    from interlock.agents.chat import ChatAgent as ChatAgent
    from interlock.agents.chat_tools import Tool as Tool
    from interlock.agents.chat_tools import tool as tool
    from interlock.agents.command import CommandAgent as CommandAgent
    from interlock.agents.process import ProcessAgent as ProcessAgent
    from interlock.agents.python import agent as agent
    from interlock.app import Interlock as Interlock
    from interlock.clock import SystemClock as SystemClock
    from interlock.config import Config as Config
    from interlock.config import load_config as load_config
    from interlock.core.sessions import Event as Event
    from interlock.core.sessions import Retention as Retention
    from interlock.core.sessions import Run as Run
    from interlock.core.sessions import Session as Session
    from interlock.errors import AcquireTimeout as AcquireTimeout
    from interlock.errors import InterlockError as InterlockError
    from interlock.governor import ConcurrencyGovernor as ConcurrencyGovernor
    from interlock.governor import GovernorStats as GovernorStats
    from interlock.limiter import ConcurrencyLimiter as ConcurrencyLimiter
    from interlock.limiter import LimiterLimits as LimiterLimits
    from interlock.limiter import LimiterStatus as LimiterStatus
    from interlock.limiting import limited as limited
    from interlock.pool.pool import AgentPool as AgentPool
    from interlock.pool.readings import PoolStats as PoolStats
    from interlock.ports import Admission as Admission
    from interlock.ports import Clock as Clock
    from interlock.ports import Settings as Settings
    from interlock.ports import Store as Store
    from interlock.provider.gate import ProviderGate as ProviderGate
    from interlock.provider.gated import gated as gated
    from interlock.provider.state import ProviderStatus as ProviderStatus
    from interlock.provider.usage import ProviderUsage as ProviderUsage
    from interlock.provider.usage import get_usage as get_usage
    from interlock.session.context import RunContext as RunContext
    from interlock.session.readings import Operation as Operation
    from interlock.session.readings import Operations as Operations
    from interlock.session.readings import RunResult as RunResult
    from interlock.session.readings import SessionStatus as SessionStatus
    from interlock.session.server import SessionServer as SessionServer
    from interlock.session.sessions import Sessions as Sessions
    from interlock.session.subscription import subscribe as subscribe
    from interlock.stores import open_store as open_store
    from interlock.transports.httpx2 import InterlockSyncTransport as InterlockSyncTransport
    from interlock.transports.httpx2 import InterlockTransport as InterlockTransport

_HOMES = {
    "interlock.agents.chat": ("ChatAgent",),
    "interlock.agents.chat_tools": ("Tool", "tool"),
    "interlock.agents.command": ("CommandAgent",),
    "interlock.agents.process": ("ProcessAgent",),
    "interlock.agents.python": ("agent",),
    "interlock.admission.redis": ("RedisAdmission",),
    "interlock.admission.remote": ("RemoteAdmission",),
    "interlock.app": ("Interlock",),
    "interlock.admission.local": ("LocalAdmission",),
    "interlock.admission.permit": ("Acquisition", "Permit"),
    "interlock.admission.readings": (
        "Explanation",
        "Holder",
        "LimitReading",
        "Snapshot",
        "Waiting",
    ),
    "interlock.clock": ("SystemClock",),
    "interlock.core.sessions": ("Event", "Retention", "Run", "Session"),
    "interlock.config": ("Config", "load_config"),
    "interlock.limiting": ("limited",),
    "interlock.governor": ("ConcurrencyGovernor", "GovernorStats"),
    "interlock.limiter": ("ConcurrencyLimiter", "LimiterLimits", "LimiterStatus"),
    "interlock.ports": ("Admission", "Clock", "Settings", "Store"),
    "interlock.pool.pool": ("AgentPool",),
    "interlock.pool.readings": ("PoolStats",),
    "interlock.provider.gate": ("ProviderGate",),
    "interlock.provider.gated": ("gated",),
    "interlock.provider.state": ("ProviderStatus",),
    "interlock.provider.usage": ("ProviderUsage", "get_usage"),
    "interlock.session.context": ("RunContext",),
    "interlock.session.readings": ("Operation", "Operations", "RunResult", "SessionStatus"),
    "interlock.session.server": ("SessionServer",),
    "interlock.session.sessions": ("Sessions",),
    "interlock.session.subscription": ("subscribe",),
    "interlock.stores": ("open_store",),
    "interlock.transports.httpx2": ("InterlockSyncTransport", "InterlockTransport"),
    "interlock.errors": (
        "AcquireTimeout",
        "AgentLost",
        "AgentStartFailed",
        "CapabilityNotSupported",
        "DeadlockDetected",
        "Draining",
        "InterlockError",
        "InvalidOperation",
        "InvalidStatus",
        "KeyReused",
        "LimitExceeded",
        "PermitLost",
        "PoolClosed",
        "PoolExhausted",
        "ProviderFailed",
        "QueueFull",
        "RunCancelled",
        "RunFailed",
        "RunInterrupted",
        "RunNotFound",
        "RunTimedOut",
        "SessionNotFound",
        "StaleFence",
        "StoreError",
        "Unavailable",
        "ValidationError",
    ),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)  # noqa: PLE0605 - the table above is the one list of names


def __getattr__(name: str) -> object:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'interlock' has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
