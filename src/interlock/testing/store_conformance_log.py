"""Cases: the log of a session. Its numbers, its filters, its duplicates, its fence, and who hears of it."""

from __future__ import annotations

import asyncio

from interlock.core.sessions import Event, NewEvent, RunChange
from interlock.errors import SessionNotFound, StaleFence, ValidationError
from interlock.testing.store_conformance_scene import NO_JSON, Bell, Scene, case


@case
async def events_get_numbers_from_one_without_a_gap(scene: Scene) -> None:
    """Each session counts for itself; the number of the last is returned and can be asked for."""
    await scene.session("a")
    await scene.session("b")
    assert await scene.store.get_latest_sequence("a") == 0
    assert await scene.store.append("a", []) == 0
    for expected in (1, 2, 3):
        assert await scene.store.append("a", [scene.event()]) == expected
    assert await scene.store.append("b", [scene.event(), scene.event()]) == 2
    assert await scene.store.append("b", []) == 2
    assert await scene.sequences("a") == [1, 2, 3]
    assert await scene.sequences("b") == [1, 2]
    assert await scene.store.get_latest_sequence("a") == 3
    assert (await scene.store.get_session("a")).last_sequence == 3


@case
async def many_writers_leave_no_gap(scene: Scene) -> None:
    """Each number is given once, in the order in which its writer called."""
    for name in ("a", "b"):
        await scene.session(name)
    given: dict[int, str] = {}

    async def write(writer: int) -> list[int]:
        mine = []
        for n in range(20):
            count = 1 + (writer + n) % 3
            events = [scene.event(id=f"{writer}/{n}/{k}") for k in range(count)]
            last = await scene.store.append("ab"[writer % 2], events)
            if writer % 2 == 0:
                given.update({last - count + 1 + k: event.id for k, event in enumerate(events)})
            mine.append(last)
        return mine

    lasts = await asyncio.gather(*(write(writer) for writer in range(16)))
    assert all(mine == sorted(set(mine)) for mine in lasts)
    log = await scene.events("a")
    assert [event.sequence for event in log] == list(range(1, len(log) + 1))
    assert {event.sequence: event.id for event in log} == given


@case
async def an_event_comes_back_as_it_went_in(scene: Scene) -> None:
    """All of JSON, and any text, is kept."""
    await scene.session()
    data = {"text": "a\0b\n🙂", "deep": [{"n": None, "t": True}, 1.5, -3, 2**62], "": {}}
    new = NewEvent("ä\0", "tool_call_started", 12.25, "run", data, {"m": []})
    await scene.store.append("s", [new])
    assert await scene.events() == [
        Event("ä\0", "s", "run", 1, "tool_call_started", 12.25, data, {"m": []}, schema_version=1)
    ]


@case
async def a_batch_with_a_wrong_event_leaves_nothing(scene: Scene) -> None:
    """Where one event cannot be kept, none is, no number is used, and nothing else of that call happens."""
    await scene.session()
    run = await scene.run()
    bad = [scene.event(), scene.event(data={"x": NO_JSON}), scene.event()]
    await scene.refused(scene.store.append("s", bad), ValidationError)
    await scene.refused(scene.store.change_session("s", "complete", 2.0, bad), ValidationError)
    await scene.refused(scene.store.change_run("r", RunChange("start", 2.0), bad), ValidationError)
    assert await scene.events() == []
    assert (await scene.store.get_session("s")).status == "active"
    assert await scene.store.get_run("r") == run
    assert await scene.store.append("s", [scene.event()]) == 1


