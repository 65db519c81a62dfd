"""The agents of a pool as data: order, places, overflow by identity, ages."""

from __future__ import annotations

from random import Random

import pytest

from interlock.core.shelf import Member, Shelf


class Same:
    """Equal to everything and unhashable."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return True


def filled(size: int, max_overflow: int = 0, **options: object) -> tuple[Shelf, list[Member]]:
    """A shelf with all its agents on it, in the order of their arrival, a millisecond apart."""
    shelf = Shelf(size, max_overflow, **options)  # type: ignore[arg-type]
    members = [shelf.arrive(Same(), now) for now in range(size + max_overflow)]
    for now, member in enumerate(members):
        shelf.put(member, now)
    return shelf, members


def test_lifo_gives_the_last_returned() -> None:
    shelf, members = filled(3)
    assert [shelf.next() for _ in members] == members[::-1]


def test_fifo_gives_the_longest_returned() -> None:
    shelf, members = filled(3, lifo=False)
    assert [shelf.next() for _ in members] == members


def test_members_are_found_by_identity() -> None:
    """Agents that compare equal and cannot be hashed are still different ones."""
    shelf, members = filled(3)
    assert [shelf.find(member.agent) for member in members] == members
    assert shelf.find(Same()) is None


def test_overflow_is_who_came_when_all_places_were_taken() -> None:
    """A mark on the agent, not a count: the first to come back need not be the one that goes."""
    shelf, members = filled(2, 2)
    assert [member.overflow for member in members] == [False, False, True, True]
    assert shelf.overflow() == 2
    assert [shelf.settle(member) for member in members] == [True, True, False, False]


def test_an_overflow_agent_takes_a_vacant_place() -> None:
    """When one of ``size`` has gone, an overflow agent that comes back stays in its place."""
    shelf, (first, second) = filled(1, 1)
    shelf.idle.remove(first)
    shelf.leave(first)
    assert shelf.settle(second)
    assert not second.overflow
    assert (shelf.kept, shelf.overflow()) == (1, 0)


def test_one_that_is_being_closed_still_counts() -> None:
    """There are never more than may be, also not for the time that closing one takes."""
    shelf, (only,) = filled(1)
    shelf.next()
    shelf.leave(only)
    assert (shelf.staying, shelf.room, shelf.to_start(waiting=1)) == (0, 0, 0)
    shelf.forget(only)
    assert (shelf.room, shelf.to_start(waiting=1)) == (1, 1)


@pytest.mark.parametrize(
    ("starting", "waiting", "spare", "count"),
    [
        (0, 0, None, 2),  # to have its size
        (1, 0, None, 1),
        (0, 3, None, 3),  # those who wait, more than the size
        (2, 3, None, 1),
        (0, 9, None, 3),  # never more than may be
        (0, 0, 0, 0),  # not now, after a failure
        (0, 0, 1, 1),  # one to try
        (0, 1, 0, 1),  # but whoever waits has an attempt of its own
    ],
)
def test_how_many_are_to_be_started(starting: int, waiting: int, spare: int | None, count: int) -> None:
    shelf = Shelf(2, 1)
    shelf.starting = starting
    assert shelf.to_start(waiting, spare) == count


def test_who_is_idle_or_being_prepared_need_not_be_started() -> None:
    shelf, (first, _, _) = filled(2, 1)
    assert shelf.to_start(waiting=3) == 0
    shelf.idle.remove(first)
    shelf.prepare(first)
    assert shelf.to_start(waiting=3) == 0
    shelf.prepared(first)
    shelf.leave(first)
    shelf.forget(first)
    assert shelf.to_start(waiting=3) == 1


def test_only_overflow_ages_while_idle() -> None:
    """*max_idle_ms* shrinks the pool to its size and no further."""
    shelf, (kept, overflow) = filled(1, 1, max_idle_ms=100)
    assert (shelf.due_ms(kept), shelf.due_ms(overflow)) == (None, 101)
    assert shelf.next_due() == 101
    assert shelf.expire(100) == []
    assert shelf.expire(101) == [overflow]
    assert list(shelf.idle) == [kept]


def test_everyone_has_a_lifetime() -> None:
    shelf, (first, second) = filled(2, max_lifetime_ms=100)
    assert shelf.next_due() == 100
    assert (shelf.outlived(first, 99), shelf.outlived(first, 100)) == (False, True)
    assert shelf.expire(100) == [first]
    assert shelf.next_due() == 101
    assert shelf.expire(500) == [second]
    assert shelf.next_due() is None


def test_whichever_comes_first_of_idleness_and_lifetime() -> None:
    shelf, (_, overflow) = filled(1, 1, max_idle_ms=50, max_lifetime_ms=60)
    assert shelf.due_ms(overflow) == 51
    shelf.put(overflow, 40)
    assert shelf.due_ms(overflow) == 61


@pytest.mark.parametrize("seed", range(20))
def test_counts_stay_with_what_they_count(seed: int) -> None:
    """Any order of operations leaves every count equal to what it is derived from."""
    random = Random(seed)
    shelf = Shelf(3, 2, max_idle_ms=random.choice([None, 50]))
    at_work: list[Member] = []
    for now in range(2_000):
        at_work = [member for member in at_work if member.state != "gone"]
        match random.randrange(6):
            case 0 if shelf.room:
                at_work.append(shelf.arrive(Same(), now))
            case 1 if shelf.idle:
                at_work.append(shelf.next())
            case 2 if at_work and (member := at_work.pop(random.randrange(len(at_work)))).state == "here":
                if shelf.settle(member):
                    shelf.put(member, now)
                else:
                    shelf.leave(member)
                    at_work.append(member)
            case 3 if at_work and (member := random.choice(at_work)).state in ("here", "preparing"):
                if member.state == "here":
                    shelf.prepare(member)
                else:
                    shelf.prepared(member)
            case 4 if at_work and (member := random.choice(at_work)).state in ("here", "preparing"):
                shelf.leave(member)
            case 5 if at_work:
                shelf.forget(random.choice(at_work))
        shelf.check()
        assert len(shelf.members) <= 5
        assert shelf.overflow() >= 0
