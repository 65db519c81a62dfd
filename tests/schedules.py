"""Every schedule of a few tasks: an event loop that a list of choices drives.

The ready queue is asyncio's own, first in first out, so whatever is found here can happen there. Between any
two of its callbacks the environment may act: start the next task, let one finish that is inside its section,
cancel one, fire the earliest timer, or do once what the scenario adds. `explore` walks all lists of choices
depth first, each from a fresh start, and stops at the first that breaks a rule.

    PYTHONPATH=src python tests/schedules.py SCENARIO [--limit N] [--tasks N] [--cancels N] [--replay 0,1,1]

SCENARIO is a name out of a ``tests/*/scenarios.py``, or ``all``. Only the standard library is needed, so that
any Python at hand can run it.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib
import sys
import time
import warnings
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop
from pathlib import Path
from random import Random
from traceback import format_exception
from typing import Any

STEPS_MAX = 400


@dataclass
class Report:
    """How far `explore` came: ``failure`` is None, or what broke, with the choices that lead there."""

    schedules: int = 0
    complete: bool = False
    failure: str | None = None
    choices: list[int] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)
    cancelled_at: set[tuple[str, int]] = field(default_factory=set)
    """Every line (file and number) at which a task stood when it was cancelled."""
    complaints: list[str] = field(default_factory=list)
    """What asyncio's exception handler, finalizers and warnings had to say."""

    def __str__(self) -> str:
        if self.failure is None:
            return f"{self.schedules} schedules, {'complete' if self.complete else 'cut off'}"
        choices = ",".join(map(str, self.choices))
        return (
            f"schedule {self.schedules}: {self.failure}\n  --replay {choices}\n  {' / '.join(self.trace)}\n"
        )


class Future(asyncio.Future[Any]):
    """A future with a hash that is the same in every replay, so that sets of them keep one order."""

    serial: int

    def __hash__(self) -> int:
        return self.serial


class Loop(asyncio.BaseEventLoop):
    """asyncio's loop without its `run_forever`: one callback per `step`, time moves only by `fire`."""

    def __init__(self, report: Report) -> None:
        super().__init__()
        self.now = 0.0
        self.report = report
        self._futures = 0

    def time(self) -> float:
        return self.now

    def create_future(self) -> Future:
        future = Future(loop=self)
        self._futures += 1
        future.serial = self._futures
        return future

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.report.complaints.append(f"{context.get('message')}: {context.get('exception')!r}")

    def _process_events(self, events: object) -> None: ...

    def _write_to_self(self) -> None: ...

    @property
    def runnable(self) -> bool:
        """Whether a callback is in the queue; those that were called off are dropped."""
        while self._ready and self._ready[0]._cancelled:
            self._ready.popleft()
        return bool(self._ready)

    def step(self) -> None:
        """Run the next callback."""
        assert self.runnable
        self._ready.popleft()._run()

    @property
    def due(self) -> bool:
        """Whether a timer is set; those that were called off are dropped."""
        while self._scheduled and self._scheduled[0]._cancelled:
            heappop(self._scheduled)
        return bool(self._scheduled)

    def fire(self) -> None:
        """Let time pass until the earliest timer; its callback goes to the end of the queue, as ever."""
        assert self.due
        timer = heappop(self._scheduled)
        timer._scheduled = False
        self.now = max(self.now, timer.when())
        self._ready.append(timer)


