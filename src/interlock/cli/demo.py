"""``interlock demo``: the same fleet twice, straight at a provider and through Interlock."""

from __future__ import annotations

import asyncio
import io
import json
import re
import signal
import sys
import tempfile
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from interlock.cli.output import Json
from interlock.errors import InterlockError, Unavailable
from interlock.testing.fleet import Fleet, FleetResult

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LIMIT, LATENCY_MS, LAG_MS = 4, 400, 300
AGENTS, TURNS = 12, 3
PHASE_SECONDS = 26.0

CONFIG = """\
store = "memory:"

[server]
port = 0

[providers.mock]
base_url = "{base}"
limit = {limit}
cooldown = "150ms"
usage = "/usage"
usage_repoll = "20ms"
usage_settle = "25ms"
"""


@dataclass(slots=True)
class Phase:
    """One fleet's run: what it went through, and what the provider saw of it."""

    title: str
    result: FleetResult
    stats: dict[str, Any]
    busiest: Panel
    """The view at its fullest moment, for the picture."""

    def goodput(self) -> float:
        """Calls served, as a share of what the account can do: each occupies a slot while it runs and, in
        the provider's books, a while longer (three quarters of the lag on average)."""
        occupied = self.stats["busySeconds"] + self.stats["served"] * LAG_MS / 1000 * 0.75
        return float(occupied / (LIMIT * self.result.elapsed)) if self.result.elapsed else 0.0

    def as_json(self) -> dict[str, Any]:
        return {
            "requests": self.stats["requests"],
            "refused": self.stats["refused"],
            "peak": self.stats["peak"],
            "goodput": round(self.goodput(), 3),
            "turns": len(self.result.turns),
            "failedTurns": self.result.failed,
            "seconds": round(self.result.elapsed, 1),
            "turnMeanSeconds": round(self.result.turn_mean(), 2),
            "turnP99Seconds": round(self.result.turn_p99(), 2),
        }


async def demo(*, keep: bool = False, seed: int = 1, as_json: Json = False, svg: Path | None = None) -> int:
    """Watch a fleet of agents with and without Interlock, in under a minute.

    Starts a provider that counts late and punishes overshoot, and a real server in front of it. Exits 0
    only if the gated fleet was never refused and never exceeded the limit.

    Example: interlock demo --keep

    Args:
        keep: leave provider and server running at the end, until Ctrl-C.
        seed: of the fleet and the provider.
        as_json: print the comparison as JSON, and nothing else.
        svg: also write a picture of the last view and the comparison to this file.
    """
    missing = [name for name in ("openai", "anthropic") if find_spec(name) is None]
    if missing:
        raise InterlockError(f"the demo needs {' and '.join(missing)}: pip install 'interlock[demo]'")
    console = Console(stderr=as_json)
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        provider = await stack.enter_async_context(_provider(seed))
        server = await stack.enter_async_context(_server(directory, provider))
        client = await stack.enter_async_context(httpx2.AsyncClient(trust_env=False, timeout=5.0))
        gated_url = f"{server}/gateway/mock"
        console.print(
            f"[bold]{AGENTS} agents[/], {TURNS} turns each, on the real openai and anthropic SDKs. "
            f"The provider allows {LIMIT} at once, counts a call for up to {LAG_MS} ms after its end, "
            f"refuses above {LIMIT + 1} and slows down for it."
        )
        straight = await _phase("straight at the provider", provider, None, provider, client, console, seed)
        await _settled(provider, client)
        gated = await _phase("through Interlock", provider, server, gated_url, client, console, seed)
        _compare(console, straight, gated)
        if svg is not None:
            _draw(svg, straight, gated)
        if as_json:
            print(json.dumps({"straight": straight.as_json(), "gated": gated.as_json()}))
        kept = gated.stats["refused"] == 0 and gated.stats["peak"] <= LIMIT and not gated.result.failed
        if keep:
            await _until_signal(console, provider, server)
    return 0 if kept else 1


# -- one phase


async def _phase(
    title: str,
    provider: str,
    server: str | None,
    base: str,
    client: httpx2.AsyncClient,
    console: Console,
    seed: int,
) -> Phase:
    await client.post(provider + "/stats/reset")
    fleet = Fleet(base + "/v1", base, agents=AGENTS, turns=TURNS, seed=seed)
    running = asyncio.create_task(fleet.run())
    began = time.monotonic()
    stats: dict[str, Any] = {}
    busiest: tuple[int, Panel] | None = None
    with Live(console=console, refresh_per_second=12, transient=False) as live:
        while True:
            stats = (await client.get(provider + "/stats")).json()
            gates = (
                []
                if server is None
                else (await client.get(server + "/concurrency/status")).json()["providers"]
            )
            fleet.result.elapsed = elapsed = time.monotonic() - began
            view = _view(title, fleet, stats, gates, elapsed)
            live.update(view)
            queued = sum(gate["queued"] for gate in gates)
            business = 100 * stats["inFlight"] + 10 * stats["running"] + queued
            if busiest is None or business >= busiest[0]:
                busiest = business, view
            if running.done() or elapsed > PHASE_SECONDS:
                break
            await asyncio.wait((running,), timeout=0.1)
    if running.done():
        running.result()
    else:
        unfinished = fleet.turns_in_all - len(fleet.result.turns) - fleet.result.failed
        running.cancel()
        await asyncio.wait((running,))
        fleet.result.failed += unfinished
    return Phase(title, fleet.result, stats, busiest[1])


