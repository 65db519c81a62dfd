"""The program that judges the fleets finds whatever is wrong, and nothing where nothing is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from e2e.fleet_scene import TINY, Scene, judged

CLEAN: dict[str, Callable[[Scene], None]] = {}
BROKEN: dict[str, tuple[str, Callable[[Scene], None]]] = {}


def clean(make: Callable[[Scene], None]) -> Callable[[Scene], None]:
    CLEAN[make.__name__] = make
    return make


def breaks(rule: str) -> Callable[[Callable[[Scene], None]], Callable[[Scene], None]]:
    def mark(make: Callable[[Scene], None]) -> Callable[[Scene], None]:
        BROKEN[make.__name__] = rule, make
        return make

    return mark


# -- nothing is wrong ----------------------------------------------------------------------------------------


@clean
def hand_over(scene: Scene) -> None:
    """Units go on in the very instant in which they are given back."""
    for n in range(6):
        scene.work(f"c{n}", f"w{n}", 1.0 + n // 2, 2.0 + n // 2, asked=0.5)


@clean
def cooled(scene: Scene) -> None:
    """The next one comes when the cooldown is over, but for what a millisecond is rounded by."""
    scene.work("c1", "w1", 1.0, 2.0, limits=["cool"])
    scene.work("c2", "w2", 2.0995, 3.0, asked=1.5, limits=["cool"])


@clean
def frozen_past_its_lease(scene: Scene) -> None:
    """It is still seen inside while others have its unit, and knows better as soon as it wakes."""
    scene.ask("ice", "w", 1.0)
    scene.grant("ice", "w", 1.0)
    scene.hold("ice", "w", 1.1)
    scene.disturb("ice", "frozen", 1.2, 3.2)
    scene.work("c1", "w1", 2.5, 4.0, asked=2.0)
    scene.work("c2", "w2", 2.6, 4.1, asked=2.1)
    scene.end("ice", "w", 3.21, "lost", lost=True)
    scene.release("ice", "w", 3.3, answer=False)


@clean
def killed_while_cut_off(scene: Scene) -> None:
    """Its permit had been lost by then, which nobody could tell it."""
    scene.ask("far", "w", 1.0)
    scene.grant("far", "w", 1.0)
    scene.hold("far", "w", 1.1)
    scene.disturb("far", "partition", 1.2, 9.0)
    scene.work("c1", "w1", 2.5, 4.0, asked=2.0)
    scene.work("c2", "w2", 2.6, 4.1, asked=2.1)
    scene.kill("far", 3.0)
    scene.leave("w", 3.0, cut=True)


@clean
def lost_its_place(scene: Scene) -> None:
    """Who was cut off has no place that others could take."""
    scene.ask("c1", "w1", 1.0, queued=1.1)
    scene.disturb("c1", "reset", 1.2, 1.3)
    scene.work("c2", "w2", 1.6, 2.0, asked=1.5)
    scene.grant("c1", "w1", 1.9)
    scene.hold("c1", "w1", 1.95)
    scene.release("c1", "w1", 2.0)


@clean
def lost_its_connection(scene: Scene) -> None:
    """By itself; so it says."""
    scene.ask("c1", "w1", 1.0, queued=1.1)
    scene.add("c1", 1.2, "noted", text="no connection")
    scene.work("c2", "w2", 1.6, 2.0, asked=1.5)
    scene.grant("c1", "w1", 1.9)
    scene.release("c1", "w1", 2.0)


@clean
def asked_at_the_same_time(scene: Scene) -> None:
    """Whoever asks before the other is known to wait may go first; so may the urgent, and other claims."""
    scene.ask("c1", "w1", 1.0, queued=1.1)
    scene.work("c2", "w2", 1.2, 1.3, asked=1.05)
    scene.work("c3", "w3", 1.3, 1.4, asked=1.2, priority=-1)
    scene.work("c4", "w4", 1.3, 1.4, asked=1.2, limits=["cool"])
    scene.grant("c1", "w1", 1.5)
    scene.release("c1", "w1", 1.6)


@clean
def one_key_for_two(scene: Scene) -> None:
    """Both hold one permit, counted once, until one of them releases it for both."""
    for by in ("c1", "c2"):
        scene.ask(by, f"k {by}", 1.0, key="k")
        scene.grant(by, f"k {by}", 1.1, fence=5, permit="k")
        scene.hold(by, f"k {by}", 1.2)
    scene.fence = 5
    scene.release("c1", "k c1", 1.5)
    scene.work("c3", "w3", 1.51, 2.0, asked=1.3)
    scene.work("c4", "w4", 1.51, 2.0, asked=1.3)
    scene.hold("c2", "k c2", 1.55)
    scene.end("c2", "k c2", 1.58, "lost", lost=False)
    scene.release("c2", "k c2", 1.6, answer=False)


@clean
def given_up(scene: Scene) -> None:
    """In time, too late, at the deadline and as good as at it; what is shut off at once needs no queue."""
    scene.work("c0", "w0", 0.5, 1.0)
    scene.ask("c1", "w1", 1.0, queued=1.1)
    scene.end("c1", "w1", 1.2, "cancelling")
    scene.end("c1", "w1", 1.3, "cancelled")
    scene.ask("c1", "w2", 1.4)
    scene.end("c1", "w2", 1.5, "cancelling")
    scene.grant("c1", "w2", 1.5)
    scene.release("c1", "w2", 1.6)
    scene.ask("c1", "w3", 1.7, timeout=0.5)
    scene.end("c1", "w3", 3.19, "refused", code="timeout")
    scene.ask("c1", "w4", 3.2, timeout=0)
    scene.end("c1", "w4", 3.2, "refused", code="limit_exceeded")


@clean
def frozen_at_its_deadline(scene: Scene) -> None:
    """Who stands still ends when it wakes."""
    scene.work("c0", "w0", 0.5, 1.0)
    scene.ask("c1", "w1", 1.0, timeout=0.5)
    scene.disturb("c1", "frozen", 1.2, 3.2)
    scene.end("c1", "w1", 3.6, "refused", code="timeout")


@clean
def back_from_the_dead(scene: Scene) -> None:
    """A lease and six seconds are allowed."""
    dead(scene, back=8.1)


@clean
def killed_in_the_middle_of_a_line(scene: Scene) -> None:
    """What was not written down to its end has not been done."""
    scene.work("c1", "w1", 1.0, 2.0)
    scene.kill("c1", 2.5)


def dead(scene: Scene, back: float) -> None:
    """Two are killed at work; a third one waits for a unit of theirs."""
    for by in ("c1", "c2"):
        scene.ask(by, by, 1.0)
        scene.grant(by, by, 1.0)
        scene.hold(by, by, 1.1)
        scene.kill(by, 1.2)
        scene.leave(by, 1.21, cut=True)
    scene.work("c3", "w3", back, back + 1, asked=1.15)


# -- something is wrong --------------------------------------------------------------------------------------


@breaks("limit")
def one_too_many(scene: Scene) -> None:
    """For a microsecond."""
    scene.work("c1", "w1", 1.0, 2.0)
    scene.work("c2", "w2", 1.0, 2.0)
    scene.work("c3", "w3", 2.0 - TINY, 3.0, asked=1.5)
    scene.lines["upstream"].clear()


@breaks("limit")
def too_large(scene: Scene) -> None:
    """Two units of one, and one more."""
    scene.work("c1", "w1", 1.0, 2.0, limits=["a", "a"])
    scene.work("c2", "w2", 1.5, 1.6, limits=["cool", "a"])
    scene.lines["upstream"].clear()


@breaks("limit")
def not_cooled(scene: Scene) -> None:
    """The cooldown was half as long."""
    scene.work("c1", "w1", 1.0, 2.0, limits=["cool"])
    scene.work("c2", "w2", 2.05, 3.0, asked=1.5, limits=["cool"])


@breaks("limit")
def woke_up_and_saw_nothing(scene: Scene) -> None:
    """A frozen holder goes on with a unit that others have."""
    scene.ask("ice", "w", 1.0)
    scene.grant("ice", "w", 1.0)
    scene.disturb("ice", "frozen", 1.2, 3.2)
    scene.work("c1", "w1", 2.5, 4.0, asked=2.0)
    scene.work("c2", "w2", 2.6, 4.1, asked=2.1)
    scene.hold("ice", "w", 3.3)
    scene.end("ice", "w", 3.4, "lost", lost=True)
    scene.release("ice", "w", 3.5, answer=False)
    scene.lines["upstream"].clear()


@breaks("upstream")
def seen_from_outside(scene: Scene) -> None:
    """The holder's last words are older than its work."""
    scene.ask("c0", "w0", 1.0)
    scene.grant("c0", "w0", 1.0)
    scene.work("c1", "w1", 1.3, 2.0)
    scene.work("c2", "w2", 1.4, 2.0)
    scene.kill("c0", 1.6)
    scene.leave("w0", 1.6, cut=True)