class World:
    """What may happen in one schedule and what must hold in it. A scenario fills in `todo` and `once`."""

    def __init__(self, loop: Loop, cancels: int = 2) -> None:
        self.loop = loop
        self.cancels = cancels
        self.todo: list[Callable[[], Coroutine[Any, Any, object]]] = []
        """Tasks that have not been started, in the order in which they will be."""
        self.once: dict[str, Callable[[], object]] = {}
        """What else the environment does, each one time."""
        self.tasks: list[asyncio.Task[object]] = []
        self.cancelled: set[asyncio.Task[object]] = set()
        self.inside: dict[str, Any] = {}
        """Who is in its section, with what let it in."""
        self.cancel_twice = False
        """Whether a task may be cancelled again before it has noticed the first time."""
        self.outranked = False
        """Whether a cancelled task may end otherwise: with the errors of its task group, say."""
        self._gates: dict[str, Future] = {}

    async def section(self, name: str, permit: Any = None) -> None:
        """What a task does while it holds what it asked for: it stays until the environment lets it go."""
        assert asyncio.current_task() not in self.cancelled, f"{name} goes in though it was cancelled"
        self.inside[name] = permit
        gate = self._gates[name] = self.loop.create_future()
        try:
            await gate
        finally:
            del self.inside[name], self._gates[name]

    def possible(self) -> list[str]:
        """All that can happen next; a schedule takes one of them."""
        labels = ["run"] if self.loop.runnable else []
        labels += [f"finish {name}" for name, gate in self._gates.items() if not gate.done()]
        if self.todo:
            labels.append("start")
        if self.loop.due:
            labels.append("fire")
        labels += self.once
        if self.cancels:
            for number, task in enumerate(self.tasks):
                if not task.done() and (self.cancel_twice or task not in self.cancelled):
                    labels.append(f"cancel {number}")
        return labels

    def do(self, label: str) -> None:
        """Let it happen."""
        what, _, whose = label.partition(" ")
        if label in self.once:
            self.once.pop(label)()
        elif what == "run":
            self.loop.step()
        elif what == "finish":
            self._gates[whose].set_result(None)
        elif what == "start":
            self.tasks.append(self.loop.create_task(self.todo.pop(0)()))
        elif what == "fire":
            self.loop.fire()
        else:
            self._cancel(self.tasks[int(whose)])

    def _cancel(self, task: asyncio.Task[object]) -> None:
        self.cancels -= 1
        self.cancelled.add(task)
        self.loop.report.cancelled_at.update(standing_at(task))
        task.cancel()

    def check(self) -> None:
        """AssertionError unless all that must hold after every step does."""

    def final(self) -> None:
        """AssertionError unless all that must hold once nothing can happen any more does."""
        for number, task in enumerate(self.tasks):
            assert task.done(), f"task {number} hangs"
            if task.cancelled():
                assert task in self.cancelled, f"task {number} was cancelled by nobody"
            else:
                assert task not in self.cancelled or self.outranked, f"task {number} lost a cancel"
                self.ended(number, task.exception())

    def ended(self, number: int, error: BaseException | None) -> None:
        """AssertionError if task *number* may not end with *error*."""
        assert error is None, f"task {number} raised {error!r}"


Scenario = Callable[[Loop], World]


@dataclass
class Way:
    """One schedule: of how many things possible which was chosen, and what it was."""

    choices: list[int] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)

    def next(self) -> bool:
        """Turn the last choice that can be turned; False if this was the last schedule of all."""
        while self.choices and self.choices[-1] + 1 >= self.widths[-1]:
            self.choices.pop()
            self.widths.pop()
        if self.choices:
            self.choices[-1] += 1
        return bool(self.choices)


def explore(scenario: Scenario, *, limit: int | None = None) -> Report:
    """Run every schedule of *scenario*; the first that fails ends it.

    Where there are more than *limit*, half of it goes to the first ones, half to repeatable random ones.
    """
    report = Report()
    way = Way()
    random = Random(0)
    with _orderly_garbage(report.complaints):
        while report.failure is None and not report.complete and report.schedules != limit:
            in_order = limit is None or report.schedules < limit // 2
            if not in_order:
                way = Way(list(random.randbytes(100)))
            report.schedules += 1
            report.failure = run(scenario, way, report, max(0, len(way.widths) - 1))
            if report.failure is not None:
                report.choices, report.trace = way.choices, way.labels
            elif in_order:
                report.complete = not way.next()
    if report.failure is None and report.complaints:
        report.failure = f"found with the garbage: {report.complaints[0]}"
    return report


