"""Who goes first at the gateway: by priority, then by when the prompt began that a call serves."""

from __future__ import annotations

import asyncio

import pytest

from gateways import (
    EVENTS,
    LAST,
    OK,
    Header,
    answer,
    call,
    caller,
    chat,
    event,
    gateway,
    upstream,
)

CHAT = "/gateway/p/v1/chat/completions"


async def in_order(headers: dict[str, list[Header]], bodies: dict[str, bytes] | None = None) -> str:
    """The order in which callers of one slot go who all wait for it."""
    async with upstream() as provider, gateway(provider.url, limit=1) as served, caller(served.url) as busy:
        busy.ask()
        working = await provider.next()
        tasks = []
        for number, (name, fields) in enumerate(headers.items()):
            body = (bodies or {}).get(name, chat(name))
            path = f"/gateway/p/v1/{name}"
            tasks.append(asyncio.create_task(call(served.url, "POST", path, fields, body)))
            await served.waits(number + 1)
        working.write(OK)
        order = ""
        for _ in headers:
            exchange = await provider.next()
            order += exchange.target.decode().rpartition("/")[2]
            exchange.write(OK)
        assert {one.status for one in await asyncio.gather(*tasks)} == {200}
        return order


async def test_who_says_nothing_goes_in_the_order_of_arrival() -> None:
    assert await in_order({"a": [], "b": [], "c": []}) == "abc"


async def test_the_oldest_prompt_goes_first() -> None:
    """Whoever says when the prompt began is ordered by that; one in the future counts as now."""
    started = b"x-interlock-prompt-started-at"
    headers = {
        "a": [(started, b"3000")],
        "b": [(started, b"1000")],
        "c": [],
        "d": [(started, b"2000")],
        "e": [(started, b"99999999999999")],
    }
    assert await in_order(headers) == "bdace"


async def test_a_smaller_priority_goes_first() -> None:
    """Whatever the prompts' ages."""
    priority, started = b"x-interlock-priority", b"x-interlock-prompt-started-at"
    headers = {"a": [(started, b"1")], "b": [(priority, b"-1")], "c": [(priority, b"1")], "d": []}
    assert await in_order(headers) == "badc"


TOOL_CALLS = {
    "whole": answer(200, b'{"choices": [{"finish_reason": "tool_calls"}]}'),
    "streamed": EVENTS + event({"choices": [{"finish_reason": "tool_calls"}]}) + event(b"[DONE]") + LAST,
}


@pytest.mark.parametrize("form", TOOL_CALLS)
async def test_a_tool_call_keeps_the_place_of_its_prompt(form: str) -> None:
    """The second call of an older turn passes the first call of a newer one, though it came later."""
    async with upstream() as provider, gateway(provider.url, limit=1) as served:
        provider.will_answer(TOOL_CALLS[form])
        await call(served.url, "POST", "/gateway/p/v1/chat/completions", [], chat("old"))
        await provider.next()
        async with caller(served.url) as busy, caller(served.url) as newer, caller(served.url) as older:
            busy.ask("POST", CHAT, [], chat("busy"))
            working = await provider.next()
            newer.ask("POST", CHAT, [], chat("new"))
            await served.waits(1)
            older.ask("POST", CHAT, [], chat("old"))
            await served.waits(2)
            for asking, said in ((busy, b"busy"), (older, b"old"), (newer, b"new")):
                working = working if asking is busy else await provider.next()
                assert said in working.body
                working.write(OK)
                await asking.answer()


async def test_a_finished_turn_gives_its_place_up() -> None:
    """After a final answer the same conversation starts a new turn, behind who came before."""
    async with upstream() as provider, gateway(provider.url, limit=1) as served:
        provider.will_answer(answer(200, b'{"choices": [{"finish_reason": "stop"}]}'))
        await call(served.url, "POST", CHAT, [], chat("old"))
        await provider.next()
        async with caller(served.url) as busy, caller(served.url) as newer, caller(served.url) as older:
            busy.ask("POST", CHAT, [], chat("busy"))
            working = await provider.next()
            newer.ask("POST", CHAT, [], chat("new"))
            await served.waits(1)
            older.ask("POST", CHAT, [], chat("old"))
            await served.waits(2)
            working.write(OK)
            exchange = await provider.next()
            assert b"new" in exchange.body
            exchange.write(OK)
            (await provider.next()).write(OK)
            await older.answer()
