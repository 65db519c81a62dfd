"""Whether a server of sessions kept what it promised: a program that shares no code with Interlock.

    python -E -s -S session_checker.py HISTORIES --database interlock.db [--url http://…] [--finished]

HISTORIES is a directory of ``*.jsonl`` files, in which the clients wrote down what they did and what they
were told, each line before anything that followed from it:

=================  =====================================================================================
``session``        a session was made: ``session``, ``slots``
``submit``         a request was sent: ``key``, ``session``, ``input``, ``retry``, ``timeoutMs``, ``at``
``accepted``       it was acknowledged: ``key``, ``run``, ``replay``, ``at``
``refused``        it was refused: ``key``, ``status``, ``code``
``lost``           no answer came: ``key``
``conflict``       a known key was sent with another body: ``key``, ``status``
``cancel``         a cancel was sent: ``run``; ``cancel_accepted`` adds the ``status`` that was answered
``interrupt``      an interrupt was sent: ``run``
``ended``          a run was seen that had ended: ``run``, as the server gave it
``follow``         a subscriber began: ``follower``, ``session``, ``cursor`` (the last one not asked for)
``seen``           it was given an ``event``, with the ``id`` and ``type`` that it was sent under
``backfilled``     it was told that its backlog was over: ``next``; also ``connected`` and ``cut``
``drained``        a session was drained: ``session``, ``since`` (when asked for), ``upto`` (its log then)
``killed``         the server is dead: ``sequences`` are the ends of the logs; ``stopped``: by SIGTERM
``started``        the server is there; ``full``: it has no room on its disk
=================  =====================================================================================

``at`` is the system's monotonic clock. What is stored is read from the SQLite file, over HTTP or from a JSON
file; given more than one of them, they have to agree. ``--finished`` says that nothing was left to do.

Every violation is printed with its evidence, and the exit code is 1 if there is one; else the counts, and 0.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from histories import Findings
from session_content import (
    Content,
    History,
    Record,
    alike,
    compare,
    from_database,
    from_file,
    from_server,
)

ENDS = {
    "run_completed": "completed",
    "run_failed": "failed",
    "run_cancelled": "cancelled",
    "run_interrupted": "interrupted",
    "run_timeout": "timeout",
}
REFUSALS = (429, 503, 507)  # no room, no server now, no disk
WAITING, IN_FLIGHT, CUT_OFF, ENDED = "waiting", "in flight", "cut off by a kill", "ended"
STATUSES = {WAITING: {"pending"}, IN_FLIGHT: {"running", "paused"}, CUT_OFF: {"running", "paused"}}


# -- the log of a session ------------------------------------------------------------------------------------


@dataclass
class Life:
    """One run, as far as its session's log has told."""

    run: Record
    state: str = ""
    attempt: int = 0
    steps: int = 0
    cut_off: int = 0


