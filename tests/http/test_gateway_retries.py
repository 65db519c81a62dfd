"""When the provider says "too much": asked again off the slot, or passed on, and what the limit learns."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from gateways import (
    OK,
    Header,
    answer,
    call,
    caller,
    chat,
    gateway,
    until,
    upstream,
)

CHAT = "/gateway/p/v1/chat/completions"
SOON = (b"retry-after-ms", b"20")
PATIENT: list[Header] = [(b"x-interlock-timeout-ms", b"4000")]


def refusal(status: int, code: str | None, *headers: Header) -> bytes:
    """What a provider answers that has too much to do."""
    error: dict[str, Any] = {"message": "No.", "type": "some_error", "param": None, "code": code}
    return answer(
        status, json.dumps({"error": error}).encode(), (b"content-type", b"application/json"), *headers
    )


@pytest.mark.parametrize(
    ("status", "code", "limit", "reason"),
    [
        (429, "concurrency_limit_exceeded", 2, "concurrency"),
        (429, "1302", 2, "concurrency"),
        (429, None, 2, "concurrency"),
        (429, "rate_limit_exceeded", 3, "rate"),
        (429, "overloaded", 3, "overload"),
        (529, "overloaded_error", 3, "overload"),
    ],
)
async def test_too_much_is_asked_again_until_it_works(
    status: int, code: str | None, limit: int, reason: str
) -> None:
    """The caller sees only the answer; the limit is cut for concurrency and for nothing else."""
    async with upstream() as provider, gateway(provider.url, limit=3) as served:
        provider.will_answer(refusal(status, code, (b"retry-after", b"100")))
        asking = asyncio.create_task(call(served.url, "POST", CHAT, [(b"x-a", b"1")], chat()))
        first = await provider.next()
        await until(lambda: (state := served.gate.status("p")) and state.paused)
        paused = served.gate.status("p")
        assert paused is not None
        assert (paused.reason, paused.limit, paused.configured_limit) == (reason, limit, 3)
        served.gate.resume("p")
        second = await provider.next()
        assert (second.head, second.body) == (first.head, first.body)
        second.write(OK)
        got = await asking
        assert (got.status, got.body) == (200, b"{}")
        assert got.header(b"ratelimit-policy") == b'"concurrency";q=%d;qu="concurrent-requests"' % limit


async def test_the_pause_is_waited_for_off_the_slot() -> None:
    """Who has been refused holds nothing meanwhile."""
    async with upstream() as provider, gateway(provider.url, limit=2) as served, caller(served.url) as client:
        provider.will_answer(refusal(429, None, (b"retry-after", b"100")))
        client.ask()
        await provider.next()
        await served.waits(1)
        used = {name: reading.used for name, reading in served.admission.limits().items()}
        assert used == {"provider:p": 0, "streams": 0, "global": 0}
        served.gate.resume("p")
        (await provider.next()).write(OK)
        assert (await client.answer()).status == 200


async def test_who_was_refused_keeps_its_place() -> None:
    """It is older than who came meanwhile, and goes first."""
    async with upstream() as provider, gateway(provider.url, limit=1) as served:
        provider.will_answer(refusal(429, "rate_limit_exceeded", (b"retry-after", b"100")))
        old = asyncio.create_task(call(served.url, "POST", CHAT, [], chat("old")))
        await provider.next()
        await served.waits(1)
        new = asyncio.create_task(call(served.url, "POST", CHAT, [], chat("new")))
        await served.waits(2)
        served.gate.resume("p")
        exchange = await provider.next()
        assert b"old" in exchange.body
        exchange.write(OK)
        (await provider.next()).write(OK)
        assert [(await one).status for one in (old, new)] == [200, 200]


async def test_a_burst_of_refusals_cuts_the_limit_once() -> None:
    """Calls that were under way together tell one thing, not four."""
    async with upstream() as provider, gateway(provider.url, limit=4) as served:
        asking = [
            asyncio.create_task(call(served.url, "POST", CHAT, PATIENT, chat(f"{n}"))) for n in range(4)
        ]
        under_way = [await provider.next() for _ in range(4)]
        for exchange in under_way:
            exchange.write(refusal(429, "concurrency_limit_exceeded", SOON))
        for _ in range(4):
            (await provider.next()).write(OK)
        assert {one.status for one in await asyncio.gather(*asking)} == {200}
        assert served.gate.get_limit("p") == 3


PAUSES = [b"1000", b"0, 1000", b"Fri, 31 Dec 2399 23:59:59 GMT", b"99999999999"]


@pytest.mark.parametrize("status", [429, 529])
@pytest.mark.parametrize("pause", PAUSES)
async def test_a_refusal_passes_unchanged_if_the_pause_outlasts_the_caller(status: int, pause: bytes) -> None:
    """There is nothing to wait for: the caller may go elsewhere, with the provider's own words."""
    body = b'{"error": {"message": "Slow  down!", "code": "rate_limit_exceeded"}, "odd": [1,2 ]}'
    fields = [(b"x-request-id", b"req_7"), (b"retry-after", pause), (b"x-ratelimit-remaining-tokens", b"0")]
    async with upstream() as provider, gateway(provider.url, limit=3) as served:
        provider.will_answer(answer(status, body, *fields))
        got = await call(served.url, "POST", CHAT, [(b"x-interlock-timeout-ms", b"900")], chat())
        assert (got.status, got.body) == (status, body)
        assert [one for one in got.headers if one in fields] == fields
        assert (got.header(b"ratelimit") or b"").startswith(b'"concurrency";r=0;t=')
        assert provider.seen == 1


