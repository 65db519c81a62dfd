"""Processes that write to a store and are killed: what they were told has to be there."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import interlock
from interlock.stores import open_store

WRITE = """
import asyncio, sys
from interlock.core.sessions import NewEvent, Run, RunChange, Session
from interlock.stores import open_store

async def main(url, name):
    async with await open_store(url) as store:
        for session in "ab":
            await store.create_session(Session(session, "active"))

        async def append(lane):
            for n in range(100_000):
                ids = [f"{name}/{lane}/{n}/{k}" for k in range(1 + n % 3)]
                events = [NewEvent(id_, "message_sent", 1.0, data={"id": id_}) for id_ in ids]
                last = await store.append("ab"[lane % 2], events)
                print("events", "ab"[lane % 2], last, *ids, flush=True)

        async def submit(lane):
            for n in range(100_000):
                run, _ = await store.submit_run(Run(f"{name}/{lane}/{n}", "a", input={"n": n}))
                print("run", run.number, run.id, flush=True)
                await store.change_run(run.id, RunChange("start", 1.0))
                await store.change_run(run.id, RunChange("complete", 2.0, 1, output=n))
                print("end", n, run.id, flush=True)

        await asyncio.gather(*map(append, range(4)), *map(submit, range(2)))

asyncio.run(main(*sys.argv[1:]))
"""


def writer(url: str, name: str) -> subprocess.Popen[str]:
    """A process that writes and says what it was told, until it is killed."""
    source = str(Path(interlock.__file__).parents[1])
    return subprocess.Popen(
        [sys.executable, "-c", WRITE, url, name],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": source},
    )


async def kill_and_check(url: str, chance: random.Random, kills: int, *, at_once: int = 1) -> None:
    """Kill that many, *at_once* writing together: what had returned is there, and the logs have no gap."""
    told: list[list[str]] = []
    for kill in range(0, kills, at_once):
        processes = [writer(url, f"{kill + n}") for n in range(at_once)]
        for process in processes:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(chance.choice([1, 5, chance.randrange(400)]))]
            process.send_signal(signal.SIGKILL)
            lines += process.stdout.read().splitlines(keepends=True)
            told += [line.split() for line in lines if line.endswith("\n")]
        for process in processes:
            process.communicate()
    async with await open_store(url) as store:
        logs = {name: await store.get_events(name) for name in "ab"}
        runs = {run.id: run for run in await store.list_runs("a")}
    for log in logs.values():
        assert [one.sequence for one in log] == list(range(1, len(log) + 1))
        assert all(one.data == {"id": one.id} for one in log)
    assert [run.number for run in runs.values()] == list(range(1, len(runs) + 1))
    places = {one.id: (name, one.sequence) for name, log in logs.items() for one in log}
    for what, *words in told:
        if what == "events":
            name, last, *ids = words
            first = int(last) - len(ids) + 1
            assert [places[id_] for id_ in ids] == [(name, first + k) for k in range(len(ids))]
        else:
            run = runs[words[1]]
            assert run.number == int(words[0]) if what == "run" else run.output == int(words[0])
            assert what == "run" or run.status == "completed"
    assert len(told) > kills
