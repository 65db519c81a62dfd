"""Cases: runs. Their numbers, what a verb does from each status, idempotency keys, room, and lists."""

from __future__ import annotations

import asyncio

from interlock.core.runs import ENDED, EVENT_OF, RUN_MOVES
from interlock.core.sessions import Run, RunChange
from interlock.errors import InvalidOperation, InvalidStatus, QueueFull, RunNotFound, SessionNotFound
from interlock.testing.store_conformance_scene import WAYS, Scene, case


@case
async def a_run_comes_back_as_it_went_in(scene: Scene) -> None:
    """With all its fields, and its place among the session's runs."""
    await scene.session()
    run = Run(
        "r",
        "s",
        input={"prompt": ["a\0", None]},
        number=77,
        metadata={"m": 1},
        priority=-3,
        timeout=2.5,
        retry="on_crash",
        idempotency_key="k",
        submitted_at=1.25,
    )
    stored, new = await scene.store.submit_run(run, [scene.event("run_queued", run_id="r")])
    assert new
    assert (stored.number, stored.status, stored.attempt) == (1, "pending", 0)
    assert (stored.input, stored.metadata) == (run.input, run.metadata)
    assert (stored.priority, stored.timeout, stored.retry, stored.idempotency_key) == (
        -3,
        2.5,
        "on_crash",
        "k",
    )
    assert (stored.submitted_at, stored.started_at, stored.ended_at, stored.waited) == (
        1.25,
        None,
        None,
        None,
    )
    assert (stored.output, stored.error, stored.token_usage) == (None, None, {})
    assert await scene.store.get_run("r") == stored
    assert [event.type for event in await scene.events(run_id="r")] == ["run_queued"]


@case
async def runs_are_numbered_in_their_session(scene: Scene) -> None:
    """From 1, in the order of the calls, however many submit at once."""
    await scene.session("a")
    await scene.session("b")
    runs = [Run(f"{name}{n}", name) for n in range(20) for name in ("a", "b")]
    stored = await asyncio.gather(*(scene.store.submit_run(run) for run in runs))
    for name in ("a", "b"):
        mine = [run for run, _ in stored if run.session_id == name]
        assert [(run.id, run.number) for run in mine] == [(f"{name}{n}", n + 1) for n in range(20)]
        assert await scene.store.list_runs(name) == mine


@case
async def a_verb_moves_a_run_only_from_where_it_may(scene: Scene) -> None:
    """Every verb from every status: it leads where the table says, or changes nothing and logs nothing."""
    await scene.session()
    for status in WAYS:
        for verb, (before, after) in RUN_MOVES.items():
            run = await scene.run_in(status, f"{status}/{verb}")
            logged = await scene.store.get_latest_sequence("s")
            event = scene.event(EVENT_OF.get(verb, "turn_completed"), run_id=run.id)
            done = await scene.store.change_run(run.id, RunChange(verb, 5.0, output="x"), [event])
            kept = await scene.store.get_run(run.id)
            if status in before:
                assert done is not None, run.id
                assert (done.status, done.output, done.number) == (after, "x", run.number), run.id
                assert done == kept, run.id
                assert await scene.store.get_latest_sequence("s") == logged + 1, run.id
            else:
                assert done is None, run.id
                assert kept == run, run.id
                assert await scene.store.get_latest_sequence("s") == logged, run.id


@case
async def a_change_of_another_attempt_does_nothing(scene: Scene) -> None:
    """The attempt is the fence of changes too; start counts it up, requeue keeps number and attempt."""
    await scene.session()
    await scene.run()
    assert (await scene.changed("r", "start", attempt=0)).attempt == 1
    requeued = await scene.changed("r", "requeue", attempt=1)
    assert (requeued.status, requeued.attempt, requeued.number) == ("pending", 1, 1)
    assert (await scene.changed("r", "start", attempt=1)).attempt == 2
    for attempt in (0, 1, 3):
        change = RunChange("complete", 2.0, attempt, output="late")
        assert await scene.store.change_run("r", change, [scene.event("run_completed")]) is None
    assert await scene.events() == []
    done = await scene.changed("r", "complete", attempt=2, output="right")
    assert (done.status, done.output) == ("completed", "right")


