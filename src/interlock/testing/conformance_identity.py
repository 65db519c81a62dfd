"""Cases: keys, owners, families, fences and leases (R8 to R11), and lending."""

from __future__ import annotations

import asyncio

from interlock.errors import AcquireTimeout, InvalidOperation, LimitExceeded
from interlock.testing.conformance_scene import Scene, case, case_of_peers, says


@case
async def the_same_key_is_the_same_permit(scene: Scene) -> None:
    """R9: counted once, also when full."""
    a = await scene.limit("a", 1)
    key = scene.named("k")
    permit = await scene.admission.acquire(a, key=key)
    again = await scene.admission.acquire(a, key=key, timeout=0)
    assert again is permit
    assert (permit.id, permit.key) == (key, key)
    assert await scene.used(a) == 1
    permit.release()
    assert again.released
    await scene.empty(a)


@case
async def two_waits_with_one_key_become_one_permit(scene: Scene) -> None:
    """R9: also if both are made in the same step, and also if one of them gives up."""
    a = await scene.limit("a", 1)
    key = scene.named("k")
    holder = await scene.admission.acquire(a)
    tasks = [asyncio.get_running_loop().create_task(scene.acquired(a, key=key)) for _ in range(3)]
    assert await scene.waiting() == [key]
    tasks[1].cancel()
    assert await scene.waiting() == [key]
    holder.release()
    await scene.settle()
    first, second = await tasks[0], await tasks[2]
    assert first is second
    assert await scene.used(a) == 1
    first.release()
    await scene.empty(a)


@case
async def a_key_with_another_request_is_a_conflict(scene: Scene) -> None:
    """R9: other limits or another owner, held or waiting."""
    a, b = await scene.limit("a", 1), await scene.limit("b", 1)
    key, other = scene.named("k"), scene.named("w")
    permit = await scene.admission.acquire(a, key=key)
    for asked in (scene.admission.acquire(b, key=key), scene.admission.acquire(a, key=key, owner="o")):
        says(await scene.refused(asked, InvalidOperation), "invalid_operation", key, "in use")
    task = await scene.ask(a, key=other)
    await scene.refused(scene.admission.acquire(a, b, key=other), InvalidOperation)
    permit.release()
    (await task).release()
    await scene.empty(a, b)


@case
async def a_key_is_free_again_at_once(scene: Scene) -> None:
    """R8: after a release, with other limits; the old permit has nothing to do with the new one."""
    a, b = await scene.limit("a", 1), await scene.limit("b", 1)
    key = scene.named("k")
    old = await scene.admission.acquire(a, key=key)
    old.release()
    new = await scene.admission.acquire(b, key=key)
    assert new is not old
    assert old.release() is False
    assert (await scene.used(a), await scene.used(b)) == (0, 1)
    assert not new.released
    new.release()
    await scene.empty(a, b)


@case
async def entering_twice_nests(scene: Scene) -> None:
    """On one key the last exit releases."""
    a = await scene.limit("a", 1)
    key = scene.named("k")
    async with scene.admission.acquire(a, key=key) as outer:
        async with scene.admission.acquire(a, key=key) as inner:
            assert inner is outer
        assert not outer.released
        assert await scene.used(a) == 1
    assert outer.released
    await scene.empty(a)


@case
async def releasing_by_key(scene: Scene) -> None:
    """Gives back what is held under it."""
    a = await scene.limit("a", 1)
    permit = await scene.admission.acquire(a, key=scene.named("k"))
    assert scene.admission.release_key(scene.named("k")) is True
    assert permit.released
    assert scene.admission.release_key(scene.named("k")) is False
    await scene.empty(a)


@case
async def what_an_owner_holds_ends_with_the_owner(scene: Scene) -> None:
    """R11: permits and waits; the waits first, so that it inherits nothing from itself."""
    a, b = await scene.limit("a", 1), await scene.limit("b", 1)
    owner = scene.named("o")
    held = [await scene.admission.acquire(name, owner=owner) for name in (a, b)]
    own = await scene.ask(a, owner=owner)
    other = await scene.ask(b)
    assert await scene.admission.release_owner(owner) == 2
    await scene.settle()
    assert all(permit.released for permit in held)
    says(await scene.refused(own, InvalidOperation), "invalid_operation", owner)
    assert not (await other).released
    assert held[0].release() is False
    assert (await scene.used(a), await scene.used(b)) == (0, 1)
    (await other).release()
    assert await scene.admission.release_owner(owner) == 0
    await scene.empty(a, b)


@case
async def a_nested_permit_shares_what_its_parent_holds(scene: Scene) -> None:
    """It is not charged again, and stays used until the last of the family is gone."""
    a, b = await scene.limit("a", 1), await scene.limit("b", 1)
    parent = await scene.admission.acquire(a)
    child = await scene.admission.acquire(a, b, parent=parent, timeout=0)
    assert (await scene.used(a), await scene.used(b)) == (1, 1)
    parent.release()
    assert (await scene.used(a), await scene.used(b)) == (1, 1)
    child.release()
    await scene.empty(a, b)


@case
async def a_released_parent_is_refused(scene: Scene) -> None:
    """And who waits inside of it is dropped when it ends."""
    a, b = await scene.limit("a", 1), await scene.limit("b", 1)
    parent = await scene.admission.acquire(a)
    holder = await scene.admission.acquire(b)
    nested = await scene.ask(a, b, parent=parent)
    parent.release()
    await scene.settle()
    says(await scene.refused(nested, InvalidOperation), "invalid_operation", "parent")
    error = await scene.refused(scene.admission.acquire(a, parent=parent), InvalidOperation)
    says(error, "invalid_operation", "parent", "has been released")
    holder.release()
    await scene.empty(a, b)


