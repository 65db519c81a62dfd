"""No key ever shows: a canary wherever a secret may stand, every error forced, and everything read.

The provider is told only what it must know, so it is no part of this; what it answers is the caller's to see.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from gateways import EVENTS, Caller, Header, Upstream, answer, caller, chat, event, gateway, until, upstream
from interlock.http.gateway.call import GatewayProvider
from processes import command, serve

PROVIDERS, OURS, ASKED = "sk-canary-provider", "canary-token", "sk-canary-query"
CANARY = b"canary"
HEADERS: list[Header] = [
    (b"x-interlock-token", OURS.encode()),
    (b"authorization", b"Bearer sk-canary-caller"),
]
TARGET = f"/v1/chat/completions?key={ASKED}"
REDIRECT = b"HTTP/1.1 302 Found\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n"
SAID = [
    b"",
    b"HTTP/1.1 200 OK\r\ncontent-le",
    b"SSH-2.0\r\n\r\n",
    b"HTTP/1.1 999 Odd\r\ncontent-length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{",
    EVENTS + event({"n": 1}),
    REDIRECT,
    answer(200, b"\x00{{{"),
    answer(401),
    answer(500, b"x" * 100_000),
    answer(503, b"", (b"retry-after", b"0")),
    answer(429, b"", (b"retry-after", b"nan")),
    answer(429, b'{"error": {"code": "insufficient_quota"}}', (b"retry-after", b"0")),
]
"""What a provider may say instead of an answer; after each the connection ends."""
OWN: list[tuple[str, str, list[Header], bytes]] = [
    ("GET", "/gateway/nobody" + TARGET, [], b""),
    ("GET", "/gateway/dead" + TARGET, [], b""),
    ("POST", "/gateway/dead" + TARGET, [], chat(stream=True)),
    ("POST", "/gateway/p/../x" + TARGET, [], b""),
    ("POST", "/gateway/p/%00" + TARGET, [], b""),
    ("POST", "/gateway/p" + TARGET, [(b"x-interlock-timeout-ms", b"soon")], b""),
    ("POST", "/gateway/p" + TARGET, [(b"content-length", b"99999999999")], b""),
    ("POST", "/gateway/p" + TARGET, [(b"origin", b"http://[")], b""),
    ("POST", "/gateway/p" + TARGET, [(b"origin", b"http://evil.example")], b""),
    ("POST", "/gateway/nobody" + TARGET, [(b"x-interlock-token", b"canary-wrong")], b""),
    ("GET", f"/healthz?key={ASKED}", [], b""),
    ("GET", f"/nowhere?key={ASKED}", [], b""),
    ("GET", "/concurrency/status", [], b""),
    ("GET", "/limits", [], b""),
    ("BREW", f"/concurrency/status?key={ASKED}", [], b""),
]


async def everything(client: Caller) -> bytes:
    """All that comes back until the connection ends."""
    async with asyncio.timeout(10):
        try:
            return await client.reader.read()
        except ConnectionError:
            return b""


async def asked(url: str, method: str, target: str, headers: list[Header], body: bytes) -> bytes:
    async with caller(url) as client:
        client.ask(method, target, [*HEADERS, *headers, (b"connection", b"close")], body)
        return await everything(client)


async def told(url: str, provider: Upstream, said: bytes, name: str = "p") -> bytes:
    """What a caller hears where the provider has *said* something odd and hung up."""
    async with caller(url) as client:
        headers = [*HEADERS, (b"connection", b"close"), (b"x-interlock-timeout-ms", b"1")]
        client.ask("POST", f"/gateway/{name}{TARGET}", headers, chat(stream=True))
        exchange = await provider.next()
        assert PROVIDERS.encode() in exchange.head, "the canary is where it should be"
        exchange.write(said)
        if exchange.writer.can_write_eof():
            exchange.writer.write_eof()
        return await everything(client)


async def pause_is_over(url: str) -> None:
    """Nobody waits for what the refusal before has brought."""
    async with asyncio.timeout(10):
        while b'"paused":true' in await asked(url, "GET", "/concurrency/status", [], b""):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_nothing_that_a_server_says_or_keeps_shows_a_key(tmp_path: Path) -> None:
    """Answers, standard output and error, the store, and what the commands print about it."""
    config = """\
store = "sqlite:///interlock.db"
[server]
token = "env:OURS"
[providers.p]
base_url = "{url}"
api_key = "env:PROVIDERS"
cooldown = "0s"
default_pause = "1ms"
[providers.dead]
base_url = "http://127.0.0.1:9"
api_key = "{key}"
"""
    async with upstream() as provider:
        text = config.format(url=provider.url, key=PROVIDERS)
        env = {"OURS": OURS, "PROVIDERS": PROVIDERS, "INTERLOCK_TOKEN": OURS}
        async with serve(tmp_path, text, env) as server:
            heard = [await asked(server.url, *one) for one in OWN]
            assert all(heard), "each was answered"
            for said in SAID:
                await pause_is_over(server.url)
                heard.append(await told(server.url, provider, said))
            heard += [" ".join(server.lines).encode()]
            env["INTERLOCK_URL"] = server.url
            for words in ("status --json", "status", "config check", "config check --json"):
                finished = await command(*words.split(), cwd=tmp_path, env=env)
                assert finished.code == 0, finished
                heard += [finished.stdout.encode(), finished.stderr.encode()]
            server.process.terminate()
            await server.ended()
        stderr = server.stderr()
        heard += [file.read_bytes() for file in tmp_path.glob("interlock.db*")]
    assert [one for one in heard if CANARY in one] == []
    assert CANARY.decode() not in stderr
    assert "Traceback" not in stderr


async def test_nothing_that_is_logged_shows_a_key(caplog: pytest.LogCaptureFixture) -> None:
    """At the most talkative level, of any library; also where the provider hangs, and where clients leave."""
    caplog.set_level(logging.DEBUG)
    heard = []
    async with upstream() as provider:
        known = (
            GatewayProvider("p", provider.url, PROVIDERS),
            GatewayProvider("dead", "http://127.0.0.1:9", PROVIDERS),
        )
        async with gateway(*known, token=OURS, first_byte=0.3, idle=0.03) as served:
            heard += [await asked(served.url, *one) for one in OWN]
            for said in SAID:
                served.gate.resume("p")
                heard.append(await told(served.url, provider, said))
            served.gate.resume("p")
            async with caller(served.url) as hanging, caller(served.url) as leaving:
                hanging.ask("POST", f"/gateway/p{TARGET}", HEADERS, chat(stream=True))
                leaving.ask("POST", f"/gateway/p{TARGET}", HEADERS, chat(stream=True))
                await provider.next()
                await provider.next()
                leaving.leave()
                heard.append((await hanging.answer()).body)
            await until(lambda: not served.app.calls)
            heard.append(f"{served.app!r} {served.gate!r} {vars(served.app)!r} {caplog.text}".encode())
    assert [one for one in heard if CANARY in one] == []
