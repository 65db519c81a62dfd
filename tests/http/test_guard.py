"""Who may speak to the server: the right host name, no foreign web page, the token if there is one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from gateways import OK, Header, call, caller, gateway, hosting, upstream
from interlock.clock import SystemClock
from interlock.http.access.book import TokenBook
from interlock.http.access.reach import is_loopback
from interlock.http.guard import Guard
from interlock.secret import Secret
from interlock.stores import MemoryStore

TOKEN = "t0ken"
BEARER = (b"authorization", b"Bearer t0ken")
OURS = (b"x-interlock-token", b"t0ken")


async def said_yes(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """The application behind the guard."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"3")]})
    await send({"type": "http.response.body", "body": b"yes"})


async def status(guard: Guard, *headers: Header, path: str = "/concurrency/status") -> int:
    """How *guard* answers a request with exactly these header fields."""
    return (await answered(guard, headers, path))[0]["status"]


async def answered(guard: Guard, headers: Sequence[Header], path: str = "/x") -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        raise AssertionError("the guard reads no body")

    await guard({"type": "http", "method": "GET", "path": path, "headers": list(headers)}, receive, send)
    return sent


def guarded(*hosts: str, token: str | None = None, any_host: bool = False) -> Guard:
    book = TokenBook(MemoryStore(), SystemClock(), None if token is None else Secret(token))
    return Guard(said_yes, hosts=hosts, book=book, any_host=any_host)


HOST = (b"host", b"localhost:7411")


# -- Host ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:7411",
        "LOCALHOST:1",
        "127.0.0.1",
        "127.0.0.1:7411",
        "[::1]",
        "[::1]:80",
        "me.example:9",
    ],
)
async def test_our_own_names_are_answered(host: str) -> None:
    """Loopback always, and what is configured, on any port and in any letter case."""
    assert await status(guarded("Me.Example"), (b"host", host.encode())) == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "evil.example:7411",
        "127.0.0.2",
        "169.254.169.254",
        "localhost@evil.example",
        "localhost/#@evil.example",
        "localhost?x",
        "localhost\t",
        "localhost:",
        "localhost:123456",
        "[::2]",
        "[::1",
        "::1",
        "",
        "löcalhost",
    ],
)
async def test_other_names_are_not_answered(host: str) -> None:
    """A rebound name is how a web page would read answers: 421."""
    assert await status(guarded("me.example"), (b"host", host.encode("latin-1"))) == 421


async def test_exactly_one_host_is_needed() -> None:
    """None, or two that say different things to different readers: 400."""
    assert await status(guarded()) == 400
    assert await status(guarded(), HOST, (b"Host", b"evil.example")) == 400


async def test_a_server_for_every_address_answers_to_every_name() -> None:
    """Bound to 0.0.0.0 it cannot know its names; what is no name is refused still."""
    guard = guarded(any_host=True, token=TOKEN)
    assert await status(guard, (b"host", b"gpu-7.lan:7411"), BEARER) == 200
    assert await status(guard, (b"host", b"a/#@b"), BEARER) == 421


# -- web pages -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", ["none", "same-origin"])
async def test_our_own_pages_may_ask(site: str) -> None:
    """The dashboard, and an address typed by hand."""
    origin = (b"origin", b"http://localhost:7411")
    assert await status(guarded(), HOST, (b"sec-fetch-site", site.encode()), origin) == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
async def test_other_sites_pages_may_not_ask(site: str) -> None:
    """Browsers say where a request comes from; another port is another site's business, too."""
    assert await status(guarded(), HOST, (b"sec-fetch-site", site.encode())) == 403


async def test_a_link_of_another_page_leads_to_the_dashboard() -> None:
    """Somebody who follows one may look; nothing else is opened by it, and no frame of another page."""
    site, mode, dest = b"sec-fetch-site", b"sec-fetch-mode", b"sec-fetch-dest"
    follows = (HOST, (site, b"cross-site"), (mode, b"navigate"))
    assert await status(guarded(), *follows, (dest, b"document"), path="/") == 200
    assert await status(guarded(), *follows, (dest, b"iframe"), path="/") == 403
    assert await status(guarded(), *follows, (dest, b"document"), path="/limits") == 403
    assert await status(guarded(), HOST, (site, b"cross-site"), (mode, b"cors"), path="/") == 403
    assert await status(guarded(), HOST, (site, b"cross-site"), path="/") == 403


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "https://evil.example:7411",
        "null",
        "",
        "localhost",
        "file://",
        "http://localhost@evil.example",
        "http://localhost.evil.example",
        "http://[",
        "http://[evil]/",
    ],
)
async def test_a_foreign_origin_is_refused(origin: str) -> None:
    """Also an opaque one, and one that is no origin at all."""
    assert await status(guarded(), HOST, (b"origin", origin.encode())) == 403


async def test_a_foreign_origin_is_refused_by_a_server_for_every_address() -> None:
    """It knows one name at least: the one that the request was sent to."""
    guard = guarded(any_host=True, token=TOKEN)
    host = (b"host", b"gpu-7.lan:7411")
    assert await status(guard, host, (b"origin", b"http://gpu-7.lan:7411"), BEARER) == 200
    assert await status(guard, host, (b"origin", b"http://evil.example"), BEARER) == 403


async def test_one_foreign_origin_among_several_is_enough() -> None:
    own, foreign = (b"origin", b"http://localhost:7411"), (b"origin", b"http://evil.example")
    assert await status(guarded(), HOST, own, foreign) == 403


