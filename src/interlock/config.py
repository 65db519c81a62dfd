"""``interlock.toml`` and the environment as frozen structs, checked once.

Each field carries its own rule, so that the structs below are the whole reference: the name is the
key in the file, the annotation says what is allowed, the default what holds without it. Later wins:
the defaults, the file, ``INTERLOCK_SERVER__PORT`` and the like. Every refusal is one line that
names the file or the variable, the key, what was wrong and what is allowed.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import shlex
import tomllib
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, get_args, get_origin
from urllib.parse import urlsplit

import msgspec

from interlock.errors import ValidationError
from interlock.secret import Secret

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_CAPACITY = 1_000_000

_UNIT_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_UNIT_BYTES = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


class _EnvText(str):
    """Text of the environment, where numbers and lists can only be written as text."""

    __slots__ = ()


# -- rules: a raw value in, the value out, or a ValueError that says what is allowed ---------------


def _shown(value: object) -> str:
    """*value* as the user wrote it, short and on one line."""
    if isinstance(value, str | bool):
        text = json.dumps(value)
        return text if len(text) <= 80 else f'{text[:76]}..."'
    if isinstance(value, dict | list):
        return "a table" if isinstance(value, dict) else "a list"
    return "that number" if isinstance(value, int) and abs(value) > 10**18 else str(value)


def _refuse(value: object, allowed: str) -> NoReturn:
    raise ValidationError(f"{_shown(value)} is not {allowed}")


def parse_duration(text: object) -> float:
    """A duration with its unit (``"350ms"``, ``"1.5s"``, ``"2m"``, ``"1h"``, ``"1d"``) in seconds.

    Raises :class:`ValidationError` for anything else, for less than 0 and for more than a day.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([a-z]+)", text) if isinstance(text, str) else None
    if match is None or match[2] not in _UNIT_MS:
        _refuse(text, 'a duration with its unit, such as "350ms", "5s", "1.5s", "2m", "1h" or "1d"')
    seconds = float(match[1]) * _UNIT_MS[match[2]] / 1000
    return seconds if seconds <= 86_400 else _refuse(text, 'a duration of at most "1d"')


def _positive_duration(text: object) -> float:
    return parse_duration(text) or _refuse(text, "a duration above 0")


def parse_capacity(value: object) -> int | None:
    """A whole number from 1 to 1,000,000, or ``"unlimited"``, which is None.

    Raises :class:`ValidationError` for anything else; ``true`` is not 1.
    """
    return None if value == "unlimited" else _whole(1, MAX_CAPACITY, value, ', or "unlimited"')


def _whole(least: int, most: int, value: object, or_else: str = "") -> int:
    written = isinstance(value, _EnvText) and re.fullmatch(r"-?[0-9]{1,18}", value)
    number = int(written[0]) if written else value
    if type(number) is not int or not least <= number <= most:
        _refuse(value, f"a whole number from {least} to {most}{or_else}")
    return number


def _size(value: object) -> int:
    match = re.fullmatch(r"([0-9]{1,12})([KMG]iB|)", value) if isinstance(value, str) else None
    size = int(match[1]) * _UNIT_BYTES[match[2]] if match else value
    if type(size) is not int or not 1 <= size <= 1 << 40:
        _refuse(value, 'a size: bytes as a whole number, or text such as "512KiB" or "32MiB"')
    return size


def _text(value: object) -> str:
    if not isinstance(value, str) or not value or not value.isprintable():
        _refuse(value, "a non-empty text without control characters")
    return str(value)


def _texts(value: object) -> tuple[str, ...]:
    if isinstance(value, _EnvText):
        value = [part.strip() for part in value.split(",")]
    if not isinstance(value, list):
        _refuse(value, 'a list of texts, such as ["a", "b"]')
    return tuple(map(_text, value))


