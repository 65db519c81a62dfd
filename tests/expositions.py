"""Prometheus' text format read strictly: what the format does not allow is an AssertionError."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

Labels = tuple[tuple[str, str], ...]

_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_HELP = re.compile(rf"# HELP ({_NAME}) (.*)")
_TYPE = re.compile(rf"# TYPE ({_NAME}) (counter|gauge|histogram|summary|untyped)")
_SAMPLE = re.compile(rf"({_NAME})(?:\{{(.*)\}})? (\S+)")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\\\|\\"|\\n)*)"(,|$)')
_VALUE = re.compile(r"[+-]?(?:Inf|\d+(?:\.\d+)?(?:e[+-]?\d+)?)|NaN")


@dataclass
class Family:
    """One metric: its help, its kind, and its samples by full name and labels."""

    help: str
    kind: str = ""
    samples: dict[tuple[str, Labels], float] = field(default_factory=dict)


class Exposition(dict[str, Family]):
    """Everything that was said, by the name of the metric."""

    def value(self, name: str, **labels: str) -> float:
        """The sample *name* with exactly these *labels*."""
        family = next(one for one in (name, *_stems(name)) if one in self)
        return self[family].samples[name, tuple(sorted(labels.items()))]

    def by(self, name: str, label: str) -> dict[str, float]:
        """The samples of a metric that has only this *label*."""
        return {dict(labels)[label]: value for (_, labels), value in self[name].samples.items()}

    def values_of(self, *kinds: str) -> list[dict[tuple[str, Labels], float]]:
        """The samples of all metrics of these kinds."""
        return [family.samples for family in self.values() if family.kind in kinds]


def parse(text: str) -> Exposition:
    """*text*, whole: families one after the other, each with help and kind first, no sample twice."""
    assert text.endswith("\n")
    found, current = Exposition(), ""
    for line in text.removesuffix("\n").split("\n"):
        if helped := _HELP.fullmatch(line):
            current = helped[1]
            assert current not in found, f"{current} is told twice"
            found[current] = Family(_unescaped(helped[2]))
        elif typed := _TYPE.fullmatch(line):
            assert typed[1] == current, line
            assert not found[current].kind, line
            assert not found[current].samples, line
            found[current].kind = typed[2]
        else:
            sample = _SAMPLE.fullmatch(line)
            assert sample, f"no sample: {line!r}"
            name, labels, value = sample.groups()
            assert current in (name, *_stems(name)), f"{name} stands below {current}"
            assert _VALUE.fullmatch(value), line
            key = name, _labels(labels)
            assert key not in found[current].samples, f"{line} is told twice"
            found[current].samples[key] = float(value)
    for name, family in found.items():
        assert family.kind, f"{name} has no kind"
        if family.kind == "histogram":
            _check_histogram(name, family)
        else:
            assert {one for one, _ in family.samples} <= {name}, name
        if family.kind == "counter":
            assert all(value >= 0 for value in family.samples.values()), name
    return found


def _stems(name: str) -> list[str]:
    return [name.removesuffix(part) for part in ("_bucket", "_sum", "_count") if name.endswith(part)]


def _labels(text: str | None) -> Labels:
    pairs, at = [], 0
    while text is not None and at < len(text):
        label = _LABEL.match(text, at)
        assert label, f"no labels: {text!r}"
        pairs.append((label[1], _unescaped(label[2])))
        at = label.end()
    assert len({name for name, _ in pairs}) == len(pairs), text
    return tuple(sorted(pairs))


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", lambda found: {"n": "\n"}.get(found[1], found[1]), text)


def _check_histogram(name: str, family: Family) -> None:
    """Of each series: buckets that only grow, the last of them +Inf and equal to the count, and a sum."""
    series: dict[Labels, dict[float, float]] = {}
    for (full, labels), value in family.samples.items():
        if full == f"{name}_bucket":
            rest = tuple(pair for pair in labels if pair[0] != "le")
            series.setdefault(rest, {})[float(dict(labels)["le"])] = value
    for labels, buckets in series.items():
        assert list(buckets) == sorted(buckets)
        assert list(buckets.values()) == sorted(buckets.values())
        assert buckets[math.inf] == family.samples[f"{name}_count", labels]
        assert family.samples[f"{name}_sum", labels] >= 0
