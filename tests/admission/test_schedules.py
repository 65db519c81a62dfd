"""No schedule of a few tasks breaks `LocalAdmission`, and the explorer would see it if one did."""

import ast
import asyncio
import os
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest

import interlock.admission
from admission.scenarios import SCENARIOS
from schedules import Loop, Report, Way, World, explore, run

TESTS = Path(__file__).parents[1]
PACKAGE = Path(interlock.admission.__file__).parent
COMPLETE = ("awaited", "entered", "keyed")
"""Explored to the end (some thousand schedules each); of the others the deep run does more."""


# -- the admission


@pytest.mark.parametrize("name", SCENARIOS)
def test_no_schedule_breaks_it(name: str) -> None:
    """Whatever comes first, nothing leaks, nobody is let in wrongly, and nobody is forgotten."""
    report = explore(SCENARIOS[name], limit=None if name in COMPLETE else 2_000)
    assert report.failure is None, report


@pytest.mark.deep
@pytest.mark.parametrize("tasks", [3, 4])
@pytest.mark.parametrize("name", SCENARIOS)
def test_no_schedule_of_more_breaks_it(name: str, tasks: int) -> None:
    """The same with two cancels everywhere, and with four tasks."""
    report = explore(partial(SCENARIOS[name], tasks=tasks, cancels=2), limit=400_000)
    assert report.failure is None, report


def other_pythons() -> dict[str, str]:
    """Every other Python on this machine that the package supports, one per minor version."""
    places = [Path(place) for place in os.get_exec_path() if place]
    places += Path.home().glob(".pyenv/versions/*/bin")
    found: dict[tuple[int, int], str] = {sys.version_info[:2]: sys.executable}
    for minor in range(11, 20):
        for place in places:
            python = shutil.which(f"python3.{minor}", path=place)
            if python is None or (3, minor) in found:
                continue
            asked = [python, "-c", "import sys; print(sys.version_info[:2])"]
            answer = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
            if answer.strip() == f"(3, {minor})":
                found[3, minor] = python
    return {f"3.{minor}": python for (_, minor), python in found.items() if python != sys.executable}


OTHERS = other_pythons()


@pytest.mark.parametrize("asked", ["entered", "keyed", "all --limit 500"])
@pytest.mark.parametrize("version", OTHERS)
def test_no_schedule_breaks_it_on_another_python(version: str, asked: str) -> None:
    """Every asyncio has its own order of things; the package without its dependencies runs on each."""
    command = [OTHERS[version], str(TESTS / "schedules.py"), *asked.split()]
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parents[1]), "PYTHONDONTWRITEBYTECODE": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


# -- every await has been cancelled at


def awaits(source: str) -> Iterator[range]:
    """The lines of every expression in *source* at which a coroutine may stop."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Await() | ast.YieldFrom():
                yield range(node.lineno, (node.end_lineno or node.lineno) + 1)
            case ast.AsyncWith() | ast.AsyncFor():
                yield range(node.lineno, node.body[0].lineno)
            case ast.comprehension(is_async=1):
                yield range(node.iter.lineno, (node.iter.end_lineno or node.iter.lineno) + 1)


def test_the_lines_that_wait_are_found() -> None:
    """An await that the check below overlooked would never be missed."""
    source = """
async def f(x):
    async with x() as y:
        await (
            y
        )
    async for z in y: pass
    return [w async for w in z]
def g():
    yield from f()
