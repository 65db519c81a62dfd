"""Prometheus' text format: what goes in comes out of a strict reader, whatever is in the labels."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from expositions import parse
from interlock.telemetry.exposition import (
    Counter,
    Histogram,
    Metric,
    Sample,
    number,
    render,
)
from interlock.telemetry.labels import OTHER, Bounded

GAUGE = Metric("interlock_g", "gauge", ("limit",), "What it is.")


def test_the_text_of_a_family() -> None:
    text = render([(GAUGE, [Sample(("a",), 1), Sample(('q"\\\n',), 0.5)])])
    assert text == (
        "# HELP interlock_g What it is.\n"
        "# TYPE interlock_g gauge\n"
        'interlock_g{limit="a"} 1\n'
        'interlock_g{limit="q\\"\\\\\\n"} 0.5\n'
    )


@given(st.lists(st.text(), unique_by=lambda text: text.encode("utf-8", "replace")), st.text())
def test_any_text_may_be_a_label_or_a_help(values: list[str], help_: str) -> None:
    """Quotes, backslashes, line ends, control characters: none of them leaves its place."""
    metric = Metric("interlock_g", "gauge", ("limit",), help_)
    read = parse(render([(metric, [Sample((value,), 1) for value in values])]))
    encodable = [value.encode("utf-8", "replace").decode() for value in values]
    assert list(read.by("interlock_g", "limit")) == encodable
    assert read["interlock_g"].help == help_.encode("utf-8", "replace").decode()


def test_a_lone_surrogate_does_not_break_the_answer() -> None:
    assert render([(GAUGE, [Sample(("\ud800",), 1)])]).encode().endswith(b'{limit="?"} 1\n')


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (True, "1"),
        (16.0, "16"),
        (-2, "-2"),
        (0.1, "0.1"),
        (1e-7, "1e-07"),
        (2.0**70, "1.1805916207174113e+21"),
        (math.inf, "+Inf"),
        (-math.inf, "-Inf"),
        (math.nan, "NaN"),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


def test_a_counter_grows_for_each_combination_of_labels() -> None:
    counter = Counter()
    counter.add("p", "rate")
    counter.add("p", "rate")
    counter.add("a", "rate", by=0)
    assert counter.samples() == [Sample(("a", "rate"), 0), Sample(("p", "rate"), 2)]


def test_a_histogram_counts_what_is_at_most_a_bound() -> None:
    """A value equal to a bound is in its bucket; all larger buckets have it, too."""
    histogram = Histogram((0.5, 1.0))
    for value in (0.5, 0.75, 9.0):
        histogram.observe(value, "tools")
    read = parse(render([(Metric("w_seconds", "histogram", ("limit",), "w"), histogram.samples())]))
    bucket = [read.value("w_seconds_bucket", limit="tools", le=le) for le in ("0.5", "1", "+Inf")]
    assert bucket == [1, 2, 3]
    assert read.value("w_seconds_sum", limit="tools") == 10.25
    assert read.value("w_seconds_count", limit="tools") == 3


def test_a_label_has_no_more_values_than_allowed_and_keeps_those_it_has() -> None:
    names = Bounded(3)
    given = [names.value(text) for text in ("a", "b", "c", "a", "d", "b")]
    assert given == ["a", "b", OTHER, "a", OTHER, "b"]
    assert len(set(given)) == 3


def test_labels_and_values_that_do_not_fit_are_a_mistake() -> None:
    with pytest.raises(ValueError):
        render([(GAUGE, [Sample(("a", "b"), 1)])])
