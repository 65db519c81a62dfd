"""Cases: room and order (R1 to R7), what a limit's settings do (R3, R12), and what one reads about it."""

from __future__ import annotations

import asyncio
from random import Random

from interlock.errors import InvalidOperation, LimitExceeded, QueueFull, ValidationError
from interlock.testing.conformance_scene import Scene, case, says


@case
async def a_permit_is_held_until_it_is_released(scene: Scene) -> None:
    """It says what it is, takes a unit of each of its limits, and gives all back at once."""
    a, b = await scene.limit("a", 1), await scene.limit("b", 2)
    permit = await scene.admission.acquire(a, b, owner=scene.named("o"))
    assert (permit.limits, permit.key, permit.owner) == ((a, b), None, scene.named("o"))
    assert (permit.released, permit.lost) == (False, False)
    assert isinstance(permit.id, str)
    assert abs(permit.granted_at - scene.admission.clock.now()) < 60 or scene.admission.clock.now() < 1e6
    assert (await scene.used(a), await scene.used(b)) == (1, 1)
    assert permit.release() is True
    assert (permit.released, permit.lost) == (True, False)
    await scene.empty(a, b)


@case
async def all_of_its_limits_or_none(scene: Scene) -> None:
    """R1: who waits for one limit holds nothing of the others, and gets all of them in one step."""
    a, b = await scene.limit("a", 1), await scene.limit("b", 2)
    holder = await scene.admission.acquire(a)
    task = await scene.ask(a, b)
    assert (await scene.used(a), await scene.used(b)) == (1, 0)
    others = [await scene.admission.acquire(b, timeout=0) for _ in range(2)]
    holder.release()
    assert (await scene.used(a), await scene.used(b)) == (0, 2)
    others[0].release()
    await scene.settle()
    assert task.done()
    assert (await scene.used(a), await scene.used(b)) == (1, 2)
    (await task).release()
    others[1].release()
    await scene.empty(a, b)


@case
async def a_name_given_twice_takes_two_units(scene: Scene) -> None:
    """The names of a request are a bag."""
    a = await scene.limit("a", 3)
    permit = await scene.admission.acquire(a, a)
    assert await scene.used(a) == 2
    error = await scene.refused(scene.admission.acquire(a, a, timeout=0), LimitExceeded)
    says(error, "limit_exceeded", a)
    permit.release()
    await scene.empty(a)


@case
async def an_unlimited_limit_counts(scene: Scene) -> None:
    """A capacity of None lets everybody in and knows how many there are."""
    a = await scene.limit("a", None)
    permits = [await scene.admission.acquire(a) for _ in range(20)]
    assert await scene.used(a) == 20
    reading = scene.admission.limits()[a]
    assert (reading.capacity, reading.available) == (None, None)
    for permit in permits:
        permit.release()
    await scene.empty(a)


@case
async def waiters_go_in_the_order_in_which_they_came(scene: Scene) -> None:
    """R5: with the same claims, by arrival."""
    a = await scene.limit("a", 1)
    holder = await scene.admission.acquire(a)
    tasks = [await scene.ask(a, key=scene.named(f"w{number}")) for number in range(5)]
    assert await scene.waiting() == [scene.named(f"w{number}") for number in range(5)]
    for number, task in enumerate(tasks):
        holder.release()
        await scene.settle()
        assert [one.done() for one in tasks] == [place <= number for place in range(5)]
        holder = await task
    holder.release()
    await scene.empty(a)


@case
async def older_work_goes_first(scene: Scene) -> None:
    """R5: by ``since`` before arrival; a ``since`` in the future counts as now."""
    a = await scene.limit("a", 1)
    holder = await scene.admission.acquire(a)
    base = scene.admission.clock.now()
    late = await scene.ask(a, since=base + 10_000, key=scene.named("late"))
    young = await scene.ask(a, since=max(0.0, base - 5), key=scene.named("young"))
    old = await scene.ask(a, since=max(0.0, base - 50), key=scene.named("old"))
    expected = [old, young, late]
    assert await scene.waiting() == [scene.named(name) for name in ("old", "young", "late")]
    for task in expected:
        holder.release()
        await scene.settle()
        assert task.done()
        holder = await task
    holder.release()
    await scene.empty(a)


@case
async def the_smaller_priority_goes_first(scene: Scene) -> None:
    """R5: priority comes before ``since``."""
    a = await scene.limit("a", 1)
    holder = await scene.admission.acquire(a)
    base = scene.admission.clock.now()
    normal = await scene.ask(a, since=max(0.0, base - 50))
    urgent = await scene.ask(a, priority=-1)
    holder.release()
    await scene.settle()
    assert (urgent.done(), normal.done()) == (True, False)
    (await urgent).release()
    (await normal).release()
    await scene.empty(a)


