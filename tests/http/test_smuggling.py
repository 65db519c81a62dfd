"""No request can be read in two ways: what is ambiguous is refused and its connection closed.

Two readers of one connection, a proxy and the server behind it, have to agree where a request ends. Each
case hides a second request, ``/hidden``, where only a lenient reader would find one.
"""

from __future__ import annotations

from itertools import product

import pytest

from gateways import hosting
from raw_http import Whole, all_that_came

HIDDEN = b"GET /hidden HTTP/1.1\r\nhost: localhost\r\n\r\n"
CHUNKED = b"0\r\n\r\n"
LENGTHS = [b"+5", b"0x5", b"5,5", b"5, 5", b"-1", b"5 5", b"", b"5;", b"5.0", b"1e1", b"\x0b5", b"\xb2"]
LENGTHS += [b"5_0", b"'5'", b"9" * 30, b"0b1", b"five", b"\xe2\x80\x8b5", b"5\x00"]
NAMES = [b"content-length", b"Content-Length", b"CONTENT-LENGTH"]
CODINGS = [b"gzip", b"identity", b"xchunked", b"chunked, gzip", b"chunked, chunked", b"gzip, chunked"]
CODINGS += [
    b'"chunked"',
    b"chunked;q=1",
    b"\x0bchunked",
    b"chunked\x00",
    b"",
    b"chunke",
    b"chunked,",
    b",chunked",
]
SPELT = [b"transfer-encoding", b"Transfer-Encoding", b"TRANSFER-ENCODING"]
CHUNKS = [
    b"5\nabcde\r\n0\r\n\r\n",
    b"5\r\nabcde\n0\r\n\r\n",
    b"5\r\nabcde0\r\n\r\n",
    b"0x5\r\nabcde\r\n0\r\n\r\n",
    b"5 \r\nabcde\r\n0\r\n\r\n",
    b" 5\r\nabcde\r\n0\r\n\r\n",
    b"+5\r\nabcde\r\n0\r\n\r\n",
    b"-5\r\nabcde\r\n0\r\n\r\n",
    b"5_0\r\nabcde\r\n0\r\n\r\n",
    b"\r\n5\r\nabcde\r\n0\r\n\r\n",
    b"5;a=b\nabcde\r\n0\r\n\r\n",
    b"5;a\x00=b\r\nabcde\r\n0\r\n\r\n",
    b"5;\nabcde\r\n0\r\n\r\n",
    b"5;" + b"a" * 257 + b"\r\nabcde\r\n0\r\n\r\n",
    b"5;" + b"a=" + b"b" * 5000 + b"\r\nabcde\r\n0\r\n\r\n",
    b"5\rXabcde\r\n0\r\n\r\n",
    b"5\r\rabcde\r\n0\r\n\r\n",
    b"fffffffffffffffff\r\nabcde\r\n0\r\n\r\n",
    b"10000000000000005\r\nabcde\r\n0\r\n\r\n",
    b"\xef\xbc\x95\r\nabcde\r\n0\r\n\r\n",
    b";a\r\nabcde\r\n0\r\n\r\n",
    b"\r\n\r\n",
    b"G\r\nabcde\r\n0\r\n\r\n",
    b"5\r\nabcde\r\n0\n\n",
    b"5\r\nabcde\r\n0\r\n\n",
    b"5\r\nabcde\r\n0\r\nContent-Length: 5\r\n\r\n",
    b"5\r\nabcde\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"5\r\nabcde\r\n0\r\nx : y\r\n\r\n",
    b"5\r\nabcde\r\n0\r\nx: y\n\r\n\r\n",
    b"5\r\nabcde\r\n0\r\n" + b"x: y\r\n" * 4000 + b"\r\n",
]
FIELDS = [
    b"x : y\r\n",
    b" x: y\r\n",
    b"x: y\r\n z\r\n",
    b"x: y\r\n\tz\r\n",
    b"x:\r\n y\r\n",
    b"x: y\nz: w\r\n",
    b"x: y\rz: w\r\n",
    b"x: y\r\r\n",
    b"x: \x00\r\n",
    b"x\x00: y\r\n",
    b"x: \x01y\r\n",
    b"x: y\x7f\r\n",
    b": y\r\n",
    b"x y: z\r\n",
    b"xyz\r\n",
    b"(x): y\r\n",
    b"x\xe9: y\r\n",
]
LINES = [
    b"GET / HTTP/1.1\n",
    b"GET / HTTP/1.1 \r\n",
    b"GET / HTTP/1.1\r\r\n",
    b"GET\t/ HTTP/1.1\r\n",
    b"GET /\x00 HTTP/1.1\r\n",
    b"GET /\x7f HTTP/1.1\r\n",
    b"GET /\xe9 HTTP/1.1\r\n",
    b"GET /a b HTTP/1.1\r\n",
    b"GET / HTTP/1.2\r\n",
    b"GET / HTTP/2.0\r\n",
    b"GET / HTTP/0.9\r\n",
    b"GET /\r\n",
    b"GET / http/1.1\r\n",
    b"GET / HTTQ/1.1\r\n",
    b" GET / HTTP/1.1\r\n",
    b"get / HTTP/1.1\r\n",
    b"CONNECT localhost:1 HTTP/1.1\r\n",
    b"PRI * HTTP/2.0\r\n",
]


