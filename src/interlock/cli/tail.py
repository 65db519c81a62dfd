"""``interlock tail``: what happens in a session, as it happens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Annotated, Any

from cyclopts import Parameter

from interlock.cli.client import default_url, fetch, in_path
from interlock.cli.output import Json
from interlock.cli.screen import Screen, waits_for
from interlock.cli.stream import BACKFILLED, END, Following, Told
from interlock.core.runs import ENDED, EVENT_OF, EVENT_TYPES, RUN_MOVES
from interlock.errors import InterlockError, ValidationError

LOOK_SECONDS = 1.0
"""Between two looks at a run that waits."""
RUN_ENDS = frozenset(event for verb, event in EVENT_OF.items() if RUN_MOVES[verb][1] in ENDED)
"""Types of the event that is the last of its run."""


async def tail(
    session: str,
    /,
    *,
    follow: Annotated[bool, Parameter(name=["--follow", "-f"], negative=())] = False,
    start: Annotated[int, Parameter(name="--from")] = 0,
    run: str | None = None,
    types: Annotated[list[str] | None, Parameter(name="--type", negative=())] = None,
    url: str | None = None,
    as_json: Json = False,
) -> int:
    """Show the events of a session; with --follow also those that come, until the session or --run has ended.

    A lost connection is made again, and nothing is missed or shown twice.

    Example: interlock tail s1 --follow

    Args:
        session: its id.
        follow: go on with what happens from now on.
        start: the sequence number of the first event to show (default: the first there is).
        run: show the events of this run only.
        types: show events of this type only; may be given several times.
        url: the server (default: INTERLOCK_URL, else as the configuration here says).
        as_json: print each event as a line of JSON.
    """
    if start < 0:
        raise ValidationError(f"--from is {start}; allowed are numbers from 0")
    for one in types or ():
        if one not in EVENT_TYPES:
            raise ValidationError(f"unknown type {one!r}; known are: {', '.join(sorted(EVENT_TYPES))}")
    url = url or default_url()
    over = run is not None and await _has_ended(url, session, run)
    screen = Screen(as_json=as_json)
    try:
        stream = told(url, session, screen, start=start, run_id=run, types=types or ())
        async with aclosing(stream), waiting(url, screen, run if follow and not over else None) as queue:
            async for kind, document in stream:
                if kind == BACKFILLED:
                    if over or not follow:
                        break
                    queue.live = True
                elif kind != END:
                    queue.note(document)
                    if not types or kind in types:
                        screen.event(document)
                    if follow and run is not None and kind in RUN_ENDS:
                        break
    finally:
        screen.close()
    return 0


def told(
    url: str,
    session: str,
    screen: Screen,
    *,
    start: int = 0,
    run_id: str | None = None,
    types: Sequence[str] = (),
) -> AsyncGenerator[Told, None]:
    """What the server tells of *session*. The ends of a chosen run come whatever the *types* are."""
    wanted = sorted({*types, *RUN_ENDS}) if types and run_id is not None else types
    following = Following(url, session, start=start, run_id=run_id, types=wanted)
    return following.events(screen.say)


async def _has_ended(url: str, session: str, run_id: str) -> bool:
    run = await fetch(url, f"/runs/{in_path(run_id)}")
    if run["sessionId"] != session:
        raise ValidationError(f"run {run_id!r} is of session {run['sessionId']!r}, not of {session!r}")
    return run["status"] in ENDED


# -- who waits -----------------------------------------------------------------------------------------------


class Queue:
    """The runs that wait, as far as the events say so; the first of them is looked at."""

    def __init__(self, chosen: str | None = None) -> None:
        self._runs = {} if chosen is None else {chosen: None}
        self.live = chosen is not None
        """Whether what is known of the runs is how they are now."""

    def __len__(self) -> int:
        return len(self._runs)

    @property
    def first(self) -> str | None:
        return next(iter(self._runs), None) if self.live else None

    def note(self, event: dict[str, Any]) -> None:
        """Take in what *event* says of its run."""
        run_id = str(event.get("runId"))
        if event["type"] == "run_queued":
            self._runs[run_id] = None
        elif event["type"].startswith("run_"):
            self._runs.pop(run_id, None)

    def forget(self, run_id: str) -> None:
        """The run does not wait any more, whatever the events say."""
        self._runs.pop(run_id, None)


@asynccontextmanager
async def waiting(url: str, screen: Screen, chosen: str | None = None) -> AsyncIterator[Queue]:
    """While inside, the line of who waits is right: of *chosen*, or of the runs whose events are noted."""
    queue = Queue(chosen)
    task = asyncio.create_task(_watch(url, screen, queue)) if screen.draws else None
    try:
        yield queue
    finally:
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _watch(url: str, screen: Screen, queue: Queue) -> None:
    while True:
        run_id = queue.first
        line = ""
        if run_id is not None:
            with suppress(InterlockError):  # the stream of events tells what is wrong
                run = await fetch(url, f"/runs/{in_path(run_id)}")
                if run["status"] == "pending":
                    line = waits(run, len(queue) - 1)
                else:
                    queue.forget(run_id)
        screen.wait(line if queue.first == run_id else "")
        await asyncio.sleep(LOOK_SECONDS)


def waits(run: dict[str, Any], more: int = 0) -> str:
    """What is to say of a run that waits with *more* behind it: its place in line, and why."""
    limits = waits_for(run.get("waitsFor"))
    place = run.get("position")
    line = f"{run['runId']} waits" + ("" if place is None else f", place {place} in line")
    return line + (f", for {limits}" if limits else "") + (f"; {more} more" if more > 0 else "")