@case
async def newcomers_pass_nobody(scene: Scene) -> None:
    """R5: room that appears while somebody waits is for him, also if others ask in the same step."""
    a = await scene.limit("a", 1)
    holder = await scene.admission.acquire(a)
    first = await scene.ask(a)
    holder.release()
    late = await scene.ask(a)
    assert (first.done(), late.done()) == (True, False)
    holder = await first
    second = asyncio.get_running_loop().create_task(scene.acquired(a))
    await asyncio.sleep(0)  # it has asked; nobody has heard so yet
    holder.release()
    barging = await scene.ask(a)
    assert (late.done(), second.done(), barging.done()) == (True, False, False)
    for task in (late, second, barging):
        (await task).release()
        await scene.settle()
    await scene.empty(a)


@case
async def what_one_lacks_keeps_nothing_else_from_others(scene: Scene) -> None:
    """R6: an elder who lacks one limit keeps that one, and nothing yet of those where there is room."""
    a, b = await scene.limit("a", 1), await scene.limit("b", 1)
    holder = await scene.admission.acquire(a)
    elder = await scene.ask(a, b)
    other = await scene.admission.acquire(b, timeout=0)
    other.release()
    holder.release()
    (await elder).release()
    await scene.empty(a, b)


@case
async def what_can_never_fit_delays_nobody(scene: Scene) -> None:
    """R7: it stands aside until the capacity is raised."""
    a = await scene.limit("a", 1)
    giant = await scene.ask(a, a)
    permit = await scene.admission.acquire(a, timeout=0)
    permit.release()
    assert not giant.done()
    await scene.limit("a", 2)
    await scene.settle()
    (await giant).release()
    await scene.empty(a)


@case
async def lowering_evicts_nobody(scene: Scene) -> None:
    """R3: nobody is admitted until there is room; raising admits what fits, not the difference."""
    a = await scene.limit("a", 3)
    held = [await scene.admission.acquire(a) for _ in range(3)]
    await scene.limit("a", 1)
    assert not any(permit.released for permit in held)
    waiting = [await scene.ask(a) for _ in range(2)]
    held[0].release()
    held[1].release()
    await scene.settle()
    assert [task.done() for task in waiting] == [False, False]
    await scene.limit("a", 2)
    await scene.settle()
    assert [task.done() for task in waiting] == [True, False]
    held[2].release()
    for task in waiting:
        (await task).release()
    await scene.empty(a)


@case
async def a_removed_limit_ends_the_waits_for_it(scene: Scene) -> None:
    """Who waits gets `InvalidOperation`; who holds stays counted, also if the limit is made again."""
    a = await scene.limit("a", 1)
    holder = await scene.admission.acquire(a)
    task = await scene.ask(a)
    await scene.admission.remove_limit(a)
    await scene.settle()
    says(await scene.refused(task, InvalidOperation), "invalid_operation", "removed", a)
    await scene.refused(scene.admission.acquire(a, timeout=0), ValidationError)
    await scene.limit("a", 1)
    await scene.refused(scene.admission.acquire(a, timeout=0), LimitExceeded)
    holder.release()
    await scene.empty(a)


@case
async def a_cooling_unit_is_not_free(scene: Scene) -> None:
    """R12: it is used until its time, and then goes to who waits."""
    a = await scene.limit("a", 1, cooldown=scene.seconds(2))
    permit = await scene.admission.acquire(a)
    began = scene.admission.clock.now()
    permit.release()
    await scene.settle()
    reading = scene.admission.limits()[a]
    assert (reading.used, reading.cooling) == (1, 1) or not scene.still(began, 2)
    task = await scene.ask(a)
    await scene.advance(0.5)
    assert not task.done() or not scene.still(began, 2)
    await scene.advance(2.5)
    await scene.settle()
    assert task.done()
    (await task).release()


@case
async def how_the_work_ended_decides_how_long_it_cools(scene: Scene) -> None:
    """R12: an ``async with`` tells success, cancellation and failure apart."""
    a = await scene.limit("a", 1, cooldown=0.0, cooldown_failed=scene.seconds(2))
    async with scene.admission.acquire(a):
        pass
    await scene.empty(a)

    async def failing() -> None:
        async with scene.admission.acquire(a):
            raise ZeroDivisionError

    began = scene.admission.clock.now()
    await scene.refused(failing(), ZeroDivisionError)
    assert await scene.used(a) == 1 or not scene.still(began, 2)
    await scene.advance(3)
    await scene.empty(a)


