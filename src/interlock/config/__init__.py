"""``interlock.toml`` and the environment as frozen structs."""

from interlock.config.reading import load_config, parse_toml, read_struct
from interlock.config.rules import MAX_CAPACITY, parse_capacity, parse_duration
from interlock.config.structs import (
    AgentConfig,
    Config,
    GatewayConfig,
    LimitsConfig,
    PoolConfig,
    ProviderConfig,
    RetentionConfig,
    ServerConfig,
    WordingConfig,
    describe,
    shown_url,
)

__all__ = [
    "MAX_CAPACITY",
    "AgentConfig",
    "Config",
    "GatewayConfig",
    "LimitsConfig",
    "PoolConfig",
    "ProviderConfig",
    "RetentionConfig",
    "ServerConfig",
    "WordingConfig",
    "describe",
    "load_config",
    "parse_capacity",
    "parse_duration",
    "parse_toml",
    "read_struct",
    "shown_url",
]
