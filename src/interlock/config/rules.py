"""The rules of values: a raw one in, the value out, or an error that says what is allowed."""

from __future__ import annotations

import json
import re
import shlex
from functools import partial
from typing import NoReturn
from urllib.parse import urlsplit

from interlock.errors import ValidationError
from interlock.secret import Secret

MAX_CAPACITY = 1_000_000

_UNIT_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_UNIT_BYTES = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


class EnvText(str):
    """Text of the environment, where numbers and lists can only be written as text."""

    __slots__ = ()


def shown(value: object) -> str:
    """*value* as the user wrote it, short and on one line."""
    if isinstance(value, str | bool):
        text = json.dumps(value)
        return text if len(text) <= 80 else f'{text[:76]}..."'
    if isinstance(value, dict | list):
        return "a table" if isinstance(value, dict) else "a list"
    return "that number" if isinstance(value, int) and abs(value) > 10**18 else str(value)


def refuse(value: object, allowed: str) -> NoReturn:
    """Raise `ValidationError`: *value* is not *allowed*."""
    raise ValidationError(f"{shown(value)} is not {allowed}")


def parse_duration(text: object, days: int = 1) -> float:
    """A duration with its unit (``"350ms"``, ``"1.5s"``, ``"2m"``, ``"1h"``, ``"1d"``) in seconds.

    Raises :class:`ValidationError` for anything else, for less than 0 and for more than so many days.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([a-z]+)", text) if isinstance(text, str) else None
    if match is None or match[2] not in _UNIT_MS:
        refuse(text, 'a duration with its unit, such as "350ms", "5s", "1.5s", "2m", "1h" or "1d"')
    seconds = float(match[1]) * _UNIT_MS[match[2]] / 1000
    return seconds if seconds <= 86_400 * days else refuse(text, f'a duration of at most "{days}d"')


def positive_duration(text: object) -> float:
    """As `parse_duration`, and more than 0."""
    return parse_duration(text) or refuse(text, "a duration above 0")


def age(text: object) -> float | None:
    """A duration of up to ten years, or ``"forever"``, which is None."""
    return None if text == "forever" else parse_duration(text, 3650)


def parse_capacity(value: object) -> int | None:
    """A whole number from 1 to 1,000,000, or ``"unlimited"``, which is None.

    Raises :class:`ValidationError` for anything else; ``true`` is not 1.
    """
    return None if value == "unlimited" else whole(1, MAX_CAPACITY, value, ', or "unlimited"')


def whole(least: int, most: int, value: object, or_else: str = "") -> int:
    """A whole number in this range."""
    written = isinstance(value, EnvText) and re.fullmatch(r"-?[0-9]{1,18}", value)
    number = int(written[0]) if written else value
    if type(number) is not int or not least <= number <= most:
        refuse(value, f"a whole number from {least} to {most}{or_else}")
    return number


def size(value: object) -> int:
    """A number of bytes, with or without a unit."""
    match = re.fullmatch(r"([0-9]{1,12})([KMG]iB|)", value) if isinstance(value, str) else None
    size = int(match[1]) * _UNIT_BYTES[match[2]] if match else value
    if type(size) is not int or not 1 <= size <= 1 << 40:
        refuse(value, 'a size: bytes as a whole number, or text such as "512KiB" or "32MiB"')
    return size


def text(value: object) -> str:
    """A text that says something."""
    if not isinstance(value, str) or not value or not value.isprintable():
        refuse(value, "a non-empty text without control characters")
    return str(value)


def texts(value: object) -> tuple[str, ...]:
    """A list of such texts."""
    if isinstance(value, EnvText):
        value = [part.strip() for part in value.split(",")]
    if not isinstance(value, list):
        refuse(value, 'a list of texts, such as ["a", "b"]')
    return tuple(map(text, value))


def command(value: object) -> tuple[str, ...]:
    """A program and its arguments."""
    command = texts(shlex.split(value) if isinstance(value, EnvText) else value)
    return command or refuse(value, 'a program and its arguments, such as ["my-agent", "--json"]')


def one_of(allowed: tuple[str, ...], value: object) -> str:
    """One of the *allowed* texts."""
    return str(value) if value in allowed else refuse(value, " or ".join(map(shown, allowed)))


def matching(pattern: str, allowed: str, value: object) -> str:
    """A text of this *pattern*; what may carry a password is not shown in the refusal."""
    if isinstance(value, str) and re.fullmatch(pattern, value):
        return str(value)
    if isinstance(value, str) and set("@?") & set(value):
        raise ValidationError(f"this is not {allowed}")  # not shown: it may carry a password
    refuse(value, allowed)


PATH = r"(?:(?!\.\.)[A-Za-z0-9._~!$&'()*+,;=:@%/-])*"
HTTP = rf"https?://(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]+)?(?:/{PATH})?"

store_url = partial(
    matching,
    r"memory:|sqlite:///[^?#\0]+|postgres(?:ql)?://\S+",
    '"memory:", "sqlite:///file.db", "sqlite:////directory/file.db" or "postgresql://..."',
)
coordination = partial(
    matching, rf"local|{HTTP}|rediss?://\S+", '"local", "http://host:7411" or "redis://host:6379"'
)
usage = partial(matching, rf"llama\.cpp|vllm|/(?!/){PATH}", 'a path such as "/usage", "llama.cpp" or "vllm"')
target = partial(matching, r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", '"module:name", such as "my_agents:coder"')


def base_url(value: object) -> str:
    """The beginning of a provider's URLs, without a slash at its end."""
    allowed = '"http://host" or "https://host" with or without port and path, and nothing else'
    url = matching(HTTP, allowed, value).rstrip("/")
    _ = urlsplit(url).port  # raises for an impossible port or IPv6 address
    return url


def secret(value: object) -> Secret:
    """Something that is never shown."""
    if not isinstance(value, str) or not re.fullmatch(r"[!-~]+", value):
        raise ValidationError('this is not "env:NAME" or a text of visible ASCII characters')
    return Secret(str(value))
