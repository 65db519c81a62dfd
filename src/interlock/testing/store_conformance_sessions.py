"""Cases: sessions, their ends, their removal, what retention does with them, and a closed store."""

from __future__ import annotations

import asyncio
from typing import get_args

from interlock.core.runs import LIFECYCLE, SESSION_MOVES, SessionStatus
from interlock.core.sessions import Pruned, Retention, Run, RunChange, Session
from interlock.errors import RunNotFound, SessionNotFound, Unavailable, ValidationError
from interlock.testing.store_conformance_scene import NO_JSON, Bell, Scene, case

DAY = 86_400.0


@case
async def a_session_comes_back_as_it_went_in(scene: Scene) -> None:
    """With all its fields, and its first events."""
    session = Session(
        "ä\0",
        "pending",
        agent_id="coder",
        max_concurrent_runs=3,
        max_queued_runs=0,
        collision="rollback",
        metadata={"a": [1, None]},
        tags=("pinned", "🙂"),
        created_at=1.25,
        updated_at=1.5,
        last_sequence=99,
    )
    stored = await scene.store.create_session(session, [scene.event("session_created")])
    assert (stored.last_sequence, stored.updated_at) == (1, 1.5)
    for name in ("id", "status", "agent_id", "max_concurrent_runs", "max_queued_runs", "collision"):
        assert getattr(stored, name) == getattr(session, name), name
    assert (stored.metadata, stored.tags, stored.created_at) == (session.metadata, session.tags, 1.25)
    assert await scene.store.get_session("ä\0") == stored
    assert [event.type for event in await scene.events("ä\0")] == ["session_created"]


@case
async def a_session_is_created_once(scene: Scene) -> None:
    """Where the id is known, what is there is given back and nothing is written."""
    done = await asyncio.gather(
        *(
            scene.store.create_session(
                Session("s", "pending", metadata={"n": n}), [scene.event("session_created")]
            )
            for n in range(10)
        )
    )
    assert [session.metadata for session in done] == [{"n": 0}] * 10
    assert await scene.sequences() == [1]
    wrong = scene.store.create_session(Session("t", "pending", metadata={"x": NO_JSON}))
    await scene.refused(wrong, ValidationError)
    wrong = scene.store.create_session(Session("t", "pending"), [scene.event(data={"x": NO_JSON})])
    await scene.refused(wrong, ValidationError)
    await scene.refused(scene.store.get_session("t"), SessionNotFound)


@case
async def a_verb_moves_a_session_only_from_where_it_may(scene: Scene) -> None:
    """Every verb from every status: it leads where the table says, or changes nothing and logs nothing."""
    for status in get_args(SessionStatus):
        for verb, (before, after) in SESSION_MOVES.items():
            session = await scene.session(f"{status}/{verb}", status)
            done = await scene.store.change_session(session.id, verb, 5.0, [scene.event()])
            kept = await scene.store.get_session(session.id)
            if status in before:
                assert done is not None, session.id
                assert (done.status, done.updated_at, done.last_sequence) == (after, 5.0, 1), session.id
                assert done == kept, session.id
            else:
                assert done is None, session.id
                assert kept == session, session.id
                assert await scene.events(session.id) == [], session.id


@case
async def an_unknown_session_is_not_found(scene: Scene) -> None:
    """Reading and changing raise `SessionNotFound`, which names it; deleting finds nothing to do."""
    for call in (scene.store.get_session("s"), scene.store.change_session("s", "activate", 1.0)):
        error = await scene.refused(call, SessionNotFound)
        assert "'s'" in error.message
    await scene.store.delete_session("s")


@case
async def sessions_are_listed_by_creation(scene: Scene) -> None:
    """Then by id; by status, in pages."""
    for id_, created in (("c", 1.0), ("a", 2.0), ("d", 1.0), ("b", 2.0), ("e", 0.5)):
        await scene.session(id_, "pending" if id_ in "ab" else "active", created_at=created)
    await scene.store.change_session("d", "pause", 9.0)

    async def ids(**filters: object) -> str:
        return "".join([session.id for session in await scene.store.list_sessions(**filters)])  # type: ignore[arg-type]

    assert await ids() == "ecdab"
    assert await ids(statuses=["pending", "paused"]) == "dab"
    assert await ids(statuses=[]) == ""
    assert await ids(limit=2) == "ec"
    assert await ids(after="c", limit=2) == "da"
    assert await ids(after="c", statuses={"pending"}, limit=1) == "a"
    assert await ids(after="b") == ""
    assert await ids(limit=0) == ""
    await scene.refused(scene.store.list_sessions(after="x"), SessionNotFound)
    await scene.store.delete_session("c")
    assert await ids() == "edab"


@case
async def a_deleted_session_is_gone_with_all_it_had(scene: Scene) -> None:
    """Its runs, its events and its keys; its neighbours stay, and the id begins anew."""
    for id_ in ("a", "b"):
        await scene.session(id_)
        await scene.append(3, id_)
        await scene.run(f"run-{id_}", id_, idempotency_key="k")
    await scene.store.delete_session("a")
    await scene.store.delete_session("a")
    for call in (
        scene.store.get_session("a"),
        scene.store.get_events("a"),
        scene.store.append("a", [scene.event()]),
        scene.store.submit_run(Run("r", "a")),
    ):
        await scene.refused(call, SessionNotFound)
    for of_run in (
        scene.store.get_run("run-a"),
        scene.store.change_run("run-a", RunChange("start", 2.0)),
    ):
        await scene.refused(of_run, RunNotFound)
    assert [run.id for run in await scene.store.list_runs()] == ["run-b"]
    assert await scene.sequences("b") == [1, 2, 3]
    again = await scene.session("a")
    assert again.last_sequence == 0
    assert (await scene.run("run-a", "a", idempotency_key="k")).number == 1
    assert await scene.events("a") == []


