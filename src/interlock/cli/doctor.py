"""``interlock doctor``: is everything as it has to be, and if not, what to do about it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import stat
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from rich.text import Text

from interlock import __version__
from interlock.cli.client import NoAnswer, fetch, url_of
from interlock.cli.output import Json, console, plain
from interlock.cli.progress import progress
from interlock.cli.surroundings import chosen, configuration, environment, reachable
from interlock.core.findings import Finding
from interlock.errors import InterlockError, StoreError
from interlock.stores.expected import Expected

if TYPE_CHECKING:
    from collections.abc import Callable

    from interlock.config import Config

EXAMINES_WITHIN = 60.0
"""Seconds for a server to examine itself, and for the reading of a database."""
_CONNECTS_WITHIN = 2.0
_STYLES = {"ok": "green", "warn": "yellow", "error": "bold red"}


class _Server(NamedTuple):
    """A server that answered, if one did, and what was found about it."""

    pid: int | None
    findings: list[Finding]


async def doctor(*, config: Path | None = None, url: str | None = None, as_json: Json = False) -> int:
    """Check everything: this machine, the configuration, the store, the running server, the providers.

    What is wrong comes with its evidence and with what to do. Nothing is changed, and no key is sent to
    anybody. The exit code is 1 if there is an error; a warning is none.

    Example: interlock doctor --config interlock.toml

    Args:
        config: the configuration file (default: interlock.toml here, if there is one).
        url: the server (default: INTERLOCK_URL, else as the configuration says).
        as_json: print the findings as JSON.
    """
    findings = environment()
    settings, found = configuration(config)
    findings += found
    with progress("asking the server"):
        server = await _ask(url, settings)
    findings += server.findings
    if settings is not None:
        with progress("reading the store"):
            findings += await _store(settings, server)
        with progress("looking for the providers"):
            findings += await reachable(list(settings.providers.values()), needed=chosen(config))
    errors = sum(one.severity == "error" for one in findings)
    if as_json:
        print(json.dumps({"ok": not errors, "findings": [asdict(one) for one in findings]}))
    else:
        _show(findings)
    return 1 if errors else 0


# -- the server


async def _ask(said: str | None, config: Config | None) -> _Server:
    """What the server says of itself; that none runs is wrong only where one was named."""
    named = said or os.environ.get("INTERLOCK_URL")
    if named is None and config is None:
        return _Server(None, [])
    url = (named or _url(config)).rstrip("/")
    if not await _listens(url):
        if named is None:
            return _Server(None, [Finding("ok", "server", "none runs", f"nothing listens at {url}")])
        what, remedy = "the server cannot be reached", "interlock serve"
        return _Server(None, [Finding("error", "server", what, f"nothing listens at {url}", remedy)])
    found = []
    try:
        await fetch(url, "/healthz")
    except InterlockError as error:
        what, remedy = "what listens is no server of Interlock that works", "interlock serve --port 7412"
        return _Server(None, [Finding("error", "server", what, f"{url}: {error.message}", remedy)])
    try:
        await fetch(url, "/readyz")
    except InterlockError as error:
        what = "it takes no new work: it is about to stop"
        found.append(
            Finding("warn", "server", what, f"{url}: {error.message}", "interlock serve, once it has")
        )
    try:
        answer = await fetch(url, "/doctor", timeout=EXAMINES_WITHIN + 10)
    except NoAnswer as error:
        what = "it did not examine itself"
        return _Server(None, [*found, Finding("warn", "server", what, error.message, "interlock doctor")])
    except InterlockError as error:
        what, remedy = "it cannot be asked", "set INTERLOCK_TOKEN, or restart it with this version"
        return _Server(None, [*found, Finding("error", "server", what, error.message, remedy)])
    return _Server(_number(answer.get("pid")), [*found, *_read(url, answer)])


def _url(config: Config | None) -> str:
    assert config is not None
    if config.coordination != "local":
        return config.coordination
    return url_of(config.server)


async def _listens(url: str) -> bool:
    """Whether anything takes a connection there; what is no URL is told by the first question."""
    try:
        at = urlsplit(url)
        host, port = at.hostname or "", at.port or (443 if at.scheme == "https" else 80)
        async with asyncio.timeout(_CONNECTS_WITHIN):
            _, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError):
        return False
    except ValueError:
        return True
    writer.transport.abort()
    return True


def _read(url: str, answer: dict[str, Any]) -> list[Finding]:
    """What a server found, as it says; it may be of another version."""
    version, pid = answer.get("version"), answer.get("pid")
    evidence = f"{url}, Interlock {version}, process {pid}"
    what = "a server runs" if version == __version__ else f"it is another version than this, {__version__}"
    found = [Finding("ok" if version == __version__ else "warn", "server", what, evidence)]
    for one in answer.get("findings", ()):
        with suppress(TypeError):
            found.append(Finding(**one))
    return found


def _number(value: object) -> int | None:
    return value if isinstance(value, int) else None


# -- the store


async def _store(config: Config, server: _Server) -> list[Finding]:
    """What the configuration's store says, unless the *server* has it open, which has said so already."""
    match = re.fullmatch(r"sqlite:///(.+)", config.store)
    expected = Expected(tuple(config.agents), config.retention.max_events_per_session)
    if config.store.startswith(("postgres://", "postgresql://")):
        return [] if server.pid else await _shared(config.store, expected)
    if config.coordination != "local" or match is None:
        kept = "at the server" if config.coordination != "local" else "in memory"
        return [] if server.pid else [Finding("ok", "store", f"it is {kept}: nothing is kept here")]
    until, over = time.monotonic() + EXAMINES_WITHIN, False
    try:
        return await asyncio.to_thread(
            _examine, Path(match[1]), expected, server, lambda: over or time.monotonic() > until
        )
    finally:
        over = True  # interrupted: the thread need not read on


