"""What passes the gateway, what stays, and what it adds."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.errors import ValidationError
from interlock.http.gateway.headers import (
    RawHeaders,
    concurrency_headers,
    request_headers,
    response_headers,
    upstream_path,
)

if TYPE_CHECKING:
    from interlock.http.gateway.dialects import Dialect

CREDENTIALS: RawHeaders = [
    (b"Authorization", b"Bearer caller"),
    (b"X-Api-Key", b"caller"),
    (b"api-key", b"caller"),
    (b"x-goog-api-key", b"caller"),
]


def up(raw: RawHeaders, key: str | None = None, dialect: Dialect = "openai") -> dict[str, str]:
    return dict(request_headers(raw, api_key=key, dialect=dialect))


def test_end_to_end_fields_pass_in_order_and_as_often_as_they_came() -> None:
    """Names keep their spelling and values their bytes."""
    raw = [
        (b"X-Stainless-Lang", b"python"),
        (b"anthropic-beta", b"one"),
        (b"Anthropic-Beta", b"two"),
        (b"accept-encoding", b"gzip, br"),
        (b"x-note", "é".encode()),
        (b"content-type", b"application/json"),
    ]
    kept = request_headers(raw, api_key=None, dialect="openai")
    assert kept == [(name.decode(), value.decode()) for name, value in raw]


@pytest.mark.parametrize(
    "name",
    [
        *["connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"],
        *["proxy-authorization", "proxy-connection", "host", "content-length", "expect"],
        *["cookie", "forwarded", "x-forwarded-for", "x-forwarded-proto"],
        *["x-interlock-conversation", "x-interlock-anything"],
    ],
)
def test_what_is_of_this_connection_or_ours_does_not_go_up(name: str) -> None:
    """In any case of letters."""
    raw = [(name.upper().encode(), b"v"), (b"x-kept", b"v")]
    assert up(raw) == {"x-kept": "v"}


def test_what_connection_names_stays_on_this_connection() -> None:
    """Also of several ``Connection`` fields; but what describes the body is never hop by hop."""
    raw = [
        (b"connection", b"close, X-Hop"),
        (b"Connection", b"x-other ,, content-type"),
        (b"x-hop", b"1"),
        (b"X-Other", b"1"),
        (b"content-type", b"application/json"),
    ]
    assert up(raw) == {"content-type": "application/json"}
    assert response_headers(raw) == [(b"content-type", b"application/json")]


def test_the_callers_credentials_pass_if_the_provider_has_no_key() -> None:
    """They are the caller's own account with the provider."""
    assert len(up(CREDENTIALS)) == 4


def test_none_of_the_callers_credentials_passes_beside_a_key_of_the_providers() -> None:
    """Neither in another style nor beside it."""
    for dialect in ("openai", "responses", "anthropic"):
        sent = request_headers([*CREDENTIALS, (b"a", b"b")], api_key="own", dialect=dialect)
        assert len(sent) == 2
        assert not any("caller" in value for _, value in sent)


@pytest.mark.parametrize(
    ("raw", "dialect", "sent"),
    [
        (CREDENTIALS[:1], "anthropic", {"authorization": "Bearer own"}),
        (CREDENTIALS[1:2], "openai", {"x-api-key": "own"}),
        (CREDENTIALS[2:3], "openai", {"api-key": "own"}),
        (CREDENTIALS[3:4], "openai", {"x-goog-api-key": "own"}),
        ([], "openai", {"authorization": "Bearer own"}),
        ([], "responses", {"authorization": "Bearer own"}),
        ([], "anthropic", {"x-api-key": "own"}),
        (CREDENTIALS[:2], "anthropic", {"x-api-key": "own"}),
    ],
)
def test_the_providers_key_goes_where_the_callers_was(
    raw: RawHeaders, dialect: Dialect, sent: dict[str, str]
) -> None:
    """The caller knows the style; where it shows none or several, the dialect's own is used."""
    assert up(raw, "own", dialect) == sent


@pytest.mark.parametrize("value", [b"a\r\nx-injected: 1", b"a\x00", b"a\x7f"])
def test_a_control_character_is_refused_and_not_quoted(value: bytes) -> None:
    """What no parser should let in must not get out; the message names only the field."""
    with pytest.raises(ValidationError, match="x-note") as caught:
        up([(b"X-Note", value)])
    assert "injected" not in str(caught.value)


def test_what_speaks_of_the_other_origin_does_not_come_down() -> None:
    """Cookies, server and browser policies are the provider's; rate limits are for the caller."""
    raw = [
        (b"Content-Type", b"text/event-stream"),
        (b"Content-Encoding", b"gzip"),
        (b"Content-Length", b"9"),
        (b"x-ratelimit-remaining-requests", b"3"),
        (b"ratelimit", b'"default";r=3'),
        (b"vary", b"a"),
        (b"Vary", b"b"),
    ]
    dropped = [
        *[(b"Set-Cookie", b"c=1"), (b"Server", b"s"), (b"Keep-Alive", b"timeout=5")],
        *[(b"access-control-allow-origin", b"*"), (b"alt-svc", b'h3=":443"')],
        *[(b"strict-transport-security", b"max-age=1"), (b"x-interlock-wait-ms", b"0")],
    ]
    assert response_headers([*dropped, *raw]) == raw