@case
async def a_bounded_queue_fills_up(scene: Scene) -> None:
    """The next one gets `QueueFull`; who leaves makes room at once."""
    a = await scene.limit("a", 1, queue_max=1)
    holder = await scene.admission.acquire(a)
    task = await scene.ask(a)
    says(await scene.refused(scene.admission.acquire(a), QueueFull), "queue_full", a)
    task.cancel()
    await scene.settle()
    again = await scene.ask(a)
    assert not again.done()
    holder.release()
    (await again).release()
    await scene.empty(a)


@case
async def readings_say_who_holds_and_who_waits(scene: Scene) -> None:
    """Limits, holders, those who wait, and all of it at one moment."""
    a, b = await scene.limit("a", 1), await scene.limit("b", None)
    holder = await scene.admission.acquire(a, owner=scene.named("holder"))
    task = await scene.ask(a, b, key=scene.named("waiter"), priority=3)
    await scene.settle()
    admission = scene.admission
    reading = admission.limits()[a]
    assert (reading.name, reading.capacity, reading.used, reading.waiting) == (a, 1, 1, 1)
    (held,) = admission.holders(a)
    assert (held.id, held.owner, held.limits, held.fence) == (
        holder.id,
        scene.named("holder"),
        (a,),
        holder.fence,
    )
    assert held.granted_at == holder.granted_at
    (waiting,) = [one for one in admission.waiting() if one.key == scene.named("waiter")]
    assert (waiting.limits, waiting.priority, waiting.position) == ((a, b), 3, 0)
    snapshot = admission.snapshot()
    assert waiting in snapshot.waiting
    assert reading in snapshot.limits
    try:
        admission.holders(scene.named("nothing"))
    except ValidationError as error:
        says(error, "validation_error", scene.named("nothing"), a)
    else:
        raise AssertionError("an unknown limit has holders")
    holder.release()
    (await task).release()


@case
async def explain_says_what_stands_in_the_way(scene: Scene) -> None:
    """Every limit that keeps a waiter out, who holds it and who goes first; None for who does not wait."""
    a, b = await scene.limit("a", 1), await scene.limit("b", 1)
    holder = await scene.admission.acquire(a, owner=scene.named("holder"))
    first = await scene.ask(a, b, key=scene.named("first"))
    second = await scene.ask(a, b, key=scene.named("second"))
    await scene.settle()
    found = scene.admission.explain(scene.named("first"))
    assert found.waiter.position == 0
    assert [(block.limit, block.why, block.missing) for block in found.blocks] == [(a, "full", 1)]
    assert [one.owner for one in found.blocks[0].holders] == [scene.named("holder")]
    behind = scene.admission.explain(scene.named("second"))
    assert behind.waiter.position == 1
    assert behind.blocks[0].ahead == (scene.named("first"),)
    assert str(found).startswith(f"{scene.named('first')}: 0 ahead; {a!r} is full (1/1 in use, held by ")
    assert scene.admission.explain(scene.named("nobody")) is None
    holder.release()
    (await first).release()
    (await second).release()
    await scene.empty(a, b)


@case
async def whatever_is_done_no_limit_is_exceeded(scene: Scene) -> None:
    """R1, R2 and R16: tasks that ask, hold, fail and are cancelled leave nothing, and never are too many."""
    seed = 20_251
    dice = Random(seed)  # noqa: S311 - repeatable on purpose
    a, b = await scene.limit("a", 3), await scene.limit("b", 2)
    inside = {a: 0, b: 0}
    most = {a: 0, b: 0}

    async def work(turns: int) -> None:
        for _ in range(turns):
            names = dice.choice([(a,), (b,), (a, b)])
            async with scene.admission.acquire(*names, priority=dice.randrange(2)):
                for name in names:
                    inside[name] += 1
                    most[name] = max(most[name], inside[name])
                try:
                    await asyncio.sleep(0)
                finally:
                    for name in names:
                        inside[name] -= 1

    tasks = [await scene.run(work(12)) for _ in range(24)]
    while not all(task.done() for task in tasks):
        task = dice.choice(tasks)
        if dice.random() < 0.1:
            task.cancel()
        await scene.settle()
    assert most[a] <= 3, f"seed {seed}: {most}"
    assert most[b] <= 2, f"seed {seed}: {most}"
    await scene.empty(a, b)