class LogCheck:
    """Reads one session's log from its beginning and says where it cannot have been so.

    *kills* are the sequence numbers at which the log ended when a server died. *asked* has the runs that a
    client wanted to end, by the status that it wanted.
    """

    def __init__(
        self, content: Content, session: Record, kills: list[int], asked: dict[str, set[str]], found: Findings
    ) -> None:
        self.name = session["id"]
        self.slots = session["maxConcurrentRuns"]
        self.log = content.logs[self.name]
        self.lives = {
            run["runId"]: Life(run) for run in content.runs.values() if run["sessionId"] == self.name
        }
        self.kills = sorted(kills, reverse=True)
        self.asked = asked
        self.found = found
        self.queued = 0
        self.waiting: dict[int, Life] = {}
        self.flying: dict[int, Life] = {}
        """Those that wait and those in flight, by their numbers."""

    def check(self) -> None:
        self._sequences()
        for event in self.log:
            while self.kills and self.kills[-1] < event["sequence"]:
                self.kills.pop()
                self._kill()
            self._event(event)
        for _ in self.kills:
            self._kill()
        self._numbers()
        for life in self.lives.values():
            self._result(life)

    def _add(self, rule: str, text: str, *evidence: Any) -> None:
        self.found.add(rule, f"session {self.name}: {text}", *evidence)

    def _sequences(self) -> None:
        last: Record = {"sequence": 0}
        ids: dict[str, Record] = {}
        for event in self.log:
            if event["sequence"] == last["sequence"]:
                self._add("duplicate", f"two events have sequence {event['sequence']}", last, event)
            elif event["sequence"] != last["sequence"] + 1:
                self._add("gap", f"after {last['sequence']} comes {event['sequence']}", last, event)
            if event["id"] in ids:
                self._add("duplicate", "one event is there twice", ids[event["id"]], event)
            ids[event["id"]] = last = event
        for kind in ("session_created", "session_started"):
            there = [event for event in self.log if event["type"] == kind]
            if len(there) != 1:
                self._add("once", f"{kind} is there {len(there)} times", *there)

    def _kill(self) -> None:
        for life in tuple(self.flying.values()):
            self._become(life, WAITING if life.run["retry"] == "on_crash" else CUT_OFF)
            life.cut_off += 1

    def _become(self, life: Life, state: str) -> None:
        life.state = state
        for named, group in ((WAITING, self.waiting), (IN_FLIGHT, self.flying)):
            group.pop(life.run["number"], None)
            if state == named:
                group[life.run["number"]] = life

    def _event(self, event: Record) -> None:
        if event["runId"] is None:
            return
        life = self.lives.get(event["runId"])
        if life is None:
            self._add("unknown run", f"no run has the id {event['runId']}", event)
        elif event["type"] == "run_queued":
            self._queued(life, event)
        elif event["type"] == "run_started":
            self._started(life, event)
        elif event["type"] in ENDS:
            self._ended(life, event)
        else:
            self._worked(life, event)

    def _queued(self, life: Life, event: Record) -> None:
        if life.state:
            self._add("once", f"a run that is {life.state} is queued again", event, life.run)
            return
        self._become(life, WAITING)
        self.queued += 1
        if life.run["number"] != self.queued:
            self._add("number", f"the {self.queued}. run submitted has another number", event, life.run)

    def _started(self, life: Life, event: Record) -> None:
        if life.state != WAITING:
            self._add("start", f"a run starts that is {life.state or 'not queued'}", event, life.run)
        number = life.run["number"]
        if self.waiting and (first := min(self.waiting)) < number:
            self._add("order", f"run {number} starts before run {first}", event, self.waiting[first].run)
        life.attempt += 1
        life.steps = 0
        self._become(life, IN_FLIGHT)
        if event["data"].get("attempt") != life.attempt:
            self._add("attempt", f"this is attempt {life.attempt} of run {number}", event)
        if len(self.flying) > self.slots:
            self._add("slots", f"runs in flight: {sorted(self.flying)}; allowed: {self.slots}", event)

    def _ended(self, life: Life, event: Record) -> None:
        status, before = ENDS[event["type"]], life.state
        self._become(life, ENDED)
        if before == ENDED:
            self._add("one end", "a run ends that has ended", event, life.run)
        elif status != life.run["status"]:
            self._add("status", f"the run is {life.run['status']}, its log says {status}", event, life.run)
        asked = status == "cancelled" or event["data"].get("reason") == "requested"
        if asked and life.run["runId"] not in self.asked[status]:
            self._add("cause", f"{status}, and nobody asked for it", event, life.run)
        if status == "cancelled":
            pass  # also what waits can be
        elif before == WAITING:
            self._add("end", f"a run that waits cannot end {status}", event, life.run)
        elif (status == "interrupted" and event["data"].get("reason") == "crash") != (before == CUT_OFF):
            self._add("crash", f"a run that is {before} cannot end {status}", event, life.run)
        if status == "completed":
            self._output(life, event)

    def _output(self, life: Life, event: Record) -> None:
        output = life.run["output"]
        if isinstance(output, dict) and "steps" in output:
            wrote = (output["steps"], output["attempt"], output["key"])
            logged = (life.steps, life.attempt, life.run["input"].get("key"))
            if wrote != logged:
                self._add("output", f"the log has {logged}, the output says {wrote}", event, life.run)

    def _worked(self, life: Life, event: Record) -> None:
        """An event that the agent wrote; ours count their steps and say in which attempt they are."""
        if life.state != IN_FLIGHT:
            self._add("fence", f"an event of a run that is {life.state or 'not queued'}", event, life.run)
        if "step" not in event["data"]:
            return
        if event["data"]["attempt"] != life.attempt:
            self._add("fence", f"written in attempt {life.attempt} by another", event)
        elif event["data"]["step"] != life.steps + 1:
            self._add("step", f"after step {life.steps} of run {life.run['number']}", event)
        life.steps = event["data"]["step"]

    def _numbers(self) -> None:
        numbers = sorted(life.run["number"] for life in self.lives.values())
        if numbers != list(range(1, len(numbers) + 1)):
            self._add("number", "the runs are not numbered 1, 2, 3 …", numbers)

    def _result(self, life: Life) -> None:
        run = life.run
        if not life.state:
            self._add("once", "a run of which the log knows nothing", run)
        elif life.state == ENDED:
            if run["status"] not in ENDS.values() or run["endedAt"] is None:
                self._add("status", "it has ended, and is not stored so", run)
            unasked = run["status"] == "interrupted" and run["runId"] not in self.asked["interrupted"]
            if run["retry"] == "on_crash" and unasked and life.cut_off:
                self._add("crash", "a run that should run again after a crash did not", run)
        elif run["status"] not in STATUSES[life.state]:
            self._add("one end", f"by its log it is {life.state}, it is stored otherwise", run)
        if run["attempt"] != life.attempt:
            self._add("attempt", f"it was started {life.attempt} times", run)