# -- the token -----------------------------------------------------------------------------------------------


async def test_without_a_token_everybody_on_this_machine_may_ask() -> None:
    assert await status(guarded(), HOST) == 200


@pytest.mark.parametrize(
    ("field", "path"),
    [
        (BEARER, "/concurrency/status"),
        (BEARER, "/gateway/p/v1/models"),
        ((b"Authorization", BEARER[1]), "/"),
        ((b"authorization", b"bearer  " + b"t0ken" + b" "), "/"),
        (OURS, "/gateway/p/v1/models"),
        ((b"x-api-key", b"t0ken"), "/gateway/p/v1/messages"),
    ],
)
async def test_the_token_opens(field: Header, path: str) -> None:
    """As a bearer, in our own field beside the caller's key, or where an Anthropic SDK puts its own."""
    assert await status(guarded(token=TOKEN), HOST, field, path=path) == 200


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ([], "/concurrency/status"),
        ([], "/gateway/p/v1/models"),
        ([], "/healthz/"),
        ([], "/healthz/../concurrency/status"),
        ([(b"authorization", b"Bearer wrong")], "/limits"),
        ([(b"authorization", b"Bearer ")], "/limits"),
        ([(b"authorization", b"t0ken")], "/limits"),
        ([(b"authorization", b"Bearer " + b"t0ken"[:-1])], "/limits"),
        ([(b"x-interlock-token", b"")], "/limits"),
        ([(b"x-api-key", b"t0ken")], "/concurrency/status"),
    ],
)
async def test_nothing_else_opens(fields: list[Header], path: str) -> None:
    """401, saying how to ask, and nothing of what was sent."""
    start, body = await answered(guarded(token=TOKEN), [HOST, *fields], path)
    assert start["status"] == 401
    assert (b"www-authenticate", b"Bearer") in start["headers"]
    media = b"application/json" if path.startswith("/gateway/") else b"application/problem+json"
    assert (b"content-type", media) in start["headers"]
    assert b"t0ken" not in body["body"]


async def test_one_right_token_among_several_opens() -> None:
    """The caller's own key may stand in one field while ours stands in another."""
    own = (b"authorization", b"Bearer sk-of-the-provider")
    assert await status(guarded(token=TOKEN), HOST, own, (b"x-interlock-token", b"t0ken")) == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_health_needs_no_token(path: str) -> None:
    """It says ok or not, and no more; the host must be right still."""
    assert await status(guarded(token=TOKEN), HOST, path=path) == 200
    assert await status(guarded(token=TOKEN), (b"host", b"evil.example"), path=path) == 421


def test_what_loopback_is() -> None:
    assert all(is_loopback(host) for host in ("localhost", "127.0.0.1", "127.1.2.3", "::1"))
    assert not any(
        is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example.com", "localhost.lan")
    )


def test_a_name_that_begins_like_a_loopback_address_is_none() -> None:
    """``127.evil.example`` resolves to wherever its owner likes."""
    assert not is_loopback("127.evil.example")


# -- in front of the gateway ---------------------------------------------------------------------------------


async def test_the_guard_stands_before_the_gateway() -> None:
    """What it refuses reaches neither a slot nor a provider."""
    async with upstream() as provider, gateway(provider.url, limit=1) as served:
        foreign = [(b"origin", b"http://evil.example"), (b"content-type", b"text/plain")]
        assert (await call(served.url, headers=foreign, body=b"{}")).status == 403
        assert (await call(served.url, headers=[(b"sec-fetch-site", b"cross-site")])).status == 403
        assert provider.seen == 0
        provider.will_answer(OK)
        assert (await call(served.url)).status == 200


SPACED = [
    (b"authorization", b"Bearer t0ken "),
    pytest.param(
        (b"authorization", b"Bearer \tt0ken"),
    ),
]


@pytest.mark.parametrize("field", [BEARER, (b"x-api-key", b"t0ken"), OURS, *SPACED])
async def test_the_servers_token_does_not_reach_the_provider(field: Header) -> None:
    """It opens this server, whose provider is somebody else."""
    async with upstream() as provider, gateway(provider.url, token=TOKEN) as served:
        provider.will_answer(OK)
        other = (b"x-goog-api-key", b"callers")
        assert (await call(served.url, headers=[field, other], body=b"{}")).status == 200
        seen = await provider.next()
        assert b"t0ken" not in seen.head
        assert seen.header(b"x-goog-api-key") == b"callers"


async def test_our_own_field_does_not_reach_the_provider() -> None:
    """The way to have both a token here and a key there."""
    async with upstream() as provider, gateway(provider.url, token=TOKEN) as served:
        provider.will_answer(OK)
        ours, theirs = (
            (b"x-interlock-token", b"t0ken"),
            (b"authorization", b"Bearer sk-theirs"),
        )
        assert (await call(served.url, headers=[ours, theirs], body=b"{}")).status == 200
        seen = await provider.next()
        assert seen.header(b"authorization") == b"Bearer sk-theirs"
        assert b"t0ken" not in seen.head


async def test_what_is_no_http_is_refused() -> None:
    """Before any of this: 400 and the end of the connection."""
    async with hosting(guarded()) as url:
        for raw in (b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.1\r\nhost : localhost\r\n\r\n"):
            async with caller(url) as client:
                client.writer.write(raw)
                async with asyncio.timeout(5):
                    assert (await client.reader.read()).startswith(b"HTTP/1.1 400")
