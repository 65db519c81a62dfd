"""Foreign values become typed facts: real answers mean what they say, and no answer breaks us."""

from __future__ import annotations

import http
import json
import math
from datetime import UTC, datetime
from email.utils import format_datetime
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.errors import ValidationError
from interlock.provider.signals import (
    CONCURRENT,
    MAX_COUNT,
    WORDINGS,
    RateLimitSignal,
    RateWindow,
    Reason,
    Wording,
    classify,
    count,
    headers_of,
    json_value,
    parse_wordings,
    rate_limits,
    retry_after,
    status_of,
)

NOW = 1_790_000_000.0


def http_date(after: float) -> str:
    return format_datetime(datetime.fromtimestamp(NOW + after, UTC), usegmt=True)


def rfc3339(after: float) -> str:
    return datetime.fromtimestamp(NOW + after, UTC).isoformat().replace("+00:00", "Z")


def said(body: object, *, status: int = 429, **kwargs: Any) -> RateLimitSignal:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    signal = classify(status, kwargs.pop("headers", {}), raw, now=NOW, **kwargs)
    assert signal is not None
    return signal


# -- Retry-After ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("7", 7.0),
        (" 7 ", 7.0),
        ("1.5", 1.5),
        ("99999999999", 900.0),
        ("5, 20", 20.0),
        ("-5", None),
        ("+5", None),
        ("nan", None),
        ("inf", None),
        ("-Infinity", None),
        ("1e400", None),
        ("1e2", None),
        ("1_000", None),
        ("٣", None),
        ("5 seconds", None),
        ("", None),
        ("soon", None),
        ("9" * 5000, None),
        (http_date(30), 30.0),
        (http_date(3600), 900.0),
        (http_date(-0.5), 0.0),
        (http_date(-60), None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", None),
        ("Fri, 31 Dec 9999 23:59:59 GMT", None),
        ("Fri, 31 Dec 99999 23:59:59 GMT", None),
        ("Mon, 00 Foo 2026 25:61:61 GMT", None),
        ("Mon, 21 Sep 2026 14:13:20 +9999", None),
        (rfc3339(12), 12.0),
        ("20270101", 900.0),
    ],
)
def test_retry_after_of_every_form(value: str, seconds: float | None) -> None:
    """A number of seconds or a date gives 0 to 900 seconds; everything else is not said."""
    assert retry_after({"Retry-After": value}, now=NOW) == seconds


def test_retry_after_in_milliseconds_comes_first() -> None:
    """``retry-after-ms`` is the finer one; if it is garbage, ``retry-after`` stands."""
    assert retry_after({"retry-after": "9", "retry-after-ms": "250"}, now=NOW) == 0.25
    assert retry_after({"retry-after": "9", "retry-after-ms": "-1"}, now=NOW) == 9.0


def test_the_longest_of_several_counts() -> None:
    """Two headers, in any letter case: the longer wait, and garbage beside it does no harm."""
    pairs = [("Retry-After", "3"), ("RETRY-AFTER", "8"), ("retry-after", "nan")]
    assert retry_after(pairs, now=NOW) == 8.0
    assert retry_after([*pairs, ("Retry-After", http_date(40))], now=NOW) == 40.0


# -- rate headers --------------------------------------------------------------------------------


def test_openai_windows() -> None:
    """``x-ratelimit-*`` with Go durations, as OpenAI, Groq and many more send them."""
    headers = {
        "x-ratelimit-limit-requests": "5000",
        "x-ratelimit-remaining-requests": "4999",
        "x-ratelimit-reset-requests": "12ms",
        "X-RateLimit-Limit-Tokens": "160000",
        "X-RateLimit-Remaining-Tokens": "0",
        "X-RateLimit-Reset-Tokens": "6m0s",
        "x-ratelimit-over-limit": "no",
    }
    assert rate_limits(headers, now=NOW) == (
        RateWindow("requests", 5000, 4999, 0.012),
        RateWindow("tokens", 160000, 0, 360.0),
    )


