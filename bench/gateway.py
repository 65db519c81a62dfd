"""The gateway beside a bare pass-through: requests a second, and milliseconds to the first byte.

All proxies run at once, each a process on the first CPU, and are loaded in turns; provider and load share the
last CPU. *Burst*: 64 agents, answers of 20 events in one write, as many as the proxy carries. *Paced*: 64
streams of 20 events 10 ms apart, at which no proxy is busy.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from bench.load import CHAT
from bench.measure import Table, pin, ratio, spread, take_turns
from bench.processes import Server, free_port, module, serving

Figures = dict[str, Any]

DIRECT, BARE = "(no proxy)", "uvicorn + aiohttp, bare"
GATES, USAGE, WAITING = "Interlock, all gates on", "  and the usage gate", "  and half of them waiting"
LITELLM = "LiteLLM's proxy, 1 worker"
LITELLM_VERSION = "1.106.2"
_HOME = Path(tempfile.gettempdir()) / "interlock-bench-litellm"
GATEWAY = "/gateway/mock/chat/completions"

_CONFIG = """
store = "sqlite:///{folder}/interlock.db"
server.port = 0
limits.streams = 1000
limits.global = 1000

[providers.mock]
base_url = "{upstream}/v1"
limit = {limit}
cooldown = "0s"
{more}
"""


def run(*, quick: bool = False, litellm: bool = False) -> list[Table]:
    """Both tables; *litellm* installs and measures LiteLLM's proxy, too."""
    rounds, seconds = (2, 1.0) if quick else (4, 1.5)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        upstream = stack.enter_context(serving(*module("upstream"), first_cpu=False))
        bare = stack.enter_context(serving(*module("bare", upstream.url), first_cpu=True))
        targets = {DIRECT: (upstream, CHAT), BARE: (bare, CHAT)}
        for name, limit, more in (
            (GATES, 1000, ""),
            (USAGE, 1000, 'usage = "/usage"'),
            (WAITING, 32, ""),
        ):
            home = folder / str(len(targets))
            targets[name] = stack.enter_context(interlock(home, upstream.url, limit, more)), GATEWAY
        if litellm and _installed():
            targets[LITELLM] = stack.enter_context(_litellm(folder, upstream.url)), CHAT
        loads = {
            # At LiteLLM's pace an answer takes seconds: it is given time for more than one round of them.
            name: partial(
                _load, server, path, *((seconds + 3, True) if name == LITELLM else (seconds, False))
            )
            for name, (server, path) in targets.items()
        }
        burst = take_turns(loads, rounds=rounds)
        del loads[WAITING]
        paced = take_turns({name: partial(load, paced=True) for name, load in loads.items()}, rounds=rounds)
    return [_burst_table(burst), _paced_table(paced)]


def interlock(folder: Path, upstream: str, limit: int, more: str = "") -> AbstractContextManager[Server]:
    """`interlock serve` in front of *upstream*, with *more* lines of configuration."""
    folder.mkdir()
    config = folder / "interlock.toml"
    config.write_text(_CONFIG.format(folder=folder, upstream=upstream, limit=limit, more=more))
    return serving(Path(sys.executable).with_name("interlock"), "serve", "--config", config, first_cpu=True)


def _load(server: Server, path: str, seconds: float, loose: bool, *, paced: bool = False) -> Figures:
    """What the load generator found, and microseconds of CPU that the server used for each answer."""
    options = [*["--loose"] * loose, *["--paced"] * paced]
    used = server.cpu_seconds
    process = subprocess.Popen(
        [*module("load", server.url + path, "--seconds", str(seconds), *options)], stdout=subprocess.PIPE
    )
    pin(process.pid)
    said, _ = process.communicate(timeout=seconds + 40)
    figures: Figures = json.loads(said)
    if figures["wrong"]:
        raise SystemExit(f"{figures['wrong']} wrong answers from {server.url}: {figures['example']!r}")
    figures["cpu_us"] = (server.cpu_seconds - used) / max(1, figures["answered"]) * 1e6
    return figures


