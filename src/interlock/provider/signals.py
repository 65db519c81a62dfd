"""What an upstream says about its limits: status, headers and body in, typed facts out.

All of it comes from outside, so every reader here is a total function: any value in, a number in
range or ``None`` out, never an exception, and bounded work. ``None`` means "it does not say".

Which wording means what is data: ``WORDINGS``, read from the top, first match wins. Codes that can
mean one thing only stand first, then texts that are more specific than the codes around them (one
provider sends ``rate_limit_error`` both for a rate and for too many connections), then the general
codes, and the vague texts last.
"""

from __future__ import annotations

import re
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, get_args

import msgspec

from interlock.errors import ValidationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence, Set

    Headers: TypeAlias = Mapping[str, str] | Iterable[tuple[str, str]]

Reason: TypeAlias = Literal["concurrency", "rate", "overload", "quota"]
REASONS: Final[tuple[Reason, ...]] = get_args(Reason)

MAX_RETRY_AFTER: Final = 900.0  # seconds
MAX_COUNT: Final = 1_000_000  # the largest capacity that a limit may have
CONCURRENT: Final = "concurrent-requests"  # the IETF draft's name of the unit

_YEAR: Final = 366 * 86400.0


@dataclass(frozen=True, slots=True)
class RateWindow:
    """One limit that an upstream reports: what is allowed, what is left, when it starts afresh.

    ``reset_after`` and ``window`` are seconds. ``unit`` is what is counted, in the words of
    draft-ietf-httpapi-ratelimit-headers; ``CONCURRENT`` means work in flight, not work per time.
    """

    name: str
    limit: int | None = None
    remaining: int | None = None
    reset_after: float | None = None
    unit: str | None = None
    window: float | None = None


@dataclass(frozen=True, slots=True)
class RateLimitSignal:
    """An upstream said "too much", and of what.

    ``concurrency``: too many at once. ``rate``: too many per time. ``overload``: the upstream's own
    trouble. ``quota``: nothing more until somebody pays or a day has passed. ``retry_after`` is in
    seconds, 0 to 900; ``code`` and ``message`` are the upstream's words, made fit to be shown.
    """

    reason: Reason
    retry_after: float | None = None
    code: str | None = None
    message: str | None = None
    status: int | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Wording:
    """How "too much" is worded: all parts that are given must match, in any letter case.

    ``provider`` is the configured id. ``code`` equals an error code, type or status of the body;
    ``text`` occurs in a code or a message.
    """

    reason: Reason
    provider: str | None = None
    code: str | None = None
    text: str | None = None

    def fits(self, provider: str | None, codes: Set[str], words: str) -> bool:
        """Whether it matches these *codes* and *words*, both in small letters."""
        return (
            (self.provider is None or self.provider.lower() == (provider or "").lower())
            and (self.code is None or self.code.lower() in codes)
            and (self.text is None or self.text.lower() in words)
        )


def _codes(reason: Reason, codes: str) -> tuple[Wording, ...]:
    return tuple(Wording(reason, code=code) for code in codes.split())


def _texts(reason: Reason, *texts: str) -> tuple[Wording, ...]:
    return tuple(Wording(reason, text=text) for text in texts)


