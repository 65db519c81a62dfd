"""What the gateway refuses at its door, in the shape that the caller's SDK knows."""

from __future__ import annotations

from typing import Any

import pytest

from gateways import (
    OK,
    Answer,
    call,
    caller,
    chunk,
    gateway,
    upstream,
)

CHAT = "/gateway/p/v1/chat/completions"


def said(got: Answer, dialect: str) -> dict[str, Any]:
    """The error of an answer, which has the shape of *dialect*."""
    assert got.header(b"content-type") == b"application/json"
    body = got.json
    if dialect == "anthropic":
        assert (body["type"], set(body)) == ("error", {"type", "error"})
        assert {"type", "message"} <= set(body["error"])
    else:
        assert set(body) == {"error"}
        assert set(body["error"]) == {"message", "type", "param", "code"}
    error: dict[str, Any] = body["error"]
    return error


DIALECTS = [("/v1/chat/completions", "openai"), ("/v1/responses", "responses"), ("/v1/messages", "anthropic")]


@pytest.mark.parametrize(("path", "dialect"), DIALECTS)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-interlock-timeout-ms", "-1"),
        ("x-interlock-timeout-ms", "soon"),
        ("x-interlock-timeout-ms", "1.5"),
        ("x-interlock-timeout-ms", ""),
        ("x-interlock-timeout-ms", "9" * 30),
        ("x-interlock-priority", "high"),
        ("x-interlock-priority", "5000"),
        ("x-interlock-prompt-started-at", "yesterday"),
        ("x-interlock-prompt-started-at", "-5"),
        ("x-interlock-prompt-started-at", "²"),
    ],
)
async def test_a_wrong_header_of_ours_is_refused(path: str, dialect: str, name: str, value: str) -> None:
    """Naming it and what is allowed, in the shape that the caller's SDK knows; nothing is sent on."""
    async with upstream() as provider, gateway(provider.url) as served:
        got = await call(served.url, "POST", f"/gateway/p{path}", [(name.encode(), value.encode())], b"{}")
        assert got.status == 400
        error = said(got, dialect)
        assert name in error["message"]
        assert "allowed are whole numbers" in error["message"]
        assert error["type"] == "invalid_request_error"
        assert (provider.seen, got.header(b"retry-after")) == (0, None)


@pytest.mark.parametrize(("path", "dialect"), DIALECTS)
@pytest.mark.parametrize(("timeout", "status"), [(b"0", 429), (b"20", 504)])
async def test_who_has_no_patience_is_refused(path: str, dialect: str, timeout: bytes, status: int) -> None:
    """0: not even a wait; with times to come back in both spellings, and the reason."""
    async with upstream() as provider, gateway(provider.url, limit=1) as served, caller(served.url) as busy:
        busy.ask()
        working = await provider.next()
        headers = [(b"x-interlock-timeout-ms", timeout)]
        got = await call(served.url, "POST", f"/gateway/p{path}", headers, b"{}")
        assert got.status == status
        assert "provider:p" in said(got, dialect)["message"]
        seconds, milliseconds = got.header(b"retry-after"), got.header(b"retry-after-ms")
        assert seconds is not None
        assert milliseconds is not None
        assert 0 < int(milliseconds) <= int(seconds) * 1000
        working.write(OK)
        await busy.answer()
        assert provider.seen == 1


async def test_no_patience_is_enough_where_there_is_room() -> None:
    async with upstream() as provider, gateway(provider.url, limit=1) as served:
        provider.will_answer(OK)
        assert (await call(served.url, headers=[(b"x-interlock-timeout-ms", b"0")])).status == 200


async def test_the_usual_patience_is_configured() -> None:
    async with upstream() as provider, gateway(provider.url, limit=1, timeout=0.02) as served:
        served.gate.pause("p", 60)
        assert (await call(served.url)).status == 504


@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_that_is_too_large_is_refused(announced: bool) -> None:
    """As soon as that is known; the rest of it is not waited for."""
    async with upstream() as provider, gateway(provider.url, max_body=1000) as served:
        async with caller(served.url) as client:
            if announced:
                client.ask("POST", CHAT, [(b"content-length", b"1001"), (b"x-a", b"1")])
            else:
                client.ask("POST", CHAT, [(b"transfer-encoding", b"chunked")], chunk(b"x" * 600) * 2)
            got = await client.answer()
            assert (got.status, got.header(b"connection")) == (413, b"close")
            assert "1000 bytes" in said(got, "openai")["message"]
        assert provider.seen == 0