def _burst_table(taken: dict[str, list[Figures]]) -> Table:
    rates = {name: [one["per_second"] for one in figures] for name, figures in taken.items()}
    costs = {name: [one["cpu_us"] for one in figures] for name, figures in taken.items()}
    rows = [
        (
            name,
            f"{statistics.median(rates[name]):,.0f}",
            f"{ratio(rates[name], rates[BARE]):.2f}",
            f"{_median(figures, 'total_p50'):.1f}",
            f"{_median(figures, 'total_p99'):.1f}",
            "" if name == DIRECT else f"{_median(figures, 'cpu_us'):.0f}",
            "" if name == DIRECT else f"{ratio(costs[BARE], costs[name]):.2f}",
            spread(rates[name]),
        )
        for name, figures in taken.items()
    ]
    if LITELLM in rates:
        times = ratio(rates[GATES], rates[LITELLM])
        rows.append((f"Interlock against {LITELLM.partition(',')[0]}", "", f"{times:.0f}", *[""] * 5))
    columns = ("", "requests/s", "ratio", "p50 ms", "p99 ms", "CPU µs", "CPU ratio", "spread")
    note = (
        "64 connections; every answer is 20 events in one write. Ratios: to the bare pass-through. CPU: what "
        "the proxy's process used for one request; its ratio says the same as that of the requests a second, "
        "and stays what it is while others use the machine."
    )
    if LITELLM not in rates:
        note += " LiteLLM's proxy was left out; --litellm measures it, too."
    return Table("Gateway, burst", columns, rows, note, dict(taken))


def _paced_table(taken: dict[str, list[Figures]]) -> Table:
    rows = []
    for name, figures in taken.items():
        first = [_median(figures, key) for key in ("first_p50", "first_p99")]
        added = [
            statistics.median(one[key] - base[key] for one, base in zip(figures, taken[DIRECT], strict=True))
            for key in ("first_p50", "first_p99")
        ]
        cells = [f"{ms:.1f}" for ms in first] + [f"{ms:+.1f}" for ms in added]
        cpu = "" if name == DIRECT else f"{_median(figures, 'cpu_us'):.0f}"
        rows.append((name, *cells, f"{_median(figures, 'total_p50'):.0f}", cpu))
    columns = ("", "first byte p50 ms", "p99", "added p50", "p99", "whole answer p50 ms", "CPU µs")
    note = "64 streams, each 20 events 10 ms apart."
    return Table("Gateway, paced", columns, rows, note, dict(taken))


def _median(figures: list[Figures], key: str) -> float:
    return statistics.median(one[key] for one in figures)


# -- LiteLLM ---------------------------------------------------------------------------------------


def _installed() -> bool:
    """Whether LiteLLM's proxy is there: in an environment of its own, kept for the next time."""
    if (_HOME / "bin" / "litellm").exists():
        return True
    uv = Path(sys.executable).with_name("uv")
    packages = f"litellm[proxy]=={LITELLM_VERSION}"
    try:
        subprocess.run([uv, "venv", "--clear", "-q", "--python", sys.executable, _HOME], check=True)
        subprocess.run(
            [uv, "pip", "install", "-q", "--python", _HOME / "bin" / "python", packages], check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"LiteLLM's proxy is left out, it could not be installed: {error}", file=sys.stderr)
        return False
    return True


def _litellm(folder: Path, upstream: str) -> AbstractContextManager[Server]:
    models = [
        {
            "model_name": name,
            "litellm_params": {"model": f"openai/{name}", "api_base": f"{upstream}/v1", "api_key": "sk-x"},
        }
        for name in ("mock", "mock-paced")
    ]
    config = folder / "litellm.yaml"  # JSON is YAML
    settings = {"general_settings": {"master_key": "sk-bench"}, "litellm_settings": {"telemetry": False}}
    config.write_text(json.dumps({"model_list": models, **settings}))
    port = str(free_port())
    command = (_HOME / "bin" / "litellm", "--config", config, "--host", "127.0.0.1", "--port", port)
    return serving(
        *(*command, "--num_workers", "1"),
        first_cpu=True,
        says=False,
        url=f"http://127.0.0.1:{port}",
        within=90,
    )