# Four-digit codes are z.ai's (GLM). Texts are searched in the codes as well.
WORDINGS: Final[tuple[Wording, ...]] = (
    *_codes("concurrency", "1302 too_many_concurrent_requests concurrency_limit_exceeded"),
    *_codes("concurrency", "CONCURRENT_LIMIT concurrency_limited InflightBatchsizeExceeded"),
    *_codes("quota", "insufficient_quota quota_exceeded exceeded_current_quota_error Arrearage"),
    *_codes("quota", "billing_hard_limit_reached billing_not_active budget_exceeded QuotaExceeded"),
    *_codes("quota", "insufficient_balance insufficient_user_quota usage_limit_reached"),
    *_codes("quota", "INSUFFICIENT_G1_CREDITS_BALANCE 1113 1304 1308 1309 1310"),
    *_codes("overload", "overloaded_error overloaded engine_overloaded_error engine_overloaded"),
    *_codes("overload", "ServerOverloaded server_is_overloaded model_overloaded 1305 1312"),
    *_codes("overload", "system_busy service_tier_capacity_exceeded queue_exceeded NoCapacity"),
    *_codes("overload", "capacity_exceeded slow_down"),
    *_texts("rate", "crossed tpm"),  # LiteLLM lists every limit that it knows, also the parallel one
    *_texts("concurrency", "concurrent connection", "concurrent request", "concurrent session"),
    *_texts("concurrency", "concurrency limit", "concurrency_limit", "concurrent_limit"),
    *_texts("concurrency", "concurrent_request", "UserConcurrentRequests", "current concurrency"),
    *_texts("concurrency", "organization concurrency", "high concurrency", "much concurrency"),
    *_texts("concurrency", "limit type: max_parallel_requests", "parallel request limit"),
    *_texts("concurrency", "too many connections", "simultaneous", "并发"),
    *_texts("overload", "overloaded", "capacity exceeded", "at capacity", "high demand"),
    *_texts("overload", "high traffic", "heavy traffic", "many requests at the moment"),
    *_texts("quota", "credit balance", "insufficient balance", "insufficient quota"),
    *_texts("quota", "available credits", "more credits", "out of credits", "spending limit"),
    *_texts("quota", "free-models-per-day", "usage limit reached", "reached your usage limit"),
    *_codes("rate", "rate_limit_exceeded rate_limit_error rate_limit_reached_error rate_limited"),
    *_codes("rate", "RESOURCE_EXHAUSTED rateLimitExceeded RateLimitReached 1303 1313"),
    *_codes("rate", "requests_rate_limit_exceeded AccountRateLimitExceeded model_rate_limit"),
    *_codes("rate", "token_quota_exceeded request_quota_exceeded too_many_tokens_error"),
    *_codes("rate", "dynamic_request_limited dynamic_token_limited limit_requests limit_burst_rate"),
    *_texts("rate", "per minute", "/ minute", "per second", "max RPM", "max TPM", "Throttling"),
    *_texts("rate", "too many tokens", "token rate limit", "was throttled"),
    *_texts("quota", "billing", "current quota", "quota exceeded", "exhausted their quota"),
    *_texts("quota", "/ month", "monthly limit", "daily limit"),
    *_texts("rate", "rate limit", "rate-limit", "rate_limit", "ratelimit"),
)


def parse_wordings(items: object) -> tuple[Wording, ...]:
    """The user's own wordings, from configuration; put them before ``WORDINGS``.

    *items* is a list of tables with ``reason``, at least one of ``code`` and ``text``, and perhaps
    ``provider``. Raises ``ValidationError`` naming the first entry that is wrong.
    """
    if not isinstance(items, list | tuple):
        raise ValidationError(f"wordings is {items!r:.80}; allowed is a list of tables")
    return tuple(_wording(f"wordings[{n}]", item) for n, item in enumerate(items))


def _wording(where: str, item: object) -> Wording:
    if not isinstance(item, dict):
        raise ValidationError(f"{where} is {item!r:.80}; allowed is a table")
    parts: dict[str, Any] = {}
    for key, value in item.items():
        if key not in ("reason", "provider", "code", "text"):
            allowed = "reason, provider, code and text"
            raise ValidationError(f"{where} has {key!r:.80}; allowed are {allowed}")
        text = f"{value}" if key == "code" and type(value) is int else value
        if not isinstance(text, str) or not text.strip():
            raise ValidationError(f"{where}: {key} is {value!r:.80}; allowed is a text")
        parts[key] = text.strip()
    if parts.get("reason") not in get_args(Reason):
        allowed, reason = ", ".join(get_args(Reason)), parts.get("reason")
        raise ValidationError(f"{where}: reason is {reason!r:.80}; allowed are {allowed}")
    if not {"code", "text"} & parts.keys():
        raise ValidationError(f"{where} has neither code nor text; it needs at least one of them")
    return Wording(**parts)