def test_anthropic_windows() -> None:
    """``anthropic-ratelimit-*`` with RFC 3339 times, and its plans' epoch seconds."""
    headers = {
        "anthropic-ratelimit-requests-limit": "50",
        "anthropic-ratelimit-requests-remaining": "49",
        "anthropic-ratelimit-requests-reset": rfc3339(2),
        "anthropic-ratelimit-input-tokens-limit": "30000",
        "anthropic-ratelimit-input-tokens-remaining": "0",
        "anthropic-ratelimit-input-tokens-reset": rfc3339(-3),
        "anthropic-ratelimit-unified-5h-reset": f"{NOW + 600:.0f}",
    }
    assert rate_limits(headers, now=NOW) == (
        RateWindow("requests", 50, 49, 2.0),
        RateWindow("input-tokens", 30000, 0, 0.0),
        RateWindow("unified-5h", reset_after=600.0),
    )


def test_ietf_windows() -> None:
    """``RateLimit`` and ``RateLimit-Policy`` are joined by name; quoted marks are text."""
    headers = [
        ("RateLimit-Policy", '"default";q=100;w=60;qu="requests", "at, once;";q=4;qu='),
        ("RateLimit-Policy", '"slots";q=4;qu="concurrent-requests";pk=:c2VjcmV0:'),
        ("RateLimit", '"default";r=50;t=30, burst;r=2;t=1;x, "slots";r=0'),
    ]
    assert rate_limits(headers, now=NOW) == (
        RateWindow("default", 100, 50, 30.0, "requests", 60),
        RateWindow("at, once;", 4),
        RateWindow("slots", 4, 0, unit=CONCURRENT),
        RateWindow("burst", remaining=2, reset_after=1.0),
    )


def test_windows_of_other_kinds() -> None:
    """Nameless ones, resets in epoch milliseconds, and work in flight, which has its own unit."""
    headers = {
        "X-RateLimit-Limit": "50",
        "X-RateLimit-Remaining": "0",
        "X-RateLimit-Reset": f"{(NOW + 90) * 1000:.0f}",
        "Concurrency-Limit": "10",
        "Concurrency-Remaining": "3",
    }
    assert rate_limits(headers, now=NOW) == (
        RateWindow("default", 50, 0, 90.0),
        RateWindow("concurrency", 10, 3, unit=CONCURRENT),
    )


@pytest.mark.parametrize("value", ["nan", "-1", "1e400", "9" * 5000, "", "\x00", "9" * 40])
def test_garbage_makes_no_window(value: str) -> None:
    """A header that says nothing sensible leaves no fact behind, and no empty window."""
    names = ("limit-requests", "remaining-requests", "reset-requests")
    assert rate_limits({f"x-ratelimit-{name}": value for name in names}, now=NOW) == ()


def test_the_number_of_windows_is_bounded() -> None:
    """An upstream cannot make us keep more than sixteen windows."""
    headers = [(f"x-ratelimit-limit-n{n}", "5") for n in range(200)]
    assert len(rate_limits(headers, now=NOW)) == 16


# -- what a 429 means ----------------------------------------------------------------------------

