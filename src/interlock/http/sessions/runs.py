"""Runs for every language: looked at, waited for, and ended over plain HTTP."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from interlock.core.runs import ENDED
from interlock.errors import (
    AcquireTimeout,
    CapabilityNotSupported,
    Draining,
    InvalidOperation,
    InvalidStatus,
    RunCancelled,
    RunFailed,
    RunInterrupted,
    RunNotFound,
    StoreError,
    Unavailable,
)
from interlock.http.access.caller import caller_of
from interlock.http.endpoints import endpoint
from interlock.http.problems import json
from interlock.http.queries import read_query
from interlock.http.sessions import words
from interlock.http.sessions.answers import ChangedAnswer, RunAnswer, run_said
from interlock.http.sessions.reception import run_id_of
from interlock.http.waiting import poll

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request
    from starlette.responses import Response

    from interlock.core.sessions import Run
    from interlock.http.sessions.reception import Reception
    from interlock.session.shared import ServedSession


class RunPath(msgspec.Struct):
    """A run."""

    id: words.Segment


_of_run = partial(endpoint, tag="runs", within=RunPath)
_CHANGES = (
    CapabilityNotSupported,
    Draining,
    InvalidOperation,
    InvalidStatus,
    RunNotFound,
    StoreError,
    Unavailable,
)


class RunRoutes:
    """The routes of runs that are there."""

    def __init__(self, reception: Reception) -> None:
        self._reception = reception

    @_of_run(
        "GET /runs/{id}",
        "read",
        "A run",
        answers={200: RunAnswer},
        problems=(RunNotFound, StoreError, Unavailable),
    )
    async def run(self, request: Request) -> Response:
        return await self._said(await self._run(request))

    @_of_run(
        "GET /runs/{id}/wait",
        "read",
        "Wait for the end of a run",
        query=words.WaitAsked,
        answers={200: RunAnswer},
        problems=(
            AcquireTimeout,
            Draining,
            InvalidOperation,
            InvalidStatus,
            RunNotFound,
            StoreError,
            Unavailable,
        ),
    )
    async def wait_for_run(self, request: Request) -> Response:
        """The run once it has ended, however it ended."""
        timeout = read_query(request, words.WaitAsked).timeout_ms / 1000
        run = await self._run(request)
        if run.status not in ENDED:
            server = await self._reception.server(run.session_id)
            with suppress(RunFailed, RunCancelled, RunInterrupted):
                await poll(request, self._reception.desk, server.await_run(run.id, timeout=timeout))
            run = await self._run(request)
        return await self._said(run)

    @_of_run(
        "POST /runs/{id}/cancel",
        "submit",
        "Cancel a run",
        answers={202: ChangedAnswer},
        problems=_CHANGES,
    )
    async def cancel_run(self, request: Request) -> Response:
        """One that has ended stays as it is: the client gets what it wanted, or is told that it came late."""
        run = await self._run(request)
        if run.status not in ENDED:
            await (await self._reception.server(run.session_id)).cancel_run(run.id)
            run = await self._run(request)
        return json({"runId": run.id, "status": run.status}, 202)

    @_of_run(
        "POST /runs/{id}/interrupt",
        "submit",
        "Interrupt a run",
        answers={202: ChangedAnswer},
        problems=_CHANGES,
    )
    async def interrupt_run(self, request: Request) -> Response:
        return await self._change(request, lambda server: server.interrupt_run)

    @_of_run(
        "POST /runs/{id}/pause",
        "submit",
        "Pause a run",
        answers={202: ChangedAnswer},
        problems=_CHANGES,
    )
    async def pause_run(self, request: Request) -> Response:
        return await self._change(request, lambda server: server.pause_run)

    @_of_run(
        "POST /runs/{id}/resume",
        "submit",
        "Let a paused run go on",
        answers={202: ChangedAnswer},
        problems=_CHANGES,
    )
    async def resume_run(self, request: Request) -> Response:
        return await self._change(request, lambda server: server.resume_run)

    async def _change(
        self, request: Request, verb: Callable[[ServedSession], Callable[[str], Awaitable[None]]]
    ) -> Response:
        """Do *verb* to a run in flight; 409 for any other."""
        run = await self._run(request)
        if run.status not in ENDED:
            server = await self._reception.server(run.session_id)
            with suppress(RunNotFound):  # it is there, but not in flight
                await verb(server)(run.id)
                run = await self._run(request)
                return json({"runId": run.id, "status": run.status}, 202)
            run = await self._run(request)
        raise InvalidStatus(f"run {run.id!r} is {run.status}, not in flight", status=run.status)

    async def _run(self, request: Request) -> Run:
        run_id = run_id_of(request)
        run = await self._reception.sessions.store.get_run(run_id)
        if not caller_of(request.scope).owns(run.session_id):
            raise RunNotFound(f"no run {run_id!r}", run=run_id)
        return run

    async def _said(self, run: Run) -> Response:
        return json(run_said(run, await self._reception.place(run)))
