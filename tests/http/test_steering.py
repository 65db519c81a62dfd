"""Where a call goes and as whom is the configuration's to say: no body, no name and no answer changes it."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import pytest

from gateways import OK, call, chat, gateway, hosting, upstream
from interlock.http.gateway.upstream import HttpUpstream, UpstreamError, is_forbidden
from raw_http import Whole, all_that_came
from served_tokens import door


@pytest.mark.parametrize("name", ["api_base", "base_url", "api_key", "organization"])
@pytest.mark.parametrize("value", ["http://evil.example", None, {"x": 1}])
async def test_a_body_chooses_no_provider(name: str, value: Any) -> None:
    """400 in the dialect of the call, however the name is spelled; the provider hears nothing."""
    plain = json.loads(chat())
    spelled = json.dumps({**plain, name: value}).replace(name, name[:-1] + f"\\u{ord(name[-1]):04x}")
    async with upstream() as provider, gateway(provider.url) as served:
        for body in (json.dumps({**plain, name: value}), spelled):
            got = await call(served.url, body=body.encode())
            assert (got.status, got.json["error"]["code"]) == (400, "unsupported_parameter")
            assert repr(name) in got.json["error"]["message"]
        assert provider.seen == 0
        provider.will_answer(OK)
        deeper = {**plain, "metadata": {name: value}}  # somebody's own data
        assert (await call(served.url, body=json.dumps(deeper).encode())).status == 200


@pytest.mark.parametrize(
    ("address", "forbidden"),
    [
        ("169.254.169.254", True),
        ("169.254.0.1", True),
        ("::ffff:169.254.169.254", True),
        ("fe80::1%eth0", True),
        ("fd00:ec2::254", True),
        ("224.0.0.1", True),
        ("ff02::1", True),
        ("127.0.0.1", False),
        ("10.0.0.1", False),
        ("192.0.2.1", False),
        ("2001:db8::1", False),
    ],
)
def test_addresses_that_no_provider_has(address: str, forbidden: bool) -> None:
    """Of the link, of a group, of a cloud's metadata. A model of one's own may be anywhere else."""
    assert is_forbidden(address) == forbidden


async def test_a_name_that_leads_there_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked once, and that answer counts: nothing is connected to, and it is said why."""
    asked = []

    async def resolved(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        tail = (socket.SOCK_STREAM, 6, "", ("169.254.169.254", port))
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)), (socket.AF_INET, *tail)]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolved)
    async with upstream() as provider:
        client = HttpUpstream()
        url = provider.url.replace("127.0.0.1", "models.example")
        with pytest.raises(UpstreamError, match=r"169\.254\.169\.254 is never a provider's") as caught:
            await client.send("GET", url, [], None)
        await client.aclose()
        assert (caught.value.kind, caught.value.status) == ("connect", 502)
        assert (asked, provider.connections) == (["models.example"], 0)


# -- what a request may carry --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/sessions", "/gateway/p/v1/chat/completions"])
async def test_a_compressed_body_is_not_read(path: str) -> None:
    """415, before anything of it is unpacked; to say that it is not compressed is as good as nothing."""
    async with door() as server:
        for coding in (b"gzip", b"GZIP", b"identity, br", b"zstd"):
            answer = await server.ask("POST", path, None, {}, (b"content-encoding", coding))
            body = answer.json.get("error", answer.json)
            assert (answer.status, body["code"]) == (415, "content_encoding")
        assert (await server.ask("POST", path, None, {}, (b"content-encoding", b"identity"))).status != 415


@pytest.mark.parametrize(
    ("method", "path", "most"),
    [
        (b"POST", b"/permits", 64 << 10),
        (b"POST", b"/sessions", 1 << 20),
        (b"POST", b"/tokens", 64 << 10),
        (b"PUT", b"/limits/a", 64 << 10),
        (b"POST", b"/gateway/p/v1/embeddings", 32 << 20),
    ],
)
@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_that_is_too_large_ends_the_connection(
    method: bytes, path: bytes, most: int, announced: bool
) -> None:
    """413 while it is read, not after: nothing here ever sends the end of it."""
    head = method + b" " + path + b" HTTP/1.1\r\nhost: localhost\r\n"
    if announced:
        sent = b"x" if b"gateway" in path else b"x" * (most + 1)  # which looks at what is announced
        raw = head + b"content-length: %d\r\n\r\n" % (most * 2) + sent
    else:
        raw = head + b"transfer-encoding: chunked\r\n\r\n%x\r\n" % (most * 2) + b"x" * (most + 1)
    async with door() as server:
        said = await all_that_came(server.url, [raw])
    assert said.startswith(b"HTTP/1.1 413"), said
    assert b"connection: close" in said


@pytest.mark.parametrize(
    "target", ["http://evil.example/x", "http://localhost@evil.example/x", "http://localhost:1/x?y#z"]
)
async def test_what_a_target_says_of_a_host_counts_for_nothing(target: str) -> None:
    """The path alone is looked at, the Host field says who is meant."""
    app = Whole()
    async with hosting(app) as url:
        said = await all_that_came(
            url, [f"GET {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode()]
        )
        assert said.startswith(b"HTTP/1.1 200")
        assert [path for path, *_ in app.seen] == ["/x"]
    async with door() as server:
        said = await all_that_came(
            server.url,
            [b"GET http://localhost/limits HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n"],
        )
        assert said.startswith(b"HTTP/1.1 421")