@breaks("key")
def a_key_held_twice(scene: Scene) -> None:
    """Under two fences."""
    for fence in (1, 2):
        scene.ask(f"c{fence}", f"w{fence}", 0.9 + fence / 10, key="k")
        scene.grant(f"c{fence}", f"w{fence}", 1.0 + fence / 10, permit="k", fence=fence)
    for fence in (1, 2):
        scene.release(f"c{fence}", f"w{fence}", 2.0)


@breaks("fence")
def a_fence_given_twice(scene: Scene) -> None:
    """To two permits of one limit."""
    scene.work("c1", "w1", 1.0, 2.0)
    scene.fence = 0
    scene.work("c2", "w2", 1.0, 2.0)


@breaks("fence")
def a_fence_that_fell(scene: Scene) -> None:
    """Also where the first holder has long gone."""
    scene.fence = 10
    scene.work("c1", "w1", 1.0, 2.0)
    scene.fence = 5
    scene.work("c2", "w2", 3.0, 4.0)


@breaks("order")
def passed(scene: Scene) -> None:
    """By one that asked when it was known to wait; both were granted in the end."""
    scene.ask("c1", "w1", 1.0, queued=1.1)
    scene.work("c2", "w2", 1.3, 1.4, asked=1.1 + TINY)
    scene.grant("c1", "w1", 1.35)
    scene.release("c1", "w1", 1.6)