# -- what the clients were told ------------------------------------------------------------------------------


class Check:
    """All rules, over what is stored and what the clients know."""

    def __init__(self, content: Content, history: History, finished: bool) -> None:
        self.content = content
        self.history = history
        self.finished = finished
        self.found = Findings()
        self.accepted: dict[str, Record] = {}
        """For every key that was acknowledged, the first time that it was."""

    def run(self) -> Findings:
        asked = {
            "cancelled": {record["run"] for record in self.history["cancel"]},
            "interrupted": {record["run"] for record in self.history["interrupt"]},
        }
        dead = self.history["killed"] + self.history["stopped"]
        for session in self.content.sessions.values():
            kills = [mark["sequences"].get(session["id"], 0) for mark in dead]
            LogCheck(self.content, session, kills, asked, self.found).check()
            log = self.content.logs[session["id"]]
            if session["lastSequence"] != (last := log[-1]["sequence"] if log else 0):
                self.found.add("last", f"the log of {session['id']} ends at {last}", session)
        self._sessions()
        self._submits()
        self._keys()
        self._order()
        self._causes()
        self._answers()
        self._drains()
        for name, records in self.history.followers.items():
            self._follower(name, records)
        if self.finished:
            self._all_done()
        return self.found

    def _sessions(self) -> None:
        for made in self.history["session"]:
            session = self.content.sessions.get(made["session"])
            if session is None:
                self.found.add("lost", "a session that was acknowledged is not there", made)
            elif session["maxConcurrentRuns"] != made["slots"]:
                self.found.add("content", "a session is not as it was made", made, session)

    def _submits(self) -> None:
        sent: dict[str, Record] = {}
        for submit in self.history["submit"]:
            sent.setdefault(submit["key"], submit)
        for answer in self.history["accepted"]:
            key = answer["key"]
            first = self.accepted.setdefault(key, answer)
            if answer["run"] != first["run"]:
                self.found.add("key", f"key {key} was answered with two runs", first, answer)
            if answer["at"] < first["at"]:
                self.accepted[key] = answer
            run = self.content.runs.get(answer["run"])
            if run is None:
                self.found.add("lost", "a submit that was acknowledged is not there", answer)
        for run in self.content.runs.values():
            submit = sent.get(run["input"].get("key"))
            if submit is None:
                self.found.add("invented", "nobody submitted this run", run)
                continue
            for name, stored in (("session", "sessionId"), ("input", "input"), ("retry", "retry")):
                if submit[name] != run[stored]:
                    self.found.add("content", f"{stored} is not what was submitted", submit, run)

    def _keys(self) -> None:
        """One run for each key at the most; none where every answer was a refusal."""
        by_key: dict[str, Record] = {}
        lost = {record["key"] for record in self.history["lost"]}
        refused = {record["key"]: record for record in self.history["refused"]}
        for run in self.content.runs.values():
            key = run["input"].get("key")
            if key in by_key:
                self.found.add("twice", f"key {key} has two runs", by_key[key], run)
            by_key[key] = run
            answer = self.accepted.get(key)
            if answer is not None and answer["run"] != run["runId"]:
                self.found.add("key", f"key {key} was answered with another run", answer, run)
            if answer is None and key in refused and key not in lost:
                self.found.add("refused", "a submit that was refused is there", refused[key], run)

    def _order(self) -> None:
        """What was sent after an acknowledgement stands behind what was acknowledged."""
        moments: dict[str, list[tuple[float, int, int]]] = defaultdict(list)
        first: dict[str, float] = {}
        for submit in self.history["submit"]:
            first[submit["key"]] = min(submit["at"], first.get(submit["key"], submit["at"]))
        for key, answer in self.accepted.items():
            run = self.content.runs.get(answer["run"])
            if run is not None and key in first:
                moments[run["sessionId"]] += [
                    (first[key], 1, run["number"]),
                    (answer["at"], 0, run["number"]),
                ]
        for session, all_of_it in moments.items():
            behind = 0
            for at, sent, number in sorted(all_of_it):
                if sent and number < behind:
                    text = (
                        f"session {session}: run {number} was sent (at {at}) after run {behind} was accepted"
                    )
                    self.found.add("order", text)
                behind = behind if sent else max(behind, number)

    def _causes(self) -> None:
        """A run fails or times out only where it was made to."""
        for run in self.content.runs.values():
            does = run["input"].get("does", "steps")
            if run["status"] == "failed" and does != "fail" and not self._without_disk(run):
                self.found.add("cause", "failed by itself", run)
            if run["status"] == "timeout" and run["timeoutMs"] is None:
                self.found.add("cause", "timed out without a timeout", run)
            if run["status"] == "completed" and does != "steps":
                self.found.add("cause", f"completed, but it should {does}", run)

    def _without_disk(self, run: Record) -> bool:
        """Whether it failed because an event of its could not be stored, at a time when nothing could."""
        return (run["error"] or {}).get("code") == "storage_error" and bool(self.history["full"])

    def _answers(self) -> None:
        """What was seen of a run that had ended never changes."""
        for seen in self.history["ended"]:
            stored = self.content.runs.get(seen["run"]["runId"], {})
            for name in ("sessionId", "number", "status", "output", "error", "attempt"):
                if seen["run"][name] != stored.get(name):
                    self.found.add("changed", f"{name} of an ended run changed", seen, stored)
        for answer in self.history["refused"]:
            if answer["status"] not in REFUSALS:
                self.found.add("refusal", "a good submit was refused for no good reason", answer)
        for answer in self.history["conflict"]:
            if answer["status"] != 422:
                self.found.add("key", "a key was taken with another body", answer)
        for answer in self.history["cancel_accepted"]:
            stored = self.content.runs.get(answer["run"], {})
            if answer["status"] in ENDS.values() and stored.get("status") != answer["status"]:
                self.found.add("changed", "a cancelled run is something else", answer, stored)

    def _drains(self) -> None:
        """What was acknowledged before a drain was asked for had ended when it was done."""
        ends: dict[str, int] = {}
        for log in self.content.logs.values():
            ends |= {event["runId"]: event["sequence"] for event in log if event["type"] in ENDS}
        for drain in self.history["drained"]:
            for answer in self.accepted.values():
                run = self.content.runs.get(answer["run"])
                if run is None or run["sessionId"] != drain["session"] or answer["at"] > drain["since"]:
                    continue
                if ends.get(run["runId"], drain["upto"] + 1) > drain["upto"]:
                    self.found.add("drain", "a session was drained before this run's end", drain, run)

    def _follower(self, name: str, records: list[Record]) -> None:
        """It was given each event once, in order, from its cursor on, as the log has it."""
        began = next((record for record in records if record["what"] == "follow"), None)
        if began is None:
            self.found.add("history", f"follower {name} never began")
            return
        log = {event["sequence"]: event for event in self.content.logs.get(began["session"], [])}
        last = began["cursor"]
        for record in records:
            if record["what"] == "backfilled" and record["next"] != last + 1:
                self.found.add("follower", f"{name} had seen {last} at the end of its backlog", record)
            if record["what"] != "seen":
                continue
            event = record["event"]
            if (record["id"], record["type"]) != (event["sequence"], event["type"]):
                self.found.add("follower", f"{name} was given an event under another name", record)
            if event["sequence"] != last + 1:
                self.found.add("follower", f"{name} was given {event['sequence']} after {last}", event)
            last = event["sequence"]
            if (stored := log.get(last)) is None:
                self.found.add("lost", f"an event that {name} has seen is not there", event)
            elif not alike(stored, event):
                self.found.add("changed", f"{name} has seen an event differently", event, stored)
        if self.finished and last != max(log, default=0):
            self.found.add("follower", f"{name} has seen {last} of {max(log, default=0)} events", began)

    def _all_done(self) -> None:
        for run in self.content.runs.values():
            if run["status"] not in ENDS.values():
                self.found.add("unfinished", "nothing should be left to do", run)


