"""``interlock config``: what a configuration says."""

from __future__ import annotations

import json
from pathlib import Path

from interlock.app import check_supported
from interlock.cli.output import Json
from interlock.config import describe, load_config, shown_url


def check(file: Path | None = None, /, *, as_json: Json = False) -> int:
    """Check a configuration file (default: interlock.toml here) together with the environment.

    Example: interlock config check interlock.toml

    Args:
        file: the file to check.
        as_json: print the whole configuration, secrets masked.
    """
    config = load_config(file)
    check_supported(config)
    if as_json:
        print(json.dumps(describe(config), indent=2))
        return 0
    source = file or (Path("interlock.toml") if Path("interlock.toml").exists() else "defaults")
    providers = ", ".join(sorted(config.providers)) or "none"
    print(f"{source}: ok; providers: {providers}; store: {shown_url(config.store)}")
    return 0