@breaks("order")
def passed_by_the_less_urgent(scene: Scene) -> None:
    """For the same claims, in whatever order they are named."""
    scene.ask("c1", "w1", 1.0, queued=1.1, priority=-1, limits=["a", "cool"])
    scene.work("c2", "w2", 1.3, 1.4, asked=1.2, limits=["cool", "a"])
    scene.grant("c1", "w1", 1.55)
    scene.release("c1", "w1", 1.6)


@breaks("order")
def passed_until_it_gave_up(scene: Scene) -> None:
    """It was never granted."""
    scene.work("c0", "w0", 0.8, 3.0)
    scene.work("c3", "w3", 0.9, 1.3)
    scene.ask("c1", "w1", 1.0, queued=1.1, timeout=0.9)
    scene.work("c2", "w2", 1.3, 1.4, asked=1.2)
    scene.end("c1", "w1", 1.95, "refused", code="timeout")


@breaks("once")
def granted_to_the_dead(scene: Scene) -> None:
    """It had given up before."""
    scene.ask("c1", "w1", 1.0)
    scene.end("c1", "w1", 1.1, "cancelling")
    scene.end("c1", "w1", 1.2, "cancelled")
    scene.grant("c1", "w1", 1.3)
    scene.lines["upstream"].clear()
    scene.work("c2", "w2", 3.0, 4.0)


@breaks("early")
def before_its_time(scene: Scene) -> None:
    scene.work("c0", "w0", 0.5, 1.0)
    scene.ask("c1", "w1", 1.0, queued=1.1, timeout=0.5)
    scene.end("c1", "w1", 1.4, "refused", code="timeout")


