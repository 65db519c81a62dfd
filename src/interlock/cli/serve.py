"""``interlock serve``: the server, from its configuration to its last answer."""

from __future__ import annotations

import asyncio
import gc
import json
import signal
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from cyclopts import Parameter

from interlock import __version__
from interlock.admission.local import LocalAdmission
from interlock.app import Interlock, check_supported
from interlock.cli.output import Json
from interlock.cli.reload import ConfigFile, Reloading
from interlock.config import Config, describe, shown_url
from interlock.errors import ValidationError
from interlock.history import History
from interlock.http.access.book import TokenBook
from interlock.http.access.reach import check_reach
from interlock.http.app import create_app
from interlock.http.connections.listening import leave, listen
from interlock.http.connections.places import Places
from interlock.http.connections.server import Server, check_parser, uvicorn_config
from interlock.http.control import Fleet
from interlock.http.doctor import Doctor
from interlock.http.gateway.call import GatewayProvider
from interlock.http.gateway.proxy import Gateway
from interlock.http.gateway.upstream import HttpUpstream
from interlock.http.permits.desk import PermitDesk
from interlock.provider.signals import WORDINGS, Wording
from interlock.stores.expected import Expected
from interlock.telemetry.logs import log_to
from interlock.telemetry.sampling import Sampler

if TYPE_CHECKING:
    from collections.abc import Iterator

    from interlock.secret import Secret
    from interlock.session.sessions import Sessions

DRAIN_SECONDS = 30.0
LAYERS = ("streams", "global")
"""What a gateway call takes besides its provider."""


def serve(
    *,
    config: Annotated[Path | None, Parameter(help="Default: interlock.toml here, if there is one.")] = None,
    host: str | None = None,
    port: int | None = None,
    socket: Annotated[str | None, Parameter(help="The path of a Unix socket, instead of an address.")] = None,
    log_format: Literal["text", "json"] | None = None,
    as_json: Json = False,
    insecure_no_auth: Annotated[
        bool, Parameter(negative=(), help="Listen where others can reach it, without any token.")
    ] = False,
) -> int:
    """Run the gateway and the control plane.

    Without any configuration: on 127.0.0.1:7411, with its state in interlock.db, for the providers whose keys
    are in the environment. SIGTERM or Ctrl-C finishes the calls under way first; a second one stops at once.
    Limits and cooldowns that change in the file are taken over within a second, or at once on SIGHUP.

    Example: interlock serve --config interlock.toml

    Args:
        host: where it listens (default: the configuration's).
        port: so, too; 0 takes any free one.
        log_format: of what it writes to standard error (default: the configuration's).
        as_json: print where it listens, and then each change, as a line of JSON.
    """
    overrides = {"host": host, "port": port, "socket": socket, "log_format": log_format}
    given = {name: value for name, value in overrides.items() if value is not None}

    def adjusted(read: Config) -> Config:
        return msgspec.structs.replace(read, server=msgspec.structs.replace(read.server, **given))

    file = ConfigFile(config, adjusted)
    settings = file.read()
    check_supported(settings)
    check_parser()
    if settings.coordination != "local":
        raise ValidationError('coordination: a server keeps the limits itself; allowed is "local"')
    log_to(style=settings.server.log_format, secrets=_secrets(settings))
    if any(agent.type == "python" for agent in settings.agents.values()):
        sys.path.insert(0, str(file.path.absolute().parent))  # modules beside the file that names them
    _settle_memory()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(run(settings, file, insecure=insecure_no_auth, as_json=as_json))


async def run(config: Config, file: ConfigFile, *, insecure: bool = False, as_json: bool = False) -> int:
    """Serve *config*, and what *file* says later, until a signal has ended it; the exit code.

    Raises `ValidationError` where others can reach it and nobody is asked for a token, unless *insecure*.
    """
    async with AsyncExitStack() as stack:
        fleet = await stack.enter_async_context(Interlock(config))
        assert isinstance(fleet.admission, LocalAdmission)
        assert fleet.limits is not None
        desk = PermitDesk(fleet.admission, fleet.store)
        desk.ledger = fleet.ledger
        await desk.load()
        stack.push_async_callback(desk.aclose)
        upstream = HttpUpstream()
        stack.push_async_callback(upstream.aclose)
        gateway = Gateway(
            fleet.gate,
            upstream,
            {provider.id: provider for provider in _providers(config)},
            also=LAYERS,
            ping_after=config.gateway.ping_after,
            timeout=config.gateway.timeout,
            max_body=config.gateway.max_body,
        )
        gateway.tracing = fleet.telemetry
        shown = Fleet(fleet.limits, fleet.limiter, fleet.governor, fleet.pools)
        expected = Expected(tuple(config.agents), config.retention.max_events_per_session)
        doctor = Doctor(fleet.gate, fleet.ledger, fleet.store, expected)
        book = TokenBook(fleet.store, fleet.gate.clock, config.server.token)
        await book.load()
        stack.push_async_callback(book.aclose)
        if fleet.sessions.shared:
            following = asyncio.create_task(book.follow())
            stack.callback(following.cancel)
        history = History(fleet.store, fleet.gate.clock)
        await history.load()
        sampler = Sampler(history, fleet.admission, fleet.gate)
        app = create_app(
            fleet.gate,
            gateway,
            config.server,
            desk,
            shown,
            fleet.sessions,
            doctor=doctor,
            book=book,
            history=history,
        )
        sampler.start()
        stack.push_async_callback(sampler.aclose)
        places = Places(config.server.max_connections, config.server.max_connections_per_address)
        server = Server(uvicorn_config(app, places=places))
        check_reach(config.server, book, insecure=insecure)
        listening = listen(config.server)
        stack.callback(leave, config.server, listening)
        await fleet.sessions.recover()
        stopping = _Stopping(server, gateway, desk, fleet.sessions)
        stopping.install()
        reloading = Reloading(fleet, file, as_json=as_json)
        reloading.start()
        stack.callback(reloading.stop)
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        announce = _announce_json if as_json else _announce
        bound = listening.getsockname()
        server.ready.add_done_callback(lambda _: announce(config, bound))
        await serving
        await fleet.sessions.aclose(timeout=0)
        return stopping.code


