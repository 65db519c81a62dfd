"""The program that judges the killed sessions finds whatever is wrong, and nothing where nothing is."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

CHECKER = Path(__file__).with_name("session_checker.py")
Record = dict[str, Any]


class Scene:
    """A session of two slots whose server was killed once, and what its clients wrote down."""

    def __init__(self) -> None:
        self.runs: list[Record] = []
        self.events: list[Record] = []
        self.lines: list[Record] = []
        self.session: Record = {"id": "s", "maxConcurrentRuns": 2, "lastSequence": 0}
        self.lines.append({"what": "session", "session": "s", "slots": 2})
        self.lines.append({"what": "follow", "follower": "f", "session": "s", "cursor": 0})
        self.lines.append({"what": "connected", "follower": "f"})

    def log(self, kind: str, run: Record | None = None, **data: Any) -> None:
        number = len(self.events) + 1
        event = {"id": f"e{number}", "sessionId": "s", "runId": run and run["runId"], "sequence": number}
        event |= {"type": kind, "timestamp": 1000 + number, "data": data, "metadata": {}}
        self.events.append(event)
        self.session["lastSequence"] = number
        self.lines.append(
            {"what": "seen", "follower": "f", "event": deepcopy(event), "id": number, "type": kind}
        )

    def submit(
        self, key: str, does: str = "steps", retry: str | None = None, answered: bool = True
    ) -> Record:
        number = len(self.runs) + 1
        ordered = {"key": key, "does": does, "steps": 1}
        timeout = 50 if does == "hang" else None
        run = {"runId": f"r{number}", "sessionId": "s", "number": number, "status": "pending", "attempt": 0}
        run |= {"input": ordered, "retry": retry, "timeoutMs": timeout, "output": None, "error": None}
        self.runs.append({**run, "endedAt": None})
        self.sent(key, number, ordered, retry)
        self.log("run_queued", run)
        if answered:
            self.told("accepted", key, number + 0.5, run=run["runId"], replay=False)
        return self.runs[-1]

    def sent(self, key: str, at: float, ordered: Record, retry: str | None) -> None:
        line = {"what": "submit", "key": key, "session": "s", "input": ordered, "retry": retry}
        self.lines.append({**line, "timeoutMs": None, "at": at})

    def told(self, what: str, key: str, at: float, **more: Any) -> None:
        self.lines.append({"what": what, "key": key, "at": at, **more})

    def start(self, run: Record) -> None:
        run["attempt"] += 1
        run["status"] = "running"
        self.log("run_started", run, attempt=run["attempt"])

    def step(self, run: Record) -> None:
        self.log("message_streamed", run, step=1, attempt=run["attempt"])

    def end(self, run: Record, status: str, **data: Any) -> None:
        run |= {"status": status, "endedAt": 5000}
        if status == "completed":
            run["output"] = {"steps": 1, "attempt": run["attempt"], "key": run["input"]["key"]}
        kind = "timeout" if status == "timeout" else status
        self.log(f"run_{kind}", run, **data)


def healthy() -> Scene:
    scene = Scene()
    scene.log("session_created")
    scene.log("session_started")
    first, again, cut = scene.submit("a"), scene.submit("b", retry="on_crash"), scene.submit("c")
    scene.start(first)
    scene.start(again)
    scene.step(first)
    scene.end(first, "completed")
    scene.lines.append({"what": "ended", "run": dict(first)})
    scene.start(cut)
    scene.step(again)
    scene.lines.append({"what": "killed", "sequences": {"s": len(scene.events)}})
    scene.lines.append({"what": "connected", "follower": "f"})
    scene.lines.append({"what": "backfilled", "follower": "f", "next": len(scene.events) + 1})
    scene.end(cut, "interrupted", reason="crash")
    scene.start(again)
    fails, hangs = scene.submit("d", "fail"), scene.submit("e", "hang")
    goes = scene.submit("f")
    scene.submit("g", answered=False)
    scene.told("lost", "g", 7.5)
    scene.sent("h", 8.0, {"key": "h"}, None)
    scene.told("refused", "h", 8.5, status=429, code="queue_full")
    scene.lines.append({"what": "cancel", "run": goes["runId"]})
    scene.end(goes, "cancelled")
    scene.lines.append({"what": "cancel_accepted", "run": goes["runId"], "status": "cancelled"})
    scene.start(fails)
    scene.step(again)
    scene.end(again, "completed")
    scene.end(fails, "failed")
    scene.start(hangs)
    scene.end(hangs, "timeout")
    last = scene.runs[-1]
    scene.start(last)
    scene.step(last)
    scene.end(last, "completed")
    scene.lines.append({"what": "drained", "session": "s", "since": 9.0, "upto": len(scene.events)})
    scene.told("accepted", "a", 9.5, run="r1", replay=True)
    scene.told("conflict", "a", 9.6, status=422)
    return scene


def checked(directory: Path, scene: Scene, *more: str) -> subprocess.CompletedProcess[str]:
    content = {"sessions": [scene.session], "runs": scene.runs, "events": scene.events}
    (directory / "content.json").write_text(json.dumps(content))
    (directory / "clients.jsonl").write_text("".join(json.dumps(line) + "\n" for line in scene.lines))
    return subprocess.run(
        [
            *(sys.executable, "-E", "-s", "-S", CHECKER, directory, "--content", directory / "content.json"),
            *more,
        ],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_nothing_is_found_where_nothing_is_wrong(tmp_path: Path) -> None:
    done = checked(tmp_path, healthy(), "--finished")
    assert (done.returncode, done.stderr) == (0, "")
    assert "submits acknowledged: 6\n" in done.stdout
    assert "runs: 7 (1 cancelled, 3 completed, 1 failed, 1 interrupted, 1 timeout)\n" in done.stdout
    assert "kills: 1\n" in done.stdout
    assert "reconnects: 1\n" in done.stdout


def at(scene: Scene, kind: str, nth: int = 0) -> int:
    return [n for n, event in enumerate(scene.events) if event["type"] == kind][nth]


def line(scene: Scene, what: str, nth: int = 0) -> Record:
    return [one for one in scene.lines if one["what"] == what][nth]


def gap(scene: Scene) -> None:
    del scene.events[5]


def number_twice(scene: Scene) -> None:
    scene.events[5]["sequence"] = 5


def event_twice(scene: Scene) -> None:
    scene.events.append({**scene.events[5], "sequence": len(scene.events) + 1})


def lost_at_the_end(scene: Scene) -> None:
    del scene.events[-1]
    scene.session["lastSequence"] -= 1


def counter_ahead(scene: Scene) -> None:
    scene.session["lastSequence"] += 1


def lost_submit(scene: Scene) -> None:
    scene.runs = scene.runs[1:]


def lost_session(scene: Scene) -> None:
    scene.lines.append({"what": "session", "session": "other", "slots": 1})


def second_run_of_a_key(scene: Scene) -> None:
    scene.runs.append({**scene.runs[0], "runId": "r8", "number": 8})


def two_answers_to_a_key(scene: Scene) -> None:
    line(scene, "accepted", -1)["run"] = "r2"


def conflict_taken(scene: Scene) -> None:
    line(scene, "conflict")["status"] = 202


def refused_is_there(scene: Scene) -> None:
    line(scene, "lost")["what"] = "refused"
    line(scene, "refused").update(status=429, code="queue_full")


def refused_with_500(scene: Scene) -> None:
    line(scene, "refused")["status"] = 500


def nobody_sent_it(scene: Scene) -> None:
    scene.lines = [one for one in scene.lines if one["what"] != "submit" or one["key"] != "g"]


def other_input(scene: Scene) -> None:
    scene.runs[3]["input"] = {**scene.runs[3]["input"], "steps": 7}


def second_end(scene: Scene) -> None:
    number = len(scene.events) + 1
    scene.events.append({**scene.events[at(scene, "run_failed")], "id": "late", "sequence": number})


def other_end(scene: Scene) -> None:
    scene.events[at(scene, "run_failed")]["type"] = "run_completed"


def end_never_stored(scene: Scene) -> None:
    scene.runs[3]["status"] = "running"


def pending_for_ever(scene: Scene) -> None:
    first = at(scene, "run_started", -1)
    scene.events = scene.events[:first]
    scene.session["lastSequence"] = first
    scene.runs[-1] |= {"status": "pending", "attempt": 0, "output": None, "endedAt": None}
    scene.lines = [
        one
        for one in scene.lines
        if one["what"] not in ("drained", "seen") or one.get("id", first + 1) <= first
    ]


def status_changed(scene: Scene) -> None:
    line(scene, "ended")["run"]["status"] = "failed"


def output_changed(scene: Scene) -> None:
    scene.runs[0]["output"]["steps"] = 2


def cancelled_came_back(scene: Scene) -> None:
    line(scene, "cancel_accepted")["run"] = "r4"


def nobody_cancelled_it(scene: Scene) -> None:
    scene.lines.remove(line(scene, "cancel"))


def nobody_interrupted_it(scene: Scene) -> None:
    scene.events[at(scene, "run_interrupted")]["data"]["reason"] = "requested"


def swap(scene: Scene, one: int, other: int) -> None:
    events = scene.events
    for name in ("id", "type", "runId", "data"):
        events[one][name], events[other][name] = events[other][name], events[one][name]


def started_out_of_order(scene: Scene) -> None:
    swap(scene, at(scene, "run_started", 0), at(scene, "run_started", 1))


def retried_lost_its_place(scene: Scene) -> None:
    swap(scene, at(scene, "run_started", 3), at(scene, "run_started", 4))


def accepted_out_of_order(scene: Scene) -> None:
    line(scene, "submit", 1)["at"] = 5.0


def over_slots(scene: Scene) -> None:
    scene.session["maxConcurrentRuns"] = 1
    line(scene, "session")["slots"] = 1


def other_slots(scene: Scene) -> None:
    line(scene, "session")["slots"] = 3


def event_after_the_end(scene: Scene) -> None:
    swap(scene, at(scene, "message_streamed", 0), at(scene, "run_completed", 0))


def event_of_a_dead_attempt(scene: Scene) -> None:
    scene.events[at(scene, "message_streamed", 2)]["data"]["attempt"] = 1


def lost_step(scene: Scene) -> None:
    scene.events[at(scene, "message_streamed", 2)]["data"]["step"] = 2


def attempt_not_counted(scene: Scene) -> None:
    scene.events[at(scene, "run_started", 3)]["data"]["attempt"] = 1


def cut_off_goes_on(scene: Scene) -> None:
    scene.events[at(scene, "run_interrupted")]["type"] = "message_sent"


def interrupted_without_a_kill(scene: Scene) -> None:
    scene.lines.remove(line(scene, "killed"))


def not_run_again(scene: Scene) -> None:
    scene.runs[2]["retry"] = "on_crash"
    for one in scene.lines:
        if one["what"] == "submit" and one["key"] == "c":
            one["retry"] = "on_crash"


def fails_by_itself(scene: Scene) -> None:
    scene.runs[3]["input"]["does"] = "steps"


def started_twice(scene: Scene) -> None:
    number = len(scene.events) + 1
    scene.events.append({**scene.events[1], "id": "again", "sequence": number})


def seen_and_lost(scene: Scene) -> None:
    number = len(scene.events) + 1
    ghost = {**scene.events[-1], "id": "ghost", "sequence": number}
    scene.lines.append({"what": "seen", "follower": "f", "event": ghost, "id": number, "type": ghost["type"]})


def seen_otherwise(scene: Scene) -> None:
    line(scene, "seen", 4)["event"]["data"] = {"other": 1}


def missed_by_a_follower(scene: Scene) -> None:
    scene.lines.remove(line(scene, "seen", 4))


def given_twice(scene: Scene) -> None:
    scene.lines.append(line(scene, "seen", -1))


def not_given_the_end(scene: Scene) -> None:
    scene.lines.remove(line(scene, "seen", -1))


def backlog_over_too_soon(scene: Scene) -> None:
    line(scene, "backfilled")["next"] += 1


def drained_too_soon(scene: Scene) -> None:
    line(scene, "drained")["upto"] = at(scene, "run_timeout") - 1


@pytest.mark.parametrize(
    ("mutation", "rule"),
    [
        (gap, "gap"),
        (number_twice, "duplicate"),
        (event_twice, "duplicate"),
        (lost_at_the_end, "lost"),
        (counter_ahead, "last"),
        (lost_submit, "lost"),
        (lost_session, "lost"),
        (second_run_of_a_key, "twice"),
        (two_answers_to_a_key, "key"),
        (conflict_taken, "key"),
        (refused_is_there, "refused"),
        (refused_with_500, "refusal"),
        (nobody_sent_it, "invented"),
        (other_input, "content"),
        (second_end, "one end"),
        (other_end, "status"),
        (end_never_stored, "status"),
        (pending_for_ever, "unfinished"),
        (status_changed, "changed"),
        (output_changed, "output"),
        (cancelled_came_back, "changed"),
        (nobody_cancelled_it, "cause"),
        (nobody_interrupted_it, "cause"),
        (started_out_of_order, "order"),
        (retried_lost_its_place, "order"),
        (accepted_out_of_order, "order"),
        (over_slots, "slots"),
        (other_slots, "content"),
        (event_after_the_end, "fence"),
        (event_of_a_dead_attempt, "fence"),
        (lost_step, "step"),
        (attempt_not_counted, "attempt"),
        (cut_off_goes_on, "fence"),
        (interrupted_without_a_kill, "crash"),
        (not_run_again, "crash"),
        (fails_by_itself, "cause"),
        (started_twice, "once"),
        (seen_and_lost, "lost"),
        (seen_otherwise, "changed"),
        (missed_by_a_follower, "follower"),
        (given_twice, "follower"),
        (not_given_the_end, "follower"),
        (backlog_over_too_soon, "follower"),
        (drained_too_soon, "drain"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_what_is_wrong_is_found(tmp_path: Path, mutation: Callable[[Scene], None], rule: str) -> None:
    scene = healthy()
    mutation(scene)
    done = checked(tmp_path, scene, "--finished")
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"\n{rule}: " in f"\n{done.stdout}"
    assert done.stderr.endswith(" violations\n")


def test_two_readings_that_differ_are_found(tmp_path: Path) -> None:
    scene = healthy()
    assert checked(tmp_path, scene).returncode == 0
    (tmp_path / "content.json").rename(tmp_path / "first.json")
    scene.events[3]["metadata"] = {"new": 1}
    done = checked(tmp_path, scene, "--content", f"{tmp_path / 'first.json'}")
    assert done.returncode == 1
    assert "two readings: " in done.stdout


def test_it_cannot_see_the_package(tmp_path: Path) -> None:
    """Nothing that Interlock believes of itself can get into its judgement."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); import session_checker, interlock"
    done = subprocess.run(
        [sys.executable, "-E", "-s", "-S", "-c", code, f"{CHECKER.parent}"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        cwd=tmp_path,
    )
    assert "No module named 'interlock'" in done.stderr