@case
async def an_event_is_logged_once(scene: Scene) -> None:
    """An id that the log has is not logged again: its place is answered. Other sessions may have it too."""
    await scene.session("a")
    await scene.session("b")
    first, second, third = scene.event(data={"n": 1}), scene.event(), scene.event()
    assert await scene.store.append("a", [first, second, first]) == 2
    assert await scene.store.append("a", [scene.event(id=first.id, data={"n": 2})]) == 1
    assert await scene.store.append("a", [second, third]) == 3
    assert await scene.store.append("a", [third, first]) == 1
    assert await scene.store.append("b", [first]) == 1
    assert [(event.sequence, event.id) for event in await scene.events("a")] == [
        (1, first.id),
        (2, second.id),
        (3, third.id),
    ]
    assert (await scene.events("a"))[0].data == {"n": 1}
    again = [scene.store.append("a", [third]) for _ in range(5)]
    fresh = [scene.store.append("a", [scene.event()]) for _ in range(5)]
    assert await asyncio.gather(*again, *fresh) == [3] * 5 + [4, 5, 6, 7, 8]
    assert await scene.sequences("a") == list(range(1, 9))


@case
async def events_are_filtered(scene: Scene) -> None:
    """By number (neither end included), run, types and time; all count, the limit last."""
    await scene.session()
    kinds = ("message_sent", "message_streamed", "turn_completed")
    for n in range(12):
        event = scene.event(kinds[n % 3], run_id=f"r{n % 2}", timestamp=float(n))
        await scene.store.append("s", [event])
    for filters, expected in (
        ({}, list(range(1, 13))),
        ({"after": 10}, [11, 12]),
        ({"after": 12}, []),
        ({"after": 99}, []),
        ({"before": 3}, [1, 2]),
        ({"after": 3, "before": 6}, [4, 5]),
        ({"after": 3, "before": 4}, []),
        ({"run_id": "r1"}, [2, 4, 6, 8, 10, 12]),
        ({"run_id": "other"}, []),
        ({"types": ("message_sent",)}, [1, 4, 7, 10]),
        ({"types": {"message_sent", "turn_completed"}, "limit": 3}, [1, 3, 4]),
        ({"types": []}, []),
        ({"since": 9.0}, [10, 11, 12]),
        ({"limit": 2}, [1, 2]),
        ({"limit": 0}, []),
        ({"after": 2, "limit": 2}, [3, 4]),
        ({"after": 1, "before": 12, "run_id": "r0", "types": kinds[:2], "since": 3.0, "limit": 2}, [5, 7]),
    ):
        assert await scene.sequences(**filters) == expected, filters


@case
async def only_the_present_attempt_may_write(scene: Scene) -> None:
    """A run writes while it is in flight in that attempt, to its own session: `StaleFence` otherwise."""
    await scene.session("s")
    await scene.session("other")
    await scene.run()

    async def stale(session_id: str = "s", run_id: str = "r", attempt: int | None = 1) -> None:
        append = scene.store.append(session_id, [scene.event()], run_id=run_id, attempt=attempt)
        await scene.refused(append, StaleFence)

    await stale(attempt=0)
    await stale()
    await scene.changed("r", "start")
    assert await scene.store.append("s", [scene.event()], run_id="r", attempt=1) == 1
    assert await scene.store.append("s", [scene.event()], run_id="r") == 2
    await scene.changed("r", "pause")
    assert await scene.store.append("s", [scene.event()], run_id="r", attempt=1) == 3
    await stale(attempt=2)
    await stale("other")
    await stale(run_id="unknown")
    await scene.changed("r", "requeue")
    await stale()
    await scene.changed("r", "start")
    await stale()
    assert await scene.store.append("s", [scene.event()], run_id="r", attempt=2) == 4
    await scene.changed("r", "complete", attempt=2)
    await stale(attempt=2)
    await stale(attempt=None)
    assert await scene.sequences() == [1, 2, 3, 4]
    assert await scene.sequences("other") == []


@case
async def a_dead_attempt_is_refused_among_others(scene: Scene) -> None:
    """Also where its late writes and those of the present attempt are asked for at once."""
    await scene.session()
    await scene.run()
    for verb in ("start", "requeue", "start"):
        await scene.changed("r", verb)
    calls = [
        scene.store.append("s", [scene.event()], run_id="r" if n % 2 else None, attempt=1 if n == 11 else 2)
        for n in range(20)
    ]
    done = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(done.pop(11), StaleFence)
    assert done == await scene.sequences() == list(range(1, 20))


