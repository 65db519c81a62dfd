"""Reading ``interlock.toml`` and the environment, checked once.

Later wins: the defaults, the file, ``INTERLOCK_SERVER__PORT`` and the like. Every refusal is one line that
names the file or the variable, the key, what was wrong and what is allowed.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args, get_origin

import msgspec

from interlock.config.rules import EnvText, one_of, secret, shown
from interlock.config.structs import Config, ProviderConfig
from interlock.errors import ValidationError

if TYPE_CHECKING:
    from collections.abc import Mapping

Struct = TypeVar("Struct", bound=msgspec.Struct)

_NEEDED = {"command": ("command",), "chat": ("provider", "model"), "python": ("target",)}
_POSSIBLE = {"command": ("input", "output"), "chat": ("dialect", "system"), "python": ()}

_WELL_KNOWN = {
    "openai": ("https://api.openai.com/v1", "OPENAI_API_KEY"),
    "anthropic": ("https://api.anthropic.com", "ANTHROPIC_API_KEY"),
}


def load_config(path: str | Path | None = None, env: Mapping[str, str] | None = None) -> Config:
    """Read *path* (None: ``interlock.toml`` here, if there) and *env* (None: the process's).

    Variables with ``__`` are keys (``INTERLOCK_PROVIDERS__OPENAI__LIMIT``), and so are
    ``INTERLOCK_STORE`` and ``INTERLOCK_COORDINATION``. Others may be anyone's, such as a cluster's
    ``INTERLOCK_PORT``: they are left alone unless they look like a misspelt key. Where the file has
    no provider, those are offered whose keys are in the environment, else both, for callers with
    keys of their own. Raises :class:`ValidationError`, whose message is one line.
    """
    file = Path("interlock.toml" if path is None else path)
    tree = parse_toml(file) if path is not None or file.exists() else {}
    reader = _Reader(str(file) if tree else None, os.environ if env is None else env)
    if tree.get("providers", {}) == {}:
        tree["providers"] = reader.offered()
    reader.overlay(tree)
    if isinstance(tree["providers"], dict):
        for known, (base_url, _) in _WELL_KNOWN.items():
            if isinstance(provider := tree["providers"].get(known), dict):
                provider.setdefault("base_url", base_url)
    config: Config = reader.struct(Config, tree, ())
    reader.check_parts(config)
    return config


def read_struct(kind: type[Struct], tree: dict[str, Any], source: str) -> Struct:
    """*tree* as a *kind*, whose keys and rules are its own; *source* is what refusals name.

    Raises :class:`ValidationError`, whose message is one line.
    """
    found: Struct = _Reader(source, {}).struct(kind, tree, ())
    return found


def parse_toml(file: Path) -> dict[str, Any]:
    """What *file* says. Raises :class:`ValidationError`, whose message is one line."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValidationError(f"{file}: cannot be read: {error.strerror}") from None
    except RecursionError:
        raise ValidationError(f"{file}: nested too deeply") from None
    except ValueError as error:  # not UTF-8, not TOML, or a number of thousands of digits
        place = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)$", str(error))
        line = f":{place[1]}" if place and place[1] else ""
        raise ValidationError(f"{file}{line}: not valid TOML: {error}") from None


@cache
def _fields(kind: type[msgspec.Struct]) -> dict[str, tuple[msgspec.structs.FieldInfo, Any]]:
    """The keys of *kind*, each with its field and its rule or shape; an ``id`` is no key."""
    fields = {}
    for field in msgspec.structs.fields(kind):
        shape = field.type
        if get_origin(shape) is Annotated:
            shape = shape.__metadata__[0]
        elif choices := [one for one in (shape, *get_args(shape)) if get_origin(one) is Literal]:
            shape = partial(one_of, get_args(choices[0]))  # of "this or that, or nothing" as well
        if shape is not str:
            fields[field.encode_name] = field, shape
    return fields