async def test_the_last_refusal_passes_unchanged_at_the_deadline() -> None:
    """Also where others took the slot while the pause was over: not a timeout of ours."""
    async with upstream() as provider, gateway(provider.url, limit=1) as served, caller(served.url) as busy:
        provider.will_answer(refusal(429, "rate_limit_exceeded", (b"retry-after-ms", b"50")))
        headers = [(b"x-interlock-timeout-ms", b"200")]
        asking = asyncio.create_task(call(served.url, "POST", CHAT, headers, chat()))
        await provider.next()
        await served.waits(1)
        busy.ask("POST", CHAT, [(b"x-interlock-priority", b"-1")], b"{}")
        working = await provider.next()
        got = await asking
        assert (got.status, got.json["error"]["message"]) == (429, "No.")
        working.write(OK)
        await busy.answer()
        assert provider.seen == 2


async def test_the_deadline_may_pass_between_two_attempts() -> None:
    """Whoever has just been refused, and wakes a hair too late to ask again, gets that refusal as well."""
    async with upstream() as provider, gateway(provider.url) as served:
        refused = refusal(429, "rate_limit_exceeded", (b"retry-after", b"0"))
        provider.will_answer(*[refused] * 40)
        asking = [
            asyncio.create_task(
                call(served.url, "POST", CHAT, [(b"x-interlock-timeout-ms", b"%d" % ms)], b"{}")
            )
            for ms in range(20, 60)
        ]
        await until(lambda: provider.seen == 40 and served.used() == 0)
        served.gate.pause("p", 60)
        got = [await one for one in asking]
        assert {(one.status, one.json["error"]["message"]) for one in got} == {(429, "No.")}
        assert provider.seen == 40


@pytest.mark.parametrize("code", ["insufficient_quota", "1113", "billing_hard_limit_reached"])
async def test_a_spent_quota_passes_at_once(code: str) -> None:
    """No wait of seconds helps; the provider is paused and its limit left as it was."""
    async with upstream() as provider, gateway(provider.url, limit=3) as served:
        provider.will_answer(refusal(429, code, SOON))
        got = await call(served.url, "POST", CHAT, [], chat())
        assert (got.status, got.json["error"]["code"], provider.seen) == (429, code, 1)
        state = served.gate.status("p")
        assert state is not None
        assert (state.reason, state.paused, state.limit, state.auto_reduced) == ("quota", True, 3, False)


@pytest.mark.parametrize("fields", [[], [(b"retry-after", b"2")]])
async def test_unavailable_passes_and_pauses(fields: list[Header]) -> None:
    """503 is passed on for the caller to judge; for the others there is a pause, and no cut."""
    async with upstream() as provider, gateway(provider.url, limit=3) as served:
        before = served.gate.clock.now()
        provider.will_answer(answer(503, b"down", *fields))
        got = await call(served.url, "POST", CHAT, [], chat())
        assert (got.status, got.body, provider.seen) == (503, b"down", 1)
        state = served.gate.status("p")
        assert state is not None
        assert (state.reason, state.limit) == ("overload", 3)
        pause = (state.paused_until or 0) - before
        assert pause == pytest.approx(2 if fields else 5, abs=0.5)


