"""``GET /doctor``: a running server examines itself, its store with it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from interlock import __version__
from interlock.core.examine import examine
from interlock.core.findings import Finding
from interlock.errors import StoreError, Unavailable
from interlock.http.endpoints import endpoint
from interlock.http.problems import json
from interlock.stores.expected import Expected
from interlock.stores.memory import MemoryStore

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from interlock.ledger import Ledger
    from interlock.provider.gate import ProviderGate
    from interlock.stores.postgres import PostgresStore
    from interlock.stores.sqlite import SQLiteStore

EXAMINES_WITHIN = 60.0
"""Seconds that the reading of a database may take."""
_FEW_FILES = 64


class Doctor:
    """Examines the limits of *gate*, the *ledger* of their changes, the *store*, and this process."""

    def __init__(
        self,
        gate: ProviderGate,
        ledger: Ledger | None = None,
        store: MemoryStore | SQLiteStore | PostgresStore | None = None,
        expected: Expected = Expected(),  # noqa: B008 - it cannot be changed
    ) -> None:
        self._gate = gate
        self._ledger = ledger
        self._store = store
        self._expected = expected
        self._busy = False

    async def examine(self) -> list[Finding]:
        """Everything that there is to say. Raises `Unavailable` while an examination is under way."""
        if self._busy:
            raise Unavailable("an examination is under way; ask again when it has ended")
        self._busy = True
        try:
            kernel, clock = self._gate.admission.kernel, self._gate.clock
            limits = examine(kernel, round(clock.now() * 1000))
            return [*limits, *self._history(), *_files(), *await self._database()]
        finally:
            self._busy = False

    def _history(self) -> list[Finding]:
        """What the ledger says last of a limit is in force."""
        if self._ledger is None:
            return []
        limits, known = self._gate.admission.limits(), self._ledger.known()
        in_force = {name: limits[name].capacity if name in limits else None for name in known}
        wrong = [
            f"{name} is {_said(in_force[name])}, its ledger says {_said(last)}"
            for name, last in known.items()
            if in_force[name] != last
        ]
        if wrong:
            remedy = "interlock limits history NAME, then: interlock limits set NAME CAPACITY"
            return [Finding("error", "limits", "limits and their ledger disagree", "; ".join(wrong), remedy)]
        return [Finding("ok", "limits", "the ledger leads to the limits in force", f"{len(known)} limits")]

    async def _database(self) -> list[Finding]:
        store = self._store
        if store is None or isinstance(store, MemoryStore):
            return [Finding("ok", "store", "in memory: it ends with the server")]
        path: Path | None = getattr(store, "path", None)
        if path is None:
            from interlock.stores.postgres import PostgresStore  # it needs asyncpg

            assert isinstance(store, PostgresStore)
            return await store.examine(self._expected)
        from interlock.stores.sqlite.examine import examine_file  # it needs fcntl

        clock = self._gate.clock
        until = clock.now() + EXAMINES_WITHIN
        over = False
        try:
            return await asyncio.to_thread(
                examine_file, path, self._expected, lambda: over or clock.now() > until
            )
        finally:
            over = True  # whoever asked has gone: the thread need not read on


class Examination(TypedDict):
    """The findings, with the process and the version that they are of."""

    version: str
    pid: int
    findings: list[Finding]


class DoctorRoutes:
    """The route of ``/doctor``."""

    def __init__(self, doctor: Doctor) -> None:
        self._doctor = doctor

    @endpoint(
        "GET /doctor",
        "admin",
        "The server examines itself",
        tag="state",
        answers={200: Examination},
        problems=(StoreError, Unavailable),
    )
    async def doctor(self, request: Request) -> Response:
        findings = await self._doctor.examine()
        return json({"version": __version__, "pid": os.getpid(), "findings": findings})


def _files() -> list[Finding]:
    """How many more files and connections this process may open."""
    try:
        import resource

        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        used = len(list(Path("/proc/self/fd").iterdir()))
    except (ImportError, OSError):
        return []
    evidence = f"{used} of {most} are open"
    if 0 <= most < used + _FEW_FILES:
        remedy = "ulimit -n 65536, in what starts the server, then start it again"
        return [Finding("error", "server", "it can hardly open another connection", evidence, remedy)]
    return [Finding("ok", "server", "there are file descriptors left", evidence)]


def _said(capacity: int | None) -> str:
    return "unlimited" if capacity is None else str(capacity)
