"""A running server and its configuration file: changes are taken over, or said to need a restart."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from interlock.app import Interlock
from interlock.config import Config, load_config
from interlock.errors import InterlockError, ValidationError
from interlock.secret import Secret

EVERY_SECONDS = 1.0
_LIVE = re.compile(r"limits\.\w+|providers\..+\.(limit|cooldown|cooldown_cancelled|cooldown_failed)")
"""What a running server takes over; a provider that comes or goes is another matter."""

Stamp = tuple[int, int, int] | None


class ConfigFile:
    """The file at *path* (None: ``interlock.toml`` here, if there), with what *adjust* lays over it."""

    def __init__(self, path: Path | None, adjust: Callable[[Config], Config]) -> None:
        self.path = path or Path("interlock.toml")
        self._asked = path
        self._adjust = adjust
        self._seen: Stamp = None
        self._was_there = False

    @property
    def changed(self) -> bool:
        """Whether it is another one than was read last."""
        return self._stamp() != self._seen

    def read(self) -> Config:
        """What it says. Raises `ValidationError`, also if it was there before and is gone."""
        self._seen = self._stamp()  # before reading: what is written meanwhile is seen the next time
        if self._seen is None and self._was_there:
            raise ValidationError(f"{self.path} is gone")
        self._was_there = self._seen is not None
        return self._adjust(load_config(self._asked))

    def _stamp(self) -> Stamp:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino


class Reloading:
    """Reads *file* again when it has changed, which is looked at once a second, and on SIGHUP.

    Every change is said in a line of its own. A file that is wrong changes nothing and is said in one.
    """

    def __init__(self, fleet: Interlock, file: ConfigFile, *, as_json: bool = False) -> None:
        self._fleet = fleet
        self._file = file
        self._as_json = as_json
        self._reading: asyncio.Task[None] | None = None
        self._again = False
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to look; needs a running loop."""
        loop = asyncio.get_running_loop()
        if hasattr(signal, "SIGHUP"):
            loop.add_signal_handler(signal.SIGHUP, self.reload)
        self._timer = loop.call_later(EVERY_SECONDS, self._look)

    def stop(self) -> None:
        """Look no more."""
        for one in (self._timer, self._reading):
            if one is not None:
                one.cancel()

    def reload(self) -> None:
        """Read the file now, whether it has changed or not; once more if that is going on."""
        if self._reading is None:
            self._reading = asyncio.get_running_loop().create_task(self._read())
        else:
            self._again = True

    def _look(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(EVERY_SECONDS, self._look)
        if self._file.changed:
            self.reload()

    async def _read(self) -> None:
        try:
            await self._take_over()
            while self._again:
                self._again = False
                await self._take_over()
        finally:
            self._reading = None

    async def _take_over(self) -> None:
        before = self._fleet.config
        try:
            after = self._file.read()
            await self._fleet.apply(after)
        except InterlockError as error:
            changed = "nothing" if isinstance(error, ValidationError) else "not everything"
            print(f"interlock: {changed} was changed: {error.message}", file=sys.stderr, flush=True)
            return
        found = tuple(differences(before, after))
        for key, old, new in found:
            live = _LIVE.fullmatch(key) is not None
            was, is_ = _shown(key, old), _shown(key, new)
            if self._as_json:
                print(json.dumps({"changed": key, "from": was, "to": is_, "inForce": live}), flush=True)
            else:
                print(f"{key} {was} -> {is_}{'' if live else ' (after a restart)'}", flush=True)
        if not found and not self._as_json:
            print(f"{self._file.path}: nothing new", flush=True)


def differences(before: Any, after: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every key of the configuration that says something else, with what it said and what it says."""
    if before == after:
        return
    old, new = _members(before), _members(after)
    if old is None or new is None:
        yield key, before, after
        return
    for name in old | new:
        yield from differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)


def _members(value: Any) -> dict[str, Any] | None:
    if isinstance(value, msgspec.Struct):
        fields = msgspec.structs.fields(type(value))
        return {field.encode_name: getattr(value, field.name) for field in fields}
    return value if isinstance(value, dict) else None


def _shown(key: str, value: Any) -> str:
    """*value* as a configuration would say it, on one line."""
    last = key.rpartition(".")[2]
    if value is None:
        return "unlimited" if key.startswith("limits.") or last == "limit" else "unset"
    if isinstance(value, Secret) or last in ("store", "coordination"):
        return "***" if isinstance(value, Secret) else re.sub(r"(?<=://)[^/].*(?=@)|(?<=\?).*", "***", value)
    if isinstance(value, float):
        return f"{value * 1000:g}ms" if value < 1 else f"{value:g}s"
    return "set" if _members(value) is not None else str(value)
