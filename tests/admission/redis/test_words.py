"""What a client may count on when replies get lost, requests overtake each other, and others say nonsense."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from admission.redis.servers import Caller, Namespace
from interlock.admission.redis.library import keys


@pytest.fixture
def two(namespace: Namespace) -> tuple[Caller, Caller]:
    """Two clients of one limit with one unit."""
    one, other = (Caller(namespace, name, allow=True) for name in ("one", "other"))
    one.say(["set_limit", 0, "a", {"capacity": 1}])
    return one, other


def granted(answers: list[list[Any]]) -> list[int]:
    return [answer[1] for answer in answers if answer[0] == "granted"]


def test_a_request_said_again_takes_no_second_unit(two: tuple[Caller, Caller]) -> None:
    """The reply got lost: the same ask gets the same permit again, and one that waits keeps its place."""
    one, other = two
    first = one.say(["acquire", 1, "x", ["a"], {}])
    assert one.say(["acquire", 1, "x", ["a"], {}]) == first
    other.say(["acquire", 1, "y", ["a"], {}])
    one.say(["acquire", 2, "z", ["a"], {}])
    assert other.say(["acquire", 1, "y", ["a"], {"age": 0.5, "timeout": 9}])[0][0] == "queued"
    one.say(["release", "x", 0, "success"])
    assert granted(other.say()) == [1]


def test_what_was_told_is_told_until_it_was_heard(two: tuple[Caller, Caller]) -> None:
    """A grant in a reply that got lost comes with the next, with what is left of its lease by then."""
    one, other = two
    one.say(["acquire", 1, "x", ["a"], {}])
    other.say(["acquire", 1, "y", ["a"], {}])
    one.say(["release", "x", 0, "success"])
    lost = other.namespace.call(other.request(time=1_001_000))
    again = other.reply(time=1_003_000)
    assert granted(lost["answers"]) == granted(again["answers"]) == [1]
    assert again["answers"][0][4] == lost["answers"][0][4] - 2_000
    assert other.say() == []


def test_an_overtaken_request_does_nothing(two: tuple[Caller, Caller]) -> None:
    """An acquire that arrives after its own withdrawal, on a connection given up, takes nothing (R19)."""
    one, other = two
    delayed = one.request(["acquire", 1, "x", ["a"], {}])
    one.say(["withdraw", 1, "x"], ["release", "x", 0, "unused"])
    late = one.namespace.call(delayed)
    assert late["stale"]
    assert late["answers"] == []
    assert granted(other.say(["acquire", 1, "y", ["a"], {"timeout": 0}])) == [1]


def test_a_key_is_one_permit_for_all(two: tuple[Caller, Caller]) -> None:
    """Who comes second has the same permit; who gives it back unused leaves it to the other."""
    one, other = two
    fence = one.say(["acquire", 1, "job", ["a"], {"owner": "o"}])[0][2]
    assert other.say(["acquire", 1, "job", ["a"], {"owner": "o"}])[0][2] == fence
    assert other.say(["acquire", 2, "job", ["a"], {}])[0][:3] == ["refused", 2, "conflict"]
    other.say(["release", "job", fence, "unused"])
    assert one.say(["hold", "job", fence, ["a"], "o", None, 30, False])[0][0] == "held"
    one.say(["release", "job", fence, "success"])
    assert other.say() == []  # it has given it back itself


def test_a_hint_goes_to_those_who_have_something_to_hear(two: tuple[Caller, Caller]) -> None:
    """Who is granted something by another's call gets a message on a channel of its own."""
    one, other = two
    one.say(["acquire", 1, "x", ["a"], {}])
    other.say(["acquire", 1, "y", ["a"], {}])
    listener = one.namespace.connection.pubsub(ignore_subscribe_messages=False)
    listener.subscribe(f"{one.namespace.root}:hint:other", f"{one.namespace.root}:hint:one")
    assert [listener.get_message(timeout=5)["type"] for _ in range(2)] == ["subscribe"] * 2  # type: ignore[index]
    one.say(["release", "x", 0, "success"])
    message = listener.get_message(timeout=5)
    listener.close()
    assert message is not None
    assert (message["channel"], message["data"]) == (f"{one.namespace.root}:hint:other".encode(), b"1")


