"""Permits through a server: how many a second, and how long one takes to come.

The server is `interlock serve` with its state on the disk, on the first CPU; the one client process is on the
last, with asyncio's own event loop. One unit is a pair: acquire two limits, release them. *Room* is there for
everybody; *half wait* means half as many slots as tasks. Plain HTTP is a POST and a DELETE on a connection of
its own for each task, from a client that is no more than reads and writes.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench.gateway import interlock
from bench.measure import Table, pin, take_turns
from bench.processes import Server
from interlock.admission.remote import RemoteAdmission

Figures = dict[str, float]
Work = Callable[[int, Callable[[], bool], list[float]], Awaitable[None]]

WARM_UP = 0.3
NAMES = ("streams", "global")


def run(*, quick: bool = False) -> list[Table]:
    """The table."""
    pin()
    rounds, seconds = (1, 0.7) if quick else (5, 1.5)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        # Nothing goes through the gateway: its provider need not be there.
        server = stack.enter_context(interlock(folder / "home", "http://127.0.0.1:9", 1000))
        cases: dict[str, Callable[[], Figures]] = {
            f"RemoteAdmission, {tasks} task{'s' * (tasks > 1)}": partial(
                _remote, server, tasks, 1000, seconds
            )
            for tasks in (1, 64, 512)
        }
        cases["  64 tasks, half wait"] = partial(_remote, server, 64, 32, seconds)
        cases |= {
            f"plain HTTP, {tasks} task{'s' * (tasks > 1)}": partial(_plain, server, tasks, seconds)
            for tasks in (1, 64)
        }
        taken = take_turns(cases, rounds=rounds)
    rows = [
        (
            name,
            f"{_median(figures, 'per_second'):,.0f}",
            f"{_median(figures, 'p50_us'):,.0f}",
            f"{_median(figures, 'p99_us'):,.0f}",
            f"{_median(figures, 'server_us'):.0f}",
            f"{_median(figures, 'client_us'):.0f}",
        )
        for name, figures in taken.items()
    ]
    note = (
        "Pairs of acquire and release a second; microseconds until a permit was there, and of CPU for "
        "each pair."
    )
    columns = ("", "pairs/s", "p50 µs", "p99 µs", "server CPU", "client CPU")
    return [Table("Permits through a server", columns, rows, note, dict(taken))]


def _median(figures: list[Figures], name: str) -> float:
    return statistics.median(one[name] for one in figures)


def _remote(server: Server, tasks: int, slots: int, seconds: float) -> Figures:
    async def measure() -> Figures:
        admission = RemoteAdmission(server.url)
        await admission.set_limit("streams", slots)

        async def work(number: int, going_on: Callable[[], bool], waits: list[float]) -> None:
            clock = time.perf_counter
            while going_on():
                began = clock()
                permit = await admission.acquire(*NAMES)
                waits.append(clock() - began)
                permit.release()

        try:
            return await _measured(server, tasks, seconds, work)
        finally:
            await admission.set_limit("streams", 1000)
            await admission.aclose()

    return asyncio.run(measure())


def _plain(server: Server, tasks: int, seconds: float) -> Figures:
    url = urlsplit(server.url)
    body = json.dumps({"limits": NAMES}).encode()
    head = f"HTTP/1.1\r\nhost: {url.netloc}\r\ncontent-type: application/json\r\ncontent-length: "
    post = f"POST /permits {head}{len(body)}\r\n\r\n".encode() + body

    async def work(number: int, going_on: Callable[[], bool], waits: list[float]) -> None:
        reader, writer = await asyncio.open_connection(url.hostname, url.port)
        clock = time.perf_counter
        while going_on():
            began = clock()
            writer.write(post)
            permit = await _answer(reader)
            waits.append(clock() - began)
            writer.write(f"DELETE /permits/{permit['id']}?fence={permit['fence']} {head}0\r\n\r\n".encode())
            await _answer(reader)
        writer.close()

    return asyncio.run(_measured(server, tasks, seconds, work))


async def _answer(reader: asyncio.StreamReader) -> Any:
    head = await reader.readuntil(b"\r\n\r\n")
    size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return json.loads(await reader.readexactly(size))


async def _measured(server: Server, tasks: int, seconds: float, work: Work) -> Figures:
    """*tasks* of *work* for *seconds*, after a warm-up."""
    clock = time.perf_counter
    ends = clock() + WARM_UP
    await asyncio.gather(*(work(number, lambda: clock() < ends, []) for number in range(tasks)))
    waits: list[float] = []
    began, cpu, used = clock(), time.process_time(), server.cpu_seconds
    ends = began + seconds
    await asyncio.gather(*(work(number, lambda: clock() < ends, waits) for number in range(tasks)))
    took, cpu, used = clock() - began, time.process_time() - cpu, server.cpu_seconds - used
    waits.sort()
    return {
        "per_second": len(waits) / took,
        "p50_us": waits[len(waits) // 2] * 1e6,
        "p99_us": waits[len(waits) * 99 // 100] * 1e6,
        "server_us": used / len(waits) * 1e6,
        "client_us": cpu / len(waits) * 1e6,
    }