class _Reader:
    """Turns raw tables into structs, and knows for each key where it was written."""

    def __init__(self, file: str | None, env: Mapping[str, str]) -> None:
        self.file = file
        self.env = env
        self.origins: dict[tuple[str, ...], str] = {}

    def wrong(self, path: tuple[str, ...], reason: str) -> ValidationError:
        """The refusal of the key at *path*, naming the variable that set it, else the file."""
        below = [name for at, name in self.origins.items() if at[: len(path)] == path]
        beside = [name for at, name in self.origins.items() if at[:-1] == path[:-1]]
        source = next(filter(None, [*below, self.file, *beside]), "configuration")
        key = ".".join(p if re.fullmatch(r"[\w-]+", p, re.ASCII) else shown(p) for p in path)
        return ValidationError(f"{source}: {key}: {reason}", source=source, key=key)

    def offered(self) -> dict[str, Any]:
        """The providers whose keys are in the environment, else all that are well known."""
        found: dict[str, Any] = {}
        for known, (_, variable) in _WELL_KNOWN.items():
            if self.env.get(variable):
                found[known] = {"api_key": f"env:{variable}"}
                self.origins["providers", known, "api_key"] = variable
        return found or {known: {} for known in _WELL_KNOWN}

    def overlay(self, tree: dict[str, Any]) -> None:
        """Lay the variables of the environment over *tree*."""
        for variable in sorted(self.env):
            if not variable.startswith("INTERLOCK_"):
                continue
            path = variable.removeprefix("INTERLOCK_").lower().split("__")
            if len(path) > 1 or path[0] in _fields(Config):
                self._put(tree, path, variable)
            elif key := _misspelt(path[0], self.env[variable]):
                reason = f"not a known key; did you mean INTERLOCK_{key.upper()}?"
                raise ValidationError(f"{variable}: {reason}", source=variable)

    def _put(self, table: dict[str, Any], path: list[str], variable: str) -> None:
        at: tuple[str, ...] = ()
        for part in path:
            # No variable is called my-llm, so MY_LLM stands for it too.
            key = next((k for k in table if re.sub(r"\W", "_", k.lower()) == part), part)
            at = (*at, key)
            if len(at) == len(path):
                table[key] = EnvText(self.env[variable])
                self.origins[at] = variable
            elif not isinstance(table := table.setdefault(key, {}), dict):
                raise self.wrong(at, f"{shown(table)} is not a table, but {variable} is set")

    def struct(self, kind: type[msgspec.Struct], raw: Any, path: tuple[str, ...]) -> Any:
        """*raw*, which must be a table of known keys, as a *kind*."""
        fields = _fields(kind)
        for key in self._expect(dict, raw, path):
            if key not in fields:
                close = difflib.get_close_matches(key, fields, 1)
                hint = f"did you mean {close[0]}? " if close else ""
                reason = f"not a known key; {hint}known here: {', '.join(fields)}"
                raise self.wrong((*path, key), reason)
        values = {"id": path[-1]} if kind is ProviderConfig else {}
        for key, (field, shape) in fields.items():
            if key in raw:
                values[field.name] = self._value(shape, raw[key], (*path, key))
            elif field.required:
                raise self.wrong((*path, key), "is needed, but not set")
        return kind(**values)

    def _value(self, shape: Any, raw: Any, path: tuple[str, ...]) -> Any:
        if isinstance(shape, type):
            return self.struct(shape, raw, path)
        if get_origin(shape) is tuple:
            entries = enumerate(self._expect(list, raw, path))
            return tuple(self.struct(get_args(shape)[0], v, (*path, str(n))) for n, v in entries)
        if get_origin(shape) is dict:
            for name in self._expect(dict, raw, path):
                if not re.fullmatch(r"[A-Za-z0-9_](?:(?!\.\.)[A-Za-z0-9._:@-]){0,127}", name):
                    reason = "not a name: at most 128 letters, digits and . _ : @ -"
                    raise self.wrong((*path, name), reason)
            return {k: self.struct(get_args(shape)[1], v, (*path, k)) for k, v in raw.items()}
        if shape is secret and isinstance(raw, str) and raw.startswith("env:"):
            variable = raw.removeprefix("env:")
            raw = self.env.get(variable)
            if not raw:
                raise self.wrong(path, f"the environment variable {variable} is not set")
        try:
            return shape(raw)
        except ValueError as error:
            raise self.wrong(path, str(error)) from None

    def _expect(self, kind: type, raw: Any, path: tuple[str, ...]) -> Any:
        if not isinstance(raw, kind):
            allowed = "a table" if kind is dict else "a list of tables"
            raise self.wrong(path, f"{shown(raw)} is not {allowed}")
        return raw

    def check_parts(self, config: Config) -> None:
        """Refuse what is wrong only beside something else: missing parts, names of nothing."""
        for name, provider in config.providers.items():
            for n, wording in enumerate(provider.wordings):
                if not (wording.code or wording.text):
                    raise self.wrong(("providers", name, "wordings", str(n)), "needs code or text")
        for name, agent in config.agents.items():
            for key in ("command", "provider", "model", "target"):
                if bool(getattr(agent, key)) != (key in _NEEDED[agent.type]):
                    verb = "is not for" if getattr(agent, key) else "is needed, but not set, for"
                    raise self.wrong(("agents", name, key), f"{verb} an agent of type {agent.type}")
            for key in ("dialect", "system", "input", "output"):
                if getattr(agent, key) is not None and key not in _POSSIBLE[agent.type]:
                    raise self.wrong(("agents", name, key), f"is not for an agent of type {agent.type}")
            if agent.provider is not None:
                self._known(("agents", name, "provider"), agent.provider, config.providers)
        for name, pool in config.pools.items():
            self._known(("pools", name, "agent"), pool.agent, config.agents)

    def _known(self, path: tuple[str, ...], name: str, known: Mapping[str, object]) -> None:
        if name not in known:
            known_names = ", ".join(known) or "none"
            raise self.wrong(path, f"{shown(name)} is not configured; configured: {known_names}")


def _misspelt(name: str, value: str) -> str | None:
    """What a variable without ``__`` was surely meant to be: one ``_`` for two, or a slip."""
    kinds = {key: kind for key, (_, kind) in _fields(Config).items() if isinstance(kind, type)}
    slips = {f"{table}_{key}": f"{table}__{key}" for table in kinds for key in _fields(kinds[table])}
    if name in slips and "://" not in value:  # a cluster's own INTERLOCK_SERVER_PORT is tcp://...
        return slips[name]
    return next(iter(difflib.get_close_matches(name, ["store", "coordination"], 1, 0.8)), None)