ANTHROPIC_RATE = {
    "type": "error",
    "error": {
        "type": "rate_limit_error",
        "message": "This request would exceed your organization's rate limit of 50,000 input tokens"
        " per minute",
    },
    "request_id": "req_011",
}
ANTHROPIC_CONNECTIONS = {
    "type": "error",
    "error": {
        "type": "rate_limit_error",
        "message": "Number of concurrent connections has exceeded your rate limit. Please try again"
        " later or contact sales",
    },
}
GOOGLE = {
    "error": {
        "code": 429,
        "message": "You exceeded your current quota, please check your plan and billing details."
        " Please retry in 36.429760048s.",
        "status": "RESOURCE_EXHAUSTED",
        "details": [
            {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": []},
            {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "36s"},
        ],
    }
}
KIMI = "Your account org-1<ak-1> request reached {}, please try again after 1 seconds"


def openai(code: str | None, message: str, kind: str = "requests") -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


BODIES: list[tuple[str, str, object]] = [
    ("z.ai", "concurrency", {"error": {"code": "1302", "message": "High concurrency usage"}}),
    ("z.ai at the top", "concurrency", {"code": 1302, "message": "Rate limit reached"}),
    ("z.ai frequency", "rate", {"error": {"code": "1303", "message": "频率过高"}}),
    ("z.ai in Chinese", "concurrency", {"error": {"message": "您当前使用该API的并发数过高"}}),
    ("z.ai plan", "quota", {"error": {"code": 1308, "message": "Usage limit reached for 5 hour"}}),
    ("z.ai arrears", "quota", {"error": {"code": "1113", "message": "in arrears"}}),
    ("z.ai busy", "overload", {"error": {"code": "1305", "message": "temporarily overloaded"}}),
    ("ElevenLabs", "concurrency", {"detail": {"status": "too_many_concurrent_requests"}}),
    ("ElevenLabs busy", "overload", {"detail": {"status": "system_busy", "message": "traffic"}}),
    ("CoreWeave", "concurrency", {"error": "Concurrency limit reached for requests"}),
    ("CoreWeave plain", "concurrency", b"Concurrency limit reached for requests"),
    ("Scaleway", "concurrency", {"message":
        "You exceeded your current threshold of concurrent requests"}),
    ("Cartesia", "concurrency", {"error_code": "concurrency_limited", "title": "Too many"}),
    ("others", "concurrency", {"code": "CONCURRENT_LIMIT"}),
    ("others", "concurrency", {"error": {"code": "concurrency_limit_exceeded"}}),
    ("a gateway", "concurrency", openai("concurrent_request_limit_exceeded", "")),
    ("GitHub", "concurrency", {"error": {"code": "RateLimitReached", "message":
        "Rate limit of 2 per 0s exceeded for UserConcurrentRequests. Please wait 0 seconds"}}),
    ("Bedrock", "concurrency", {"message": "Too many connections, please wait before"}),
    ("Bedrock tokens", "rate", {"message": "Too many tokens, please wait before trying again."}),
    ("OpenAI quota", "quota", openai("insufficient_quota", "check your plan")),
    ("OpenAI rate", "rate", openai("rate_limit_exceeded", "Rate limit reached", "tokens")),
    ("Anthropic rate", "rate", ANTHROPIC_RATE),
    ("Anthropic connections", "concurrency", ANTHROPIC_CONNECTIONS),
    ("Anthropic overload", "overload", {"type": "error", "error": {"type": "overloaded_error"}}),
    ("Anthropic credit", "quota", {"error": {"type": "rate_limit_error", "message":
        "Your credit balance is too low to access the API"}}),
    ("Google", "rate", GOOGLE),
    ("Google in a list", "rate", [GOOGLE]),
    ("Google credits", "quota", {"error": {"status": "RESOURCE_EXHAUSTED", "details": [
        {"reason": "INSUFFICIENT_G1_CREDITS_BALANCE"}]}}),
    ("Kimi", "concurrency", {"error": {"message": KIMI.format("max organization concurrency: 1"),
        "type": "rate_limit_reached_error"}}),
    ("Kimi rate", "rate", {"error": {"message": KIMI.format("organization max RPM: 3"),
        "type": "rate_limit_reached_error"}}),
    ("Kimi overload", "overload", {"error": {"type": "rate_limit_error", "message":
        "The engine is currently overloaded, please try again later"}, "type": "error"}),
    ("DeepSeek", "concurrency", {"error": {"type": "rate_limit_error", "message":
        "Too many requests. Your current concurrency is 5, which exceeds your limit"}}),
    ("Mistral", "rate", {"object": "error", "message": "Rate limit exceeded",
        "type": "rate_limited", "code": "1300"}),
    ("Mistral capacity", "overload", {"message": "Service tier capacity exceeded for this model.",
        "type": "invalid_request_error", "code": None}),
    ("Cerebras", "rate", {"message": "Requests per minute limit exceeded - too many requests sent.",
        "type": "too_many_requests_error", "param": "quota", "code": "request_quota_exceeded"}),
    ("xAI", "quota", {"code": "Some resource has been exhausted", "error":
        "Your team 1 has either used all available credits or reached its spending limit."}),
    ("OpenRouter", "quota", {"error": {"code": 429, "message":
        "Rate limit exceeded: free-models-per-day. Add 10 credits to unlock 1000 requests"}}),
    ("OpenRouter upstream", "rate", {"error": {"message": "Provider returned error", "code": 429,
        "metadata": {"raw": "glm is temporarily rate-limited upstream.", "provider_name": "X"}}}),
    ("LiteLLM", "concurrency", {"error": {"message": "Rate limit exceeded for api_key: k. Limit"
        " type: max_parallel_requests. Current limit: 2", "code": "429", "type": "None"}}),
    ("LiteLLM tokens", "rate", {"error": {"message": "Crossed TPM / RPM / Max Parallel Request"
        " Limit. current tpm: 12260, tpm limit: 5000"}}),
    ("Cohere month", "quota", {"message": "Trial key, which is limited to 1000 API calls / month"}),
    ("nothing said", "concurrency", {"status": 429, "title": "Too Many Requests"}),
    ("nothing at all", "concurrency", b""),
    ("a page", "concurrency", b"<html><title>429 Too Many Requests</title></html>"),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "body"), [row[1:] for row in BODIES], ids=[row[0] for row in BODIES])