class Counted(bytes):
    """Bytes that know how often their length was asked for."""

    asked = 0

    def __len__(self) -> int:
        Counted.asked += 1
        return super().__len__()


async def test_a_body_in_many_pieces_costs_no_more_than_its_size() -> None:
    """Whoever sends byte by byte must not stop everybody else."""
    Counted.asked = 0
    answers: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": Counted(b"x"), "more_body": True}

    async def send(message: dict[str, Any]) -> None:
        answers.append(message)

    async with upstream() as provider, gateway(provider.url, max_body=1000) as served:
        scope = {"method": "POST", "path": "/gateway/p/v1", "raw_path": b"/gateway/p/v1"}
        await served.app({**scope, "query_string": b"", "headers": []}, receive, send)
    assert answers[0]["status"] == 413
    assert Counted.asked < 10_000


async def test_a_body_of_the_largest_size_passes() -> None:
    async with upstream() as provider, gateway(provider.url, max_body=1000) as served:
        provider.will_answer(OK)
        assert (await call(served.url, body=b"x" * 1000)).status == 200


@pytest.mark.parametrize(("path", "dialect"), DIALECTS)
async def test_an_unknown_provider_is_refused(path: str, dialect: str) -> None:
    """Naming those that there are."""
    async with upstream() as provider, gateway(provider.url, provider.url) as served:
        for name in ("nope", "P", "", "."):
            got = await call(served.url, "POST", f"/gateway/{name}{path}", [], b"{}")
            assert got.status == 404, name
            assert "configured are: p, q" in said(got, dialect)["message"]
        assert provider.seen == 0


@pytest.mark.parametrize(
    "target",
    [
        "/gateway/p/../q/v1",
        "/gateway/p/v1/..",
        "/gateway/p/v1/./models",
        "/gateway/p/v1/%2e%2E/secret",
        "/gateway/p/v1/.%2e;x=1/secret",
        "/gateway/p//evil.example/v1",
        "/gateway/p/v1%2fmodels",
        "/gateway/p/v1%5Cmodels",
        "/gateway/p/v1/\\..\\x",
        "/gateway/p/v1/%252e%252e/x",
        "/gateway/p/v1/%00",
        "/gateway/p/v1/x%0d%0aHost:%20evil",
    ],
)
async def test_a_path_that_could_lead_elsewhere_is_refused(target: str) -> None:
    """It is sent on as it is or not at all."""
    async with upstream() as provider, gateway(provider.url + "/base") as served:
        got = await call(served.url, "POST", target, [], b"{}")
        assert got.status == 400
        assert said(got, "openai")["code"] == "validation_error"
        assert provider.seen == 0


async def test_a_slash_in_disguise_does_not_end_the_name_of_a_provider() -> None:
    """``p%2Fsecret`` is one segment, and no provider; nor is ``gateway%2Fp``."""
    async with upstream() as provider, gateway(provider.url) as served:
        for target in ("/gateway/p%2Fsecret/v1/models", "/gateway%2Fp/v1/models", "/gateway/%70/v1/models"):
            assert (await call(served.url, "GET", target)).status == 404
        assert provider.seen == 0


@pytest.mark.parametrize(("path", "dialect"), DIALECTS)
async def test_a_gateway_that_drains_takes_nothing_new(path: str, dialect: str) -> None:
    """What runs goes on; who comes is told when to come back."""
    async with upstream() as provider, gateway(provider.url) as served, caller(served.url) as busy:
        busy.ask()
        working = await provider.next()
        served.app.draining = True
        got = await call(served.url, "POST", f"/gateway/p{path}", [], b"{}")
        assert (got.status, said(got, dialect)["message"]) == (
            503,
            "the gateway is draining; come back in a moment",
        )
        assert (got.header(b"retry-after-ms") or b"").isdigit()
        working.write(OK)
        assert (await busy.answer()).status == 200
        assert (await call(served.url, "GET", "/readyz")).status == 503
        assert (await call(served.url, "GET", "/healthz")).status == 200
