"""Prometheus' text format, version 0.0.4: families of samples in, text out; and the numbers that only grow.

Nothing here knows what is measured.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate
from math import inf
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

Kind: TypeAlias = Literal["counter", "gauge", "histogram"]
Values: TypeAlias = tuple[str, ...]
"""The values of a metric's labels, in the order of its `Metric.labels`."""


class Metric(NamedTuple):
    """What is measured: a *name*, the names of its labels, and what it says."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    help: str


class Sample(NamedTuple):
    """One number. *suffix* and *bound* are those of a histogram's parts."""

    values: Values
    value: float
    suffix: str = ""
    bound: float | None = None


def render(families: Iterable[tuple[Metric, Iterable[Sample]]]) -> str:
    """The text of all *families*, each under its help and its kind, also if it has no sample."""
    lines = []
    for metric, samples in families:
        lines.append(f"# HELP {metric.name} {_escaped(metric.help)}")
        lines.append(f"# TYPE {metric.name} {metric.kind}")
        for values, value, suffix, bound in samples:
            labels = list(zip(metric.labels, values, strict=True))
            if bound is not None:
                labels.append(("le", number(bound)))
            shown = ",".join(f'{name}="{_quoted(text)}"' for name, text in labels)
            lines.append(f"{metric.name}{suffix}{'{' + shown + '}' if shown else ''} {number(value)}")
    return "\n".join(lines) + "\n"


def number(value: float) -> str:
    """*value* as the format writes it, whole numbers without a point."""
    if value != value:
        return "NaN"
    if value in (inf, -inf):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 1 << 53 else repr(float(value))


def _escaped(text: str) -> str:
    return _encodable(text).replace("\\", "\\\\").replace("\n", "\\n")


def _quoted(text: str) -> str:
    return _escaped(text).replace('"', '\\"')


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


class Counter:
    """A number for each combination of label values; each only grows."""

    def __init__(self) -> None:
        self._totals: dict[Values, float] = {}

    def add(self, *values: str, by: float = 1) -> None:
        self._totals[values] = self._totals.get(values, 0) + by

    def samples(self) -> list[Sample]:
        """In the order of their label values."""
        return [Sample(values, total) for values, total in sorted(self._totals.items())]


class Histogram:
    """How many observations were at most so large, for each of *bounds*, which are ascending."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = (*bounds, inf)
        self._series: dict[Values, tuple[list[int], list[float]]] = {}

    def observe(self, value: float, *values: str) -> None:
        series = self._series.get(values)
        if series is None:
            series = self._series[values] = [0] * len(self._bounds), [0.0]
        counts, total = series
        counts[bisect_left(self._bounds, value)] += 1
        total[0] += value

    def samples(self) -> Iterator[Sample]:
        """Buckets, sum and count of each series, in the order of their label values."""
        for values, (counts, total) in sorted(self._series.items()):
            for bound, count in zip(self._bounds, accumulate(counts), strict=True):
                yield Sample(values, count, "_bucket", bound)
            yield Sample(values, total[0], "_sum")
            yield Sample(values, sum(counts), "_count")
