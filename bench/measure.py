"""How everything here is measured, and how it is shown.

The candidates of one table take turns in one process, in a new order every round, so that a machine that
speeds up or slows down meets them all alike. The first round only warms up. A figure is the median over the
rounds; its ratio is the median of the ratios to the baseline of the same round; the spread is the distance
between the quartiles as a share of the median. The garbage collector runs before a timed section, not in it.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

RESULTS = Path(__file__).parent / "results"


class Timed:
    """``with Timed() as timed: …``; then ``timed.ns``."""

    ns = 0

    def __enter__(self) -> Timed:
        gc.collect()
        gc.disable()
        self._began = time.perf_counter_ns()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.ns = time.perf_counter_ns() - self._began
        gc.enable()


def pin(pid: int = 0, *, first: bool = False) -> None:
    """Keep a process (0: this one) on the last CPU, or on the *first*; where that can be done."""
    if hasattr(os, "sched_setaffinity"):
        cpus = sorted(_CPUS)
        os.sched_setaffinity(pid, {cpus[0] if first else cpus[-1]})


_CPUS = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else {0}


def take_turns(
    candidates: Mapping[str, Callable[[], Any]], *, rounds: int, warm_up: bool = True
) -> dict[str, list[Any]]:
    """Call every candidate once a round, shuffled; what they returned, round by round."""
    order = list(candidates)
    shuffle = Random(7).shuffle
    taken: dict[str, list[Any]] = {name: [] for name in order}
    for number in range(rounds + warm_up):
        shuffle(order)
        for name in order:
            figure = candidates[name]()
            if number or not warm_up:
                taken[name].append(figure)
    return taken


def ratio(figures: Sequence[float], baseline: Sequence[float]) -> float:
    """The median of the ratios round by round."""
    return statistics.median(one / base for one, base in zip(figures, baseline, strict=True))


def spread(figures: Sequence[float]) -> str:
    """The distance between the quartiles as a share of the median; nothing for fewer than three."""
    if len(figures) < 3:
        return ""
    low, middle, high = statistics.quantiles(figures, n=4, method="inclusive")
    return f"{(high - low) / middle:.0%}"


@dataclass
class Table:
    """Rows of text under *columns*; *figures* is what they were made of."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str = ""
    figures: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        widths = [max(map(len, column)) for column in zip(self.columns, *self.rows, strict=True)]
        lines = [self.title, "=" * len(self.title), "", _line(self.columns, widths)]
        lines += [_line(row, widths) for row in self.rows]
        return "\n".join([*lines, *([f"\n{self.note}"] if self.note else []), ""])

    def markdown(self) -> str:
        lines = [f"### {self.title}", "", _cells(self.columns), "|---|" + "---:|" * (len(self.columns) - 1)]
        lines += [_cells(row) for row in self.rows]
        return "\n".join([*lines, *([f"\n{self.note}"] if self.note else []), ""])


def compared(
    title: str, unit: str, taken: Mapping[str, list[float]], *, baseline: str, note: str = ""
) -> Table:
    """A table of nanoseconds per *unit*, each row against *baseline*."""
    rows = [
        (
            name,
            f"{statistics.median(figures):,.0f}",
            f"{ratio(figures, taken[baseline]):.2f}",
            spread(figures),
        )
        for name, figures in taken.items()
    ]
    return Table(title, ("", f"ns/{unit}", "ratio", "spread"), rows, note, dict(taken))


def save(part: str, tables: Iterable[Table]) -> Path:
    """Write *tables* with what they were made of, and where, as JSON."""
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{part}.json"
    about = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "machine": platform.platform(),
        "cpus": len(_CPUS),
    }
    file.write_text(json.dumps({**about, "tables": [asdict(table) for table in tables]}, indent=1))
    return file


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = zip(cells, widths, strict=True)
    return "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]).rstrip()


def _cells(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
