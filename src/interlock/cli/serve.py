"""``interlock serve``: the server, from its configuration to its last answer."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import sys
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import uvicorn
from cyclopts import Parameter

from interlock import __version__
from interlock.admission.local import LocalAdmission
from interlock.app import Interlock, check_supported
from interlock.cli.reload import ConfigFile, Reloading
from interlock.config import Config, shown_url
from interlock.errors import InterlockError, ValidationError
from interlock.http.access.book import TokenBook
from interlock.http.app import create_app
from interlock.http.control import Fleet
from interlock.http.doctor import Doctor
from interlock.http.gateway.call import GatewayProvider
from interlock.http.gateway.proxy import Gateway
from interlock.http.gateway.upstream import HttpUpstream
from interlock.http.permits.desk import PermitDesk
from interlock.provider.signals import WORDINGS, Wording
from interlock.stores.expected import Expected
from interlock.telemetry.logs import log_to

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
    log_format: Literal["text", "json"] | None = None,
) -> int:
    """Run the gateway and the control plane.

    Without any configuration: on 127.0.0.1:7411, with its state in interlock.db, for the providers whose keys
    are in the environment. SIGTERM or Ctrl-C finishes the calls under way first; a second one stops at once.
    Limits and cooldowns that change in the file are taken over within a second, or at once on SIGHUP.

    Example: interlock serve --config interlock.toml
    """
    overrides = {"host": host, "port": port, "log_format": log_format}
    given = {name: value for name, value in overrides.items() if value is not None}

    def adjusted(read: Config) -> Config:
        return msgspec.structs.replace(read, server=msgspec.structs.replace(read.server, **given))

    file = ConfigFile(config, adjusted)
    settings = file.read()
    check_supported(settings)
    if settings.coordination != "local":
        raise ValidationError('coordination: a server keeps the limits itself; allowed is "local"')
    log_to(style=settings.server.log_format, secrets=_secrets(settings))
    if any(agent.type == "python" for agent in settings.agents.values()):
        sys.path.insert(0, str(file.path.absolute().parent))  # modules beside the file that names them
    _settle_memory()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(run(settings, file))


async def run(config: Config, file: ConfigFile) -> int:
    """Serve *config*, and what *file* says later, until a signal has ended it; the exit code."""
    listening = _bind(config)
    async with AsyncExitStack() as stack:
        stack.callback(listening.close)
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
        shown = Fleet(fleet.limits, fleet.limiter, fleet.governor, fleet.pools)
        expected = Expected(tuple(config.agents), config.retention.max_events_per_session)
        doctor = Doctor(fleet.gate, fleet.ledger, fleet.store, expected)
        book = TokenBook(fleet.store, fleet.gate.clock, config.server.token)
        await book.load()
        if fleet.sessions.shared:
            following = asyncio.create_task(book.follow())
            stack.callback(following.cancel)
        server = _Server(
            create_app(
                fleet.gate, gateway, config.server, desk, shown, fleet.sessions, doctor=doctor, book=book
            )
        )
        await fleet.sessions.recover()
        stopping = _Stopping(server, gateway, desk, fleet.sessions)
        stopping.install()
        reloading = Reloading(fleet, file)
        reloading.start()
        stack.callback(reloading.stop)
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        server.ready.add_done_callback(lambda _: _announce(config, listening.getsockname()[1]))
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


class _Server(uvicorn.Server):
    """uvicorn without its own ideas about signals, logs and headers."""

    def __init__(self, app: object) -> None:
        super().__init__(
            uvicorn.Config(
                app,  # type: ignore[arg-type]
                http="httptools",
                ws="websockets-sansio",
                ws_per_message_deflate=False,
                ws_ping_interval=None,  # clients of permits are heard of all the time
                lifespan="off",
                access_log=False,
                log_config=None,
                server_header=False,
                date_header=False,
                proxy_headers=False,
                timeout_keep_alive=75,
                timeout_graceful_shutdown=5,  # for answers that their client does not read
                backlog=2048,
            )
        )

        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set_result(None)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Stopping:
    """First signal: take nothing new and let what runs finish. Second: stop at once."""

    def __init__(
        self, server: uvicorn.Server, gateway: Gateway, desk: PermitDesk, sessions: Sessions
    ) -> None:
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


def _bind(config: Config) -> socket.socket:
    host, port = config.server.host, config.server.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named so that asyncio, too, turns off the delay of small writes on what it accepts.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise InterlockError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another with --port"
        ) from None
    listening.setblocking(False)
    return listening


def _announce(config: Config, port: int) -> None:
    host = f"[{config.server.host}]" if ":" in config.server.host else config.server.host
    base = f"http://{host}:{port}"
    print(f"interlock {__version__} on {base}, state in {shown_url(config.store)}\n")
    for provider in config.providers.values():
        name = provider.id.upper().replace("-", "_")
        print(f"  export {name}_BASE_URL={base}/gateway/{provider.id}")
    print()
    for provider in config.providers.values():
        limit = "counted, unlimited" if provider.limit is None else f"at most {provider.limit} in flight"
        key = "the caller's key" if provider.api_key is None else "its own key"
        print(f"  {provider.id}: {provider.base_url}, {limit}, {key}")
    sys.stdout.flush()


def _loop_factory() -> type[asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop  # type: ignore[return-value]
