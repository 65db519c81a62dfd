"""What passes the gateway besides the body: header fields, the path, and what we add.

Every end-to-end field passes both ways, in its order and as often as it came. What speaks of one
connection stays on it, what speaks of the other origin stays there, and ours are taken off.
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Final

from interlock.errors import ValidationError
from interlock.http.ratelimit import RawHeaders as RawHeaders
from interlock.http.ratelimit import Room, rate_limit_fields

if TYPE_CHECKING:
    from collections.abc import Sequence

    from interlock.http.gateway.dialects import Dialect

_HOP_BY_HOP: Final = frozenset(
    b"connection keep-alive te trailer transfer-encoding upgrade http2-settings".split()
)
_NOT_SENT_UP: Final = _HOP_BY_HOP | frozenset(
    # The client sets the first two anew, and the body is here in full: nothing is left to expect.
    b"host content-length expect cookie forwarded".split()
)
_NOT_SENT_DOWN: Final = _HOP_BY_HOP | frozenset(
    b"set-cookie set-cookie2 server alt-svc strict-transport-security clear-site-data".split()
)
_NOT_UP_PREFIXES: Final = (b"x-interlock-", b"x-forwarded-", b"proxy-")
_NOT_DOWN_PREFIXES: Final = (b"x-interlock-", b"access-control-", b"proxy-")
_CREDENTIALS: Final = (b"authorization", b"x-api-key", b"api-key", b"x-goog-api-key")
_CONTROLS: Final = bytes({*range(32), 127} - {9})

_TARGET_MAX: Final = 8 * 1024
_GATEWAY_PATH: Final = re.compile(rb"/gateway/[^/]+")
_PATH: Final = re.compile(rb"(?:/(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})*)*")
_QUERY: Final = re.compile(rb"[\x21\x22\x24-\x7e]*")
# Control characters, "/" and "\" in disguise, and "%", the beginning of a second disguise.
_DISGUISED: Final = re.compile(rb"%(?:[01][0-9a-f]|7f|2f|5c|25)", re.IGNORECASE)
_DOT: Final = re.compile(rb"%2e", re.IGNORECASE)


def request_headers(
    raw: Sequence[tuple[bytes, bytes]], *, api_key: str | None, dialect: Dialect
) -> list[tuple[str, str]]:
    """The header fields that go to the provider.

    The caller's credentials pass, unless the provider has a key of its own: then none of them
    does, and the key goes where the caller's was. Raises ``ValidationError`` for a field that no
    parser should have let in.
    """
    if _holds_control(b"".join(chain.from_iterable(raw))):
        name = next(name for name, value in raw if _holds_control(name + value))
        raise ValidationError(f"header {_text(name.lower())!r} holds a control character; send it without")
    dropped = _named_in_connection(raw)
    kept: list[tuple[str, str]] = []
    used: list[bytes] = []
    for name, value in raw:
        lower, text = _sent_up(name)
        if text is None or lower in dropped:
            continue
        if api_key is not None and lower in _CREDENTIALS:
            used.append(lower)
        else:
            kept.append((text, _text(value)))
    if api_key is not None:
        kept.append(_credential(api_key, used, dialect))
    return kept


def _holds_control(data: bytes) -> bool:
    return len(data.translate(None, _CONTROLS)) != len(data)


@lru_cache(maxsize=1024)
def _sent_up(name: bytes) -> tuple[bytes, str | None]:
    """*name* in lower case, and as text; None for a field that never goes up."""
    lower = name.lower()
    stays = lower in _NOT_SENT_UP or lower.startswith(_NOT_UP_PREFIXES)
    return lower, None if stays else _text(name)


def _credential(api_key: str, used: list[bytes], dialect: Dialect) -> tuple[str, str]:
    default = b"x-api-key" if dialect == "anthropic" else b"authorization"
    style = used[0] if len(set(used)) == 1 else default
    if style == b"authorization":
        return "authorization", f"Bearer {api_key}"
    return style.decode(), api_key


def response_headers(raw: Sequence[tuple[bytes, bytes]]) -> RawHeaders:
    """The header fields that go back to the caller; the body follows as it came, undecoded."""
    dropped = _named_in_connection(raw)
    if any(name.lower() == b"transfer-encoding" for name, _ in raw):
        dropped.add(b"content-length")  # it would not be the length of what follows
    return [field for field in raw if _goes_down(field[0]) and field[0].lower() not in dropped]


@lru_cache(maxsize=1024)
def _goes_down(name: bytes) -> bool:
    lower = name.lower()
    return lower not in _NOT_SENT_DOWN and not lower.startswith(_NOT_DOWN_PREFIXES)


def _named_in_connection(raw: Sequence[tuple[bytes, bytes]]) -> set[bytes]:
    """The fields that belong to this connection. What describes the body never does."""
    return {
        option
        for name, value in raw
        if name.lower() == b"connection"
        for part in value.split(b",")
        if (option := part.strip().lower()) and not option.startswith(b"content-")
    }


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def upstream_path(raw_path: bytes, query: bytes) -> str:
    """Path and query to append to the provider's base URL: what follows ``/gateway/{provider}``.

    *raw_path* is the path as it came, before any decoding. It goes on byte for byte or not at all:
    ``ValidationError`` for whatever could be read as a way out from under the base URL.
    """
    if len(raw_path) + len(query) > _TARGET_MAX:
        raise ValidationError(
            f"path and query have {len(raw_path) + len(query)} bytes; send at most {_TARGET_MAX}"
        )
    path = _below(raw_path)
    if not query:
        return path
    if not _QUERY.fullmatch(query):
        raise ValidationError("the query has characters that a URL may not; percent-encode them")
    return f"{path}?{query.decode('ascii')}"


# A query is not remembered: it may hold a key.
@lru_cache(maxsize=256)
def _below(raw_path: bytes) -> str:
    prefix = _GATEWAY_PATH.match(raw_path)
    if prefix is None:
        raise ValidationError("path must begin with /gateway/{provider}")
    path = raw_path[prefix.end() :]
    if not _PATH.fullmatch(path):
        raise ValidationError("path has characters that a URL may not; percent-encode them")
    if b"//" in path or _DISGUISED.search(path):
        raise ValidationError(
            "path has an empty segment, or a slash, backslash, percent sign or control character "
            "in percent encoding; name each segment plainly"
        )
    # Some servers cut parameters (";") off a segment before they resolve dots.
    segments = (segment.partition(b";")[0] for segment in _DOT.sub(b".", path).split(b"/"))
    if any(segment in (b".", b"..") for segment in segments):
        raise ValidationError("path has a dot segment; send the path that it stands for")
    return path.decode("ascii")


def concurrency_headers(
    limit: int | None, in_flight: int, paused_for: float | None, wait_ms: int
) -> RawHeaders:
    """How long this call waited, and the limit as IETF ``RateLimit`` fields if there is one.

    While the provider is paused nothing is left of it: ``r=0``, and ``t`` says for how long.
    """
    rooms = [] if limit is None else [Room("concurrency", limit, limit - in_flight, paused_for)]
    return [(b"x-interlock-wait-ms", b"%d" % wait_ms), *rate_limit_fields(rooms)]