@case
async def a_refusal_harms_no_neighbour(scene: Scene) -> None:
    """Of calls made at once each succeeds or fails for itself."""
    await scene.session()
    known = (await scene.append(1))[0]
    calls = []
    for n in range(30):
        session_id = "unknown" if n % 3 == 1 else "s"
        calls.append(scene.store.append(session_id, [known if n % 7 == 2 else scene.event()]))
        calls.append(scene.store.append("s", [scene.event()], run_id="unknown", attempt=1))
    done = await asyncio.gather(*calls, return_exceptions=True)
    fresh = [one for one in done if isinstance(one, int) and one > 1]
    assert fresh == list(range(2, len(fresh) + 2))
    assert [type(one) for one in done[1::2]] == [StaleFence] * 30
    assert [type(one) for one in done[2::6]] == [SessionNotFound] * 10
    assert await scene.sequences() == [1, *fresh]


@case
async def who_watches_is_told(scene: Scene) -> None:
    """After a write to that session only, in this loop, and no more after taking leave."""
    await scene.session("a")
    await scene.session("b")
    bells = Bell(), Bell(), Bell()
    leave = [scene.store.watch(name, bell) for name, bell in zip("aab", bells, strict=True)]
    leave[1]()
    leave[1]()
    await scene.settled("b")  # what was written before may be told late
    bells[2].rings = 0
    await scene.store.append("a", [scene.event()])
    await bells[0].rung()
    assert (bells[1].rings, bells[2].rings) == (0, 0)
    for write in (
        scene.store.change_session("b", "pause", 2.0, [scene.event("session_paused")]),
        scene.store.append("b", [scene.event()]),
        scene.store.delete_session("b"),
    ):
        bells[2].rings = 0
        await write
        await bells[2].rung()
    leave[0]()
    await scene.settled("a")
    bells[0].rings = 0
    await scene.store.append("a", [scene.event()])
    await scene.settled("a")
    assert bells[0].rings == 0
    leave[2]()


@case
async def a_hint_comes_after_what_it_hints_at(scene: Scene) -> None:
    """Who reads when told, and once at the start, has read everything in the end."""
    await scene.session()
    seen: list[int] = []
    bell = Bell()
    leave = scene.store.watch("s", bell)

    async def read() -> None:
        while len(seen) < 100:
            await bell.rung()
            bell.rings = 0
            seen.extend(await scene.sequences(after=len(seen)))

    reader = asyncio.create_task(read())
    await asyncio.gather(*(scene.append(1 + n % 3) for n in range(50)))
    await scene.append(1)
    async with asyncio.timeout(20):
        await reader
    leave()
    assert seen == list(range(1, len(seen) + 1))


@case
async def an_unknown_session_has_no_log(scene: Scene) -> None:
    """Reading and writing raise `SessionNotFound`; watching is allowed."""
    for call in (
        scene.store.append("s", [scene.event()]),
        scene.store.append("s", []),
        scene.store.get_events("s"),
        scene.store.get_latest_sequence("s"),
    ):
        error = await scene.refused(call, SessionNotFound)
        assert "'s'" in error.message
    scene.store.watch("s", Bell())()


@case
async def what_is_given_out_is_the_callers_own(scene: Scene) -> None:
    """Neither what was handed in nor what was given out leads to what is kept."""
    metadata, data = {"list": [1]}, {"list": [1]}
    await scene.session(metadata=metadata, tags=("t",))
    run = await scene.run(input=data, metadata=metadata)
    await scene.store.append("s", [scene.event(data=data, metadata=metadata)])
    data["list"].append(2)
    metadata["list"].append(2)
    run.input["list"].append(3)
    for _ in range(2):
        session, run = await scene.store.get_session("s"), await scene.store.get_run("r")
        [event] = await scene.events()
        for kept in (session.metadata, run.input, run.metadata, event.data, event.metadata):
            assert kept == {"list": [1]}
            kept["list"].append(4)
        for listed in await scene.store.list_runs("s"):
            listed.metadata["list"].append(4)
        for other in await scene.store.list_sessions():
            other.metadata["list"].append(4)
    changed = await scene.changed("r", "start")
    assert changed.input == {"list": [1]}
