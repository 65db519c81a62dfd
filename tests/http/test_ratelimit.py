"""What is left, in structured fields; read here by the grammar of RFC 9651, strictly."""

from __future__ import annotations

import re
from typing import Any

from gateways import Answer, until
from interlock.http.ratelimit import Room, rate_limit_fields
from served_sessions import HOLD, serving
from served_tokens import Door, door

ITEM = re.compile(r'"((?:[\x20-\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"')
PARAMETER = re.compile(r'; *([a-z*][a-z0-9_.*-]*)=(?:(-?[0-9]{1,15})|"((?:[\x20-\x21\x23-\x5b\x5d-\x7e])*)")')


def items(field: bytes | None) -> dict[str, dict[str, Any]]:
    """A list of strings with parameters; fails on whatever is none."""
    assert field is not None
    text, place, found = field.decode("ascii"), 0, {}
    while True:
        item = ITEM.match(text, place)
        assert item, text[place:]
        place, parameters = item.end(), {}
        while parameter := PARAMETER.match(text, place):
            place = parameter.end()
            parameters[parameter[1]] = parameter[3] if parameter[2] is None else int(parameter[2])
        name = re.sub(r"\\(.)", r"\1", item[1])
        assert name not in found
        found[name] = parameters
        if place == len(text):
            return found
        comma = re.compile(r"[ \t]*,[ \t]*").match(text, place)
        assert comma, text[place:]
        place = comma.end()


def told(answer: Answer) -> dict[str, tuple[int, int, int | None]]:
    """By limit: how many at a time, how many more now, and for how long none."""
    policy, state = items(answer.header(b"ratelimit-policy")), items(answer.header(b"ratelimit"))
    assert list(policy) == list(state)
    assert {one["qu"] for one in policy.values()} == {"concurrent-requests"}
    return {name: (policy[name]["q"], one["r"], one.get("t")) for name, one in state.items()}


async def take(server: Door, *limits: str) -> Answer:
    return await server.ask("POST", "/permits", None, {"limits": limits})


async def test_a_permit_tells_what_is_left() -> None:
    """Granted or refused, of the limits that were asked for and have an end; a paused one says until when."""
    async with door() as server:
        for name, capacity in (("tools", 2), ("global", 8)):
            await server.ask("PUT", f"/limits/{name}", None, {"capacity": capacity})
        both = {"tools": (2, 1, None), "global": (8, 7, None)}
        assert told(await take(server, "tools", "global")) == both
        assert told(await take(server, "tools", "runs")) == {"tools": (2, 0, None)}
        refused = await take(server, "tools", "global")
        assert refused.status == 429
        assert told(refused) == {"tools": (2, 0, None), "global": (8, 7, None)}
        assert refused.header(b"retry-after") is not None
        unlimited = await take(server, "runs")
        assert (unlimited.status, unlimited.header(b"ratelimit")) == (201, None)
        assert (await server.ask("POST", "/providers/p/pause", None, {"ms": 60_000})).status == 200
        paused = await take(server, "provider:p")
        assert paused.status == 429
        assert told(paused) == {"provider:p": (3, 0, 60)}


async def test_a_submit_tells_how_long_the_queue_may_grow() -> None:
    """Also the one that finds it full."""
    async with serving() as server:
        await server.session("s1", maxQueuedRuns=2)
        left = []
        for _ in range(3):
            left.append(told(await server.post("/sessions/s1/runs", {"input": HOLD}))["queued-runs"])
            await until(lambda: server.worker.started)
        assert left[1:] == [(2, 1, None), (2, 0, None)]
        full = await server.post("/sessions/s1/runs", {"input": HOLD})
        assert (full.status, full.json["code"]) == (429, "queue_full")
        assert told(full) == {"queued-runs": (2, 0, None)}


def test_any_name_makes_valid_fields_or_none() -> None:
    """What a structured field cannot say is left out, not garbled."""
    names = ['say "a\\b"', "plain", "ä", "line\nend", "", "x" * 257]
    fields = dict(rate_limit_fields(Room(name, 9, -3, 0.5) for name in names))
    assert items(fields[b"ratelimit"]) == {'say "a\\b"': {"r": 0, "t": 1}, "plain": {"r": 0, "t": 1}}
    assert rate_limit_fields([Room("ä", 1, 1)]) == []
    endless = dict(rate_limit_fields([Room("a", 1, 1, 1e300)]))
    assert items(endless[b"ratelimit"]) == {"a": {"r": 0, "t": 10**9}}
