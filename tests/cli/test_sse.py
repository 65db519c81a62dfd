"""Server-sent events out of bytes: the standard's rules, at every place where a stream can be cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlock.cli.sse import Message, Messages

STREAMS = [
    (b"data: a\n\n", [("message", "a", "")]),
    (b"id: 7\nevent: run_started\ndata: {}\n\n", [("run_started", "{}", "7")]),
    (b"id: 7\r\nevent: x\r\ndata: \xc3\xa4\r\n\r\n: ping\r\n\r\n", [("x", "ä", "7")]),
    (b"event: x\rdata: a\r\rdata: b\r\r", [("x", "a", ""), ("message", "b", "")]),
    (b"\xef\xbb\xbfdata: a\n\n", [("message", "a", "")]),
    (b"data:a\ndata: b\ndata:  c\ndata\n\n", [("message", "a\nb\n c\n", "")]),
    (b": ping\n\n: ping\n\ndata: a\n\n", [("message", "a", "")]),
    (b"id: 1\nevent: nothing\n\ndata: a\n\n", [("message", "a", "1")]),
    (b"id: 1\ndata: a\n\nid: 2\x00\ndata: b\n\n", [("message", "a", "1"), ("message", "b", "1")]),
    (b"id: 1\ndata: a\n\nid\ndata: b\n\n", [("message", "a", "1"), ("message", "b", "")]),
    (b"retry: 5\nodd: 1\nodd\n:\ndata: a\n\n", [("message", "a", "")]),
    (b"data: \xff\xfe\n\n", [("message", "\ufffd\ufffd", "")]),
    (b"data: a\n\nid: 2\ndata: cut off", [("message", "a", "")]),
    (b"data: a\n\nid: 2\ndata: cut off\n", [("message", "a", "")]),
    (b"", []),
]  # fmt: skip


@pytest.mark.parametrize(("stream", "expected"), STREAMS)
def test_every_cut_gives_the_same_events(stream: bytes, expected: list[tuple[str, str, str]]) -> None:
    """In two pieces, wherever the cut is; whole; and byte by byte."""
    found = [Message(*one) for one in expected]
    assert Messages().feed(stream) == found
    for cut in range(len(stream) + 1):
        messages = Messages()
        assert messages.feed(stream[:cut]) + messages.feed(b"") + messages.feed(stream[cut:]) == found, cut
    messages = Messages()
    assert [one for byte in stream for one in messages.feed(bytes((byte,)))] == found


def test_an_event_is_there_as_soon_as_it_is_whole() -> None:
    """With its empty line, and not with what comes after it."""
    messages = Messages()
    assert messages.feed(b"data: a\n") == []
    assert messages.feed(b"\n") == [Message("message", "a", "")]
    assert messages.feed(b"data: b\r\n\r") == [Message("message", "b", "")]
    assert messages.feed(b"\n") == []


PIECE = st.binary(max_size=6) | st.sampled_from(
    [b"data:", b"\r", b"\n", b"\r\n", b"id: 3", b"event: x", b": "]
)


@given(st.lists(PIECE, max_size=40))
def test_nothing_makes_it_fail(pieces: list[bytes]) -> None:
    """And the pieces make no difference."""
    messages = Messages()
    assert [one for piece in pieces for one in messages.feed(piece)] == Messages().feed(b"".join(pieces))