def run(scenario: Scenario, way: Way, report: Report, known: int = 0) -> str | None:
    """Go the choices of *way*, then always the first thing possible, and write it all down there.

    The first steps are *known* from the schedule before and are not checked again. Returns what broke.
    """
    loop = Loop(report)
    asyncio._set_running_loop(loop)
    world = scenario(loop)
    try:
        for label in way.labels[:known]:
            world.do(label)
        del way.labels[known:]
        while possible := world.possible():
            at = len(way.labels)
            if at == len(way.choices):
                way.choices.append(0)
            if at == len(way.widths):
                way.widths.append(len(possible))
            assert len(possible) == way.widths[at], "the same choices led elsewhere: not repeatable"
            way.choices[at] %= len(possible)
            label = possible[way.choices[at]]
            way.labels.append(label)
            world.do(label)
            world.check()
            assert not report.complaints, report.complaints[0]
            assert at < STEPS_MAX, "it does not come to rest"
        world.final()
        assert not report.complaints, report.complaints[0]
    except Exception as broken:
        expected = isinstance(broken, AssertionError) and broken.args
        return str(broken) if expected else "".join(format_exception(broken))
    else:
        return None
    finally:
        del way.choices[len(way.labels) :]
        asyncio._set_running_loop(None)
        for task in world.tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        loop.close()


def standing_at(task: asyncio.Task[Any]) -> Iterator[tuple[str, int]]:
    """The lines at which *task* is suspended, from its own down to the one that awaits a future."""
    inner: Any = task.get_coro()
    while inner is not None:
        frame = getattr(inner, "cr_frame", None) or getattr(inner, "gi_frame", None)
        if frame is not None:
            yield frame.f_code.co_filename, frame.f_lineno
        if type(inner).__name__ == "coroutine_wrapper":  # of ``yield from coroutine.__await__()``
            inner = next(iter(gc.get_referents(inner)), None)
        else:
            inner = getattr(inner, "cr_await", None) or getattr(inner, "gi_yieldfrom", None)


@contextmanager
def _orderly_garbage(complaints: list[str]) -> Iterator[None]:
    """Let the collector look only at what the schedules leave behind, and turn warnings into complaints."""
    hook = sys.unraisablehook
    sys.unraisablehook = lambda unraisable: complaints.append(repr(unraisable.exc_value))
    gc.collect()
    gc.freeze()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
            gc.collect()
    finally:
        sys.unraisablehook = hook
        gc.unfreeze()


def scenarios() -> dict[str, Callable[..., World]]:
    """Every scenario beside these tests, by its name."""
    found: dict[str, Callable[..., World]] = {}
    for path in sorted(Path(__file__).parent.glob("*/scenarios.py")):
        found |= importlib.import_module(f"{path.parent.name}.scenarios").SCENARIOS
    return found


def main(arguments: list[str] | None = None) -> int:
    known = scenarios()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("scenario", choices=[*known, "all"])
    parser.add_argument("--limit", type=int, help="stop after so many schedules")
    parser.add_argument("--tasks", type=int, default=3)
    parser.add_argument(
        "--cancels", type=int, help="how many tasks are cancelled (default: 2, or as it says)"
    )
    parser.add_argument("--replay", help="run this one list of choices and show what happens")
    asked = parser.parse_args(arguments)
    failed = False
    for name in known if asked.scenario == "all" else [asked.scenario]:
        scenario = partial(known[name], tasks=asked.tasks, cancels=asked.cancels)
        if asked.replay is not None:
            way = Way([int(choice) for choice in asked.replay.split(",")])
            failure = run(scenario, way, Report())
            print(*way.labels, failure or "nothing broke", sep="\n")
            return failure is not None
        began = time.perf_counter()
        report = explore(scenario, limit=asked.limit)
        print(f"{name}: {report}, {time.perf_counter() - began:.1f} s", flush=True)
        failed = failed or report.failure is not None
    return failed


if __name__ == "__main__":
    from schedules import main as imported  # scenarios derive from *its* World, not from __main__'s

    sys.exit(imported())