def test_a_chunked_answer_has_no_length() -> None:
    """Two framings would let the caller read another answer than was sent."""
    raw = [(b"Transfer-Encoding", b"chunked"), (b"content-length", b"9"), (b"a", b"b")]
    assert response_headers(raw) == [(b"a", b"b")]


@given(st.lists(st.tuples(st.binary(min_size=1), st.binary())), st.sampled_from([None, "own"]))
def test_any_fields_are_sorted_out(raw: RawHeaders, key: str | None) -> None:
    """Any bytes pass as text or are refused in words."""
    response_headers(raw)
    try:
        request_headers(raw, api_key=key, dialect="openai")
    except ValidationError as refused:
        assert "control character" in str(refused)  # noqa: PT017 - or nothing at all is raised


# --- the path ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "query", "sent"),
    [
        (b"/gateway/openai/v1/chat/completions", b"", "/v1/chat/completions"),
        (b"/gateway/openai/v1/models/a%20b:c@d~e", b"", "/v1/models/a%20b:c@d~e"),
        (b"/gateway/openai/v1/x/", b"a=%2F..%2f&b=//&c=\\", "/v1/x/?a=%2F..%2f&b=//&c=\\"),
        (b"/gateway/openai/v1/..a/b...", b"", "/v1/..a/b..."),
        (b"/gateway/openai", b"", ""),
        (b"/gateway/openai/", b"", "/"),
    ],
)
def test_the_path_goes_on_byte_for_byte(path: bytes, query: bytes, sent: str) -> None:
    """Nothing is decoded, encoded or tidied."""
    assert upstream_path(path, query) == sent


@pytest.mark.parametrize(
    "rest",
    [
        *[b"/..", b"/../x", b"/v1/../x", b"/v1/./x", b"/.", b"/v1/..;a=b/x"],
        *[b"/%2e%2e/x", b"/v1/.%2E/x", b"/v1/%2e", b"/%252e%252e/x", b"/%25%32%65/x"],
        *[b"//evil", b"/v1//x", b"/v1%2fx", b"/v1%2Fx", b"/v1%5cx", b"/v1\\x", b"/v1%5C..%5Cx"],
        *[b"/v1/\x00", b"/v1/%00", b"/v1/%0d%0ax", b"/v1/\r\n", b"/v1/%7f", b"/v1/ x", b"/v1/\xff"],
        *[b"/v1/%zz", b"/v1/%", b"/v1/x#y", b"/v1/x?y"],
    ],
)
def test_a_way_out_of_the_base_url_is_refused(rest: bytes) -> None:
    """In every disguise that some server takes off."""
    with pytest.raises(ValidationError, match="path"):
        upstream_path(b"/gateway/openai" + rest, b"")


@pytest.mark.parametrize("query", [b"a b", b"a\r\nb", b"a#b", b"\xff", b"\x00"])
def test_a_query_that_is_none_is_refused(query: bytes) -> None:
    """It could split the request line."""
    with pytest.raises(ValidationError):
        upstream_path(b"/gateway/openai/v1", query)


def test_path_and_query_have_at_most_8_kib() -> None:
    """Together, as they came."""
    path = b"/gateway/openai/"
    room = 8192 - len(path)
    assert len(upstream_path(path, b"q" * room)) == room + 2
    with pytest.raises(ValidationError, match="8192"):
        upstream_path(path, b"q" * (room + 1))


@pytest.mark.parametrize("path", [b"", b"/", b"/gateway/", b"/gateway", b"/other/openai/v1"])
def test_a_path_of_another_route_is_refused(path: bytes) -> None:
    """There is no provider in it."""
    with pytest.raises(ValidationError, match="/gateway/"):
        upstream_path(path, b"")


ALPHABET = st.sampled_from([b"a", b"/", b".", b"%2e", b"%2F", b"%5c", b"%25", b"%", b"\\", b";"])


@given(st.lists(ALPHABET).map(b"".join) | st.binary(), st.binary(max_size=9))
def test_what_passes_stays_below_the_base_url(rest: bytes, query: bytes) -> None:
    """However often it is decoded, no segment leads up and nothing is hidden."""
    try:
        sent = upstream_path(b"/gateway/p/" + rest, query)
    except ValidationError:
        return
    path = sent.partition("?")[0]
    assert unquote(unquote(path)) == unquote(path)
    assert "//" not in path
    assert not {".", ".."} & set(unquote(path).split("/"))
    assert sent.encode() == b"/" + rest + (b"?" + query if query else b"")


# --- what we add ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "in_flight", "paused_for", "added"),
    [
        (4, 3, None, {b'"concurrency";r=1'}),
        (4, 4, 0.0, {b'"concurrency";r=0'}),
        (4, 6, None, {b'"concurrency";r=0'}),
        (4, 1, 2.2, {b'"concurrency";r=0;t=3'}),
        (4, 1, float("inf"), {b'"concurrency";r=0;t=1000000000'}),
        (None, 1, 2.2, set()),
    ],
)
def test_the_limit_is_told_in_ietf_fields(
    limit: int | None, in_flight: int, paused_for: float | None, added: set[bytes]
) -> None:
    """What is left of the limit; nothing while paused, and for how long."""
    headers = dict(concurrency_headers(limit, in_flight, paused_for, 12))
    assert headers.pop(b"x-interlock-wait-ms") == b"12"
    policy = headers.pop(b"ratelimit-policy", None)
    assert policy == (b'"concurrency";q=4;qu="concurrent-requests"' if limit else None)
    assert set(headers.values()) == added