@pytest.mark.parametrize("status", [400, 401, 404, 408, 409, 500, 502, 504])
async def test_other_errors_mean_nothing_for_the_limit(status: int) -> None:
    """They pass, once, and nobody is paused."""
    async with upstream() as provider, gateway(provider.url, limit=3) as served:
        provider.will_answer(refusal(status, "concurrency_limit_exceeded"))
        assert (await call(served.url)).status == status
        state = served.gate.status("p")
        assert state is not None
        assert (state.paused, state.limit, provider.seen) == (False, 3, 1)


async def test_a_refusal_of_a_reading_call_passes() -> None:
    """It took no slot, so it says nothing about them."""
    async with upstream() as provider, gateway(provider.url, limit=3) as served:
        provider.will_answer(refusal(429, None, SOON))
        assert (await call(served.url, "GET", "/gateway/p/v1/models")).status == 429
        state = served.gate.status("p")
        assert state is not None
        assert (state.paused, state.limit) == (False, 3)


@pytest.mark.parametrize(
    "fields",
    [
        [(b"retry-after", b"0")],
        [(b"retry-after", b"-5")],
        [(b"retry-after", b"nan")],
        [(b"retry-after", b"1e400")],
        [(b"retry-after", b"99999999999999999999")],
        [(b"retry-after", b"Wed, 21 Oct 2015 07:28:00 GMT")],
        [(b"retry-after", b"Fri, 31 Dec 9999 23:59:59 GMT")],
        [(b"retry-after", b"soon, very soon")],
        [(b"retry-after", b"0"), (b"retry-after", b"7")],
        [(b"retry-after-ms", b"inf"), (b"retry-after", b"\xff")],
        [(b"x-ratelimit-reset-requests", b"6m0s"), (b"x-ratelimit-remaining-requests", b"0")],
    ],
)
@pytest.mark.parametrize("body", [b"{}", b"\xff\xfe", b"[" * 50_000, b'{"error": ' + b"9" * 5000 + b"}", b""])
async def test_no_refusal_is_too_odd(fields: list[Header], body: bytes) -> None:
    """Whatever it says, the caller gets it or a later answer, in time, and the slot is free."""
    async with upstream() as provider, gateway(provider.url, limit=3) as served:
        provider.will_answer(answer(429, body, *fields), OK)
        got = await call(served.url, "POST", CHAT, [(b"x-interlock-timeout-ms", b"100")], chat())
        assert (got.status, got.body) in [(429, body), (200, b"{}")]


async def test_a_storm_of_refusals_ends_at_the_deadline() -> None:
    """A provider that always refuses, and says "at once" each time, is not asked for ever."""
    async with upstream() as provider, gateway(provider.url, limit=2) as served:
        provider.will_answer(*[refusal(429, "rate_limit_exceeded", (b"retry-after", b"0"))] * 20_000)
        got = await call(served.url, "POST", CHAT, [(b"x-interlock-timeout-ms", b"150")], chat())
        assert (got.status, got.json["error"]["message"]) == (429, "No.")


async def test_a_provider_that_refuses_again_and_again_is_asked_less_and_less() -> None:
    """Whatever it says: one caller is no storm."""
    async with upstream() as provider, gateway(provider.url, limit=2) as served:
        provider.will_answer(*[refusal(429, "rate_limit_exceeded", (b"retry-after", b"0"))] * 20_000)
        await call(served.url, "POST", CHAT, [(b"x-interlock-timeout-ms", b"300")], chat())
        assert provider.seen <= 20


async def test_without_a_limit_a_refusal_pauses() -> None:
    """There is nothing to cut, and the retry works the same."""
    async with upstream() as provider, gateway(provider.url) as served:
        provider.will_answer(refusal(429, None, SOON), OK)
        assert (await call(served.url, headers=PATIENT)).status == 200
        assert (served.gate.get_limit("p"), provider.seen) == (None, 2)