def test_what_a_429_means(reason: str, body: object) -> None:
    """The code decides first and the text last; what cannot be told apart is concurrency."""
    assert said(body).reason == reason


@pytest.mark.parametrize(("status", "reason"), [(529, "overload"), (503, "overload")])
def test_overload_by_status(status: int, reason: str) -> None:
    """529 and 503 are the upstream's own trouble, whatever the words."""
    assert said(ANTHROPIC_CONNECTIONS, status=status).reason == reason


@pytest.mark.parametrize("status", [200, 400, 401, 402, 404, 408, 500, 502, 504, 0, -1])
def test_other_statuses_say_nothing(status: int) -> None:
    """Only an answer that says "too much" is a signal."""
    assert classify(status, {"retry-after": "5"}, b'{"code": 1302}', now=NOW) is None


def test_headers_decide_where_the_words_do_not() -> None:
    """A used-up window tells a rate from concurrency; one of work in flight is concurrency."""
    spent = {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "6s"}
    assert said(b"", headers=spent) == RateLimitSignal("rate", 6.0)
    assert said(b"", headers={"x-ratelimit-remaining-tokens": "1"}).reason == "concurrency"
    assert said(b"", headers={"Concurrency-Remaining": "0", **spent}).reason == "concurrency"
    assert said(ANTHROPIC_CONNECTIONS, headers=spent).reason == "concurrency"
    throttled = {"x-amzn-ErrorType": "ThrottlingException:http://internal.amazon.com/coral/"}
    signal = said({"message": "Too many requests"}, headers=throttled)
    assert (signal.reason, signal.code) == ("rate", "ThrottlingException")


@pytest.mark.parametrize(
    ("body", "seconds"),
    [
        (GOOGLE, 36.429760048),
        ({"error": {"details": [{"retryDelay": "12.5s"}]}}, 12.5),
        ({"error": {"retry_after": 10}}, 10.0),
        ({"retry_after": 0.5}, 0.5),
        ({"retry_after": "2"}, 2.0),
        ({"retry_after": 10**8}, 900.0),
        ({"retry_after": -1, "retryAfter": True, "retryDelay": "-3s"}, None),
        (openai("rate_limit_exceeded", "Please try again in 6m0s. Visit"), 360.0),
        (openai("rate_limit_exceeded", "Please try again in 120ms."), 0.12),
        ({"message": KIMI.format("max organization concurrency: 1")}, 1.0),
        ({"message": "Please wait 3 minutes before retrying"}, 180.0),
        ({"message": "Please try again in 2027"}, None),
        (b"Request was throttled. Expected available in 5 seconds.", 5.0),
    ],
)
def test_the_wait_may_stand_in_the_body(body: object, seconds: float | None) -> None:
    """A wait in the body counts where no header names one, within the same bounds."""
    assert said(body).retry_after == seconds
    assert said(body, headers={"Retry-After": "4"}).retry_after == 4.0


def test_code_and_message_are_fit_to_be_shown() -> None:
    """The code is the one that decided; the message is one line of 300 printable characters."""
    assert said(GOOGLE).code == "RESOURCE_EXHAUSTED"
    assert said(ANTHROPIC_CONNECTIONS).code == "rate_limit_error"
    assert said(openai("rate_limit_exceeded", "x", "tokens")).code == "rate_limit_exceeded"
    assert said({"error": {"code": 429, "message": "x"}}).code is None
    signal = said({"message": "a\x1b[31m\u202e b\nc\x00" + "d" * 900})
    assert signal.message is not None
    assert signal.message.startswith("a[31m b c")
    assert len(signal.message) == 300
    assert said(b"<html>busy</html>").message is None