def count(value: object, *, at_most: int = MAX_COUNT) -> int | None:
    """A count of things: a number from 0 to *at_most*, its fraction cut off; else ``None``."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if 0 <= value <= at_most else None


def json_value(body: bytes) -> Any:
    """The value that the JSON text *body* stands for, or ``None`` if it is no JSON."""
    with suppress(Exception):  # also RecursionError, and ValueError for endless integers
        return msgspec.json.decode(body)
    return None


def retry_after(headers: Headers, *, now: float) -> float | None:
    """How long to stay away, in seconds from 0 to 900: ``retry-after-ms``, else ``retry-after``.

    The latter is a number of seconds or a date, which is compared with *now* (seconds since the
    epoch). Of several the longest counts. The order is that of the official SDKs.
    """
    fields = _fields(headers)
    waits = [ms / 1000 for ms in _numbers(*fields.get("retry-after-ms", ()))]
    for text in () if waits else fields.get("retry-after", ()):
        if seconds := _numbers(text):
            waits += seconds
        # A date has whole seconds, so one that says "now" lies up to a second back. Further back,
        # or more than a year ahead, it comes from a wrong clock and says nothing.
        elif (after := _until(text, now)) is not None and -1 <= after <= _YEAR:
            waits.append(max(after, 0.0))
    return min(max(waits), MAX_RETRY_AFTER) if waits else None


_NUMBER: Final = re.compile(r"\s*([0-9]{1,40}(?:\.[0-9]{1,40})?)\s*")
_UNITS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_SPELLED: Final = {"millisecond": 1e-3, "second": 1.0, "minute": 60.0, "hour": 3600.0}
_PART: Final = rf"([0-9]{{1,40}}(?:\.[0-9]{{1,40}})?)({'|'.join(_SPELLED | _UNITS)})"
_DURATION: Final = re.compile(rf"(?:{_PART}){{1,8}}")
_HINT: Final = re.compile(
    r"\b(?:again|retry|available|wait) (?:in |after |for )?"
    rf"([0-9][0-9.]{{0,20}}(?: ?(?:{'|'.join(_SPELLED)})|[0-9a-zµ.]{{0,24}}))",
    re.IGNORECASE,
)


def _number(text: str) -> float | None:
    found = _NUMBER.fullmatch(text)
    return float(found[1]) if found else None


def _numbers(*texts: str) -> list[float]:
    """Every number in *texts*; some clients join repeated headers with a comma."""
    parts = (part for text in texts for part in text.split(","))
    return [number for part in parts if (number := _number(part)) is not None]


def _duration(text: str) -> float | None:
    """Seconds from a duration as Go and protobuf write it: ``6m0s``, ``12ms``, ``1.5s``."""
    if not _DURATION.fullmatch(text := text.strip()):
        return None
    return sum(float(n) * (_SPELLED | _UNITS)[unit] for n, unit in re.findall(_PART, text))


def _until(text: str, now: float) -> float | None:
    """Seconds from *now* to an RFC 3339 or HTTP date, below zero if it has passed."""
    for parse in (datetime.fromisoformat, parsedate_to_datetime):
        with suppress(Exception):
            when = parse(text.strip())
            return when.replace(tzinfo=when.tzinfo or UTC).timestamp() - now
    return None


def _reset(text: str, now: float) -> float | None:
    """Seconds until a window starts afresh, from any of the forms in use."""
    after = _number(text)
    if after is None and (after := _duration(text)) is None:
        after = _until(text, now)
    elif after > 1e9:  # seconds or milliseconds since the epoch
        after = after / (1000 if after > 1e11 else 1) - now
    return None if after is None or after > _YEAR else max(after, 0.0)


def _pairs(headers: Any) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    with suppress(Exception):
        pairs = headers.items() if hasattr(headers, "items") else headers
        for name, value in islice(pairs, 256):
            if isinstance(name, str) and isinstance(value, str) and len(value) <= 1024:
                found.append((name, value))
    return found


def _fields(headers: Headers) -> dict[str, list[str]]:
    fields: dict[str, list[str]] = {}
    for name, value in _pairs(headers):
        fields.setdefault(name.lower(), []).append(value)
    return fields


_WHAT: Final = "(?P<what>limit|remaining|reset)"
_WINDOWS: Final = (
    re.compile(rf"(?:x-)?ratelimit-{_WHAT}(?:-(?P<name>[a-z0-9_-]{{1,40}}))?"),
    re.compile(rf"anthropic-ratelimit-(?P<name>[a-z0-9_-]{{1,40}})-{_WHAT}"),
    re.compile(rf"(?:x-)?(?P<name>concurrency)-{_WHAT}"),
)


def rate_limits(headers: Headers, *, now: float) -> tuple[RateWindow, ...]:
    """Every limit that the headers of an answer tell of, at most sixteen.

    Understood are ``x-ratelimit-{limit,remaining,reset}[-name]`` (OpenAI and who follows it),
    ``anthropic-ratelimit-name-{limit,remaining,reset}``, the IETF draft's ``RateLimit`` and
    ``RateLimit-Policy``, and the few headers that tell of work in flight. *now* is in seconds since
    the epoch; of a header that comes twice the first counts.
    """
    windows: dict[str, dict[str, Any]] = {}

    def note(name: str, **facts: Any) -> None:
        if name in windows or len(windows) < 16:
            new = {key: value for key, value in facts.items() if value is not None}
            windows[name] = new | windows.get(name, {})

    fields = _fields(headers)
    for field_name, (text, *_) in fields.items():
        for found in filter(None, (pattern.fullmatch(field_name) for pattern in _WINDOWS)):
            name, what = found["name"] or "default", found["what"]
            value = _reset(text, now) if what == "reset" else _whole(text)
            unit = CONCURRENT if "concurren" in name else None
            note(name, unit=unit, **{"reset_after" if what == "reset" else what: value})
    for name, given in _structured(fields.get("ratelimit-policy", []) + fields.get("ratelimit", [])):
        note(name, limit=_whole(given["q"]), window=_whole(given["w"]), unit=given["qu"] or None)
        note(name, remaining=_whole(given["r"]), reset_after=_reset(given["t"], now))
    return tuple(RateWindow(name, **facts) for name, facts in windows.items() if facts)


def _whole(text: str) -> int | None:
    return count(_number(re.split("[,;]", text, maxsplit=1)[0]), at_most=10**15)


def _structured(texts: Iterable[str]) -> Iterable[tuple[str, defaultdict[str, str]]]:
    """The items of a structured field list (RFC 9651) with their parameters, all as text."""
    for item in _split(",".join(texts)[:2048], ","):
        head, *rest = _split(item, ";")
        name = _bare(head)
        if name and "=" not in name:
            keyed = (parameter.partition("=") for parameter in rest)
            given = ((key.strip(), _bare(value)) for key, _, value in keyed)
            yield name, defaultdict(str, given)


def _split(text: str, mark: str) -> list[str]:
    """*text* cut at every *mark* that stands outside of a quoted string."""
    return re.findall(rf'(?:"(?:[^"\\]|\\.)*"|[^"{mark}])+', text)


def _bare(text: str) -> str:
    return _clean(re.sub(r'^"|\\|"$', "", text.strip()), 64)


def _clean(text: str, most: int) -> str:
    """*text* on one line, without control characters, of *most* characters at most."""
    words = " ".join(text[: most * 8].split())
    return "".join(char for char in words if char.isprintable())[:most]


_CODE_KEYS: Final = ("code", "error_code", "errorCode", "status", "reason", "type", "__type")
_TEXT_KEYS: Final = ("message", "msg", "error", "detail", "details", "title", "raw")
_WAIT_KEYS: Final = ("retryDelay", "retry_after", "retryAfter", "retry_after_seconds")
_INNER_KEYS: Final = ("error", "errors", "detail", "details", "metadata")


def _said(body: bytes) -> tuple[list[str], list[str], list[float]]:
    """The codes, the messages and the waits in the body of an error, wherever it has them."""
    codes, texts, waits = [], [], []
    head = bytes(body[: 64 * 1024])
    nodes = [value := json_value(head)]
    for node in nodes:  # grows while it is walked: the outer shells first, 64 of them at most
        room = max(0, 64 - len(nodes))
        if isinstance(node, dict):
            nodes += [node[key] for key in _INNER_KEYS if key in node][:room]
            codes += [_code(node.get(key)) for key in _CODE_KEYS]
            texts += [text for key in _TEXT_KEYS if isinstance(text := node.get(key), str)]
            waits += [_wait(node.get(key)) for key in _WAIT_KEYS]
        elif isinstance(node, list):
            nodes += node[:room]
    if value is None or isinstance(value, str):
        texts.append(value or head.decode(errors="replace"))
    texts = [text[:4096] for text in texts]
    waits += map(_hint, texts)
    return codes, texts, [wait for wait in waits if wait is not None]


def _code(value: object) -> str:
    if isinstance(value, str):
        return _clean(value, 100)
    return f"{value}" if isinstance(value, int) and count(value) is not None else ""


def _wait(value: Any) -> float | None:
    if isinstance(value, str):
        number = _number(value)
        return _duration(value) if number is None else number
    return None if count(value, at_most=10**9) is None else float(value)


def _hint(text: str) -> float | None:
    """The wait that a message asks for: "try again in 6m0s", "retry after 6 seconds"."""
    found = _HINT.search(text)
    return _duration(found[1].replace(" ", "").rstrip(".").lower()) if found else None


def classify(
    status: int,
    headers: Headers,
    body: bytes,
    *,
    provider: str | None = None,
    wordings: Sequence[Wording] = WORDINGS,
    now: float,
) -> RateLimitSignal | None:
    """What an upstream's answer says about too much work, or ``None`` if it says nothing of it.

    529 and 503 are ``overload``. A 429 is what the first matching wording says, else ``rate`` or
    ``concurrency`` if the headers show a used-up window, else ``concurrency``: what cannot be told
    apart is taken for that. The wait is the headers', else the body's, else the used-up window's.
    At most 64 KiB of *body* are looked at; *now* is in seconds since the epoch.
    """
    if status not in (429, 503, 529):
        return None
    codes, texts, waits = _said(body)
    codes += (_code(text.split(":")[0]) for text in _fields(headers).get("x-amzn-errortype", ()))
    spent = [window for window in rate_limits(headers, now=now) if window.remaining == 0]
    same, words = {code.lower() for code in codes}, "\n".join(codes + texts).lower()
    fits = (wording for wording in wordings if wording.fits(provider, same, words))
    match = next(fits, None) if status == 429 else None
    reason: Reason = "concurrency"
    if status != 429:
        reason = "overload"
    elif match:
        reason = match.reason
    elif spent and all(window.unit != CONCURRENT for window in spent):
        reason = "rate"
    wait = retry_after(headers, now=now)
    if wait is None:
        if not waits and reason == "rate":
            waits = [w.reset_after for w in spent if w.reset_after is not None]
        wait = min(max(waits), MAX_RETRY_AFTER) if waits else None
    noise = ("", "error", "none", f"{status}")  # shells and repetitions, no code to show
    shown = [match.code] if match and match.code else [c for c in codes if c.lower() not in noise]
    clean = (_clean(text, 300) for text in texts if not text.lstrip().startswith("<"))
    return RateLimitSignal(reason, wait, next(iter(shown), None), next(filter(None, clean), None), status)


def _attribute(thing: object, name: str) -> Any:
    with suppress(Exception):
        return getattr(thing, name)
    return None


def status_of(error: BaseException) -> int | None:
    """The status in ``status_code`` or ``status`` of a client's exception or of its response."""
    for holder in (error, _attribute(error, "response")):
        for name in ("status_code", "status"):
            status = count(_attribute(holder, name), at_most=599)
            if status is not None and status >= 100:
                return status
    return None


def headers_of(error: BaseException) -> tuple[tuple[str, str], ...]:
    """The headers of the response that a client's exception carries, or none."""
    for holder in (_attribute(error, "response"), error):
        if found := _pairs(_attribute(holder, "headers")):
            return tuple(found)
    return ()