def cases() -> list[bytes]:
    """Every one of them ends in what a lenient reader takes for a second request."""
    post = b"POST / HTTP/1.1\r\nhost: localhost\r\n"
    found = []
    for name, value in product(NAMES[:2], LENGTHS):
        found.append(post + name + b": " + value + b"\r\n\r\nabcde" + HIDDEN)
    for first, second in product((b"5", b"0", b"6"), repeat=2):
        fields = b"content-length: " + first + b"\r\nContent-Length: " + second + b"\r\n\r\n"
        found.append(post + fields + b"abcde" + HIDDEN)
    for name, value in product(SPELT, CODINGS):
        found.append(post + name + b": " + value + b"\r\n\r\n" + CHUNKED + HIDDEN)
    for one, other in product(SPELT, NAMES):
        for length in (b"0", b"5", b"44"):
            te, cl = one + b": chunked\r\n", other + b": " + length + b"\r\n"
            found += [post + fields + b"\r\n" + CHUNKED + HIDDEN for fields in (te + cl, cl + te)]
    for first, second in ((b"gzip", b"chunked"), (b"chunked", b"gzip"), (b"chunked", b"chunked")):
        te = b"transfer-encoding: " + first + b"\r\nTransfer-Encoding: " + second + b"\r\n"
        found.append(post + te + b"\r\n" + CHUNKED + HIDDEN)
    found += [post + b"transfer-encoding: chunked\r\n\r\n" + body + HIDDEN for body in CHUNKS]
    found += [b"GET / HTTP/1.1\r\nhost: localhost\r\n" + field + b"\r\n" + HIDDEN for field in FIELDS]
    found += [line + b"host: localhost\r\n\r\n" + HIDDEN for line in LINES]
    upgrade = b"connection: upgrade\r\nupgrade: websocket\r\n"
    found.append(post + upgrade + b"content-length: 44\r\n\r\n" + HIDDEN)
    found.append(post + upgrade + b"upgrade: h2c\r\n\r\n" + HIDDEN)
    old = post.replace(b"1.1", b"1.0")
    found.append(old + b"transfer-encoding: chunked\r\n\r\n" + CHUNKED + HIDDEN)
    return found


async def test_nothing_ambiguous_is_accepted() -> None:
    """Over 200 cases on raw sockets: one refusal, the end of the connection, and nobody has been served."""
    app, corpus = Whole(), cases()
    assert len(corpus) == len(set(corpus)) >= 200
    wrong = []
    async with hosting(app) as url:
        for raw in corpus:
            said = await all_that_came(url, [raw])
            refused = said.startswith((b"HTTP/1.1 400", b"HTTP/1.1 501", b"HTTP/1.1 505"))
            if not refused or said.count(b"HTTP/1.1 ") != 1 or b"connection: close" not in said or app.seen:
                wrong.append((raw[:200], said[:200], app.seen.copy()))
                app.seen.clear()
    assert wrong == []


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", b"501"),
        (b"transfer-encoding: identity\r\n\r\n", b"501"),
        (b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n", b"400"),
        (b"content-length: +5\r\n\r\nabcde", b"400"),
    ],
)
async def test_what_is_unknown_is_told_from_what_is_wrong(raw: bytes, status: bytes) -> None:
    async with hosting(Whole()) as url:
        said = await all_that_came(url, [b"POST / HTTP/1.1\r\nhost: localhost\r\n" + raw])
        assert said.startswith(b"HTTP/1.1 " + status), said


async def test_a_proper_request_is_read_however_it_is_cut() -> None:
    """Heads, bodies, chunks, extensions and trailers at any boundary; and several on one connection."""
    heads = b"host: localhost\r\nx-mine: 1\r\n"
    first = b"POST /a?b=c HTTP/1.1\r\n" + heads + b"content-length: 5\r\n\r\nab\r\nc"
    ext = b";a=" + b"b" * 200
    second = b"\r\nPOST /b HTTP/1.1\r\n" + heads + b"Transfer-Encoding: Chunked\r\n\r\n"
    second += b"5" + ext + b"\r\nabcde\r\n00000a\r\n0123456789\r\n0\r\nx-late: 1\r\nhost: evil\r\n\r\n"
    last = b"GET /c HTTP/1.1\r\nconnection: close\r\n" + heads + b"\r\n"
    raw = first + second + last
    names = [b"host", b"x-mine"]
    want = [
        ("/a", b"ab\r\nc", [*names, b"content-length"]),
        ("/b", b"abcde0123456789", [*names, b"transfer-encoding"]),
        ("/c", b"", [b"connection", *names]),
    ]
    app = Whole()
    async with hosting(app) as url:
        for size in (1, 2, 3, 7, 64, len(raw)):
            pieces = [raw[at : at + size] for at in range(0, len(raw), size)]
            said = await all_that_came(url, pieces)
            assert (said.count(b"HTTP/1.1 200"), app.seen) == (3, want), size
            app.seen.clear()
        for cut in range(1, len(raw), 5):
            said = await all_that_came(url, [raw[:cut], raw[cut:]])
            assert (said.count(b"HTTP/1.1 200"), app.seen) == (3, want), cut
            app.seen.clear()


@pytest.mark.parametrize("length", [0, 1])
async def test_an_upgrade_that_nobody_knows_is_ignored(length: int) -> None:
    """Some clients ask for HTTP/2 with every request; they are answered in HTTP/1.1, on and on."""
    ask = b"POST / HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: h2c\r\n"
    ask += b"content-length: %d\r\n\r\n" % length + b"x" * length
    close = b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    app = Whole()
    async with hosting(app) as url:
        said = await all_that_came(url, [ask + ask + close])
        assert said.count(b"HTTP/1.1 200") == len(app.seen) == 3