def _secrets(config: Config) -> list[Secret]:
    """What no line of the log may show."""
    found = [config.server.token, *(provider.api_key for provider in config.providers.values())]
    return [secret for secret in found if secret is not None]


def _settle_memory() -> None:
    """Have the garbage collector pass over what stays, and look more rarely.

    Calls leave hardly a cycle behind; to look for them as often as usual takes a twentieth of the time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


class _Stopping:
    """First signal: take nothing new and let what runs finish. Second: stop at once."""

    def __init__(self, server: Server, gateway: Gateway, desk: PermitDesk, sessions: Sessions) -> None:
        self._server = server
        self._gateway = gateway
        self._desk = desk
        self._sessions = sessions
        self._draining: asyncio.Task[None] | None = None
        self.code = 0

    def install(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)

    def _signalled(self) -> None:
        if self._draining is None:
            self._gateway.draining = True
            self._draining = asyncio.get_running_loop().create_task(self._drain())
            return
        self.code = 1
        self._stop_now()

    async def _drain(self) -> None:
        calls: set[asyncio.Task[Any]] = set(self._gateway.calls)
        runs = sum(server.status().in_flight_count for server in self._sessions.running.values())
        if calls or runs:
            what = " and ".join(f"{n} {noun}" for n, noun in ((len(calls), "calls"), (runs, "runs")) if n)
            print(f"interlock: finishing {what}; again to stop at once", file=sys.stderr)
        closing = asyncio.get_running_loop().create_task(self._sessions.aclose(DRAIN_SECONDS))
        _, left = await asyncio.wait({*calls, closing}, timeout=DRAIN_SECONDS)
        if left or (closing.done() and closing.exception() is not None):
            self.code = 1
        self._stop_now()

    def _stop_now(self) -> None:
        self._desk.drain()
        for call in self._gateway.calls:
            call.cancel()
        self._server.should_exit = True
        self._server.force_exit = bool(self._gateway.calls)


def _providers(config: Config) -> Iterator[GatewayProvider]:
    for provider in config.providers.values():
        own = tuple(Wording(w.reason, code=w.code, text=w.text) for w in provider.wordings)
        key = None if provider.api_key is None else provider.api_key.reveal()
        yield GatewayProvider(provider.id, provider.base_url, key, own + WORDINGS)


def _places(config: Config, bound: Any) -> tuple[str, str]:
    """Where it listens, and what base URLs begin with."""
    if config.server.socket is not None:
        return f"unix:{config.server.socket}", "http://localhost"
    host = f"[{config.server.host}]" if ":" in config.server.host else config.server.host
    return f"http://{host}:{bound[1]}", f"http://{host}:{bound[1]}"


def _announce_json(config: Config, bound: Any) -> None:
    where, base = _places(config, bound)
    providers = [
        {"id": one.id, "baseUrl": one.base_url, "limit": one.limit, "gateway": f"{base}/gateway/{one.id}"}
        for one in config.providers.values()
    ]
    told = {"url": where, "version": __version__, "store": describe(config)["store"], "providers": providers}
    print(json.dumps(told), flush=True)


def _announce(config: Config, bound: Any) -> None:
    where, base = _places(config, bound)
    print(f"interlock {__version__} on {where}, state in {shown_url(config.store)}\n")
    for provider in config.providers.values():
        name = provider.id.upper().replace("-", "_")
        print(f"  export {name}_BASE_URL={base}/gateway/{provider.id}")
    print()
    for provider in config.providers.values():
        limit = "counted, unlimited" if provider.limit is None else f"at most {provider.limit} in flight"
        key = "the caller's key" if provider.api_key is None else "its own key"
        print(f"  {provider.id}: {provider.base_url}, {limit}, {key}")
    print(f"\n  dashboard: {base}/", flush=True)


def _loop_factory() -> type[asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop  # type: ignore[return-value]
