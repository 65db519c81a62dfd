"""A secret of its own in every slot, every route asked in every wrong way: none is ever seen again."""

from __future__ import annotations

import logging
import pickle
import re
from typing import Any

import pytest

from gateways import Header, call, chat, gateway, upstream
from interlock.config import load_config
from interlock.http.access.scopes import CONNECT, GATEWAY
from interlock.http.gateway.call import GatewayProvider
from interlock.http.table import SCOPES
from raw_http import all_that_came
from served_tokens import bearer, door

SERVER, PROVIDER, CALLERS, QUERY = (
    "canary-server-",
    "sk-canary-provider",
    "sk-canary-caller",
    "canary-query",
)
CONFIGURED = SERVER + "0123456789" * 3
TOML = f"""\
store = "postgresql://me:canary-database@db/interlock"
coordination = "redis://:canary-redis@cache:6379"
[server]
token = "{CONFIGURED}"
[providers.p]
base_url = "http://127.0.0.1:9"
api_key = "{PROVIDER}"
"""
"""Both URLs are names for later; their passwords are hidden already."""
RAW = [
    b"GET /limits HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer %b\r\nx : y\r\n\r\n",
    b"POST /permits HTTP/1.1\r\nhost: localhost\r\nx-interlock-token: %b\r\ntransfer-encoding: gzip\r\n\r\n",
    b"POST /permits HTTP/1.1\r\nhost: localhost\r\nx-interlock-token: %b\r\ncontent-length: +1\r\n\r\n",
    b"GET /%b\x00 HTTP/1.1\r\nhost: localhost\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: localhost\r\nx-api-key: %b" + b"x" * 20_000 + b"\r\n\r\n",
]


def asked(key: str) -> tuple[str, str]:
    """A request for what the table of scopes calls *key*."""
    method, _, path = key.partition(" ")
    return (
        ("POST", "/gateway/p/v1/chat/completions")
        if key == GATEWAY
        else (method, re.sub(r"{[^}]*}", "x", path))
    )


async def test_no_secret_shows_anywhere(caplog: pytest.LogCaptureFixture, tmp_path: Any) -> None:
    """Answers, logs, the store, events, metrics, the doctor, and what objects say of themselves."""
    caplog.set_level(logging.DEBUG)
    heard: list[object] = []
    async with door(CONFIGURED) as server:
        made = await server.token(
            "submit", "read", "gateway", name="made", tenant="acme", requests_per_day=50
        )
        gone = await server.token("admin", name="gone")
        await server.book.revoke("gone")
        secrets = {made, gone, CONFIGURED, CALLERS, QUERY}
        keys: list[Header] = [(b"x-api-key", CALLERS.encode()), (b"x-goog-api-key", CALLERS.encode())]
        bodies: list[Any] = [None, {"nonsense": QUERY}, {"limits": ["nothing"], "key": QUERY}]
        for key in SCOPES:
            if key == CONNECT:
                continue
            method, path = asked(key)
            for shown in (None, gone, made, CONFIGURED):
                for body in bodies:
                    extra = [*keys, (b"accept", b"application/json")]
                    answer = await server.ask(method, f"{path}?{QUERY}=1", shown, body, *extra)
                    if not (key.startswith("POST /tokens") and answer.status == 201):
                        heard.append(answer)
        for raw in RAW:
            for shown in (made, CONFIGURED):
                heard.append(await all_that_came(server.url, [raw.replace(b"%b", shown.encode())]))
        assert (await server.ask("GET", "/limits", made)).status == 200, "the canary is what opens it"
        await server.book.aclose()
        heard += [await server.book._settings.items(), server.book, vars(server.book), server.book.budgets]
        heard += [vars(server.book.budgets), server.book.tokens(), server.admission, server.sessions]
        for path in ("/metrics", "/doctor", "/tokens", "/waiting", "/limits", "/events"):
            heard.append(await server.ask("GET", path, CONFIGURED, None, (b"accept", b"application/json")))
        config_file = tmp_path / "interlock.toml"
        config_file.write_text(TOML, encoding="utf-8")
        config = load_config(config_file, {})
        heard += [config, config.server, config.providers, [str(one) for one in (config, config.server)]]
        heard += [pickle.dumps(config.server.token), f"{config.providers['p'].api_key!r:>99}"]
    text = "\n".join([*(said(one) for one in heard), caplog.text])
    # A path or a query that somebody made up is told back to them alone: it is no slot of a secret.
    found = [one for one in secrets - {QUERY} if one in text]
    assert found == []
    assert re.findall(r"(?:canary-(?:server|database|redis)|sk-canary)[\w-]*", text) == []
    assert CALLERS not in caplog.text
    assert QUERY not in caplog.text


def said(one: object) -> str:
    return one.decode("latin-1") if isinstance(one, bytes) else repr(one)


async def test_a_key_that_a_provider_repeats_goes_to_its_caller_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Some tell the key in their errors: the answer is the caller's to see, our log and numbers are not."""
    caplog.set_level(logging.DEBUG)
    async with upstream() as provider, gateway(GatewayProvider("p", provider.url, PROVIDER)) as served:
        body = b'{"error": {"message": "Incorrect API key provided: sk-canary-provider"}}'
        provider.will_answer(b"HTTP/1.1 401 No\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        answer = await call(served.url, headers=[bearer(CALLERS)], body=chat())
        assert answer.status == 401
        numbers = await call(served.url, "GET", "/metrics")
    assert "canary" not in caplog.text + numbers.body.decode()


@pytest.mark.parametrize("stream", [False, True])
async def test_no_prompt_and_no_answer_is_kept(stream: bool, caplog: pytest.LogCaptureFixture) -> None:
    """What goes through is the caller's and the provider's: it is neither logged nor counted nor shown."""
    caplog.set_level(logging.DEBUG)
    async with upstream() as provider, gateway(provider.url, limit=1) as served:
        prompts = [
            chat("canary-prompt", stream=stream),
            b'{"messages": [{"content": "canary-prompt"',
            b"canary-prompt",
        ]
        for body in prompts:
            said = b'{"error": "canary-answer"}'
            for status in (200, 400, 500):
                provider.will_answer(
                    b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%b" % (status, len(said), said)
                )
                assert (await call(served.url, body=body)).status == status
        shown = [
            (await call(served.url, "GET", path)).body
            for path in ("/metrics", "/limits", "/concurrency/status")
        ]
        known = f"{served.app!r} {served.gate!r} {served.admission!r} {shown!r}"
    assert "canary" not in caplog.text + known
