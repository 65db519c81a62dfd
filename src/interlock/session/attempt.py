"""One attempt at a run: the agent's task, what ends it early, and its end in the store.

An attempt is over when the agent has returned or raised, or when it ignored for the grace period that it
should stop. What follows is written once and, while the store fails, tried until it is; only then is the
run's slot free. An agent that goes on after that speaks to a fence: nothing it says is logged.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import TYPE_CHECKING, Any, Final, Literal

from interlock.admission.callback import begin
from interlock.core.sessions import RunChange
from interlock.errors import InterlockError, RunNotFound, StoreError, Unavailable
from interlock.session.patience import Backoff, settle
from interlock.session.tally import note_end, note_start, tally_of
from interlock.session.values import plain, run_event

if TYPE_CHECKING:
    from collections.abc import Mapping

    from interlock.core.runs import RunVerb
    from interlock.core.sessions import NewEvent, Run
    from interlock.ports import Clock, Store, TimerHandle
    from interlock.session.context import RunContext

log = logging.getLogger(__name__)

Stop = Literal["cancel", "interrupt", "time_out"]
Agent = Any
"""``async def agent(run)``, or an object with ``async def run(self, run)``."""

_MESSAGE_MOST: Final = 2000


class Attempt:
    """*run* in the hands of *agent*, who has *grace* seconds to end when it should."""

    def __init__(self, run: Run, agent: Agent, store: Store, clock: Clock, grace: float) -> None:
        self.run = run
        self.usage: dict[str, int] = {}
        self.stopping: Stop | None = None
        self.paused = False
        self.ended = False
        """Whether the agent's word counts no more."""
        self.forsaken = False
        """Whether what becomes of it is another process's to write."""
        self.data: dict[str, Any] = {}
        """What the event of the end says beside the usual."""
        self._agent = agent
        self._store = store
        self._clock = clock
        self._grace = grace
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._work: asyncio.Task[Any] | None = None
        self._timers: dict[str, TimerHandle] = {}
        self._waiting: set[asyncio.Future[None]] = set()

    # -- from outside

    def stop(self, verb: Stop, **data: Any) -> None:
        """Have it end by *verb*. The first who says so decides."""
        if self.stopping is not None or self._over.done():
            return
        self.stopping = verb
        self.data |= data
        self._wake()
        if self._work is not None:
            self._work.cancel()
        self._timers["grace"] = self._clock.call_at(self._clock.now() + self._grace, self._abandon)

    def forsake(self) -> None:
        """End it at once and write nothing: the run is another's now."""
        self.forsaken = True
        if self.stopping is None:
            self.stopping = "interrupt"
        self._wake()
        if self._work is not None:
            self._work.cancel()
        settle(self._over)

    def pause(self, paused: bool) -> None:
        """Have `RunContext.checkpoint` wait, or not any more."""
        self.paused = paused
        if not paused:
            self._wake()

    async def resumed(self) -> None:
        """Return when something has changed about being paused or stopped."""
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(waiting)
        try:
            await waiting
        finally:
            self._waiting.discard(waiting)

    # -- the attempt

    async def perform(self, context: RunContext) -> None:
        """Have the agent work, and write down what came of it, if the store is not closed before."""
        ended = begin(tally_of(self._store).on_attempt, self.run)
        run: Run | None = None
        try:
            run = await self._performed(context)
        finally:
            ended(run)

    async def _performed(self, context: RunContext) -> Run | None:
        if self.stopping is None:
            if self.run.timeout is not None:
                when = self._clock.now() + self.run.timeout
                self._timers["timeout"] = self._clock.call_at(when, self._too_long)
            self._work = asyncio.create_task(self._call(context))
            self._work.add_done_callback(self._done)
            await self._over
        self.ended = True
        for timer in self._timers.values():
            timer.cancel()
        return None if self.forsaken else await self._write_end()

    async def _call(self, context: RunContext) -> Any:
        run: Any = getattr(self._agent, "run", self._agent)
        try:
            result = run(context)
            return plain("the output", await result if inspect.isawaitable(result) else result)
        except SystemExit as error:
            # It would end the whole process: a run has no right to.
            raise RuntimeError(f"the agent called for exit ({error.code})") from error

    def _done(self, work: asyncio.Task[Any]) -> None:
        if not work.cancelled():
            work.exception()  # seen, also of an agent that was abandoned
        settle(self._over)

    def _too_long(self) -> None:
        self.stop("time_out", timeout=self.run.timeout)

    def _abandon(self) -> None:
        if not self._over.done():
            log.warning(
                "run %s of session %s ignored for %g s that it should stop; it was left to itself",
                *(self.run.id, self.run.session_id, self._grace),
            )
            self.data["ignored"] = True
            self._over.set_result(None)

    def _wake(self) -> None:
        for waiting in self._waiting:
            settle(waiting)

    def _verdict(self) -> tuple[RunVerb, dict[str, Any], dict[str, Any]]:
        """The verb, the event's data, and the fields of the change that go with it."""
        run, work = self.run, self._work
        if self.stopping is not None:
            if self.stopping == "time_out":
                message = f"run {run.id!r} outlived its timeout of {run.timeout:g} s"
                return "time_out", self.data, {"error": {"code": "timeout", "message": message}}
            return self.stopping, self.data, {}
        assert work is not None
        if work.cancelled():
            problem = {"code": "cancelled", "message": "the agent's task was cancelled from within"}
        elif (error := work.exception()) is not None:
            problem = _problem(error)
        else:
            took = self._clock.now() - (run.started_at or 0.0)
            return "complete", {"stop_reason": "completed", "duration": took}, {"output": work.result()}
        told = {"error_code": problem["code"], "error_message": problem["message"]}
        return "fail", told, {"error": problem}

    async def _write_end(self) -> Run | None:
        verb, data, fields = self._verdict()
        at = self._clock.now()
        change = RunChange(verb, at, self.run.attempt, token_usage=self.usage, **fields)
        run = await self._change(change, run_event(verb, at, self.run.id, data))
        note_end(self._store, run)
        return run

    async def begin(self, waited: float, limits: Mapping[str, float]) -> bool:
        """Write down that it starts; False if the run was ended meanwhile, or the store closed."""
        at = self._clock.now()
        change = RunChange("start", at, self.run.attempt, waited=waited)
        told = {"attempt": self.run.attempt + 1, "waited": waited, "limits": dict(limits)}
        found = await self._change(change, run_event("start", at, self.run.id, told))
        if found is None or (found.status, found.attempt) != ("running", self.run.attempt + 1):
            return False
        self.run = found
        note_start(self._store)
        return True

    async def _change(self, change: RunChange, event: NewEvent) -> Run | None:
        """The run after *change*, or as it is where it did not allow that.

        None once the store is closed or the run is another's. Tried until the store answers: a write whose
        answer got lost finds itself done by the next one.
        """
        backoff = Backoff(self._clock)
        while not self.forsaken:
            try:
                found = await self._store.change_run(self.run.id, change, [event])
                return found or await self._store.get_run(self.run.id)
            except (Unavailable, RunNotFound):
                return None
            except StoreError as error:
                log.warning(
                    "run %s: %r could not be stored, trying again: %s", self.run.id, change.verb, error
                )
            await backoff.pause()
        return None


def _problem(error: BaseException) -> dict[str, Any]:
    """An exception as a run keeps it."""
    if isinstance(error, InterlockError):
        return {"code": error.code, "message": error.message[:_MESSAGE_MOST]}
    text = str(error)
    message = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return {"code": "internal_error", "message": message[:_MESSAGE_MOST]}