def test_only_64_kib_of_the_body_are_looked_at() -> None:
    """What stands behind the first 64 KiB is not there for us."""
    assert said(b" " * 65_536 + b"insufficient_quota").reason == "concurrency"
    assert said(b'{"code": "insufficient_quota"}' + b" " * 10**6).reason == "quota"


# -- the user's own wordings ---------------------------------------------------------------------


def test_own_wordings_go_first() -> None:
    """A user's wording wins over the table, and one with a provider is for that one only."""
    own = parse_wordings(
        [
            {"reason": "overload", "provider": "Acme", "code": 1302},
            {"reason": "quota", "code": "nope", "text": "Slow Down"},
        ]
    )
    assert own == (
        Wording("overload", provider="Acme", code="1302"),
        Wording("quota", code="nope", text="Slow Down"),
    )
    table = own + WORDINGS
    body = {"code": 1302, "message": "busy"}
    assert said(body, wordings=table, provider="acme").reason == "overload"
    assert said(body, wordings=table, provider="other").reason == "concurrency"
    assert said(body, wordings=table).reason == "concurrency"
    assert said({"code": "NOPE", "message": "slow down!"}, wordings=table).reason == "quota"
    assert said({"code": "NOPE", "message": "busy"}, wordings=table).reason == "concurrency"
    assert said({"code": 429}, wordings=(Wording("rate", code="429"),)).reason == "rate"


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ("rate", "wordings is 'rate'; allowed is a list of tables"),
        (["rate"], "wordings[0] is 'rate'; allowed is a table"),
        (
            [{"reason": "rate", "text": "x"}, {"reason": "busy", "text": "x"}],
            "wordings[1]: reason is 'busy'; allowed are concurrency, rate, overload, quota",
        ),
        ([{"text": "x"}], "wordings[0]: reason is None; allowed are concurrency,"),
        ([{"reason": "rate"}], "wordings[0] has neither code nor text"),
        ([{"reason": "rate", "text": " "}], "wordings[0]: text is ' '; allowed is a text"),
        ([{"reason": "rate", "code": True}], "wordings[0]: code is True; allowed is a text"),
        ([{"reason": ["rate"], "code": "x"}], "wordings[0]: reason is ['rate']; allowed is a text"),
        ([{"reason": "rate", "status": 429}], "wordings[0] has 'status'; allowed are reason,"),
    ],
)
def test_a_bad_wording_is_named(items: object, message: str) -> None:
    """The error names the entry, what it was, and what is allowed."""
    with pytest.raises(ValidationError) as caught:
        parse_wordings(items)
    assert message in str(caught.value)


# -- exceptions of clients -----------------------------------------------------------------------


class Failure(Exception):
    def __init__(self, **attributes: object) -> None:
        super().__init__()
        self.__dict__.update(attributes)


class Trap(Exception):
    @property
    def status_code(self) -> int:
        raise RuntimeError

    @property
    def response(self) -> object:
        raise RecursionError


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Failure(status_code=429), 429),
        (Failure(status=503), 503),
        (Failure(status=http.HTTPStatus.TOO_MANY_REQUESTS), 429),
        (Failure(status="RESOURCE_EXHAUSTED", response=SimpleNamespace(status_code=429)), 429),
        (Failure(status_code=True), None),
        (Failure(status_code="429"), None),
        (Failure(status_code=7), None),
        (Failure(response={}), None),
        (ValueError("429"), None),
        (Trap(), None),
    ],
)
def test_status_of_an_exception(error: Exception, status: int | None) -> None:
    """The status is found where clients put it, and a trap in an attribute does not spring."""
    assert status_of(error) == status


def test_headers_of_an_exception() -> None:
    """Headers come from the response, else from the error itself, and repeated ones stay so."""
    pairs = (("Retry-After", "1"), ("Retry-After", "5"))
    response = SimpleNamespace(headers=list(pairs))
    assert headers_of(Failure(response=response)) == pairs
    assert retry_after(headers_of(Failure(headers={"retry-after": "3"})), now=NOW) == 3.0
    assert headers_of(Failure(headers=None, response=None)) == ()
    assert headers_of(Trap()) == ()


# -- any value at all ----------------------------------------------------------------------------

