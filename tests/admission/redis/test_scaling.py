"""How the work of one call grows with how many wait: counted in commands to the server, not in seconds."""

from __future__ import annotations

from typing import Any

import pytest

from admission.redis.servers import Caller, Namespace

FEW, MANY = 10, 10_000
LANES = 1_000
AT_ONCE = 500


def crowd(namespace: Namespace, waiters: int, *, lanes: int, weight: int = 1) -> Caller:
    """*waiters* who all want ``g``, each lane of them something of its own as well; one holds ``g``."""
    namespace.empty()
    me = Caller(namespace, allow=True)
    me.say(["set_limit", 0, "g", {"capacity": weight}])
    me.say(*(["set_limit", 0, f"a{lane}", {"capacity": 1}] for lane in range(lanes)))
    me.say(["acquire", 0, "holder", ["g"] * weight, {}])
    own = [[f"a{at % lanes}"] if lanes else [] for at in range(waiters)]
    asks = [["acquire", at + 1, f"w{at + 1}", [*own[at], *["g"] * weight], {}] for at in range(waiters)]
    for start in range(0, waiters, AT_ONCE):
        answers = me.say(*asks[start : start + AT_ONCE])
        assert all(answer[0] == "queued" for answer in answers)
    return me


def commands_of_releases(me: Caller) -> int:
    """What it takes to hand the unit on eight times."""
    total, held = 0, "holder"
    for _ in range(8):
        reply = me.reply(["release", held, 0, "success"])
        (granted,) = reply["answers"]
        held = f"w{granted[1]}"
        total += reply["calls"]
    return total


def commands_of_a_visit(me: Caller) -> int:
    """What it takes to come, to wait and to give up."""
    came: dict[str, Any] = me.reply(["acquire", 99_999, "visitor", ["g"], {}])
    assert came["answers"][0][0] == "queued"
    left = me.reply(["withdraw", 99_999, ""])
    return int(came["calls"] + left["calls"])


@pytest.mark.parametrize(("waiters", "lanes", "weight"), [(MANY, 0, 1), (MANY, LANES, 1), (LANES, LANES, 2)])
def test_a_release_does_not_ask_everyone_who_waits(
    namespace: Namespace, waiters: int, lanes: int, weight: int
) -> None:
    """A release that lets the next one in, and a visit, cost much the same whether 10 wait or 10,000."""
    few = crowd(namespace, FEW, lanes=min(FEW, lanes), weight=weight)
    cheap, visit = commands_of_releases(few), commands_of_a_visit(few)
    many = crowd(namespace, waiters, lanes=lanes, weight=weight)
    assert commands_of_releases(many) <= 1.5 * cheap
    assert commands_of_a_visit(many) <= 1.5 * visit
    assert many.say(["check", 0]) == [["done", 0, []]]


def test_the_short_way_is_short(namespace: Namespace) -> None:
    """With room and nobody waiting, 64 permits come and go in a few commands; the permits are not written."""
    me = Caller(namespace, allow=True)
    me.say(["set_limit", 0, "a", {"capacity": 100}], ["set_limit", 0, "b", {"capacity": None}])
    taken = me.reply(*(["acquire", at, f"p{at}", ["a", "b"], {}] for at in range(64)))
    given = me.reply(*(["release", f"p{at}", 0, "success"] for at in range(64)))
    assert taken["calls"] + given["calls"] < 30
    pairs = [
        [["acquire", at, f"q{at}", ["a", "b"], {}], ["release", f"q{at}", 0, "success"]] for at in range(64)
    ]
    both = me.reply(*(word for pair in pairs for word in pair))
    assert both["calls"] < 15
    assert len(both["answers"]) == 64


def test_what_ended_leaves_nothing(namespace: Namespace) -> None:
    """When nobody holds or waits any more, the limits and the clients are all there is."""
    me = crowd(namespace, 200, lanes=20)
    me.say(["hold", "holder", 1_000_000_001, ["g"], None, None, 30, False])
    me.say(["lend", "holder", 1_000_000_001])
    reply = me.reply(["remove_limit", 0, "g"])
    assert len([answer for answer in reply["answers"] if answer[0] == "refused"]) == 199
    me.say(
        *(["release", f"w{at}", 0, "success"] for at in range(1, 201)), ["release", "holder", 0, "success"]
    )
    me.say()
    stored = namespace.connection.hkeys(namespace.records)
    assert sorted(field[:1] for field in stored) == [b"@", b"c"] + [b"l"] * 20  # type: ignore[union-attr]
    assert namespace.connection.zcard(namespace.lists) == 20 + 3  # the epoch, the client's lease and silence
