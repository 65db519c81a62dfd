"""Limits and cooldowns under conditions: nobody overwrites what somebody else has set meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateways import Answer
from served_tokens import Door, door


async def put(server: Door, path: str, body: Any, **conditions: str) -> Answer:
    headers = [(name.replace("_", "-").encode(), value.encode()) for name, value in conditions.items()]
    return await server.ask("PUT", path, None, body, *headers)


async def tag(server: Door, path: str) -> str:
    got = await server.ask("GET", path)
    return (got.header(b"etag") or b"").decode()


ROUTES = [
    ("/limits/tools", {"capacity": 3}, {"capacity": 4}),
    ("/limits/provider:p", {"capacity": 3}, {"capacity": 4}),
    ("/concurrency/limits/p", {"limit": 3}, {"limit": 4}),
    ("/concurrency/cooldown/p", {"cooldownMs": 30}, {"cooldownMs": 40}),
]


@pytest.mark.parametrize(("path", "first", "second"), ROUTES)
async def test_a_change_under_a_condition(path: str, first: Any, second: Any) -> None:
    """What it is now may be changed; what it was no more, and then nothing has changed."""
    async with door() as server:
        set_once = await put(server, path, first)
        assert set_once.status == 200
        seen = await tag(server, path)
        assert set_once.header(b"etag") == seen.encode()
        assert (await put(server, path, first)).header(b"etag") == seen.encode()
        changed = await put(server, path, second, if_match=f'"other", {seen}')
        assert changed.status == 200
        assert await tag(server, path) != seen
        late = await put(server, path, first, if_match=seen)
        assert late.status == 412
        if path.startswith("/limits"):
            assert late.json["code"] == "precondition_failed"
            assert await tag(server, path) in late.json["detail"]
        else:
            assert list(late.json) == ["error"]
        now = (await server.ask("GET", path)).json
        assert now.items() >= second.items()
        weak = await put(server, path, first, if_match=f"W/{await tag(server, path)}")
        assert weak.status == 412, "If-Match compares strongly"
        for bad in ("tools", '"a', ""):
            refused = await put(server, path, first, if_match=bad)
            assert (refused.status, b"if-match" in refused.body) == (400, True), bad


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/limits/mine", {"capacity": 3}),
        ("/concurrency/limits/new", {"limit": 3}),
        ("/concurrency/cooldown/new", {"cooldownMs": 3}),
    ],
)
async def test_made_once_or_changed_only(path: str, body: Any) -> None:
    """``If-Match: *`` is for what is there, ``If-None-Match: *`` for what is not."""
    async with door() as server:
        assert (await put(server, path, body, if_match="*")).status == 412
        assert (await server.ask("GET", path)).status == 404
        assert (await put(server, path, body, if_none_match="*")).status == 200
        assert (await put(server, path, body, if_none_match="*")).status == 412
        assert (await put(server, path, body, if_match="*")).status == 200
        if path.startswith("/concurrency/limits"):
            gone = await server.ask("DELETE", path, None, None, (b"if-match", b'"other"'))
            assert gone.status == 412
            assert (await server.ask("GET", path)).status == 200


@pytest.mark.parametrize("path", [path for path, _, _ in ROUTES])
async def test_who_has_it_already_is_told_so(path: str) -> None:
    """304 without a body, as long as it is the same."""
    async with door() as server:
        seen = (await tag(server, path)).encode()
        for known in (seen, b"W/" + seen, b'"a", ' + seen, b"*"):
            got = await server.ask("GET", path, None, None, (b"if-none-match", known))
            assert (got.status, got.body, got.header(b"etag")) == (304, b"", seen)
        got = await server.ask("GET", path, None, None, (b"if-none-match", b'"other"'))
        assert (got.status, got.header(b"etag")) == (200, seen)


async def test_of_many_who_saw_the_same_one_changes_it() -> None:
    """However they come together."""
    for path, name in (("/limits/tools", "capacity"), ("/concurrency/limits/p", "limit")):
        async with door() as server:
            assert (await put(server, path, {name: 50})).status == 200
            seen = await tag(server, path)
            answers = await asyncio.gather(
                *(put(server, path, {name: 100 + n}, if_match=seen) for n in range(8))
            )
            assert sorted(answer.status for answer in answers) == [200] + [412] * 7
            [won] = [n for n, answer in enumerate(answers) if answer.status == 200]
            assert (await server.ask("GET", path)).json[name] == 100 + won


async def test_what_a_limit_is_set_to() -> None:
    """Its settings alone: what is in use changes nothing of its tag. A 429 does."""
    async with door() as server:
        assert (await put(server, "/limits/tools", {"capacity": 3, "cooldownMs": 350})).status == 200
        got = await server.ask("GET", "/limits/tools")
        assert got.json == {
            "name": "tools",
            "capacity": 3,
            "cooldownMs": 350,
            "cooldownCancelledMs": 350,
            "cooldownFailedMs": 350,
        }
        taken = await server.ask("POST", "/permits", None, {"limits": ["tools"]})
        assert taken.status == 201
        assert await tag(server, "/limits/tools") == (got.header(b"etag") or b"").decode()
        nothing = await server.ask("GET", "/limits/nothing")
        assert (nothing.status, nothing.json["code"]) == (404, "not_found")
        assert "known are: global, provider:p" in nothing.json["detail"]


@pytest.mark.parametrize("name", ["a%20b", "..", "a..b", "%C3%A4", "x" * 129, "history", "a/history"])
async def test_a_new_limit_has_a_name_that_can_be_told(name: str) -> None:
    async with door() as server:
        got = await put(server, f"/limits/{name}", {"capacity": 1})
        assert got.status in (400, 405)
        assert len((await server.ask("GET", "/limits")).json["limits"]) == 6