NAMES = st.sampled_from(
    [
        *("retry-after", "Retry-After-Ms", "RateLimit", "ratelimit-policy", "x-amzn-errortype"),
        *("x-ratelimit-reset", "x-ratelimit-remaining-tokens", "concurrency-remaining"),
        *("anthropic-ratelimit-requests-reset", "anthropic-ratelimit-requests-limit"),
    ]
)
VALUES = st.one_of(
    st.text(),
    st.integers().map(str),
    st.floats().map(str),
    st.datetimes().map(format_datetime),
    st.datetimes().map(datetime.isoformat),
    st.from_regex(r'"[a-z"\\;,]*";[rtqw]=[0-9]*;qu="?[a-z-]*"?', fullmatch=True),
    st.from_regex(r"([0-9]{1,50}(\.[0-9]+)?(h|m|s|ms|us|ns))+", fullmatch=True),
)
HEADERS = st.lists(st.tuples(st.one_of(NAMES, st.text()), VALUES), max_size=8)
KEYS = st.sampled_from(["error", "code", "message", "details", "detail", "retryDelay", "retry_after"])
BODY = st.one_of(
    st.binary(),
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
        lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.one_of(KEYS, st.text()), inner)),
        max_leaves=20,
    ).map(lambda value: json.dumps(value).encode()),
)


def in_range(seconds: float | None, most: float) -> bool:
    return seconds is None or (math.isfinite(seconds) and 0 <= seconds <= most)


@given(HEADERS)
def test_any_headers_give_typed_values(headers: list[tuple[str, str]]) -> None:
    """Whatever headers say, a wait is 0 to 900 seconds and a window holds numbers in range."""
    assert in_range(retry_after(headers, now=NOW), 900)
    for window in rate_limits(headers, now=NOW):
        assert window.name
        assert in_range(window.reset_after, 366 * 86400)
        for number in (window.limit, window.remaining, window.window):
            assert in_range(number, 10**15)


@given(st.sampled_from([429, 503, 529]), HEADERS, BODY)
def test_any_answer_gives_a_signal(status: int, headers: Any, body: bytes) -> None:
    """Whatever an answer holds, it has a known reason, a wait in range and printable words."""
    signal = said(body, status=status, headers=headers)
    assert signal.reason in get_args(Reason)
    assert in_range(signal.retry_after, 900)
    for words in (signal.code, signal.message):
        assert words is None or (words.isprintable() and 0 < len(words) <= 300)


@pytest.mark.parametrize(
    "body",
    [
        b'{"error":' * 7000,
        b'{"error":' * 7000 + b"1" + b"}" * 7000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"code": ' + b"9" * 5000 + b"}",
        b'{"code": NaN, "message": Infinity}',
        b'{"code": 1e309}',
        b'{"message": "\xff\xfe"}',
        b'{"message": "\\ud800"}',
        b'{"error": {"code": {"code": [1302]}, "message": 7, "details": "x", "retryDelay": []}}',
        json.dumps({"errors": [{"errors": [{}] * 50}] * 5000}).encode(),
        b"\x00" * 70_000,
        b"null",
        b'""',
    ],
    ids=lambda body: repr(body[:24]),
)
def test_hostile_bodies_say_nothing(body: bytes) -> None:
    """Nesting, endless numbers, wrong types and broken text end in the default."""
    assert said(body).reason == "concurrency"


def test_hostile_headers_say_nothing() -> None:
    """Many, long and unbalanced headers, and things that are none, cost little and mean nothing."""
    quotes = [("RateLimit", '"\\' * 500), ("RateLimit-Policy", '"' * 1001)] * 500
    assert rate_limits(quotes, now=NOW) == ()
    strange: Any
    for strange in (None, 7, [1], [("a",)], [(b"retry-after", b"5")], {"retry-after": 5}, object()):
        assert retry_after(strange, now=NOW) is None
        assert rate_limits(strange, now=NOW) == ()


@given(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary()))
def test_a_count_is_in_range_or_not_there(value: object) -> None:
    """Only a number from 0 to the largest is a count; a boolean is none."""
    number = count(value)
    if type(value) in (int, float) and 0 <= value <= MAX_COUNT:  # type: ignore[operator]
        assert number == int(value)  # type: ignore[call-overload]
    else:
        assert number is None


def test_json_that_is_none() -> None:
    """What is no JSON is no value, and of a key that comes twice the last counts."""
    assert json_value(b"{") is None
    assert json_value(b'{"a": 1, "a": 2}') == {"a": 2}