def test_a_refusal_says_what_is_in_the_way(two: tuple[Caller, Caller]) -> None:
    """Limit, reason, missing, used, capacity, paused until, how many go first, and who holds it."""
    one, other = two
    one.say(["acquire", 1, "x", ["a"], {"owner": "agent-7"}])
    ((_, _, reason, details),) = other.say(["acquire", 1, "y", ["a"], {"timeout": 0}])
    assert reason == "would_block"
    assert details["blocks"] == [["a", "full", 1, 1, 1, False, 0, ["agent-7"]]]


NONSENSE: list[Any] = [
    ["fly"],
    [],
    7,
    ["acquire", 1, "x", [], {}],
    ["acquire", 1, "x", "a", {}],
    ["acquire", 1, "", ["a"], {}],
    ["acquire", 1, "x" * 2_000, ["a"], {}],
    ["acquire", 1, "x", ["a"], {"priority": 0.5}],
    ["acquire", 1, "x", ["a"], {"priority": 1e300}],
    ["acquire", 1, "x", ["a"], {"timeout": float("nan")}],
    ["acquire", 1, "x", ["a"], {"timeout": float("inf")}],
    ["acquire", 1, "x", ["a"], {"lease": 0}],
    ["acquire", 1, "x", ["a"], None],
    ["acquire", "1", "x", ["a"], {}],
    ["release", "x", -1, "success"],
    ["release", "x", 0, "broken"],
    ["hold", "x", 1, ["a"], None, None, -1, True],
    ["hold", "x", 2**60, ["a"], None, None, 1, True],
    ["set_limit", 1, "a", {"capacity": 0}],
    ["set_limit", 1, "a", {"capacity": 1, "cooldown": -1}],
    ["set_limit", 1, "a", {"capacity": 1, "queue_max": 1.5}],
    ["admit", 1, "a", "many"],
    ["view", 1, True, None],
]


@pytest.mark.parametrize("nonsense", NONSENSE, ids=str)
def test_nonsense_changes_nothing(two: tuple[Caller, Caller], nonsense: Any) -> None:
    """One bad operation refuses the whole call, with a sentence; nothing of it was done."""
    one, _ = two
    before = one.namespace.connection.hgetall(one.namespace.records)
    with pytest.raises(redis.ResponseError, match=r"INTERLOCK [a-z]"):
        one.say(["acquire", 5, "fine", ["a"], {}], nonsense)
    assert one.namespace.connection.hgetall(one.namespace.records) == before


@pytest.mark.parametrize(
    "changed", [{"v": 2}, {"client": "a:b"}, {"lease": 0}, {"seen": -1}, {"ops": None}], ids=str
)
def test_what_is_no_request_is_refused(two: tuple[Caller, Caller], changed: dict[str, Any]) -> None:
    """The header is read as strictly."""
    with pytest.raises(redis.ResponseError, match="INTERLOCK this is no request"):
        two[0].say(**changed)


HOSTILE = ["a:b", "}{", "*", "\0", "x\ny", "ä€😀", "l", "@", "0" * 60, "{a}"]


def test_ids_are_never_keys(namespace: Namespace) -> None:
    """Whatever limits, permits and owners are called, they stay apart, in two keys (X32)."""
    me = Caller(namespace, allow=True)
    for name in HOSTILE:
        me.say(["set_limit", 0, name, {"capacity": 1}])
        assert granted(me.say(["acquire", 1, name, [name], {"owner": name}])) == [1]
        me.say(["acquire", 2, f"{name}+", [name, *HOSTILE[:1]], {"owner": name}])
    assert me.say(["check", 0]) == [["done", 0, []]]
    found = list(namespace.connection.scan_iter(match=namespace.root.replace("*", "?") + "*"))
    assert sorted(found) == sorted([namespace.records.encode(), namespace.lists.encode()])
    for name in HOSTILE:
        (answer,) = [one for one in me.say(["release_owner", 3, name]) if one[0] == "done"]
        assert answer[2] >= 1
    assert me.say(["check", 0]) == [["done", 0, []]]


def test_namespaces_do_not_share_keys() -> None:
    """A namespace is one hash tag, and cannot be written so that it is another's."""
    names = ["a", "a}", "{a", "a:b", "a%3Ab", "", "ä"]
    roots = {keys(name)[2] for name in names}
    assert len(roots) == len(names)
    assert all(root.count("{") == root.count("}") == 1 for root in roots)
