"""What can be configured. The name is the key in the file, the annotation its rule, the default what holds
without it: the structs are the whole reference.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Annotated, Any, Literal

import msgspec

from interlock.config.rules import (
    MAX_CAPACITY,
    age,
    base_url,
    command,
    coordination,
    parse_capacity,
    parse_duration,
    positive_duration,
    secret,
    size,
    store_url,
    target,
    text,
    texts,
    usage,
    whole,
)
from interlock.secret import Secret  # noqa: TC001 - resolved when a struct is read

Text = Annotated[str, text]
Capacity = Annotated[int | None, parse_capacity]
Seconds = Annotated[float, parse_duration]
PositiveSeconds = Annotated[float, positive_duration]


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Where the server listens and who may speak to it. Port 0 takes any free port.

    With a *socket*, the path of a Unix socket, it listens there and nowhere else.
    """

    host: Text = "127.0.0.1"
    port: Annotated[int, partial(whole, 0, 65535)] = 7411
    socket: Annotated[str | None, text] = None
    token: Annotated[Secret | None, secret] = None
    allowed_hosts: Annotated[tuple[str, ...], texts] = ()
    log_format: Literal["text", "json"] = "text"
    max_connections: Capacity = 1024
    max_connections_per_address: Capacity = 128
    max_waiting: Capacity = 10_000
    max_waiting_per_limit: Capacity = 2_000
    max_waiting_bytes: Annotated[int, size] = 32 << 20


class LimitsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How much of each at once. None is unlimited, but counted."""

    sessions: Capacity = None
    runs: Capacity = None
    streams: Capacity = None
    tools: Capacity = None
    global_: Capacity = msgspec.field(default=None, name="global")


class WordingConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a refusal of this provider means, told by its ``code`` or a ``text`` in it."""

    reason: Literal["concurrency", "rate", "overload", "quota"]
    code: Annotated[str | None, text] = None
    text: Annotated[str | None, text] = None


class ProviderConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One upstream. Without ``api_key`` the caller's own passes through."""

    id: str
    base_url: Annotated[str, base_url]
    api_key: Annotated[Secret | None, secret] = None
    limit: Capacity = None
    cooldown: Seconds = 0.35
    cooldown_cancelled: Annotated[float | None, parse_duration] = None
    cooldown_failed: Annotated[float | None, parse_duration] = None
    usage: Annotated[str | None, usage] = None
    usage_repoll: PositiveSeconds = 1.0
    usage_timeout: Seconds = 2.0
    usage_settle: Seconds = 0.1
    recovery: Literal["manual", "probe"] = "manual"
    recovery_window: PositiveSeconds = 30.0
    default_pause: Seconds = 30.0
    slot_timeout: PositiveSeconds = 300.0
    wordings: tuple[WordingConfig, ...] = ()


class GatewayConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The reverse proxy: seconds before the first ping and before giving up, bytes of a body."""

    ping_after: Seconds = 15.0
    timeout: Seconds = 300.0
    max_body: Annotated[int, size] = 32 << 20


class PoolConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Warm agents of one kind."""

    agent: Text
    size: Annotated[int, partial(whole, 1, MAX_CAPACITY)] = 10
    max_overflow: Annotated[int, partial(whole, 0, MAX_CAPACITY)] = 5
    strategy: Literal["lifo", "fifo"] = "lifo"


class RetentionConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What the store keeps of sessions, and how often the server looks."""

    every: PositiveSeconds = 3600.0
    completed_age: Annotated[float | None, age] = 90 * 86_400.0
    deleted_age: Annotated[float | None, age] = 30 * 86_400.0
    max_events_per_session: Annotated[int | None, parse_capacity] = None
    exempt_tags: Annotated[tuple[str, ...], texts] = ("pinned",)


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One way to run an agent: a command, a chat through a provider, or a Python callable."""

    type: Literal["command", "chat", "python"]
    command: Annotated[tuple[str, ...], command] = ()
    provider: Annotated[str | None, text] = None
    model: Annotated[str | None, text] = None
    target: Annotated[str | None, target] = None
    dialect: Literal["openai", "anthropic"] | None = None
    system: Annotated[str | None, text] = None
    input: Literal["stdin", "argument", "environment"] | None = None
    output: Literal["text", "json"] | None = None


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The whole configuration. Its ``repr`` shows neither secrets nor passwords in URLs."""

    store: Annotated[str, store_url] = "sqlite:///interlock.db"
    coordination: Annotated[str, coordination] = "local"
    server: ServerConfig = ServerConfig()
    limits: LimitsConfig = LimitsConfig()
    providers: dict[str, ProviderConfig] = {}
    gateway: GatewayConfig = GatewayConfig()
    pools: dict[str, PoolConfig] = {}
    agents: dict[str, AgentConfig] = {}
    retention: RetentionConfig = RetentionConfig()

    def __repr__(self) -> str:
        return f"Config({describe(self)})"


def describe(config: Config) -> dict[str, Any]:
    """*config* as plain JSON values, in seconds and bytes; secrets and passwords are ``***``."""
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(config, enc_hook=str))
    for key in ("store", "coordination"):
        plain[key] = shown_url(plain[key])
    return plain


def shown_url(url: str) -> str:
    """*url* without what may be a password."""
    return re.sub(r"(?<=://)[^/].*(?=@)|(?<=\?).*", "***", url)