@case
async def a_change_sets_times_usage_and_results(scene: Scene) -> None:
    """What a change says is kept, usage is added up, and what it does not say stays as it was."""
    await scene.session()
    await scene.run(submitted_at=1.0)
    run = await scene.changed("r", "start", 3.5, waited=2.5)
    assert (run.started_at, run.ended_at, run.waited) == (3.5, None, 2.5)
    await scene.changed("r", "pause", 4.0, token_usage={"input_tokens": 1})
    await scene.changed("r", "resume", 5.0, token_usage={"input_tokens": 2, "output_tokens": 7})
    await scene.changed("r", "requeue", 6.0)
    run = await scene.changed("r", "start", 7.0, waited=6.0)
    assert (run.started_at, run.waited, run.submitted_at) == (7.0, 6.0, 1.0)
    run = await scene.changed("r", "fail", 8.0, error={"code": "c", "message": "m"}, output=[1])
    assert (run.started_at, run.ended_at, run.waited) == (7.0, 8.0, 6.0)
    assert (run.output, run.error) == ([1], {"code": "c", "message": "m"})
    assert run.token_usage == {"input_tokens": 3, "output_tokens": 7}
    assert await scene.store.get_run("r") == run
    assert (await scene.store.get_session("s")).updated_at == 8.0


@case
async def one_end_wins(scene: Scene) -> None:
    """Of ends that race for a run, one is written, and one event."""
    await scene.session()
    verbs = [verb for verb, (_, after) in RUN_MOVES.items() if after in ENDED]
    for n in range(10):
        await scene.run_in("running", f"r{n}")
        done = await asyncio.gather(
            *(
                scene.store.change_run(f"r{n}", RunChange(verb, 2.0), [scene.event(EVENT_OF[verb])])
                for verb in verbs[n % 5 :] + verbs[: n % 5]
            )
        )
        [winner] = [run for run in done if run is not None]
        assert await scene.store.get_run(f"r{n}") == winner
        assert await scene.store.get_latest_sequence("s") == n + 1


@case
async def a_key_finds_the_run_that_has_it(scene: Scene) -> None:
    """The same key in the same session: the first run, and nothing written; also when all has ended."""
    await scene.session("a")
    await scene.session("b")
    first = await scene.run("r1", "a", idempotency_key="k", input=1)
    again = Run("r2", "a", idempotency_key="k", input=2)
    assert await scene.store.submit_run(again, [scene.event("run_queued")], room=0) == (first, False)
    await scene.run("r3", "b", idempotency_key="k")
    await scene.changed("r1", "start")
    ended = await scene.changed("r1", "complete", output="x")
    assert await scene.store.submit_run(again, [scene.event("run_queued")]) == (ended, False)
    await scene.store.change_session("a", "complete", 2.0)
    assert await scene.store.submit_run(again, [scene.event("run_queued")]) == (ended, False)
    assert await scene.events("a") == []
    assert [run.id for run in await scene.store.list_runs("a")] == ["r1"]
    await scene.refused(scene.store.get_run("r2"), RunNotFound)


@case
async def a_key_is_given_once_among_many(scene: Scene) -> None:
    """Of calls made at once with one key, one is new and all get its run."""
    await scene.session()
    runs = [Run(f"r{n}", "s", idempotency_key="k") for n in range(20)]
    done = await asyncio.gather(*(scene.store.submit_run(run, [scene.event("run_queued")]) for run in runs))
    assert [new for _, new in done] == [True] + [False] * 19
    assert {run.id for run, _ in done} == {"r0"}
    assert await scene.sequences() == [1]
    assert (await scene.run("next")).number == 2