@breaks("deadline")
def overdue(scene: Scene) -> None:
    scene.work("c0", "w0", 0.5, 1.0)
    scene.ask("c1", "w1", 1.0, timeout=0.5)
    scene.end("c1", "w1", 2.51, "refused", code="timeout")


@breaks("deadline")
def never_ended(scene: Scene) -> None:
    scene.work("c0", "w0", 0.5, 1.0)
    scene.ask("c1", "w1", 1.0, timeout=0.5)


@breaks("deadline")
def would_not_be_cancelled(scene: Scene) -> None:
    scene.work("c0", "w0", 0.5, 1.0)
    scene.ask("c1", "w1", 1.0)
    scene.end("c1", "w1", 1.1, "cancelling")
    scene.end("c1", "w1", 2.2, "cancelled")


@breaks("release")
def released_twice(scene: Scene) -> None:
    scene.work("c1", "w1", 1.0, 2.0)
    scene.end("c1", "w1", 2.1, "released", answer=True)


@breaks("release")
def released_after_it_was_lost(scene: Scene) -> None:
    scene.ask("c1", "w1", 1.0)
    scene.grant("c1", "w1", 1.0)
    scene.disturb("c1", "frozen", 1.1, 3.1)
    scene.end("c1", "w1", 3.2, "lost", lost=True)
    scene.release("c1", "w1", 3.3, answer=True)


@breaks("loss")
def lost_for_nothing(scene: Scene) -> None:
    scene.ask("c1", "w1", 1.0)
    scene.grant("c1", "w1", 1.0)
    scene.end("c1", "w1", 2.2, "lost", lost=True)
    scene.release("c1", "w1", 2.3, answer=False)


@breaks("stuck")
def forgotten(scene: Scene) -> None:
    """Both units are free, and one that waits is given none."""
    scene.work("c1", "w1", 1.0, 2.0)
    scene.work("c2", "w2", 1.0, 2.0)
    scene.work("c3", "w3", 3.7, 5.0, asked=1.5)


@breaks("stuck")
def lost_with_a_cancel(scene: Scene) -> None:
    """What was granted to one that gave up is nobody's any more."""
    scene.work("c1", "w1", 1.0, 2.0)
    for n in (1, 2):
        scene.ask("c2", f"x{n}", 1.5, queued=1.51)
        scene.end("c2", f"x{n}", 2.0, "cancelling")
        scene.end("c2", f"x{n}", 2.0, "cancelled")
    scene.work("c3", "w3", 5.0, 6.0, asked=2.2, limits=["a", "a"])


@breaks("stuck")
def not_back_from_the_dead(scene: Scene) -> None:
    """A lease and six seconds were not enough."""
    dead(scene, back=8.7)


@breaks("invented")
def worked_without_a_permit(scene: Scene) -> None:
    scene.work("c1", "w1", 1.0, 2.0)
    scene.add("upstream", 3.0, "began", ask="w1", client="c1", permit="permit w1", fence=77)


@breaks("nothing")
def shows_nothing(scene: Scene) -> None:
    scene.ask("c1", "w1", 1.0, timeout=0.5)
    scene.end("c1", "w1", 1.5, "refused", code="timeout")


@pytest.mark.parametrize("name", CLEAN)
def test_nothing_is_found_where_nothing_is_wrong(tmp_path: Path, name: str) -> None:
    """However close it comes."""
    scene = Scene()
    CLEAN[name](scene)
    if name == "killed_in_the_middle_of_a_line":
        (tmp_path / "torn.jsonl").write_text('{"what": "ask", "at": 2', encoding="utf-8")
    rules, said = judged(scene, tmp_path)
    assert rules == set(), said


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_is_found(tmp_path: Path, name: str) -> None:
    """By its rule, and by no other, with its evidence."""
    rule, make = BROKEN[name]
    scene = Scene()
    make(scene)
    rules, said = judged(scene, tmp_path)
    assert rules == {rule}, said
    assert rule == "nothing" or '{"' in said
