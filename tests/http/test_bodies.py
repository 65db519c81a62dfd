"""Bodies of the control plane: what every reader of JSON understands alike is taken, the rest refused."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateways import call
from interlock.errors import ValidationError
from interlock.http.bodies import Object, decoded
from served_tokens import door


class Asked(msgspec.Struct, forbid_unknown_fields=True):
    """A body with what is typed before and behind what is free."""

    count: int = 0
    free: Object = {}
    last: int = 0


REFUSED = [
    (b'{"count": 1, "count": 2}', "it has the member 'count' twice"),
    (b'{"free": {"a": [{"b": 1, "c": 2, "b": 1}]}}', "it has the member 'b' twice"),
    (b'{"free": {"a": 9007199254740993}}', "9007199254740993 is too large; allowed are"),
    (b'{"free": {"a": -9007199254740993}}', "is too large"),
    (b'{"free": {"a": ' + b"9" * 5000 + b"}}", "the body is refused"),
    (b'{"free": {"a": 1e999}}', "out of range"),
    (b'{"free": {"a": NaN}}', "not JSON"),
    (b'{"free": {"a": -Infinity}}', "not JSON"),
    (b'{"count": 1.0, "free": {"a": NaN}}', "Expected `int`, got `float` - at `$.count`"),
    (b'{"count": 1.5}', "Expected `int`, got `float` - at `$.count`"),
    (b'{"count": true}', "$.count"),
    (b'{"free": ' + b"[" * 64 + b"]" * 64 + b"}", "nested too deeply; allowed are 64 levels"),
    (b'{"free": ' + b"[" * 900_000, "nested too deeply"),
    (
        msgspec.json.encode({"free": {str(n): n for n in range(10_000)}}),
        "too many members; allowed are 10000",
    ),
    (b'{"free": {"a": "\\ud800"}}', "not JSON"),
    (b'{"count": 1.0, "free": {"a": "\\ud800"}}', "$.count"),
    (b'{"free": {"a": "\xff"}}', "not JSON"),
    (b"2\xff\x05", "Expected `object`"),
    (b'"' + b'\\"' * 400_000, "not JSON"),
    (b"\xef\xbb\xbf{}", "not JSON"),
    (b'{"count": 1} {}', "not JSON"),
    (b"", "not JSON"),
]


@pytest.mark.parametrize(("body", "words"), REFUSED, ids=lambda one: repr(one)[:24])
def test_what_readers_understand_in_different_ways_is_refused(body: bytes, words: str) -> None:
    """Each with what is wrong."""
    with pytest.raises(ValidationError) as refused:
        decoded(body, Asked)
    assert words in refused.value.message


def test_what_is_at_the_bounds_is_taken() -> None:
    """64 levels, 10,000 members, 2^53; and 52.0 is the number 52 where one is wanted, as in JSON Schema."""
    deep: Any = 1
    for _ in range(62):
        deep = [deep]
    free = {"deep": deep, "whole": [2**53, -(2**53)], "text": '{["\\\U0001f98a]}', "half": 0.5, "one": 1.0}
    body = msgspec.json.encode({"count": 3, "free": free})
    assert decoded(body, Asked).free == free
    assert isinstance(decoded(body, Asked).free["one"], float)
    assert decoded(b'{"count": 52.0, "last": 1e3}', Asked) == Asked(52, {}, 1000)
    many = {str(n): n for n in range(9_999)}
    assert decoded(msgspec.json.encode({"free": many}), Asked).free == many


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=40) | st.text('{}[]":,\\ud8019.eEN-x', max_size=40).map(str.encode))
def test_any_bytes_are_a_value_or_a_clear_refusal(body: bytes) -> None:
    for kind in (Asked, object):
        try:
            decoded(body, kind)
        except ValidationError as error:
            assert error.message.startswith("the body is")  # noqa: PT017 - it may also be a value


async def test_a_body_that_has_to_be_unpacked_is_415() -> None:
    """On every route: it could be larger than anything that is allowed."""
    async with door() as server:
        for method, path in (
            ("POST", "/sessions"),
            ("PUT", "/limits/tools"),
            ("PUT", "/concurrency/limits/p"),
        ):
            packed = await call(server.url, method, path, [(b"content-encoding", b"gzip")], b"\x1f\x8b")
            assert packed.status == 415, path
            assert b"content-encoding is 'gzip'" in packed.body
            plain = await call(server.url, method, path, [(b"content-encoding", b"identity")], b"{}")
            assert plain.status == 400