@case
async def a_run_is_written_once(scene: Scene) -> None:
    """An id that is known is given back in its session, and refused in another."""
    await scene.session("a")
    await scene.session("b")
    run = await scene.run("r", "a")
    assert await scene.store.submit_run(Run("r", "a", input="x"), [scene.event()]) == (run, False)
    await scene.refused(scene.store.submit_run(Run("r", "b"), [scene.event()]), InvalidOperation)
    assert await scene.events("a") == await scene.events("b") == []
    assert (await scene.run("next", "b")).number == 1


@case
async def there_is_room_for_so_many_unfinished_runs(scene: Scene) -> None:
    """`QueueFull` where that many have not ended, and nothing is written; an end makes room."""
    await scene.session("s")
    await scene.session("other")
    await scene.run("elsewhere", "other")
    await scene.refused(scene.store.submit_run(Run("r", "s"), room=0), QueueFull)
    for id_ in ("pending", "running", "paused"):
        await scene.run_in(id_, id_)
    await scene.run_in("failed", "failed")
    refused = scene.store.submit_run(Run("r", "s"), [scene.event("run_queued")], room=3)
    await scene.refused(refused, QueueFull)
    await scene.refused(scene.store.get_run("r"), RunNotFound)
    assert await scene.events() == []
    await scene.changed("pending", "cancel")
    stored, _ = await scene.store.submit_run(Run("r", "s"), [scene.event("run_queued")], room=3)
    assert stored.number == 5
    await scene.refused(scene.store.submit_run(Run("r2", "s"), room=3), QueueFull)


@case
async def an_ended_session_takes_no_run(scene: Scene) -> None:
    """`InvalidStatus`, and nothing is written; an unknown one: `SessionNotFound`."""
    await scene.session()
    await scene.store.change_session("s", "fail", 2.0)
    refused = scene.store.submit_run(Run("r", "s"), [scene.event("run_queued")])
    await scene.refused(refused, InvalidStatus)
    assert await scene.store.list_runs("s") == []
    assert await scene.events() == []
    await scene.refused(scene.store.submit_run(Run("r", "unknown")), SessionNotFound)


@case
async def runs_are_listed_by_submission(scene: Scene) -> None:
    """Of one session or of all, by status, in pages."""
    await scene.session("a")
    await scene.session("b")
    for n in range(12):
        await scene.run(f"r{n:02}", "ab"[n % 2], submitted_at=float(-n))
    for n in (0, 1, 4):
        await scene.changed(f"r{n:02}", "start")
    await scene.changed("r04", "complete")

    async def ids(session_id: str | None = None, **filters: object) -> list[int]:
        listed = await scene.store.list_runs(session_id, **filters)  # type: ignore[arg-type]
        return [int(run.id[1:]) for run in listed]

    assert await ids() == list(range(12))
    assert await ids("a") == [0, 2, 4, 6, 8, 10]
    assert await ids("unknown") == []
    assert await ids(statuses=["running"]) == [0, 1]
    assert await ids("a", statuses=["running", "completed"]) == [0, 4]
    assert await ids("a", statuses={"pending", "running"}) == [0, 2, 6, 8, 10]
    assert await ids("a", statuses=()) == []
    assert await ids("a", limit=2) == [0, 2]
    assert await ids("a", after="r02", limit=2) == [4, 6]
    assert await ids("a", after="r04", statuses=["pending"], limit=2) == [6, 8]
    assert await ids("a", after="r10") == []
    assert await ids(after="r09") == [10, 11]
    assert await ids(limit=0) == []
    await scene.changed("r00", "requeue")
    assert await ids("a", statuses=["pending"]) == [0, 2, 6, 8, 10]
    await scene.refused(scene.store.list_runs(after="unknown"), RunNotFound)
    await scene.refused(scene.store.list_runs("a", after="unknown"), RunNotFound)


@case
async def an_unknown_run_is_not_found(scene: Scene) -> None:
    """Reading and changing raise `RunNotFound`, which names it."""
    for call in (scene.store.get_run("r"), scene.store.change_run("r", RunChange("start", 1.0))):
        error = await scene.refused(call, RunNotFound)
        assert "'r'" in error.message