async def _settled(provider: str, client: httpx2.AsyncClient) -> None:
    """Wait until the account is idle and forgiven, so that both fleets start even."""
    deadline = time.monotonic() + 8
    while time.monotonic() < deadline:
        stats = (await client.get(provider + "/stats")).json()
        if not stats["inFlight"] and not stats["punished"]:
            return
        await asyncio.sleep(0.05)


# -- pictures


def _view(
    title: str, fleet: Fleet, stats: dict[str, Any], gates: list[dict[str, Any]], elapsed: float
) -> Panel:
    lines = Table.grid(padding=(0, 2))
    lines.add_column(style="dim", min_width=10)
    lines.add_column()
    lines.add_row(
        "provider", _slots(stats["running"], stats["inFlight"] - stats["running"], LIMIT, "lagging")
    )
    for gate in gates:
        holding = gate["inFlight"] - gate.get("cooling", 0)
        lines.add_row("gate", _slots(holding, gate.get("cooling", 0), gate["limit"], "cooling"))
        state = "paused" if gate["paused"] else "open"
        lines.add_row(
            "queue", Text(f"{'▪' * gate['queued']} {gate['queued']} waiting, {state}", style="cyan")
        )
    if not gates:
        lines.add_row("gate", Text("none", style="dim"))
        lines.add_row("queue", Text("none: every agent calls when it likes", style="dim"))
    refused = stats["refused"]
    lines.add_row("refused", Text(str(refused), style="bold red" if refused else "green"))
    done = len(fleet.result.turns) + fleet.result.failed
    progress = Table.grid(padding=(0, 2))
    progress.add_row(
        ProgressBar(total=fleet.turns_in_all, completed=done, width=40),
        f"{done}/{fleet.turns_in_all} turns, {fleet.result.failed} failed, {elapsed:4.1f} s",
    )
    return Panel(Group(lines, Text(), progress), title=title, title_align="left", width=88)


def _slots(held: int, fading: int, limit: int, fading_name: str) -> Text:
    over = max(0, held + fading - limit)
    text = Text()
    text.append("● " * held, style="green")
    text.append("◐ " * fading, style="yellow")
    text.append("○ " * max(0, limit - held - fading), style="dim")
    text.append(f" {held} running, {fading} {fading_name}")
    if over:
        text.append(f", {over} over the limit", style="bold red")
    return text


def _compare(console: Console, straight: Phase, gated: Phase) -> None:
    table = Table(title="the same work, twice", title_justify="left", header_style="bold")
    table.add_column("")
    for phase in (straight, gated):
        table.add_column(phase.title, justify="right")
    rows: list[tuple[str, str, str]] = []
    for name, key in (
        ("requests at the provider", "requests"),
        ("answered with 429", "refused"),
        (f"most in flight (limit {LIMIT})", "peak"),
        ("share of its true capacity used", "goodput"),
        ("turns that failed", "failedTurns"),
        ("mean turn, s", "turnMeanSeconds"),
        ("p99 turn, s", "turnP99Seconds"),
        ("all done after, s", "seconds"),
    ):
        values = [phase.as_json()[key] for phase in (straight, gated)]
        shown = [f"{value:.0%}" if key == "goodput" else f"{value:g}" for value in values]
        rows.append((name, *shown))  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _draw(file: Path, straight: Phase, gated: Phase) -> None:
    canvas = Console(record=True, width=92, file=io.StringIO(), force_terminal=True)
    canvas.print(straight.busiest, gated.busiest, "")
    _compare(canvas, straight, gated)
    # The picture stands for itself: no fonts from elsewhere.
    template = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    template = re.sub(r"<!--.*?-->", "", template.replace("Fira Code, ", ""))
    canvas.save_svg(str(file), title="interlock demo", code_format=template)


# -- processes


def _provider(seed: int) -> Any:
    return _process(
        f"mock-provider --port 0 --limit {LIMIT} --hard-cap {LIMIT + 1} "
        f"--lag {LAG_MS}ms --latency {LATENCY_MS}ms --seed {seed}".split(),
        r"ANTHROPIC_BASE_URL=(\S+)",
        Path.cwd(),
    )


def _server(directory: Path, provider: str) -> Any:
    config = directory / "interlock.toml"
    config.write_text(CONFIG.format(base=provider, limit=LIMIT))
    return _process(["serve", "--config", str(config)], r" on (http://\S+),", directory)


@asynccontextmanager
async def _process(arguments: list[str], announced: str, directory: Path) -> AsyncIterator[str]:
    """A command of ours in a process of its own; yields what it announces on its first lines."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "interlock.cli", *arguments),
        cwd=directory,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        process_group=0,  # Ctrl-C is ours to pass on, in order
    )
    assert process.stdout is not None
    assert process.stderr is not None
    drained: asyncio.Task[bytes] | None = None
    try:
        said = b""
        async with asyncio.timeout(20):
            while (match := re.search(announced, said.decode())) is None:
                line = await process.stdout.readline()
                if not line:
                    error = (await process.stderr.read()).decode().strip()
                    raise Unavailable(f"`interlock {arguments[0]}` did not start: {error}")
                said += line
        drained = asyncio.create_task(process.stdout.read())
        yield match[1]
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            async with asyncio.timeout(5):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
        if drained is not None:
            await drained


async def _until_signal(console: Console, provider: str, server: str) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    console.print(
        f"\nStill running: {server} in front of {provider}. Ctrl-C stops both.\n"
        f"  export OPENAI_BASE_URL={server}/gateway/mock/v1\n"
        f"  export ANTHROPIC_BASE_URL={server}/gateway/mock\n"
        f"  interlock status --url {server}\n"
        f"  dashboard: {server}/"
    )
    await stopped.wait()
