"""How a server logs: as text or as lines of JSON, and never a secret.

What is logged quotes others: an upstream's refusal, a header, an address. So every line is searched for what
the configuration calls secret, and for what looks like a credential; both become ``***``.
"""

from __future__ import annotations

import logging
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import TextIO

    from interlock.secret import Secret

HIDDEN: Final = "***"
SHORTEST: Final = 6
"""Characters of a configured secret that is searched for: a shorter one is part of ordinary words."""

_NAMES: Final = r"api[-_]?key|authorization|credential|password|passwd|secret|token|x-goog-api-key"
_PATTERNS: Final = (
    # What stands behind a name: api_key=…, "authorization": "Bearer …", ?token=…
    (
        re.compile(
            rf"(?i)((?:{_NAMES})\b['\"]?\]?,?\s{{0,3}}(?:[:=]|b?['\"])\s{{0,3}}(?:b?['\"])?)"
            r"((?:bearer|basic|token)\s+)?[^\s'\"&,;)}\]]+"
        ),
        rf"\1\2{HIDDEN}",
    ),
    (re.compile(r"(?i)\b(bearer|basic)(\s+)[\w.~+/=-]{6,}"), rf"\1\2{HIDDEN}"),
    # Keys that say by their beginning what they are.
    (re.compile(r"\b(?:[sprx]k|ak|gsk|xai|hf|nvapi|pplx|r8|gh[opsu]|github_pat)[-_][\w-]{8,}"), HIDDEN),
    (re.compile(r"\bAIza[\w-]{20,}|\beyJ[\w-]{8,}\.[\w-]{4,}(?:\.[\w-]*)?|\bAKIA[A-Z0-9]{12,}"), HIDDEN),
    # The user and the password of a URL.
    (re.compile(r"(?<=://)[^/\s@'\"]{1,200}@"), f"{HIDDEN}@"),
)


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """*text* with ``***`` for each of *secrets* and for whatever looks like a credential."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    for pattern, instead in _PATTERNS:
        text = pattern.sub(instead, text)
    return text


class Redacting(logging.Formatter):
    """A line of text for each record, with its traceback below it."""

    def __init__(self, secrets: Iterable[Secret] = ()) -> None:
        super().__init__("%(levelname)s %(name)s: %(message)s")
        known = {secret.reveal() for secret in secrets}
        # The longest first: one may be part of another.
        self._secrets = sorted((one for one in known if len(one) >= SHORTEST), key=len, reverse=True)

    def format(self, record: logging.LogRecord) -> str:
        return self.redacted(super().format(record))

    def redacted(self, text: str) -> str:
        """*text* without secrets, fit to be written in UTF-8."""
        return redact(text, self._secrets).encode("utf-8", "backslashreplace").decode()


class JsonLines(Redacting):
    """One JSON object in one line for each record: time, level, logger, message, and its traceback if any."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC)
        said = {
            "time": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": self.redacted(record.name),
            "message": self.redacted(record.getMessage()),
        }
        if record.exc_info:
            said["exception"] = self.redacted(self.formatException(record.exc_info))
        if record.stack_info:
            said["stack"] = self.redacted(record.stack_info)
        return msgspec.json.encode(said).decode()


def log_to(
    stream: TextIO | None = None,
    *,
    style: Literal["text", "json"] = "text",
    secrets: Iterable[Secret] = (),
    level: int = logging.WARNING,
) -> logging.Handler:
    """Have everything from *level* on that this process logs written to *stream* (default: standard error).

    Nothing happens where the process logs somewhere already; the handler is returned in any case.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines(secrets) if style == "json" else Redacting(secrets))
    logging.basicConfig(level=level, handlers=[handler])
    return handler