@case
async def fences_only_rise(scene: Scene) -> None:
    """R10: from grant to grant on a limit, whoever gets it."""
    a = await scene.limit("a", 2)
    fences = []
    for number in range(6):
        permit = await scene.admission.acquire(a, key=scene.named("k") if number % 2 else None)
        fences.append(permit.fence)
        permit.release()
    assert fences == sorted(set(fences))


@case
async def a_lease_ends_by_itself(scene: Scene) -> None:
    """The permit is lost, its units go on to who waits, and releasing it touches nothing."""
    a = await scene.limit("a", 1)
    began = scene.admission.clock.now()
    permit = await scene.admission.acquire(a, lease=scene.seconds(2))
    task = await scene.ask(a)
    await scene.advance(0.5)
    assert (permit.lost, task.done()) == (False, False) or not scene.still(began, 1.8)
    await scene.advance(2.5)
    await scene.settle()
    assert (permit.lost, permit.released, task.done()) == (True, True, True)
    assert permit.release() is False
    assert await scene.used(a) == 1
    (await task).release()
    await scene.empty(a)


@case
async def a_lease_that_is_renewed_goes_on(scene: Scene) -> None:
    """As long as it is; a permit that ended is not renewed."""
    a = await scene.limit("a", 1)
    permit = await scene.admission.acquire(a, lease=scene.seconds(2))
    in_time = True
    for _ in range(3):
        began = scene.admission.clock.now()
        await scene.advance(1)
        renewed = scene.admission.renew(permit, scene.seconds(2))
        await scene.settle()
        in_time = in_time and scene.still(began, 1.8)
        assert renewed is not None or not in_time
    assert not permit.lost or not in_time
    await scene.advance(3)
    await scene.settle()
    assert permit.lost
    assert scene.admission.renew(permit, scene.seconds(2)) is None
    await scene.empty(a)


@case
async def a_permit_can_be_lent(scene: Scene) -> None:
    """Its units are others' meanwhile; it gets them back at its old age, under a new fence."""
    a = await scene.limit("a", 1)
    permit = await scene.admission.acquire(a)
    fence = permit.fence
    async with permit.lend():
        assert permit.lent
        inner = await scene.admission.acquire(a, timeout=scene.seconds(5))
        assert await scene.used(a) == 1
        says(await scene.refused(permit.lend().__aenter__(), InvalidOperation), "invalid_operation", "lent")
        inner.release()
    assert (permit.lent, permit.released) == (False, False)
    assert permit.fence > fence
    assert await scene.used(a) == 1
    permit.release()
    await scene.empty(a)


@case
async def a_lent_permit_waits_for_its_units(scene: Scene) -> None:
    """In its old place: before who came later."""
    a = await scene.limit("a", 1)
    permit = await scene.admission.acquire(a)
    lending = permit.lend()
    await lending.__aenter__()
    borrower = await scene.admission.acquire(a, timeout=scene.seconds(5))
    later = await scene.ask(a)
    back = await scene.run(lending.__aexit__(None, None, None))
    borrower.release()
    await scene.settle()
    assert (back.done(), later.done()) == (True, False)
    permit.release()
    (await later).release()
    await scene.empty(a)


@case
async def a_lent_permit_whose_holder_gives_up_has_ended(scene: Scene) -> None:
    """Cancelled while it waits for its units, or too impatient: nobody works without units."""
    a = await scene.limit("a", 1)
    for timeout, error in ((None, asyncio.CancelledError), (scene.seconds(1), AcquireTimeout)):
        permit = await scene.admission.acquire(a)
        lending = permit.lend(timeout=timeout)
        await lending.__aenter__()
        borrower = await scene.admission.acquire(a, timeout=scene.seconds(5))
        back = await scene.run(lending.__aexit__(None, None, None))
        assert not back.done()
        if timeout is None:
            back.cancel()
        else:
            await scene.advance(1.5)
        await scene.settle()
        await scene.refused(back, error)
        assert permit.released
        assert await scene.used(a) == 1
        borrower.release()
        await scene.empty(a)


@case_of_peers
async def peers_share_limits(scene: Scene) -> None:
    """What one holds the other lacks, and gets when it is released."""
    a = await scene.limit("a", 1)
    peer = await scene.harness.admission()
    permit = await scene.admission.acquire(a)
    await scene.refused(peer.acquire(a, timeout=0), LimitExceeded)
    task = await scene.ask(a, of=peer)
    permit.release()
    await scene.settle()
    (await task).release()
    await scene.empty(a)


@case_of_peers
async def peers_share_keys(scene: Scene) -> None:
    """R9: one permit, whoever asks; who releases it releases it for all."""
    a = await scene.limit("a", 1)
    peer = await scene.harness.admission()
    key = scene.named("k")
    mine = await scene.admission.acquire(a, key=key)
    theirs = await peer.acquire(a, key=key, timeout=0)
    assert (mine.id, mine.fence) == (theirs.id, theirs.fence)
    assert await scene.used(a) == 1
    mine.release()
    await scene.settle()
    assert theirs.released
    assert theirs.release() is False
    await scene.empty(a)


@case_of_peers
async def a_peer_that_gives_up_takes_nothing_from_others(scene: Scene) -> None:
    """Two wait for one key, one in each; the one that is cancelled at the grant leaves the other's alone."""
    a = await scene.limit("a", 1)
    peer = await scene.harness.admission()
    key = scene.named("k")
    holder = await scene.admission.acquire(a)
    mine, theirs = await scene.ask(a, key=key), await scene.ask(a, of=peer, key=key)
    holder.release()
    mine.cancel()
    await scene.settle()
    permit = await theirs
    assert not permit.released
    assert await scene.used(a) == 1
    permit.release()
    await scene.empty(a)
