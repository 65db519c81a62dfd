"""A bar for what takes long: on standard error, if that is a terminal, and nowhere else."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

Advance: TypeAlias = Callable[[int, int | None], object]
"""Called with how much is done and how much there is in all; None: nobody knows."""


@contextmanager
def progress(what: str) -> Iterator[Advance]:
    """Show how far *what* is, as it is told; the bar is gone when this is left."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)

        def advance(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total)

        yield advance