"""
    assert sorted((lines.start, lines.stop - 1) for lines in awaits(source)) == [
        (3, 3),
        (4, 6),
        (7, 6),
        (8, 8),
        (10, 10),
    ]


@cache
def cancelled_at(limit: int, remote: bool) -> set[tuple[str, int]]:
    """Where the scenarios, those of `RemoteAdmission` or the others, cancel within so many schedules each."""
    found = set()
    for name, scenario in SCENARIOS.items():
        if name.startswith("remote_") == remote:
            found |= explore(scenario, limit=limit).cancelled_at
    return found


# Real sockets: `websocket.py`, and all that is beside the Redis client, which is cancelled in
# `admission/redis/test_admission.py`.
ROOMS = sorted(
    path for path in PACKAGE.rglob("*.py") if path.name != "websocket.py" and path.parent.name != "redis"
)


@pytest.mark.parametrize("path", ROOMS, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_every_await_has_been_cancelled_at(path: Path) -> None:
    """A line that waits and was never cancelled there is a line whose cleanup nobody has seen."""
    missed = list(awaits(path.read_text()))
    for limit in (150, 500, 3_000):
        if missed:
            remote = path.parent.name in ("leased", "remote")
            reached = {line for file, line in cancelled_at(limit, remote) if Path(file) == path}
            missed = [lines for lines in missed if not reached.intersection(lines)]
    assert missed == [], f"no scenario cancels at {path.name}:{[lines.start for lines in missed]}"


# -- the explorer


class Sound:
    """A semaphore of one: who is cancelled looks whether it was let in meanwhile, and hands on."""

    def __init__(self) -> None:
        self.free = 1
        self.queue: deque[asyncio.Future[None]] = deque()

    async def acquire(self) -> None:
        if self.free:
            self.free -= 1
            return
        future = asyncio.get_running_loop().create_future()
        self.queue.append(future)
        try:
            await future
        except asyncio.CancelledError:
            self.cancelled(future)
            raise

    def cancelled(self, future: asyncio.Future[None]) -> None:
        if future.cancelled():
            self.queue.remove(future)
        else:
            self.release()

    def release(self) -> None:
        for future in self.queue:
            if not future.done():
                self.queue.remove(future)
                future.set_result(None)
                return
        self.free += 1


class GrantInFuture(Sound):
    """The classic fault: what was granted sits in a future that a cancelled task never reads."""

    def cancelled(self, future: asyncio.Future[None]) -> None:
        if future.cancelled():
            self.queue.remove(future)


class Barging(Sound):
    """Another: room appears before the one who was woken has taken it, and a newcomer takes it, too."""

    async def acquire(self) -> None:
        while self.free < 1:
            await super().acquire()
        await asyncio.sleep(0)
        self.free -= 1

    def release(self) -> None:
        self.free += 1
        super().release()
        self.free = min(self.free, 1)


class Toys(World):
    """Three tasks over a semaphore of one that is not ours."""

    def __init__(self, loop: Loop, semaphore: Any, cancels: int = 1, timeout: float | None = None) -> None:
        super().__init__(loop, cancels)
        self.semaphore = semaphore()
        self.timeout = timeout
        self.todo = [partial(self.work, str(number)) for number in range(3 if timeout is None else 2)]

    async def work(self, name: str) -> None:
        if self.timeout is None:
            await self.semaphore.acquire()
        else:
            await asyncio.wait_for(self.semaphore.acquire(), self.timeout)
        try:
            await self.section(name)
        finally:
            self.semaphore.release()

    def check(self) -> None:
        assert len(self.inside) <= 1, f"{len(self.inside)} are inside"

    def final(self) -> None:
        super().final()
        if isinstance(self.semaphore, Sound):
            assert self.semaphore.free == 1, "the semaphore is not free again"
        else:
            assert not self.semaphore.locked(), "the semaphore is not free again"

    def ended(self, number: int, error: BaseException | None) -> None:
        if self.timeout is None or not isinstance(error, TimeoutError):
            super().ended(number, error)


@pytest.mark.parametrize("semaphore", [GrantInFuture, Barging])
def test_a_fault_is_found(semaphore: type[Sound]) -> None:
    """A semaphore with a known fault does not survive a few hundred schedules."""
    report = explore(partial(Toys, semaphore=semaphore), limit=500)
    assert report.failure is not None


@pytest.mark.parametrize("semaphore", [Sound, partial(asyncio.Semaphore, 1), asyncio.Lock])
def test_no_fault_is_found_where_there_is_none(semaphore: Any) -> None:
    """The rules are not to blame for what they find: semaphores without a known fault keep them."""
    report = explore(partial(Toys, semaphore=semaphore, cancels=2))
    assert report.failure is None, report
    assert report.complete


def test_the_known_fault_of_wait_for_is_found() -> None:
    """Before Python 3.12 `asyncio.wait_for` could swallow a cancel (gh-86296)."""
    report = explore(partial(Toys, semaphore=partial(asyncio.Semaphore, 1), timeout=1), limit=5_000)
    if sys.version_info < (3, 12):
        assert report.failure is not None
        assert "lost a cancel" in report.failure
    else:
        assert report.failure is None, report


def test_a_failure_can_be_replayed() -> None:
    """The choices of a report lead to the same failure, by the same steps."""
    scenario = partial(Toys, semaphore=GrantInFuture)
    found = explore(scenario)
    way = Way(list(found.choices))
    failure = run(scenario, way, Report())
    assert failure is not None
    assert found.failure is not None
    assert failure.partition("\n")[0] == found.failure.partition("\n")[0]
    assert way.labels == found.trace


def test_every_schedule_is_run_once() -> None:
    """Two tasks that do nothing: the second starts before or after the first has run."""

    async def nothing() -> None: ...

    def two(loop: Loop) -> World:
        world = World(loop, cancels=0)
        world.todo = [nothing, nothing]
        return world

    assert str(explore(two)) == "2 schedules, complete"
    assert str(explore(two, limit=1)) == "1 schedules, cut off"


@pytest.mark.parametrize(
    ("what", "failure"),
    [
        ("hang", "task 0 hangs"),
        ("spin", "it does not come to rest"),
        ("raise", "task 0 raised ZeroDivisionError()"),
        ("complain", "exception was never retrieved"),
    ],
)
def test_what_counts_as_a_failure(what: str, failure: str) -> None:
    """A task that never ends, spins, raises, or leaves an exception that nobody reads."""

    async def task() -> None:
        loop = asyncio.get_running_loop()
        if what == "hang":
            await loop.create_future()
        if what == "raise":
            raise ZeroDivisionError
        if what == "complain":
            loop.create_future().set_exception(ZeroDivisionError())
        for _ in range(10_000 if what == "spin" else 0):
            await asyncio.sleep(0)

    def one(loop: Loop) -> World:
        world = World(loop, cancels=0)
        world.todo = [task]
        return world

    report = explore(one)
    assert report.failure is not None
    assert failure in report.failure