def _command(value: object) -> tuple[str, ...]:
    command = _texts(shlex.split(value) if isinstance(value, _EnvText) else value)
    return command or _refuse(value, 'a program and its arguments, such as ["my-agent", "--json"]')


def _one_of(allowed: tuple[str, ...], value: object) -> str:
    return str(value) if value in allowed else _refuse(value, " or ".join(map(_shown, allowed)))


def _matching(pattern: str, allowed: str, value: object) -> str:
    if isinstance(value, str) and re.fullmatch(pattern, value):
        return str(value)
    if isinstance(value, str) and set("@?") & set(value):
        raise ValidationError(f"this is not {allowed}")  # not shown: it may carry a password
    _refuse(value, allowed)


_PATH = r"(?:(?!\.\.)[A-Za-z0-9._~!$&'()*+,;=:@%/-])*"
_HTTP = rf"https?://(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]+)?(?:/{_PATH})?"

_store_url = partial(
    _matching,
    r"memory:|sqlite:///[^?#\0]+|postgres(?:ql)?://\S+",
    '"memory:", "sqlite:///file.db", "sqlite:////directory/file.db" or "postgresql://..."',
)
_coordination = partial(
    _matching, rf"local|{_HTTP}|rediss?://\S+", '"local", "http://host:7411" or "redis://host:6379"'
)
_usage = partial(
    _matching, rf"llama\.cpp|vllm|/(?!/){_PATH}", 'a path such as "/usage", "llama.cpp" or "vllm"'
)
_target = partial(_matching, r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", '"module:name", such as "my_agents:coder"')


def _base_url(value: object) -> str:
    allowed = '"http://host" or "https://host" with or without port and path, and nothing else'
    url = _matching(_HTTP, allowed, value).rstrip("/")
    _ = urlsplit(url).port  # raises for an impossible port or IPv6 address
    return url


def _secret(value: object) -> Secret:
    if not isinstance(value, str) or not re.fullmatch(r"[!-~]+", value):
        raise ValidationError('this is not "env:NAME" or a text of visible ASCII characters')
    return Secret(str(value))


# -- the structs -----------------------------------------------------------------------------------

Text = Annotated[str, _text]
Capacity = Annotated[int | None, parse_capacity]
Seconds = Annotated[float, parse_duration]
PositiveSeconds = Annotated[float, _positive_duration]


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Where the server listens and who may speak to it. Port 0 takes any free port."""

    host: Text = "127.0.0.1"
    port: Annotated[int, partial(_whole, 0, 65535)] = 7411
    token: Annotated[Secret | None, _secret] = None
    allowed_hosts: Annotated[tuple[str, ...], _texts] = ()


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
    code: Annotated[str | None, _text] = None
    text: Annotated[str | None, _text] = None


class ProviderConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One upstream. Without ``api_key`` the caller's own passes through."""

    id: str
    base_url: Annotated[str, _base_url]
    api_key: Annotated[Secret | None, _secret] = None
    limit: Capacity = None
    cooldown: Seconds = 0.35
    cooldown_cancelled: Annotated[float | None, parse_duration] = None
    cooldown_failed: Annotated[float | None, parse_duration] = None
    usage: Annotated[str | None, _usage] = None
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
    max_body: Annotated[int, _size] = 32 << 20


class PoolConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Warm agents of one kind."""

    agent: Text
    size: Annotated[int, partial(_whole, 1, MAX_CAPACITY)] = 10
    max_overflow: Annotated[int, partial(_whole, 0, MAX_CAPACITY)] = 5
    strategy: Literal["lifo", "fifo"] = "lifo"


class AgentConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One way to run an agent: a command, a chat through a provider, or a Python callable."""

    type: Literal["command", "chat", "python"]
    command: Annotated[tuple[str, ...], _command] = ()
    provider: Annotated[str | None, _text] = None
    model: Annotated[str | None, _text] = None
    target: Annotated[str | None, _target] = None


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The whole configuration. Its ``repr`` shows neither secrets nor passwords in URLs."""

    store: Annotated[str, _store_url] = "sqlite:///interlock.db"
    coordination: Annotated[str, _coordination] = "local"
    server: ServerConfig = ServerConfig()
    limits: LimitsConfig = LimitsConfig()
    providers: dict[str, ProviderConfig] = {}
    gateway: GatewayConfig = GatewayConfig()
    pools: dict[str, PoolConfig] = {}
    agents: dict[str, AgentConfig] = {}

    def __repr__(self) -> str:
        return f"Config({describe(self)})"


_NEEDED = {"command": ("command",), "chat": ("provider", "model"), "python": ("target",)}

_WELL_KNOWN = {
    "openai": ("https://api.openai.com/v1", "OPENAI_API_KEY"),
    "anthropic": ("https://api.anthropic.com", "ANTHROPIC_API_KEY"),
}


# -- reading ---------------------------------------------------------------------------------------


def load_config(path: str | Path | None = None, env: Mapping[str, str] | None = None) -> Config:
    """Read *path* (None: ``interlock.toml`` here, if there) and *env* (None: the process's).

    Variables with ``__`` are keys (``INTERLOCK_PROVIDERS__OPENAI__LIMIT``), and so are
    ``INTERLOCK_STORE`` and ``INTERLOCK_COORDINATION``. Others may be anyone's, such as a cluster's
    ``INTERLOCK_PORT``: they are left alone unless they look like a misspelt key. Where the file has
    no provider, those are offered whose keys are in the environment, else both, for callers with
    keys of their own. Raises :class:`ValidationError`, whose message is one line.
    """
    file = Path("interlock.toml" if path is None else path)
    tree = _parse(file) if path is not None or file.exists() else {}
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


def describe(config: Config) -> dict[str, Any]:
    """*config* as plain JSON values, in seconds and bytes; secrets and passwords are ``***``."""
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(config, enc_hook=str))
    for key in ("store", "coordination"):
        plain[key] = re.sub(r"(?<=://)[^/].*(?=@)|(?<=\?).*", "***", plain[key])
    return plain


def _parse(file: Path) -> dict[str, Any]:
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
        elif get_origin(shape) is Literal:
            shape = partial(_one_of, get_args(shape))
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
        key = ".".join(p if re.fullmatch(r"[\w-]+", p, re.ASCII) else _shown(p) for p in path)
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
                table[key] = _EnvText(self.env[variable])
                self.origins[at] = variable
            elif not isinstance(table := table.setdefault(key, {}), dict):
                raise self.wrong(at, f"{_shown(table)} is not a table, but {variable} is set")

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
        if shape is _secret and isinstance(raw, str) and raw.startswith("env:"):
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
            raise self.wrong(path, f"{_shown(raw)} is not {allowed}")
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
            if agent.provider is not None:
                self._known(("agents", name, "provider"), agent.provider, config.providers)
        for name, pool in config.pools.items():
            self._known(("pools", name, "agent"), pool.agent, config.agents)

    def _known(self, path: tuple[str, ...], name: str, known: Mapping[str, object]) -> None:
        if name not in known:
            known_names = ", ".join(known) or "none"
            raise self.wrong(path, f"{_shown(name)} is not configured; configured: {known_names}")


def _misspelt(name: str, value: str) -> str | None:
    """What a variable without ``__`` was surely meant to be: one ``_`` for two, or a slip."""
    kinds = {key: kind for key, (_, kind) in _fields(Config).items() if isinstance(kind, type)}
    slips = {f"{table}_{key}": f"{table}__{key}" for table in kinds for key in _fields(kinds[table])}
    if name in slips and "://" not in value:  # a cluster's own INTERLOCK_SERVER_PORT is tcp://...
        return slips[name]
    return next(iter(difflib.get_close_matches(name, ["store", "coordination"], 1, 0.8)), None)
