"""What `interlock doctor` looks at besides a server and its store: this machine, the file, the providers."""

from __future__ import annotations

import asyncio
import os
import platform
import re
import socket
import sqlite3
import ssl
import sys
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from interlock import __version__
from interlock.app import check_supported
from interlock.config import load_config
from interlock.core.findings import Finding
from interlock.errors import InterlockError
from interlock.http.access.reach import is_exposed

if TYPE_CHECKING:
    from interlock.config import Config, ProviderConfig

CONNECTS_WITHIN = 3.0
"""Seconds for a provider to be reached."""
_OLDEST_PYTHON = (3, 11)
_OLDEST_SQLITE = (3, 37, 0)
_ENOUGH_FILES = 4096
"""Descriptors that a server with a thousand calls under way can need: two each, and some."""


def environment(sqlite: tuple[int, int, int] | None = None, files: int | None = None) -> list[Finding]:
    """Python, SQLite and what the system allows; *sqlite* and *files* in place of what is found here."""
    python = sys.version_info[:3]
    evidence = f"Interlock {__version__}, Python {platform.python_version()}, {platform.system()}"
    remedy = f"install Python {'.'.join(map(str, _OLDEST_PYTHON))} or later"
    found = [
        Finding("ok", "environment", "this Python will do", evidence)
        if python >= _OLDEST_PYTHON
        else Finding("error", "environment", "this Python is too old", evidence, remedy)
    ]
    found.append(_sqlite(sqlite or sqlite3.sqlite_version_info))
    most = _most_files() if files is None else files
    if most is not None:
        found.append(_files(most))
    return found


def _sqlite(version: tuple[int, ...]) -> Finding:
    shown = f"SQLite {'.'.join(map(str, version))}"
    if version < _OLDEST_SQLITE:
        remedy = f"install a Python with SQLite {'.'.join(map(str, _OLDEST_SQLITE))} or later"
        return Finding("error", "environment", "SQLite is too old to be the store", shown, remedy)
    if has_wal_reset_bug(version):
        return Finding(
            "warn",
            "environment",
            "this SQLite can damage a database that several connections write to at once",
            f"{shown} has the WAL-reset bug (fixed in 3.51.3); Interlock writes with one connection only",
            "let no other program write to the store while a server runs; upgrade SQLite to 3.51.3 or later",
        )
    return Finding("ok", "environment", "this SQLite will do", shown)


def has_wal_reset_bug(version: tuple[int, ...]) -> bool:
    """3.7.0 to 3.51.2, but for the releases of older lines that were given the fix."""
    fixed = version >= (3, 51, 3) or (3, 50, 7) <= version < (3, 51) or (3, 44, 6) <= version < (3, 45)
    return version >= (3, 7) and not fixed


def _most_files() -> int | None:
    try:
        import resource
    except ImportError:
        return None
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if most == resource.RLIM_INFINITY else most


def _files(most: int) -> Finding:
    if most >= _ENOUGH_FILES:
        return Finding("ok", "environment", "enough file descriptors", f"{most} for each process")
    return Finding(
        "warn",
        "environment",
        "few file descriptors: each call under way takes two",
        f"{most} for each process, {_ENOUGH_FILES} are enough for a thousand calls",
        "ulimit -n 65536, in the shell or the unit that starts the server",
    )


# -- the configuration


def configuration(path: Path | None) -> tuple[Config | None, list[Finding]]:
    """What the file at *path* and the environment say, if that can be used; and what is wrong with it."""
    source = str(path or "interlock.toml")
    check = "interlock config check" + ("" if path is None else f" {path}")
    try:
        config = load_config(path)
    except InterlockError as error:
        remedy = f"correct that, then: {check}"
        return None, [Finding("error", "configuration", "it cannot be read", error.message, remedy)]
    try:
        check_supported(config)
    except InterlockError as error:
        remedy = f"correct that, then: {check}"
        return config, [Finding("error", "configuration", "no server can start", error.message, remedy)]
    if is_exposed(config.server) and config.server.token is None:
        what, evidence = (
            "others can reach its server",
            f"server.host is {config.server.host}, without server.token",
        )
        remedy = "set server.token; without it, a server starts only if its store has an admin's token"
        return config, [Finding("warn", "configuration", what, evidence, remedy)]
    source = source if path is not None or Path(source).exists() else "the defaults"
    evidence = f"{source}; providers: {', '.join(config.providers) or 'none'}"
    return config, [Finding("ok", "configuration", "it can be read, and every key is known", evidence)]


def chosen(path: Path | None) -> bool:
    """Whether somebody configured the providers, as against those that are offered to whoever comes."""
    if any(re.match(r"INTERLOCK_PROVIDERS__|(?:OPENAI|ANTHROPIC)_API_KEY$", name) for name in os.environ):
        return True
    with suppress(OSError, ValueError):
        text = (path or Path("interlock.toml")).read_text(encoding="utf-8")
        return bool(tomllib.loads(text).get("providers"))
    return False


# -- providers


async def reachable(providers: list[ProviderConfig], *, needed: bool) -> list[Finding]:
    """Whether each of *providers* takes a connection; nothing is sent over it, no key either."""
    return list(await asyncio.gather(*(_reach(one, needed) for one in providers)))


async def _reach(provider: ProviderConfig, needed: bool) -> Finding:
    url = urlsplit(provider.base_url)
    tls = url.scheme == "https"
    host, port = url.hostname or "", url.port or (443 if tls else 80)
    where = f"{host}:{port}, {'TLS' if tls else 'no TLS'}"
    try:
        async with asyncio.timeout(CONNECTS_WITHIN):
            context = ssl.create_default_context() if tls else None
            _, writer = await asyncio.open_connection(host, port, ssl=context)
        writer.transport.abort()  # to wait for a goodbye would tell nothing
    except (OSError, TimeoutError, ValueError) as error:
        evidence = f"{where}: {_why(error)}"
        remedy = f"curl -sv {provider.base_url}, then correct base_url of [providers.{provider.id}]"
        what = f"{provider.id} cannot be reached"
        return Finding("error" if needed else "warn", "providers", what, evidence, remedy)
    return Finding("ok", "providers", f"{provider.id} can be reached", where)


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is refused: {error.verify_message}"
    if isinstance(error, TimeoutError) and not str(error):
        return f"no connection within {CONNECTS_WITHIN:g} s"
    if isinstance(error, socket.gaierror):
        return f"its name is unknown: {error.strerror}"
    if isinstance(error, OSError) and error.errno and not isinstance(error, ssl.SSLError):
        return os.strerror(error.errno).lower()
    return " ".join((str(error) or type(error).__name__).split())