def counts(check: Check) -> str:
    """One line for each thing that was counted."""
    history, content = check.history, check.content
    statuses = Counter(run["status"] for run in content.runs.values())
    again = sum(1 for run in content.runs.values() if run["attempt"] > 1)
    rows = {
        "submits acknowledged": len(check.accepted),
        "requests without an answer": len(history["lost"]),
        "answers to a key sent again": sum(1 for answer in history["accepted"] if answer["replay"]),
        "refusals": dict(Counter(f"{r['status']} {r['code']}" for r in history["refused"])),
        "runs": f"{len(content.runs)} ({', '.join(f'{n} {what}' for what, n in sorted(statuses.items()))})",
        "runs started more than once": again,
        "events": sum(map(len, content.logs.values())),
        "events seen": len(history["seen"]),
        "subscribers": len(history.followers),
        "reconnects": len(history["connected"]) - len(history.followers),
        "kills": len(history["killed"]),
        "stops": len(history["stopped"]),
        "restarts": max(0, len(history["started"]) - 1),
        "drains": len(history["drained"]),
    }
    return "\n".join(f"{name}: {number}" for name, number in rows.items())


def main(arguments: list[str]) -> int:
    """Check what the arguments name; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("histories", type=Path)
    parser.add_argument("--database", type=Path)
    parser.add_argument("--url")
    parser.add_argument("--content", type=Path, action="append", default=[])
    parser.add_argument("--finished", action="store_true")
    given = parser.parse_args(arguments)
    ways = [(given.database, from_database), (given.url, from_server)]
    ways += [(path, from_file) for path in given.content]
    contents = [read(where) for where, read in ways if where is not None]
    assert contents, "give --database, --url or --content"
    assert "interlock" not in sys.modules
    check = Check(contents[0], History.read(given.histories), given.finished)
    found = check.run()
    compare(contents, found)
    print("\n".join(found.printed) or counts(check))
    if found.printed:
        print(f"{len(found.printed)} violations", file=sys.stderr)
    return 1 if found.printed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
