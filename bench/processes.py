"""Servers as processes of their own: each takes a free port, says which, and is stopped at the end."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.measure import pin

ROOT = Path(__file__).parent.parent
_URL = re.compile(rb"http://127\.0\.0\.1:[0-9]+(?=\s|/)")


@dataclass(frozen=True)
class Server:
    """A server that runs: where, and as which process."""

    url: str
    pid: int

    @property
    def cpu_seconds(self) -> float:
        """What it has used so far; NaN where the system does not tell."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return float("nan")
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def serving(
    *command: str | Path, first_cpu: bool, says: bool = True, url: str = "", within: float = 15.0
) -> Iterator[Server]:
    """A server that runs meanwhile, at the URL that it *says* on its output, else at the given *url*.

    It is on the first CPU (`first_cpu`) or on the last. SystemExit if it does not listen *within* seconds.
    """
    process = subprocess.Popen(
        [str(part) for part in command],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if says else subprocess.DEVNULL,
        stderr=None if says else subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        pin(process.pid, first=first_cpu)
        yield Server(_said(process, within) if says else _listening(process, url, within), process.pid)
    finally:
        _stop(process)


def module(name: str, *arguments: str) -> tuple[str, ...]:
    """The command for a module of this package."""
    return (sys.executable, "-m", f"bench.{name}", *arguments)


def free_port() -> int:
    """For servers that cannot choose one themselves."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _said(process: subprocess.Popen[bytes], within: float) -> str:
    assert process.stdout is not None
    said = b""
    until = time.monotonic() + within
    while select.select([process.stdout], [], [], max(0.0, until - time.monotonic()))[0]:
        more = os.read(process.stdout.fileno(), 4096)
        said += more
        if found := _URL.search(said):
            return found[0].decode()
        if not more:
            break
    raise SystemExit(f"{process.args!r} did not say where it listens")


def _listening(process: subprocess.Popen[bytes], url: str, within: float) -> str:
    host, _, port = url.removeprefix("http://").partition(":")
    until = time.monotonic() + within
    while time.monotonic() < until and process.poll() is None:
        try:
            socket.create_connection((host, int(port)), 1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return url
    raise SystemExit(f"{process.args!r} does not listen on {url}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, number)
        try:
            process.wait(3)
        except subprocess.TimeoutExpired:
            continue
        break