async def _shared(url: str, expected: Expected) -> list[Finding]:
    try:
        from interlock.stores.postgres.examine import examine_over
        from interlock.stores.postgres.link import Line
    except ImportError as error:
        remedy = "pip install 'interlock[postgres]'"
        return [Finding("error", "store", "what speaks to PostgreSQL is missing", f"{error}", remedy)]
    return await examine_over(Line(url), expected)


def _examine(path: Path, expected: Expected, server: _Server, expired: Callable[[], bool]) -> list[Finding]:
    if not path.exists():
        return _absent(path)
    from interlock.stores.sqlite.examine import examine_file  # it needs fcntl
    from interlock.stores.sqlite.file import locked

    found = _readable_by_others(path)
    try:
        with locked(path):
            return found + examine_file(path, expected, expired)
    except StoreError as error:
        return found + _owned(error, server)
    except OSError as error:
        evidence, remedy = f"{path}: {error.strerror}", f"ls -l {path}*"
        return [*found, Finding("error", "store", "it cannot be opened", evidence, remedy)]


def _absent(path: Path) -> list[Finding]:
    if path.absolute().parent.is_dir():
        return [Finding("ok", "store", "there is none yet; the first server makes it", f"{path}")]
    folder = path.absolute().parent
    what = "there is no place for it"
    return [Finding("error", "store", what, f"{folder} does not exist", f"mkdir -p -m 700 {folder}")]


def _readable_by_others(path: Path) -> list[Finding]:
    mode = stat.S_IMODE(path.stat().st_mode)
    if not mode & 0o077:
        return []
    what = "others on this machine may read or write it"
    return [Finding("warn", "store", what, f"{path} has mode {mode:o}", f"chmod 600 {path}")]


def _owned(error: StoreError, server: _Server) -> list[Finding]:
    """Whoever has the database open has to be asked about it; that is the server that answered, or not."""
    if server.pid is not None and str(server.pid) == str(error.details.get("pid")):
        return []
    what = "another process has it open than the server that was asked"
    return [Finding("warn", "store", what, error.message, "interlock doctor --url URL, with its address")]


# -- showing


def _show(findings: list[Finding]) -> None:
    shown = console()
    for one in findings:
        line = Text.assemble(
            (f"{one.severity:<6}", _STYLES.get(one.severity, "")), f"{one.about}: {plain(one.what)}"
        )
        shown.print(line)
        if one.evidence:
            shown.print(Text(f"      {plain(one.evidence)}", style="dim"))
        if one.remedy and one.severity != "ok":
            shown.print(Text(f"      → {plain(one.remedy)}"))
    counted = Counter(one.severity for one in findings)
    shown.print(f"{counted['error']} errors, {counted['warn']} warnings, {counted['ok']} ok")