@case
async def ended_sessions_are_hidden_then_removed(scene: Scene) -> None:
    """After their ages, counted from the last touch; those with an exempt tag stay, as do unfinished ones."""
    keep = Retention(completed_age=90 * DAY, deleted_age=30 * DAY)
    for id_, tags in (("done", ()), ("pinned", ("x", "pinned")), ("touched", ()), ("active", ())):
        await scene.session(id_, tags=tags)
        await scene.run(f"run-{id_}", id_)
        if id_ != "active":
            await scene.store.change_session(id_, "complete", 0.0)
    at_once = [[scene.event(timestamp=at)] for at in (1.0, 5.0, 2.0, 5.0, 3.0)]
    await asyncio.gather(*(scene.store.append("touched", events) for events in at_once))
    assert await scene.store.prune(keep, 90 * DAY) == Pruned()
    bell = Bell()
    leave = scene.store.watch("done", bell)
    assert await scene.store.prune(keep, 90 * DAY + 1.0) == Pruned(hidden_sessions=1)
    await bell.rung()
    leave()
    listed = [session.id for session in await scene.store.list_sessions()]
    assert listed == ["active", "pinned", "touched"]
    for call in (
        scene.store.get_session("done"),
        scene.store.get_events("done"),
        scene.store.get_latest_sequence("done"),
        scene.store.append("done", [scene.event()]),
    ):
        await scene.refused(call, SessionNotFound)
    await scene.refused(scene.store.get_run("run-done"), RunNotFound)
    assert "run-done" not in [run.id for run in await scene.store.list_runs()]
    assert (await scene.session("done")).status == "completed", "a hidden id is not free yet"
    assert await scene.store.prune(keep, 120 * DAY) == Pruned(hidden_sessions=1)
    assert await scene.store.prune(keep, 120 * DAY + 1.0) == Pruned(removed_sessions=1)
    assert (await scene.session("done")).status == "active"
    assert await scene.store.prune(keep, 120 * DAY + 1.0) == Pruned()


@case
async def what_is_kept_for_ever_stays(scene: Scene) -> None:
    """An age of None never passes; a hidden session can be deleted."""
    await scene.session()
    await scene.store.change_session("s", "complete", 0.0)
    assert await scene.store.prune(Retention(completed_age=None), 1e9) == Pruned()
    assert await scene.store.prune(Retention(completed_age=0.0), 1e9) == Pruned(hidden_sessions=1)
    assert await scene.store.prune(Retention(deleted_age=None), 1e12) == Pruned()
    await scene.store.delete_session("s")
    assert (await scene.session()).status == "active"


@case
async def a_long_log_is_thinned_out(scene: Scene) -> None:
    """First what is of little worth, then the oldest; lifecycle events stay, and no number is used again."""
    await scene.session()
    await scene.session("pinned", tags=("pinned",))
    await scene.append(20, "pinned")
    await scene.store.append("s", [scene.event("run_started")])
    for n in range(4):
        await scene.append(1, type_="message_streamed" if n % 2 else "message_sent")
    await scene.store.append("s", [scene.event("run_completed"), scene.event("token_usage_updated")])
    ids = {event.sequence: event.id for event in await scene.events()}
    for most, left in (
        (7, [1, 2, 3, 4, 5, 6, 7]),
        (6, [1, 2, 4, 5, 6, 7]),
        (4, [1, 2, 4, 6]),
        (3, [1, 4, 6]),
    ):
        before = len(await scene.events())
        pruned = await scene.store.prune(Retention(max_events_per_session=most), 2.0)
        assert pruned == Pruned(removed_events=before - len(left)), most
        assert await scene.sequences() == left, most
    assert await scene.store.prune(Retention(max_events_per_session=0), 2.0) == Pruned(removed_events=1)
    assert {event.type for event in await scene.events()} <= LIFECYCLE
    assert {event.sequence: event.id for event in await scene.events()} == {1: ids[1], 6: ids[6]}
    assert await scene.store.get_latest_sequence("s") == 7
    assert await scene.store.append("s", [scene.event()]) == 8
    assert await scene.sequences(after=2) == [6, 8]
    assert len(await scene.events("pinned")) == 20


@case
async def a_closed_store_says_so(scene: Scene) -> None:
    """Every call raises `Unavailable`; who watches is told once more; closing again does nothing."""
    await scene.session()
    bell = Bell()
    leave = scene.store.watch("s", bell)
    bell.rings = 0
    await scene.store.aclose()
    await scene.store.aclose()
    await bell.rung()
    leave()
    for call in (
        scene.store.create_session(Session("s", "pending")),
        scene.store.change_session("s", "complete", 1.0),
        scene.store.delete_session("s"),
        scene.store.submit_run(Run("r", "s")),
        scene.store.change_run("r", RunChange("start", 1.0)),
        scene.store.append("s", [scene.event()]),
        scene.store.get_session("s"),
        scene.store.list_sessions(),
        scene.store.get_run("r"),
        scene.store.list_runs(),
        scene.store.get_events("s"),
        scene.store.get_latest_sequence("s"),
        scene.store.prune(Retention(), 1.0),
        scene.store.get("k"),
    ):
        await scene.refused(call, Unavailable)
