"""``interlock worker``: a process that serves sessions of a store which others share."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from interlock import __version__
from interlock.agents.python import session_agents
from interlock.app import Interlock, check_supported
from interlock.cli.output import Json
from interlock.config import Config, load_config, parse_duration, shown_url
from interlock.errors import ValidationError
from interlock.session.sessions import Sessions
from interlock.telemetry.logs import log_to

DRAIN_SECONDS = 30.0


def worker(
    *,
    agents: Annotated[list[str] | None, Parameter(consume_multiple=True, negative=())] = None,
    config: Annotated[Path | None, Parameter(help="Default: interlock.toml here, if there is one.")] = None,
    lease: str = "30s",
    log_format: Literal["text", "json"] | None = None,
    as_json: Json = False,
) -> int:
    """Serve sessions of the store in PostgreSQL that the configuration names, on any number of hosts.

    It takes sessions of its agents that have work and no worker, and keeps each until it rests. SIGTERM or
    Ctrl-C lets what runs finish first, and others take over what waits; a second one stops at once.

    Example: interlock worker --agents my_agents:coder

    Args:
        agents: "module:name" of an agent, which is offered as "name", or of a dict of agents by name; beside
            those that are configured.
        lease: after how long without a sign of this worker its sessions are others', such as "30s".
        log_format: of what it writes to standard error (default: the configuration's).
        as_json: print who it is and what it serves as a line of JSON.
    """
    seconds = parse_duration(lease)
    if seconds < 1:
        raise ValidationError(f"--lease is {lease}; allowed are durations from 1s on")
    settings = load_config(config)
    check_supported(settings)
    if not settings.store.startswith(("postgres://", "postgresql://")):
        raise ValidationError(
            f"store is {shown_url(settings.store)}, which one process has for itself; workers need"
            ' "postgresql://host/database"'
        )
    keys = [settings.server.token, *(provider.api_key for provider in settings.providers.values())]
    log_to(style=log_format or settings.server.log_format, secrets=[key for key in keys if key is not None])
    sys.path.insert(0, str((config or Path("interlock.toml")).absolute().parent))
    found = {name: agent for target in agents or () for name, agent in session_agents(target).items()}
    if not found and not settings.agents:
        raise ValidationError("there is no agent: name one with --agents module:name, or configure it")
    return asyncio.run(run(settings, found, seconds, as_json=as_json))


async def run(config: Config, agents: dict[str, Any], lease: float, *, as_json: bool = False) -> int:
    """Work until a signal has ended it; the exit code."""
    async with Interlock(config, agents=agents, lease=lease) as fleet:
        stopping = _Stopping(fleet.sessions)
        stopping.install()
        names, store = sorted(fleet.sessions.agents), shown_url(config.store)
        told = {"version": __version__, "pid": os.getpid(), "agents": names, "store": store}
        text = f"interlock {__version__} worker for {', '.join(names)}, state in {store}"
        print(json.dumps(told) if as_json else text, flush=True)
        await stopping.over
        await fleet.sessions.aclose(timeout=0)
    return stopping.code


class _Stopping:
    """First signal: take nothing new and let what runs finish. Second: stop at once."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._draining: asyncio.Task[None] | None = None
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.code = 0

    def install(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)

    def _signalled(self) -> None:
        if self._draining is None:
            self._draining = asyncio.get_running_loop().create_task(self._drain())
            return
        self.code = 1
        self._end()

    async def _drain(self) -> None:
        runs = sum(server.status().in_flight_count for server in self._sessions.running.values())
        if runs:
            print(f"interlock: finishing {runs} runs; again to stop at once", file=sys.stderr)
        await self._sessions.aclose(DRAIN_SECONDS)
        self._end()

    def _end(self) -> None:
        if not self.over.done():
            self.over.set_result(None)
